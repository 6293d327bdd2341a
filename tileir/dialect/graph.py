"""The graph dialect: whole tensors, SSA, no layout, no device.

Values are `tensor<?xN>`: T rows (tokens of the step) of N values. A state is read through the result of `append`.
"""

from typing import Any

from tileir.dialect.attributes import first_failure, get, shape_of
from tileir.mlir import ext, ir

Tensor = ir.RankedTensorType
Operand = ext.Operand
Result = ext.Result


class Graph(ext.Dialect, name="graph"):
    """Whole-tensor operations of a decode step."""


class WeightOp(Graph.Operation, name="weight"):
    """A parameter by its state-dict name.

    %w = "graph.weight"() {sym_name = "model.norm.weight"} : () -> tensor<576xbf16>
    """

    sym_name: ir.StringAttr
    result: Result[Tensor]


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

    x: [T, N]; weight: [N].
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
                (weight == [x[-1]], f"weight of {weight} for rows of {x[-1]}"),
                (shape_of(op.operation.results[0]) == x, "result's shape is not x's"),
                (get(op, "eps") >= 0, "eps is negative"),
            ],
        )


class LinearOp(Graph.Operation, name="linear"):
    """x · weightᵀ (+ bias).

    x: [T, K]; weight: [N, K]; bias: [N], optional; result: [T, N].
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
        return first_failure(
            op,
            [
                (len(weight) == 2 and weight[1] == x[-1], f"x of {x} against weight of {weight}"),
                (out[-1] == weight[0], f"result of {out} from weight of {weight}"),
                (all(b == [weight[0]] for b in bias), f"bias of {bias} for {weight[0]} rows"),
            ],
        )


class RopeOp(Graph.Operation, name="rope"):
    """Rotary position embedding of every head. Source: Su et al. 2021.

    x: [T, heads·head_size]; positions: [T] i32; inv_freq: [head_size / 2] f32, in 1/position.
    cos and sin are multiplied by `scale`. style "half" pairs i with i + head_size/2, "interleaved" 2i with 2i+1.
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
        size = get(op, "head_size")
        return first_failure(
            op,
            [
                (size > 0 and x[-1] % size == 0, f"rows of {x[-1]} are no heads of {size}"),
                (frequencies == [size // 2], f"{frequencies} frequencies for head size {size}"),
                (get(op, "style") in ("half", "interleaved"), "style is half or interleaved"),
            ],
        )


class AppendOp(Graph.Operation, name="append"):
    """The state after row [h, position] has been set to x[h·size : (h+1)·size].

    state: [heads, context, size]; x: [T, heads·size]; positions: [T] i32.
    """

    state: Operand[Tensor]
    x: Operand[Tensor]
    positions: Operand[Tensor]
    result: Result[Tensor]

    @staticmethod
    def verify_region_invariants(op: Any) -> bool:
        """x holds one row of every head."""
        state, x, _ = (shape_of(v) for v in op.operation.operands)
        return first_failure(
            op,
            [
                (x[-1] == state[0] * state[2], f"x of {x} for a state of {state}"),
                (shape_of(op.operation.results[0]) == state, "result's shape is not the state's"),
            ],
        )


class AttentionOp(Graph.Operation, name="attention"):
    """softmax(q·kᵀ·scale) · v over positions ≤ the token's own, grouped queries sharing a kv head.

    q: [T, heads·head_size]; k, v: states after append. window > 0 keeps the last `window` positions; softcap > 0
    replaces a score s by softcap·tanh(s / softcap).
    """

    q: Operand[Tensor]
    k: Operand[Tensor]
    v: Operand[Tensor]
    positions: Operand[Tensor]
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
        q, k, v, _ = (shape_of(o) for o in op.operation.operands)
        heads, kv, size = (get(op, n) for n in ("heads", "kv_heads", "head_size"))
        return first_failure(
            op,
            [
                (kv > 0 and heads % kv == 0, f"{heads} heads cannot share {kv} kv heads"),
                (q[-1] == heads * size, f"q of {q} is not {heads} heads of {size}"),
                ((k[0], k[2]) == (kv, size), f"k state of {k} is not {kv} heads of {size}"),
                (k == v, f"k state of {k} and v state of {v} differ"),
                (get(op, "window") >= 0, "window is negative"),
            ],
        )


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
        known = get(op, "activation") in ("silu", "gelu_tanh")
        return first_failure(
            op, [(gate == up, "gate and up differ"), (known, "activation is silu or gelu_tanh")]
        )


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
