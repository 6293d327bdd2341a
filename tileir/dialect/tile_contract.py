"""Operations inside a contract's regions: scalars of one element, the index implied by the tile."""

from collections.abc import Sequence
from typing import Any

from tileir.dialect.attributes import first_failure, get, shape_of
from tileir.dialect.graph_rows import known_activation
from tileir.dialect.tile import TILE_ROWS, Operand, Result, Tensor, Tile
from tileir.mlir import ir


def _based(op: Any) -> tuple[bool, str]:
    values, bases = len(op.operation.operands) - 1, get(op, "bases")
    fits = values == len(bases) == len(op.operation.results)
    return fits, f"{len(bases)} bases for {values} values"


class RmsNormOp(Tile.Operation, name="rms_norm"):
    """v · weight (or · (1 + weight)) · rsqrt(mean(v²) + eps), over the channel, in a map over the row.

    In a prologue v · weight is rounded and the accumulators get the factor.
    """

    v: Operand[ir.F32Type]
    weight: Operand[Tensor]
    eps: ir.FloatAttr
    unit_offset: ir.IntegerAttr
    result: Result[ir.F32Type]


class BiasOp(Tile.Operation, name="bias"):
    """Epilogue: adds a buffer's values at `bases`, to both halves, or to one (a gate, or its up, alone)."""

    values: Sequence[Operand[ir.F32Type]]
    bias: Operand[Tensor]
    bases: Any
    results: Sequence[Result[ir.F32Type]]

    @staticmethod
    def verify_region_invariants(op: Any) -> bool:
        """A base and a result for each value."""
        return first_failure(op, [_based(op)])


class JoinOp(Tile.Operation, name="join"):
    """Epilogue: lo + hi, where a tile's halves are the same rows, and each has met its part of K."""

    lo: Operand[ir.F32Type]
    hi: Operand[ir.F32Type]
    result: Result[ir.F32Type]


class ResidualOp(Tile.Operation, name="residual"):
    """Epilogue: adds a channel's values of this step at `bases`, to both halves or to what joined them."""

    values: Sequence[Operand[ir.F32Type]]
    channel: Operand[Tensor]
    bases: Any
    results: Sequence[Result[ir.F32Type]]

    @staticmethod
    def verify_region_invariants(op: Any) -> bool:
        """A base and a result for each value."""
        return first_failure(op, [_based(op)])


class RopeOp(Tile.Operation, name="rope"):
    """Epilogue: rotates (lo, hi) by the angle of the token's position, from a rope table; `first` of a head on.

    Below 0, a segment begins so many values behind the first that is rotated.
    """

    lo: Operand[ir.F32Type]
    hi: Operand[ir.F32Type]
    table: Operand[Tensor]
    head_size: ir.IntegerAttr
    style: ir.StringAttr
    out_lo: Result[ir.F32Type]
    out_hi: Result[ir.F32Type]

    @staticmethod
    def verify_region_invariants(op: Any) -> bool:
        """Halves hold a pair each: the style is "half"."""
        turned = 2 * (shape_of(op.operation.operands[2])[1] or 0)
        first, size = get(op, "first", 0), get(op, "head_size")
        return first_failure(
            op,
            [
                (get(op, "style") == "half", 'style is "half"'),
                (turned % TILE_ROWS == 0, f"{turned} turned values are no multiple of {TILE_ROWS}"),
                (-size < first <= size - turned, f"values {first} … + {turned} of heads of {size}"),
            ],
        )


class GluOp(Tile.Operation, name="glu"):
    """Epilogue: activation(lo) · hi."""

    lo: Operand[ir.F32Type]
    hi: Operand[ir.F32Type]
    activation: ir.StringAttr
    result: Result[ir.F32Type]

    @staticmethod
    def verify_region_invariants(op: Any) -> bool:
        """A known activation."""
        return first_failure(op, [known_activation(op)])


class ActivateOp(Tile.Operation, name="activate"):
    """Epilogue: activation(v), without a gate."""

    lo: Operand[ir.F32Type]
    hi: Operand[ir.F32Type]
    activation: ir.StringAttr
    out_lo: Result[ir.F32Type]
    out_hi: Result[ir.F32Type]

    @staticmethod
    def verify_region_invariants(op: Any) -> bool:
        """A known activation."""
        return first_failure(op, [known_activation(op)])


class ScaleOp(Tile.Operation, name="scale"):
    """Epilogue: factor · v."""

    lo: Operand[ir.F32Type]
    hi: Operand[ir.F32Type]
    factor: ir.FloatAttr
    out_lo: Result[ir.F32Type]
    out_hi: Result[ir.F32Type]


class SoftcapOp(Tile.Operation, name="softcap"):
    """Epilogue: cap · tanh(v / cap)."""

    lo: Operand[ir.F32Type]
    hi: Operand[ir.F32Type]
    cap: ir.FloatAttr
    out_lo: Result[ir.F32Type]
    out_hi: Result[ir.F32Type]

    @staticmethod
    def verify_region_invariants(op: Any) -> bool:
        """A positive cap."""
        return first_failure(op, [(get(op, "cap") > 0, "cap is not positive")])


class AppendOp(Tile.Operation, name="append"):
    """Epilogue: writes the values into a state's row of the step's position; `bases` index [head · size + i]."""

    values: Sequence[Operand[ir.F32Type]]
    state: Operand[Tensor]
    bases: Any


class PublishOp(Tile.Operation, name="publish"):
    """Epilogue: sends the values to `bases` of the stage's channel."""

    values: Sequence[Operand[ir.F32Type]]
    bases: Any


class LogitsOp(Tile.Operation, name="logits"):
    """Epilogue: writes the values to `bases` of the step's logits, if the launch asks for them."""

    values: Sequence[Operand[ir.F32Type]]
    bases: Any


class CandidateOp(Tile.Operation, name="candidate"):
    """Epilogue: keeps the SM's largest value and its index; the stage's channel gets one record an SM."""

    values: Sequence[Operand[ir.F32Type]]
    bases: Any


class SigmoidOp(Tile.Operation, name="sigmoid"):
    """Epilogue: 1 / (1 + exp(−v))."""

    lo: Operand[ir.F32Type]
    hi: Operand[ir.F32Type]
    out_lo: Result[ir.F32Type]
    out_hi: Result[ir.F32Type]


class WeighOp(Tile.Operation, name="weigh"):
    """Epilogue of experts: times the weight that routing gave the slot."""

    lo: Operand[ir.F32Type]
    hi: Operand[ir.F32Type]
    routing: Operand[Tensor]
    out_lo: Result[ir.F32Type]
    out_hi: Result[ir.F32Type]


class ReluSumOp(Tile.Operation, name="relu_sum"):
    """Epilogue of a state's rows: Σ over heads h, ascending, of weights[offset + h]·relu(scale·v_h)."""

    lo: Operand[ir.F32Type]
    hi: Operand[ir.F32Type]
    weights: Operand[Tensor]
    scale: ir.FloatAttr
    offset: ir.IntegerAttr
    out_lo: Result[ir.F32Type]
    out_hi: Result[ir.F32Type]


class ExpertsOp(Tile.Operation, name="experts"):
    """Prologue: the weights are those of the experts that routing [T, k, 2] chose."""

    routing: Operand[Tensor]


class RowsOp(Tile.Operation, name="rows"):
    """Prologue: the weights are rows of a state [1, rows, k], the step's own from values `offset` on of a channel."""

    state: Operand[Tensor]
    own: Operand[Tensor]
    offset: ir.IntegerAttr
