"""What the operations mean, in NumPy: shared by the executors of all levels.

T is the tokens of a step; everything is float32 inside. `Rounding` says where values become bf16.
"""

from collections.abc import Callable
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from tileir.dialect.attributes import get, name_of

Array = np.ndarray
LOWEST = np.float32(-1e30)
VALUES_OF = {"tile.publish": "publish", "tile.logits": "logits", "tile.candidate": "candidate"}


def round_bf16(x: Array) -> Array:
    """Nearest even bf16, as f32."""
    return np.asarray(x, np.float32).astype(ml_dtypes.bfloat16).astype(np.float32)


def keep(x: Array) -> Array:
    """No rounding."""
    return np.asarray(x, np.float32)


def activation(name: str, x: Array) -> Array:
    """silu, or gelu by tanh."""
    if name == "silu":
        return x / (1 + np.exp(-x))
    return 0.5 * x * (1 + np.tanh(0.7978845608028654 * (x + 0.044715 * x**3)))


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
    return np.tanh(scores / cap) * np.float32(cap) if cap else scores


def partial_softmax(q: Array, k: Array, v: Array, op: Any) -> Array:
    """One split's result for queries [G, D] over rows [N, D]: [G, D + 2], see tile.attend."""
    out = np.zeros((q.shape[0], q.shape[1] + 2), np.float32)
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


def split_range(position: int, split: int, op: Any) -> tuple[int, int]:
    """First old row of a split and the row behind its last (docs/ir.md, state order)."""
    window, splits = get(op, "window"), get(op, "splits")
    low = max(0, position + 1 - window) if window else 0
    chunk = -(-(position - low) // splits)
    first = min(low + split * chunk, position)
    return first, min(first + chunk, position)


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
    """Where an epilogue reads and writes. Indices are arrays of the values' trailing shape."""

    positions: Array

    def constant(self, value: Any) -> Array:
        """The array of a buffer."""

    def residual(self, value: Any, index: Array) -> Array:
        """A channel's values of this step, [T, *index.shape]."""

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
    """A segment's region for its tiles (numbers within the segment); lo, hi: [T, tiles, 8]."""
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
    return [v + constant[start + b] for v, b in zip(values, get(op, "bases"), strict=True)]


def _residual(op: Any, values: list[Array], other: Any, start: Array, sink: Sink) -> list[Array]:
    bases = get(op, "bases")
    return [v + sink.residual(other, start + b) for v, b in zip(values, bases, strict=True)]


def _rope(op: Any, values: list[Array], other: Any, start: Array, sink: Sink) -> list[Array]:
    lo, hi = values
    table = sink.constant(other)[sink.positions][:, start % get(op, "head_size")]
    cos, sin = table[..., 0], table[..., 1]
    return [lo * cos - hi * sin, hi * cos + lo * sin]


def _glu(op: Any, values: list[Array], _other: Any, _start: Array, _sink: Sink) -> list[Array]:
    return [activation(get(op, "activation"), values[0]) * values[1]]


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
    "tile.residual": _residual,
    "tile.rope": _rope,
    "tile.glu": _glu,
    "tile.append": _append,
    **dict.fromkeys(VALUES_OF, _send),
}
