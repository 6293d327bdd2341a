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
from tileir.codegen.kernel import Kernel
from tileir.codegen.plan import Body
from tileir.dialect.attributes import get, name_of, shape_of

Value = Any
Pair = tuple[Value, Value]


@dataclass(frozen=True)
class Rows:
    """Where a thread's rows are: at(0) of the segment's map plus 2p; the contract's result channel."""

    k: Kernel
    body: Body
    index: Value
    channel: Value
    best: list[Value]


def run_segment(rows: Rows, segment: Any, lo: Pair, hi: Pair) -> None:
    """Emit a segment's region for the accumulators lo and hi."""
    block = segment.operation.regions[0].blocks[0]
    values = dict(zip(block.arguments, (lo, hi), strict=True))
    for op in block:
        if name_of(op) == "tile.yield":
            return
        pairs = [values[v] for v in op.operation.operands if v in values]
        results = RULES[name_of(op)](rows, op, pairs)
        values |= dict(zip(op.operation.results, results, strict=True))


def _placed(rows: Rows, op: Any) -> list[Value]:
    """The first index of each of the op's pairs."""
    return [rows.index + base for base in get(op, "bases")]


def _last(op: Any) -> Value:
    return list(op.operation.operands)[-1]


def _bias(rows: Rows, op: Any, pairs: list[Pair]) -> list[Pair]:
    memory = rows.k.operand(rows.body, _last(op))
    out = []
    for (a, c), index in zip(pairs, _placed(rows, op), strict=True):
        low, high = b.unpack(b.constant_load("i32", b.at(memory, b.i64(index * 2)), 4))
        out.append((a + low, c + high))
    return out


def _residual(rows: Rows, op: Any, pairs: list[Pair]) -> list[Pair]:
    memory = rows.k.operand(rows.body, _last(op))
    places = [index >> 1 for index in _placed(rows, op)]
    words = poll_pair(rows.k, memory, places)
    out = []
    for (a, c), word in zip(pairs, words, strict=True):
        low, high = b.unpack(word)
        out.append((a + low, c + high))
    return out


def _rope(rows: Rows, op: Any, pairs: list[Pair]) -> list[Pair]:
    k, size = rows.k, get(op, "head_size")
    table = k.operand(rows.body, _last(op))
    half = shape_of(_last(op))[1]
    place = k.position * half + (rows.index % size - (get(op, "first") or 0))
    angles = b.constant_load("vector<4xf32>", b.at(table, b.i64(place) * 8), 16)
    cos0, sin0, cos1, sin1 = b.elements(angles, 4)
    (x0, x1), (y0, y1) = pairs
    lo = (x0 * cos0 - y0 * sin0, x1 * cos1 - y1 * sin1)
    hi = (y0 * cos0 + x0 * sin0, y1 * cos1 + x1 * sin1)
    return [lo, hi]


def activation(name: str, x: Value) -> Value:
    """silu(x) = x / (1 + e^-x); gelu_tanh(x) = x · sigmoid(2·sqrt(2/pi)·(x + 0.044715 x³))."""
    log2e = 1.4426950408889634
    if name == "silu":
        return x * b.reciprocal(b.exp2(x * -log2e) + 1.0)
    inner = x + x * x * x * 0.044715
    return x * b.reciprocal(b.exp2(inner * (-1.5957691216057308 * log2e)) + 1.0)


def _glu(_rows: Rows, op: Any, pairs: list[Pair]) -> list[Pair]:
    (g0, g1), (u0, u1) = pairs
    name = get(op, "activation")
    return [(activation(name, g0) * u0, activation(name, g1) * u1)]


def _append(rows: Rows, op: Any, pairs: list[Pair]) -> list[Pair]:
    k, state = rows.k, _last(op)
    _, context, size = shape_of(state)
    memory = k.operand(rows.body, state)
    for pair, index in zip(pairs, _placed(rows, op), strict=True):
        place = (index // size * context + k.position) * size + index % size
        b.store(b.pack(*pair), b.at(memory, b.i64(place) * 2), 4)
    return []


def _publish(rows: Rows, op: Any, pairs: list[Pair]) -> list[Pair]:
    for pair, index in zip(pairs, _placed(rows, op), strict=True):
        publish_pair(rows.k, rows.channel, index >> 1, b.pack(*pair))
    return []


def _logits(rows: Rows, op: Any, pairs: list[Pair]) -> list[Pair]:
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


def _candidate(rows: Rows, op: Any, pairs: list[Pair]) -> list[Pair]:
    for pair, index in zip(pairs, _placed(rows, op), strict=True):
        for e, value in enumerate(pair):
            # Key above, inverted index below: the maximum has the largest value, then the lowest index.
            entry = (b.i64(order_key(value)) << 32) | b.i64((index + e) ^ -1)
            entry = b.select(b.ult(index + e, rows.k.plan.vocabulary), entry, b.const(0, "i64"))
            rows.best[0] = b.umax(rows.best[0], entry)
    return []


Rule = Callable[[Rows, Any, list[Pair]], list[Pair]]
RULES: dict[str, Rule] = {
    "tile.bias": _bias,
    "tile.residual": _residual,
    "tile.rope": _rope,
    "tile.glu": _glu,
    "tile.append": _append,
    "tile.publish": _publish,
    "tile.logits": _logits,
    "tile.candidate": _candidate,
}
