"""The tile dialect: stages over tile spaces, what one tile reads, computes and writes.

Channels carry values between SMs; weights are streamed; buffers and states are addressed. docs/ir.md has the meaning
of a tile, of a segment's rows and of every region operation.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

from tileir.dialect.attributes import (
    all_positive,
    divides,
    first_failure,
    get,
    name_of,
    place_of,
    shape_of,
)
from tileir.mlir import ext, ir

Tensor = ir.RankedTensorType
Operand = ext.Operand
Result = ext.Result

ROUTE_FACTS = ("k", "experts", "groups", "top_groups", "normalize", "scale", "fill", "score")
HALF_ROWS = 8
TILE_ROWS = 16
BLOCK_K = 32


class Tile(ext.Dialect, name="tile"):
    """Stages, channels and the arithmetic regions inside stages."""


def padded(k: int) -> int:
    """k rounded up to a whole number of fragment blocks."""
    return -(-k // BLOCK_K) * BLOCK_K


def _placed(op: Any, place: str) -> bool:
    return first_failure(
        op, [(place_of(op.operation.results[0]) == place, f'result is not placed in "{place}"')]
    )


class BufferOp(Tile.Operation, name="buffer"):
    """A packed constant, placed in "buffer".

    kind "tensor": the tensor `sym_name` as it is, or through `view`. kind "rope": cos and sin, [context,
    values / 2, 2] f32, made from `inv_freq` (dense f32) and `scale`.
    """

    sym_name: ir.StringAttr
    kind: ir.StringAttr
    result: Result[Tensor]

    @staticmethod
    def verify_region_invariants(op: Any) -> bool:
        """Placed in "buffer", of a known kind, a rope table with its frequencies."""
        kind = get(op, "kind")
        rope = "inv_freq" in op.operation.attributes and "scale" in op.operation.attributes
        return _placed(op, "buffer") and first_failure(
            op,
            [
                (kind in ("tensor", "rope"), "kind is tensor or rope"),
                (kind != "rope" or rope, "a rope table needs inv_freq and scale"),
            ],
        )


class StateOp(Tile.Operation, name="state"):
    """A mutable state, heads × rows × size, placed in "state"; with `page` > 0 its rows are whole pages."""

    sym_name: ir.StringAttr
    result: Result[Tensor]

    @staticmethod
    def verify_region_invariants(op: Any) -> bool:
        """Placed in "state", in whole pages."""
        rows, page = shape_of(op.operation.results[0])[1], get(op, "page", 0)
        whole = page >= 0 and (page == 0 or (rows or 0) % page == 0)
        return _placed(op, "state") and first_failure(
            op, [(whole, f"{rows} rows are no whole pages of {page}")]
        )


class ContractOp(Tile.Operation, name="contract"):
    """Weight tiles × activations, for the tiles [tile_base, tile_base + tiles) of the stage's tile space.

    x: channel [T, …]; into: the channel that an earlier range of the same space made, which this one goes on filling;
    weights: state-dict names of tensors [N, K], or of views of them, which only streams read. The prologue maps one
    value of x and says by `tile.experts` or `tile.rows` what else than the tape's weights is streamed; the epilogue
    holds one `tile.segment` for each run of tiles. Group g meets x[offset + g·stride … + k]. Of two K parts half lo
    of a tile meets the first k values of x, half hi the next k, and a `tile.join` begins the epilogue.
    """

    x: Operand[Tensor]
    into: Operand[Tensor] | None
    weights: Any
    k: ir.IntegerAttr
    groups: ir.IntegerAttr
    k_parts: ir.IntegerAttr
    tile_base: ir.IntegerAttr
    tiles: ir.IntegerAttr
    result: Result[Tensor]
    prologue: ext.Region
    epilogue: ext.Region

    @staticmethod
    def verify_region_invariants(op: Any) -> bool:
        """The segments cover the tiles of a whole space; groups lie inside x; sources are weights."""
        x = op.operation.operands[0]
        k, base, tiles, groups = (get(op, n) for n in ("k", "tile_base", "tiles", "groups"))
        segments = [o for o in op.operation.regions[1].blocks[0] if name_of(o) == "tile.segment"]
        space = sum(get(o, "tiles") for o in segments)
        count = len(get(op, "weights") or [])
        offset, stride = get(op, "x") or (0, 0)
        sources = [get(o, "sources") for o in segments]
        source = source_of(op)
        parts = get(op, "k_parts")
        reached = offset + (groups - 1) * stride + k * parts
        taken = source == "tape" and divides(groups, space)
        return first_failure(
            op,
            [
                (place_of(x) == "channel", "x is no channel"),
                (groups >= 1 and parts in (1, 2), "groups are ≥ 1, k_parts 1 or 2"),
                (
                    parts == 1 or (source == "tape" and groups == 1 and padded(k) == k),
                    "K parts are of whole blocks, and of weights from the tape",
                ),
                (
                    all(joins_of(o) == (0,) * (parts - 1) for o in segments),
                    "two K parts are joined, and nothing else",
                ),
                (
                    "x" in op.operation.attributes or shape_of(x)[-1] == k * parts,
                    f"x of {shape_of(x)} for K of {k}",
                ),
                (reached <= prod(_static(x)[1:]), f"groups reach {reached} values of {_static(x)}"),
                (
                    source == "rows" or all(max(s[0], s[2]) < count for s in sources),
                    f"a source beyond {count} weights",
                ),
                (bool(segments), "no segments"),
                (base >= 0 and tiles > 0 and base + tiles <= space, f"tiles beyond {space}"),
                (taken or source != "tape", f"{groups} groups do not part {space} tiles"),
                (len(get(op, "views") or []) in (0, count), "views are one a weight"),
            ],
        )


def joins_of(segment: Any) -> tuple[int, ...]:
    """Which of a segment's operations, counted from 0, are `tile.join`."""
    names = [name_of(o) for o in segment.operation.regions[0].blocks[0]]
    return tuple(i for i, name in enumerate(names) if name == "tile.join")


def source_of(op: Any) -> str:
    """What a contract streams: "tape", "experts" or "rows"."""
    for inner in op.operation.regions[0].blocks[0]:
        if name_of(inner) in ("tile.experts", "tile.rows"):
            return name_of(inner).removeprefix("tile.")
    return "tape"


def _static(value: Any) -> list[int]:
    return [size or 1 for size in shape_of(value)]


class SegmentOp(Tile.Operation, name="segment"):
    """A run of tiles whose rows follow one affine map, and what becomes of them.

    at(base) = base + (t / inner)·outer + (t % inner)·step for tile t; half lo is rows at(sources[1]) … + 8 of weight
    sources[0], half hi rows at(sources[3]) … + 8 of weight sources[2]. The region takes the two accumulators, f32.
    """

    tiles: ir.IntegerAttr
    inner: ir.IntegerAttr
    step: ir.IntegerAttr
    outer: ir.IntegerAttr
    sources: Any
    body: ext.Region

    @staticmethod
    def verify_region_invariants(op: Any) -> bool:
        """Four sources, positive sizes, two accumulators."""
        body = op.operation.regions[0].blocks
        return first_failure(
            op,
            [
                (len(get(op, "sources") or []) == 4, "sources are [weight, row, weight, row]"),
                (get(op, "tiles") > 0 and get(op, "inner") > 0, "tiles and inner are positive"),
                (len(body) == 1 and len(body[0].arguments) == 2, "region takes (lo, hi)"),
            ],
        )


class MapOp(Tile.Operation, name="map"):
    """Rows computed one by one: gathers, small reductions, norms, named by the region; a row is its values' share
    of the channel.
    """

    rows: ir.IntegerAttr
    result: Result[Tensor]
    body: ext.Region

    @staticmethod
    def verify_region_invariants(op: Any) -> bool:
        """There is a row."""
        return all_positive(op, "rows")


SELECTS = ("argmax", "route", "top_k")


class SelectOp(Tile.Operation, name="select"):
    """A choice among scores; ties go to the lowest index (docs/ir.md, select).

    "argmax": ins are channels of candidates [T, sms, 2] i32 (order-preserving key, index), result [T] i32. "route": a
    channel of scores [T, …] f32 → [T, k, 2] i32 (expert, bits of its f32 weight). "top_k": [T, context] f32 → [T, k]
    i32.
    """

    ins: Sequence[Operand[Tensor]]
    kind: ir.StringAttr
    result: Result[Tensor]

    @staticmethod
    def verify_region_invariants(op: Any) -> bool:
        """A known kind with its facts."""
        return select_kind(op)


def select_kind(op: Any) -> bool:
    """A known kind with its facts. Shared with engine.select."""
    kind = get(op, "kind")
    needs = {"route": ROUTE_FACTS, "top_k": ("k",)}.get(kind, ())
    missing = [n for n in needs if n not in op.operation.attributes]
    return first_failure(
        op,
        [
            (kind in SELECTS, f"kind is {', '.join(SELECTS)}"),
            (not missing, f"{kind} needs {', '.join(missing)}"),
            (get(op, "score", "softmax") in ("softmax", "sigmoid"), "score is softmax or sigmoid"),
        ],
    )


class YieldOp(Tile.Operation, name="yield", traits=[ir.IsTerminatorTrait]):
    """Ends a region; a prologue and a map body yield their value."""

    values: Sequence[Operand[ir.F32Type]]
