"""Every stop of the journey as a file, and the command that takes it one pass further.

    python examples/look_at_ir.py [FOLDER]

Writes 00-import.mlir, 01-graph-fuse.mlir, … for a Llama of one small layer into FOLDER (default: look-at-ir).
"""

import sys
from pathlib import Path
from typing import Any

from transformers import LlamaConfig, LlamaForCausalLM

from tileir.compiler import Options
from tileir.frontends.torch_export import export_decode, import_program
from tileir.mlir import ir, new_context
from tileir.passes.pipeline import parse_pipeline, run_pipeline


def one_layer() -> Any:
    """A Llama with one layer: its modules fit a screen or two."""
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "look-at-ir")
    folder.mkdir(exist_ok=True)
    program = export_decode(one_layer(), max_context=32)
    pipeline = Options("virtual").pipeline
    written: list[Path] = []

    def write(name: str, module: Any) -> None:
        path = folder / f"{len(written):02}-{name}.mlir"
        path.write_text(f"{module}\n")
        written.append(path)

    context = new_context()
    with context, ir.Location.unknown():
        module = import_program(program, context)
        write("import", module)
        run_pipeline(module, pipeline, after_pass=write)

    for path, item in zip(written, [*parse_pipeline(pipeline), None], strict=True):
        print(f"{path}  {len(path.read_text().splitlines())} lines")
        if item is not None:
            print(f"  tileir-opt {path} --pass-pipeline='builtin.module({item.text()})'")


if __name__ == "__main__":
    main()
