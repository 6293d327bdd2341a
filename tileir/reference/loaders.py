"""The loader roles of an SM: weights from the tape, and what data decides: experts, old rows, listed rows."""

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from tileir.dialect.attributes import get
from tileir.reference import tasks
from tileir.reference.arithmetic import Array
from tileir.reference.memory import LocalName, OldRows, RowPlan, State
from tileir.reference.protocol import Copy, Ring
from tileir.reference.scheduler import Role, Wait
from tileir.reference.steps import StepRecord
from tileir.scheduling.assign import rows_a_slot
from tileir.scheduling.rings import BLOCK_BYTES

if TYPE_CHECKING:
    from tileir.reference.engine import Sm


class Loaders:
    """Both loaders of an SM."""

    def __init__(self, sm: "Sm") -> None:
        self.sm, self.device, self.scheduler = sm, sm.device, sm.scheduler
        self.uses = dict.fromkeys(sm.rings, 0)
        rows = self.device.rows
        moving = [
            row
            for row in rows
            if {"fill_rows", "fill_gathered"} & set(row.ops) or row.number in self.device.store
        ]
        self.dynamic = [row for row in moving if row.ring != "tape"]
        self.streamed = [
            row for row in rows if row.number in self.device.tape or row.ring == "tape"
        ]

    # ---- the tape

    def tape(self) -> Role:
        """Stream this SM's weight blocks, and old rows if they pass the tape's ring, until nobody takes more."""
        sm, per_slot, use = self.sm, self.sm.slot_bytes["tape"] // BLOCK_BYTES, 0
        mine = {n: blocks[sm.sm] for n, blocks in self.device.tape.items() if len(blocks[sm.sm])}
        rows = [row for row in self.streamed if row.number in mine or "fill_rows" in row.ops]
        while rows and not sm.finished:
            record: StepRecord | None = None
            for row in rows:
                self._trace("tape", row.number)
                if "fill_rows" in row.ops:
                    if record is None:
                        record, use = (yield from self._record(use)), use + 1
                    if not record.stop:
                        yield from self._old_rows(row, record)
                else:
                    blocks = mine[row.number]
                    for at in range(0, len(blocks), per_slot):
                        yield from self._fill("tape", _constant(blocks[at : at + per_slot]))
                        if sm.finished:
                            break
                if sm.finished:
                    break
        sm.loader_ends()

    def _record(self, use: int) -> Any:
        """The next step's record (a generator that returns it)."""
        sm = self.sm
        yield sm.record_full.wait(use & 1)
        record = sm.record
        sm.record_empty.arrive(self.scheduler)
        self.epoch = sm.launch.first_epoch + record.number
        return record

    def _fill(self, name: str, copy: Copy) -> Role:
        ring: Ring = self.sm.rings[name]
        for wait in ring.fill(self.uses[name], copy, self.sm.copies):
            # A loader that waits for a free slot also ends when no further step is taken.
            yield Wait(wait.key, partial(self._ready_or_finished, wait), wait.what)
            if self.sm.finished:
                return
        self.uses[name] += 1

    def _ready_or_finished(self, wait: Wait) -> bool:
        return self.sm.finished or wait.ready()

    # ---- what data decides

    def state(self) -> Role:
        """Stream this SM's part of experts and old rows, each step after its record."""
        sm, use = self.sm, 0
        # A GPU without attention has no loader that needs records, and somebody has to take them.
        while not any("fill_rows" in row.ops for row in self.streamed):
            record = yield from self._record(use)
            if record.stop:
                break
            self.taken: dict[str, Array] = {}
            for row in self.dynamic:
                self._trace("state", row.number)
                if row.number in self.device.store:
                    yield from self._experts(row, record, use)
                elif "fill_rows" in row.ops:
                    yield from self._old_rows(row, record)
                else:
                    yield from self._listed_rows(row, record)
            use += 1
        sm.loader_ends()

    def _routing(self, row: RowPlan, channel: Any, record: StepRecord, use: int) -> Any:
        """The step's routing; from shared memory it is taken once."""
        live = len(record.tokens)
        if isinstance(channel, LocalName):
            if channel.name not in self.taken:
                local = self.sm.locals[channel.name]
                found = yield from local.take(self.scheduler, use, live)
                self.taken[channel.name] = found
            return self.taken[channel.name]
        tokens, words, seen = np.arange(live), np.arange(channel.values), channel.view(self.sm.sm)
        yield seen.wait(self.epoch, tokens, words)
        return seen.read(self.epoch, tokens, words).reshape(live, -1, 2)

    def _experts(self, row: RowPlan, record: StepRecord, use: int) -> Role:
        fill = row.ops["fill"]
        routing = yield from self._routing(row, row.operand(fill.operands[0]), record, use)
        per_slot = self.sm.slot_bytes["state"] // BLOCK_BYTES
        first, store = get(fill, "experts")[0], self.device.store[row.number]
        found = tasks.pairs(row, routing, fill, self.sm.sm, self.device.sms)
        if found:
            blocks = np.concatenate([store[e - first, tile] for e, tile in found])
            for at in range(0, len(blocks), per_slot):
                yield from self._fill("state", _constant(blocks[at : at + per_slot]))

    def _old_rows(self, row: RowPlan, record: StepRecord) -> Role:
        fill = row.ops["fill_rows"]
        states = [row.operand(v) for v in fill.operands]
        per_slot = rows_a_slot(self.sm.slot_bytes[row.ring], len(states), get(fill, "head_size"))
        for task in tasks.mine(row, get(fill, "tasks"), self.sm.sm, self.device.sms):
            group, split = divmod(int(task) + row.tile_base, get(fill, "splits"))
            head = group * get(fill, "kv_heads") // get(fill, "groups")
            for sequence in tasks.sequences(record):
                old = tasks.old_rows(record, sequence, split, fill)
                for part in tasks.in_slots(old, per_slot):
                    yield from self._copy(row, states, head, record, sequence, part)

    def _listed_rows(self, row: RowPlan, record: StepRecord) -> Role:
        fill = row.ops["fill_gathered"]
        k, indices, *v = (row.operand(value) for value in fill.operands)
        states = [k, *v]
        per_slot = rows_a_slot(self.sm.slot_bytes["state"], len(states), get(fill, "head_size"))
        mine = tasks.mine(row, get(fill, "tasks"), self.sm.sm, self.device.sms)
        if not len(mine):
            return
        live, words = np.arange(len(record.tokens)), np.arange(indices.values)
        seen = indices.view(self.sm.sm)
        yield seen.wait(self.epoch, live, words)
        lists = seen.read(self.epoch, live, words)
        for task in mine:
            group, split = divmod(int(task) + row.tile_base, get(fill, "splits"))
            head = group * get(fill, "kv_heads") // get(fill, "groups")
            for t, sequence in enumerate(record.sequences):
                old = tasks.old_listed(record, t, lists[t], split, fill)
                for part in tasks.in_slots(old, per_slot):
                    yield from self._copy(row, states, head, record, sequence, part)

    def _copy(
        self,
        row: RowPlan,
        states: list[State],
        head: int,
        record: StepRecord,
        sequence: int,
        positions: Array,
    ) -> Role:
        """One slot of rows. Raises DeviceHang for rows that are not there, or that the SM does not see yet."""
        sm, plan = self.sm, self.sm.launch.plan
        text = plan.texts[record.holders[sequence]]
        old = OldRows(record, sequence, positions, text, self.epoch, sm.who)

        def copy() -> tuple[Array, ...]:
            sm.acquire(row)
            places = [state.places(record, sequence, positions) for state in states]
            return tuple(
                state.view(sm.sm).read(head, rows, old)
                for state, rows in zip(states, places, strict=True)
            )

        yield from self._fill(row.ring, copy)

    def _trace(self, role: str, number: int) -> None:
        if self.sm.launch.trace is not None:
            self.sm.launch.trace(self.sm.sm, role, number)


def _constant(blocks: Array) -> Copy:
    """A copy of what nobody writes."""
    return lambda: (blocks,)
