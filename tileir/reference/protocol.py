"""The engine's synchronisation, exactly as the kernel uses it: mbarriers, rings, copies and channels."""

from collections.abc import Callable, Generator, Sequence
from typing import Self

import numpy as np

from tileir.errors import DeviceHang
from tileir.reference.arithmetic import Array
from tileir.reference.scheduler import PAUSE, Role, Scheduler, Wait
from tileir.reference.stores import Memory, Shared
from tileir.scheduling.assign import fed_slots

Copy = Callable[[], tuple[Array, ...]]


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

    def __init__(self, name: str, slots: int, window: int, fed_window: int, warps: int) -> None:
        self.name, self.slots, self.warps = name, slots, warps
        self.window, self.fed_window = window, fed_window
        self.full = [Mbarrier(1, f"{name} slot {i} full") for i in range(slots)]
        self.empty = [Mbarrier(warps, f"{name} slot {i} empty") for i in range(slots)]
        self.data: list[tuple[int, tuple[Array, ...]] | None] = [None] * slots

    def fill(self, use: int, copy: Copy, copies: "CopyEngine") -> Role:
        """The loader's part of use number `use`: wait for slot and window, then start the copy."""
        yield self._free(use)
        hungry = self._free(use + fed_slots(self.slots)).ready()
        window = self.window if hungry else min(self.window, self.fed_window)
        if use >= window:
            behind = use - window
            yield self.full[behind % self.slots].wait((behind // self.slots) & 1)
        copies.start(self, use, copy)

    def _free(self, use: int) -> Wait:
        """Until the slot of a use may be filled."""
        return self.empty[use % self.slots].wait((use // self.slots & 1) ^ 1)

    def take(self, use: int) -> Role:
        """The consumers' wait for use number `use`; then `read` and `release`."""
        yield self.full[use % self.slots].wait((use // self.slots) & 1)

    def read(self, use: int) -> tuple[Array, ...]:
        """What the slot holds. Raises DeviceHang if that is not use number `use`."""
        slot = use % self.slots
        held = self.data[slot]
        if held is None:
            raise DeviceHang(f"{self.name} slot {slot} was read before it was filled")
        if held[0] != use:
            raise DeviceHang(f"{self.name} slot {slot} holds use {held[0]}, and {use} is read")
        return held[1]

    def release(self, scheduler: Scheduler, use: int) -> None:
        """All consumer warps are done with the slot."""
        self.data[use % self.slots] = None
        self.empty[use % self.slots].arrive(scheduler, self.warps)


class CopyEngine:
    """Copies land some time after they were started, in any order; each says itself that it has."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler, self.started = scheduler, list[tuple[Ring, int, Copy]]()
        self.closed = False

    def start(self, ring: Ring, use: int, copy: Copy) -> None:
        """Begin the copy of a use. `copy` is called when it lands: what the source holds then is what comes."""
        self.started.append((ring, use, copy))
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
            ring, use, copy = self.started.pop(self.scheduler.choose(len(self.started)))
            slot = use % ring.slots
            if ring.data[slot] is not None:
                raise DeviceHang(f"{ring.name} slot {slot} was overwritten before its release")
            ring.data[slot] = use, copy()
            ring.full[slot].arrive(self.scheduler)
            yield PAUSE


class Channel(Shared["View"]):
    """Packets, payload and epoch each, of every value of every token; `depth` copies by epoch.

    shape: [T, …]. rounded: values are bf16. peer: GPUs write those of others too. views: one, or by replica, or one for
    each SM.
    """

    def __init__(
        self,
        name: str,
        shape: Sequence[int],
        dtype: type,
        depth: int,
        replicas: int,
        *,
        rounded: bool,
        peer: bool,
    ) -> None:
        self.name, self.depth, self.replicas = name, depth, replicas
        self.rounded, self.peer = rounded, peer
        self.values = int(np.prod(shape[1:]))
        self.integers = dtype is np.int64
        payload: Array = np.zeros((depth, shape[0], self.values), dtype)
        self.views = [View(name, payload, np.zeros(payload.shape, np.int64))]


class View(Memory):
    """A channel's packets as some SMs see them: payload and epochs, [depth, T, values]."""

    kind = "packets"

    def __init__(self, name: str, payload: Array, epochs: Array) -> None:
        super().__init__(name)
        self.payload, self.epochs, self.depth = payload, epochs, len(payload)

    def copy(self) -> Self:
        """The same packets."""
        return type(self)(self.name, self.payload.copy(), self.epochs.copy())

    def publish(
        self, scheduler: Scheduler, epoch: int, tokens: Array, index: Array, values: Array
    ) -> None:
        """Packets of an epoch are seen, [tokens, *index.shape]. Raises DeviceHang if such an epoch is there already."""
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
