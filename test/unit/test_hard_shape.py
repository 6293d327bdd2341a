"""The hard shape, level by level: experts, latents, sparse attention, several tokens, drafts, sequences, GPUs."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from test.graphs import routed
from test.models import arrays, tiny_dsa, tiny_llama, tiny_mla, tiny_moe, tiny_mtp, tiny_v32
from tileir.compiler import Options, compile_module
from tileir.dialect.attributes import get, walk
from tileir.errors import DeviceHang
from tileir.frontends.torch_export import export_decode, export_draft_decode, import_program
from tileir.mlir import ir, new_context
from tileir.passes.pipeline import run_pipeline
from tileir.reference import steps
from tileir.reference.graph import GraphExecutor
from tileir.reference.session import ReferenceSession
from tileir.reference.steps import Request
from tileir.reference.tile import TileExecutor

CONTEXT, TOKENS, TOLERANCE = 64, 48, 1e-4
MODELS = {
    "experts": tiny_moe,
    "latents": tiny_mla,
    "sparse": tiny_dsa,
    "sparse everywhere": tiny_v32,
}
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


# ---- several tokens, drafts, sequences


@cache
def llama() -> tuple[Any, dict[str, np.ndarray]]:
    """(program, weights) of a small dense model."""
    model = tiny_llama()
    return export_decode(model, CONTEXT), arrays(model)


def session(context: Any, program: Any, weights: Any, seed: int = 0, **options: Any) -> Any:
    """A session on the reference device."""
    package = compile_module(import_program(program, context), target="virtual", **options)
    return ReferenceSession(package.engine_text, package.packing, weights, seed=seed)


@pytest.mark.parametrize("tokens", range(1, 9))
def test_any_number_of_tokens_a_step(tokens: int, context: Any) -> None:
    program, weights = llama()
    ids = np.random.default_rng(1).integers(0, 128, 21).tolist()
    exact = session(context, program, weights).logits(ids)
    found = session(context, program, weights, tokens=tokens).logits(ids)
    assert error(found, exact) < TOLERANCE


def wrong_from(right: list[int], good: int) -> Any:
    """Drafts of 7 tokens of which `good` are what the model will say."""

    def drafts(tokens: list[int]) -> list[int]:
        said = right[len(tokens) :][:7]
        return [t if i < good else (t + 1) % 128 for i, t in enumerate(said)]

    return drafts


@pytest.mark.parametrize("good", range(8))
def test_accept_and_roll_back(good: int, context: Any) -> None:
    """However many drafts of a step are right, the text is the greedy one, in as few steps as they allow."""
    program, weights = llama()
    ids, new = [5, 9, 2], 24
    right = ids + list(session(context, program, weights).generate(ids, new))
    running = session(context, program, weights, tokens=8)
    request = Request(ids, new, drafts=wrong_from(right, good))
    assert running.generate_batch([request]) == [right[3:]]
    # The prompt's step has room for 5 drafts.
    assert running.steps == 1 + -(-(new - 1 - min(good, 5)) // (good + 1))


@pytest.mark.parametrize("name", MODELS)
def test_every_shape_rolls_back(name: str, context: Any) -> None:
    """Rejected rows of latents, index keys and heads leave no trace."""
    program, weights, ids, _ = case(name)
    prompt, new = ids[:6], 12
    right = prompt + list(session(context, program, weights).generate(prompt, new))
    running = session(context, program, weights, tokens=4)
    request = Request(prompt, new, drafts=wrong_from(right, 1))
    assert running.generate_batch([request]) == [right[6:]]


def test_a_draft_layer_in_the_program(context: Any) -> None:
    """The text is the same with the draft layer's tokens as without, and drafts that are right save steps."""
    model, draft = tiny_mtp()
    weights = arrays(model, draft)
    program = export_draft_decode(model, draft, CONTEXT)
    plain = session(context, export_decode(model, CONTEXT), weights)
    ids = [7, 3, 11, 60]
    with_drafts = session(context, program, weights, tokens=4)
    assert list(with_drafts.generate(ids, 24)) == list(plain.generate(ids, 24))


def test_right_drafts_of_the_model_are_accepted(context: Any) -> None:
    """A draft layer whose head is the identity on what the model repeats: half the steps."""
    model, draft = tiny_mtp()
    weights = {
        n: np.zeros_like(v) if "head" in n or "embed" in n else v
        for n, v in arrays(model, draft).items()
    }
    running = session(context, export_draft_decode(model, draft, CONTEXT), weights, tokens=2)
    assert list(running.generate([1, 2], 20)) == [0] * 20
    assert running.steps == 11


REQUESTS = [([5, 9, 2, 40, 7], 20, 0), ([1] * 13, 9, 0), ([3, 8], 30, 4), ([90, 2, 2], 12, 6)]


@pytest.mark.parametrize("seed", range(4))
def test_sequences_share_steps_and_pages(seed: int, context: Any) -> None:
    """Four requests in two sequences, at different positions, over pages that are freed and used again."""
    program, weights = llama()
    alone = session(context, program, weights)
    exact = [list(alone.generate(ids, new)) for ids, new, _ in REQUESTS]
    running = session(context, program, weights, seed, tokens=4, sequences=2, page=8, pages=9)
    requests = [Request(ids, new, start=start) for ids, new, start in REQUESTS]
    assert running.generate_batch(requests) == exact
    assert running.pages_used > 9


def test_seeds_and_sequences_of_every_shape_are_bit_identical(context: Any) -> None:
    """Roles in any order give the same bits."""
    program, weights, ids, _ = case("sparse")
    package = compile_module(import_program(program, context), target="virtual", tokens=3)
    found = [
        ReferenceSession(package.engine_text, package.packing, weights, seed=s).logits(ids[:12])
        for s in range(4)
    ]
    assert all((f == found[0]).all() for f in found)


@pytest.mark.parametrize("name", MODELS)
def test_two_sequences_of_every_shape(name: str, context: Any) -> None:
    program, weights, ids, _ = case(name)
    alone = session(context, program, weights)
    exact = [list(alone.generate(p, 10)) for p in (ids[:11], ids[20:24])]
    running = session(context, program, weights, tokens=4, sequences=2, page=16)
    assert running.generate_batch([Request(ids[:11], 10), Request(ids[20:24], 10)]) == exact


def test_the_tape_runs_ahead_of_the_router(context: Any) -> None:
    """The tape's loader begins what stands behind the experts before any SM's loader knows the routing."""
    module, weights = routed(16, 2)
    package = compile_module(module, target="virtual", tokens=1)
    running = package.load(weights, device="reference")
    events: list[tuple[int, str, int]] = []
    running.trace(lambda *event: events.append(event))
    running.logits([3])
    module = ir.Module.parse(package.engine_text)
    rows = list(walk(module, "engine.row"))
    experts = next(
        i for i, row in enumerate(rows) if "routing_0" in get(row, "names") and get(row, "weights")
    )
    for sm in range(4):
        routed_at = events.index((sm, "consumer", experts))
        before = {row for at, role, row in events[:routed_at] if (at, role) == (sm, "tape")}
        assert any(row > experts for row in before)


# ---- several GPUs


PLACEMENTS = [
    (name, devices, placement)
    for name in MODELS
    for devices in (2, 3, 4)
    for placement in ("tensor-parallel", "replicated-attention", "indexer-apart")
    if placement == "tensor-parallel" or (placement == "indexer-apart") == ("sparse" in name)
]


@pytest.mark.parametrize(("name", "devices", "placement"), PLACEMENTS)
def test_several_gpus(name: str, devices: int, placement: str, context: Any) -> None:
    """The result is one GPU's, and what every GPU computes for itself has the same bits on all."""
    program, weights, ids, eager = case(name)
    options = {"tokens": 4, "devices": devices, "placement": placement}
    running = session(context, program, weights, **options)
    assert error(running.logits(ids[:16]), eager[:16]) < TOLERANCE
    engine = running._engine
    names = set.intersection(*(set(d.channels) for d in engine.devices))
    compared = 0
    for channel in names:
        first, *others = (d.channels[channel].views[0] for d in engine.devices)
        # Of what GPUs share out, a packet of the same step is there only where it has come from the same writer.
        written = [(first.epochs > 0) & (o.epochs == first.epochs) for o in others]
        for other, both in zip(others, written, strict=True):
            assert (first.payload[both] == other.payload[both]).all(), channel
            compared += int(both.sum())
    assert compared > 1000


def test_heads_that_gpus_do_not_share_evenly(context: Any) -> None:
    """Four heads on three GPUs, two kv heads on three: one GPU has none; drafts, sequences and pages as well."""
    program, weights = llama()
    exact = session(context, program, weights)
    options = {"devices": 3, "placement": "tensor-parallel", "tokens": 4, "sequences": 2, "page": 8}
    running = session(context, program, weights, **options)
    requests = [Request([5, 9, 2, 40, 7], 12), Request([3, 8], 15, start=2)]
    wanted = [list(exact.generate(r.ids, r.new)) for r in requests]
    assert running.generate_batch(requests) == wanted


def test_a_page_that_another_sequence_holds_is_not_read(context: Any) -> None:
    """A table that names another sequence's page is noticed."""
    program, weights = llama()
    running = session(context, program, weights, tokens=4, sequences=2, page=8, pages=8)
    hold = steps.Plan._hold_pages

    def confused(self: Any, place: int, held: Any, rows: int) -> None:
        hold(self, place, held, rows)
        if place == 1 and held.base > 8:
            self.table[1, 0] = self.table[0, 0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps.Plan, "_hold_pages", confused)
        with pytest.raises(
            DeviceHang, match="streams position 0 of state k_cache_0, which is not there"
        ):
            running.generate_batch([Request([1] * 5, 20), Request([2] * 5, 20)])
