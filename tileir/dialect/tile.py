"""The tile dialect: stages over tile spaces, what one tile reads, computes and writes.

Channels carry values between SMs; weights are streamed; buffers and states are addressed. docs/ir.md has the meaning
of a tile, of a segment's rows and of every region operation.
"""

from collections.abc import Sequence
from typing import Any

from tileir.dialect.attributes import first_failure, get, name_of, place_of, shape_of
from tileir.mlir import ext, ir

Tensor = ir.RankedTensorType
Operand = ext.Operand
Result = ext.Result

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

    kind "tensor": the tensor `sym_name` as it is. kind "rope": cos and sin, [context, head_size / 2, 2] f32, made
    from `inv_freq` (dense f32) and `scale`.
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
    """A mutable state, heads × context × size, placed in "state"."""

    sym_name: ir.StringAttr
    result: Result[Tensor]

    @staticmethod
    def verify_region_invariants(op: Any) -> bool:
        """Placed in "state"."""
        return _placed(op, "state")


class ContractOp(Tile.Operation, name="contract"):
    """Weight tiles × activations, for the tiles [tile_base, tile_base + tiles) of the stage's tile space.

    x: channel [T, K]; into: the channel that an earlier range of the same space made, which this one goes on filling;
    weights: state-dict names of tensors [N, K], which only the tape streams. The prologue maps one value of x, the
    epilogue holds one `tile.segment` for each run of tiles. One group means one weight block for all rows of x; K parts
    make partial sums.
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
        """The segments cover the tiles of a whole space; K is x's; sources are weights."""
        x = op.operation.operands[0]
        k, base, tiles = (get(op, n) for n in ("k", "tile_base", "tiles"))
        segments = [o for o in op.operation.regions[1].blocks[0] if name_of(o) == "tile.segment"]
        space = sum(get(o, "tiles") for o in segments)
        count = len(get(op, "weights") or [])
        sources = [get(o, "sources") for o in segments]
        return first_failure(
            op,
            [
                (place_of(x) == "channel", "x is no channel"),
                (shape_of(x)[-1] == k, f"x of {shape_of(x)} for K of {k}"),
                (all(max(s[0], s[2]) < count for s in sources), f"a source beyond {count} weights"),
                (bool(segments), "no segments"),
                (base >= 0 and tiles > 0 and base + tiles <= space, f"tiles beyond {space}"),
                (get(op, "groups") >= 1 and get(op, "k_parts") >= 1, "groups and k_parts are ≥ 1"),
            ],
        )


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


class AttendOp(Tile.Operation, name="attend"):
    """Online-softmax attention of the step's queries over old rows and the step's own k and v.

    qkv: channel [T, N] that holds q, k, v from `offsets` on; k, v: states. Tasks are (kv head, split).
    result: channel [T, heads, splits, head_size + 2] f32: the unnormalised sum, the maximum, the sum of weights.
    """

    qkv: Operand[Tensor]
    k: Operand[Tensor]
    v: Operand[Tensor]
    heads: ir.IntegerAttr
    kv_heads: ir.IntegerAttr
    head_size: ir.IntegerAttr
    scale: ir.FloatAttr
    window: ir.IntegerAttr
    softcap: ir.FloatAttr
    splits: ir.IntegerAttr
    offsets: Any
    result: Result[Tensor]

    @staticmethod
    def verify_region_invariants(op: Any) -> bool:
        """Heads fit the states; the result has one partial a head and split."""
        return attend_shapes(op, shape_of(op.operation.results[0])[1:])


def attend_shapes(op: Any, partial: list[int | None]) -> bool:
    """Verify what tile.attend and engine.attend share; partial: [heads, splits, size + 2]."""
    heads, kv, size, splits = (get(op, n) for n in ("heads", "kv_heads", "head_size", "splits"))
    k, v = (shape_of(o) for o in list(op.operation.operands)[1:3])
    return first_failure(
        op,
        [
            (kv > 0 and heads % kv == 0, f"{heads} heads cannot share {kv} kv heads"),
            (splits >= 1, "splits is at least 1"),
            (k == v and (k[0], k[2]) == (kv, size), f"states of {k}, {v} for {kv} heads of {size}"),
            (partial == [heads, splits, size + 2], f"partial of {partial}"),
            (len(get(op, "offsets") or []) == 3, "offsets are [q, k, v]"),
        ],
    )


class MapOp(Tile.Operation, name="map"):
    """Rows computed one by one: a gather or a small reduction, named by the region."""

    ins: Sequence[Operand[Tensor]]
    rows: ir.IntegerAttr
    result: Result[Tensor]
    body: ext.Region


class SelectOp(Tile.Operation, name="select"):
    """The largest of every SM's candidates; ties go to the lowest index.

    ins: channels [T, sms, 2] i32 (order-preserving key, index); result: [T] i32.
    """

    ins: Sequence[Operand[Tensor]]
    kind: ir.StringAttr
    result: Result[Tensor]

    @staticmethod
    def verify_region_invariants(op: Any) -> bool:
        """A known kind."""
        return first_failure(op, [(get(op, "kind") == "argmax", "kind is argmax")])


# ---- inside regions: scalars of one element, the index implied by the tile


class RmsNormOp(Tile.Operation, name="rms_norm"):
    """Prologue: v · weight (or · (1 + weight)), rounded; the accumulators get rsqrt(mean(v²) + eps)."""

    v: Operand[ir.F32Type]
    weight: Operand[Tensor]
    eps: ir.FloatAttr
    unit_offset: ir.IntegerAttr
    result: Result[ir.F32Type]


class BiasOp(Tile.Operation, name="bias"):
    """Epilogue: adds a buffer's values at `bases`."""

    lo: Operand[ir.F32Type]
    hi: Operand[ir.F32Type]
    bias: Operand[Tensor]
    bases: Any
    out_lo: Result[ir.F32Type]
    out_hi: Result[ir.F32Type]


class ResidualOp(Tile.Operation, name="residual"):
    """Epilogue: adds a channel's values of this step at `bases`."""

    lo: Operand[ir.F32Type]
    hi: Operand[ir.F32Type]
    channel: Operand[Tensor]
    bases: Any
    out_lo: Result[ir.F32Type]
    out_hi: Result[ir.F32Type]


class RopeOp(Tile.Operation, name="rope"):
    """Epilogue: rotates (lo, hi) by the angle of the step's position, from a rope table."""

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
        size = get(op, "head_size")
        return first_failure(
            op,
            [
                (get(op, "style") == "half", 'style is "half"'),
                (size % TILE_ROWS == 0, f"head size {size} is no multiple of {TILE_ROWS}"),
            ],
        )


class GluOp(Tile.Operation, name="glu"):
    """Epilogue: activation(lo) · hi."""

    lo: Operand[ir.F32Type]
    hi: Operand[ir.F32Type]
    activation: ir.StringAttr
    result: Result[ir.F32Type]


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


class LookupOp(Tile.Operation, name="lookup"):
    """Map: the step's token's row of a table, times `scale`."""

    table: Operand[Tensor]
    scale: ir.FloatAttr
    result: Result[ir.F32Type]


class CombineOp(Tile.Operation, name="combine"):
    """Map: one value of attention's output from all splits' partial results of a head."""

    partial: Operand[Tensor]
    result: Result[ir.F32Type]


class YieldOp(Tile.Operation, name="yield", traits=[ir.IsTerminatorTrait]):
    """Ends a region; a prologue and a map body yield their value."""

    values: Sequence[Operand[ir.F32Type]]
