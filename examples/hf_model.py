"""A Hugging Face model: load, export, compile, save, load again, generate.

    python examples/hf_model.py [FOLDER] [--target h100]

FOLDER is what `save_pretrained` writes: config.json and safetensors. Without it a small Llama with random weights is
made, so that the example runs anywhere, and its tokens are compared with those of transformers.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import tileir
from tileir.frontends.torch_export import export_decode, load_hf


def small_llama(folder: Path) -> Path:
    """Write a Llama of three small layers."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=128,
    )
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():  # random enough that greedy tokens do not repeat
        if parameter.ndim > 1:
            parameter.data.normal_(std=0.15)
    model.save_pretrained(folder)
    return folder


def greedy(model: Any, ids: list[int], count: int) -> list[int]:
    """What transformers itself generates."""
    import torch

    for _ in range(count):
        ids = [*ids, int(model(torch.tensor([ids])).logits[0, -1].argmax())]
    return ids[-count:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--target", default="virtual", help="h100, h200 or virtual")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or small_llama(Path(scratch) / "small-llama")
        model = load_hf(folder)
        program = export_decode(model, max_context=128)
        package = tileir.compile(program, target=args.target)
        path = package.save(Path(scratch) / "model.tileir")
        print(package.summary())

        # From here on neither torch nor MLIR's passes are needed: a package, weights, a device.
        session = tileir.load_package(path).load(folder, device="auto")
        ids = [1, 17, 42]
        tokens = list(session.generate(ids, max_new_tokens=16))
        print(f"on {session.device}: {ids} → {tokens}")
        session.close()
        if args.folder is None and session.device == "reference":
            assert tokens == greedy(model, ids, 16), "transformers says otherwise"
            print("transformers generates the same tokens")


if __name__ == "__main__":
    main()
