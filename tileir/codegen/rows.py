"""Rows of a channel: norms, sums and rotations, in maps a row at a time by all consumer warps of an SM.

Thread t holds the pairs t, t + threads, … of a row as f32. Values that other threads hold go through shared memory.
Attention's rows are a warp's each.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from tileir.codegen import builder as b
from tileir.codegen.exchange import poll_pair, publish_pair
from tileir.codegen.kernel import Kernel
from tileir.codegen.layout import SQUARES
from tileir.codegen.plan import Body
from tileir.dialect.attributes import get, name_of, shape_of, static_shape, walk
from tileir.dialect.tile_attend import statements_on

Value = Any
Pair = tuple[Value, Value]
POLLED = 16  # packets that a thread asks for at once


class Row:
    """The row that a body is emitted for. size: its values; pairs: the numbers of this thread's pairs.

    memory: room for the row in shared memory, f32. stores: whether tile.store does, None if it always does.
    """

    def __init__(self, k: Kernel, body: Body, number: Value, size: int) -> None:
        self.k, self.body, self.number, self.size = k, body, number, size
        self.memory = b.at(k.smem, None, k.plan.part_offset)
        self.stores: Value | None = None
        count, (thread, threads) = size // 2, self.threads
        self.pairs = [thread + n * threads for n in range(-(-count // threads))]
        self.mine = [b.ult(pair, count) for pair in self.pairs]
        # Threads without a pair ask for others', spread: a line that all of them asked for would be served last.
        spread = thread & ((1 << (count.bit_length() - 1)) - 1)
        self.inside = [
            b.select(m, pair, spread) for m, pair in zip(self.mine, self.pairs, strict=True)
        ]

    @property
    def threads(self) -> tuple[Value, int]:
        """This thread's number among those that hold the row, and how many they are."""
        return self.k.tid, self.k.plan.threads

    def meet(self) -> None:
        """Barrier of the threads that hold the row."""
        self.k.consumers_meet()

    def constants(self, value: Any) -> list[Pair]:
        """This thread's pairs of a bf16 buffer of `size` values."""
        memory = self.k.operand(self.body, value)
        words = [b.constant_load("i32", b.at(memory, b.i64(i) * 4), 4) for i in self.inside]
        return [(low, high) for low, high in map(b.unpack, words)]

    def warp_total(self, values: list[Pair]) -> Value:
        """The sum over what the warp holds of values, in each of its threads."""
        mine = [b.select(m, x + y, 0.0) for m, (x, y) in zip(self.mine, values, strict=True)]
        sum_ = b.total(mine)
        for distance in (16, 8, 4, 2, 1):
            sum_ = sum_ + b.shuffle_xor(sum_, distance)
        return sum_

    def total(self, values: list[Pair]) -> Value:
        """The sum over the row of values, in every thread."""
        k, sum_ = self.k, self.warp_total(values)
        # Met before, so that nobody still reads an earlier sum, and after.
        k.consumers_meet()
        sums = b.at(k.scratch, k.half * (4 * k.plan.warps), SQUARES)
        b.store(sum_, b.at(sums, k.warp * 4), 4)
        k.consumers_meet()
        fours = [
            b.load("vector<4xf32>", b.at(sums, None, 4 * w), 16) for w in range(0, k.plan.warps, 4)
        ]
        return b.total([e for four in fours for e in b.elements(four, 4)])


class WarpRow(Row):
    """A row that a warp holds."""

    def __init__(
        self, k: Kernel, body: Body, number: Value, size: int, memory: Value, stores: Value | None
    ) -> None:
        super().__init__(k, body, number, size)
        self.memory, self.stores = memory, stores

    @property
    def threads(self) -> tuple[Value, int]:
        """A lane of 32."""
        return self.k.lane, 32

    def meet(self) -> None:
        """Barrier of the warp."""
        b.warp_sync()

    def total(self, values: list[Pair]) -> Value:
        """The sum over the row of values, in every lane."""
        return self.warp_total(values)


def piece_row(row: WarpRow, piece: Any) -> list[Value]:
    """A lane's pairs of a head's query or key, bf16 words, after the piece's statements."""
    statements = statements_on(piece)
    fetched = _fetch(row, statements)
    stride, offset = get(piece, "stride") // 2, get(piece, "offset") // 2
    channel = row.k.operand(row.body, piece.operands[0])
    places = [row.number * stride + offset + i for i in row.inside]
    words = poll_pair(row.k, channel, places, together=True)
    if not statements:
        return words
    values = {piece.results[0]: [(low, high) for low, high in map(b.unpack, words)]}
    for op in statements:
        _do(row, op, values, fetched)
    *_, last = values.values()
    return [b.pack(*pair) for pair in last]


def rows(k: Kernel, body: Body) -> None:
    """A map body's consumer role: this SM's rows, one after the other."""
    op = body.find("engine.map")
    block = op.operation.regions[0].blocks[0]
    channel = op.operation.operands[0]
    width = static_shape(channel)[1] // get(op, "space")
    (load, *_) = walk(op, "tile.load")
    to, size = k.outlet(body, channel), get(load, "size")
    first, count = k.share(get(op, "rows"))

    def a_row(i: Value) -> list[Value]:
        row = Row(k, body, k.tile_base + first + i, size)
        made = _run(row, block)
        base = row.number * (width // 2)
        for pair, mine, values in zip(row.pairs, row.mine, made, strict=True):
            b.if_(mine, partial(publish_pair, k, to, base + pair, b.pack(*values)))
        behind = (width - size) // 2
        if behind:
            zero = partial(publish_pair, k, to, base + (k.tid + size // 2), b.const(0))
            b.if_(b.ult(k.tid, behind), zero)
        return []

    b.for_(b.const(0), count, [], a_row)


def _run(row: Row, block: Any) -> list[Pair]:
    """This thread's pairs of what the body yields. Constants are asked for before the row is there."""
    *statements, end = block
    fetched, values = _fetch(row, statements), dict[Any, list[Pair]]()
    for op in statements:
        _do(row, op, values, fetched)
    return values[end.operation.operands[0]]


def _fetch(row: Row, statements: Sequence[Any]) -> dict[Any, list[Any]]:
    """The constants of statements, asked for."""
    return {op: FETCHES[name_of(op)](row, op) for op in statements if name_of(op) in FETCHES}


def _do(row: Row, op: Any, values: dict[Any, list[Pair]], fetched: Mapping[Any, list[Any]]) -> None:
    """One statement, on this thread's pairs of the values before it."""
    operands = list(op.operation.operands)
    known = [values[o] for o in operands if o in values]
    others = fetched.get(op) or [o for o in operands if o not in values]
    made = RULES[name_of(op)](row, op, known, others)
    if made:
        values[op.operation.results[0]] = made


def _load(row: Row, op: Any, _known: list[list[Pair]], others: list[Any]) -> list[Pair]:
    channel = row.k.operand(row.body, others[0])
    base = row.number * (row.size // 2) + get(op, "offset") // 2
    places = [base + i for i in row.inside]
    words: list[Value] = []
    for at in range(0, len(places), POLLED):
        words += poll_pair(row.k, channel, places[at : at + POLLED], together=True)
    return [(low, high) for low, high in map(b.unpack, words)]


def _plus(_row: Row, _op: Any, known: list[list[Pair]], _others: list[Any]) -> list[Pair]:
    return [(a + c, d + e) for (a, d), (c, e) in zip(known[0], known[-1], strict=True)]


def _rms_norm(row: Row, op: Any, known: list[list[Pair]], others: list[Any]) -> list[Pair]:
    (weights,) = others
    if get(op, "unit_offset"):
        weights = [(x + 1.0, y + 1.0) for x, y in weights]
    squares = [(x * x, y * y) for x, y in known[0]]
    scale = b.rsqrt(row.total(squares) * (1.0 / row.size) + float(get(op, "eps")))
    return [
        (x * scale * v, y * scale * w) for (x, y), (v, w) in zip(known[0], weights, strict=True)
    ]


def _layer_norm(row: Row, op: Any, known: list[list[Pair]], others: list[Any]) -> list[Pair]:
    weights, biases = others
    mean = row.total(known[0]) * (1.0 / row.size)
    centred = [(x - mean, y - mean) for x, y in known[0]]
    squares = [(x * x, y * y) for x, y in centred]
    scale = b.rsqrt(row.total(squares) * (1.0 / row.size) + float(get(op, "eps")))
    return [
        (x * scale * v + c, y * scale * w + d)
        for (x, y), (v, w), (c, d) in zip(centred, weights, biases, strict=True)
    ]


def _constants_of(row: Row, op: Any) -> list[list[Pair]]:
    """This thread's pairs of the buffers that a norm reads."""
    return [row.constants(value) for value in list(op.operation.operands)[1:]]


class _Turn:
    """A value of a row that turns: places of its own and of its partner, its angle, whether it is of those that do."""

    def __init__(self, row: Row, op: Any, i: Value, e: int) -> None:
        k, first, table = row.k, get(op, "first"), list(op.operation.operands)[1]
        half = shape_of(table)[1]
        assert half is not None
        j = i * 2 + e - first  # wraps around below `first`
        self.turns = b.ult(j, 2 * half)
        number, partner, own, self.low = _PARTNERS[get(op, "style")](
            b.select(self.turns, j, 0), half
        )
        self.places = own, partner
        at = b.at(k.operand(row.body, table), b.i64(k.position * half + number) * 8)
        self.cos, self.sin = b.elements(b.constant_load("vector<2xf32>", at, 8), 2)


def _turns_of(row: Row, op: Any) -> list[tuple[_Turn, _Turn]]:
    """What this thread's pairs need to turn."""
    return [(_Turn(row, op, i, 0), _Turn(row, op, i, 1)) for i in row.inside]


def _rotate(row: Row, op: Any, known: list[list[Pair]], others: list[Any]) -> list[Pair]:
    """Every value from its own and its partner's, which another thread holds."""
    first, memory = get(op, "first"), row.memory
    row.meet()
    for pair, mine, values in zip(row.pairs, row.mine, known[0], strict=True):
        b.if_(mine, partial(b.store, b.vec(*values), b.at(memory, pair * 8), 8))
    row.meet()

    def turned(turn: _Turn, value: Value) -> Value:
        mine, other = (b.load("f32", b.at(memory, n * 4, first * 4), 4) for n in turn.places)
        sin = b.select(turn.low, b.const(0.0, "f32") - turn.sin, turn.sin)
        return b.select(turn.turns, mine * turn.cos + other * sin, value)

    return [
        (turned(low, x), turned(high, y))
        for (low, high), (x, y) in zip(others, known[0], strict=True)
    ]


def _halves(j: Value, half: int) -> tuple[Value, Value, Value, Value]:
    low = b.ult(j, half)
    return b.select(low, j, j - half), b.select(low, j + half, j - half), j, low


def _interleaved(j: Value, _half: int) -> tuple[Value, Value, Value, Value]:
    return j >> 1, j ^ 1, j, b.eq(j & 1, 0)


def _split(j: Value, half: int) -> tuple[Value, Value, Value, Value]:
    low = b.ult(j, half)
    i = b.select(low, j, j - half)
    own = i * 2 + b.select(low, b.const(0), 1)
    return i, own ^ 1, own, low


# style → (angle, partner's place, own place, whether the lower of the pair is made) of a place.
_PARTNERS = {"half": _halves, "interleaved": _interleaved, "split": _split}


def _store(row: Row, op: Any, known: list[list[Pair]], others: list[Any]) -> list[Pair]:
    k = row.k
    _, context, size = static_shape(others[0])
    place, first = (row.number * context + k.position) * size, get(op, "offset") // 2
    memory = b.at(k.operand(row.body, others[0]), b.i64(place) * 2)
    for pair, mine, values in zip(row.pairs, row.mine, known[0], strict=True):
        stores = mine if row.stores is None else b.both(mine, row.stores)
        b.if_(
            stores,
            partial(b.store, b.pack(*values), b.at(memory, k.swizzled(pair + first, size) * 4), 4),
        )
    return []


Rule = Callable[[Row, Any, list[list[Pair]], list[Any]], list[Pair]]
RULES: dict[str, Rule] = {
    "tile.load": _load,
    "tile.plus": _plus,
    "tile.rms_norm": _rms_norm,
    "tile.layer_norm": _layer_norm,
    "tile.rotate": _rotate,
    "tile.store": _store,
}
FETCHES: dict[str, Callable[[Row, Any], list[Any]]] = {
    "tile.rms_norm": _constants_of,
    "tile.layer_norm": _constants_of,
    "tile.rotate": _turns_of,
}
