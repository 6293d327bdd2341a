"""What tracing costs: kernels that trace beside the same without, in turns on one GPU.

    python -m benchmarks.trace_cost --make FOLDER [--target h200]         # where there is MLIR
    python -m benchmarks.trace_cost FOLDER --out FILE.json --commit HASH  # on the GPU

Weights are drawn. Both kernels have to give the same bits, and the marks of every row have to be there and in their
order, before any is timed. A record a model and position: medians of launches of 64 steps, of which one notes its
clocks, and of the traced step itself, the last of 8.
"""

import argparse
from contextlib import ExitStack, closing
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.side_by_side import in_turns, write_measured
from tileir.package import load_package
from tileir.runtime.session import CudaSession
from tileir.tools.drawn import DrawnWeights
from tileir.tools.trace import Trace

MODELS = ("smollm2-135m", "qwen3-0.6b", "llama-3.2-1b")
POSITIONS, CONTEXT, TURNS = (32, 1024), 2048, 16
VARIANTS = ("plain", "traced")


def make(folder: Path, target: str) -> None:
    """Compile every model both ways."""
    import tileir
    from benchmarks.shapes import config_of
    from tileir.frontends.torch_export import export_decode, fake_hf

    folder.mkdir(parents=True, exist_ok=True)
    for name in MODELS:
        program = export_decode(fake_hf(config_of(name)), CONTEXT)
        for variant in VARIANTS:
            package = tileir.compile(program, target=target, trace=variant == "traced")
            package.save(folder / f"{name}-{variant}.tileir")
            print(name, variant, flush=True)


def measure(folder: Path, name: str) -> list[dict[str, Any]]:
    """The records of a model. Raises AssertionError if a kernel that traces gives other bits, or marks out of order."""
    packages = [load_package(folder / f"{name}-{variant}.tileir") for variant in VARIANTS]
    weights = dict(DrawnWeights(packages[0].packing))
    with ExitStack() as stack:
        sessions = [stack.enter_context(closing(CudaSession(p, weights))) for p in packages]
        ids = np.random.default_rng(0).integers(0, packages[0].manifest["vocabulary"], 24).tolist()
        plain, traced = (session.logits(ids) for session in sessions)
        assert np.array_equal(plain, traced), f"{name}: other bits with tracing"
        for position in POSITIONS:
            check(packages[1].manifest, sessions[1].trace(position))
        return [{"model": name, "position": p} | _times(sessions, p) for p in POSITIONS]


def check(manifest: dict[str, Any], clocks: np.ndarray) -> None:
    """Raises AssertionError if a row lacks marks, or has them out of order.

    clocks: [sms, rows + 1, marks] int64, of `CudaSession.trace`.
    """
    bodies, marks = manifest["row_bodies"], manifest["marks"]
    trace = Trace(clocks, marks, bodies, [0] * len(bodies), manifest["stream_tbps"])
    at = {name: trace.ns[..., i] for i, name in enumerate(marks)}
    assert not np.isnan(at["begin"]).any(), "rows without a begin"
    # A row without tasks on an SM has no other marks: NaN, of which no comparison is true.
    contracts = [i for i, body in enumerate(bodies) if body.startswith("contract")]
    ends = trace.ends()
    chain = {name: at[name] for name in ("begin", "received", "met", "multiplied")} | {"end": ends}
    for (one, before), (other, after) in pairwise(chain.items()):
        assert not np.isnan(before[:, contracts]).any(), f"contractions without {one!r}"
        assert not (before > after).any(), f"{one!r} behind {other!r}"
    assert not (at["tape_begin"] > at["tape_end"]).any(), "the tape's loader ends before it begins"
    assert not (at["waited"] > ends - at["begin"]).any(), "waits for a ring longer than their row"


def _times(sessions: list[CudaSession], position: int) -> dict[str, float]:
    """ms and cost, a fraction, of launches and of the traced step; sessions: plain, traced."""
    launches: list[list[float]] = [[], []]
    steps: list[list[float]] = [[], []]
    for i in in_turns(2, TURNS):
        launches[i].append(sessions[i].time_steps(64, position))
        steps[i].append(float(sessions[i].step_times(8, position)[-1]))
    plain, traced = map(median, launches)
    return {
        "ms": plain,
        "traced_ms": traced,
        "cost": median(t / p - 1 for p, t in zip(*launches, strict=True)),
        "step_cost": median(steps[1]) / median(steps[0]) - 1,
    }


def main() -> int:
    """Print and write the records."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--make", type=Path)
    parser.add_argument("--target", choices=("h100", "h200"), default="h200")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--commit", default="")
    args = parser.parse_args()
    if args.make:
        make(args.make, args.target)
        return 0
    if not args.folder or not args.out:
        parser.error("FOLDER and --out FILE.json, or --make FOLDER")
    measured = (record for name in MODELS for record in measure(args.folder, name))
    write_measured(args.out, measured, commit=args.commit)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
