"""Small packages of all kinds through `tileir check`; on a GPU, which needs neither MLIR nor torch.

    python -m benchmarks.check FOLDER --make [--cases NAME …]  # where there is MLIR; needs no GPU
    python -m benchmarks.check FOLDER [--device cuda:0]        # where there is a GPU

FOLDER holds for each case a package `NAME.tileir`, its weights `NAME.weights.npz` and the fp32 side `NAME.exact.npz`.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from tileir.errors import TileirError
from tileir.package import load_package
from tileir.tools.bounds import Bounds
from tileir.tools.check import check_package
from tileir.tools.exact import exact_of, load_exact

CONTEXT, POSITIONS = 256, 100  # heads of 128 values have several splits from position 65 on


def make(folder: Path, names: list[str]) -> None:
    """Compile cases of benchmarks/make_packages.py, all if none is named, and compute their fp32 sides."""
    import tileir
    from benchmarks.make_packages import cases
    from tileir.frontends.torch_export import export_decode

    folder.mkdir(parents=True, exist_ok=True)
    for name, model_of in cases().items():
        if names and name not in names:
            continue
        model = model_of()
        package = tileir.compile(export_decode(model, CONTEXT), target="h100")
        weights = {key: value.numpy() for key, value in model.state_dict().items()}
        ids = np.random.default_rng(0).integers(model.config.vocab_size, size=POSITIONS).tolist()
        package.save(folder / f"{name}.tileir")
        np.savez(folder / f"{name}.weights.npz", **weights)
        exact_of(package, weights, ids).save(folder / f"{name}.exact.npz")
        print(name, flush=True)


def check(folder: Path, name: str, device: str) -> bool:
    """Whether a case passes; prints its table, and what has failed."""
    package = load_package(folder / f"{name}.tileir")
    with np.load(folder / f"{name}.weights.npz") as held:
        weights = dict(held)
    try:
        exact = load_exact(folder / f"{name}.exact.npz", package, weights)
        report = check_package(package, weights, device, exact, Bounds())
    except TileirError as error:
        print(f"{name}: {error}", flush=True)
        return False
    print(f"{name}: {report.table()}", *report.failures, sep="\n", flush=True)
    return report.passed


def main() -> int:
    """Exit status 1 if a case fails, or there is none."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--make", action="store_true")
    parser.add_argument("--cases", nargs="*", default=[])
    parser.add_argument("--device", default="cuda:0")
    args = parser.parse_args()
    if args.make:
        make(args.folder, args.cases)
        return 0
    names = [p.name.removesuffix(".exact.npz") for p in sorted(args.folder.glob("*.exact.npz"))]
    wanted = [name for name in names if not args.cases or name in args.cases]
    passed = [check(args.folder, name, args.device) for name in wanted]
    print(f"{sum(passed)} of {len(passed)} pass")
    return 0 if passed and all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
