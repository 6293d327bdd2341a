"""Random decoders down to code, each level compared with eager PyTorch."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from test.decoders import Facts, decoder
from test.models import arrays, export_own
from tileir.codegen.plan import read_plan
from tileir.codegen.ptx import assemble, kernel_module, to_ptx
from tileir.codegen.recipe import packing_recipe
from tileir.compiler import Options
from tileir.dialect.attributes import walk
from tileir.errors import TileirError
from tileir.frontends.torch_export import import_program
from tileir.mlir import ir, new_context
from tileir.passes.pipeline import run_pipeline
from tileir.reference.graph import GraphExecutor
from tileir.reference.session import ReferenceSession
from tileir.reference.tile import TileExecutor
from tileir.target import TARGETS, Target

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Outcome:
    """Of one model: the worst error of a level, relative to the largest logit; refused: why, "" if compiled."""

    errors: dict[str, float]
    refused: str = ""


def fuzz(facts: Facts, target: Target | None = None, steps: int = 5) -> Outcome:
    """A decoder down to ptxas, each level against eager fp32 over so many tokens.

    target: without one, no code is made. Raises AssertionError where a level is further off than `TOLERANCE`; a model
    that is refused with a TileirError says so.
    """
    model = decoder(facts)
    ids = np.random.default_rng(facts.seed).integers(0, facts.vocabulary, steps).tolist()
    program, exact, weights = export_own(model), eager(model, ids), arrays(model)
    try:
        found = dict(_levels(program, weights, ids))
        if target is not None:
            _assemble(program, target)
    except TileirError as error:
        return Outcome({}, str(error))
    errors = {n: float(np.abs(f - exact).max() / np.abs(exact).max()) for n, f in found.items()}
    assert max(errors.values()) < TOLERANCE, errors
    return Outcome(errors)


def eager(model: Any, ids: list[int]) -> np.ndarray:
    """Logits after each of the ids, [len(ids), vocabulary] f32, of the module itself; its caches start empty."""
    for name, buffer in model.named_buffers():
        if name.endswith((".keys", ".values")):
            buffer.zero_()
    with torch.no_grad():
        rows = [model(torch.tensor([[t]]), torch.tensor([i]))[0] for i, t in enumerate(ids)]
    return torch.cat(rows).float().numpy()


def _levels(program: Any, weights: Any, ids: list[int]) -> Any:
    """(level, logits [tokens, vocabulary]) of the reference executors."""
    with new_context() as context, ir.Location.unknown():
        module = import_program(program, context)
        yield "graph", _steps(GraphExecutor(module, weights), ids)
        to_tile = Options("virtual").pipeline.split(",select-sync")[0] + ")"
        lowered = import_program(program, context)
        run_pipeline(lowered, to_tile)
        yield "tile", _steps(TileExecutor(lowered, weights), ids)
        for name, devices in (("engine", 1), ("engine on two GPUs", 2)):
            module = import_program(program, context)
            run_pipeline(module, Options("virtual", devices=devices).pipeline)
            plans = [read_plan(d, TARGETS["virtual"]) for d in walk(module, "engine.device")]
            session = ReferenceSession(str(module), [packing_recipe(p) for p in plans], weights)
            yield name, session.logits(ids)


def _steps(executor: Any, ids: list[int]) -> Any:
    return np.concatenate(
        [executor.step(np.array([t]), np.array([i]))[1] for i, t in enumerate(ids)]
    )


def _assemble(program: Any, target: Target) -> None:
    """PTX, and what ptxas says."""
    with new_context() as context, ir.Location.unknown():
        module = import_program(program, context)
        run_pipeline(module, Options(target.name).pipeline)
        (device,) = walk(module, "engine.device")
        _, facts = assemble(to_ptx(kernel_module(read_plan(device, target))), target)
        assert all(f.registers for f in facts.values())
