"""Every dense family on a GPU: its shape with random weights through the numerics gate.

    python -m benchmarks.families --packages FOLDER --out benchmarks/results/families-GPU.json [--commit HASH]

FOLDER holds `FAMILY.tileir`, which `python -m benchmarks.families --make FOLDER` writes where there is no GPU.
"""

import argparse
import datetime
import gc
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.shapes import SHAPES, TorchWeights, config_of, random_model
from test.gpu.gate import distance, verdict

CONTEXT = 4096
NAMED = (0, 1, 63, 64, 1000, 4095)
# The gate's figures are means: beside the named positions it looks at every 64th.
POSITIONS = sorted({*NAMED, *range(32, CONTEXT, 64)})


def logits_at(model: Any, ids: list[int], positions: list[int]) -> np.ndarray:
    """Logits at some positions, [positions, vocabulary] f32, of one forward pass."""
    with torch.no_grad():
        found = model(
            torch.tensor([ids], device="cuda"),
            logits_to_keep=torch.tensor(positions, device="cuda"),
            use_cache=False,
        )
    return np.asarray(found.logits[0].float().cpu().numpy())


def gate(name: str, folder: Path) -> dict[str, Any]:
    """A family's record: the gate over POSITIONS, the largest error at NAMED ones, and milliseconds."""
    from tileir.package import load_package
    from tileir.runtime.session import CudaSession

    model = random_model(config_of(name))
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, CONTEXT).tolist()
    peer = logits_at(model, ids, POSITIONS)
    session = CudaSession(load_package(folder / f"{name}.tileir"), TorchWeights(model))
    ours = session.logits(ids)
    bits = bool(np.array_equal(session.logits(ids[:64]), ours[:64]))
    times = {at: sorted(session.time_steps(64, at - 32) for _ in range(5))[2] for at in (32, 4000)}
    session.close()
    exact = logits_at(model.float(), ids, POSITIONS)
    found = verdict(distance(ours[POSITIONS], exact), distance(peer, exact))
    places = [POSITIONS.index(p) for p in NAMED]
    return {
        "family": name,
        "passed": found["passed"] and bits,
        "bit_identical": bits,
        "gate": found,
        "max_logit_error": {p: float(np.abs(ours[p] - exact[i]).max()) for p, i in zip(NAMED, places, strict=True)},
        "hf_max_logit_error": {p: float(np.abs(peer[i] - exact[i]).max()) for p, i in zip(NAMED, places, strict=True)},
        "ms": times,
    }  # fmt: skip


def make(folder: Path, names: list[str]) -> None:
    """Compile the packages."""
    import tileir
    from tileir.frontends.torch_export import export_decode, fake_hf

    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        program = export_decode(fake_hf(config_of(name)), CONTEXT)
        package = tileir.compile(program, target="h100")
        package.save(folder / f"{name}.tileir")
        print(name, package.summary().replace("\n", "; "), flush=True)


def main() -> int:
    """Exit status 1 if a family fails."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--make", type=Path)
    parser.add_argument("--packages", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--families", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--commit", default="")
    args = parser.parse_args()
    if args.make:
        make(args.make, args.families)
        return 0
    torch.backends.cuda.matmul.allow_tf32 = False
    facts = {
        "gpu": torch.cuda.get_device_name(),
        "commit": args.commit,
        "date": datetime.date.today().isoformat(),
    }
    records = []
    for name in args.families:
        record = gate(name, args.packages) | facts
        records.append(record)
        print(json.dumps(record), flush=True)
        args.out.write_text(json.dumps(records, indent=1))
        gc.collect()
        torch.cuda.empty_cache()
    return 0 if all(r["passed"] for r in records) else 1


if __name__ == "__main__":
    raise SystemExit(main())
