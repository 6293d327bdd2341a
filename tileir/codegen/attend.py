"""Split-KV attention of queries that share a kv head: old rows from the state ring, the step's own from the channel.

Lanes share rows: a row of D values is D/8 lanes of 16 bytes. D counts as the next power of two: then 256/D rows are a
warp's at once, those of its number in each slot, and lanes beyond D/8 hold zeros. Every lane group keeps its own online
softmax (Milakov, Gimelshein 2018), in powers of two; groups meet once per task.
"""

from functools import partial as partial_
from typing import Any

from tileir.codegen import builder as b
from tileir.codegen.epilogue import LOG2E, soft_cap
from tileir.codegen.exchange import poll_at, publish_float, publish_pair
from tileir.codegen.kernel import Kernel
from tileir.codegen.loaders import alone, is_alone, split_rows
from tileir.codegen.plan import Body
from tileir.dialect.attributes import get, name_of, static_shape
from tileir.scheduling.assign import rows_a_slot

Value = Any
LOWEST = -1e30
COMBINE_BATCH = 3


class Attend:
    """Emits an attend body's consumer role. `groups` queries share a task's rows of a kv head."""

    def __init__(self, k: Kernel, body: Body) -> None:
        self.k, self.body, self.op = k, body, body.find("engine.attend")
        names = ("heads", "kv_heads", "head_size", "splits", "softcap")
        self.heads, self.kv_heads, self.size, self.splits, self.softcap = (
            get(self.op, n) for n in names
        )
        self.tasks = get(self.op, "tasks")
        self.groups = self.heads // get(self.op, "groups")
        self.used = self.size // 8
        self.lanes = 1 << (self.used - 1).bit_length()
        self.ring = k.plan.rings[get(self.op, "ring")]
        self.x = b.at(k.smem, None, k.plan.x_offset)
        self.part_row = (self.size + 2) * 4

    def emit(self, slot: Value, parity: Value) -> list[Value]:
        """All of this SM's (group, split) tasks; returns the state ring's slot and parity."""
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
                self._receive(group)
            k.consumers_meet()
            k.mark("received")
            state = self._own_row(b.eq(split, 0))
            *state, slot, parity = self._old_rows(split, state, slot, parity)
            k.mark("multiplied")
            with k.thread_here(), k.words_again():
                self._merge(state)
                k.consumers_meet()
                self._publish(group, split)
            k.consumers_meet()
            return [slot, parity]

        return b.for_(b.const(0), count, [slot, parity], a_task)

    @property
    def _chunk(self) -> Value:
        """The 8 values of a row that are this lane's; the last ones for lanes beyond the row."""
        lane = self.k.lane % self.lanes
        return b.umin(lane, self.used - 1) if self.used < self.lanes else lane

    def _receive(self, group: Value) -> None:
        """Poll q of the group's queries, then its kv head's own k and v, into shared memory as bf16 pairs."""
        k, half = self.k, self.size // 2
        pieces = list(self.op.operation.regions[0].blocks[0])[:3]
        head = group // (get(self.op, "groups") // self.kv_heads)
        heads = (group * self.groups, head, head)
        starts = (0, self.groups * half, (self.groups + 1) * half)
        pairs = (self.groups + 2) * half
        indices = [k.tid + n * k.plan.threads for n in range(-(-pairs // k.plan.threads))]
        places = []
        for index in indices:
            i = b.umin(index, pairs - 1)
            found = []
            for piece, first, start in zip(pieces, heads, starts, strict=True):
                offset, stride = get(piece, "offset") // 2, get(piece, "stride") // 2
                at = i - start
                number = (first + at // half) * stride + at % half + offset
                found.append((k.operand(self.body, piece.operands[0]), number))
            place = found[0]
            for other, start in zip(found[1:], starts[1:], strict=True):
                behind = b.uge(i, start)
                place = tuple(b.select(behind, o, p) for o, p in zip(other, place, strict=True))
            places.append(place)
        words = poll_at(k, places, together=True)
        for index, word in zip(indices, words, strict=True):
            to = b.at(self.x, index * 4)
            b.if_(b.ult(index, pairs), partial_(b.store, word, to, 4))

    def _row(self, offset: int) -> list[Value]:
        """This lane's 8 values of a row in shared memory at byte `offset` of x."""
        return _values(b.load("vector<4xi32>", b.at(self.x, self._chunk * 16, offset), 16))

    def _queries(self) -> list[list[Value]]:
        rows = [self._row(g * self.size * 2) for g in range(self.groups)]
        if self.used == self.lanes:
            return rows
        holds = b.ult(self.k.lane % self.lanes, self.used)
        return [[b.select(holds, v, 0.0) for v in row] for row in rows]

    def _score(self, query: list[Value], key: list[Value]) -> Value:
        """q·k in units of log2, summed over the row's lanes."""
        score = b.total([a * c for a, c in zip(query, key, strict=True)])
        distance = self.lanes // 2
        while distance:
            score = score + b.shuffle_xor(score, distance)
            distance //= 2
        score = score * float(get(self.op, "scale"))
        if self.softcap:
            score = soft_cap(score, float(self.softcap))
        return score * LOG2E

    def _own_row(self, wanted: Value) -> list[Value]:
        """The softmax state to begin with: the step's own row for one lane group of split 0."""
        k = self.k
        base = self.groups * self.size * 2
        one, none = b.const(1.0, "f32"), b.const(0.0, "f32")

        def own() -> list[Value]:
            key, value = self._row(base), self._row(base + self.size * 2)
            mine = b.ult(k.lane, self.lanes)
            state = []
            for query in self._queries():
                score = b.select(mine, self._score(query, key), LOWEST)
                state += [score, b.select(mine, one, 0.0), *(b.select(mine, v, 0.0) for v in value)]
            return state

        def nothing() -> list[Value]:
            return [b.const(LOWEST, "f32"), *[none] * 9] * self.groups

        # Only one warp has work: the others' would take its turns.
        types = ["f32"] * 10 * self.groups
        return b.if_(b.both(wanted, b.eq(k.warp, 0)), own, nothing, types)

    def _old_rows(
        self, split: Value, state: list[Value], slot: Value, parity: Value
    ) -> list[Value]:
        k, ring = self.k, self.ring
        per_slot = rows_a_slot(ring.slot_bytes, 2, self.size)
        _, rows = split_rows(k, self.op, split)
        place = k.warp * (32 // self.lanes) + k.lane // self.lanes
        mine = place * (2 * self.size) + self._chunk * 16

        def a_slot(n: Value, *carried: Value) -> list[Value]:
            *state, slot, parity = carried
            k.wait_full(ring, slot, parity)
            at = b.at(k.smem, slot * ring.slot_bytes + mine, ring.smem_offset)
            half = ring.slot_bytes // 2
            key, value = (b.load("vector<4xi32>", b.at(at, None, o), 16) for o in (0, half))
            k.release(ring, slot)
            left = rows - n * per_slot

            def absorb() -> list[Value]:
                valid = b.ult(place, left)
                # What lies in the slot beyond the split's rows may be anything, NaN included.
                nothing = b.vec(*[b.const(0)] * 4)
                key_values, values = _values(key), _values(b.select(valid, value, nothing))
                new = []
                # Queries are read again for every slot: kept, they would not fit the registers.
                for g, query in enumerate(self._queries()):
                    score = b.select(valid, self._score(query, key_values), LOWEST)
                    new += _absorb(state[10 * g : 10 * g + 10], score, valid, values)
                return new

            types = ["f32"] * len(state)
            some = b.negate(b.vote_all(b.uge(place, left)))
            state = b.if_(some, absorb, lambda: state, types)
            return [*state, *k.advance(ring, slot, parity)]

        slots = (rows + (per_slot - 1)) // per_slot
        return b.for_(b.const(0), slots, [*state, slot, parity], a_slot)

    def _merge(self, state: list[Value]) -> None:
        """Lane groups of the warp meet by shuffles; each warp leaves one state in shared memory."""
        k, held = self.k, self._held
        row = b.at(k.smem, k.warp * (self.groups * self.part_row))

        def join() -> list[Value]:
            parts = [self._join_lanes(state[10 * g : 10 * g + 10]) for g in range(self.groups)]
            return [v for part in parts for v in part]

        def nothing() -> list[Value]:
            parts = [state[10 * g : 10 * g + 2 + held] for g in range(self.groups)]
            return [v for part in parts for v in part]

        # A warp without rows has nothing to join.
        weights = b.tree([state[10 * g + 1] for g in range(self.groups)], b.fmax)
        some = b.negate(b.vote_all(b.eq_float(weights, 0.0)))
        joined = b.if_(some, join, nothing, ["f32"] * (self.groups * (2 + held)))
        mine_at = b.at(row, self._chunk * 32 + self._place * 4)
        for g in range(self.groups):
            top, weight, *sums = joined[g * (2 + held) : (g + 1) * (2 + held)]
            at = k.plan.part_offset + g * self.part_row
            # Lanes beyond the row hold what the last lane of it holds.
            step = min(held, 2)
            for e in range(0, held, step):
                values = sums[e] if step == 1 else b.vec(sums[e], sums[e + 1])
                b.store(values, b.at(mine_at, None, at + 4 * e), 4 * step)
            b.store(b.vec(top, weight), b.at(row, None, at + self.size * 4), 8)

    @property
    def _distances(self) -> list[int]:
        """Between lanes of a warp that hold the same values of other rows."""
        return [d for d in (1, 2, 4, 8, 16) if d >= self.lanes]

    @property
    def _held(self) -> int:
        """How many of its 8 sums a lane has when lane groups have met: each keeps a part."""
        return max(1, 8 >> len(self._distances))

    @property
    def _place(self) -> Value:
        """Which of its 8 sums a lane keeps, the first."""
        place, size = b.const(0), 8
        for distance in self._distances[:3]:
            size //= 2
            place = place + b.select(b.ne(self.k.lane & distance, 0), size, b.const(0))
        return place

    def _join_lanes(self, state: list[Value]) -> list[Value]:
        """A query's state of all lane groups: maximum, weight and the sums that this lane keeps."""
        top, weight, *sums = state
        for distance in self._distances:
            new = b.fmax(top, b.shuffle_xor(top, distance))
            shrink = b.exp2(top - new)
            top, weight = new, weight * shrink
            weight = weight + b.shuffle_xor(weight, distance)
            sums = [v * shrink for v in sums]
            half = len(sums) // 2
            if not half:
                sums = [sums[0] + b.shuffle_xor(sums[0], distance)]
                continue
            upper = b.ne(self.k.lane & distance, 0)
            low, high = sums[:half], sums[half:]
            kept = [b.select(upper, h, lo) for lo, h in zip(low, high, strict=True)]
            sent = [b.select(upper, lo, h) for lo, h in zip(low, high, strict=True)]
            sums = [v + b.shuffle_xor(w, distance) for v, w in zip(kept, sent, strict=True)]
        return [top, weight, *sums]

    def _publish(self, group: Value, split: Value) -> None:
        """Join the warps' states, a thread two values; publish the result, or the split's part of it."""
        k, half = self.k, self.size // 2
        partial, *_ = self.op.operation.operands
        part = k.operand(self.body, partial)
        finish = [o for o in self.op.operation.regions[0].blocks[0] if name_of(o) == "tile.finish"]
        result = k.operand(self.body, finish[0].operands[0])
        pairs = self.groups * half

        def one(index: Value) -> None:
            g, i = index // half, index % half
            row = b.at(k.smem, g * self.part_row)
            values_at = b.at(row, i * 8)
            states, sums = [], []
            for w in range(k.plan.warps):
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


def _values(words: Value) -> list[Value]:
    return [v for word in b.elements(words, 4) for v in b.unpack(word)]


def _absorb(state: list[Value], score: Value, valid: Value, values: list[Value]) -> list[Value]:
    """A softmax state (maximum, weight, sums…) after one more row."""
    top, weight, *sums = state
    new = b.fmax(top, score)
    shrink, p = b.exp2(top - new), b.select(valid, b.exp2(score - new), 0.0)
    return [
        new,
        weight * shrink + p,
        *(s * shrink + p * v for s, v in zip(sums, values, strict=True)),
    ]


def _join(a: list[Value], c: list[Value]) -> list[Value]:
    """Two softmax states as one."""
    top = b.fmax(a[0], c[0])
    left, right = b.exp2(a[0] - top), b.exp2(c[0] - top)
    return [top, *(x * left + y * right for x, y in zip(a[1:], c[1:], strict=True))]


def combine(k: Kernel, body: Body) -> None:
    """The split-KV combine: heads over SMs, splits over groups of threads."""
    op = body.find("engine.map")
    region = list(op.operation.regions[0].blocks[0])[0]
    partials = list(region.operation.operands)[0]
    _, heads, splits, row = static_shape(partials)
    size, threads = row - 2, k.plan.threads
    source, channel = k.operand(body, partials), k.operand(body, op.operation.operands[0])
    first, count = k.share(heads)
    # Where one split has all rows, attention has filled the channel.
    count = b.select(is_alone(k, size, splits, get(region, "window")), 0, count)
    sets = threads // size
    assert sets, f"{threads} threads for head size {size}"
    lane, group = k.tid % size, k.tid // size
    own = b.at(k.smem, k.tid * 12, k.plan.part_offset)

    # A few splits a round: all at once would not fit the registers.
    batch = min(COMBINE_BATCH, -(-splits // sets))
    rounds = -(-splits // (sets * batch))
    start = [b.const(v, "f32") for v in (LOWEST, 0.0, 0.0)]

    def a_round(head: Value, n: Value, state: Any) -> list[Value]:
        places, states = [], [list(state)]
        numbers = [group + (n * batch + i) * sets for i in range(batch)]
        for split in numbers:
            base = (head * splits + b.umin(split, splits - 1)) * row
            places += [(source, base + size), (source, base + (size + 1)), (source, base + lane)]
        words = [b.bits_to_f32(w) for w in poll_at(k, places, together=True)]
        for i, split in enumerate(numbers):
            inside = b.ult(split, splits)
            found = zip(words[3 * i : 3 * i + 3], (LOWEST, 0.0, 0.0), strict=True)
            states.append([b.select(inside, value, none) for value, none in found])
        return b.tree(states, _join)

    def a_head(i: Value) -> list[Value]:
        head = first + i
        k.consumers_meet()
        mine = b.for_(b.const(0), b.const(rounds), start, lambda n, *state: a_round(head, n, state))
        for e, value in enumerate(mine):
            b.store(value, b.at(own, None, 4 * e), 4)
        k.consumers_meet()

        def value_of(index: Value) -> Value:
            found = []
            for s in range(min(sets, splits)):
                from_ = b.at(k.smem, (index + s * size) * 12, k.plan.part_offset)
                found.append([b.load("f32", b.at(from_, None, 4 * e), 4) for e in range(3)])
            _, weight, sum_ = b.tree(found, _join)
            return sum_ * b.reciprocal(weight)

        def publish() -> None:
            pair = b.pack(value_of(k.tid * 2), value_of(k.tid * 2 + 1))
            publish_pair(k, channel, head * (size // 2) + k.tid, pair)

        b.if_(b.ult(k.tid, size // 2), publish)
        return []

    b.for_(b.const(0), count, [], a_head)
