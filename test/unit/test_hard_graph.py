"""Experts, latents, sparse attention and drafts at graph level: what is imported computes what the model does."""

import os
import resource
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from test.models import arrays, tiny_dsa, tiny_mla, tiny_moe, tiny_mtp, tiny_v32
from tileir.dialect.attributes import build, get, name_of, walk
from tileir.frontends.torch_export import (
    export_decode,
    export_draft_decode,
    fake_hf,
    import_program,
)
from tileir.mlir import ir, new_context
from tileir.passes.pipeline import run_pipeline
from tileir.reference.graph import GraphExecutor
from tileir.reference.routing import choose_experts, choose_top_k, route

CONTEXT, TOKENS, TOLERANCE = 64, 48, 1e-4
MODELS = {"experts": tiny_moe, "latents": tiny_mla, "sparse": tiny_dsa, "sparse, halves": tiny_v32}
ONE, SEVERAL = [1] * TOKENS, [1, 8, 3, 5, 2, 8, 4, 7, 1, 6, 3]


@pytest.fixture(scope="module")
def context() -> Any:
    """An MLIR context."""
    return new_context()


def error(found: np.ndarray, exact: np.ndarray) -> float:
    """The largest difference, relative to the largest value."""
    return float(np.abs(found - exact).max() / np.abs(exact).max())


def tokens_of(model: Any) -> np.ndarray:
    """Some tokens."""
    return np.random.default_rng(5).integers(0, model.config.vocab_size, TOKENS)


@cache
def case(name: str, dtype: torch.dtype = torch.float32) -> tuple[Any, Any, np.ndarray, np.ndarray]:
    """(program, weights, ids, eager fp32 logits) of a model."""
    model = MODELS[name]()
    ids = tokens_of(model)
    with torch.no_grad():
        eager = model(torch.tensor(ids[None])).logits[0].numpy()
    weights = arrays(model)
    for parameter in model.parameters():  # buffers stay, as with from_pretrained
        parameter.data = parameter.data.to(dtype)
    return export_decode(model, CONTEXT), weights, ids, eager


def run(executor: GraphExecutor, ids: np.ndarray, chunks: list[int]) -> list[np.ndarray]:
    """[logits, and drafts' logits if there are any] of ids that come some at a time."""
    parts: list[list[np.ndarray]] = []
    at = 0
    for count in chunks:
        part = ids[at : at + count]
        logits = executor.step(part, np.arange(at, at + len(part)))[1]
        parts.append([logits, *([executor.draft[1]] if executor.draft else [])])
        at += count
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


@pytest.mark.parametrize("chunks", [ONE, SEVERAL], ids=["one", "several"])
@pytest.mark.parametrize("name", MODELS)
def test_logits_are_the_models(name: str, chunks: list[int], context: Any) -> None:
    program, weights, ids, eager = case(name)
    module = import_program(program, context)
    (logits,) = run(GraphExecutor(module, weights), ids, chunks)
    assert error(logits, eager) < TOLERANCE


@pytest.mark.parametrize("name", MODELS)
def test_bf16_models_become_the_same_operations(name: str, context: Any) -> None:
    """Casts are passed; only the element types differ."""
    program, weights, ids, eager = case(name)
    found = import_program(case(name, torch.bfloat16)[0], context)
    exact = import_program(program, context)
    assert [name_of(o) for o in walk(found)] == [name_of(o) for o in walk(exact)]
    (logits,) = run(GraphExecutor(found, weights), ids, SEVERAL)
    assert error(logits, eager) < TOLERANCE


def test_drafts_are_the_models(context: Any) -> None:
    """transformers shifts the draft layer's cache and angles by one; positions here are the step's."""
    model, draft = tiny_mtp()
    ids = tokens_of(model)
    base, layer = model.get_decoder(), draft.layers[0]
    later = torch.arange(1, TOKENS + 1)[None]
    mask = torch.full((1, 1, TOKENS, TOKENS), float("-inf")).triu(1)
    with torch.no_grad():
        hidden = base(torch.tensor(ids[None])).last_hidden_state
        logits = model.lm_head(hidden)
        chosen = base.embed_tokens(logits.argmax(-1))
        angles = base.rotary_emb(chosen, position_ids=later)
        drafted = layer(
            chosen,
            hidden,
            position_embeddings=angles,
            attention_mask=mask,
            position_ids=later,
            past_key_values=None,
        )
        wanted = [logits[0].numpy(), model.lm_head(drafted)[0].numpy()]
    module = import_program(export_draft_decode(model, draft, CONTEXT), context)
    weights = arrays(model, draft)
    named = {get(o, "sym_name") for o in walk(module, "graph.weight")}
    assert named == set(weights)
    for chunks in (ONE, SEVERAL):
        found = run(GraphExecutor(module, weights), ids, chunks)
        assert [error(f, w) < TOLERANCE for f, w in zip(found, wanted, strict=True)] == [True, True]
        assert np.array_equal(found[1].argmax(-1), wanted[1].argmax(-1))


@pytest.mark.parametrize("name", ["latents", "sparse"])
def test_absorbed_latents_are_equal(name: str, context: Any) -> None:
    program, weights, ids, _ = case(name)
    module = import_program(program, context)
    (exact,) = run(GraphExecutor(module, weights), ids, SEVERAL)
    run_pipeline(module, "builtin.module(absorb-latents{enable=false})")
    assert any(walk(module, "graph.mla_attention"))
    run_pipeline(module, "builtin.module(absorb-latents)")
    assert not any(walk(module, "graph.mla_attention"))
    (found,) = run(GraphExecutor(module, weights), ids, SEVERAL)
    assert error(found, exact) < TOLERANCE


def test_nothing_is_sliced_and_names_are_the_checkpoints(context: Any) -> None:
    """Parts of fused weights are views, of every model."""
    for name in MODELS:
        program, weights, *_ = case(name)
        module = import_program(program, context)
        assert {get(o, "sym_name") for o in walk(module, "graph.weight")} <= set(weights)
        for op in walk(module, "graph.expert_linear"):
            assert len(op.operands) == 3
    views = [o for o in walk(module, "graph.weight") if get(o, "strides")]
    assert views


def test_layers_share_chosen_positions(context: Any) -> None:
    """tiny_dsa's last layer takes the indices of the second; it has no keys of its own."""
    module = import_program(case("sparse")[0], context)
    attentions = list(walk(module, "graph.mla_attention"))
    indices = [op.operands[5] for op in attentions]
    assert indices[0] != indices[1]
    assert indices[1] == indices[2]
    names = [get(o, "sym_name") for o in walk(module, "graph.state")]
    assert sorted(n for n in names if n.startswith("index")) == ["index_cache_0", "index_cache_1"]
    assert len(names) == 5


# ---- choices


def router(context: Any, experts: int, name: str = "graph.router", **facts: Any) -> Any:
    """An operation that says how to choose."""
    given = {"groups": 1, "top_groups": 1, "normalize": True, "scale": 1.0, **facts}
    with context, ir.Location.unknown():
        return build(f"test.{name}", [], [], experts=experts, **given)


def torch_sigmoid(logits: Any, bias: Any, groups: int, top: int, k: int, fill: float) -> Any:
    """(experts, weights) as transformers chooses them, ties aside."""
    scores = logits.sigmoid()
    choice = scores + bias
    sums = choice.view(len(choice), groups, -1).topk(2, -1)[0].sum(-1)
    mask = torch.zeros_like(sums).scatter_(1, sums.topk(top, -1)[1], 1).bool()
    mask = mask[..., None].expand(-1, -1, choice.shape[1] // groups).reshape(choice.shape)
    chosen = choice.masked_fill(~mask, fill).topk(k, -1)[1]
    weights = scores.gather(1, chosen)
    return chosen, weights / (weights.sum(-1, keepdim=True) + 1e-20)


@pytest.mark.parametrize("fill", [0.0, float("-inf")])
@pytest.mark.parametrize(("groups", "top", "k"), [(1, 1, 8), (8, 4, 8), (4, 1, 4)])
def test_router_by_sigmoid(groups: int, top: int, k: int, fill: float, context: Any) -> None:
    random = np.random.default_rng(0)
    logits, bias = random.standard_normal((64, 64)), random.standard_normal(64) * 0.2
    logits, bias = logits.astype(np.float32), bias.astype(np.float32)
    if fill == 0.0:
        bias = np.abs(bias)
    facts = {"k": k, "groups": groups, "top_groups": top, "fill": fill, "scale": 2.5}
    op = router(context, 64, kind="sigmoid", score="sigmoid", **facts)
    indices, weights = route(logits, bias, op)
    wanted = torch_sigmoid(torch.tensor(logits), torch.tensor(bias), groups, top, k, fill)
    assert np.array_equal(indices, wanted[0].numpy())
    assert error(weights, wanted[1].numpy() * 2.5) < 1e-6
    scores = 1 / (1 + np.exp(-logits))
    routing = choose_experts(np.concatenate([scores, scores + bias], -1), op)
    assert np.array_equal(routing[..., 0], indices)
    assert error(routing[..., 1].view(np.float32), weights) < 1e-6


@pytest.mark.parametrize("normalize", [True, False])
def test_router_by_softmax(normalize: bool, context: Any) -> None:
    logits = np.random.default_rng(1).standard_normal((64, 128)).astype(np.float32) * 3
    op = router(context, 128, kind="softmax", score="softmax", k=8, normalize=normalize)
    indices, weights = route(logits, None, op)
    wanted, chosen = torch.softmax(torch.tensor(logits), -1).topk(8, -1)
    wanted = wanted / wanted.sum(-1, keepdim=True) if normalize else wanted
    assert np.array_equal(indices, chosen.numpy())
    assert error(weights, wanted.numpy()) < 1e-6
    routing = choose_experts(logits, op)
    assert np.array_equal(routing[..., 0], indices)
    assert np.array_equal(routing[..., 1].view(np.float32), weights)


def test_ties_go_to_the_lowest(context: Any) -> None:
    """Of experts, of groups and of positions, whatever torch does."""
    level = np.zeros((1, 16), np.float32)
    for kind in ("softmax", "sigmoid"):
        op = router(context, 16, kind=kind, k=4)
        assert route(level, None, op)[0].tolist() == [[0, 1, 2, 3]]
    op = router(context, 16, kind="sigmoid", k=4, groups=4, top_groups=2, fill=float("-inf"))
    level[0, 5] = level[0, 13] = 1.0  # groups 1 and 3 are equal and better than 0 and 2
    assert route(level, None, op)[0].tolist() == [[5, 13, 4, 6]]
    scores = np.array([[1, 3, 3, 3, 0, 3]], np.float32)
    assert choose_top_k(scores, np.array([5]), 2).tolist() == [[1, 2]]
    assert choose_top_k(scores, np.array([1]), 4).tolist() == [[0, 1, -1, -1]]


@pytest.mark.parametrize("k", [1, 8, 40, 64])
def test_top_k_chooses_what_torch_chooses(k: int) -> None:
    scores = np.random.default_rng(2).standard_normal((40, 64)).astype(np.float32)
    positions = np.arange(10, 50)
    found = choose_top_k(scores, positions, k)
    for row, listed, position in zip(scores, found, positions, strict=True):
        seen = torch.tensor(row[: position + 1])
        wanted = seen.topk(min(k, len(seen)))[1]
        assert listed[listed >= 0].tolist() == sorted(wanted.tolist())
        assert (listed[len(wanted) :] == -1).all()


# ---- full size


def full_sizes() -> dict[str, tuple[Callable[[], Any], int]]:
    """Configurations of large models as they are published, and the seconds that they may take."""
    from transformers import DeepseekV3Config, GlmMoeDsaConfig, LlamaConfig, Qwen3MoeConfig

    scaled: dict[str, Any] = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0}
    scaled |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaled |= {"original_max_position_embeddings": 8192}
    yarn: dict[str, Any] = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 40}
    yarn |= {"beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0}
    yarn |= {"original_max_position_embeddings": 4096}
    dense = {"vocab_size": 128256, "hidden_size": 8192, "intermediate_size": 28672}
    dense |= {"num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8}
    mixed = {"vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144}
    mixed |= {"num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4}
    mixed |= {"head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8}
    mixed |= {"moe_intermediate_size": 768, "norm_topk_prob": True}
    return {
        "Llama-3.3-70B": (lambda: LlamaConfig(**dense, rope_parameters=scaled), 60),
        "Qwen3-30B-A3B": (lambda: Qwen3MoeConfig(**mixed), 60),
        "DeepSeek-V3": (lambda: DeepseekV3Config(rope_parameters=yarn), 60),
        "GLM-5": (lambda: GlmMoeDsaConfig(), 120),
    }


@pytest.mark.skipif("TILEIR_FULL" not in os.environ, reason="minutes: set TILEIR_FULL=1")
@pytest.mark.parametrize("name", ["Llama-3.3-70B", "Qwen3-30B-A3B", "DeepSeek-V3", "GLM-5"])
def test_full_size(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """No memory for weights; run each alone to read its memory: pytest -k 'full_size and GLM'."""
    make, seconds = full_sizes()[name]
    start = time.perf_counter()
    module = import_program(export_decode(fake_hf(make()), 4096), new_context())
    taken = time.perf_counter() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    with capsys.disabled():
        count = sum(1 for _ in walk(module))
        print(f"\n{name}: {count} operations, {taken:.1f} s, {memory:.2f} GiB at most")
    assert taken < seconds
    assert memory < 6
