"""The graph dialect: whole tensors, SSA, no layout, no device.

Values are `tensor<?xN>`: T rows (tokens of the step) of N values. A state is read through the result of `append`.
"""

from math import prod
from typing import Any

from tileir.dialect.attributes import (
    divides,
    element_of,
    first_failure,
    get,
    shape_of,
)
from tileir.mlir import ext, ir

Tensor = ir.RankedTensorType
Operand = ext.Operand
Result = ext.Result

ACTIVATIONS = ("silu", "gelu_tanh", "gelu", "relu")


class Graph(ext.Dialect, name="graph"):
    """Whole-tensor operations of a decode step."""


class WeightOp(Graph.Operation, name="weight"):
    """A parameter by its state-dict name, or a view of it.

    With `strides` (and `offset`, 0 if absent), in values, element (i, j, …) is flat[offset + i·strides[0] +
    j·strides[1] + …] of the checkpoint's tensor: rows of a part, permuted or transposed.

    %w = "graph.weight"() {sym_name = "model.norm.weight"} : () -> tensor<576xbf16>
    %v = "graph.weight"() {sym_name = "kv_a", offset = 32768 : i64, strides = array<i64: 128, 64, 1>} :
      () -> tensor<2x8x64xbf16>
    """

    sym_name: ir.StringAttr
    result: Result[Tensor]

    @staticmethod
    def verify_region_invariants(op: Any) -> bool:
        """A view has a stride for each dimension and begins inside."""
        op = op.opview if isinstance(op, ir.Operation) else op
        shape, strides = shape_of(op.operation.results[0]), get(op, "strides")
        offset = get(op, "offset", 0)
        return first_failure(
            op,
            [
                (None not in shape, "a weight's sizes are known"),
                (
                    strides is None or len(strides) == len(shape),
                    f"strides of {strides} for {shape}",
                ),
                (offset >= 0 and (strides is not None or not offset), "an offset without strides"),
            ],
        )


class ConstantOp(Graph.Operation, name="constant"):
    """A constant that no checkpoint holds, such as rope's inverse frequencies.

    %f = "graph.constant"() {sym_name = "inv_freq", value = dense<…> : tensor<32xf32>} : () -> tensor<32xf32>
    """

    sym_name: ir.StringAttr
    value: Any
    result: Result[Tensor]

    @staticmethod
    def verify_region_invariants(op: Any) -> bool:
        """The value has the result's type."""
        op = op.opview if isinstance(op, ir.Operation) else op
        same = op.operation.attributes["value"].type == op.operation.results[0].type
        return first_failure(op, [(same, "value and result differ in type")])


class StateOp(Graph.Operation, name="state"):
    """A named mutable buffer: kv head × position × head size.

    %k = "graph.state"() {sym_name = "k_cache_0"} : () -> tensor<3x2048x64xbf16>
    """

    sym_name: ir.StringAttr
    result: Result[Tensor]

    @staticmethod
    def verify_region_invariants(op: Any) -> bool:
        """States have three dimensions."""
        shape = shape_of(op.operation.results[0])
        return first_failure(
            op, [(len(shape) == 3 and None not in shape, "a state is heads × context × size")]
        )


class EmbeddingOp(Graph.Operation, name="embedding"):
    """Row `token` of the table, times `scale`, for each token.

    table: [vocabulary, hidden]; tokens: [T] i32; result: [T, hidden].
    """

    table: Operand[Tensor]
    tokens: Operand[Tensor]
    scale: ir.FloatAttr
    result: Result[Tensor]

    @staticmethod
    def verify_region_invariants(op: Any) -> bool:
        """The result's rows are the table's."""
        table, _ = (shape_of(v) for v in op.operation.operands)
        out = shape_of(op.operation.results[0])
        return first_failure(
            op, [(len(table) == 2 and out[-1] == table[-1], "result rows are not table rows")]
        )


class RmsNormOp(Graph.Operation, name="rms_norm"):
    """x / sqrt(mean(x²) + eps) · w, or · (1 + w) with `unit_offset`. Source: Zhang, Sennrich 2019.

    x: [T, N]; weight: [D]. D divides N: every run of D values, such as a head, is normalised by itself.
    """

    x: Operand[Tensor]
    weight: Operand[Tensor]
    eps: ir.FloatAttr
    unit_offset: ir.IntegerAttr
    result: Result[Tensor]

    @staticmethod
    def verify_region_invariants(op: Any) -> bool:
        """Sizes agree, eps is not negative."""
        x, weight = (shape_of(v) for v in op.operation.operands)
        return first_failure(
            op,
            [
                (
                    len(weight) == 1 and divides(weight[0], x[-1]),
                    f"weight of {weight} for rows of {x[-1]}",
                ),
                (shape_of(op.operation.results[0]) == x, "result's shape is not x's"),
                (get(op, "eps") >= 0, "eps is negative"),
            ],
        )


class LayerNormOp(Graph.Operation, name="layer_norm"):
    """(x - mean(x)) / sqrt(variance(x) + eps) · w + b. Source: Ba, Kiros, Hinton 2016.

    x: [T, N]; weight, bias: [N].
    """

    x: Operand[Tensor]
    weight: Operand[Tensor]
    bias: Operand[Tensor]
    eps: ir.FloatAttr
    result: Result[Tensor]

    @staticmethod
    def verify_region_invariants(op: Any) -> bool:
        """Sizes agree, eps is not negative."""
        x, weight, bias = (shape_of(v) for v in op.operation.operands)
        return first_failure(
            op,
            [
                (weight == bias == x[1:], f"weight of {weight}, bias of {bias} for {x[-1]}"),
                (shape_of(op.operation.results[0]) == x, "result's shape is not x's"),
                (get(op, "eps") >= 0, "eps is negative"),
            ],
        )


class LinearOp(Graph.Operation, name="linear"):
    """x · weightᵀ (+ bias).

    x: [T, K]; weight: [N, K], or a view of more dimensions whose leading ones are N flattened; bias: N values,
    optional; result: [T, N].
    """

    x: Operand[Tensor]
    weight: Operand[Tensor]
    bias: Operand[Tensor] | None
    result: Result[Tensor]

    @staticmethod
    def verify_region_invariants(op: Any) -> bool:
        """K of both, N of weight, bias and result."""
        x, weight, *bias = (shape_of(v) for v in op.operation.operands)
        out = shape_of(op.operation.results[0])
        rows = prod(size or 0 for size in weight[:-1])
        return first_failure(
            op,
            [
                (
                    len(weight) >= 2 and weight[-1] == x[-1],
                    f"x of {x} against weight of {weight}",
                ),
                (out[-1] == rows, f"result of {out} from weight of {weight}"),
                (
                    all(prod(size or 0 for size in b) == rows for b in bias),
                    f"bias of {bias} for {rows} rows",
                ),
            ],
        )


class GroupedLinearOp(Graph.Operation, name="grouped_linear"):
    """Part g of x, of K values, times weight[g]ᵀ, for each g of G: such as a matrix for every head.

    x: [T, G·K]; weight: [G, N, K]; result: [T, G·N].
    """

    x: Operand[Tensor]
    weight: Operand[Tensor]
    result: Result[Tensor]

    @staticmethod
    def verify_region_invariants(op: Any) -> bool:
        """Groups and sizes agree."""
        x, weight = (shape_of(v) for v in op.operation.operands)
        out = shape_of(op.operation.results[0])
        fits = len(weight) == 3 and x[-1] == weight[0] * weight[2]
        return first_failure(
            op,
            [
                (fits, f"x of {x} against weight of {weight}"),
                (fits and out[-1] == weight[0] * weight[1], f"result of {out} from {weight}"),
            ],
        )


class RopeOp(Graph.Operation, name="rope"):
    """Rotary position embedding of every head. Source: Su et al. 2021.

    x: [T, heads·head_size]; positions: [T] i32; inv_freq: [n] f32, in 1/position. Of each head the 2n values from
    `offset` on (0 if absent) turn, the others pass. cos and sin are multiplied by `scale`. style "half" pairs i with
    i + n, "interleaved" 2i with 2i+1; "split" pairs as the latter and writes as the former.
    """

    x: Operand[Tensor]
    positions: Operand[Tensor]
    inv_freq: Operand[Tensor]
    head_size: ir.IntegerAttr
    scale: ir.FloatAttr
    style: ir.StringAttr
    result: Result[Tensor]

    @staticmethod
    def verify_region_invariants(op: Any) -> bool:
        """Heads divide the row; one frequency a pair."""
        x, _, frequencies = (shape_of(v) for v in op.operation.operands)
        size, offset = get(op, "head_size"), get(op, "offset", 0)
        fits = len(frequencies) == 1 and 0 <= offset <= size - 2 * frequencies[0]
        return first_failure(
            op,
            [
                (divides(size, x[-1]), f"rows of {x[-1]} are no heads of {size}"),
                (fits, f"{frequencies} frequencies from {offset} on for head size {size}"),
                (
                    get(op, "style") in ("half", "interleaved", "split"),
                    "style is half, interleaved or split",
                ),
            ],
        )


class AppendOp(Graph.Operation, name="append"):
    """The state after [h, position, offset : offset + n] has been set to x[h·n : (h+1)·n].

    state: [heads, context, size]; x: [T, heads·n]; positions: [T] i32. `offset` is 0 if absent.
    """

    state: Operand[Tensor]
    x: Operand[Tensor]
    positions: Operand[Tensor]
    result: Result[Tensor]

    @staticmethod
    def verify_region_invariants(op: Any) -> bool:
        """x holds a row, or a part of one, of every head."""
        state, x, _ = (shape_of(v) for v in op.operation.operands)
        offset = get(op, "offset", 0)
        fits = divides(state[0], x[-1]) and 0 <= offset <= state[2] - x[-1] // state[0]
        return first_failure(
            op,
            [
                (fits, f"x of {x} at {offset} for a state of {state}"),
                (shape_of(op.operation.results[0]) == state, "result's shape is not the state's"),
            ],
        )


class AttentionOp(Graph.Operation, name="attention"):
    """softmax(q·kᵀ·scale) · v over positions ≤ the token's own, grouped queries sharing a kv head.

    q: [T, heads·head_size]; k, v: states after append; indices: [T, k] i32, optional: only these positions, -1 is
    none. window > 0 keeps the last `window` positions; softcap > 0 replaces a score s by softcap·tanh(s / softcap).
    """

    q: Operand[Tensor]
    k: Operand[Tensor]
    v: Operand[Tensor]
    positions: Operand[Tensor]
    indices: Operand[Tensor] | None
    heads: ir.IntegerAttr
    kv_heads: ir.IntegerAttr
    head_size: ir.IntegerAttr
    scale: ir.FloatAttr
    window: ir.IntegerAttr
    softcap: ir.FloatAttr
    result: Result[Tensor]

    @staticmethod
    def verify_region_invariants(op: Any) -> bool:
        """Heads, head size and states fit."""
        q, k, v = (shape_of(o) for o in list(op.operation.operands)[:3])
        heads, kv, size = (get(op, n) for n in ("heads", "kv_heads", "head_size"))
        return first_failure(
            op,
            [
                (divides(kv, heads), f"{heads} heads cannot share {kv} kv heads"),
                (q[-1] == heads * size, f"q of {q} is not {heads} heads of {size}"),
                ((k[0], k[2]) == (kv, size), f"k state of {k} is not {kv} heads of {size}"),
                (k == v, f"k state of {k} and v state of {v} differ"),
                (get(op, "window") >= 0, "window is negative"),
            ],
        )


def _latents(op: Any, q_size: int) -> list[tuple[bool, str]]:
    """What attention over latents needs; q_size: values of a head of q."""
    q, turned, state = (shape_of(o) for o in list(op.operation.operands)[:3])
    heads, rope, latent = (get(op, n) for n in ("heads", "rope_size", "latent_size"))
    return [
        (q[-1] == heads * q_size, f"q of {q} is not {heads} heads of {q_size}"),
        (turned[-1] == heads * rope, f"q_rope of {turned} is not {heads} heads of {rope}"),
        (
            (state[0], state[2]) == (1, latent + rope),
            f"state of {state} is not one head of {latent} + {rope}",
        ),
    ]


class MlaAttentionOp(Graph.Operation, name="mla_attention"):
    """Attention over compressed keys and values, as exported. Source: DeepSeek-V2, 2024.

    A row of the state is a latent of R values and a roped key that all heads share. Head h's key at a position is
    (weight[h, :nope] · latent, roped key), its value weight[h, nope:] · latent; queries are (q, q_rope).
    softmax(scores · scale) over positions ≤ the token's own, only `indices` ([T, k] i32, -1 is none) if given.

    q: [T, heads·nope_size]; q_rope: [T, heads·rope_size]; latents: state [1, context, latent_size + rope_size];
    weight: [heads, nope_size + value_size, latent_size]; result: [T, heads·value_size].
    """

    q: Operand[Tensor]
    q_rope: Operand[Tensor]
    latents: Operand[Tensor]
    weight: Operand[Tensor]
    positions: Operand[Tensor]
    indices: Operand[Tensor] | None
    heads: ir.IntegerAttr
    nope_size: ir.IntegerAttr
    rope_size: ir.IntegerAttr
    value_size: ir.IntegerAttr
    latent_size: ir.IntegerAttr
    scale: ir.FloatAttr
    result: Result[Tensor]

    @staticmethod
    def verify_region_invariants(op: Any) -> bool:
        """Heads, sizes, state and weight fit."""
        heads, nope, value, latent = (
            get(op, n) for n in ("heads", "nope_size", "value_size", "latent_size")
        )
        weight = shape_of(op.operation.operands[3])
        out = shape_of(op.operation.results[0])
        return first_failure(
            op,
            [
                *_latents(op, nope),
                (
                    weight == [heads, nope + value, latent],
                    f"weight of {weight} is not {heads} × ({nope} + {value}) × {latent}",
                ),
                (out[-1] == heads * value, f"result of {out} is not {heads} heads of {value}"),
            ],
        )


class LatentAttentionOp(Graph.Operation, name="latent_attention"):
    """Attention whose keys are whole rows of a state, and values the first latent_size values of a row.

    softmax((q, q_rope) · row · scale) over positions ≤ the token's own, only `indices` ([T, k] i32, -1 is none) if
    given. All heads share the rows.

    q: [T, heads·latent_size]; q_rope: [T, heads·rope_size]; latents: state [1, context, latent_size + rope_size];
    result: [T, heads·latent_size].
    """

    q: Operand[Tensor]
    q_rope: Operand[Tensor]
    latents: Operand[Tensor]
    positions: Operand[Tensor]
    indices: Operand[Tensor] | None
    heads: ir.IntegerAttr
    latent_size: ir.IntegerAttr
    rope_size: ir.IntegerAttr
    scale: ir.FloatAttr
    result: Result[Tensor]

    @staticmethod
    def verify_region_invariants(op: Any) -> bool:
        """Heads, sizes and state fit."""
        q, out = shape_of(op.operation.operands[0]), shape_of(op.operation.results[0])
        checks = _latents(op, get(op, "latent_size"))
        return first_failure(op, [*checks, (q == out, f"q of {q}, result of {out}")])


class IndexScoresOp(Graph.Operation, name="index_scores"):
    """How much a token wants each position: Σ over heads h of weights[h] · relu(scale · q_h · key).

    Source: DeepSeek-V3.2, 2025. Scores of positions above the token's own are not defined.

    q: [T, heads·head_size]; weights: [T, heads]; keys: state [1, context, head_size]; result: [T, context] f32.
    """

    q: Operand[Tensor]
    weights: Operand[Tensor]
    keys: Operand[Tensor]
    positions: Operand[Tensor]
    heads: ir.IntegerAttr
    head_size: ir.IntegerAttr
    scale: ir.FloatAttr
    result: Result[Tensor]

    @staticmethod
    def verify_region_invariants(op: Any) -> bool:
        """Heads and the state fit."""
        q, weights, keys, _ = (shape_of(o) for o in op.operation.operands)
        heads, size = get(op, "heads"), get(op, "head_size")
        out = op.operation.results[0]
        return first_failure(
            op,
            [
                (q[-1] == heads * size, f"q of {q} is not {heads} heads of {size}"),
                (weights[-1] == heads, f"weights of {weights} for {heads} heads"),
                ((keys[0], keys[2]) == (1, size), f"state of {keys} is not one head of {size}"),
                (
                    shape_of(out)[-1] == keys[1] and element_of(out) == "f32",
                    f"result of {out.type} is no f32 score of {keys[1]} positions",
                ),
            ],
        )


class TopKOp(Graph.Operation, name="top_k"):
    """The k positions ≤ the token's own with the largest scores, ascending; -1 behind them if there are fewer.

    Ties go to the lowest position. scores: [T, context] f32; positions: [T] i32; result: [T, k] i32.
    """

    scores: Operand[Tensor]
    positions: Operand[Tensor]
    k: ir.IntegerAttr
    result: Result[Tensor]

    @staticmethod
    def verify_region_invariants(op: Any) -> bool:
        """k is what the result has."""
        k, out = get(op, "k"), op.operation.results[0]
        context = shape_of(op.operation.operands[0])[-1]
        return first_failure(
            op,
            [
                (0 < k <= context, f"k of {k} for {context} positions"),
                (
                    shape_of(out)[1:] == [k] and element_of(out) == "i32",
                    f"result of {out.type} is no {k} positions",
                ),
            ],
        )


class RouterOp(Graph.Operation, name="router"):
    """The k experts of each token, best first, and the weights of what they make. Ties go to the lowest expert.

    kind "softmax": the largest probabilities (the largest logits), which are the weights. "sigmoid": scores are
    sigmoid(logits); the choice is by score + bias, within the `top_groups` groups (of `groups` equal ones) whose two
    best choices have the largest sums, where other experts count as `fill` (f64, 0.0 if absent); weights are the
    scores without bias. With `normalize` weights are divided by their sum + 1e-20. Then they are multiplied by `scale`.

    logits: [T, experts]; bias: [experts], optional; indices: [T, k] i32; weights: [T, k] f32.
    """

    logits: Operand[Tensor]
    bias: Operand[Tensor] | None
    kind: ir.StringAttr
    k: ir.IntegerAttr
    groups: ir.IntegerAttr
    top_groups: ir.IntegerAttr
    normalize: ir.IntegerAttr
    scale: ir.FloatAttr
    indices: Result[Tensor]
    weights: Result[Tensor]

    @staticmethod
    def verify_region_invariants(op: Any) -> bool:
        """A known kind; groups and k fit the experts."""
        logits, *bias = (shape_of(v) for v in op.operation.operands)
        k, groups, top = (get(op, n) for n in ("k", "groups", "top_groups"))
        experts, kind = logits[-1], get(op, "kind")
        even = 0 < top <= groups and divides(groups, experts)
        return first_failure(
            op,
            [
                (kind in ("softmax", "sigmoid"), "kind is softmax or sigmoid"),
                (0 < k <= experts, f"{k} of {experts} experts"),
                (even, f"{top} of {groups} groups of {experts} experts"),
                (groups <= 1 or experts // groups > 1, "a group has two experts or more"),
                (kind == "sigmoid" or groups == 1, "groups are for sigmoid"),
                (all(b == [experts] for b in bias), f"bias of {bias} for {experts} experts"),
                (kind == "sigmoid" or not bias, "a bias is for sigmoid"),
                (
                    all(shape_of(r)[1:] == [k] for r in op.operation.results),
                    f"results are {k} experts and weights",
                ),
            ],
        )


class ExpertLinearOp(Graph.Operation, name="expert_linear"):
    """For each of a token's k experts e: x · weight[e]ᵀ, one result behind the other.

    x: [T, K], the same for all, or [T, k·K], a part for each; indices: [T, k] i32; weight: [experts, N, K];
    result: [T, k·N].
    """

    x: Operand[Tensor]
    indices: Operand[Tensor]
    weight: Operand[Tensor]
    result: Result[Tensor]

    @staticmethod
    def verify_region_invariants(op: Any) -> bool:
        """Sizes agree."""
        x, indices, weight = (shape_of(v) for v in op.operation.operands)
        out = shape_of(op.operation.results[0])
        fits = len(weight) == 3 and x[-1] in (weight[2], indices[-1] * weight[2])
        return first_failure(
            op,
            [
                (fits, f"x of {x} against weight of {weight}"),
                (fits and out[-1] == indices[-1] * weight[1], f"result of {out} from {weight}"),
            ],
        )


class WeightedSumOp(Graph.Operation, name="weighted_sum"):
    """Σ over j, ascending, of weights[j] · part j of x.

    x: [T, k·N]; weights: [T, k] f32; result: [T, N].
    """

    x: Operand[Tensor]
    weights: Operand[Tensor]
    result: Result[Tensor]

    @staticmethod
    def verify_region_invariants(op: Any) -> bool:
        """x holds a part for each weight."""
        x, weights = (shape_of(v) for v in op.operation.operands)
        out = shape_of(op.operation.results[0])
        fits = x[-1] == weights[-1] * out[-1]
        return first_failure(op, [(fits, f"{weights} weights of {x} for a result of {out}")])


class GluOp(Graph.Operation, name="glu"):
    """activation(gate) · up. Source: Shazeer 2020."""

    gate: Operand[Tensor]
    up: Operand[Tensor]
    activation: ir.StringAttr
    result: Result[Tensor]

    @staticmethod
    def verify_region_invariants(op: Any) -> bool:
        """A known activation on equal shapes."""
        gate, up = (shape_of(v) for v in op.operation.operands)
        return first_failure(op, [(gate == up, "gate and up differ"), known_activation(op)])


def known_activation(op: Any) -> tuple[bool, str]:
    """Whether an operation's activation is one of ours, and what to say if not. Shared with the tile dialect."""
    return get(op, "activation") in ACTIVATIONS, f"activation is {', '.join(ACTIVATIONS)}"


class ActivateOp(Graph.Operation, name="activate"):
    """activation(x) of every value: "silu", "gelu_tanh", "gelu" (by erf) or "relu".

    x: [T, N]; result: x's type.

    %a = "graph.activate"(%x) {activation = "gelu_tanh"} : (tensor<?x96xf32>) -> tensor<?x96xf32>
    """

    x: Operand[Tensor]
    activation: ir.StringAttr
    result: Result[Tensor]

    @staticmethod
    def verify_region_invariants(op: Any) -> bool:
        """A known activation, x's shape."""
        return first_failure(op, [known_activation(op), _same_shape(op)])


class ScaleOp(Graph.Operation, name="scale"):
    """factor · x, of every value.

    x: [T, N]; result: x's type.

    %y = "graph.scale"(%x) {factor = 0.22 : f64} : (tensor<?x64xf32>) -> tensor<?x64xf32>
    """

    x: Operand[Tensor]
    factor: ir.FloatAttr
    result: Result[Tensor]

    @staticmethod
    def verify_region_invariants(op: Any) -> bool:
        """x's shape."""
        return first_failure(op, [_same_shape(op)])


class SoftcapOp(Graph.Operation, name="softcap"):
    """cap · tanh(x / cap), of every value. Source: Gemma 2, 2024.

    x: [T, N]; result: x's type.

    %y = "graph.softcap"(%x) {cap = 30.0 : f64} : (tensor<?x128xf32>) -> tensor<?x128xf32>
    """

    x: Operand[Tensor]
    cap: ir.FloatAttr
    result: Result[Tensor]

    @staticmethod
    def verify_region_invariants(op: Any) -> bool:
        """x's shape, a positive cap."""
        return first_failure(op, [_same_shape(op), (get(op, "cap") > 0, "cap is not positive")])


def _same_shape(op: Any) -> tuple[bool, str]:
    x, out = op.operation.operands[0], op.operation.results[0]
    return shape_of(out) == shape_of(x), "result's shape is not x's"


class AddOp(Graph.Operation, name="add"):
    """a + b, both [T, N]."""

    a: Operand[Tensor]
    b: Operand[Tensor]
    result: Result[Tensor]

    @staticmethod
    def verify_region_invariants(op: Any) -> bool:
        """Equal shapes."""
        a, b = (shape_of(v) for v in op.operation.operands)
        return first_failure(op, [(a == b, f"{a} + {b}")])


class SampleOp(Graph.Operation, name="sample"):
    """The next token of each row of logits; ties go to the lowest index.

    logits: [T, vocabulary]; result: [T] i32.
    """

    logits: Operand[Tensor]
    kind: ir.StringAttr
    result: Result[Tensor]

    @staticmethod
    def verify_region_invariants(op: Any) -> bool:
        """A known kind."""
        return first_failure(op, [(get(op, "kind") == "argmax", "kind is argmax")])
