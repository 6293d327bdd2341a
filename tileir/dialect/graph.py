"""The graph dialect: whole tensors, SSA, no layout, no device.

Values are `tensor<?xN>`: T rows (tokens of the step) of N values. A state is read through the result of `append`.
"""

from math import prod
from typing import Any

from tileir.dialect.attributes import first_failure, get, shape_of
from tileir.mlir import ext, ir

Tensor = ir.RankedTensorType
Operand = ext.Operand
Result = ext.Result


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
