# %% [markdown]
"""Every stop of the journey as a file, and the command that takes it one pass further.

    python examples/look_at_ir.py [FOLDER]

Writes 00-import.mlir, 01-absorb-latents.mlir, … for a Llama of one small layer into FOLDER (default: look-at-ir).
"""

# %%
import sys
from pathlib import Path
from typing import Any

from transformers import LlamaConfig, LlamaForCausalLM

from tileir.compiler import Options
from tileir.dialect.contracts import level_of
from tileir.frontends.torch_export import export_decode, import_program
from tileir.mlir import ir, new_context
from tileir.passes.pipeline import parse_pipeline, run_pipeline

# In a notebook the arguments are the kernel's.
folder = Path("look-at-ir" if "ipykernel" in sys.modules else [*sys.argv, "look-at-ir"][1])
folder.mkdir(exist_ok=True)

# %% A Llama with one layer: its modules fit a screen or two.
config = LlamaConfig(
    vocab_size=64,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
)
program = export_decode(LlamaForCausalLM(config).eval().requires_grad_(False), max_context=32)

# %% The pipeline is text; what it reads like is what `tileir-opt` takes.
pipeline = Options("virtual").pipeline
print(pipeline.replace(",", ",\n  "))

# %% Run it, and write the module after every pass.
written: list[Path] = []
levels: list[str] = []


def write(name: str, module: Any) -> None:
    """One stop as a file."""
    written.append(folder / f"{len(written):02}-{name}.mlir")
    written[-1].write_text(f"{module}\n")
    levels.append(level_of(module))


context = new_context()
with context, ir.Location.unknown():
    module = import_program(program, context)
    write("import", module)
    run_pipeline(module, pipeline, after_pass=write)
    last = str(module)

# %% The stops, and the commands between them. Levels only go down.
for path, level, item in zip(written, levels, [*parse_pipeline(pipeline), None], strict=True):
    print(f"{path}  {level}, {len(path.read_text().splitlines())} lines")
    if item is not None:
        print(f"  tileir-opt {path} --pass-pipeline='builtin.module({item.text()})'")
assert list(dict.fromkeys(levels)) == ["graph", "tile", "engine"]
assert sorted(levels, key=["graph", "tile", "engine"].index) == levels

# %% What is printed can be read: the last file is the module that the package holds.
with new_context(), ir.Location.unknown():
    assert str(ir.Module.parse(written[-1].read_text())) == last
