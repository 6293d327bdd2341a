"""Milliseconds a step of packages from several folders, in turns on one GPU: what a change of a kernel is worth.

    python -m benchmarks.side_by_side BEFORE AFTER … --models NAME … --positions N … --out FILE.json

Each folder holds packages NAME.tileir, as `benchmarks.decode --make` writes them. `FOLDER:name=value` runs a folder's
packages with other launch parameters. Weights are drawn, the same for all. Logits of all have to be close to the
first's before anything is timed. A record a model and position: a time for each folder, the median of --turns launches
of 64 steps that begin there.
"""

import argparse
import datetime
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from tileir.package import load_package
from tileir.runtime.driver import Device
from tileir.runtime.session import CudaSession
from tileir.tools.drawn import DrawnWeights

TOKENS, STEPS = 150, 64
BOUND = 0.02  # the largest difference of logits, a fraction of the largest logit: kernels round otherwise


def parse_side(text: str) -> tuple[Path, dict[str, int]]:
    """A folder and launch parameters of "FOLDER:name=value:…". Raises ValueError."""
    folder, *changes = text.split(":")
    pairs = (change.split("=", 1) for change in changes)
    return Path(folder), {name: int(value) for name, value in pairs}


def measure(
    sides: Sequence[tuple[Path, dict[str, int]]], name: str, positions: Sequence[int], turns: int
) -> list[dict[str, Any]]:
    """The records of a model. Raises AssertionError if one's logits are far from the first's."""
    with ExitStack() as stack:
        sessions = []
        for folder, launch in sides:
            package = load_package(folder / f"{name}.tileir")
            package.manifest["launch"] |= launch
            session = CudaSession(package, DrawnWeights(package.packing))
            sessions.append(stack.enter_context(closing(session)))
        ids = np.random.default_rng(0).integers(0, package.manifest["vocabulary"], TOKENS).tolist()
        first, *others = (session.logits(ids) for session in sessions)
        for (folder, _), logits in zip(sides[1:], others, strict=True):
            error = float(np.abs(logits - first).max() / np.abs(first).max())
            assert error < BOUND, f"{name} of {folder}: logits differ by {error:.3f} of the largest"
        return [{"model": name, "position": p, "ms": _times(sessions, p, turns)} for p in positions]


def _times(sessions: list[CudaSession], position: int, turns: int) -> list[float]:
    times: list[list[float]] = [[] for _ in sessions]
    for i in in_turns(len(sessions), turns):
        times[i].append(sessions[i].time_steps(STEPS, position))
    return [median(t) for t in times]


def in_turns(sides: int, turns: int) -> Iterator[int]:
    """The numbers of all sides, in each turn; who goes first changes from turn to turn."""
    for turn in range(turns):
        yield from reversed(range(sides)) if turn % 2 else range(sides)


def write_measured(path: Path, measured: Iterable[dict[str, Any]], **facts: Any) -> None:
    """Print records as they are measured on the first GPU, then write them all, with its name, the date and `facts`."""
    with closing(Device(0)) as device:
        gpu = device.name
    common = {"gpu": gpu, "date": datetime.date.today().isoformat()} | facts
    records = []
    for record in measured:
        records.append(common | record)
        print(json.dumps(record), flush=True)
    path.write_text(json.dumps(records, indent=1) + "\n")


def main() -> int:
    """Print and write the records."""
    parser = argparse.ArgumentParser()
    parser.add_argument("sides", nargs="+", type=parse_side, metavar="FOLDER")
    parser.add_argument("--models", nargs="+", required=True)
    parser.add_argument("--positions", nargs="+", type=int, default=[32, 128, 1024])
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    names = [
        folder.name + "".join(f":{n}={v}" for n, v in launch.items())
        for folder, launch in args.sides
    ]
    rest = args.positions, args.turns
    measured = (record for name in args.models for record in measure(args.sides, name, *rest))
    write_measured(args.out, measured, sides=names)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
