"""Random decoders for benchmarks.fuzz, compiled where there is no GPU."""

import json
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tileir
from benchmarks.fuzz import digest
from test.decoders import Facts, decoder, decoders
from test.fuzz import eager
from test.hunt import hunt
from test.models import arrays, export_own
from tileir.errors import TileirError

SEED, POSITIONS, CLOSE = 7000, 256, 32


def make(folder: Path, models: int, target: str) -> bool:
    """Write `models` packages, each NAME.tileir with NAME.npz, and cases.json; says which decoders are refused.

    False if one is neither made nor refused.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn = [*hunt(decoders(), lambda facts: None, models, SEED).outcomes]
    named = {f"fuzz-{i:03}": facts for i, facts in enumerate(drawn)}
    cases: dict[str, Any] = {}
    well = True
    # Processes that start afresh: MLIR and torch have threads of their own.
    with ProcessPoolExecutor(2, get_context("spawn"), warnings.simplefilter, ("ignore",)) as pool:
        futures = {n: pool.submit(make_case, folder, n, f, target) for n, f in named.items()}
        for name, future in futures.items():
            try:
                cases[name] = future.result()
            except TileirError as error:
                print(f"{name} is refused: {error}", flush=True)
            except Exception as error:
                print(f"{name} fails: {named[name]}: {type(error).__name__}: {error}", flush=True)
                well = False
            (folder / "cases.json").write_text(json.dumps(cases, indent=1))
    size = sum(p.stat().st_size for p in folder.iterdir())
    print(f"{len(cases)} of {len(named)} decoders, {size / 1e6:.1f} MB")
    return well


def make_case(folder: Path, name: str, facts: Facts, target: str) -> dict[str, Any]:
    """Write a model's package and logits; what cases.json says of it. Raises as tileir.compile does."""
    torch.set_num_threads(1)
    model = decoder(facts)
    weights = {n: p.numpy().copy() for n, p in model.named_parameters()}
    aliases = {"head.weight": "embed.weight"} if facts.tied else {}
    rng = np.random.default_rng(facts.seed)
    shape = -(-POSITIONS // facts.context), facts.context
    prompts = rng.integers(0, facts.vocabulary, shape).tolist()
    program = export_own(model)
    package = tileir.compile(program, target=target)
    package.save(folder / f"{name}.tileir")
    reference = tileir.compile(program, target="virtual").load(arrays(model), "reference-bf16")
    close = reference.logits(prompts[0][:CLOSE])
    exact = np.concatenate([eager(model, ids) for ids in prompts])
    turn = model.frequencies.clone()
    rounded = model.bfloat16()
    rounded.frequencies = turn  # angles are fp32 in any model
    peer = np.concatenate([eager(rounded, ids) for ids in prompts])
    logits = {"exact": exact, "peer": peer, "close": close}
    np.savez_compressed(folder / f"{name}.npz", prompts=prompts, **logits)
    return {
        "facts": asdict(facts),
        "shapes": {n: list(a.shape) for n, a in weights.items()},
        "aliases": aliases,
        "digest": digest(weights),
    }
