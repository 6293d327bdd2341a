"""Executes engine modules: the roles of every SM over real rings, channels and epochs, one token a step."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np

from tileir.dialect.attributes import element_of, get, name_of, shape_of, walk
from tileir.dialect.engine import declarations
from tileir.errors import DeviceHang, TileirError
from tileir.packing import constant, pack_row
from tileir.reference.arithmetic import (
    Array,
    best_of,
    combine,
    keep,
    partial_softmax,
    rms_scale,
    round_bf16,
    rows_of,
    run_segment,
    split_range,
)
from tileir.reference.protocol import Channel, CopyEngine, Mbarrier, Ring, Role, Scheduler, Wait
from tileir.scheduling.assign import shares


@dataclass
class State:
    """Rows by kv head, and the epoch in which each position was written."""

    rows: Array
    written: Array


class EngineExecutor:
    """A device in NumPy. weights: by state-dict name; rounding: the kernel's bf16, else fp32 everywhere."""

    def __init__(
        self,
        module: Any,
        recipe: dict[str, Any],
        weights: Mapping[str, Any],
        *,
        rounding: bool = False,
        seed: int = 0,
    ) -> None:
        (device,) = walk(module, "engine.device")
        self.sms, self.warps, self.context, self.vocabulary = (
            get(device, n) for n in ("sms", "consumer_warps", "context", "vocabulary")
        )
        if get(device, "tokens") != 1:
            raise TileirError(
                "the engine executor runs one token a step", hint="compile with tokens=1"
            )
        self.round = round_bf16 if rounding else keep
        self.seed, self.epoch = seed, 0
        block = list(device.regions[0].blocks[0])
        self.rings = {get(o, "sym_name"): o for o in block if name_of(o) == "engine.ring"}
        self.bodies = {get(o, "sym_name"): o for o in block if name_of(o) == "engine.body"}
        self.rows = [o for o in block if name_of(o) == "engine.row"]
        self.declared = {get(o, "sym_name"): o for o in declarations(device)}
        self.constants = {
            e["tensor"]: np.asarray(constant(e, weights, exact=not rounding), np.float32)
            for e in recipe["constants"]
        }
        dtype = ml_dtypes.bfloat16 if rounding else np.float32
        self.tape = {
            e["row"]: [b.astype(np.float32) for b in pack_row(e, self.sms, weights, dtype)]
            for e in recipe["tape"]
        }
        self.reset()

    def reset(self) -> None:
        """Forget all states and packets."""
        self.channels: dict[str, Channel] = {}
        self.states: dict[str, State] = {}
        self.epoch = 0
        for name, op in self.declared.items():
            shape = shape_of(op.results[0])
            if name_of(op) == "engine.channel":
                dtype = np.uint32 if element_of(op.results[0]) == "i32" else np.float32
                size = int(np.prod([s or 1 for s in shape]))
                self.channels[name] = Channel(name, size, dtype, get(op, "depth"))
            elif name_of(op) == "engine.state":
                rows = np.zeros([s or 1 for s in shape], np.float32)
                self.states[name] = State(rows, np.zeros(rows.shape[1], np.int64))

    def run(
        self,
        prompt: Sequence[int],
        steps: int,
        stop_ids: Sequence[int] = (),
        logits: Array | None = None,
    ) -> Iterator[int]:
        """Yield each token that follows the prompt, as soon as it is chosen.

        logits: [steps, vocabulary] f32 to be filled, or None. Raises DeviceHang on a deadlock or a broken protocol.
        """
        launch = _Launch(self, list(prompt), steps, set(stop_ids), logits)
        self.epoch += steps
        yield from launch.tokens()


class _Launch:
    """One launch: all roles of all SMs, from the first step to the last."""

    def __init__(
        self, engine: EngineExecutor, prompt: list[int], steps: int, stop_ids: set[int], logits: Any
    ) -> None:
        self.engine, self.prompt, self.steps, self.stop_ids = engine, prompt, steps, stop_ids
        self.logits, self.first_epoch = logits, engine.epoch + 1
        self.scheduler = Scheduler(engine.seed)
        self.out: list[int] = []
        self.released = np.full(engine.sms, engine.epoch, np.int64)
        for sm in range(engine.sms):
            worker = _Sm(self, sm)
            for role in ("consumer", "tape", "state"):
                self.scheduler.add(f"SM {sm} {role}", getattr(worker, role)())
            self.scheduler.add(f"SM {sm} copies", worker.copies.role())

    def tokens(self) -> Iterator[int]:
        """Tokens as they come."""
        given = 0
        for _ in self.scheduler.run():
            while given < len(self.out):
                yield self.out[given]
                given += 1
        yield from self.out[given:]


class _Sm:
    """One SM's roles."""

    def __init__(self, launch: _Launch, sm: int) -> None:
        self.launch, self.engine, self.sm = launch, launch.engine, sm
        self.scheduler = launch.scheduler
        self.rings = {
            name: Ring(
                f"SM {sm} {name} ring", get(op, "slots"), get(op, "window"), self.engine.warps
            )
            for name, op in self.engine.rings.items()
        }
        self.blocks = {n: get(op, "slot_bytes") // 1024 for n, op in self.engine.rings.items()}
        self.uses = dict.fromkeys([(n, side) for n in self.rings for side in ("fill", "drain")], 0)
        self.copies = CopyEngine(self.scheduler)
        self.record_full = Mbarrier(1, f"SM {sm} step record full")
        self.record_empty = Mbarrier(1, f"SM {sm} step record empty")
        self.record = (0, False)
        self.finished = False
        self.loaders = 2

    # ---- loaders

    def tape(self) -> Role:
        """Stream this SM's weight blocks, step after step, until nobody takes more."""
        ring, per_slot = self.rings["tape"], self.blocks["tape"]
        for _ in range(self.launch.steps):
            for number in self.engine.tape:
                blocks = self.engine.tape[number][self.sm]
                for first in range(0, len(blocks), per_slot):
                    yield from self._fill(ring, (blocks[first : first + per_slot],))
                    if self.finished:
                        break
            if self.finished:
                break
        self._loader_ends()

    def _fill(self, ring: Ring, parts: tuple[Array, ...]) -> Role:
        name = "tape" if ring is self.rings["tape"] else "state"
        use = self.uses[name, "fill"]
        for wait in ring.fill(self.scheduler, use, parts, self.copies):
            # A loader that waits for a free slot also ends when no further step is taken.
            yield Wait(wait.key, partial(self._ready_or_finished, wait), wait.what)
            if self.finished:
                return
        self.uses[name, "fill"] = use + 1

    def _ready_or_finished(self, wait: Wait) -> bool:
        return self.finished or wait.ready()

    def _loader_ends(self) -> None:
        self.loaders -= 1
        if not self.loaders:
            self.copies.close()

    def state(self) -> Role:
        """Stream old rows of k and v for this SM's tasks, each step after its record."""
        engine, ring = self.engine, self.rings["state"]
        use = 0
        while True:
            yield self.record_full.wait(use & 1)
            position, stop = self.record
            self.record_empty.arrive(self.scheduler)
            use += 1
            if stop:
                break
            epoch = self.launch.first_epoch + use - 1
            for row in engine.rows:
                body = engine.bodies[get(row, "body")]
                fill = next(
                    (f for f in walk(body, "engine.fill") if get(f, "source") == "state"), None
                )
                if fill is not None:
                    yield from self._fill_states(ring, row, body, fill, position, epoch)
        self._loader_ends()

    def _fill_states(
        self, ring: Ring, row: Any, body: Any, fill: Any, position: int, epoch: int
    ) -> Role:
        size = get(fill, "head_size")
        per_slot = get(self.engine.rings["state"], "slot_bytes") // (4 * size)
        keys, values = (self._operand(row, body, v) for v in fill.operands)
        ordered = len(get(body, "acquire", [])) == 2 and self.launch.released.min() >= epoch - 1
        for task in self._tasks(row, get(fill, "kv_heads") * get(fill, "splits")):
            head, split = divmod(int(task), get(fill, "splits"))
            first, last = split_range(position, split, fill)
            if first < last and not ordered:
                raise DeviceHang(f"SM {self.sm} streams state rows that nothing has released to it")
            for at in range(first, last, per_slot):
                rows = slice(at, min(at + per_slot, last))
                if (keys.written[rows] >= epoch).any() or (keys.written[rows] == 0).any():
                    raise DeviceHang(f"SM {self.sm} streams state rows {rows} that are not written")
                yield from self._fill(ring, (keys.rows[head, rows], values.rows[head, rows]))

    # ---- consumers

    def consumer(self) -> Role:
        """Every row of every step."""
        launch = self.launch
        token = launch.prompt[0]
        yield from self._send_record(0, False, 0)
        for step in range(launch.steps):
            self.step, self.position = step, step
            self.epoch = launch.first_epoch + step
            self.token = token
            for number, row in enumerate(self.engine.rows):
                body = self.engine.bodies[get(row, "body")]
                kind = get(body, "kind")
                yield from getattr(self, "_" + kind)(number, row, body)
            following = step + 1
            forced = following < len(launch.prompt)
            token = launch.prompt[following] if forced else self.choice
            stop = following == launch.steps or (not forced and self.choice in launch.stop_ids)
            if self.sm == 0 and not forced:
                launch.out.append(self.choice)
            yield from self._send_record(following, stop, following)
            if stop:
                break
        self.finished = True
        for ring in self.rings.values():
            for barrier in (*ring.empty, *ring.full):
                self.scheduler.notify(barrier)

    def _send_record(self, position: int, stop: bool, use: int) -> Role:
        yield self.record_empty.wait((use & 1) ^ 1)
        self.record = (position, stop)
        self.record_full.arrive(self.scheduler)

    def _operand(self, row: Any, body: Any, value: Any) -> Any:
        """What a body's argument stands for in this row: a Channel, a State or an array."""
        arguments = list(body.regions[0].blocks[0].arguments)
        name = get(row, "names")[arguments.index(value)]
        engine = self.engine
        return engine.channels.get(name) or engine.states.get(name) or engine.constants[name]

    def _tasks(self, row: Any, tasks: int) -> Array:
        firsts, counts = shares(tasks, get(row, "rotation"), self.engine.sms)
        return np.arange(firsts[self.sm], firsts[self.sm] + counts[self.sm])

    def _contract(self, number: int, row: Any, body: Any) -> Role:
        (receive,), (multiply,), (emit,) = (
            list(walk(body, f"engine.{n}")) for n in ("receive", "multiply", "emit")
        )
        channel = self._operand(row, body, receive.operands[0])
        yield channel.wait(self.epoch, slice(None))
        x = channel.read(self.epoch, slice(None)).astype(np.float32)
        prologue = receive.regions[0].blocks[0].operations[0]
        scale = np.float32(1)
        if name_of(prologue) == "tile.rms_norm":
            weight = self._operand(row, body, prologue.operands[1])
            offset = np.float32(1 if get(prologue, "unit_offset") else 0)
            scale = rms_scale(x, get(prologue, "eps"))[0]
            x = self.engine.round(x * (weight + offset))
        tiles = self._tasks(row, get(multiply, "tiles"))
        sums = np.zeros((len(tiles), 16), np.float32)
        yield from self._drain(x, sums)
        sink = _RowSink(self, row, body, self._operand(row, body, emit.operands[0]))
        at = 0
        numbers = get(row, "tile_base") + tiles
        for segment in emit.regions[0].blocks[0]:
            if name_of(segment) != "tile.segment":
                continue
            mine = (numbers >= at) & (numbers < at + get(segment, "tiles"))
            if mine.any():
                yield from self._await_residuals(row, body, segment, numbers[mine] - at)
                values = (sums[mine] * scale)[None]
                run_segment(segment, numbers[mine] - at, values[..., :8], values[..., 8:], sink)
            at += get(segment, "tiles")
        if list(walk(emit, "tile.candidate")):
            sink.publish_best()

    def _await_residuals(self, row: Any, body: Any, segment: Any, tiles: Array) -> Role:
        """Until what the segment's tiles add is there."""
        for op in walk(segment, "tile.residual"):
            channel: Channel = self._operand(row, body, op.operands[2])
            for base in get(op, "bases"):
                yield channel.wait(self.epoch, rows_of(segment, tiles) + base)

    def _drain(self, x: Array, sums: Array) -> Role:
        """Multiply what the tape ring brings: sums [tiles, 16] += blocks · x."""
        if not len(sums):
            return
        ring, per_slot = self.rings["tape"], self.blocks["tape"]
        count = -(-len(x) // 32)
        padded = np.zeros((count, 32), np.float32)
        padded.reshape(-1)[: len(x)] = x
        total, parts = len(sums) * count, []
        for first in range(0, total, per_slot):
            use = self.uses["tape", "drain"]
            yield from ring.take(use)
            (blocks,) = ring.read(use)
            k = np.arange(first, first + len(blocks)) % count
            parts.append(np.matmul(blocks, padded[k][:, :, None])[:, :, 0])
            ring.release(self.scheduler, use)
            self.uses["tape", "drain"] = use + 1
        sums += np.concatenate(parts).reshape(len(sums), count, 16).sum(1)

    def _attend(self, _number: int, row: Any, body: Any) -> Role:
        (op,) = walk(body, "engine.attend")
        qkv, _, _, out = (self._operand(row, body, v) for v in op.operands)
        heads, kv, size, splits = (get(op, n) for n in ("heads", "kv_heads", "head_size", "splits"))
        group, (q_at, k_at, v_at) = heads // kv, get(op, "offsets")
        per_slot = get(self.engine.rings["state"], "slot_bytes") // (4 * size)
        ring = self.rings["state"]
        for task in self._tasks(row, kv * splits):
            head, split = divmod(int(task), splits)
            spans = [(q_at + head * group * size, group * size)]
            spans += [(at + head * size, size) for at in (k_at, v_at)]
            index = np.concatenate([np.arange(a, a + n) for a, n in spans])
            yield qkv.wait(self.epoch, index)
            found = qkv.read(self.epoch, index).astype(np.float32)
            queries = found[: group * size].reshape(group, size)
            own = found[group * size :].reshape(2, 1, size)
            nothing = np.zeros((0, size), np.float32)
            rows = [own[0], own[1]] if split == 0 else [nothing, nothing]
            first, last = split_range(self.position, split, op)
            for _ in range(first, last, per_slot):
                use = self.uses["state", "drain"]
                yield from ring.take(use)
                rows = [np.concatenate(pair) for pair in zip(rows, ring.read(use), strict=True)]
                ring.release(self.scheduler, use)
                self.uses["state", "drain"] = use + 1
            result = partial_softmax(queries, rows[0], rows[1], op)
            for g in range(group):
                start = ((head * group + g) * splits + split) * (size + 2)
                index = np.arange(start, start + size + 2)
                out.publish(self.scheduler, self.epoch, index, result[g])

    def _map(self, _number: int, row: Any, body: Any) -> Role:
        (op,) = walk(body, "engine.map")
        inner = op.regions[0].blocks[0].operations[0]
        out = self._operand(row, body, op.operands[0])
        tasks = self._tasks(row, get(op, "rows"))
        if name_of(inner) == "tile.lookup":
            table = self._operand(row, body, inner.operands[0])
            index = (tasks[:, None] * 2 + np.arange(2)).reshape(-1)
            values = table[self.token][index] * np.float32(get(inner, "scale"))
            out.publish(self.scheduler, self.epoch, index, self.engine.round(values))
            return
        parts = self._operand(row, body, inner.operands[0])
        _, _, splits, width = (s or 1 for s in shape_of(inner.operands[0]))
        for head in tasks:
            span = slice(int(head) * splits * width, (int(head) + 1) * splits * width)
            yield parts.wait(self.epoch, span)
            value = combine(parts.read(self.epoch, span).reshape(splits, width))
            index = np.arange(head * (width - 2), (head + 1) * (width - 2))
            out.publish(self.scheduler, self.epoch, index, self.engine.round(value))

    def _select(self, _number: int, row: Any, body: Any) -> Role:
        (op,) = walk(body, "engine.select")
        records = []
        for value in op.operands:
            channel = self._operand(row, body, value)
            yield channel.wait(self.epoch, slice(None))
            records += list(channel.read(self.epoch, slice(None)).reshape(-1, 2))
        self.choice = int(min(records, key=lambda r: (-int(r[0]), int(r[1])))[1])


class _RowSink:
    """One row's epilogue on one SM."""

    def __init__(self, sm: _Sm, row: Any, body: Any, channel: Channel) -> None:
        self._sm, self._row, self._body, self._channel = sm, row, body, channel
        self.positions = np.array([sm.position])
        self._offered: tuple[list[Array], list[Array]] = ([], [])

    def constant(self, value: Any) -> Array:
        return np.asarray(self._sm._operand(self._row, self._body, value))

    def residual(self, value: Any, index: Array) -> Array:
        channel: Channel = self._sm._operand(self._row, self._body, value)
        return channel.read(self._sm.epoch, index).astype(np.float32)[None]

    def append(self, state: Any, index: Array, values: Array) -> None:
        held: State = self._sm._operand(self._row, self._body, state)
        size, at = held.rows.shape[2], self._sm.position
        held.rows[index // size, at, index % size] = self._sm.engine.round(values[0])
        held.written[at] = self._sm.epoch

    def publish(self, index: Array, values: Array) -> None:
        rounded = self._sm.engine.round(values[0])
        self._channel.publish(self._sm.scheduler, self._sm.epoch, index, rounded)

    def logits(self, index: Array, values: Array) -> None:
        logits = self._sm.launch.logits
        if logits is not None:
            inside = index < self._sm.engine.vocabulary
            logits[self._sm.step, index[inside]] = values[0][inside]

    def candidate(self, index: Array, values: Array) -> None:
        inside = index < self._sm.engine.vocabulary
        self._offered[0].append(values[0][inside])
        self._offered[1].append(index[inside])

    def publish_best(self) -> None:
        """The SM's record; it also releases every state row that the SM has written."""
        sm = self._sm
        key, best = 0, sm.engine.vocabulary
        if any(len(v) for v in self._offered[0]):
            key, best = best_of(np.concatenate(self._offered[0]), np.concatenate(self._offered[1]))
        if all(_ordered(b) for b in sm.engine.bodies.values()):
            sm.launch.released[sm.sm] = sm.epoch
        index = np.arange(2 * sm.sm, 2 * sm.sm + 2)
        record = np.array([key, best], np.uint32)
        self._channel.publish(sm.scheduler, sm.epoch, index, record)


def _ordered(body: Any) -> bool:
    """Whether every state that a body appends to is released by it."""
    return len(list(walk(body, "tile.append"))) <= len(get(body, "release", []))
