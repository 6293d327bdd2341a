"""Traces: clocks of SMs that do not agree, told apart and drawn."""

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tileir
from test.models import tiny_llama
from tileir.codegen.layout import MARKS, STEP_MARKS
from tileir.errors import TileirError
from tileir.frontends.torch_export import export_decode
from tileir.tools import cli
from tileir.tools.trace import PARTS, SCHEMA, Trace, load_trace, record_trace

# In ns from the step's begin: a contraction, then attention of which the second SM has no task; the step ends at 1000.
ROWS = ["contract_0", "attend_0"]
TIMES = {
    "begin": [[10, 500], [20, 520]],
    "received": [[100, 680], [130, None]],
    "met": [[110, 700], [140, None]],
    "multiplied": [[380, 890], [410, None]],
    "tape_begin": [[0, None], [0, None]],
    "tape_end": [[90, None], [95, None]],
    "state_begin": [[None, 510], [None, None]],
    "state_end": [[None, 690], [None, None]],
}
WAITED = [[50, 20], [60, 0]]


def trace() -> Trace:
    """The two SMs count 2 and 1.5 clocks a ns, from different numbers on, and begin 100 ns apart."""
    clocks = np.zeros((2, 3, len(MARKS)), np.int64)
    # The low words of both pass 0, which is also what a row has not noted: the second's within its row without a task.
    for sm, (rate, start, skew) in enumerate([(2.0, 2**33 - 300, 0), (1.5, 2**34 - 801, 100)]):
        for name, times in TIMES.items():
            for row, at in enumerate(times[sm]):
                clock = 0 if at is None else int(start + rate * at)
                clocks[sm, row, MARKS.index(name)] = clock & 0xFFFFFFFF
        clocks[sm, :2, MARKS.index("waited")] = [rate * w for w in WAITED[sm]]
        end = {"end": start + int(rate * 1000), "end_timer": 8000 + skew}
        for name, value in ({"begin": start, "begin_timer": 7000 + skew} | end).items():
            clocks[sm, 2, STEP_MARKS.index(name)] = value
    return Trace(clocks, list(MARKS), ROWS, [2_808_000, 312_000], 3.12)


def test_clocks_of_all_sms_are_one_time() -> None:
    ns = trace().ns[..., MARKS.index("begin")]
    assert np.allclose(ns, [[10, 500], [120, 620]])
    assert trace().step_ns == 1100
    assert np.isnan(trace().ns[1, 1, MARKS.index("received")])


def test_parts_add_up() -> None:
    parts = trace().parts()
    assert np.allclose(parts["exchange"], [[90, 180], [110, 480]])
    assert np.allclose(parts["warps"], [[10, 20], [10, 0]])
    assert np.allclose(parts["weights"], [[50, 20], [60, 0]])
    assert np.allclose(parts["work"], [[220, 170], [210, 0]])
    assert np.allclose(parts["epilogue"], [[120, 110], [110, 0]])


def test_table() -> None:
    lines = trace().table().splitlines()
    assert lines[0].split() == ["stage", "rows", *PARTS, "sum", "floor", "loss"]
    figures = ["0.1", "0.0", "0.1", "0.2", "0.1", "0.5", "0.9", "-0.4"]
    assert lines[1].split() == ["contract_0", "1", *figures]
    assert lines[3].split()[:2] == ["all", "2"]
    assert "step 1.1 µs; floor 1.0 µs: 3.1 MB at 3.12 TB/s; loss 0.1 µs" in lines[-1]


def test_perfetto_covers_what_the_marks_say() -> None:
    events = [e for e in trace().perfetto()["traceEvents"] if e["ph"] == "X"]
    mine = [e for e in events if (e["pid"], e["tid"]) == (0, 0)]
    assert [e["cat"] for e in mine] == [*PARTS, *PARTS]
    for event, following in pairwise(mine[:4]):
        assert event["ts"] + event["dur"] == pytest.approx(following["ts"], abs=1e-3)
    assert {e["cat"] for e in events if e["tid"]} == {"tape", "state"}


def test_saved_drawn_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace().save(tmp_path / "step.npz")
    again = load_trace(tmp_path / "step.npz")
    assert np.array_equal(again.clocks, trace().clocks)
    assert again.table() == trace().table()
    words = ["trace", str(tmp_path / "step.npz"), "-o", str(tmp_path / "step.json")]
    with pytest.raises(SystemExit) as ended:
        cli.main([*words, "--picture", str(tmp_path / "step.png")])
    assert not ended.value.code
    assert capsys.readouterr().out == trace().table() + "\n"
    assert json.loads((tmp_path / "step.json").read_text()) == trace().perfetto()
    assert (tmp_path / "step.png").read_bytes().startswith(b"\x89PNG")


def test_mistakes(tmp_path: Path) -> None:
    (tmp_path / "step.npz").write_text("no archive")
    with pytest.raises(TileirError, match=r"(?s)is no trace.*--save"):
        load_trace(tmp_path / "step.npz")
    with pytest.raises(TileirError, match="is no trace"):
        load_trace(tmp_path / "gone.npz")
    with pytest.raises(TileirError, match=r"(?s)no picture.*\.svg"):
        trace().picture(tmp_path / "step.gif")


def rewritten(path: Path, clocks: np.ndarray, **changes: Any) -> Path:
    """A saved trace with other clocks, and other facts; None leaves one out."""
    trace().save(path)
    with np.load(path) as held:
        facts = json.loads(str(held["facts"])) | changes
    kept = json.dumps({n: v for n, v in facts.items() if v is not None})
    np.savez(path, clocks=clocks, facts=np.array(kept))
    return path


def test_traces_of_another_version_are_told(tmp_path: Path) -> None:
    """An old one says nothing of its version, and may have marks of other meanings."""
    path, clocks = tmp_path / "step.npz", trace().clocks
    for schema in (None, SCHEMA + 1):
        said = rf"(?s)schema {schema}; this version reads schema {SCHEMA}.*--save"
        with pytest.raises(TileirError, match=said):
            load_trace(rewritten(path, clocks, schema=schema))
    with pytest.raises(TileirError, match=r"clocks \[2, 3, 8\], not \[sms, 3, 9\]"):
        load_trace(rewritten(path, clocks[..., :-1]))
    for change in ({"stream_tbps": None}, {"rows": 3}):
        with pytest.raises(TileirError, match="is no trace: "):
            load_trace(rewritten(path, clocks, **change))
    path.write_bytes(rewritten(path, clocks).read_bytes()[:-50])
    with pytest.raises(TileirError, match="is no trace: "):
        load_trace(path)


def test_kernels_that_trace_and_those_that_do_not() -> None:
    """Tracing costs nothing where it is off: the clock is not read but by the watchdog."""
    program = export_decode(tiny_llama(), 32)
    plain, traced = (tileir.compile(program, target="h100", trace=t) for t in (False, True))
    assert plain.manifest["memory"]["trace"] == 0
    rows, marks = len(traced.manifest["table"]), len(traced.manifest["marks"])
    assert traced.manifest["memory"]["trace"] == 132 * (rows + 1) * marks * 8
    assert traced.ptx.count("%clock;") > 20
    # Marks lie in shared memory, whose address nobody computes anew: one mention declares it, one takes it.
    for package in (plain, traced):
        assert len(re.findall(r"\bsmem\b", package.ptx)) == 2
    # One is the time stamp of a step's end, for launches that ask for it; five are the watchdog's, of one that hangs.
    assert traced.ptx.count("%globaltimer;") == 3 + 5
    assert plain.ptx.count("%globaltimer;") == 1 + 5
    assert plain.ptx.count("%clock") == plain.ptx.count("%clock64") == 2
    assert traced.manifest["assembled"]["spill_bytes"] == 0
    for package, position, device, said in (
        (plain, 16, "cuda:0", "does not trace"),
        (traced, 32, "cuda:0", r"(?s)position 32: the package holds 32.*8 … 31"),
        (traced, 16, "reference", "has no clocks"),
    ):
        with pytest.raises(TileirError, match=said):
            record_trace(package, None, position, device)
