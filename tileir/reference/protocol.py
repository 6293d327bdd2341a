"""The engine's synchronisation, exactly as the kernel uses it: mbarriers, rings, channels, and a scheduler of roles.

A role is a generator that yields a `Wait` whenever it cannot go on; the scheduler runs any role that
is ready, in an order that its seed decides. When none is, and not all are done, that is a deadlock,
and the error says who waits for what.
"""

import random
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tileir.errors import DeviceHang
from tileir.reference.arithmetic import Array


@dataclass(frozen=True)
class Wait:
    """Not before `ready()`; looked at again whenever `key` is notified. `what` is for the report of a deadlock."""

    key: object
    ready: Callable[[], bool]
    what: str


Role = Generator[Wait, None, None]


@dataclass
class Scheduler:
    """Runs roles until all are done, or until `stop()`."""

    seed: int
    ready: list[tuple[str, Role]] = field(default_factory=list)
    waiting: dict[object, list[tuple[str, Role, Wait]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def add(self, name: str, role: Role) -> None:
        """A role to run."""
        self.ready.append((name, role))

    def choose(self, count: int) -> int:
        """One of `count` things, by the seed."""
        return self._random.randrange(count)

    def notify(self, key: object) -> None:
        """Something that `key` names has changed."""
        for name, role, wait in self.waiting.pop(key, ()):
            if wait.ready():
                self.ready.append((name, role))
            else:
                self.waiting.setdefault(key, []).append((name, role, wait))

    def run(self) -> Generator[None, None, None]:
        """Advance one role at a time; yields after each. Raises DeviceHang on a deadlock."""
        while self.ready:
            at = self._random.randrange(len(self.ready))
            self.ready[at], self.ready[-1] = self.ready[-1], self.ready[at]
            name, role = self.ready.pop()
            for wait in role:
                if not wait.ready():
                    self.waiting.setdefault(wait.key, []).append((name, role, wait))
                    break
            yield
        stuck = [(n, w.what) for waits in self.waiting.values() for n, _, w in waits]
        if stuck:
            lines = [f"  {name} waits for {what}" for name, what in sorted(stuck)[:12]]
            raise DeviceHang("\n".join([f"deadlock: {len(stuck)} roles wait", *lines]))


class Mbarrier:
    """A phase completes with `count` arrivals (PTX ISA 9.7.13.15)."""

    def __init__(self, count: int, name: str) -> None:
        self.count, self.pending, self.phase, self.name = count, count, 0, name

    def arrive(self, scheduler: Scheduler, arrivals: int = 1) -> None:
        """Arrive. Raises DeviceHang if more arrive than a phase counts."""
        self.pending -= arrivals
        if self.pending < 0:
            raise DeviceHang(f"{self.name}: more arrivals than the {self.count} of a phase")
        if self.pending == 0:
            self.phase, self.pending = self.phase + 1, self.count
            scheduler.notify(self)

    def wait(self, parity: int) -> Wait:
        """Until the phase of this parity has completed."""
        what = f"{self.name}, parity {parity}; it is in phase {self.phase}"
        return Wait(self, lambda: (self.phase & 1) != parity, what)


class Ring:
    """Slots between one loader and the consumer warps of an SM."""

    def __init__(self, name: str, slots: int, window: int, warps: int) -> None:
        self.name, self.slots, self.window, self.warps = name, slots, window, warps
        self.full = [Mbarrier(1, f"{name} slot {i} full") for i in range(slots)]
        self.empty = [Mbarrier(warps, f"{name} slot {i} empty") for i in range(slots)]
        self.data: list[tuple[Array, ...] | None] = [None] * slots

    def fill(
        self, scheduler: Scheduler, use: int, parts: tuple[Array, ...], copies: "CopyEngine"
    ) -> Role:
        """The loader's part of use number `use`: wait for slot and window, then start the copy."""
        slot, lap = use % self.slots, use // self.slots
        yield self.empty[slot].wait((lap & 1) ^ 1)
        if use >= self.window:
            behind = use - self.window
            yield self.full[behind % self.slots].wait((behind // self.slots) & 1)
        copies.start(self, slot, parts)

    def take(self, use: int) -> Role:
        """The consumers' wait for use number `use`; then `read` and `release`."""
        yield self.full[use % self.slots].wait((use // self.slots) & 1)

    def read(self, use: int) -> tuple[Array, ...]:
        """What the slot holds."""
        data = self.data[use % self.slots]
        if data is None:
            raise DeviceHang(f"{self.name} slot {use % self.slots} was read before it was filled")
        return data

    def release(self, scheduler: Scheduler, use: int) -> None:
        """All consumer warps are done with the slot."""
        self.data[use % self.slots] = None
        self.empty[use % self.slots].arrive(scheduler, self.warps)


class CopyEngine:
    """Copies land some time after they were started, in the order of their start."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler, self.queue = scheduler, list[tuple[Ring, int, tuple[Array, ...]]]()
        self.closed = False

    def start(self, ring: Ring, slot: int, parts: tuple[Array, ...]) -> None:
        """Begin a copy."""
        self.queue.append((ring, slot, parts))
        self.scheduler.notify(self)

    def close(self) -> None:
        """No more copies."""
        self.closed = True
        self.scheduler.notify(self)

    def role(self) -> Role:
        """Land copies, one at a time."""
        while True:
            yield Wait(self, lambda: bool(self.queue) or self.closed, "copies to land")
            if not self.queue:
                return
            ring, slot, parts = self.queue.pop(0)
            if ring.data[slot] is not None:
                raise DeviceHang(f"{ring.name} slot {slot} was overwritten before its release")
            # The data of this moment: what is written to the source later must not be seen.
            ring.data[slot] = tuple(np.array(p) for p in parts)
            ring.full[slot].arrive(self.scheduler)


class Channel:
    """Packets, payload and epoch each, of every value of every token; `depth` copies by epoch.

    shape: [T, …]. rounded: values are bf16. peers: the copies on all GPUs, if it crosses them.
    """

    def __init__(
        self, name: str, shape: Sequence[int], dtype: type, depth: int, *, rounded: bool, peer: bool
    ) -> None:
        self.name, self.depth, self.rounded, self.peer = name, depth, rounded, peer
        values = int(np.prod(shape[1:]))
        self.payload: Array = np.zeros((depth, shape[0], values), dtype)
        self.epochs = np.zeros((depth, shape[0], values), np.int64)

    def publish(
        self, scheduler: Scheduler, epoch: int, tokens: Array, index: Array, values: Array
    ) -> None:
        """Write packets of an epoch, [tokens, *index.shape]. Raises DeviceHang if such an epoch is there already."""
        copy, index = epoch % self.depth, index.reshape(-1)
        at = np.ix_(tokens, index)
        if (self.epochs[copy][at] >= epoch).any():
            raise DeviceHang(f"channel {self.name}: epoch {epoch} is written twice or goes back")
        self.payload[copy][at] = values.reshape(len(tokens), -1)
        self.epochs[copy][at] = epoch
        scheduler.notify(self)

    def wait(self, epoch: int, tokens: Array, index: Array) -> Wait:
        """Until all packets of `index` of these tokens are of this epoch."""
        copy, at = epoch % self.depth, np.ix_(tokens, index.reshape(-1))

        def ready() -> bool:
            found = self.epochs[copy][at]
            if (found > epoch).any():
                raise DeviceHang(
                    f"channel {self.name}: epoch {epoch} was overwritten before its reader"
                )
            return bool((found == epoch).all())

        seen = int(self.epochs[copy][at].min(initial=2**32 - 1))
        return Wait(self, ready, f"channel {self.name} in epoch {epoch}, oldest packet seen {seen}")

    def read(self, epoch: int, tokens: Array, index: Array) -> Array:
        """The payloads, [tokens, *index.shape], after `wait`. Raises DeviceHang for a packet of another epoch."""
        copy, at = epoch % self.depth, np.ix_(tokens, index.reshape(-1))
        if (self.epochs[copy][at] != epoch).any():
            raise DeviceHang(f"channel {self.name}: epoch {epoch} is read before it is there")
        return np.array(self.payload[copy][at]).reshape(len(tokens), *index.shape)


class LocalChannel:
    """A channel of level "sm": plain words in shared memory, full and empty for the loader that reads them."""

    def __init__(self, name: str, shape: Sequence[int], *, loaded: bool) -> None:
        self.name, self.loaded = name, loaded
        self.words: Array = np.zeros(shape, np.int64)
        self.full, self.empty = Mbarrier(1, f"{name} full"), Mbarrier(1, f"{name} empty")

    def write(self, scheduler: Scheduler, use: int, values: Array) -> Role:
        """The consumers' part of use number `use`: once the loader has taken the last."""
        if self.loaded:
            yield self.empty.wait((use & 1) ^ 1)
        self.words[: len(values)] = values
        self.full.arrive(scheduler)

    def take(self, scheduler: Scheduler, use: int, tokens: int) -> Generator[Wait, None, Array]:
        """The loader's part: a copy of the words."""
        yield self.full.wait(use & 1)
        found = np.array(self.words[:tokens])
        self.empty.arrive(scheduler)
        return found


class Link:
    """Packets between GPUs arrive some time after they were sent, in any order."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler, self.pending = scheduler, list[tuple[Channel, tuple[Any, ...]]]()
        self.closed = False

    def send(self, channel: Channel, *packet: Any) -> None:
        """Packets for another GPU's copy of a channel."""
        self.pending.append((channel, packet))
        self.scheduler.notify(self)

    def close(self) -> None:
        """Nothing more is sent."""
        self.closed = True
        self.scheduler.notify(self)

    def role(self) -> Role:
        """Deliver, one packet at a time."""
        while True:
            yield Wait(self, lambda: bool(self.pending) or self.closed, "packets between GPUs")
            if not self.pending:
                return
            at = self.scheduler.choose(len(self.pending))
            channel, packet = self.pending.pop(at)
            channel.publish(self.scheduler, *packet)
