"""The consumer role of an SM: every row of every step, its archetypes a module each."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from tileir.reference import attention, contracts, maps, selects, tasks
from tileir.reference.arithmetic import Array
from tileir.reference.memory import LocalName, RowPlan
from tileir.reference.protocol import Channel
from tileir.reference.scheduler import Role
from tileir.reference.steps import StepRecord
from tileir.stages import VALUES, Stage

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
                yield from ARCHETYPES[row.kind](self, row)
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


ARCHETYPES: dict[str, Callable[[Consumers, RowPlan], Role]] = {
    "contract": contracts.run,
    "attend": attention.run,
    "map": maps.run,
    "select": selects.run,
}
