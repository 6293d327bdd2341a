"""Packages for benchmarks.device_check and benchmarks.gate, compiled where there is no GPU.

python -m benchmarks.make_packages FOLDER [--model HF_FOLDER] [--target h200]
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tileir
from test.families import FAMILIES, family
from test.gpu.mutants import MUTANTS, patched
from tileir.frontends.torch_export import export_decode, load_hf

TINY: dict[str, dict[str, Any]] = {
    "tiny": {},
    "tiny-biased": {"attention_bias": True},
    "tiny-one-kv-head": {"num_key_value_heads": 1},
    "tiny-wide-heads": {"head_dim": 128},
    "tiny-k-parts": {"intermediate_size": 2048},
    "tiny-grouped": {"num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 128},
    "tiny-odd": {"hidden_size": 144, "intermediate_size": 200, "vocab_size": 994},
    "tiny-no-tiles": {"hidden_size": 124, "intermediate_size": 202, "vocab_size": 1001},
    "tiny-80": {"head_dim": 80},
    "tiny-96": {"head_dim": 96, "num_attention_heads": 8},
    "tiny-112": {"head_dim": 112},
    "tiny-192": {"head_dim": 192},
    "tiny-256": {"head_dim": 256},
    "tiny-qwen2": {"kind": "qwen2"},
    "tiny-qwen3": {"kind": "qwen3", "head_dim": 64},
}


def tiny(kind: str = "llama", **changes: Any) -> Any:
    """A model of two small layers of a transformers kind, for sanitizers and comparisons."""
    from transformers import AutoConfig, AutoModelForCausalLM

    facts = {
        "vocab_size": 512,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "head_dim": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
    }
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **(facts | changes))
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        noise = torch.randn_like(parameter)
        parameter.copy_(noise * 0.1 if parameter.ndim > 1 else 1 + 0.1 * noise)
    return model


def cases() -> dict[str, Callable[[], Any]]:
    """The small models that device_check compares: TINY's, and every family that tests know."""
    found: dict[str, Callable[[], Any]] = {n: partial(tiny, **c) for n, c in TINY.items()}
    return found | {f"tiny-family-{n.replace(' ', '-')}": partial(family, n) for n in FAMILIES}


def write_case(folder: Path, name: str, model: Any, target: str) -> None:
    """A package for the GPU, its weights, what the reference device says in bf16, and how far that is from fp32."""
    package = tileir.compile(export_decode(model, 128), target=target)
    package.save(folder / f"{name}.tileir")
    weights = {k: v.numpy() for k, v in model.state_dict().items()}
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, 40).tolist()
    virtual = tileir.compile(export_decode(model, 128), target="virtual")
    logits, exact = (virtual.load(weights, d).logits(ids) for d in ("reference-bf16", "reference"))
    rounding = np.abs(logits - exact).max() / np.abs(logits).max()
    np.savez(folder / f"{name}.npz", ids=ids, logits=logits, rounding=rounding, **weights)


def main() -> None:
    """Write the small models' cases, smollm2.tileir and one package for each mutant."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path, default=Path(".cache/smollm2"))
    parser.add_argument("--target", default="h100")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for name, make in cases().items():
        write_case(args.folder, name, make(), args.target)
    program = export_decode(load_hf(args.model), 2048)
    tileir.compile(program, target=args.target).save(args.folder / "smollm2.tileir")
    for name, (places, mutate) in MUTANTS.items():
        with patched(places, mutate):
            package = tileir.compile(program, target=args.target)
        package.save(args.folder / f"mutant-{name.replace(' ', '-')}.tileir")
    print("\n".join(sorted(p.name for p in args.folder.glob("*.tileir"))))


if __name__ == "__main__":
    main()
