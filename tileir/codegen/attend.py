"""Split-KV attention of queries that share a kv head, on tensor cores, 16 rows a warp at a time.

Scores of a unit of 16 rows are K·Qᵀ: rows are the 16 of mma.m16n8k16, queries its 8 columns; sums are Vᵀ·Pᵀ, 16 of a
value's places by the same 8 queries, so that nothing is spent on tokens that a step does not have. Lane g·4+c holds the
scores of rows g and g+8 for queries 2c and 2c+1; `movmatrix` turns their weights into the second product's operand. K,
Q and V are read in 16-byte chunks: a chunk's places are spread over k, or over the 16, alike on both sides. Every warp
keeps an online softmax (Milakov, Gimelshein 2018), in powers of two; warps meet once per task.
"""

from functools import partial as partial_
from typing import Any

from tileir.codegen import builder as b
from tileir.codegen.epilogue import LOG2E, soft_cap
from tileir.codegen.exchange import publish_float, publish_pair
from tileir.codegen.kernel import Kernel
from tileir.codegen.loaders import alone, split_rows
from tileir.codegen.plan import Body
from tileir.codegen.rows import WarpRow, piece_row
from tileir.dialect.attributes import get, name_of
from tileir.dialect.tile import PIECES
from tileir.scheduling.assign import ATTEND_WARPS, rows_a_slot

Value = Any
LOWEST = -1e30
UNIT_ROWS = 16


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
        self.chunks = self.size // 8
        # Each share of a value's chunks has warps of its own, which make the same scores: all sums of a row would not
        # fit a warp's registers.
        self.shares = -(-self.chunks // 8)
        warps = min(ATTEND_WARPS, k.plan.warps // self.shares)
        self.warps = 1 << (warps.bit_length() - 1)
        self.ring = k.plan.rings[get(self.op, "ring")]
        self.x = b.at(k.smem, None, k.plan.x_offset)
        self.row_bytes, self.part_row = self.size * 2, (self.size + 2) * 4
        self.types = ["f32"] * 20

    def emit(self, slot: Value, parity: Value) -> list[Value]:
        """All of this SM's (group, split) tasks; returns the ring's slot and parity."""
        k = self.k
        first, count = k.share(self.tasks)

        def a_task(i: Value, slot: Value, parity: Value) -> list[Value]:
            task = first + i
            group, split = task // self.splits, task % self.splits
            idle = b.both(alone(k, self.op), b.ne(split, 0))
            return b.if_(
                idle,
                lambda: [slot, parity],
                lambda: a_part(group, split, slot, parity),
                ["i32"] * 2,
            )

        def a_part(group: Value, split: Value, slot: Value, parity: Value) -> list[Value]:
            with k.thread_here(), k.words_again():
                self._receive(group, split)
            received = k.clock()
            k.consumers_meet()
            met = k.meeting_clock(None)
            *state, slot, parity = self._rows(split, slot, parity)
            with k.thread_here(), k.words_again():
                self._merge(state)
                multiplied = k.clock()
                k.consumers_meet()
                self._publish(group, split)
                k.note(received=received, met=met, multiplied=multiplied)
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

        def take(piece: Any, row: Value, head: Value) -> None:
            memory = b.at(k.smem, row * (4 * self.size), turned)
            made = WarpRow(k, self.body, head, self.size, memory, stores)
            words = piece_row(made, piece)
            for pair, mine, word in zip(made.pairs, made.mine, words, strict=True):
                b.if_(mine, partial_(b.store, word, b.at(self.x, (row * half + pair) * 4), 4))

        first, head = group * self.groups, group // share
        for n in range(-(-count // k.plan.warps)):
            row = k.warp + n * k.plan.warps
            b.if_(b.ult(row, self.groups), partial_(take, query, row, first + row))
            for at, piece in enumerate((key, value), self.groups):
                b.if_(b.eq(row, at), partial_(take, piece, row, head))

    def _rows(self, split: Value, slot: Value, parity: Value) -> list[Value]:
        """The split's old rows, slot by slot, before them the step's own row if it is the first split."""
        k, ring = self.k, self.ring
        per_slot = rows_a_slot(ring.slot_bytes, 2, self.size)
        units = per_slot // UNIT_ROWS
        # Warps take turns at slots of fewer units than warps; of more units they take several.
        turns, each = max(1, self.warps // units), max(1, units // self.warps)
        own = b.i32(b.eq(split, 0))
        _, rows = split_rows(k, self.op, split)
        own_row = b.const(k.plan.x_offset + self.groups * self.row_bytes)

        def a_slot(n: Value, *carried: Value) -> list[Value]:
            with k.thread_here():
                return in_slot(n, *carried)

        def in_slot(n: Value, *carried: Value) -> list[Value]:
            *state, slot, parity = carried
            warp = k.warp & (self.warps - 1)
            unit, turn = warp & (min(units, self.warps) - 1), warp // units
            is_own = b.ult(n, own)
            b.if_(b.negate(is_own), lambda: k.wait_full(ring, slot, parity))
            base = b.select(is_own, own_row, slot * ring.slot_bytes + ring.smem_offset)
            values = base + b.select(is_own, b.const(self.row_bytes), ring.slot_bytes // 2)
            left = b.select(is_own, b.const(1), rows - (n - own) * per_slot)
            mine = b.both(b.eq(turn, (n - own) & (turns - 1)), self._takes_part)
            for i in range(each):
                first = (unit + i * self.warps) * UNIT_ROWS
                state = b.if_(
                    b.both(mine, b.ult(first, left)),
                    partial_(self._unit, state, base, values, first, left),
                    partial_(list, state),
                    self.types,
                )

            def release() -> list[Value]:
                k.release(ring, slot)
                return list(k.advance(ring, slot, parity))

            moved = b.if_(is_own, lambda: [slot, parity], release, ["i32"] * 2)
            return [*state, *moved]

        top, zero = b.const(LOWEST, "f32"), b.const(0.0, "f32")
        start = [top, top, *[zero] * 18, slot, parity]
        return b.for_(b.const(0), own + (rows + (per_slot - 1)) // per_slot, start, a_slot)

    def _unit(
        self, state: list[Value], keys: Value, values: Value, first: Value, left: Value
    ) -> list[Value]:
        """The state after rows first … first + 15 of what lies at `keys` and `values`, of `left` rows in all."""
        g, c = self.k.lane >> 2, self.k.lane & 3
        scores = [self._score(s) for s in self._products(keys, first + g, left, c)]
        inside = [b.ult(first + g + at, left) for at in (0, 8)]
        scores = [b.select(inside[i // 2], s, LOWEST) for i, s in enumerate(scores)]
        tops, weights, sums, shares, shrinks = [], [], state[4:], [], []
        for q in (0, 1):
            new = b.fmax(scores[q], scores[q + 2])
            for distance in (4, 8, 16):
                new = b.fmax(new, b.shuffle_xor(new, distance))
            new = b.fmax(state[q], new)
            shrink = b.exp2(state[q] - new)
            share = [b.exp2(s - new) for s in (scores[q], scores[q + 2])]
            tops.append(new)
            weights.append(state[2 + q] * shrink + (share[0] + share[1]))
            shares.append(share)
            shrinks.append(shrink)
        x = [b.transpose_pairs(b.pack(shares[0][row], shares[1][row])) for row in (0, 1)]
        with self.k.thread_here():
            made = self._sums(sums, shrinks, x, values, first, left)
        return [*tops, *weights, *made]

    def _sums(
        self,
        sums: list[Value],
        shrinks: list[Value],
        x: list[Value],
        values: Value,
        first: Value,
        left: Value,
    ) -> list[Value]:
        """The sums of a lane, shrunk, with the values of 16 rows by their weights `x` added."""
        g, c = self.k.lane >> 2, self.k.lane & 3
        # Rows beyond the last are the last one again, with no weight: what lies there may be NaN.
        places = [b.umin(first + c * 2 + at, left - 1) * self.row_bytes for at in (0, 1, 8, 9)]
        chunk = b.umin(self._value_chunk(g), self.chunks - 1)
        rows = [b.elements(self._chunk_at(values + place, chunk), 4) for place in places]
        made = []
        for e in range(4):
            a = [
                b.bytes_of(rows[pair][e], rows[pair + 1][e], picks)
                for pair in (0, 2)
                for picks in (0x5410, 0x7632)
            ]
            old = [s * shrinks[i % 2] for i, s in enumerate(sums[4 * e : 4 * e + 4])]
            made += b.mma(old, a, x)
        return made

    def _products(self, keys: Value, row: Value, left: Value, c: Value) -> list[Value]:
        """q·k of rows `row` and `row` + 8, each for queries 2c and 2c+1."""
        k = self.k
        upper, lower = (b.umin(row + at, left - 1) * self.row_bytes for at in (0, 8))
        query = b.umin(k.lane >> 2, self.groups - 1) * self.row_bytes + k.plan.x_offset
        zero = b.const(0.0, "f32")
        sums = [[zero] * 4, [zero] * 4]
        for j in range(0, self.chunks, 4):
            chunk = b.umin(c + j, self.chunks - 1)
            rows = [self._chunk_at(keys + place, chunk) for place in (upper, lower)]
            x = b.elements(self._chunk_at(query, chunk), 4)
            if j + 4 > self.chunks:
                x = [b.select(b.ult(c + j, self.chunks), word, b.const(0)) for word in x]
            high, low = (b.elements(r, 4) for r in rows)
            for i in (0, 1):
                a = [high[2 * i], low[2 * i], high[2 * i + 1], low[2 * i + 1]]
                sums[i] = b.mma(sums[i], a, x[2 * i : 2 * i + 2])
        return [u + v for u, v in zip(*sums, strict=True)]

    @property
    def _takes_part(self) -> Value:
        """Whether the warp is one of those that attend."""
        return b.ult(self.k.warp, self.warps * self.shares)

    def _value_chunk(self, g: Value) -> Value:
        """The chunk of a value of which a lane has sums; there may be none of that number."""
        return g if self.shares == 1 else g + (self.k.warp // self.warps << 3)

    def _chunk_at(self, place: Value, chunk: Value) -> Value:
        return b.load("vector<4xi32>", b.at(self.k.smem, place + chunk * 16), 16)

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
        weights = state[2:4]
        for distance in (4, 8, 16):
            weights = [w + b.shuffle_xor(w, distance) for w in weights]
        warp = k.warp & (self.warps - 1)
        mine = b.at(k.smem, warp * (self.groups * self.part_row), k.plan.part_offset)

        def leave(q: int) -> None:
            row = b.at(mine, (c * 2 + q) * self.part_row)
            chunk = self._value_chunk(g)
            at = b.at(row, chunk * 32)

            def store() -> None:
                for e in range(4):
                    b.store(b.vec(*state[4 + 4 * e + q : 8 + 4 * e : 2]), b.at(at, None, 8 * e), 8)

            b.if_(b.ult(chunk, self.chunks), store)
            statistics = b.vec(state[q], weights[q])
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
