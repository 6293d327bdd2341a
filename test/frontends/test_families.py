"""Every dense decoder family, from transformers to the reference device."""

from typing import Any

import numpy as np
import pytest
import torch

import tileir
from test.families import CONTEXT, FAMILIES, family
from test.models import arrays
from tileir.frontends.torch_export import export_decode, import_program
from tileir.mlir import new_context
from tileir.reference.graph import GraphExecutor

TOKENS = 24
TOLERANCE = 1e-4


def check(program: Any, weights: dict[str, np.ndarray], ids: list[int], exact: np.ndarray) -> None:
    """The graph executor and the reference device agree with eager fp32, at every position."""
    context = new_context()
    module = import_program(program, context)
    graph = GraphExecutor(module, weights)
    found = [graph.step(np.array([t]), np.array([i]))[1] for i, t in enumerate(ids)]
    assert error(np.concatenate(found), exact) < TOLERANCE
    package = tileir.compile(program, target="virtual")
    assert error(package.load(weights, "reference").logits(ids), exact) < TOLERANCE


def error(found: np.ndarray, exact: np.ndarray) -> float:
    """The largest difference, relative to the largest value."""
    return float(np.abs(found - exact).max() / np.abs(exact).max())


@pytest.mark.parametrize("name", FAMILIES)
def test_family(name: str) -> None:
    model = family(name)
    ids = np.random.default_rng(2).integers(0, model.config.vocab_size, TOKENS).tolist()
    with torch.no_grad():
        exact = model(torch.tensor([ids])).logits[0].numpy()
    check(export_decode(model, CONTEXT), arrays(model), ids, exact)
