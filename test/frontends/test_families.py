"""Every dense decoder family, from transformers to the reference device."""

from typing import Any

import numpy as np
import pytest
import torch

import tileir
from test.families import CONTEXT, FAMILIES, family
from test.models import arrays
from tileir.dialect.attributes import get, name_of, walk
from tileir.frontends.torch_export import export_decode, fake_hf, import_program
from tileir.mlir import new_context
from tileir.reference.graph import GraphExecutor

TOKENS = 24
TOLERANCE = 1e-4
_COMPUTED = tuple(
    f"graph.{n}"
    for n in (
        *("embedding", "linear", "rms_norm", "rope", "append", "attention", "glu", "add"),
        *("scale", "softcap", "activate", "sample"),
    )
)


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


_ROUNDED = (
    *("llama", "qwen2", "qwen3", "mistral window", "gemma2"),
    *("gemma3", "phi3", "smollm3", "olmo2", "granite"),
)


@pytest.mark.parametrize("name", _ROUNDED)
def test_family_in_bf16(name: str) -> None:
    """The casts of a bf16 model are no operations: it becomes the same ones as in fp32."""
    exact, rounded = (operations(model) for model in (family(name), family(name).bfloat16()))
    assert [n for n, _ in exact] == [n for n, _ in rounded]
    for (_, one), (_, other) in zip(exact, rounded, strict=True):
        assert one is None or abs(other / one - 1) < 1e-2


def operations(model: Any) -> list[tuple[str, float | None]]:
    """(name, scale) of what a model becomes."""
    context = new_context()
    module = import_program(export_decode(model, CONTEXT), context)
    return [(name_of(o), get(o, "scale")) for o in walk(module, *_COMPUTED)]


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "rope longrope, long"])
def test_family_without_weights(name: str) -> None:
    """The numbers that a graph needs are there without memory for the weights."""
    model = family(name)
    assert operations(fake_hf(model.config, torch.float32)) == operations(model)


@pytest.mark.parametrize("name", ["olmo2", "gemma2", "granite", "phi3", "llama biases"])
def test_family_on_two_gpus(name: str) -> None:
    """What stands between a linear and its sum is not cut; partial sums are plain."""
    model = family(name)
    ids = np.random.default_rng(4).integers(0, model.config.vocab_size, 6).tolist()
    with torch.no_grad():
        exact = model(torch.tensor([ids])).logits[0].numpy()
    package = tileir.compile(
        export_decode(model, CONTEXT), target="virtual", devices=2, placement="tensor-parallel"
    )
    assert error(package.load(arrays(model), "reference").logits(ids), exact) < TOLERANCE


def test_many_layers() -> None:
    """126 layers have as many bodies as three."""
    bodies = []
    for layers in (3, 126):
        model = family("llama", num_hidden_layers=layers, num_attention_heads=2)
        package = tileir.compile(export_decode(model, CONTEXT), target="virtual")
        bodies.append(package.engine_text.count('"engine.body"'))
    assert bodies[0] == bodies[1] > 0
