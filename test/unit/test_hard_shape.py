"""The hard shape, level by level: experts, latents, sparse attention, several tokens, drafts, sequences, GPUs."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from test.graphs import routed
from test.models import arrays, tiny_dsa, tiny_mla, tiny_moe
from tileir.compiler import Options, compile_module
from tileir.frontends.torch_export import export_decode, import_program
from tileir.mlir import ir, new_context
from tileir.passes.pipeline import run_pipeline
from tileir.reference.graph import GraphExecutor
from tileir.reference.tile import TileExecutor

CONTEXT, TOKENS, TOLERANCE = 64, 48, 1e-4
MODELS = {"experts": tiny_moe, "latents": tiny_mla, "sparse": tiny_dsa}
CHUNKS = [1, 8, 3, 5, 2, 8, 4, 7, 1, 6, 3]


def error(found: np.ndarray, exact: np.ndarray) -> float:
    """The largest difference, relative to the largest value."""
    return float(np.abs(found - exact).max() / np.abs(exact).max())


@cache
def case(name: str) -> tuple[Any, dict[str, np.ndarray], list[int], np.ndarray]:
    """(program, weights, ids, eager logits) of a model."""
    model = MODELS[name]()
    ids = np.random.default_rng(5).integers(0, model.config.vocab_size, TOKENS)
    with torch.no_grad():
        eager = model(torch.tensor(ids[None])).logits[0].float().numpy()
    return export_decode(model, CONTEXT), arrays(model), ids.tolist(), eager


@pytest.fixture
def context() -> Iterator[Any]:
    """A current MLIR context."""
    made = new_context()
    with made, ir.Location.unknown():
        yield made


def in_chunks(executor: Any, ids: list[int]) -> np.ndarray:
    """Logits of ids that come some at a time."""
    out, at = [], 0
    for count in CHUNKS:
        part = np.array(ids[at : at + count])
        if len(part):
            out.append(executor.step(part, np.arange(at, at + len(part)))[1])
        at += count
    return np.concatenate(out)


@pytest.mark.parametrize("name", MODELS)
def test_graph_and_tile_level(name: str, context: Any) -> None:
    program, weights, ids, eager = case(name)
    module = import_program(program, context)
    assert error(in_chunks(GraphExecutor(module, weights), ids), eager) < TOLERANCE
    passes = Options("virtual", tokens=8).pipeline.split(",outline-stages")[0] + ")"
    run_pipeline(module, passes)
    assert error(in_chunks(TileExecutor(module, weights), ids), eager) < TOLERANCE


@pytest.mark.parametrize("tokens", [1, 8])
@pytest.mark.parametrize("name", MODELS)
def test_engine_level(name: str, tokens: int, context: Any) -> None:
    program, weights, ids, eager = case(name)
    package = compile_module(import_program(program, context), target="virtual", tokens=tokens)
    logits = package.load(weights, device="reference").logits(ids)
    assert error(logits, eager) < TOLERANCE


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_every_number_of_experts(kind: str, context: Any) -> None:
    """From all tokens on the same experts to all different, in one step each."""
    module, weights = routed(16, 2, kind=kind)
    exact = GraphExecutor(module, weights)
    steps = [[3] * 8, [3, 3, 3, 3, 9, 9, 9, 9], list(range(8)), list(range(0, 16, 2))]
    wanted = [exact.step(np.array(s), np.arange(8))[1] for s in steps]
    package = compile_module(module, target="virtual", tokens=8)
    for ids, logits in zip(steps, wanted, strict=True):
        session = package.load(weights, device="reference")
        assert error(session.logits(ids), logits) < TOLERANCE
