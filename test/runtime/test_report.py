"""What a hang's report says, and what of it a file holds, on made-up reports of kernels."""

import json
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest

from tileir.errors import TileirError
from tileir.runtime.report import describe, dump_of, groups_of, load_dump, roots_of, save_dump
from tileir.tools.cli import main
from tileir.tools.postmortem import wait_graph

SMS, WARPS = 4, 2
WAITS = ["a packet", "a free ring slot", "an earlier copy to land", "a full ring slot"]
WAITS.append("the step record")
PACKET, EMPTY, WINDOW, FULL, RECORD = range(1, 6)
CONSUMERS, TAPE, STATE = (0, 1), 2, 3
PACKETS, SNAPSHOT = 8, 512
NAMES = ["embedding_0", "qkv_0", "attention_0", "residual_0"]


def tasks(name: str) -> dict[str, Any]:
    """A row of four tasks of two packets each, one an SM, the first on SM 1."""
    writes = [[name, 0, 0, 4, 4, 4, 0, [0], 4, 1]]
    return {"first": 0, "tasks": 4, "rotation": 3, "writes": writes, "records": ""}


MANIFEST: dict[str, Any] = {
    "warps": WARPS,
    "sms": SMS,
    "target": "h100",
    "control": {"reports": 0, "ends": 256, "snapshot": SNAPSHOT},
    "waits": WAITS,
    "row_bodies": ["lookup_0", "contract_0", "attend_0", "contract_1"],
    "row_awaits": [[], NAMES[:1], NAMES[1:2], NAMES[2:3]],
    "row_writes": [[name] for name in NAMES],
    "row_tasks": [tasks(name) for name in NAMES],
    "row_reads": [[{"weights": 0}, {"weights": 64}, {"cache": {"splits": 4}}, {"weights": 64}]],
    "channels": {
        name: {"offset": 2 * 64 * i, "depth": 2, "payload": "bf16x2", "values": 2 * PACKETS}
        for i, name in enumerate(NAMES)
    },
}


def report(
    *waits: tuple[int, int, int, int, int],
    seen: dict[tuple[str, int, int], int] | None = None,
    manifest: dict[str, Any] = MANIFEST,
) -> dict[str, Any]:
    """A dump of (sm, warp, code, row, epoch). seen: epochs that packets bear, by (channel, epoch's copy, packet)."""
    memory = np.zeros(SNAPSHOT + 2 * 64 * len(NAMES), np.uint8)
    words, packets = memory[:256].view(np.uint32).reshape(-1, 4), memory[SNAPSHOT:].view(np.uint32)
    for sm, warp, code, row, epoch in waits:
        parity = 0 if code == PACKET else 2
        words[sm * (WARPS + 2) + warp] = parity << 8 | code, row, epoch, 7
    for (name, epoch, packet), bears in (seen or {}).items():
        place = NAMES.index(name) * 2 + epoch % 2
        packets[place * 16 + packet * 2 + 1] = bears
    memory[256:320].view(np.int64).reshape(-1, 2)[:] = [
        [0, 5200], [5000, 5300], [5100, 9000], [0, 0],
    ]  # fmt: skip
    return dump_of(memory, manifest, "cuda:0 made up")


def consumers(sm: int, code: int, row: int, epoch: int) -> list[tuple[int, int, int, int, int]]:
    return [(sm, warp, code, row, epoch) for warp in CONSUMERS]


def test_a_row_that_was_passed_by_all_has_lost_its_packets() -> None:
    waits = [w for sm in range(SMS) for w in consumers(sm, PACKET, 3, 9)]
    text = describe(report(*waits, (2, TAPE, EMPTY, 3, 9)))
    first = text.splitlines()[0]
    assert (
        "8 × consumer in row 3 (contract_1) waited for a packet in epoch 9, on SMs 0 … 3" in first
    )
    assert "of channel attention_0, which row 2 (attend_0) writes; nobody waits before" in first
    assert "1 other warps waited for these" in first


def test_who_is_behind_is_to_blame() -> None:
    """SM 1 waits for weights; the others for what it has not written yet."""
    waits = [w for sm in (0, 2, 3) for w in consumers(sm, PACKET, 2, 9)]
    waits += consumers(1, FULL, 1, 9)
    dump = report(*waits, (1, TAPE, WINDOW, 1, 9))
    (root,) = roots_of(dump, groups_of(dump))
    assert (root.role, root.sms, root.wait) == ("tape loader", {1}, "an earlier copy to land")
    assert "the copy engine did not finish a copy" in describe(dump)
    graph = wait_graph(dump)
    assert nx.is_directed_acyclic_graph(graph)
    assert [g.row for g in nx.topological_sort(graph)] == [2, 1, 1]


def test_a_step_behind_is_behind() -> None:
    dump = report(*consumers(0, PACKET, 3, 8), *consumers(1, PACKET, 1, 9))
    (root,) = roots_of(dump, groups_of(dump))
    assert (root.sms, root.epoch) == ({0}, 8)


def test_a_circle() -> None:
    """A loader waits for a slot that its consumers do not free before it has loaded more."""
    dump = report(*consumers(0, FULL, 1, 3), (0, TAPE, EMPTY, 1, 3))
    assert len(roots_of(dump, groups_of(dump))) == 2
    assert "in a circle with others" in describe(dump)


def test_a_loader_that_has_ended() -> None:
    assert "they had ended" in describe(report(*consumers(0, FULL, 1, 3)))


def test_the_record() -> None:
    dump = report((0, STATE, RECORD, 2, 4), *consumers(0, PACKET, 3, 3))
    (root,) = roots_of(dump, groups_of(dump))
    assert root.role == "consumer"


def test_nobody_reports() -> None:
    assert "none has reported" in describe(report())


def test_a_channel_that_nobody_writes() -> None:
    rows = MANIFEST | {"row_writes": [[], [], [], []]}
    dump = report((0, 0, PACKET, 2, 1), manifest=rows)
    assert "of channel qkv_0, which no row writes" in describe(dump)


def test_a_row_that_waits_for_a_later_one() -> None:
    """Beside a channel whose packets are there, and others who wait for what the row would write."""
    rows = MANIFEST | {"row_awaits": [[], ["embedding_0", "residual_0"], ["qkv_0"], []]}
    seen = {("embedding_0", 3, p): 3 for p in range(PACKETS)}
    waits = (*consumers(0, PACKET, 1, 3), *consumers(1, PACKET, 2, 3))
    text = describe(report(*waits, seen=seen, manifest=rows))
    assert (
        "on SM 0, of channel residual_0, which row 3 (contract_1) writes, later in the step: the row waits for itself"
        in text
    )


def test_what_packets_bear_and_who_writes_them() -> None:
    """Of the copy of epoch 9, packets 4 and 5 bear 8, packet 7 bears 10; the copy of epoch 8 is not looked at."""
    bears = {4: 8, 5: 8, 7: 10}
    seen = {("qkv_0", 9, p): bears.get(p, 9) for p in range(PACKETS)}
    seen |= {("qkv_0", 8, p): 8 for p in range(PACKETS)}
    text = describe(report(*consumers(0, PACKET, 2, 9), seen=seen))
    assert (
        "Channel qkv_0: 2 of 8 packets bear epoch 8 instead of 9: packets 4 … 5, which row 1 (contract_0) writes in "
        "tasks 2 on SMs 3; 1 of 8 packets bear epoch 10 instead of 9: packets 7, which row 1 (contract_0) writes in "
        "tasks 3 on SMs 0."
    ) in text
    seen |= {("qkv_0", 9, p): 9 for p in range(PACKETS)}
    text = describe(report(*consumers(0, PACKET, 2, 9), seen=seen))
    assert "Channel qkv_0: all 8 packets bear epoch 9." in text


def test_parts_of_splits_that_have_no_rows_are_none() -> None:
    seen = {("attention_0", 9, p): 9 if p < 2 else 5 for p in range(PACKETS)}
    text = describe(report(*consumers(0, PACKET, 3, 9), seen=seen))
    assert "which row 2 (attend_0) writes in tasks 1 … 3" in text
    assert text.splitlines()[0].count("Splits that have no rows write none.") == 1


def test_phases_and_ends() -> None:
    dump = report(*consumers(0, FULL, 1, 3))
    assert "number 7: phase 1 awaited, phase 0 seen" in describe(dump)
    assert dump["ends"] == {"expired": [1, 2], "after_ns": [200, 300, 4000, None]}


def test_the_file_and_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dump = report(*consumers(0, PACKET, 3, 9))
    path = save_dump(dump)
    assert path is not None
    assert load_dump(path) == dump
    moved = path.rename(tmp_path / "hang.json")
    with pytest.raises(SystemExit) as ended:
        main(["postmortem", str(moved)])
    assert not ended.value.code
    assert "waited for a packet in epoch 9" in capsys.readouterr().out
    assert (tmp_path / "hang.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"schema": 1}', '{"schema": 2, "device": 0, "target": 0, "rows": [], "waits": [1],'
     ' "channels": [], "ends": {}}'],
)  # fmt: skip
def test_no_dump(tmp_path: Path, text: str) -> None:
    path = tmp_path / "hang.json"
    path.write_text(text)
    with pytest.raises(TileirError, match="no dump of a hang"):
        load_dump(path)


def test_every_place_of_a_dump_may_be_damaged(tmp_path: Path) -> None:
    """A dump with any one value replaced is refused or described, never a traceback."""
    whole = report(*consumers(0, PACKET, 3, 9), (0, TAPE, EMPTY, 3, 9))
    path = tmp_path / "hang.json"
    for damaged in _damaged(whole):
        path.write_text(json.dumps(damaged))
        try:
            text = describe(load_dump(path))
        except TileirError:
            continue
        assert text


def _damaged(value: Any) -> list[Any]:
    """The value with one part replaced, by things of other kinds."""
    others: list[Any] = [None, -1, 10**9, "x", [], {}]
    if isinstance(value, dict):
        return others + [value | {k: d} for k, v in value.items() for d in _damaged(v)]
    if isinstance(value, list):
        return others + [
            [*value[:i], d, *value[i + 1 :]] for i, v in enumerate(value) for d in _damaged(v)
        ]
    return others
