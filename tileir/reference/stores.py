"""Stores on their way to the SMs that read them.

Between GPUs every store is late. Under the strategy "stores" those of a GPU are too: PTX promises that an SM sees the
stores to one address in their order, and what was stored before a release once it has acquired it (PTX ISA 8.7, 8.10);
everything else an SM may see late, sooner or later than another SM does, and in any order. A load that finds what was
there before is a stale read.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Generic, Self, TypeVar

from tileir.reference.scheduler import LATE, PAUSE, Role, Scheduler, Wait

# As many stores land in a turn, at most.
BURST = 8


class Memory(ABC):
    """A channel or a state as some SMs see it. coming: by place, the stores that they do not see yet, in order."""

    kind: ClassVar[str]

    def __init__(self, name: str) -> None:
        self.name = name
        self.coming: dict[int, list[Store]] = {}

    @abstractmethod
    def copy(self) -> Self:
        """The same contents, for somebody else to see."""


Seen = TypeVar("Seen", bound=Memory)


class Shared(Generic[Seen]):
    """A channel or a state. views: what SMs see of it, one that all share, or more: an SM's is that of its number mod
    their count.
    """

    views: list[Seen]

    def split(self, views: int) -> None:
        """Have so many views. Between launches all are the same."""
        if views != len(self.views):
            self.views = [self.views[0].copy() for _ in range(views)]

    def view(self, sm: int) -> Seen:
        """What an SM sees."""
        return self.views[sm % len(self.views)]


@dataclass(eq=False)
class Store:
    """A store into a place of a memory, in an epoch. writer, reader: names of SMs; land: lets the reader see it."""

    writer: str
    reader: str
    memory: Memory
    place: int
    epoch: int
    land: Callable[[], None]
    landed: bool = False


class Stores:
    """All stores of a launch that somebody does not see yet.

    Those of one writer, for one reader, to one memory, or of all rows, by the seed, land when nothing else can go on.
    """

    def __init__(self, scheduler: Scheduler, sms: list[str], memories: list[str]) -> None:
        self.scheduler = scheduler
        self.queues: dict[str, list[Store]] = {"stores": [], LATE: []}
        self.closed = False
        kinds = sms, sms, memories, ["rows"]
        self._by = scheduler.choose(len(kinds))
        names = kinds[self._by]
        self._late = names[scheduler.choose(len(names))]

    def send(self, store: Store) -> None:
        """Let it land some time."""
        names = store.writer, store.reader, store.memory.name, store.memory.kind
        self.queues[LATE if names[self._by] == self._late else "stores"].append(store)
        store.memory.coming.setdefault(store.place, []).append(store)
        self.scheduler.notify(self)

    def land(self, store: Store) -> None:
        """Let its readers see it, and before it what older epochs stored there."""
        if store.landed:
            return
        store.landed = True
        coming = store.memory.coming[store.place]
        coming.remove(store)
        for older in [s for s in coming if s.epoch < store.epoch]:
            self.land(older)
        store.land()

    def close(self) -> None:
        """Nothing more is stored."""
        self.closed = True
        self.scheduler.notify(self)

    def role(self, name: str) -> Role:
        """Land what stands in a queue, in any order."""
        queue = self.queues[name]
        some = Wait(self, lambda: bool(queue) or self.closed, lambda: "stores to land")
        while True:
            yield some
            if not queue:
                return
            for _ in range(min(1 + self.scheduler.choose(BURST), len(queue))):
                at = self.scheduler.choose(len(queue))
                queue[at], queue[-1] = queue[-1], queue[at]
                self.land(queue.pop())
            yield PAUSE
