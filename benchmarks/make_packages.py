"""Packages for the GPU runs, compiled where there is no GPU.

    python -m benchmarks.make_packages FOLDER [--model HF_FOLDER]
"""

import argparse
from pathlib import Path

import tileir
from test.gpu.mutants import MUTANTS, patched
from tileir.frontends.torch_export import export_decode, load_hf


def main() -> None:
    """Write smollm2.tileir and one package for each mutant."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path, default=Path(".cache/smollm2"))
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    program = export_decode(load_hf(args.model), 2048)
    tileir.compile(program, target="h100").save(args.folder / "smollm2.tileir")
    for name, (places, make) in MUTANTS.items():
        with patched(places, make):
            package = tileir.compile(program, target="h100")
        package.save(args.folder / f"smollm2-{name.replace(' ', '-')}.tileir")
    print("\n".join(sorted(p.name for p in args.folder.glob("*.tileir"))))


if __name__ == "__main__":
    main()
