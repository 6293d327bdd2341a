"""Reading the exchange memory: written here as docs/ir.md and tileir/scheduling/exchange_table.py say, by hand."""

import struct
from functools import cache
from itertools import pairwise
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from test.mistakes import package, tensors
from tileir.package import Package
from tileir.runtime.exchange import read_channel
from tileir.stages import Part, Stage
from tileir.tools.bounds import Bounds
from tileir.tools.check import compare
from tileir.tools.check_report import Report
from tileir.tools.exact import Exact, exact_of
from tileir.tools.measure import Measured, measure

IDS = [3, 1, 4, 1, 5, 9, 2]
BEFORE = 40  # steps of earlier launches
Key = tuple[int, Stage]


@cache
def held() -> Package:
    return package("h100")


@cache
def exact() -> Exact:
    return exact_of(held(), tensors(), IDS)


@cache
def rounded() -> Measured:
    """What a kernel would compute."""
    return measure(held().load(tensors(), "reference-bf16"), IDS, {})


class Memory:
    """A session whose launches leave `parts` in memory as the kernel does, behind the packets of a step before."""

    device = "cuda:0 made up"

    def __init__(self, found: Measured) -> None:
        self.found, self.manifest = found, held().manifest
        self.lost: Stage | None = None

    def logits(self, ids: list[int]) -> np.ndarray:
        assert ids == IDS
        return self.found.logits

    def exchange(self, ids: list[int]) -> tuple[np.ndarray, int]:
        epoch, memory = BEFORE + len(ids), bytearray(self.manifest["memory"]["exchange"])
        for (position, stage), part in self.found.parts.items():
            if position == len(ids) - 1:
                at = epoch - self.manifest["channels"][stage.channel]["depth"]
                self.write(memory, stage, Part(part.index, part.values * 0 + 1), at)
                if stage != self.lost:
                    self.write(memory, stage, part, epoch)
        return np.frombuffer(bytes(memory), np.uint64), epoch

    def write(self, memory: bytearray, stage: Stage, part: Part, epoch: int) -> None:
        channel = self.manifest["channels"][stage.channel]
        values, copy = channel["values"], epoch % channel["depth"]
        for index, value in zip(part.index.tolist(), part.values.tolist(), strict=True):
            if channel["payload"] == "bf16x2":
                at = channel["offset"] + (copy * (values // 2) + index // 2) * 8
                half = np.array(value, ml_dtypes.bfloat16).tobytes()
                memory[at + index % 2 * 2 : at + index % 2 * 2 + 2] = half
            else:
                at = channel["offset"] + (copy * values + index) * 8
                word = "<f" if channel["payload"] == "f32" else "<I"
                memory[at : at + 4] = struct.pack(word, value if word == "<f" else int(value))
            memory[at + 4 : at + 8] = struct.pack("<I", epoch)


def checked(session: Any) -> Report:
    found = measure(session, IDS, exact().found.parts)
    return compare(exact().found, found, Bounds(), session.device)


def test_what_is_written_is_read() -> None:
    found = measure(Memory(rounded()), IDS, exact().found.parts)  # type: ignore[arg-type]  # no generate
    assert not found.stale
    assert set(found.parts) == set(rounded().parts) == set(exact().found.parts)
    kinds = {stage.kind for _, stage in found.parts}
    assert kinds == {"values", "candidates"}
    for key, part in rounded().parts.items():
        assert np.array_equal(found.parts[key].index, part.index)
        assert np.array_equal(found.parts[key].values, part.values), key
    assert checked(Memory(rounded())).passed


def test_channels_do_not_overlap() -> None:
    """Each is another place in memory: what rows leave there is there until the next step."""
    sizes = {"bf16x2": 4, "f32": 8, "record": 8}
    places = sorted(
        (c["offset"], c["offset"] + c["depth"] * c["values"] * sizes[c["payload"]])
        for c in held().manifest["channels"].values()
    )
    assert {c["depth"] for c in held().manifest["channels"].values()} == {1, 2}
    for (_, end), (begin, _) in pairwise(places):
        assert end <= begin
    assert places[-1][1] <= held().manifest["memory"]["exchange"]


def test_a_packet_of_another_step_is_told() -> None:
    session = Memory(rounded())
    session.lost = next(s for _, s in rounded().parts if str(s).startswith("contract_0 qkv_1"))
    report = checked(session)
    assert report.failures[0].startswith("contract_0 qkv_1 (row ")
    assert (
        "128 of 128 values are of epoch 40, not of the step's, 41; so are 2 more"
        in report.failures[0]
    )


def test_a_wrong_value_is_told_with_its_stage() -> None:
    key = next(k for k in rounded().parts if str(k[1]).startswith("contract_2 gated_0"))
    part = rounded().parts[key]
    wrong = {**rounded().parts, key: Part(part.index, part.values[::-1])}
    report = checked(Memory(Measured(rounded().logits, wrong, {})))
    steep, beyond = report.failures
    assert " times at contract_2 gated_0 (row " in steep
    assert beyond.startswith("contract_2 gated_0 (row ")


@pytest.mark.parametrize("epoch", [7, 8])
def test_payloads(epoch: int) -> None:
    """Two copies of three packets, the other one's epoch being the step's before."""
    words = np.array([0x3F80C000, 0x0000BF80, 0x42280000], np.uint64)
    fresh, old = words | np.uint64(epoch << 32), words * 0 | np.uint64(epoch - 1 << 32)
    copies = [fresh, old] if epoch % 2 == 0 else [old, fresh]
    memory = np.concatenate([np.zeros(4, np.uint64), *copies])
    channel = {"offset": 32, "depth": 2, "values": 6, "payload": "bf16x2"}
    values, epochs = read_channel(memory, channel, epoch)
    assert values.tolist() == [-2.0, 1.0, -1.0, 0.0, 0.0, 42.0]
    assert epochs.tolist() == [epoch] * 6
    values, _ = read_channel(memory, channel | {"values": 3, "payload": "f32"}, epoch)
    assert values[2] == 42.0
    values, _ = read_channel(memory, channel | {"values": 3, "payload": "record"}, epoch)
    assert values.tolist() == [0x3F80C000, 0xBF80, 0x42280000]
    _, epochs = read_channel(memory, channel, epoch + 1)
    assert epochs.tolist() == [epoch - 1] * 6
