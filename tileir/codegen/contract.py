"""Contractions: activations into shared memory, weight tiles through the tensor cores, epilogue, channel."""

from collections.abc import Callable
from functools import partial
from typing import Any

from tileir.codegen import builder as b
from tileir.codegen.epilogue import Rows, fetch_segment, run_segment, words_of
from tileir.codegen.exchange import PACKET_BYTES, poll_many, publish_pair
from tileir.codegen.kernel import Kernel
from tileir.codegen.layout import BEST, SQUARES
from tileir.codegen.plan import Body
from tileir.codegen.weights import POLLED, Weights, part
from tileir.dialect.attributes import get, name_of, walk
from tileir.dialect.tile import padded

Value = Any


def contract(k: Kernel, body: Body, slot: Value, parity: Value) -> list[Value]:
    """A contract body's consumer role; returns the tape ring's slot and parity."""
    multiply = body.find("engine.multiply")
    first, count = k.share(get(multiply, "tiles"))
    # What the epilogue adds is older than x: asked for first, it is there when x is.
    words = _fetch(k, body, first, count)
    weights = Weights(k, multiply, count)
    slot, parity, *blocks = weights.ask_early(slot, parity)
    norm = _receive(k, body)
    k.mark("received")
    k.consumers_meet()
    slot, parity = weights.multiply(slot, parity, *blocks)
    k.mark("multiplied")
    k.consumers_meet()
    _emit(k, body, first, count, norm, words)
    return [slot, parity]


def _squares(k: Kernel, warp: Value | None) -> Value:
    """Where the warps leave their sums of squares; rows alternate between two halves."""
    offset = k.half * (4 * k.plan.warps)
    return b.at(k.scratch, offset if warp is None else offset + warp * 4, SQUARES)


def _receive(k: Kernel, body: Body) -> Any:
    """Poll x, apply the prologue, round to bf16 into shared memory; returns the norm op, if any."""
    op = body.find("engine.receive")
    size = get(op, "k")
    norms = list(walk(op, "tile.rms_norm"))
    norm = norms[0] if norms else None
    threads, pairs = k.plan.threads, size // 2
    channel = k.operand(body, op.operation.operands[0])
    channel = b.at(channel, None, get(op, "offset") // 2 * PACKET_BYTES)
    numbers, squares = range(-(-pairs // threads)), list[Value]()
    for at in range(0, len(numbers), POLLED):
        some = [q * threads for q in numbers[at : at + POLLED]]
        squares += _receive_some(k, body, op, norm, channel, some)
    x = b.at(k.smem, None, k.plan.x_offset)
    rest = (padded(size) - size) // 2
    if rest:
        tail = b.at(x, k.tid * 4, pairs * 4)
        b.if_(b.ult(k.tid, rest), lambda: b.store(b.const(0), tail, 4))
    if norm is not None:
        sum_ = b.total(squares)
        for distance in (16, 8, 4, 2, 1):
            sum_ = sum_ + b.shuffle_xor(sum_, distance)
        b.store(sum_, _squares(k, k.warp), 4)
    return norm


def _receive_some(
    k: Kernel, body: Body, op: Any, norm: Any, channel: Value, firsts: list[int]
) -> list[Value]:
    """This thread's pairs from each of `firsts` on; returns their squares' sums if there is a norm."""
    pairs, threads, offset = get(op, "k") // 2, k.plan.threads, 0.0
    whole = [first + threads <= pairs for first in firsts]
    numbers = [
        k.tid if w else b.umin(k.tid, pairs - 1 - f) for f, w in zip(firsts, whole, strict=True)
    ]
    scales = []
    if norm is not None:
        offset = 1.0 if get(norm, "unit_offset") else 0.0
        memory = k.operand(body, list(norm.operation.operands)[1])
        places = [b.at(memory, b.i64(n * 4), f * 4) for n, f in zip(numbers, firsts, strict=True)]
        scales = [b.constant_load("i32", place, 4) for place in places]
    words, squares = _poll_some(k, channel, pairs, firsts), []
    x = b.at(k.smem, k.tid * 4, k.plan.x_offset)
    for q, (first, word) in enumerate(zip(firsts, words, strict=True)):
        mine = None if whole[q] else b.ult(k.tid, pairs - first)
        if norm is not None:
            low, high = b.unpack(word)
            square = low * low + high * high
            squares.append(square if mine is None else b.select(mine, square, 0.0))
            s_low, s_high = (s + offset if offset else s for s in b.unpack(scales[q]))
            word = b.pack(low * s_low, high * s_high)
        store = partial(b.store, word, b.at(x, None, first * 4), 4)
        store() if mine is None else b.if_(mine, store)
    return squares


def _poll_some(k: Kernel, channel: Value, pairs: int, firsts: list[int]) -> list[Value]:
    """This thread's packets from each of `firsts` on, of `pairs`.

    A line that every SM's surplus threads asked for would be served last: they ask for their first packet again, and
    warps that have none for nothing.
    """
    threads, mine = k.plan.threads, k.tid * PACKET_BYTES
    begin = firsts[0]
    if begin + threads > pairs:
        mine = b.umin(k.tid, pairs - 1 - begin) * PACKET_BYTES
    own = b.at(channel, b.i64(mine))
    places = [b.at(own, None, begin * PACKET_BYTES)]
    for first in firsts[1:]:
        if first + threads <= pairs:
            places.append(b.at(own, None, first * PACKET_BYTES))
        else:
            offset = b.select(b.ult(k.tid, pairs - first), b.const(first), b.const(begin))
            places.append(b.at(own, b.i64(offset * PACKET_BYTES)))

    def ask() -> list[Value]:
        return poll_many(k, places, k.tid)

    if begin + threads - 32 < pairs:
        return ask()
    none = [b.const(0)] * len(places)
    return b.if_(b.ult(k.warp * 32, pairs - begin), ask, lambda: none, ["i32"] * len(places))


def _segments(body: Body) -> list[Any]:
    region = body.find("engine.emit").operation.regions[0].blocks[0]
    return [s for s in region if name_of(s) == "tile.segment"]


def _fetch(k: Kernel, body: Body, first: Value, count: Value) -> list[Value]:
    """What the rows' segments read, for the threads that will emit them."""
    segments = _segments(body)
    size = max(words_of(s) for s in segments)
    if not size:
        return []

    def fetch(segment: Any, index: Value) -> list[Value]:
        found = fetch_segment(Rows(k, body, index, None, []), segment)
        return [*found, *[b.const(0)] * (size - len(found))]

    def mine() -> list[Value]:
        return _choose_segment(
            segments, k.tile_base + first + (k.tid >> 2), k.tid & 3, fetch, ["i32"] * size
        )

    return b.if_(b.ult(k.tid, count * 4), mine, lambda: [b.const(0)] * size, ["i32"] * size)


def _emit(k: Kernel, body: Body, first: Value, count: Value, norm: Any, words: list[Value]) -> None:
    """Add the warps' sums, four rows a thread, and run the row's segment."""
    op = body.find("engine.emit")
    channel = k.outlet(body, op.operation.operands[0])
    chooses = bool(list(walk(op, "tile.candidate")))
    types = ["i64"] if chooses else []
    scale = _row_scale(k, body, norm)

    def rows() -> list[Value]:
        tile, p = k.tid >> 2, k.tid & 3
        lo, hi = (_sum_pair(k, tile, p, half, scale) for half in (0, 32))

        def run(segment: Any, index: Value) -> list[Value]:
            best = [b.const(0, "i64")]
            run_segment(Rows(k, body, index, channel, best), segment, lo, hi, words)
            return best if chooses else []

        return _choose_segment(_segments(body), k.tile_base + first + tile, p, run, types)

    otherwise = (lambda: [b.const(0, "i64")]) if chooses else None
    best = b.if_(b.ult(k.tid, count * 4), rows, otherwise, types)
    if chooses:
        _publish_best(k, channel, best[0])


def _row_scale(k: Kernel, body: Body, norm: Any) -> Value | None:
    """rsqrt(mean(x²) + eps), from the warps' sums of squares."""
    if norm is None:
        return None
    size = get(body.find("engine.receive"), "k")
    fours = [
        b.load("vector<4xf32>", b.at(_squares(k, None), None, 4 * w), 16)
        for w in range(0, k.plan.warps, 4)
    ]
    mean = b.total([e for v in fours for e in b.elements(v, 4)]) * (1.0 / size)
    return b.rsqrt(mean + float(get(norm, "eps")))


def _sum_pair(
    k: Kernel, tile: Value, p: Value, half: int, scale: Value | None
) -> tuple[Value, Value]:
    loads = [
        b.load("vector<2xf32>", b.at(part(k, tile, w, half), p * 8), 8) for w in range(k.plan.warps)
    ]
    low, high = (b.total([b.element(v, e) for v in loads]) for e in (0, 1))
    return (low, high) if scale is None else (low * scale, high * scale)


def _choose_segment(
    segments: list[Any],
    tile: Value,
    p: Value,
    run: Callable[[Any, Value], list[Value]],
    types: list[str],
) -> list[Value]:
    """run(the segment that holds the tile, the thread's first row); `tile` counts from the first segment."""
    segment, rest = segments[0], segments[1:]

    def mine() -> list[Value]:
        inner, step, outer = (get(segment, n) for n in ("inner", "step", "outer"))
        return run(segment, tile // inner * outer + tile % inner * step + p * 2)

    if not rest:
        return mine()
    size = get(segment, "tiles")
    return b.if_(
        b.ult(tile, size),
        mine,
        lambda: _choose_segment(rest, tile - size, p, run, types),
        types,
    )


def reduce_best(k: Kernel, best: Value, offset: int) -> Value:
    """The block's largest candidate, the same in every thread; meets all consumers once."""
    for distance in (16, 8, 4, 2, 1):
        halves = [b.shuffle_xor(h, distance) for h in (b.i32(best >> 32), b.i32(best))]
        best = b.umax(best, (b.i64(halves[0]) << 32) | b.i64(halves[1]))
    b.store(best, b.at(k.scratch, k.warp * 8, offset), 8)
    k.consumers_meet()
    all_ = [b.load("i64", b.at(k.scratch, None, offset + 8 * w), 8) for w in range(k.plan.warps)]
    return b.tree(all_, b.umax)


def _publish_best(k: Kernel, channel: Value, best: Value) -> None:
    # Writers' side of the state order: every row appended so far is visible to the copy engine
    # of whoever has seen this record (docs/ir.md).
    b.fence_proxy_async()
    best = reduce_best(k, best, BEST)

    def send() -> None:
        b.fence_gpu()
        publish_pair(k, channel, k.sm * 2, b.i32(best >> 32))
        publish_pair(k, channel, k.sm * 2 + 1, b.i32(best) ^ -1)

    b.if_(b.eq(k.tid, 0), send)
