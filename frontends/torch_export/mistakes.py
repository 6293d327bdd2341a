"""What users get wrong before the importer can name a node: models, folders, programs of another form."""

import io
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from tileir.errors import TileirError
from tileir.frontends.torch_export.nodes import behind, op_name, refuse, shape

RECIPE = (
    "KV caches are buffers [1, kv heads, context, head size] that forward writes with index_copy_ at positions; "
    "export_decode makes such a program of a transformers model"
)
# What a full decomposition leaves of linear, attention and silu.
CORE = ("addmm", "mm", "_softmax", "_scaled_dot_product_flash_attention_for_cpu", "sigmoid")
PLACE = re.compile(r'following call raised this error:\s+File "([^"]+)", line (\d+).*\n\s+(.*)')


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Make what transformers says of a folder that it cannot load a TileirError."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise TileirError(
            f"transformers cannot load {folder} as a causal language model: {_first(error)}",
            hint="name a folder that save_pretrained has written, with config.json and all safetensors files; "
            "`tileir models` lists the families that compile",
        ) from error


@contextmanager
def exporting(name: str) -> Iterator[None]:
    """Make what torch.export says of a model called `name` a TileirError."""
    held = io.StringIO()
    try:
        with redirect_stderr(held):
            yield
    except TileirError:
        raise
    except GuardOnDataDependentSymNode as error:
        held = io.StringIO()  # torch prints the whole graph so far
        found = PLACE.search(str(error))
        raise TileirError(
            f"{name} decides by values that are not known before it runs{_quoted(found)}",
            location=f"{found.group(1)}:{found.group(2)}" if found else "",
            hint="a decode step is one straight line: replace `if` over values by torch.where, or decide by the config",
        ) from error
    except Exception as error:
        raise TileirError(
            f"torch.export cannot export {name}: {type(error).__name__}: {_first(error)}",
            hint="`tileir models` lists the families that compile; export a module of your own with torch.export and "
            "pass the program to tileir.compile",
        ) from error
    finally:
        sys.stderr.write(held.getvalue())


def check_model(model: Any) -> None:
    """Raises TileirError for a transformers model whose attention is not causal."""
    # Configs of some decoders say False too: their attention knows better.
    causal = any(getattr(module, "is_causal", False) for module in model.modules())
    if getattr(model.config, "is_decoder", None) is False and not causal:
        raise TileirError(
            f"{type(model).__name__} is an encoder: its attention looks ahead",
            hint="a decode step needs a causal model; `tileir models` lists the families that compile",
        )


def check_program(program: ExportedProgram) -> None:
    """Raises TileirError for what is no program, for one of training, and for other decompositions than {}."""
    if not isinstance(program, ExportedProgram):
        raise TileirError(
            f"{type(program).__name__} is no torch.export.ExportedProgram",
            hint="export_decode(model, max_context) makes one of a transformers model; torch.export.export of others",
        )
    calls = [n for n in program.graph.nodes if n.op == "call_function"]
    for node in calls:
        if op_name(node) in ("dropout", "native_dropout") and node.args[2]:
            raise refuse(
                node, "the program was exported in training mode", "call model.eval() first"
            )
        if op_name(node).endswith("_") and not op_name(node).startswith("_"):
            raise refuse(
                node,
                f"the program writes in place, by {op_name(node)!r}",
                "call program.run_decompositions({}) and compile what it returns",
            )
    names = {op_name(node): node for node in reversed(calls)}
    core = next((names[n] for n in CORE if n in names), None)
    if core is not None and "linear" not in names:
        raise refuse(
            core,
            f"the program is decomposed to core ATen: {op_name(core)!r} instead of 'linear'",
            "use run_decompositions({}): the empty table keeps linear, attention and silu in one piece",
        )


def check_inputs(program: ExportedProgram, found: Sequence[Node]) -> None:
    """Raises TileirError for other inputs than one token and one position, in this order."""
    if len(found) != 2 or any(torch.Size(shape(n)).numel() != 1 for n in found):
        caches = any(len(shape(n)) > 2 for n in found)
        raise TileirError(
            f"the program takes inputs of {[shape(n) for n in found]}",
            hint=f"inputs are not caches: {RECIPE}"
            if caches
            else "export forward(input_ids [1, 1], positions [1]); the compiler adds tokens a step",
        )
    for node in found:
        if node.meta["val"].dtype not in (torch.int64, torch.int32):
            raise TileirError(
                f"the program's input {node.name!r} is {node.meta['val'].dtype}",
                hint="token ids and positions are int64",
            )
    embeddings = [n for n in program.graph.nodes if op_name(n) == "embedding"]
    embedded = {behind(node.args[1]): node for node in embeddings}
    # Models of learned positions embed both.
    if found[1] in embedded and found[0] not in embedded:
        raise refuse(
            embedded[found[1]],
            f"the program's second input, {found[1].name!r}, is embedded as tokens",
            "export forward(input_ids [1, 1], positions [1]), in this order",
        )


def _quoted(found: re.Match[str] | None) -> str:
    return f" ({found.group(3).strip()})" if found else ""


def _first(error: Exception) -> str:
    """The first line of what an error says."""
    said = str(error.args[0] if isinstance(error, KeyError) and error.args else error).strip()
    return said.splitlines()[0][:300] if said else type(error).__name__
