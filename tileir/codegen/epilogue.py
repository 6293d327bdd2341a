"""Rules for a contract's region operations, on two neighbouring rows of each half of a tile.

A thread holds rows 2p and 2p+1 of a half as a pair of f32. `Rows` says where they are; a rule maps an operation's
pairs to its results' pairs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from tileir.codegen import builder as b
from tileir.codegen.exchange import poll_pair, publish_pair
from tileir.codegen.kernel import Kernel, Outlet
from tileir.codegen.plan import Body
from tileir.dialect.attributes import get, name_of, static_shape

Value = Any
LOG2E = 1.4426950408889634
Pair = tuple[Value, Value]


@dataclass(frozen=True)
class Rows:
    """Where a thread's rows are: at(0) of the segment's map plus 2p; the contract's result channel."""

    k: Kernel
    body: Body
    index: Value
    channel: Outlet | None
    best: list[Value]


def run_segment(rows: Rows, segment: Any, lo: Pair, hi: Pair, words: list[Value]) -> None:
    """Emit a segment's region for the accumulators lo and hi. words: what `fetch_segment` returned, and maybe more."""
    block = segment.operation.regions[0].blocks[0]
    values = dict(zip(block.arguments, (lo, hi), strict=True))
    for op in block:
        name = name_of(op)
        if name == "tile.yield":
            return
        pairs = [values[v] for v in op.operation.operands if v in values]
        count = WORDS[name](op) if name in FETCHES else 0
        own, words = words[:count], words[count:]
        results = RULES[name](rows, op, pairs, own)
        values |= dict(zip(op.operation.results, results, strict=True))


def words_of(segment: Any) -> int:
    """How many words `fetch_segment` returns."""
    block = segment.operation.regions[0].blocks[0]
    return sum(WORDS[name_of(op)](op) for op in block if name_of(op) in FETCHES)


def fetch_segment(rows: Rows, segment: Any) -> list[Value]:
    """What a segment's region reads, as i32 words: to be asked for before the accumulators are there."""
    block = segment.operation.regions[0].blocks[0]
    found = [FETCHES[name_of(op)](rows, op) for op in block if name_of(op) in FETCHES]
    return [word for words in found for word in words]


def _placed(rows: Rows, op: Any) -> list[Value]:
    """The first index of each of the op's pairs."""
    return [rows.index + base for base in get(op, "bases")]


def _last(op: Any) -> Value:
    return list(op.operation.operands)[-1]


def _fetch_bias(rows: Rows, op: Any) -> list[Value]:
    memory = rows.k.operand(rows.body, _last(op))
    places = [b.at(memory, b.i64(index * 2)) for index in _placed(rows, op)]
    return [b.constant_load("i32", place, 4) for place in places]


def _fetch_residual(rows: Rows, op: Any) -> list[Value]:
    memory = rows.k.operand(rows.body, _last(op))
    return poll_pair(rows.k, memory, [index >> 1 for index in _placed(rows, op)])


def _fetch_angles(rows: Rows, op: Any) -> list[Value]:
    k, size = rows.k, get(op, "head_size")
    table, half = k.operand(rows.body, _last(op)), static_shape(_last(op))[1]
    place = k.position * half + (rows.index % size - (get(op, "first") or 0))
    return b.elements(b.constant_load("vector<4xi32>", b.at(table, b.i64(place) * 8), 16), 4)


def _added(_rows: Rows, _op: Any, pairs: list[Pair], words: list[Value]) -> list[Pair]:
    out = []
    for (a, c), word in zip(pairs, words, strict=True):
        low, high = b.unpack(word)
        out.append((a + low, c + high))
    return out


def _rope(_rows: Rows, _op: Any, pairs: list[Pair], words: list[Value]) -> list[Pair]:
    cos0, sin0, cos1, sin1 = (b.bits_to_f32(word) for word in words)
    (x0, x1), (y0, y1) = pairs
    lo = (x0 * cos0 - y0 * sin0, x1 * cos1 - y1 * sin1)
    hi = (y0 * cos0 + x0 * sin0, y1 * cos1 + x1 * sin1)
    return [lo, hi]


def activation(name: str, x: Value) -> Value:
    """silu(x) = x·sigmoid(x); gelu_tanh(x) = x·sigmoid(2·sqrt(2/pi)·(x + 0.044715·x³)); gelu by erf; relu."""
    match name:
        case "silu":
            return x * _sigmoid_of(x)
        case "gelu_tanh":
            return x * _sigmoid_of((x + x * x * x * 0.044715) * 1.5957691216057308)
        case "gelu":
            return x * (_erf(x * 0.7071067811865476) + 1.0) * 0.5
        case "relu":
            return b.fmax(x, 0.0)
    raise AssertionError(f"activation {name}")


def _sigmoid_of(x: Value) -> Value:
    return b.reciprocal(b.exp2(x * -LOG2E) + 1.0)


def _erf(x: Value) -> Value:
    """Within 1.5e-7. Source: Abramowitz, Stegun, Handbook of Mathematical Functions, 7.1.26."""
    size = b.fabs(x)
    t = b.reciprocal(size * 0.3275911 + 1.0)
    sum_ = t * 1.061405429 + -1.453152027
    for factor in (1.421413741, -0.284496736, 0.254829592):
        sum_ = sum_ * t + factor
    found = b.const(1.0, "f32") - sum_ * t * b.exp2(x * x * -LOG2E)
    return b.copysign(found, x)


def _each(function: Callable[[Any, Value], Value]) -> "Rule":
    """A rule for what an operation does to every value by itself."""

    def rule(_rows: Rows, op: Any, pairs: list[Pair], _words: list[Value]) -> list[Pair]:
        return [(function(op, low), function(op, high)) for low, high in pairs]

    return rule


def soft_cap(x: Value, cap: float) -> Value:
    """cap·tanh(x / cap), by tanh(x) = 1 − 2 / (e^2x + 1)."""
    e = b.exp2(x * (2.0 * LOG2E / cap))
    return (b.reciprocal(e + 1.0) * -2.0 + 1.0) * cap


def _glu(_rows: Rows, op: Any, pairs: list[Pair], _w: list[Value]) -> list[Pair]:
    (g0, g1), (u0, u1) = pairs
    name = get(op, "activation")
    return [(activation(name, g0) * u0, activation(name, g1) * u1)]


def _join(_rows: Rows, _op: Any, pairs: list[Pair], _w: list[Value]) -> list[Pair]:
    (a0, a1), (b0, b1) = pairs
    return [(a0 + b0, a1 + b1)]


def _append(rows: Rows, op: Any, pairs: list[Pair], _w: list[Value]) -> list[Pair]:
    k, state = rows.k, _last(op)
    _, context, size = static_shape(state)
    memory = k.operand(rows.body, state)
    for pair, index in zip(pairs, _placed(rows, op), strict=True):
        row, place = index // size * context + k.position, k.swizzled(index % size >> 1, size)
        b.store(b.pack(*pair), b.at(memory, b.i64(row * (size // 2) + place) * 4), 4)
    return []


def _publish(rows: Rows, op: Any, pairs: list[Pair], _w: list[Value]) -> list[Pair]:
    assert rows.channel is not None
    for pair, index in zip(pairs, _placed(rows, op), strict=True):
        publish_pair(rows.k, rows.channel, index >> 1, b.pack(*pair))
    return []


def _logits(rows: Rows, op: Any, pairs: list[Pair], _w: list[Value]) -> list[Pair]:
    k = rows.k
    memory = k.arg["logits"]
    wanted = b.ne(b.pointer_bits(memory), 0)
    for pair, first in zip(pairs, _placed(rows, op), strict=True):
        for index, value in ((first, pair[0]), (first + 1, pair[1])):
            inside = b.both(wanted, b.ult(index, k.plan.vocabulary))
            place = b.i64(k.step) * k.plan.vocabulary + b.i64(index)
            b.if_(inside, partial(b.store, value, b.at(memory, place * 4), 4))
    return []


def order_key(value: Value) -> Value:
    """An unsigned i32 that orders as the f32 does."""
    bits = b.f32_to_bits(value)
    negative = b.ne(bits >> 31, 0)
    return bits ^ b.select(negative, b.const(-1), b.const(-(2**31)))


def _candidate(rows: Rows, op: Any, pairs: list[Pair], _w: list[Value]) -> list[Pair]:
    for pair, index in zip(pairs, _placed(rows, op), strict=True):
        for e, value in enumerate(pair):
            # Key above, inverted index below: the maximum has the largest value, then the lowest index.
            entry = (b.i64(order_key(value)) << 32) | b.i64((index + e) ^ -1)
            entry = b.select(b.ult(index + e, rows.k.plan.vocabulary), entry, b.const(0, "i64"))
            rows.best[0] = b.umax(rows.best[0], entry)
    return []


Rule = Callable[[Rows, Any, list[Pair], list[Value]], list[Pair]]
RULES: dict[str, Rule] = {
    "tile.bias": _added,
    "tile.join": _join,
    "tile.residual": _added,
    "tile.rope": _rope,
    "tile.glu": _glu,
    "tile.activate": _each(lambda op, x: activation(get(op, "activation"), x)),
    "tile.scale": _each(lambda op, x: x * float(get(op, "factor"))),
    "tile.softcap": _each(lambda op, x: soft_cap(x, float(get(op, "cap")))),
    "tile.append": _append,
    "tile.publish": _publish,
    "tile.logits": _logits,
    "tile.candidate": _candidate,
}
FETCHES: dict[str, Callable[[Rows, Any], list[Value]]] = {
    "tile.bias": _fetch_bias,
    "tile.residual": _fetch_residual,
    "tile.rope": _fetch_angles,
}
# Words that each fetches.
WORDS: dict[str, Callable[[Any], int]] = {
    "tile.bias": lambda op: len(get(op, "bases")),
    "tile.residual": lambda op: len(get(op, "bases")),
    "tile.rope": lambda _op: 4,
}
