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
from tileir.dialect.graph import known_activation
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
    holds one `tile.segment` for each run of tiles. Group g meets x[offset + g·stride … + k]. K parts make partial sums.
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
        reached = offset + (groups - 1) * stride + k
        taken = source == "tape" and divides(groups, space)
        return first_failure(
            op,
            [
                (place_of(x) == "channel", "x is no channel"),
                (groups >= 1 and get(op, "k_parts") >= 1, "groups and k_parts are ≥ 1"),
                (
                    "x" in op.operation.attributes or shape_of(x)[-1] == k,
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


# ---- inside regions: scalars of one element, the index implied by the tile


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
        values, bases = len(op.operation.operands) - 1, get(op, "bases")
        fits = values == len(bases) == len(op.operation.results)
        return first_failure(op, [(fits, f"{len(bases)} bases for {values} values")])


class ResidualOp(Tile.Operation, name="residual"):
    """Epilogue: adds a channel's values of this step at `bases`."""

    lo: Operand[ir.F32Type]
    hi: Operand[ir.F32Type]
    channel: Operand[Tensor]
    bases: Any
    out_lo: Result[ir.F32Type]
    out_hi: Result[ir.F32Type]


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


# ---- statements: what a contract multiplies, what attention gathers


class ExpertsOp(Tile.Operation, name="experts"):
    """Prologue: the weights are those of the experts that routing [T, k, 2] chose."""

    routing: Operand[Tensor]


class RowsOp(Tile.Operation, name="rows"):
    """Prologue: the weights are rows of a state [1, rows, k], the step's own from values `offset` on of a channel."""

    state: Operand[Tensor]
    own: Operand[Tensor]
    offset: ir.IntegerAttr


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


# ---- map bodies: the values of a row


class LookupOp(Tile.Operation, name="lookup"):
    """Map: the token's row of a table, times `scale`. of: "step", or "choice" for the token just chosen."""

    table: Operand[Tensor]
    scale: ir.FloatAttr
    result: Result[ir.F32Type]


class FinishOp(Tile.Operation, name="finish"):
    """Attend: the channel of the combine, which a split that has all old rows fills itself, its result normalised."""

    channel: Operand[Tensor]


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


class YieldOp(Tile.Operation, name="yield", traits=[ir.IsTerminatorTrait]):
    """Ends a region; a prologue and a map body yield their value."""

    values: Sequence[Operand[ir.F32Type]]
