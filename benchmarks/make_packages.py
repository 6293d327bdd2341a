"""Packages for the GPU runs, compiled where there is no GPU.

python -m benchmarks.make_packages FOLDER [--model HF_FOLDER]
"""

import argparse
from pathlib import Path
from typing import Any

import tileir
from benchmarks.llama import SHAPES, config_of
from test.gpu.mutants import MUTANTS, patched
from tileir.frontends.torch_export import export_decode, fake_hf, load_hf

CONTEXTS = {"smollm2-135m": 2048}


def tiny() -> Any:
    """A model of two small layers, for sanitizers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=512, hidden_size=128, intermediate_size=256, num_hidden_layers=2, head_dim=32,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def main() -> None:
    """Write a package of every shape, smollm2.tileir and one package for each mutant."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path, default=Path(".cache/smollm2"))
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for name in SHAPES:
        program = export_decode(fake_hf(config_of(name)), CONTEXTS.get(name, 4096))
        tileir.compile(program, target="h100").save(args.folder / f"{name}.tileir")
    tileir.compile(export_decode(tiny(), 64), target="h100").save(args.folder / "tiny.tileir")
    program = export_decode(load_hf(args.model), 2048)
    tileir.compile(program, target="h100").save(args.folder / "smollm2.tileir")
    for name, (places, make) in MUTANTS.items():
        with patched(places, make):
            package = tileir.compile(program, target="h100")
        package.save(args.folder / f"mutant-{name.replace(' ', '-')}.tileir")
    print("\n".join(sorted(p.name for p in args.folder.glob("*.tileir"))))


if __name__ == "__main__":
    main()
