"""Structures that no Llama has: the tile level computes what the graph level does."""

from typing import Any

import numpy as np
import pytest

from tileir.dialect.attributes import get, shape_of, walk
from tileir.mlir import ir, new_context
from tileir.passes.pipeline import run_pipeline
from tileir.reference.graph import GraphExecutor
from tileir.reference.tile import TileExecutor

STEPS, CONTEXT, VOCABULARY = 12, 16, 37
PASSES = "graph-fuse,specialize-gpu,tile-graph,fuse-communication,specialize-block{target=%s}"
TYPES = """
!p = tensor<?xi32>
!x = tensor<?x32xf32>
!l = tensor<?x37xf32>
!n = tensor<32xf32>
!w = tensor<32x32xf32>
!e = tensor<37x32xf32>
!f = tensor<8xf32>
!s = tensor<2x16x16xf32>
"""


def weight(name: str, kind: str = "!w") -> str:
    return f'%{name} = "graph.weight"() {{sym_name = "{name}"}} : () -> {kind}\n'


def linear(out: str, x: str, name: str, bias: str = "") -> str:
    more, kind = (f", %{bias}", ", !n") if bias else ("", "")
    return f'%{out} = "graph.linear"(%{x}, %{name}{more}) : (!x, !w{kind}) -> !x\n'


def add(out: str, a: str, b: str) -> str:
    return f'%{out} = "graph.add"(%{a}, %{b}) : (!x, !x) -> !x\n'


def norm(out: str, x: str) -> str:
    facts = "{eps = 1.0e-5 : f64, unit_offset = true}"
    return f'%{out} = "graph.rms_norm"(%{x}, %n) {facts} : (!x, !n) -> !x\n'


def rope(out: str, x: str) -> str:
    facts = '{head_size = 16 : i64, scale = 1.5 : f64, style = "half"}'
    return f'%{out} = "graph.rope"(%{x}, %positions, %f) {facts} : (!x, !p, !f) -> !x\n'


def append(out: str, state: str, x: str) -> str:
    return (
        f'%{state} = "graph.state"() {{sym_name = "{state}"}} : () -> !s\n'
        f'%{out} = "graph.append"(%{state}, %{x}, %positions) : (!s, !x, !p) -> !s\n'
    )


def attention(out: str, q: str, k: str, v: str) -> str:
    return (
        f'%{out} = "graph.attention"(%{q}, %{k}, %{v}, %positions) {{heads = 2 : i64, kv_heads = 2'
        " : i64, head_size = 16 : i64, scale = 0.25 : f64, window = 5 : i64, softcap = 4.0 : f64}"
        " : (!x, !s, !s, !p) -> !x\n"
    )


CASES = {
    "attention beside a linear": [
        norm("h", "x"), linear("m", "h", "w1"), linear("lq", "h", "w2"), rope("q", "lq"),
        linear("lk", "h", "w3"), rope("k", "lk"), linear("v", "h", "w4"),
        append("ka", "k_0", "k"), append("va", "v_0", "v"), attention("a", "q", "ka", "va"),
        add("b", "a", "m"), add("y", "b", "x"),
    ],
    "nothing normed, biases, v turned too": [
        linear("lq", "x", "w1", "n"), rope("q", "lq"), linear("lk", "x", "w2", "n"),
        rope("k", "lk"), linear("lv", "x", "w3", "n"), rope("v", "lv"),
        append("ka", "k_0", "k"), append("va", "v_0", "v"), attention("a", "q", "ka", "va"),
        linear("y", "a", "w4", "n"),
    ],
    "keys appended before they turn": [
        linear("lq", "x", "w1"), linear("lk", "x", "w2"), linear("v", "x", "w3"),
        append("raw", "raw_0", "lk"), rope("k", "lk"), append("ka", "k_0", "k"),
        append("va", "v_0", "v"), attention("a", "lq", "ka", "va"), linear("y", "a", "w4"),
    ],
    "values behind attention": [
        linear("q", "x", "w1"), linear("k", "x", "w2"), linear("v", "x", "w3"),
        append("ka", "k_0", "k"), append("va", "v_0", "v"), attention("a", "q", "ka", "va"),
        linear("o", "a", "w4"), add("y", "o", "v"),
    ],
    "linears in a row, a sum of two": [
        linear("a", "x", "w1"), norm("h", "a"), linear("b", "h", "w2"), linear("c", "h", "w3"),
        add("d", "c", "b"), linear("y", "d", "w4", "n"),
    ],
}  # fmt: skip


def module_of(lines: list[str]) -> str:
    declared = [weight("e", "!e"), weight("n", "!n"), *(weight(f"w{i}") for i in range(1, 5))]
    return f"""{TYPES}
module attributes {{tileir.level = "graph", tileir.context = {CONTEXT} : i64,
                    tileir.vocabulary = {VOCABULARY} : i64}} {{
  func.func @step(%tokens: !p, %positions: !p) -> !p {{
    {"".join(declared)}
    %f = "graph.constant"() {{sym_name = "f", value = dense<[1.0, 0.5, 0.25, 0.125, 0.06, 0.03,
      0.015, 0.008]> : !f}} : () -> !f
    %x = "graph.embedding"(%e, %tokens) {{scale = 2.0 : f64}} : (!e, !p) -> !x
    {"".join(lines)}
    %l = "graph.linear"(%y, %e) : (!x, !e) -> !l
    %t = "graph.sample"(%l) {{kind = "argmax"}} : (!l) -> !p
    return %t : !p
  }}
}}"""


def weights_of(module: Any) -> dict[str, np.ndarray]:
    random = np.random.default_rng(4)
    found = {}
    for op in walk(module, "graph.weight"):
        shape = [size or 0 for size in shape_of(op.results[0])]
        found[get(op, "sym_name")] = random.standard_normal(shape).astype(np.float32) * 0.3
    return found


@pytest.mark.parametrize("target", ["virtual", "h100"])
@pytest.mark.parametrize("name", CASES)
def test_tile_level_computes_what_the_graph_does(name: str, target: str) -> None:
    with new_context(), ir.Location.unknown():
        module = ir.Module.parse(module_of(CASES[name]))
        weights = weights_of(module)
        graph = GraphExecutor(module, weights)
        ids = np.random.default_rng(5).integers(0, VOCABULARY, STEPS)
        steps = [(np.array([token]), np.array([i])) for i, token in enumerate(ids)]
        wanted = [graph.step(*step) for step in steps]
        run_pipeline(module, PASSES % target)
        tile = TileExecutor(module, weights)
        found = [tile.step(*step) for step in steps]
    for (token, logits), (tile_token, tile_logits) in zip(wanted, found, strict=True):
        assert tile_logits.shape == logits.shape == (1, VOCABULARY)
        np.testing.assert_allclose(tile_logits, logits, rtol=1e-4, atol=1e-4)
        assert tile_token == token
    # A state that were not read would leave all steps of one token alike.
    assert np.ptp(np.concatenate([logits for _, logits in wanted]), axis=0).min() > 0.01
