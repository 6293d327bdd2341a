"""Engine modules and their problems, for tests of the verifier."""

from typing import Any

from test.models import tiny_llama
from tileir.compiler import Options
from tileir.dialect.attributes import walk
from tileir.frontends.torch_export import export_decode, import_program
from tileir.mlir import ir, new_context
from tileir.passes.pipeline import run_pipeline
from tileir.passes.verify_schedule import problem_of
from tileir.scheduling.problem import Problem
from tileir.target import find_target


def engine_text(program: Any, target: str, tokens: int = 1) -> str:
    """The engine module that a program compiles to."""
    context = new_context()
    with context, ir.Location.unknown():
        module = import_program(program, context)
        run_pipeline(module, Options(target, tokens).pipeline)
        return str(module)


def parse(text: str, target: str = "virtual") -> Problem:
    context = new_context()
    with context, ir.Location.unknown():
        module = ir.Module.parse(text, context)
        (device,) = walk(module, "engine.device")
        return problem_of(device, find_target(target))


def ranged_text() -> str:
    """Two layers on four SMs; gate and up in three ranges of tiles, the vocabulary in two."""
    changes = {"vocab_size": 1100, "intermediate_size": 1040}
    return engine_text(export_decode(tiny_llama(**changes), 64), "virtual")
