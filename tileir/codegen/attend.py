"""Split-KV attention of queries that share a kv head, on tensor cores, 16 rows a warp at a time.

Scores of 16 rows are K·Qᵀ: rows are the 16 of mma.m16n8k16, queries its 8 columns; sums are Vᵀ·Pᵀ, 16 of a
value's places by the same 8 queries, so that nothing is spent on tokens that a step does not have. Lane g·4+c holds the
scores of rows g and g+8 for queries 2c and 2c+1; `movmatrix` turns their weights into the second product's operand. K,
Q and V are read in 16-byte chunks: a chunk's places are spread over k, or over the 16, alike on both sides. Every warp
keeps an online softmax (Milakov, Gimelshein 2018), in powers of two; warps meet once per task.
"""

from dataclasses import dataclass
from functools import partial as partial_
from typing import Any

from tileir.codegen import builder as b
from tileir.codegen.epilogue import LOG2E, soft_cap
from tileir.codegen.exchange import publish_float, publish_pair
from tileir.codegen.kernel import Kernel
from tileir.codegen.loaders import alone, split_rows, used_splits
from tileir.codegen.plan import BLOCK_ROWS, Body, swizzle_mask
from tileir.codegen.rows import WarpRow, piece_row
from tileir.dialect.attributes import get, name_of
from tileir.dialect.tile_attend import PIECES
from tileir.scheduling.assign import ATTEND_WARPS, rows_a_slot

Value = Any
LOWEST = -1e30
OWN = -(2**31)  # set in a number of rows: the step's own row is there beside them
ONES = 0x3F803F80  # two of bf16


@dataclass(frozen=True)
class _Rows:
    """Rows in shared memory: where keys and values begin, how many rows there are.

    position: the first one's, or one that is a multiple of 16 before it, for plan.swizzle_mask.
    """

    keys: Value
    values: Value
    left: Value
    position: Value


class Attend:
    """Emits an attend body's consumer role. `groups` queries share a task's rows of a kv head.

    A warp's state: maximum and weight of queries 2c and 2c+1, then sums: of the 8 places of a chunk, each for both.
    """

    def __init__(self, k: Kernel, body: Body) -> None:
        self.k, self.body, self.op = k, body, body.find("engine.attend")
        names = ("heads", "kv_heads", "head_size", "splits", "softcap")
        self.heads, self.kv_heads, self.size, self.splits, self.softcap = (
            get(self.op, n) for n in names
        )
        self.tasks = get(self.op, "tasks")
        self.groups = self.heads // get(self.op, "groups")
        self.chunks, self.mask = self.size // 8, swizzle_mask(self.size)
        # Each share of a value's chunks has warps of its own, which make the same scores: all sums of a row would not
        # fit a warp's registers.
        self.shares = -(-self.chunks // 8)
        self.ring = k.plan.rings[get(self.op, "ring")]
        self.per_slot = rows_a_slot(self.ring.slot_bytes, 2, self.size)
        # Where one share is enough, a warp takes more rows at a time: the fewer states are to be joined.
        blocks = min(k.plan.blocks, self.per_slot // BLOCK_ROWS) if self.shares == 1 else 1
        self.unit_rows = BLOCK_ROWS * blocks
        # Warps that share a slot's units, and slots that are at work at once; half of the ring may be on its way.
        warps = min(ATTEND_WARPS, k.plan.warps // self.shares)
        units = -(-self.per_slot // self.unit_rows)
        self.units = _power(min(units, warps))
        self.each = -(-units // self.units)
        self.turns = _power(min(warps // self.units, max(1, self.ring.slots // 2)))
        self.warps = self.units * self.turns
        self.x = b.at(k.smem, None, k.plan.x_offset)
        self.row_bytes, self.part_row = self.size * 2, (self.size + 2) * 4
        self.types = ["f32"] * 20

    def emit(self, slot: Value, parity: Value) -> list[Value]:
        """All of this SM's (group, split) tasks; returns the ring's slot and parity."""
        k = self.k
        first, count = k.share(self.tasks)

        def a_task(i: Value, slot: Value, parity: Value) -> list[Value]:
            task = first + i
            idle = b.uge(task % self.splits, used_splits(k, self.op))
            return b.if_(
                idle,
                lambda: [slot, parity],
                lambda: a_part(task, slot, parity),
                ["i32"] * 2,
            )

        def a_part(task: Value, slot: Value, parity: Value) -> list[Value]:
            group, split = task // self.splits, task % self.splits
            with k.thread_here(), k.words_again():
                self._receive(group, split)
            k.mark("received")
            k.consumers_meet()
            k.mark_met(None)
            *state, slot, parity = self._rows(split, slot, parity)
            with k.thread_here(), k.words_again():
                self._merge(state)
                k.mark("multiplied")
                k.consumers_meet()
                # Taken apart once more: while rows are at work, there are registers for the task alone.
                again = b.here(task)
                self._publish(again // self.splits, again % self.splits)
            k.consumers_meet()
            return [slot, parity]

        return b.for_(b.const(0), count, [slot, parity], a_task)

    def _receive(self, group: Value, split: Value) -> None:
        """q of the group's queries, then its kv head's own k and v, into shared memory as bf16 pairs: a warp a row."""
        k, half, share = self.k, self.size // 2, get(self.op, "groups") // self.kv_heads
        block = self.op.operation.regions[0].blocks[0]
        query, key, value = (o for o in block if name_of(o) in PIECES)
        count = self.groups + 2
        stores = b.both(b.eq(split, 0), b.eq(group % share, 0))
        turned = k.plan.x_offset + count * self.row_bytes

        def take(piece: Any, row: Value, head: Value, turn: Value | None = None) -> None:
            memory = b.at(k.smem, row * (4 * self.size), turned)
            made = WarpRow(k, self.body, head, self.size, memory, stores)
            words = piece_row(made, piece)
            for pair, mine, word in zip(made.pairs, made.mine, words, strict=True):
                place = row * half + (pair if turn is None else pair ^ (turn * 4))
                b.if_(mine, partial_(b.store, word, b.at(self.x, place * 4), 4))

        first, head = group * self.groups, group // share
        # The step's own row lies as the first old one does.
        turn = split_rows(k, self.op, split)[0] & self.mask if self.mask else None
        for n in range(-(-count // k.plan.warps)):
            row = k.warp + n * k.plan.warps
            b.if_(b.ult(row, self.groups), partial_(take, query, row, first + row))
            for at, piece in enumerate((key, value), self.groups):
                b.if_(b.eq(row, at), partial_(take, piece, row, head, turn))

    def _rows(self, split: Value, slot: Value, parity: Value) -> list[Value]:
        """The split's old rows, `turns` slots at a time, and the step's own row if it is the first split."""
        k, ring, turns = self.k, self.ring, self.turns
        begin, rows = split_rows(k, self.op, split)
        at_once = turns * self.per_slot
        own_row = b.const(k.plan.x_offset + self.groups * self.row_bytes)

        def look(rest: Value) -> tuple[Value, Value, Value]:
            """Rows that are left, slots that are at work now, whether the step's own row is."""
            rows = rest & ~OWN
            count = b.umin((rows + (self.per_slot - 1)) // self.per_slot, turns)
            # It is for one of the last warps, once no slot is.
            return rows, count, b.both(b.uge(rest, OWN), b.ult(count, turns))

        def some(rest: Value, *carried: Value) -> list[Value]:
            with k.thread_here():
                return in_slots(rest, *carried)

        def in_slots(rest: Value, *carried: Value) -> list[Value]:
            *state, slot, parity = carried
            turn = self._warp // self.units
            rows, count, own_now = look(rest)
            is_own = b.both(own_now, b.eq(turn, turns - 1))
            mine, mine_parity = k.advance(ring, slot, parity, turn)
            present = b.both(b.ult(turn, count), self._takes_part)
            b.if_(present, lambda: k.wait_full(ring, mine, mine_parity))
            base = b.select(is_own, own_row, mine * ring.slot_bytes + ring.smem_offset)
            values = base + b.select(is_own, b.const(self.row_bytes), ring.slot_bytes // 2)
            left = rows - turn * self.per_slot
            if self.each * self.units * self.unit_rows > self.per_slot:
                left = b.umin(left, self.per_slot)
            left = b.select(is_own, b.const(1), left)
            busy = present | b.both(is_own, self._takes_part)
            for i in range(self.each):
                state = b.if_(
                    b.both(busy, b.ult(self._first(i), left)),
                    partial_(self._unit, state, _Rows(base, values, left, begin), i),
                    partial_(list, state),
                    self.types,
                )
            # Once more: while a unit is at work, registers are for it.
            rest = b.here(rest)
            rows, count, own_now = look(rest)
            k.release_some(ring, slot, parity, count)
            rest = b.select(own_now, rest ^ OWN, rest) - b.umin(rows, at_once)
            return [rest, *state, *k.advance(ring, slot, parity, count)]

        top, zero = b.const(LOWEST, "f32"), b.const(0.0, "f32")
        # What is left, in one word for the registers: rows, and the step's own.
        rest = b.select(b.eq(split, 0), rows | OWN, rows)
        start = [rest, top, top, *[zero] * 18, slot, parity]
        return b.while_(start, lambda rest, *_: b.ne(rest, 0), some)[1:]

    def _first(self, i: int) -> Value:
        """The first row of the warp's unit number i of a slot."""
        return ((self._warp & (self.units - 1)) + i * self.units) * self.unit_rows

    def _unit(self, state: list[Value], rows: _Rows, i: int) -> list[Value]:
        """The state after the warp's unit number i of a slot."""
        blocks = [n * BLOCK_ROWS for n in range(self.unit_rows // BLOCK_ROWS)]
        scores = [self._scores(rows, self._first(i) + block) for block in blocks]
        tops, shrinks = [], []
        for q in (0, 1):
            new = b.tree([s for block in scores for s in block[q::2]], b.fmax)
            for distance in (4, 8, 16):
                new = b.fmax(new, b.shuffle_xor(new, distance))
            tops.append(b.fmax(state[q], new))
            shrinks.append(b.exp2(state[q] - tops[q]))
        made = [s * shrinks[i % 2] for i, s in enumerate(state[2:])]
        for block, mine in zip(blocks, scores, strict=True):
            shares = [b.exp2(s - tops[i % 2]) for i, s in enumerate(mine)]
            x = [b.transpose_pairs(b.pack(*shares[at : at + 2])) for at in (0, 2)]
            with self.k.thread_here():
                made = self._add(made, x, rows, self._first(i) + block)
        return [*tops, *made]

    def _add(self, sums: list[Value], x: list[Value], rows: _Rows, first: Value) -> list[Value]:
        """A lane's weights and sums with those of 16 rows added, whose weights are `x`."""
        g, c = self.k.lane >> 2, self.k.lane & 3
        chunk = b.umin(self._value_chunk(g), self.chunks - 1)
        words = []
        for at in (0, 1, 8, 9):
            place = rows.values + self._row(rows, first + c * 2 + at)
            words.append(b.elements(self._chunk(place, chunk ^ self._turn(rows, c * 2 + at)), 4))
        # A row of ones by the weights of rows: their sums over all lanes, of what the values are weighted with.
        zero = b.const(0.0, "f32")
        made = b.mma([*sums[:2], zero, zero], [b.const(ONES)] * 4, x)[:2]
        for e in range(4):
            a = [
                b.bytes_of(words[pair][e], words[pair + 1][e], picks)
                for pair in (0, 2)
                for picks in (0x5410, 0x7632)
            ]
            made += b.mma(sums[2 + 4 * e : 6 + 4 * e], a, x)
        return made

    def _scores(self, rows: _Rows, first: Value) -> list[Value]:
        """Of rows first + g and first + g + 8, each for queries 2c and 2c+1; of rows that are not there the lowest."""
        with self.k.thread_here():
            scores = [self._score(s) for s in self._products(rows, first)]
        inside = [b.ult(first + (self.k.lane >> 2) + at, rows.left) for at in (0, 8)]
        return [b.select(inside[i // 2], s, LOWEST) for i, s in enumerate(scores)]

    def _products(self, rows: _Rows, first: Value) -> list[Value]:
        """q·k of rows first + g and first + g + 8, each for queries 2c and 2c+1."""
        k, g, c = self.k, self.k.lane >> 2, self.k.lane & 3
        places = [rows.keys + self._row(rows, first + g + at) for at in (0, 8)]
        turn = self._turn(rows, g)
        query = b.umin(g, self.groups - 1) * self.row_bytes + k.plan.x_offset
        zero = b.const(0.0, "f32")
        sums = [[zero] * 4, [zero] * 4]
        for j in range(-(-self.chunks // 4)):
            # A chunk's places are spread over k alike for keys and queries; which chunk a lane takes is free: where
            # chunks are turned, such that lanes of a row and of the one above meet in no bank.
            wanted = c * 2 + (j // 2 * 8 + j % 2) if self.mask else c + j * 4
            chunk = b.umin(wanted, self.chunks - 1)
            high, low = (b.elements(self._chunk(place, chunk ^ turn), 4) for place in places)
            x = b.elements(self._chunk(query, chunk), 4)
            if (j + 1) * 4 > self.chunks:
                x = [b.select(b.ult(wanted, self.chunks), word, b.const(0)) for word in x]
            for i in (0, 1):
                a = [high[2 * i], low[2 * i], high[2 * i + 1], low[2 * i + 1]]
                sums[i] = b.mma(sums[i], a, x[2 * i : 2 * i + 2])
        return [u + v for u, v in zip(*sums, strict=True)]

    def _row(self, rows: _Rows, row: Value) -> Value:
        """Where a row begins, in bytes. One beyond the last is the last one again: what lies there may be NaN."""
        return b.umin(row, rows.left - 1) * self.row_bytes

    def _turn(self, rows: _Rows, row: Value) -> Value:
        """What the numbers of a row's chunks are turned by, of a row or of one that is a multiple of 16 away."""
        return (rows.position + row) & self.mask if self.mask else b.const(0)

    @property
    def _warp(self) -> Value:
        """Which of the warps that share a split's rows this one is."""
        return self.k.warp & (self.warps - 1)

    @property
    def _takes_part(self) -> Value:
        """Whether the warp is one of those that attend."""
        return b.ult(self.k.warp, self.warps * self.shares)

    def _value_chunk(self, g: Value) -> Value:
        """The chunk of a value of which a lane has sums; there may be none of that number."""
        return g if self.shares == 1 else g + (self.k.warp // self.warps << 3)

    def _chunk(self, row: Value, chunk: Value) -> Value:
        return b.load("vector<4xi32>", b.at(self.k.smem, row + chunk * 16), 16)

    def _score(self, product: Value) -> Value:
        """In units of log2."""
        score = product * float(get(self.op, "scale"))
        if self.softcap:
            score = soft_cap(score, float(self.softcap))
        return score * LOG2E

    def _merge(self, state: list[Value]) -> None:
        """Each warp leaves its state in shared memory: a query's sums, maximum and weight."""
        k = self.k
        g, c = k.lane >> 2, k.lane & 3
        mine = b.at(k.smem, self._warp * (self.groups * self.part_row), k.plan.part_offset)

        def leave(q: int) -> None:
            row = b.at(mine, (c * 2 + q) * self.part_row)
            chunk = self._value_chunk(g)
            at = b.at(row, chunk * 32)

            def store() -> None:
                for e in range(4):
                    b.store(b.vec(*state[4 + 4 * e + q : 8 + 4 * e : 2]), b.at(at, None, 8 * e), 8)

            b.if_(b.ult(chunk, self.chunks), store)
            statistics = b.vec(state[q], state[2 + q])
            last = partial_(b.store, statistics, b.at(row, None, self.size * 4), 8)
            b.if_(b.both(b.eq(g, 0), b.ult(k.warp, self.warps)), last)

        for q in (0, 1):
            has = b.both(b.ult(c * 2 + q, self.groups), self._takes_part)
            b.if_(has, partial_(leave, q))

    def _publish(self, group: Value, split: Value) -> None:
        """Join the warps' states, a thread two values; publish the result, or the split's part of it."""
        k, half = self.k, self.size // 2
        partial, *_ = self.op.operation.operands
        part = k.outlet(self.body, partial)
        finish = [o for o in self.op.operation.regions[0].blocks[0] if name_of(o) == "tile.finish"]
        result = k.outlet(self.body, finish[0].operands[0])
        pairs = self.groups * half

        def one(index: Value) -> None:
            g, i = index // half, index % half
            row = b.at(k.smem, g * self.part_row)
            values_at = b.at(row, i * 8)
            states, sums = [], []
            for w in range(self.warps):
                at = k.plan.part_offset + w * self.groups * self.part_row
                pair = b.load("vector<2xf32>", b.at(row, None, at + self.size * 4), 8)
                states.append(b.elements(pair, 2))
                sums.append(b.elements(b.load("vector<2xf32>", b.at(values_at, None, at), 8), 2))
            top = b.tree([t for t, _ in states], b.fmax)
            factors = [b.exp2(t - top) for t, _ in states]
            weight = b.total([f * w for f, (_, w) in zip(factors, states, strict=True)])
            low, high = (
                b.total([f * v[e] for f, v in zip(factors, sums, strict=True)]) for e in (0, 1)
            )

            def whole() -> None:
                share = b.reciprocal(weight)
                word = b.pack(low * share, high * share)
                publish_pair(k, result, group * pairs + index, word)

            def split_part() -> None:
                head = group * self.groups + g
                packet = (head * self.splits + split) * (self.size + 2)
                publish_float(k, part, packet + i * 2, low)
                publish_float(k, part, packet + (i * 2 + 1), high)

                def statistics() -> None:
                    publish_float(k, part, packet + self.size, top)
                    publish_float(k, part, packet + (self.size + 1), weight)

                b.if_(b.eq(i, 0), statistics)

            if self.splits == 1:
                whole()
            else:
                b.if_(alone(k, self.op), whole, split_part)

        for n in range(-(-pairs // k.plan.threads)):
            index = k.tid + n * k.plan.threads
            b.if_(b.ult(index, pairs), partial_(one, index))


def _power(value: int) -> int:
    """The largest power of two that is no more."""
    return 1 << (value.bit_length() - 1)
