"""What a GPU and its memory are like after the host has failed: killed, interrupted, out of memory.

    python -m benchmarks.host_faults FOLDER --out FILE.json   # on the GPU; FOLDER as of benchmarks.hangs --make

Needs neither MLIR nor torch. A child loads the correct package and generates without end; it is killed, or interrupted.
Within SECONDS the GPU's free memory is what it was, and a new session gives the right logits.
"""

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.device_check import CORRECT, Case, load_case
from tileir.errors import DeviceError
from tileir.package import load_package
from tileir.runtime.driver import Device
from tileir.runtime.session import SPARE_BYTES, CudaSession

SECONDS, SLACK_BYTES = 5.0, 64 << 20
WAYS = {"generate": "tokens", "time_steps": "one long wait"}


def session_of(folder: Path) -> tuple[CudaSession, Case]:
    """The correct package on the GPU."""
    case = load_case(folder, CORRECT)
    return CudaSession(load_package(folder / f"{CORRECT}.tileir"), case.weights), case


def work(folder: Path, way: str) -> None:
    """The child: a kernel always runs."""
    session, case = session_of(folder)
    with closing(session):
        print("ready", flush=True)
        while True:
            if way == "generate":
                list(session.generate(case.ids, 80))
            else:
                session.step_times(128, 127)


@contextmanager
def child(folder: Path, way: str) -> Iterator[subprocess.Popen[str]]:
    """A child that has begun."""
    command = [sys.executable, "-m", "benchmarks.host_faults", str(folder), "--work", way]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as running:
        try:
            assert running.stdout is not None
            assert running.stdout.readline() == "ready\n", running.stderr.read()  # type: ignore[union-attr]
            time.sleep(0.5)
            yield running
        finally:
            running.kill()


def ended_by(folder: Path, way: str, sent: signal.Signals) -> dict[str, Any]:
    """Seconds from the signal to the child's end, to free memory, and to right logits."""
    before = free_bytes()
    with child(folder, way) as running:
        begin = time.perf_counter()
        running.send_signal(sent)
        status = running.wait(timeout=30)
        found: dict[str, Any] = {"ended": time.perf_counter() - begin, "status": status}
        while free_bytes() < before - SLACK_BYTES and time.perf_counter() - begin < 30:
            time.sleep(0.05)
        found["free"] = time.perf_counter() - begin
        found["right"] = works(folder)
        found["works"] = time.perf_counter() - begin
    found["passed"] = found["right"] and found["works"] < SECONDS
    return {"case": f"{sent.name} while it waits for {WAYS[way]}"} | found


def out_of_memory(folder: Path) -> dict[str, Any]:
    """A GPU that is full: the error says what is needed and what is free; once it is not, the package loads."""
    device = Device(0)
    try:
        left = SPARE_BYTES // 2
        device.allocate(device.free_bytes() - left, "all but a little")
        text = ""
        try:
            session_of(folder)[0].close()
        except DeviceError as error:
            text = str(error)
    finally:
        device.close()
    needed = sum(load_package(folder / "correct.tileir").manifest["memory"].values()) + SPARE_BYTES
    right = works(folder)
    passed = right and "bytes free" in text and f"needs {needed}: tape" in text
    return {"case": "a GPU that is full", "text": text, "right": right, "passed": passed}


def collected(folder: Path) -> dict[str, Any]:
    """A session that nobody closes, while its kernel runs: collected, its memory is free."""
    before = free_bytes()
    session, case = session_of(folder)
    stream = session.generate(case.ids, 80)
    next(stream)
    held = before - free_bytes()
    del stream, session
    kept = before - free_bytes()
    return {
        "case": "a session that nobody closes",
        "held": held,
        "kept": kept,
        "passed": held > 0 and kept <= SLACK_BYTES and works(folder),
    }


def unread(folder: Path) -> dict[str, Any]:
    """A host that does not read until the kernel has ended gets the tokens that one that reads gets."""
    session, case = session_of(folder)
    with closing(session):
        wanted = list(session.generate(case.ids, 80))
        stream = session.generate(case.ids, 80)
        time.sleep(1.0)
        found = list(stream)
    return {"case": "a host that reads late", "passed": found == wanted and len(found) == 80}


def works(folder: Path) -> bool:
    """Whether a new session gives the right logits."""
    session, case = session_of(folder)
    with closing(session):
        found = session.logits(case.ids)
    return case.close(found)


def free_bytes() -> int:
    """Free memory of the GPU, in a context of its own that is given back."""
    device = Device(0)
    try:
        return device.free_bytes()
    finally:
        device.close()


def main() -> int:
    """Exit status 1 if a case fails."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("host-faults.json"))
    parser.add_argument("--work", choices=WAYS)
    args = parser.parse_args()
    if args.work:
        work(args.folder, args.work)
    results = []
    cases = [(w, s) for w in WAYS for s in (signal.SIGKILL, signal.SIGINT)]
    runs = [partial(ended_by, args.folder, way, sign) for way, sign in cases]
    runs += [partial(f, args.folder) for f in (out_of_memory, collected, unread)]
    for run in runs:
        try:
            results.append(run())
        except (DeviceError, AssertionError, subprocess.TimeoutExpired) as error:
            results.append({"case": "", "passed": False, "error": str(error)[-2000:]})
        args.out.write_text(json.dumps(results, indent=1))
        print(json.dumps(results[-1]), flush=True)
    return 0 if all(r["passed"] for r in results) else 1


if __name__ == "__main__":
    sys.exit(main())
