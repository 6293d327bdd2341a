"""The search for launch parameters: coordinate descent, each value timed in turns with the best so far.

Turns cancel drift of clocks and temperature: what counts is the gain within a pair of neighbouring launches. How far
gains scatter by themselves is seen first, by timing the best against itself.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt
from statistics import median
from typing import Protocol

from tileir.errors import TileirError

STEPS = 64
PAIRS = 7
FIRST_PAIRS = 15
SIGNIFICANT = 3.0  # standard errors of a median gain
HOPELESS = (
    0.9  # a first pair in which the best takes less than this of the value's time ends the trial
)
ALL_VALUES = 64  # a parameter of more values is tried at 0 and powers of two


class Timed(Protocol):
    """What the search needs of a session: launch parameters that it may change, and the time of steps."""

    launch: dict[str, int]

    def time_steps(self, steps: int, position: int) -> float:
        """Milliseconds a step."""


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
    limits: Mapping[str, Sequence[int]],
    seconds: float,
    position: int,
    now: Callable[[], float] = time.monotonic,
) -> Found:
    """The best launch parameters that are found in `seconds`, beginning with the session's; it is left with them.

    limits: least and most of each parameter. now: a clock, in seconds. A value is kept only if its median gain is
    above the noise twice in a row. Raises TileirError if the time does not suffice to know the noise.
    """
    bench = _Bench(session, position, now, now() + seconds)
    alone = bench.pairs(session.launch, session.launch, FIRST_PAIRS)
    if alone is None:
        raise TileirError(
            f"{seconds:g} seconds do not suffice to time {2 * FIRST_PAIRS} launches of {STEPS} steps",
            hint="give more with --seconds",
        )
    bench.scatter = _scatter(_gains(alone))
    first = median(t for pair in alone for t in pair)
    found = Found(dict(session.launch), first, first)
    try:
        found.finished = _descend(bench, limits, found)
    finally:
        session.launch.update(found.launch)
    return found


def grid(least: int, most: int) -> list[int]:
    """The values that are tried between limits."""
    if most - least < ALL_VALUES:
        return list(range(least, most + 1))
    powers = (1 << n for n in range(most.bit_length()))
    return [v for v in (0, *powers) if least <= v <= most]


def _descend(bench: "_Bench", limits: Mapping[str, Sequence[int]], found: Found) -> bool:
    """One parameter after the other, until none changes; whether time sufficed."""
    settled: set[str] = set()
    while settled != set(limits):
        for name in limits:
            if name in settled:
                continue
            before = found.launch[name]
            values = [v for v in grid(*limits[name]) if v != before]
            # Neighbours first: time may run out.
            for value in sorted(values, key=lambda v: abs(v - before)):
                if not _try(bench, name, value, found):
                    return False
            # A parameter that changed may have changed what is best of the others.
            settled = (settled if found.launch[name] == before else set()) | {name}
    return True


def _try(bench: "_Bench", name: str, value: int, found: Found) -> bool:
    """Time a value, and keep it if it is better; False if time ran out, and nothing is known of it."""
    other = found.launch | {name: value}
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
    scatter: float = 0.0
    longest: float = 0.0

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
            if turn == 0 and a < HOPELESS * b:
                break
        return timed

    def judge(self, timed: list[tuple[float, float]]) -> tuple[float, float]:
        """The median gain, and how large noise could make it, ms."""
        gains = _gains(timed)
        # The standard error of the median of n normal values is 1.25 of the mean's.
        error = 1.25 * max(self.scatter, _scatter(gains)) / sqrt(len(gains))
        return median(gains), SIGNIFICANT * error

    def _time(self, launch: dict[str, int]) -> float:
        self.session.launch.update(launch)
        return self.session.time_steps(STEPS, self.position)


def _gains(timed: list[tuple[float, float]]) -> list[float]:
    return [a - b for a, b in timed]


def _scatter(values: list[float]) -> float:
    """The standard deviation, from the median of deviations: outliers do not count (Rousseeuw and Croux, 1993)."""
    middle = median(values)
    return 1.4826 * median(abs(v - middle) for v in values)
