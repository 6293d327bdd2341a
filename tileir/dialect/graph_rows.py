"""Operations of each row by itself: norms, rotation, elementwise, the next token."""

from typing import Any

from tileir.dialect.attributes import divides, first_failure, get, shape_of
from tileir.dialect.graph import Graph, Operand, Result, Tensor
from tileir.mlir import ir

ACTIVATIONS = ("silu", "gelu_tanh", "gelu", "relu")


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
