"""The stage of attention, and what its region says to gather."""

from typing import Any

from tileir.dialect.attributes import divides, first_failure, get, name_of, shape_of
from tileir.dialect.tile import Operand, Result, Tensor, Tile
from tileir.mlir import ext, ir


class AttendOp(Tile.Operation, name="attend"):
    """Online-softmax attention of the step's queries over old rows of states and the step's own rows.

    k: state; v: state, absent if values are the first `value_size` of a key row. The region says what a task gathers:
    tile.query, tile.key, tile.value, tile.gather. Tasks are (group of query heads, split).
    result: channel [T, heads, splits, value_size + 2] f32: the unnormalised sum, the maximum, the sum of weights.
    """

    k: Operand[Tensor]
    v: Operand[Tensor] | None
    heads: ir.IntegerAttr
    kv_heads: ir.IntegerAttr
    groups: ir.IntegerAttr
    head_size: ir.IntegerAttr
    value_size: ir.IntegerAttr
    scale: ir.FloatAttr
    window: ir.IntegerAttr
    softcap: ir.FloatAttr
    splits: ir.IntegerAttr
    result: Result[Tensor]
    gathers: ext.Region

    @staticmethod
    def verify_region_invariants(op: Any) -> bool:
        """Heads fit the states; the result has one partial a head and split."""
        return attend_shapes(op, op.operation.operands, shape_of(op.operation.results[0])[1:])


PIECES = ("tile.query", "tile.key", "tile.value")
# What may be done to a query's or a key's row before attention takes it.
ON_PIECES = ("tile.rms_norm", "tile.rotate", "tile.store")


def attend_shapes(op: Any, states: Any, partial: list[int | None]) -> bool:
    """Heads fit the states, pieces the head; a partial of `partial` values a token. Shared with engine.attend."""
    k, *v = (shape_of(o) for o in states)
    heads, kv, groups = (get(op, n) for n in ("heads", "kv_heads", "groups"))
    size, value, splits = (get(op, n) for n in ("head_size", "value_size", "splits"))
    pieces = dict.fromkeys(PIECES, 0)
    for inner in op.operation.regions[0].blocks[0]:
        if name_of(inner) in pieces:
            pieces[name_of(inner)] += get(inner, "size")
    wanted = {"tile.query": size, "tile.key": size, "tile.value": value if v else 0}
    made = [name_of(o) for o in op.operation.regions[0].blocks[0] if o.operation.operands]
    known = (*PIECES, *ON_PIECES, "tile.gather", "tile.finish")
    other = [name for name in made if name not in known]
    return first_failure(
        op,
        [
            (divides(kv, heads), f"{heads} heads cannot share {kv} kv heads"),
            (divides(kv, groups) and divides(groups, heads), f"{groups} groups of {heads} heads"),
            (splits >= 1, "splits is at least 1"),
            ((k[0], k[2]) == (kv, size), f"k state of {k} for {kv} kv heads of {size}"),
            (all((s[0], s[2]) == (kv, value) for s in v), f"v state of {v} for values of {value}"),
            (value <= size or bool(v), f"values of {value} in keys of {size}"),
            (partial == [heads, splits, value + 2], f"partial of {partial}"),
            (pieces == wanted, f"pieces of {pieces} for {wanted}"),
            (not other, f"{', '.join(other)} on a piece: {', '.join(ON_PIECES)} are possible"),
        ],
    )


class QueryOp(Tile.Operation, name="query"):
    """Attend: values offset + head·stride … + size of a channel are the next of the head's query.

    With a result, statements of a map's row may follow on it, as they may on a tile.key: tile.rms_norm, tile.rotate
    and tile.store, each on what the one before made. Attention takes the last; a store is the kv head's first task's.
    """

    channel: Operand[Tensor]
    offset: ir.IntegerAttr
    stride: ir.IntegerAttr
    size: ir.IntegerAttr
    result: Result[ir.F32Type] | None


class KeyOp(Tile.Operation, name="key"):
    """Attend: the next values of the step's own key row of a kv head; with a result as tile.query."""

    channel: Operand[Tensor]
    offset: ir.IntegerAttr
    stride: ir.IntegerAttr
    size: ir.IntegerAttr
    result: Result[ir.F32Type] | None


def statements_on(piece: Any) -> list[Any]:
    """What is done to a piece of attention before it is taken, in order: statements on its value, then on theirs."""
    found, values = [], list(piece.operation.results)
    for op in piece.operation.block:
        if op.operation.operands and op.operation.operands[0] in values:
            found.append(op)
            values += op.operation.results
    return found


class ValueOp(Tile.Operation, name="value"):
    """Attend: the next values of the step's own value row of a kv head."""

    channel: Operand[Tensor]
    offset: ir.IntegerAttr
    stride: ir.IntegerAttr
    size: ir.IntegerAttr


class GatherOp(Tile.Operation, name="gather"):
    """Attend: only the positions listed in a channel [T, k] i32, ascending, −1 for none."""

    indices: Operand[Tensor]


class FinishOp(Tile.Operation, name="finish"):
    """Attend: the channel of the combine, which a split that has all old rows fills itself, its result normalised."""

    channel: Operand[Tensor]
