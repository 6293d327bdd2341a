# %% [markdown]
"""A Hugging Face model: load, export, compile, save, load again, generate.

    python examples/hf_model.py [FOLDER] [--target h100]

FOLDER is what `save_pretrained` writes: config.json and safetensors. Without it a small Llama with random weights is
made, so that the example runs anywhere, and its tokens are compared with those of transformers.
"""

# %%
import argparse
import sys
import tempfile
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import tileir
from tileir.frontends.torch_export import export_decode, load_hf

parser = argparse.ArgumentParser()
parser.add_argument("folder", type=Path, nargs="?")
parser.add_argument("--target", default="virtual", help="h100, h200 or virtual")
# In a notebook the arguments are the kernel's.
args = parser.parse_args([] if "ipykernel" in sys.modules else None)
scratch = tempfile.TemporaryDirectory()


# %% A Llama of three small layers, random enough that greedy tokens do not repeat.
def small_llama(folder: Path) -> Path:
    """Write it as a folder."""
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
    llama = LlamaForCausalLM(config)
    for parameter in llama.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(std=0.15)
    llama.save_pretrained(folder)
    return folder


folder = args.folder or small_llama(Path(scratch.name) / "small-llama")

# %% Export a decode step with KV caches for 128 positions, and compile it.
model = load_hf(folder)
program = export_decode(model, max_context=128)
package = tileir.compile(program, target=args.target)
print(package.summary())
path = package.save(Path(scratch.name) / "model.tileir")
assert tileir.load_package(path) == package

# %% From here on neither torch nor MLIR's passes are needed: a package, weights, a device.
session = tileir.load_package(path).load(folder, device="auto")
ids = [1, 17, 42]
tokens = list(session.generate(ids, max_new_tokens=16))
print(f"on {session.device}: {ids} → {tokens}")
session.close()

# %% transformers itself, one greedy token after the other. A GPU's bf16 may choose otherwise where two are close.
wanted = list(ids)
while args.folder is None and len(wanted) < len(ids) + len(tokens):
    wanted.append(int(model(torch.tensor([wanted])).logits[0, -1].argmax()))
if args.folder is None and session.device == "reference":
    assert tokens == wanted[len(ids) :], f"transformers says {wanted[len(ids) :]}"
    print("transformers generates the same tokens")
assert len(tokens) == 16
scratch.cleanup()
