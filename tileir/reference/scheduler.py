"""Who runs next: roles, what they wait for, and four strategies to find an order that breaks a protocol.

A role is a generator that yields a `Wait` wherever it may have to; the scheduler runs any role that
is ready, in an order that its strategy and seed decide. When none is, and not all are done, that is a deadlock,
and the error says who waits for what.
"""

import random
from collections.abc import Callable, Generator
from typing import NamedTuple

from tileir.errors import DeviceHang


class Wait(NamedTuple):
    """Not before `ready()`; looked at again whenever `key` is notified. `what()` is for the report of a deadlock."""

    key: object
    ready: Callable[[], bool]
    what: Callable[[], str]


Role = Generator[Wait, None, None]
# Others go first, if they are ready.
PAUSE = Wait(None, lambda: True, lambda: "its next turn")
PAUSES, SLOW = 1 / 16, 1 / 4
# The role that lets stores land of which some SM hears last.
LATE = "late stores"
# Change points of "priorities", and the turns among which they lie.
POINTS, TURNS = 3, 4096


class Scheduler:
    """Runs roles until all are done; those that are slow only when no other can, the slowest last.

    "random": for a while some are slow, so that all get as far ahead of them as the protocol lets them; then others
    are. "priorities": every role has a rank and the best that is ready runs; at `POINTS` random turns the one that runs
    becomes the slowest (Burckhardt et al., A Randomized Scheduler with Probabilistic Guarantees of Finding Bugs, ASPLOS
    2010). "delays": one role, SM, or kind of role is slow from the first turn to the last. "stores": as "random", and
    stores are late (`late`, tileir/reference/stores.py).
    """

    STRATEGIES = ("random", "priorities", "delays", "stores")

    def __init__(self, seed: int, strategy: str = "random") -> None:
        assert strategy in self.STRATEGIES, strategy
        self._random, self._strategy = random.Random(seed), strategy
        self._names: list[str] = []
        self._slow: dict[str, int] = {}
        self._ready: list[tuple[str, Role]] = []
        self._late: list[tuple[str, Role]] = []
        self._waiting: dict[object, list[tuple[str, Role, Wait]]] = {}
        self._left, self._turn = 0, 0
        self._points = {self.choose(TURNS) for _ in range(POINTS)}
        self.late = strategy == "stores"

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
        if self._strategy in ("priorities", "delays"):
            self._rank()
        while self._ready or self._late:
            name, role = self._next()
            for wait in role:
                if not wait.ready():
                    self._waiting.setdefault(wait.key, []).append((name, role, wait))
                    break
                if wait is PAUSE or self._random.random() < PAUSES:
                    self._go_on(name, role)
                    break
            self._after(name)
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

    def _rank(self) -> None:
        """Who is slow from the first turn on."""
        slow = list(self._names)
        if self._strategy == "delays":
            # A role of one SM; all of an SM; the role of this name on all SMs.
            victim = slow[self.choose(len(slow))]
            sm, _, kind = victim.rpartition(" ")
            beginning, end = ((victim, ""), (f"{sm} ", ""), ("", f" {kind}"))[self.choose(3)]
            slow = [n for n in slow if n.startswith(beginning) and n.endswith(end)] or [victim]
        self._become(slow)

    def _after(self, name: str) -> None:
        """What a turn of a role changes."""
        self._turn += 1
        if self._strategy == "priorities" and self._turn in self._points and name in self._slow:
            self._slow[name] = max(self._slow.values()) + 1
        if self._strategy in ("random", "stores"):
            self._left -= 1
            if self._left < 0:
                # Others are slow, for 2^4 to 2^11 turns.
                self._left = int(2 ** self._random.uniform(4, 11))
                slow = [n for n in self._names if n != LATE and self._random.random() < SLOW]
                self._become(slow)

    def _become(self, slow: list[str]) -> None:
        """These are slow, in a random order, and late stores last of all."""
        self._random.shuffle(slow)
        self._slow = {name: i for i, name in enumerate([*slow, LATE])}
        every, self._ready, self._late = [*self._ready, *self._late], [], []
        for name, role in every:
            self._go_on(name, role)
