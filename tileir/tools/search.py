"""The search for launch parameters: coordinate descent, each value timed in turns with the best so far.

Turns cancel drift of clocks and temperature: what counts is the gain within a pair of neighbouring launches. How far
gains scatter by themselves is seen first, by timing the best against itself.
"""

import time
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, sqrt
from statistics import median
from typing import Protocol

from tileir.errors import TileirError

STEPS = 64  # of a launch, at most
LEAST_STEPS = 16
LAUNCH_MS = 50  # a launch of more than LEAST_STEPS lasts no longer: what scatters is the launch, not the step
PAIRS = 7
FIRST_PAIRS = 15
SIGNIFICANT = 3.0  # standard errors of a median gain
# A trial ends early if its first pair loses by this many times what gains scatter,
HOPELESS = 10.0
# or if from this pair on the median gain is none: a gain that 7 pairs would tell from noise is missed once in 50 times.
FUTILE_FROM = 3
# Parameters of more values are tried at 0 and powers of two; if the driver assembles each value, of eight.
ALL_VALUES, ALL_ASSEMBLED = 64, 4


class Timed(Protocol):
    """What the search needs of a session: launch parameters that it may change, and the time of steps."""

    launch: dict[str, int]

    def time_steps(self, steps: int, position: int) -> float:
        """Milliseconds a step."""


def all_differ(launch: dict[str, int]) -> Hashable:
    """What launch parameters do, if nothing is known of them."""
    return tuple(launch.items())


@dataclass(frozen=True)
class Space:
    """The launches that are searched.

    limits: least and most of each parameter, in the order in which they are tried, but that those of `assembled` come
    behind the others: for each value of theirs the driver assembles the kernel anew, which takes seconds. acts: what
    the parameters of a launch do in the steps that are timed; of a parameter's values that do the same, one is tried.
    """

    limits: Mapping[str, Sequence[int]]
    assembled: Collection[str] = ()
    acts: Callable[[dict[str, int]], Hashable] = all_differ

    def values(self, name: str, launch: dict[str, int]) -> list[int]:
        """The values of a parameter to be tried instead of the launch's, neighbours first: time may run out."""
        now, seen, found = launch[name], {self.acts(launch)}, []
        values = grid(*self.limits[name], few=name in self.assembled)
        for value in sorted(values, key=lambda v: abs(v - now)):
            act = self.acts(launch | {name: value})
            if act not in seen:
                seen.add(act)
                found.append(value)
        return found


@dataclass(frozen=True)
class Trial:
    """One value of a parameter against the best so far: ms of a step, median gain and what noise makes of it, in ms."""

    name: str
    value: int
    ms: float
    gain: float
    noise: float
    kept: bool


@dataclass
class Found:
    """What a search found. first_ms: before it; ms: with `launch`; finished: whether time sufficed for all."""

    launch: dict[str, int]
    first_ms: float
    ms: float
    trials: list[Trial] = field(default_factory=list)
    finished: bool = False


def search(
    session: Timed,
    space: Space,
    seconds: float,
    position: int,
    now: Callable[[], float] = time.monotonic,
) -> Found:
    """The best launch parameters that are found in `seconds`, beginning with the session's; it is left with them.

    now: a clock, in seconds. A value is kept only if its median gain is above the noise twice in a row. The first time
    that the driver assembles may pass the end. Raises TileirError if the time does not suffice to know the noise.
    """
    bench = _Bench(session, position, now, now() + seconds)
    bench.fit_steps()
    alone = bench.pairs(session.launch, session.launch, FIRST_PAIRS)
    if alone is None:
        raise TileirError(
            f"{seconds:g} seconds do not suffice to time {2 * FIRST_PAIRS} launches of {bench.steps} steps",
            hint="give more with --seconds",
        )
    bench.scatter = _scatter(_gains(alone))
    first = median(t for pair in alone for t in pair)
    found = Found(dict(session.launch), first, first)
    try:
        found.finished = _descend(bench, space, found)
    finally:
        session.launch.update(found.launch)
    return found


def grid(least: int, most: int, *, few: bool = False) -> list[int]:
    """The values that are tried between limits, `few` if each takes seconds."""
    all_values, power = (ALL_ASSEMBLED, 3) if few else (ALL_VALUES, 1)
    if most - least < all_values:
        return list(range(least, most + 1))
    powers = (1 << n for n in range(0, most.bit_length(), power))
    return [v for v in (0, *powers) if least <= v <= most]


def _descend(bench: "_Bench", space: Space, found: Found) -> bool:
    """One parameter after the other, until none changes; whether time sufficed."""
    quick = [name for name in space.limits if name not in space.assembled]
    slow = [name for name in space.limits if name in space.assembled]
    settled: set[str] = set()
    for names in (quick, quick + slow):
        while not settled.issuperset(names):
            for name in names:
                if name in settled:
                    continue
                before = found.launch[name]
                for value in space.values(name, found.launch):
                    if not _try(bench, space, name, value, found):
                        return False
                # A parameter that changed may have changed what is best of the others.
                settled = (settled if found.launch[name] == before else set()) | {name}
    return True


def _try(bench: "_Bench", space: Space, name: str, value: int, found: Found) -> bool:
    """Time a value, and keep it if it is better; False if time ran out, and nothing is known of it."""
    other = found.launch | {name: value}
    if name in space.assembled and not bench.assemble(other):
        return False
    timed = bench.pairs(found.launch, other, PAIRS)
    if timed is None:
        return False
    gain, noise = bench.judge(timed)
    kept = gain > noise
    if kept:
        # Of many values, one is lucky: luck does not come twice.
        again = bench.pairs(found.launch, other, PAIRS)
        if again is None:
            return False
        timed += again
        gain, noise = bench.judge(again)
        kept = gain > noise
    ms = median(b for _, b in timed)
    found.trials.append(Trial(name, value, ms, gain, noise, kept))
    if kept:
        found.launch, found.ms = other, ms
    return True


@dataclass
class _Bench:
    session: Timed
    position: int
    now: Callable[[], float]
    end: float
    steps: int = STEPS
    scatter: float = 0.0
    longest: float = 0.0
    assembling: float = 0.0

    def fit_steps(self) -> None:
        """As few steps a launch as LAUNCH_MS take."""
        ms = self._time(self.session.launch)
        self.steps = max(LEAST_STEPS, min(STEPS, ceil(LAUNCH_MS / ms)))

    def assemble(self, launch: dict[str, int]) -> bool:
        """Launch what the driver may have to assemble first, so that no pair takes in its time; False without time."""
        begin = self.now()
        if begin + self.assembling > self.end:
            return False
        self._time(launch)
        self.assembling = max(self.assembling, self.now() - begin)
        return True

    def pairs(
        self, best: dict[str, int], other: dict[str, int], count: int
    ) -> list[tuple[float, float]] | None:
        """(ms with best, ms with other) of up to `count` pairs of launches; None if there is no time for one more."""
        timed = []
        for turn in range(count):
            begin = self.now()
            if begin + self.longest > self.end:
                return None
            # Who is first takes turns too.
            order = (best, other) if turn % 2 == 0 else (other, best)
            ms = [self._time(launch) for launch in order]
            self.longest = max(self.longest, self.now() - begin)
            a, b = ms if turn % 2 == 0 else reversed(ms)
            timed.append((a, b))
            if other != best and self._is_futile(_gains(timed)):
                break
        return timed

    def _is_futile(self, gains: list[float]) -> bool:
        """Whether a trial of these gains so far cannot end well any more."""
        if len(gains) == 1:
            return gains[0] < -HOPELESS * self.scatter
        return len(gains) >= FUTILE_FROM and median(gains) <= 0

    def judge(self, timed: list[tuple[float, float]]) -> tuple[float, float]:
        """The median gain, and how large noise could make it, ms."""
        gains = _gains(timed)
        # The standard error of the median of n normal values is 1.25 of the mean's.
        error = 1.25 * max(self.scatter, _scatter(gains)) / sqrt(len(gains))
        return median(gains), SIGNIFICANT * error

    def _time(self, launch: dict[str, int]) -> float:
        self.session.launch.update(launch)
        return self.session.time_steps(self.steps, self.position)


def _gains(timed: list[tuple[float, float]]) -> list[float]:
    return [a - b for a, b in timed]


def _scatter(values: list[float]) -> float:
    """The standard deviation, from the median of deviations: outliers do not count (Rousseeuw and Croux, 1993)."""
    middle = median(values)
    return 1.4826 * median(abs(v - middle) for v in values)
