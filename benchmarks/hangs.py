"""Kernels that hang, on a GPU: does each end in time, say why, and leave a GPU that works?

    python -m benchmarks.hangs --make FOLDER [--target h200]  # where there is MLIR
    python -m benchmarks.hangs FOLDER --out FILE.json         # on the GPU; needs neither MLIR nor torch

Every defect runs in a process of its own, 60 s at most, and FILE is written after each. There the defect is launched
twice in one session, then the correct package runs in the same process. A hang has to end within END_MS of the first
limit that ran out, on the GPU's own clock.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.device_check import CORRECT, Case, load_case
from tileir.errors import DeviceHang
from tileir.package import load_package
from tileir.runtime.report import groups_of, load_dump, roots_of, waits_for
from tileir.runtime.session import CudaSession
from tileir.tools.drawn import DrawnWeights

END_MS, LIMIT_CLOCKS, TIMEOUT = 100, 200_000_000, 60  # clocks: 0.1 s at 1.98 GHz
INJECTED = "a-row-that-polls-elsewhere"


def run_case(folder: Path, name: str) -> dict[str, Any]:
    """Launch a defect twice, then what is correct; the figures of each."""
    defect = json.loads((folder / "cases.json").read_text())[name]
    package, small = load_package(folder / f"{name}.tileir"), load_case(folder, CORRECT)
    weights = dict(DrawnWeights(package.packing)) if defect["long"] else small.weights
    session = CudaSession(package, weights)
    session.launch |= defect["launch"]
    session._limit = LIMIT_CLOCKS
    hangs = [hang(session, small.ids) for _ in range(2)]
    session.close()
    found: dict[str, Any] = {"case": name, "hangs": hangs}
    found["missing"] = [[s for s in defect["says"] if s not in h["text"]] for h in hangs]
    found["correct_after"] = correct(folder, small)
    found["passed"] = (
        all(h["hung"] and 0 < h["end_ms"] <= END_MS and h["drawable"] for h in hangs)
        and not any(found["missing"])
        and found["correct_after"]
    )
    return found


def run_injected(folder: Path) -> dict[str, Any]:
    """A correct session is made to hang, by a row that polls another channel, and goes on to give the right logits."""
    case = load_case(folder, CORRECT)
    session = CudaSession(load_package(folder / f"{CORRECT}.tileir"), case.weights)
    before = session.logits(case.ids)
    table = np.asarray(session.manifest["table"], np.uint32)
    row = session.manifest["row_bodies"].index("contract_1")
    wrong = table.copy()
    wrong[row, 2] = table[-1, 2]
    session._device.upload(wrong, session._table)
    usual, session._limit = session._limit, LIMIT_CLOCKS
    found = hang(session, case.ids)
    session._device.upload(table, session._table)
    session._limit = usual
    after = session.logits(case.ids)
    session.close()
    right = bool(np.array_equal(before, after) and case.close(after))
    passed = found["hung"] and right and f"row {row} " in found["text"]
    passed = passed and 0 < found["end_ms"] <= END_MS
    return {"case": INJECTED, "hangs": [found], "same_session_after": right, "passed": passed}


def hang(session: CudaSession, ids: list[int]) -> dict[str, Any]:
    """What a launch that should hang does; end_ms: from the first limit that ran out to the last block's end."""
    begin = time.perf_counter()
    try:
        list(session.generate(ids, 24))
    except DeviceHang as error:
        seconds = time.perf_counter() - begin
        file = Path(error.hint.split("`")[1].split()[-1])
        dump = load_dump(file)
        ends = [t for t in dump["ends"]["after_ns"] if t is not None]
        groups = groups_of(dump)
        edges = sum(len(waits_for(dump, g, groups)) for g in groups)
        return {
            "hung": True,
            "seconds": seconds,
            "limit_clocks": session._limit,
            "expired_sms": len(dump["ends"]["expired"]),
            "ended_sms": len(ends),
            "end_ms": max(ends, default=0) * 1e-6,
            "drawable": bool(roots_of(dump, groups)),
            "groups": len(groups),
            "edges": edges,
            "text": str(error).replace(str(file), file.name),
        }
    seconds = time.perf_counter() - begin
    return {"hung": False, "seconds": seconds, "end_ms": 0.0, "drawable": False, "text": ""}


def correct(folder: Path, case: Case) -> bool:
    """Whether the correct package still gives its logits."""
    session = CudaSession(load_package(folder / f"{CORRECT}.tileir"), case.weights)
    found = session.logits(case.ids)
    session.close()
    return case.close(found)


def run_all(folder: Path, out: Path, only: list[str]) -> bool:
    """Every case in a process of its own; the results so far are in `out` after each."""
    cases = json.loads((folder / "cases.json").read_text())
    results = []
    for name in only or [INJECTED, *cases]:
        command = [sys.executable, "-m", "benchmarks.hangs", str(folder), "--one", name]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
            last = done.stdout.strip().splitlines()[-1:]
            result: dict[str, Any] = (
                json.loads(last[0]) if done.returncode == 0 and last else {"case": name}
            )
            result |= {} if "passed" in result else {"passed": False, "error": done.stderr[-2000:]}
        except subprocess.TimeoutExpired:
            result = {"case": name, "passed": False, "error": f"still running after {TIMEOUT} s"}
        results.append(result)
        out.write_text(json.dumps(results, indent=1))
        ends = [round(h["end_ms"], 2) for h in result.get("hangs", [])]
        notes = result.get("error", "") or [m for m in result.get("missing", []) if m] or ""
        print("pass" if result["passed"] else "FAIL", name, f"ends {ends} ms", notes, flush=True)
    return all(r["passed"] for r in results)


def main() -> int:
    """Exit status 1 if a case fails."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--make", type=Path)
    parser.add_argument("--target", default="h100")
    parser.add_argument("--out", type=Path, default=Path("hangs.json"))
    parser.add_argument("--cases", nargs="*", default=[], help="only these")
    parser.add_argument("--one", help="this case, in this process; its result to stdout")
    args = parser.parse_args()
    if args.make:
        from benchmarks.make_hangs import make

        make(args.make, args.target)
        return 0
    if args.folder is None:
        parser.error("name the folder that --make has written")
    if args.one:
        one = args.one
        found = run_injected(args.folder) if one == INJECTED else run_case(args.folder, one)
        print(json.dumps(found))
        return 0
    return 0 if run_all(args.folder, args.out, args.cases) else 1


if __name__ == "__main__":
    sys.exit(main())
