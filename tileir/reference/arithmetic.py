"""What the operations mean, in NumPy: shared by the executors of all levels.

T is the tokens of a step; everything is float32 inside. The functions round_bf16 and keep say where values become bf16.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from tileir.dialect.attributes import get, name_of, static_shape
from tileir.dialect.tile_attend import statements_on
from tileir.scheduling.assign import used_splits

Array = np.ndarray
LOWEST = np.float32(-1e30)
_erf = np.vectorize(math.erf, otypes=[np.float32])
VALUES_OF = {"tile.publish": "publish", "tile.logits": "logits", "tile.candidate": "candidate"}


def round_bf16(x: Array) -> Array:
    """Nearest even bf16, as f32."""
    return np.asarray(x, np.float32).astype(ml_dtypes.bfloat16).astype(np.float32)


def keep(x: Array) -> Array:
    """No rounding."""
    return np.asarray(x, np.float32)


def activation(name: str, x: Array) -> Array:
    """silu, gelu by erf, gelu by tanh, or relu, as f32."""
    match name:
        case "silu":
            return x / (1 + np.exp(-x))
        case "relu":
            return np.maximum(x, np.float32(0))
        case "gelu":
            return np.asarray(0.5 * x * (1 + _erf(x * 0.7071067811865476)), np.float32)
    assert name == "gelu_tanh", name
    return 0.5 * x * (1 + np.tanh(0.7978845608028654 * (x + 0.044715 * x**3)))


def softcap(x: Array, cap: float) -> Array:
    """cap · tanh(x / cap)."""
    return np.tanh(x / np.float32(cap)) * np.float32(cap)


def rms_scale(x: Array, eps: float) -> Array:
    """rsqrt(mean(x²) + eps) of each row, [T, 1]."""
    return 1 / np.sqrt(np.mean(x * x, -1, keepdims=True, dtype=np.float32) + np.float32(eps))


def angles(positions: Array, inv_freq: Array, scale: float) -> tuple[Array, Array]:
    """cos and sin, [T, head size / 2] f32."""
    turn = positions.astype(np.float32)[:, None] * inv_freq.astype(np.float32)[None]
    return np.cos(turn) * np.float32(scale), np.sin(turn) * np.float32(scale)


def scores_of(q: Array, k: Array, op: Any) -> Array:
    """Scaled (and capped) scores of queries [G, D] over rows [N, D]: [G, N]."""
    scores = (q @ k.T) * np.float32(get(op, "scale"))
    cap = get(op, "softcap")
    return softcap(scores, cap) if cap else scores


def partial_softmax(q: Array, k: Array, v: Array, op: Any) -> Array:
    """One split's result for queries [G, D] over keys [N, D] and values [N, V]: [G, V + 2], see tile.attend."""
    out = np.zeros((q.shape[0], v.shape[1] + 2), np.float32)
    out[:, -2] = LOWEST
    if len(k):
        scores = scores_of(q, k, op)
        top = scores.max(1)
        weights = np.exp(scores - top[:, None])
        out[:, :-2], out[:, -2], out[:, -1] = weights @ v, top, weights.sum(1)
    return out


def combine(partial: Array) -> Array:
    """[…, splits, D + 2] → […, D]."""
    top = partial[..., -2].max(-1, keepdims=True)
    shrink = np.exp(partial[..., -2] - top)[..., None]
    sums = (partial[..., :-2] * shrink).sum(-2)
    return sums / (partial[..., -1:] * shrink).sum(-2)


def split_range(base: int, split: int, op: Any) -> tuple[int, int]:
    """First old row of a split and the row behind its last; base: the sequence's first position of this step."""
    window = get(op, "window", 0)
    low = max(0, base + 1 - window) if window else 0
    first, last = split_of(base - low, split, splits_at(base, op))
    return low + first, low + last


def is_alone(base: int, op: Any) -> bool:
    """Whether one split takes all old rows, and finishes; op: an attend or its combine (docs/ir.md, attention)."""
    alone = get(op, "alone", 0)
    return alone > 0 and (_old(base, op) <= alone or get(op, "splits") == 1)


def splits_at(base: int, op: Any) -> int:
    """How many splits take part; op: an attend, its fill or its combine (docs/ir.md, attention)."""
    facts = (get(op, "splits"), get(op, "alone", 0), get(op, "least", 0))
    return used_splits(_old(base, op), *facts)


def _old(base: int, op: Any) -> int:
    """Old rows that the first of a sequence's tokens sees."""
    window = get(op, "window", 0)
    return min(base, window - 1) if window else base


def split_of(rows: int, split: int, splits: int) -> tuple[int, int]:
    """The part of `rows` things that a split has: first, and behind the last."""
    chunk = -(-rows // splits)
    first = min(split * chunk, rows)
    return first, min(first + chunk, rows)


def order_key(x: Array) -> Array:
    """uint32 that orders as f32 does."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return np.where(bits >> 31, ~bits, bits | np.uint32(0x80000000)).astype(np.uint32)


def best_of(values: Array, indices: Array) -> tuple[int, int]:
    """(key, index) of the largest value; the lowest index among equals."""
    keys = order_key(values)
    top = keys.max()
    return int(top), int(indices[keys == top].min())


class Sink(Protocol):
    """Where regions read and write. Indices have the values' trailing shape; T rows are those of `positions`.

    splits: how many take part in a combine, for each of the T rows; None for all.
    """

    positions: Array
    splits: int | None

    def constant(self, value: Any) -> Array:
        """The array of a buffer."""

    def read(self, value: Any, index: Array) -> Array:
        """A channel's values of this step, [T, *index.shape]; its dimensions behind T are one."""

    def weights(self, routing: Any) -> Array:
        """The routing weight of each of the T rows of an experts contract, [T]."""

    def tokens(self, of: str) -> Array:
        """The tokens "step" or "choice", [T]."""

    def append(self, state: Any, index: Array, values: Array) -> None:
        """Write a state's row of each token's position."""

    def publish(self, index: Array, values: Array) -> None:
        """Send values to the stage's channel."""

    def logits(self, index: Array, values: Array) -> None:
        """Record logits."""

    def candidate(self, index: Array, values: Array) -> None:
        """Offer candidates."""


def rows_of(segment: Any, tiles: Array) -> Array:
    """at(0) + g of a segment's tiles (docs/ir.md, tiles of a contract): [tiles, 8]."""
    inner, step, outer = (get(segment, n) for n in ("inner", "step", "outer"))
    start: Array = (tiles // inner * outer + tiles % inner * step)[:, None] + np.arange(8)
    return start


def run_segment(segment: Any, tiles: Array, lo: Array, hi: Array, sink: Sink) -> None:
    """A segment's region for its tiles (numbers within the segment).

    lo, hi: [T, tiles, 8], of a state's rows [heads, T, tiles, 8] up to tile.relu_sum.
    """
    start = rows_of(segment, tiles)
    block = segment.operation.regions[0].blocks[0]
    values: dict[Any, Array] = dict(zip(block.arguments, (lo, hi), strict=True))
    for op in block:
        name, operands = name_of(op), list(op.operation.operands)
        if name == "tile.yield":
            return
        known = [values[o] for o in operands if o in values]
        other = next((o for o in operands if o not in values), None)
        results = _RULES[name](op, known, other, start, sink)
        values |= dict(zip(op.operation.results, results, strict=True))


Rule = Callable[[Any, list[Array], Any, Array, Sink], list[Array]]


def _bias(op: Any, values: list[Array], other: Any, start: Array, sink: Sink) -> list[Array]:
    constant = sink.constant(other)
    # Rows past the end of a weight are zero, and so is their bias.
    padded = np.append(constant, np.zeros(16, np.float32))
    return [v + padded[start + b] for v, b in zip(values, get(op, "bases"), strict=True)]


def _join(_op: Any, values: list[Array], _o: Any, _start: Array, _sink: Sink) -> list[Array]:
    return [values[0] + values[1]]


def _residual(op: Any, values: list[Array], other: Any, start: Array, sink: Sink) -> list[Array]:
    bases = get(op, "bases")
    return [v + sink.read(other, start + b) for v, b in zip(values, bases, strict=True)]


def _rope(op: Any, values: list[Array], other: Any, start: Array, sink: Sink) -> list[Array]:
    lo, hi = values
    place = start % get(op, "head_size") - get(op, "first", 0)
    table = sink.constant(other)[sink.positions][:, place]
    cos, sin = table[..., 0], table[..., 1]
    return [lo * cos - hi * sin, hi * cos + lo * sin]


def _glu(op: Any, values: list[Array], _other: Any, _start: Array, _sink: Sink) -> list[Array]:
    return [activation(get(op, "activation"), values[0]) * values[1]]


def _sigmoid(_op: Any, values: list[Array], _o: Any, _start: Array, _sink: Sink) -> list[Array]:
    return [1 / (1 + np.exp(-v)) for v in values]


def _activate(op: Any, values: list[Array], _o: Any, _start: Array, _sink: Sink) -> list[Array]:
    return [activation(get(op, "activation"), v) for v in values]


def _scale(op: Any, values: list[Array], _other: Any, _start: Array, _sink: Sink) -> list[Array]:
    return [v * np.float32(get(op, "factor")) for v in values]


def _softcap(op: Any, values: list[Array], _other: Any, _start: Array, _sink: Sink) -> list[Array]:
    return [softcap(v, get(op, "cap")) for v in values]


def _weigh(_op: Any, values: list[Array], other: Any, _start: Array, sink: Sink) -> list[Array]:
    return [v * sink.weights(other)[:, None, None] for v in values]


def _relu_sum(op: Any, values: list[Array], other: Any, _start: Array, sink: Sink) -> list[Array]:
    scale = np.float32(get(op, "scale"))
    weights = sink.read(other, get(op, "offset") + np.arange(len(values[0])))  # [T, heads]
    sums = []
    for v in values:
        total = np.zeros(v.shape[1:], np.float32)
        for head, scores in enumerate(v):
            total += weights[:, head, None, None] * np.maximum(scores * scale, 0)
        sums.append(total)
    return sums


def _append(op: Any, values: list[Array], other: Any, start: Array, sink: Sink) -> list[Array]:
    for value, base in zip(values, get(op, "bases"), strict=True):
        sink.append(other, start + base, value)
    return []


def _send(op: Any, values: list[Array], _other: Any, start: Array, sink: Sink) -> list[Array]:
    for value, base in zip(values, get(op, "bases"), strict=True):
        getattr(sink, VALUES_OF[name_of(op)])(start + base, value)
    return []


_RULES: dict[str, Rule] = {
    "tile.bias": _bias,
    "tile.join": _join,
    "tile.residual": _residual,
    "tile.rope": _rope,
    "tile.glu": _glu,
    "tile.activate": _activate,
    "tile.scale": _scale,
    "tile.softcap": _softcap,
    "tile.sigmoid": _sigmoid,
    "tile.weigh": _weigh,
    "tile.relu_sum": _relu_sum,
    "tile.append": _append,
    **dict.fromkeys(VALUES_OF, _send),
}


# ---- maps


def run_map(block: Any, rows: Array, size: int, sink: Sink) -> Array:
    """A map's body for its rows: [T, rows, size], what the channel gets, zeros behind the body's values.

    size: values of a row of the channel.
    """
    *statements, end = block
    found = _after(statements, {}, rows, size, sink)[end.operation.operands[0]]
    return np.pad(found, ((0, 0), (0, 0), (0, size - found.shape[2])))


def run_piece(piece: Any, x: Array, head: int, sink: Sink) -> Array:
    """What attention takes of a head's query or key, x [T, size] before the piece's statements."""
    values = {piece.operation.results[0]: x[:, None]}
    *_, last = _after(statements_on(piece), values, np.array([head]), x.shape[1], sink).values()
    return last[:, 0]


def _after(
    statements: Iterable[Any], values: dict[Any, Array], rows: Array, size: int, sink: Sink
) -> dict[Any, Array]:
    """The values with those that statements make of them, each [T, rows, …], in order."""
    for op in statements:
        operands = list(op.operation.operands)
        known = [values[o] for o in operands if o in values]
        others = [o for o in operands if o not in values]
        made = _ROW_RULES[name_of(op)](op, known, others, rows, size, sink)
        if made is not None:
            values[op.operation.results[0]] = made
    return values


def channels_of(op: Any, rows: Array, splits: int | None = None) -> list[tuple[Any, Array]]:
    """The channels that a map body's operation reads, with the indices for each of the rows: [rows, …].

    splits: how many take part, of a combine; None for all.
    """
    value = next(iter(op.operation.operands), None)
    match name_of(op):
        case "tile.load":
            size = get(op, "size")
            return [(value, get(op, "offset") + rows[:, None] * size + np.arange(size))]
        case "tile.sum":
            parts, width = static_shape(value)[1:]
            size = get(op, "size")
            at = rows[:, None, None] * size + np.arange(size)
            return [(value, at + np.arange(parts)[:, None] * width)]
        case "tile.combine":
            _, most, width = static_shape(value)[1:]
            at = rows[:, None, None] * most * width + np.arange(width)
            return [(value, at + np.arange(splits or most)[:, None] * width)]
    return []


RowRule = Callable[[Any, list[Array], list[Any], Array, int, Sink], Array | None]


def _lookup(op: Any, _v: list[Array], others: list[Any], rows: Array, size: int, s: Sink) -> Array:
    index = rows[:, None] * size + np.arange(size)
    table = s.constant(others[0])[s.tokens(get(op, "of", "step"))]
    inside = index < table.shape[1]
    found = np.where(inside, table[:, np.minimum(index, table.shape[1] - 1)], np.float32(0))
    return np.asarray(found * np.float32(get(op, "scale")))


def _load(op: Any, _v: list[Array], _o: list[Any], rows: Array, _size: int, s: Sink) -> Array:
    ((value, index),) = channels_of(op, rows)
    return s.read(value, index)


def _sum(op: Any, _v: list[Array], _o: list[Any], rows: Array, _size: int, s: Sink) -> Array:
    ((value, index),) = channels_of(op, rows)
    parts = s.read(value, index)
    total = np.zeros_like(parts[:, :, 0])
    for p in range(parts.shape[2]):
        total += parts[:, :, p]
    return total


def _combine(op: Any, _v: list[Array], _o: list[Any], rows: Array, _size: int, s: Sink) -> Array:
    ((value, index),) = channels_of(op, rows, s.splits)
    return combine(s.read(value, index))


def _plus(_op: Any, v: list[Array], _o: list[Any], _rows: Array, _size: int, _s: Sink) -> Array:
    return v[0] + v[-1]


def _rms(op: Any, v: list[Array], others: list[Any], _rows: Array, _size: int, s: Sink) -> Array:
    offset = np.float32(1 if get(op, "unit_offset") else 0)
    return v[0] * rms_scale(v[0], get(op, "eps")) * (s.constant(others[0]) + offset)


def _layer(op: Any, v: list[Array], others: list[Any], _rows: Array, _size: int, s: Sink) -> Array:
    centred = v[0] - v[0].mean(-1, keepdims=True, dtype=np.float32)
    scale = rms_scale(centred, get(op, "eps"))
    return centred * scale * s.constant(others[0]) + s.constant(others[1])


def _rotate(op: Any, v: list[Array], others: list[Any], _rows: Array, _size: int, s: Sink) -> Array:
    table = s.constant(others[0])[s.positions][:, None]
    first, half = get(op, "first"), table.shape[2]
    out = np.array(v[0])
    out[..., first : first + 2 * half] = turn(
        v[0][..., first : first + 2 * half], table[..., 0], table[..., 1], get(op, "style")
    )
    return out


def turn(x: Array, cos: Array, sin: Array, style: str) -> Array:
    """x [..., n] rotated by cos and sin [..., n / 2]; pairs and order by style (graph.rope)."""
    half = x.shape[-1] // 2
    if style == "half":
        lo, hi = x[..., :half], x[..., half:]
    else:
        lo, hi = x[..., ::2], x[..., 1::2]
    turned = lo * cos - hi * sin, hi * cos + lo * sin
    if style == "interleaved":
        return np.stack(turned, -1).reshape(x.shape)
    return np.concatenate(turned, -1)


def _store(op: Any, v: list[Array], others: list[Any], rows: Array, _size: int, s: Sink) -> None:
    row = static_shape(others[0])[2]
    index = rows[:, None] * row + get(op, "offset") + np.arange(v[0].shape[-1])
    s.append(others[0], index, v[0])


_ROW_RULES: dict[str, RowRule] = {
    "tile.lookup": _lookup,
    "tile.load": _load,
    "tile.sum": _sum,
    "tile.combine": _combine,
    "tile.plus": _plus,
    "tile.rms_norm": _rms,
    "tile.layer_norm": _layer,
    "tile.rotate": _rotate,
    "tile.store": _store,
}
