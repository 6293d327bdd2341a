"""Walks models down and compares each level with the one before."""

from typing import Any

import numpy as np
import pytest
import torch

import tileir
from test.models import OwnModel, arrays, export_own, tiny_llama
from tileir.compiler import Options
from tileir.frontends.torch_export import export_decode, import_program
from tileir.mlir import ir, new_context
from tileir.passes.pipeline import run_pipeline
from tileir.reference.graph import GraphExecutor
from tileir.reference.tile import TileExecutor

TOKENS = 24
TOLERANCE = 1e-4


def error(found: np.ndarray, exact: np.ndarray) -> float:
    """The largest difference, relative to the largest value."""
    return float(np.abs(found - exact).max() / np.abs(exact).max())


def own_case() -> tuple[Any, Any, Any, list[int]]:
    """(program, weights, eager logits, ids) of a user's module."""
    model = OwnModel()
    ids = np.random.default_rng(3).integers(0, 96, TOKENS).tolist()
    program = export_own(model)
    with torch.no_grad():
        eager = [model(torch.tensor([[t]]), torch.tensor([i]))[0] for i, t in enumerate(ids)]
    return program, arrays(model), torch.cat(eager).numpy(), ids


def llama_case(**changes: Any) -> tuple[Any, Any, Any, list[int]]:
    """The same for a Hugging Face Llama."""
    model = tiny_llama(**changes)
    ids = np.random.default_rng(2).integers(0, 128, TOKENS).tolist()
    return (
        export_decode(model, 64),
        arrays(model),
        model(torch.tensor([ids])).logits[0].numpy(),
        ids,
    )


CASES = {
    "llama": llama_case,
    "llama tied": lambda: llama_case(tie_word_embeddings=True),
    "llama with biases": lambda: llama_case(attention_bias=True),
    # Five tiles of rows on four SMs: K of the last linear is in two parts.
    "two parts of K": lambda: llama_case(hidden_size=80, intermediate_size=512),
    "one kv head": lambda: llama_case(num_key_value_heads=1),
    "odd sizes": lambda: llama_case(hidden_size=48, intermediate_size=104, vocab_size=131),
    "no whole tiles": lambda: llama_case(hidden_size=60, intermediate_size=90, vocab_size=131),
    "own module": own_case,
}


@pytest.mark.parametrize("name", CASES)
def test_levels_agree(name: str) -> None:
    """graph, tile and engine agree with eager fp32, at every position."""
    program, weights, exact, ids = CASES[name]()
    context = new_context()
    with context, ir.Location.unknown():
        module = import_program(program, context)
        graph = GraphExecutor(module, weights)
        found = [graph.step(np.array([t]), np.array([i]))[1] for i, t in enumerate(ids)]
        assert error(np.concatenate(found), exact) < TOLERANCE
        passes = Options("virtual").pipeline.split(",outline-stages")[0] + ")"
        run_pipeline(module, passes)
        tile = TileExecutor(module, weights)
        found = [tile.step(np.array([t]), np.array([i]))[1] for i, t in enumerate(ids)]
        assert error(np.concatenate(found), exact) < TOLERANCE
    package = tileir.compile(program, target="virtual")
    assert error(package.load(weights, "reference").logits(ids), exact) < TOLERANCE


def test_several_tokens_a_step() -> None:
    """The graph and tile executors take T tokens a step, causal within it."""
    program, weights, exact, ids = llama_case()
    context = new_context()
    with context, ir.Location.unknown():
        module = import_program(program, context)
        graph = GraphExecutor(module, weights)
        found = [
            graph.step(np.array(ids[i : i + 4]), np.arange(i, i + 4))[1]
            for i in range(0, TOKENS, 4)
        ]
    assert error(np.concatenate(found), exact) < TOLERANCE


def test_engine_rounding_is_the_tile_executors() -> None:
    """Both executors round at the same places."""
    program, weights, exact, ids = llama_case()
    package = tileir.compile(program, target="virtual")
    engine = package.load(weights, "reference-bf16").logits(ids)
    context = new_context()
    with context, ir.Location.unknown():
        module = import_program(program, context)
        passes = Options("virtual").pipeline.split(",outline-stages")[0] + ")"
        run_pipeline(module, passes)
        tile = TileExecutor(module, weights, rounding=True)
        found = [tile.step(np.array([t]), np.array([i]))[1] for i, t in enumerate(ids)]
    assert error(engine, np.concatenate(found)) < 1e-2
    assert 1e-4 < error(engine, exact) < 5e-2


def test_h100_module_runs_on_the_reference_device() -> None:
    """132 SMs, most of them without a tile, give the same result."""
    program, weights, exact, ids = llama_case()
    package = tileir.compile(program, target="h100")
    assert error(package.load(weights, "reference").logits(ids[:4]), exact[:4]) < TOLERANCE


def test_generation_follows_greedy_and_stops() -> None:
    """Greedy tokens are eager's; a stop id ends them; a session can be used again."""
    model = tiny_llama()
    package = tileir.compile(export_decode(model, 64), target="virtual")
    session = package.load(arrays(model), "reference")
    ids = [5, 9, 77]
    wanted = list(ids)
    for _ in range(10):
        wanted.append(int(model(torch.tensor([wanted])).logits[0, -1].argmax()))
    assert list(session.generate(ids, 10)) == wanted[3:]
    stop = wanted[6]
    cut = wanted[3:][: wanted[3:].index(stop) + 1]
    assert list(session.generate(ids, 10, stop_ids=[stop])) == cut


@pytest.mark.parametrize("window", [5, 16])
def test_sliding_window(window: int) -> None:
    """A window keeps the last positions only, in every executor."""
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=2, head_dim=16,
        num_attention_heads=4, num_key_value_heads=2, sliding_window=window,
    )  # fmt: skip
    config.layer_types = ["sliding_attention"] * 2
    model = MistralForCausalLM(config).eval().requires_grad_(False)
    ids = np.random.default_rng(2).integers(0, 128, TOKENS).tolist()

    class Windowed(torch.nn.Module):
        """Mistral takes one mask: the window's."""

        def __init__(self) -> None:
            super().__init__()
            self.inner, self.config = model, model.config

        def forward(self, attention_mask: Any, **rest: Any) -> Any:
            return self.inner(attention_mask=attention_mask["sliding_attention"], **rest)

    exact = model(torch.tensor([ids])).logits[0].numpy()
    package = tileir.compile(export_decode(Windowed().eval(), 64), target="virtual")
    weights = {f"inner.{k}": v for k, v in arrays(model).items()}
    assert error(package.load(weights, "reference").logits(ids), exact) < TOLERANCE


def test_sum_of_two_linears() -> None:
    """An epilogue may add what another stage of the same phase makes: it waits for it."""

    class Summed(OwnModel):
        """Two heads, summed."""

        def __init__(self) -> None:
            super().__init__()
            self.other = torch.nn.Linear(64, 64, bias=False)

        def forward(self, ids: Any, positions: Any) -> Any:
            x = self.embed(ids)
            angle = positions[:, None].float() * self.inv_freq
            mask = torch.arange(self.context)[None, :] <= positions[:, None]
            x = self.blocks[0](x, positions, angle.cos(), angle.sin(), mask)
            return self.head(self.norm(self.blocks[0].o(x) + self.other(x)))

    model = Summed()
    ids = np.random.default_rng(3).integers(0, 96, TOKENS).tolist()
    with torch.no_grad():
        eager = [model(torch.tensor([[t]]), torch.tensor([i]))[0] for i, t in enumerate(ids)]
    package = tileir.compile(export_own(model), target="virtual")
    found = package.load(arrays(model), "reference").logits(ids)
    assert error(found, torch.cat(eager).numpy()) < TOLERANCE
