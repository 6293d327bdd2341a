"""Operations of map bodies: the values of a row."""

from tileir.dialect.tile import Operand, Result, Tensor, Tile
from tileir.mlir import ir


class LookupOp(Tile.Operation, name="lookup"):
    """Map: the token's row of a table, times `scale`. of: "step", or "choice" for the token just chosen."""

    table: Operand[Tensor]
    scale: ir.FloatAttr
    result: Result[ir.F32Type]


class CombineOp(Tile.Operation, name="combine"):
    """Map: attention's output of head `row` from all splits' partial results, unless one split has finished alone."""

    partial: Operand[Tensor]
    result: Result[ir.F32Type]


class LoadOp(Tile.Operation, name="load"):
    """Map: values offset + row·size … + size of a channel."""

    channel: Operand[Tensor]
    offset: ir.IntegerAttr
    size: ir.IntegerAttr
    result: Result[ir.F32Type]


class SumOp(Tile.Operation, name="sum"):
    """Map: Σ over the parts p, ascending, of values row·size … + size of a channel [T, parts, N] f32."""

    parts: Operand[Tensor]
    size: ir.IntegerAttr
    result: Result[ir.F32Type]


class PlusOp(Tile.Operation, name="plus"):
    """Map: a + b."""

    a: Operand[ir.F32Type]
    b: Operand[ir.F32Type]
    result: Result[ir.F32Type]


class LayerNormOp(Tile.Operation, name="layer_norm"):
    """Map: (v − mean) / sqrt(variance + eps) · weight + bias, over the row."""

    v: Operand[ir.F32Type]
    weight: Operand[Tensor]
    bias: Operand[Tensor]
    eps: ir.FloatAttr
    result: Result[ir.F32Type]


class RotateOp(Tile.Operation, name="rotate"):
    """Map: rotary embedding of the row's values from `first` on. style "half", "interleaved" or "split"."""

    v: Operand[ir.F32Type]
    table: Operand[Tensor]
    first: ir.IntegerAttr
    style: ir.StringAttr
    result: Result[ir.F32Type]


class StoreOp(Tile.Operation, name="store"):
    """Map: into values `offset` … of head `row` of a state, at the token's position."""

    v: Operand[ir.F32Type]
    state: Operand[Tensor]
    offset: ir.IntegerAttr
