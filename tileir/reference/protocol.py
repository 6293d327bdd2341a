"""The engine's synchronisation, exactly as the kernel uses it: mbarriers, rings, channels, and a scheduler of roles.

A role is a generator that yields a `Wait` wherever it may have to; the scheduler runs any role that
is ready, in an order that its seed decides. When none is, and not all are done, that is a deadlock,
and the error says who waits for what.
"""

import random
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple

import numpy as np

from tileir.errors import DeviceHang
from tileir.reference.arithmetic import Array


class Wait(NamedTuple):
    """Not before `ready()`; looked at again whenever `key` is notified. `what()` is for the report of a deadlock."""

    key: object
    ready: Callable[[], bool]
    what: Callable[[], str]


Role = Generator[Wait, None, None]
Copy = Callable[[], tuple[Array, ...]]
# Others go first, if they are ready.
PAUSE = Wait(None, lambda: True, lambda: "its next turn")
PAUSES, SLOW = 1 / 16, 1 / 4


class Scheduler:
    """Runs roles until all are done.

    For a while some are slow: one of them runs only when no other can that is not slow, or less slow, so that all get
    as far ahead of it as the protocol lets them. Then others are. (After Burckhardt et al., A Randomized Scheduler
    with Probabilistic Guarantees of Finding Bugs, ASPLOS 2010.)
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._names: list[str] = []
        self._slow: dict[str, int] = {}
        self._ready: list[tuple[str, Role]] = []
        self._late: list[tuple[str, Role]] = []
        self._waiting: dict[object, list[tuple[str, Role, Wait]]] = {}
        self._left = 0

    def add(self, name: str, role: Role) -> None:
        """A role to run."""
        self._names.append(name)
        self._go_on(name, role)

    def choose(self, count: int) -> int:
        """One of `count` things, by the seed."""
        return int(self._random.random() * count)

    def notify(self, key: object) -> None:
        """Something that `key` names has changed."""
        for name, role, wait in self._waiting.pop(key, ()):
            if wait.ready():
                self._go_on(name, role)
            else:
                self._waiting.setdefault(key, []).append((name, role, wait))

    def run(self) -> Generator[None, None, None]:
        """Advance one role at a time; yields after each. Raises DeviceHang on a deadlock."""
        while self._ready or self._late:
            name, role = self._next()
            for wait in role:
                if not wait.ready():
                    self._waiting.setdefault(wait.key, []).append((name, role, wait))
                    break
                if wait is PAUSE or self._random.random() < PAUSES:
                    self._go_on(name, role)
                    break
            self._left -= 1
            if self._left < 0:
                self._change()
            yield
        stuck = [(n, w.what()) for waits in self._waiting.values() for n, _, w in waits]
        if stuck:
            lines = [f"  {name} waits for {what}" for name, what in sorted(stuck)[:12]]
            raise DeviceHang("\n".join([f"deadlock: {len(stuck)} roles wait", *lines]))

    def _next(self) -> tuple[str, Role]:
        if self._ready:
            at = self.choose(len(self._ready))
            self._ready[at], self._ready[-1] = self._ready[-1], self._ready[at]
            return self._ready.pop()
        at = min(range(len(self._late)), key=lambda i: self._slow[self._late[i][0]])
        return self._late.pop(at)

    def _go_on(self, name: str, role: Role) -> None:
        (self._late if name in self._slow else self._ready).append((name, role))

    def _change(self) -> None:
        """Others are slow, for 2^4 to 2^11 turns."""
        self._left = int(2 ** self._random.uniform(4, 11))
        slow = [name for name in self._names if self._random.random() < SLOW]
        self._random.shuffle(slow)
        self._slow = {name: i for i, name in enumerate(slow)}
        every, self._ready, self._late = [*self._ready, *self._late], [], []
        for name, role in every:
            self._go_on(name, role)


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
        return Wait(
            self,
            lambda: (self.phase & 1) != parity,
            lambda: f"{self.name}, parity {parity}; it is in phase {self.phase}",
        )


class Ring:
    """Slots between one loader and the consumer warps of an SM."""

    def __init__(self, name: str, slots: int, window: int, warps: int) -> None:
        self.name, self.slots, self.window, self.warps = name, slots, window, warps
        self.full = [Mbarrier(1, f"{name} slot {i} full") for i in range(slots)]
        self.empty = [Mbarrier(warps, f"{name} slot {i} empty") for i in range(slots)]
        self.data: list[tuple[Array, ...] | None] = [None] * slots

    def fill(self, use: int, copy: Copy, copies: "CopyEngine") -> Role:
        """The loader's part of use number `use`: wait for slot and window, then start the copy."""
        slot, lap = use % self.slots, use // self.slots
        yield self.empty[slot].wait((lap & 1) ^ 1)
        if use >= self.window:
            behind = use - self.window
            yield self.full[behind % self.slots].wait((behind // self.slots) & 1)
        copies.start(self, slot, copy)

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
    """Copies land some time after they were started, in any order; each says itself that it has."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler, self.started = scheduler, list[tuple[Ring, int, Copy]]()
        self.closed = False

    def start(self, ring: Ring, slot: int, copy: Copy) -> None:
        """Begin a copy. `copy` is called when it lands: what the source holds then is what comes."""
        self.started.append((ring, slot, copy))
        self.scheduler.notify(self)

    def close(self) -> None:
        """No more copies."""
        self.closed = True
        self.scheduler.notify(self)

    def role(self) -> Role:
        """Land copies, one at a time."""
        some = Wait(self, lambda: bool(self.started) or self.closed, lambda: "copies to land")
        while True:
            yield some
            if not self.started:
                return
            ring, slot, copy = self.started.pop(self.scheduler.choose(len(self.started)))
            if ring.data[slot] is not None:
                raise DeviceHang(f"{ring.name} slot {slot} was overwritten before its release")
            ring.data[slot] = copy()
            ring.full[slot].arrive(self.scheduler)
            yield PAUSE


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
        copy, at = epoch % self.depth, (tokens[:, None], index.reshape(-1))
        if (self.epochs[copy][at] >= epoch).any():
            raise DeviceHang(f"channel {self.name}: epoch {epoch} is written twice or goes back")
        self.payload[copy][at] = values.reshape(len(tokens), -1)
        self.epochs[copy][at] = epoch
        scheduler.notify(self)

    def wait(self, epoch: int, tokens: Array, index: Array) -> Wait:
        """Until all packets of `index` of these tokens are of this epoch."""
        copy, at = epoch % self.depth, (tokens[:, None], index.reshape(-1))

        def ready() -> bool:
            found = self.epochs[copy][at]
            self._check_late(epoch, found)
            return bool((found == epoch).all())

        def what() -> str:
            oldest = int(self.epochs[copy][at].min(initial=epoch))
            return f"channel {self.name} in epoch {epoch}, oldest packet seen {oldest}"

        return Wait(self, ready, what)

    def read(self, epoch: int, tokens: Array, index: Array) -> Array:
        """The payloads, [tokens, *index.shape], after `wait`. Raises DeviceHang for a packet of another epoch."""
        copy, at = epoch % self.depth, (tokens[:, None], index.reshape(-1))
        found = self.epochs[copy][at]
        self._check_late(epoch, found)
        if (found != epoch).any():
            raise DeviceHang(f"channel {self.name}: epoch {epoch} is read before it is there")
        return self.payload[copy][at].reshape(len(tokens), *index.shape)

    def _check_late(self, epoch: int, found: Array) -> None:
        if (found > epoch).any():
            raise DeviceHang(
                f"channel {self.name}: epoch {epoch} was overwritten before its reader"
            )


class LocalChannel:
    """A channel of level "sm": plain words in shared memory, full and empty for the loader that reads them."""

    def __init__(self, name: str, shape: Sequence[int], *, loaded: bool) -> None:
        self.name, self.loaded = name, loaded
        self.words: Array = np.zeros(shape, np.int64)
        self.use, self.wanted = -1, False
        self.full, self.empty = Mbarrier(1, f"{name} full"), Mbarrier(1, f"{name} empty")

    def write(self, scheduler: Scheduler, use: int, values: Array) -> Role:
        """The consumers' part of use number `use`: once the loader has taken the last."""
        if self.loaded:
            yield self.empty.wait((use & 1) ^ 1)
        if self.wanted:
            raise DeviceHang(f"{self.name} is overwritten before its loader has taken it")
        self.words[: len(values)] = values
        self.use, self.wanted = use, self.loaded
        self.full.arrive(scheduler)

    def read(self, use: int, tokens: int) -> Array:
        """The words of so many tokens. Raises DeviceHang for those of another use."""
        if self.use != use:
            raise DeviceHang(f"{self.name} is read in step {use} and holds step {self.use}'s")
        return self.words[:tokens]

    def take(self, scheduler: Scheduler, use: int, tokens: int) -> Generator[Wait, None, Array]:
        """The loader's part: a copy of the words."""
        yield self.full.wait(use & 1)
        found = np.array(self.read(use, tokens))
        self.wanted = False
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
        some = Wait(self, lambda: bool(self.pending) or self.closed, lambda: "packets between GPUs")
        while True:
            yield some
            if not self.pending:
                return
            at = self.scheduler.choose(len(self.pending))
            channel, packet = self.pending.pop(at)
            channel.publish(self.scheduler, *packet)
            yield PAUSE
