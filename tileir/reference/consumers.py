"""The consumer role of an SM: every row of every step, its archetypes one method each."""

from typing import TYPE_CHECKING, Any

import numpy as np

from tileir.dialect.attributes import get, name_of
from tileir.reference import tasks
from tileir.reference.arithmetic import (
    Array,
    best_of,
    channels_of,
    combine,
    is_alone,
    partial_softmax,
    rms_scale,
    rows_of,
    run_map,
    run_piece,
    run_segment,
    splits_at,
)
from tileir.reference.memory import LocalName, RowPlan
from tileir.reference.protocol import Channel
from tileir.reference.routing import choose_experts, choose_top_k
from tileir.reference.scheduler import Role
from tileir.reference.steps import StepRecord
from tileir.scheduling.assign import MAX_TILES_PER_SM, rows_a_slot
from tileir.scheduling.rings import BLOCK_BYTES
from tileir.stages import CANDIDATES, CHOICES, SCORES, VALUES, Stage

if TYPE_CHECKING:
    from tileir.reference.engine import Sm


class Consumers:
    """An SM's consumer warps, as one role."""

    def __init__(self, sm: "Sm") -> None:
        self.sm, self.device, self.scheduler = sm, sm.device, sm.scheduler
        self.round = sm.engine.round
        self.uses = dict.fromkeys(sm.rings, 0)
        self.choice: Array | None = None
        self.drafts: Array | None = None

    def role(self) -> Role:
        """Steps, until one stops."""
        sm, launch = self.sm, self.sm.launch
        self.record: StepRecord = launch.plan.record
        yield from self._send_record(0)
        self.use = 0
        while not self.record.stop:
            self.epoch = launch.first_epoch + self.record.number
            self.live = np.arange(len(self.record.tokens))
            self.positions = np.array(self.record.positions)
            self.choice = self.drafts = None
            for row in self.device.rows:
                self.row = row
                if launch.trace is not None:
                    launch.trace(sm.sm, "consumer", row.number)
                yield from getattr(self, "_" + row.kind)(row)
            launch.last_epoch = self.epoch
            assert self.choice is not None, "a step without a choice"
            self.record = launch.plan.next(self.record, self.choice, self.drafts)
            launch.count_logits(self.record.number - 1)
            self.use += 1
            yield from self._send_record(self.use)
        sm.finish()

    def _send_record(self, use: int) -> Role:
        yield self.sm.record_empty.wait((use & 1) ^ 1)
        self.sm.record = self.record
        self.sm.record_full.arrive(self.scheduler)

    # ---- what rows share

    def mine(self, row: RowPlan, count: int) -> Array:
        """This SM's tasks of a row."""
        return tasks.mine(row, count, self.sm.sm, self.device.sms)

    def values(self, channel: Channel, index: Array, tokens: Array | None = None) -> Array:
        """A channel's values of this step, after `await_`, f32 or words."""
        live = self.live if tokens is None else tokens
        found = channel.view(self.sm.sm).read(self.epoch, live, index)
        return found if channel.integers else found.astype(np.float32)

    def await_(self, channel: Channel, index: Array, tokens: Array | None = None) -> Role:
        """Until these values are there."""
        live = self.live if tokens is None else tokens
        yield channel.view(self.sm.sm).wait(self.epoch, live, index)

    def publish(
        self,
        channel: Channel,
        tokens: Array,
        index: Array,
        values: Array,
        kind: str = VALUES,
        *,
        releases: bool = False,
    ) -> None:
        """Values [tokens, *index.shape], as bf16 if the channel is; kind: what `tell` tells them as, "" for not.

        releases: who acquires by these packets sees what the SM has stored before.
        """
        rounded = self.round(values) if channel.rounded else values
        self.sm.publish(channel, self.epoch, tokens, index, rounded, releases=releases)
        if kind:
            self.tell(kind, channel.name, tokens, index, rounded)

    def tell(self, kind: str, channel: str, tokens: Array, index: Array, values: Array) -> None:
        """Who listens to the engine's values hears these of the row at work, until the token is chosen."""
        heard = self.sm.engine.heard
        if heard is not None and self.choice is None:
            stage = Stage(self.device.place, self.row.number, self.row.body, channel, kind)
            flat = np.array(values).reshape(len(tokens), -1)
            heard(stage, self.positions[tokens], index.reshape(-1), flat)

    def take(self, name: str, slots: int) -> Any:
        """What so many slots of a ring hold, as a list (a generator that returns it)."""
        ring, found = self.sm.rings[name], []
        for _ in range(slots):
            use = self.uses[name]
            yield from ring.take(use)
            found.append(ring.read(use))
            ring.release(self.scheduler, use)
            self.uses[name] = use + 1
        return found

    def routing(self, row: RowPlan, value: Any) -> Any:
        """The step's routing, [T, k, 2] (a generator that returns it)."""
        channel = row.operand(value)
        if isinstance(channel, LocalName):
            return self.sm.locals[channel.name].read(self.use, len(self.live))
        words = np.arange(channel.values)
        yield from self.await_(channel, words)
        return self.values(channel, words).reshape(len(self.live), -1, 2)

    # ---- contracts

    def _contract(self, row: RowPlan) -> Role:
        source = get(row.ops["multiply"], "source")
        yield from getattr(self, "_of_" + source)(row)

    def _x(self, row: RowPlan, x: Array) -> tuple[Array, Array | None]:
        """x after the prologue, and the accumulators' factor."""
        for op in row.ops["receive"].regions[0].blocks[0]:
            if name_of(op) == "tile.rms_norm":
                weight = row.operand(op.operands[1])
                offset = np.float32(1 if get(op, "unit_offset") else 0)
                x = x[:, : len(weight)]
                return self.round(x * (weight + offset)), rms_scale(x, get(op, "eps"))
        return x, None

    def _receive(self, row: RowPlan) -> Any:
        """All of x that groups reach, after the prologue (a generator that returns it)."""
        op = row.ops["receive"]
        reach = get(op, "k") + (get(op, "groups") - 1) * get(op, "stride")
        for inner in op.regions[0].blocks[0]:
            if name_of(inner) == "tile.rms_norm":
                reach = max(reach, len(row.operand(inner.operands[1])))
        channel, index = row.operand(op.operands[0]), get(op, "offset") + np.arange(reach)
        yield from self.await_(channel, index)
        return self._x(row, self.values(channel, index))

    def _of_tape(self, row: RowPlan) -> Role:
        receive, multiply, emit = (row.ops[n] for n in ("receive", "multiply", "emit"))
        x, scale = yield from self._receive(row)
        tiles = self.mine(row, get(multiply, "tiles"))
        k, groups, space = get(multiply, "k"), get(receive, "groups"), get(emit, "space")
        count, numbers = -(-k // 32), row.tile_base + tiles
        per_slot = self.sm.slot_bytes["tape"] // BLOCK_BYTES
        slots = yield from self.take("tape", -(-len(tiles) * count // per_slot))
        stride, group = get(receive, "stride"), numbers * groups // space
        first = int(group[0]) if len(tiles) else 0
        held = [
            _blocks_of(x[:, g * stride : g * stride + k])
            for g in range(first, int(group[-1]) + 1 if len(tiles) else 0)
        ]
        sums = _sums(slots, held, np.repeat(group - first, count), len(self.live))
        if scale is not None:
            sums = sums * scale[..., None]
        sink = _Sink(self, row, row.operand(emit.operands[0]))
        for segment, at in row.segments:
            some = (numbers >= at) & (numbers < at + get(segment, "tiles"))
            if some.any():
                inner = numbers[some] - at
                yield from self._await_reads(row, segment, inner)
                values = sums[:, some]
                run_segment(segment, inner, values[..., :8], values[..., 8:], sink)
        if row.offers:
            sink.publish_best()

    def _await_reads(self, row: RowPlan, segment: Any, tiles: Array) -> Role:
        """Until what a segment's tiles add is there."""
        for op in segment.regions[0].blocks[0]:
            if name_of(op) == "tile.residual":
                for base in get(op, "bases"):
                    yield from self.await_(
                        row.operand(op.operands[2]), rows_of(segment, tiles) + base
                    )

    def _of_experts(self, row: RowPlan) -> Role:
        """This SM's (expert, tile) pairs, as many at a time as partial sums have room for."""
        multiply, emit = row.ops["multiply"], row.ops["emit"]
        routing = yield from self.routing(row, multiply.operands[0])
        found = tasks.pairs(row, routing, multiply, self.sm.sm, self.device.sms)
        count = -(-get(multiply, "k") // 32)
        per_slot = self.sm.slot_bytes["state"] // BLOCK_BYTES
        stride, slots = get(row.ops["receive"], "stride"), get(row.ops["receive"], "groups")
        out = row.operand(emit.operands[0])
        width, blocks, taken = out.values // slots, list[Array](), 0
        for at in range(0, len(found), MAX_TILES_PER_SM):
            batch, chose = found[at : at + MAX_TILES_PER_SM], {}
            for expert in dict(batch):
                tokens, chosen = np.nonzero(routing[:, :, 0] == expert)
                x, scale = yield from self._chosen_x(row, tokens, chosen * stride)
                chose[expert] = tokens, chosen, x, scale
            needed = -(-(at + len(batch)) * count // per_slot)
            held = yield from self.take("state", needed - taken)
            taken, blocks = needed, [*blocks, *(block for (part,) in held for block in part)]
            for expert, tile in batch:
                tokens, chosen, x, scale = chose[expert]
                mine, blocks = [(np.stack(blocks[:count]),)], blocks[count:]
                sums = _sums(mine, [_blocks_of(x)], np.zeros(count, int), len(x))
                if scale is not None:
                    sums = sums * scale[..., None]
                bits = routing[tokens, chosen, 1].astype(np.int32).view(np.float32)
                sink = _PairSink(self, row, out, tokens, chosen * width, bits)
                segment, first = next(
                    (s, f) for s, f in row.segments if f <= tile < f + get(s, "tiles")
                )
                run_segment(segment, np.array([tile - first]), sums[..., :8], sums[..., 8:], sink)

    def _chosen_x(self, row: RowPlan, tokens: Array, begins: Array) -> Any:
        """x of (token, slot) pairs, each from its own place (a generator that returns it)."""
        op = row.ops["receive"]
        channel, k, offset = row.operand(op.operands[0]), get(op, "k"), get(op, "offset")
        rows = []
        for token, begin in zip(tokens, begins, strict=True):
            index, one = offset + begin + np.arange(k), np.array([token])
            yield from self.await_(channel, index, one)
            rows.append(self.values(channel, index, one))
        return self._x(row, np.concatenate(rows))

    def _of_rows(self, row: RowPlan) -> Role:
        """Scores of old rows of a state, and of the step's own."""
        multiply, emit, fill = row.ops["multiply"], row.ops["emit"], row.ops["fill_rows"]
        receive, out = row.ops["receive"], row.operand(emit.operands[0])
        x, _ = yield from self._receive(row)
        k, heads, stride = get(multiply, "k"), get(receive, "groups"), get(receive, "stride")
        own_channel, own_at = row.operand(multiply.operands[0]), get(multiply, "own")
        per_slot = rows_a_slot(self.sm.slot_bytes["state"], 1, get(fill, "head_size"))
        ((segment, _),) = row.segments
        for op in segment.regions[0].blocks[0]:
            if name_of(op) == "tile.relu_sum":
                index = get(op, "offset") + np.arange(heads)
                yield from self.await_(row.operand(op.operands[2]), index)
        for split in self.mine(row, get(fill, "tasks")) + row.tile_base:
            for sequence in tasks.sequences(self.record):
                tokens = np.array(self.record.rows_of(sequence))
                queries = np.stack([x[tokens, h * stride : h * stride + k] for h in range(heads)])
                old = tasks.old_rows(self.record, sequence, int(split), fill)
                held = yield from self.take("state", -(-len(old) // per_slot))
                runs = [(int(old[0]), np.concatenate([p for (p,) in held]))] if len(old) else []
                if split == 0:
                    index = own_at + np.arange(k)
                    yield from self.await_(own_channel, index, tokens)
                    own = self.values(own_channel, index, tokens)
                    runs.append((self.record.bases[sequence], own))
                for first, rows in runs:
                    sink = _ScoreSink(self, row, out, tokens, first, first + len(rows))
                    tiles = np.arange(first // 16, (first + len(rows) - 1) // 16 + 1)
                    padded = np.zeros((len(tiles) * 16, k), np.float32)
                    padded[first - tiles[0] * 16 :][: len(rows)] = rows
                    scores = queries @ padded.T
                    scores = scores.reshape(heads, len(tokens), len(tiles), 2, 8)
                    run_segment(segment, tiles, scores[..., 0, :], scores[..., 1, :], sink)

    # ---- attention

    def _attend(self, row: RowPlan) -> Role:
        op = row.ops["attend"]
        for task in self.mine(row, get(op, "tasks")) + row.tile_base:
            group, split = divmod(int(task), get(op, "splits"))
            for sequence in tasks.sequences(self.record):
                yield from self._attend_task(row, op, group, split, sequence)

    def _attend_task(self, row: RowPlan, op: Any, group: int, split: int, sequence: int) -> Role:
        heads, kv, groups, splits = (get(op, n) for n in ("heads", "kv_heads", "groups", "splits"))
        shared, head = heads // groups, group * kv // groups
        tokens = np.array(self.record.rows_of(sequence))
        base, window = self.record.bases[sequence], get(op, "window")
        mine = range(group * shared, (group + 1) * shared)
        if split >= splits_at(base, op):
            return
        finish = self._finish(row, op) if is_alone(base, op) else None
        queries = []
        for q in mine:
            made = yield from self._pieces(row, op, "tile.query", q, tokens)
            queries.append(made)
        own_k = own_v = np.zeros((0, 0), np.float32)
        states = len(op.operands) - 1
        if split == 0:
            stores = group % (groups // kv) == 0
            own_k = yield from self._pieces(row, op, "tile.key", head, tokens, stores)
            own_v = own_k
            if states > 1:
                own_v = yield from self._pieces(row, op, "tile.value", head, tokens)
        lists = yield from self._lists(row, op)
        fill = row.ops["fill_rows" if lists is None else "fill_gathered"]
        per_slot = rows_a_slot(self.sm.slot_bytes[get(op, "ring")], states, get(fill, "head_size"))
        old = (
            tasks.old_rows(self.record, sequence, split, fill)
            if lists is None
            else np.zeros(0, int)
        )
        held = yield from self.take(get(op, "ring"), -(-len(old) // per_slot))
        value = get(op, "value_size")
        for i, t in enumerate(tokens):
            own = np.arange(i + 1) if split == 0 else np.zeros(0, int)
            if lists is not None:
                old = tasks.old_listed(self.record, int(t), lists[t], split, fill)
                held = yield from self.take(get(op, "ring"), -(-len(old) // per_slot))
                own = own[np.isin(base + own, lists[t])]
            size = get(op, "head_size")
            keys = [np.zeros((0, size), np.float32), *(p[0] for p in held)]
            values = [np.zeros((0, value), np.float32), *(p[-1][:, :value] for p in held)]
            if len(own):
                keys.append(own_k[own])
                values.append(own_v[own][:, :value])
            low = self.positions[t] + 1 - window if window else 0
            seen = np.concatenate([old, base + own]) >= low
            part = partial_softmax(
                np.stack([q[i] for q in queries]),
                np.concatenate(keys)[seen],
                np.concatenate(values)[seen],
                op,
            )
            if finish is not None:
                index = mine.start * value + np.arange(shared * value)
                self.publish(finish, np.array([t]), index, combine(part[:, None]).reshape(1, -1))
                continue
            for g, q in enumerate(mine):
                index = (q * splits + split) * (value + 2) + np.arange(value + 2)
                # Parts of a softmax may be scaled alike: what counts is what the combine makes of them.
                to = row.operand(op.operands[0])
                self.publish(to, np.array([t]), index, part[g][None], kind="")

    def _pieces(
        self, row: RowPlan, op: Any, kind: str, head: int, tokens: Array, stores: bool = False
    ) -> Any:
        """The pieces of a head, one behind the other, [tokens, size] (a generator that returns it).

        stores: whether this task is the one that appends what a piece's statements store.
        """
        found = []
        for inner in op.regions[0].blocks[0]:
            if name_of(inner) == kind:
                offset, stride, size = (get(inner, n) for n in ("offset", "stride", "size"))
                channel, index = (
                    row.operand(inner.operands[0]),
                    offset + head * stride + np.arange(size),
                )
                yield from self.await_(channel, index, tokens)
                values = self.values(channel, index, tokens)
                if inner.results:
                    sink = _PieceSink(self, row, channel, tokens, stores)
                    values = self.round(run_piece(inner, values, head, sink))
                found.append(values)
        return np.concatenate(found, -1)

    def _finish(self, row: RowPlan, op: Any) -> Channel | None:
        """Where attention's result goes if one split has all rows; None if it never does."""
        for inner in op.regions[0].blocks[0]:
            if name_of(inner) == "tile.finish":
                found: Channel = row.operand(inner.operands[0])
                return found
        return None

    def _lists(self, row: RowPlan, op: Any) -> Any:
        """The positions that tokens attend to, [T, k], None for all (a generator that returns it)."""
        for inner in op.regions[0].blocks[0]:
            if name_of(inner) == "tile.gather":
                channel = row.operand(inner.operands[0])
                words = np.arange(channel.values)
                yield from self.await_(channel, words)
                return self.values(channel, words)
        return None

    # ---- maps and selects

    def _map(self, row: RowPlan) -> Role:
        op = row.ops["map"]
        out, block = row.operand(op.operands[0]), op.regions[0].blocks[0]
        rows = self.mine(row, get(op, "rows")) + row.tile_base
        if not len(rows):
            return
        for splits, live in self._alike(block):
            sink = _Sink(self, row, out, live, splits)
            for inner in block:
                for value, index in channels_of(inner, rows, splits):
                    yield from self.await_(row.operand(value), index, live)
            size = out.values // self._map_rows(row)
            made = run_map(block, rows, size, sink)
            self.publish(out, live, rows[:, None] * size + np.arange(size), made)

    def _alike(self, block: Any) -> list[tuple[int | None, Array]]:
        """The step's tokens; of a combine, by how many splits take part, those that no split has finished alone."""
        combine_ = next((inner for inner in block if name_of(inner) == "tile.combine"), None)
        if combine_ is None:
            return [(None, self.live)]
        by_splits: dict[int, list[int]] = {}
        for t in self.live:
            base = self.record.bases[self.record.sequences[t]]
            if not is_alone(base, combine_):
                by_splits.setdefault(splits_at(base, combine_), []).append(int(t))
        return [(splits, np.array(tokens)) for splits, tokens in by_splits.items()]

    def _map_rows(self, row: RowPlan) -> int:
        """Rows of the whole stage, on all GPUs."""
        return int(get(row.ops["map"], "space", 0) or get(row.ops["map"], "rows"))

    def _select(self, row: RowPlan) -> Role:
        if "select" not in row.ops:
            yield from self._choose(row)
            return
        op = row.ops["select"]
        records = []
        for value in op.operands:
            channel = row.operand(value)
            words = np.arange(channel.values)
            yield from self.await_(channel, words)
            records.append(self.values(channel, words).reshape(len(self.live), -1, 2))
        every = np.concatenate(records, 1)
        chosen = [min(r.tolist(), key=lambda one: (-one[0], one[1]))[1] for r in every]
        if get(op, "makes") == "draft":
            self.drafts = np.array(chosen)
        else:
            self.choice = np.array(chosen)

    def _choose(self, row: RowPlan) -> Role:
        op = row.ops["choose"]
        scores, out = (row.operand(v) for v in op.operands)
        if get(op, "kind") == "route" and isinstance(out, LocalName):
            index = np.arange(scores.values)
            yield from self.await_(scores, index)
            made = choose_experts(self.values(scores, index), op)
            if self.sm.sm == 0:
                # Every SM chooses alike.
                self.tell(CHOICES, out.name, self.live, np.arange(made.shape[1]), made[..., 0])
            yield from self.sm.locals[out.name].write(self.scheduler, self.use, made)
            return
        for t in self.mine(row, self.device.tokens):
            if t >= len(self.live):
                continue
            one, position = np.array([t]), int(self.positions[t])
            last = position + 1 if get(op, "kind") == "top_k" else scores.values
            index = np.arange(last)
            yield from self.await_(scores, index, one)
            found = self.values(scores, index, one)
            if get(op, "kind") == "top_k":
                made = choose_top_k(found, np.array([position]), get(op, "k"))
            else:
                made = choose_experts(found, op).reshape(1, -1)
            self.publish(out, one, np.arange(made.shape[1]), made, kind="")
            chosen = made if get(op, "kind") == "top_k" else made[:, ::2]
            self.tell(CHOICES, out.name, one, np.arange(chosen.shape[1]), chosen)


def _blocks_of(x: Array) -> Array:
    """x [T, k] as what blocks of 32 meet: [blocks, 32, T]."""
    blocks = -(-x.shape[1] // 32)
    padded = np.zeros((blocks * 32, len(x)), np.float32)
    padded[: x.shape[1]] = x.T
    return padded.reshape(blocks, 32, len(x))


def _sums(slots: list[Any], held: list[Array], group: Array, tokens: int) -> Array:
    """Weight blocks, slot by slot, against what `held` has for each block's group: [T, tiles, 16]."""
    parts, at = [np.zeros((0, 16, tokens), np.float32)], 0
    count = len(held[0]) if held else 1
    every = np.stack(held) if held else np.zeros((1, 1, 32, tokens), np.float32)
    for (blocks,) in slots:
        n = np.arange(at, at + len(blocks))
        parts.append(np.matmul(blocks, every[group[n], n % count]))
        at += len(blocks)
    return np.concatenate(parts).reshape(-1, count, 16, tokens).sum(1).transpose(2, 0, 1)


class _Sink:
    """One row's region at work on one SM."""

    def __init__(
        self,
        consumers: Consumers,
        row: RowPlan,
        channel: Channel,
        tokens: Array | None = None,
        splits: int | None = None,
    ) -> None:
        self._at, self._row, self._channel, self.splits = consumers, row, channel, splits
        self._tokens = consumers.live if tokens is None else tokens
        self.positions = consumers.positions[self._tokens]
        self._offered: list[tuple[list[Array], list[Array]]] = [([], []) for _ in self._tokens]

    def constant(self, value: Any) -> Array:
        return np.asarray(self._row.operand(value))

    def read(self, value: Any, index: Array) -> Array:
        return self._at.values(self._row.operand(value), index, self._tokens)

    def weights(self, routing: Any) -> Array:
        raise AssertionError(f"{routing} outside experts")

    def tokens(self, of: str) -> Array:
        chosen = self._at.choice if of == "choice" else np.array(self._at.record.tokens)
        assert chosen is not None, "a lookup of a choice that is not made"
        return chosen

    def append(self, state: Any, index: Array, values: Array) -> None:
        held, at = self._row.operand(state), self._at
        for i, t in enumerate(self._tokens):
            rounded = at.round(values[i]).reshape(-1)
            at.sm.append(self._row, held, held.own(at.record, int(t)), at.epoch, index, rounded)

    def publish(self, index: Array, values: Array) -> None:
        inside = index < self._channel.values
        self._at.publish(self._channel, self._tokens, index[inside], values[:, inside])

    def logits(self, index: Array, values: Array) -> None:
        if self._at.choice is None:
            engine = self._at.sm.engine
            inside = index < engine.vocabulary
            self._at.sm.launch.step_logits[np.ix_(self._tokens, index[inside])] = values[:, inside]

    def candidate(self, index: Array, values: Array) -> None:
        inside = index < self._at.sm.engine.vocabulary
        for t, (found, indices) in enumerate(self._offered):
            found.append(values[t][inside])
            indices.append(index[inside])

    def publish_best(self) -> None:
        """The SM's record of every token; it also releases every state row that the SM has written."""
        at, sm = self._at, self._at.sm
        records = []
        for found, indices in self._offered:
            record = (0, sm.engine.vocabulary)
            if any(len(v) for v in found):
                record = best_of(np.concatenate(found), np.concatenate(indices))
            records.append(record)
        place = sm.device.place * sm.device.sms + sm.sm
        index, words = np.arange(2 * place, 2 * place + 2), np.array(records, np.int64)
        releases = self._row.number == sm.device.record
        at.publish(self._channel, at.live, index, words, CANDIDATES, releases=releases)


class _PieceSink(_Sink):
    """A piece of attention at work: only one of a kv head's tasks appends."""

    def __init__(
        self, consumers: Consumers, row: RowPlan, channel: Channel, tokens: Array, stores: bool
    ) -> None:
        super().__init__(consumers, row, channel, tokens)
        self._stores = stores

    def append(self, state: Any, index: Array, values: Array) -> None:
        if self._stores:
            super().append(state, index, values)


class _PairSink(_Sink):
    """An experts contract's epilogue for the (token, slot) pairs that chose one expert."""

    def __init__(
        self,
        consumers: Consumers,
        row: RowPlan,
        channel: Channel,
        tokens: Array,
        places: Array,
        weights: Array,
    ) -> None:
        super().__init__(consumers, row, channel)
        self._tokens, self._places, self._weights = tokens, places, weights
        self.positions = consumers.positions[tokens]

    def weights(self, routing: Any) -> Array:
        return self._weights

    def publish(self, index: Array, values: Array) -> None:
        for token, place, row in zip(self._tokens, self._places, values, strict=True):
            self._at.publish(self._channel, np.array([token]), place + index, row[None])


class _ScoreSink(_Sink):
    """Scores of positions [first, behind) of one sequence's tokens, each up to its own."""

    def __init__(
        self,
        consumers: Consumers,
        row: RowPlan,
        channel: Channel,
        tokens: Array,
        first: int,
        behind: int,
    ) -> None:
        super().__init__(consumers, row, channel)
        self._tokens, self._first, self._behind = tokens, first, behind
        self.positions = consumers.positions[tokens]

    def publish(self, index: Array, values: Array) -> None:
        for token, position, row in zip(self._tokens, self.positions, values, strict=True):
            inside = (index >= self._first) & (index < min(self._behind, position + 1))
            if inside.any():
                one = np.array([token])
                self._at.publish(self._channel, one, index[inside], row[inside][None], SCORES)
