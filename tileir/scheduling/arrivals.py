"""Proof of arrivals: every value of a channel, and of a state's row, is written exactly once a step.

Tasks are handled as arrays, once for each body and range of tiles, whatever the number of rows.
"""

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from tileir.scheduling.assign import shares
from tileir.scheduling.problem import Places, Problem, Row, fault

Runs = list[tuple[int, int]]


class Pieces(NamedTuple):
    """Values [first, last) by task, ordered by first: each [n] int64."""

    first: np.ndarray
    last: np.ndarray
    task: np.ndarray


class Writing(NamedTuple):
    """A row and the places that it writes; records: all of a channel, as one."""

    row: Row
    places: tuple[Places, ...]
    runs: Runs


def check_arrivals(problem: Problem) -> None:
    """Every value of a channel is written exactly once a step, and what is polled is written. Raises ScheduleError."""
    cover = _Cover()
    channels, states = cover.writings(problem)
    for name, writings in channels.items():
        _once(problem, cover, f"channel {name}", writings, problem.channels[name].values)
    for name, writings in states.items():
        values = problem.states[name].heads * problem.states[name].size
        _once(problem, cover, f"a row of state {name}", writings, values)
        _complete(f"a row of state {name}", writings, values)
    covered = {name: _joined_runs(writings) for name, writings in channels.items()}
    for row in problem.rows:
        for name, runs in _polled(problem, cover, row):
            for first, last in runs:
                if not any(a <= first and last <= b for a, b in covered.get(name, [])):
                    writers = [w.row for w in channels.get(name, [])]
                    raise _unwritten(row, name, (first, last), writers, covered.get(name, []))


def _polled(problem: Problem, cover: "_Cover", row: Row) -> list[tuple[str, Runs]]:
    """What the row waits for, by channel."""
    body, names = row.body, row.names
    waits = [(names[w.argument], [(w.first, w.last)]) for w in body.waits]
    records = [(names[a], [(0, problem.channels[names[a]].values)]) for a in body.chooses]
    return waits + records + [(names[p.argument], cover.runs(row, (p,))) for p in body.reads]


class _Cover:
    """What rows touch: rows of one body and one range of tiles share it."""

    def __init__(self) -> None:
        self._pieces: dict[object, Pieces] = {}
        self._runs: dict[object, Runs] = {}

    def pieces(self, row: Row, places: tuple[Places, ...]) -> Pieces:
        """What the row's tasks touch."""
        key = (row.tile_base, row.body.tasks, places)
        if key not in self._pieces:
            last = row.tile_base + row.body.tasks
            self._pieces[key] = pieces(places, row.tile_base, last)
        return self._pieces[key]

    def runs(self, row: Row, places: tuple[Places, ...]) -> Runs:
        """The same, joined."""
        key = (row.tile_base, row.body.tasks, places)
        if key not in self._runs:
            self._runs[key] = _joined(self.pieces(row, places))
        return self._runs[key]

    def writings(
        self, problem: Problem
    ) -> tuple[dict[str, list[Writing]], dict[str, list[Writing]]]:
        """Who writes each channel, and who appends to each state."""
        channels, states = defaultdict(list), defaultdict(list)
        for row in problem.rows:
            if row.written is not None:
                runs = self.runs(row, row.body.writes)
                if row.body.records:
                    runs = [*runs, (0, problem.channels[row.written].values)]
                channels[row.written].append(Writing(row, row.body.writes, runs))
            for argument in sorted({a.places.argument for a in row.body.appends}):
                places = tuple(a.places for a in row.body.appends if a.places.argument == argument)
                states[row.names[argument]].append(Writing(row, places, self.runs(row, places)))
        return dict(channels), dict(states)


def pieces(places: Sequence[Places], low: int, high: int) -> Pieces:
    """What the tasks [low, high) touch."""
    parts = [np.zeros((0, 3), np.int64)]
    for p in places:
        t = np.arange(max(low, p.first), min(high, p.first + p.tasks)) - p.first
        first = (t // p.inner * p.outer + t % p.inner * p.step)[:, None] + np.array(p.bases)
        task = np.broadcast_to((t + p.first)[:, None], first.shape)
        parts.append(np.stack([first, first + p.width, task], -1).reshape(-1, 3))
    found = np.concatenate(parts)
    return Pieces(*found[np.argsort(found[:, 0], kind="stable")].T)


def _joined(found: Pieces) -> Runs:
    """Neighbouring and overlapping pieces as runs [first, last)."""
    if not len(found.first):
        return []
    reach = np.maximum.accumulate(found.last)
    starts = np.r_[True, found.first[1:] > reach[:-1]]
    ends = np.r_[starts[1:], True]
    return list(zip(found.first[starts].tolist(), reach[ends].tolist(), strict=True))


def _joined_runs(writings: list[Writing]) -> Runs:
    """The runs of all rows as one list."""
    runs = sorted(run for writing in writings for run in writing.runs)
    ends = np.array(runs, np.int64).reshape(-1, 2).T
    return _joined(Pieces(ends[0], ends[1], ends[0]))


def _once(problem: Problem, cover: _Cover, what: str, writings: list[Writing], values: int) -> None:
    """No value twice, by two tasks of a row or by two rows; none outside."""
    for row, places, _ in writings:
        found = cover.pieces(row, places)
        twice = np.flatnonzero(found.first[1:] < np.maximum.accumulate(found.last)[:-1])
        if len(twice):
            at = int(twice[0])
            one, other = sorted(found.task[at : at + 2].tolist())
            raise fault(
                f"value {found.first[at + 1]} of {what} is written by tasks {one} and {other} of {row}",
                "one arrival a value and step",
                row,
                _owner(problem, row, other),
            )
    ordered = sorted((run, w.row.number, w.row) for w in writings for run in w.runs)
    for (a, _, one_row), (b, _, other_row) in pairwise(ordered):
        if b[0] < a[1]:
            raise fault(
                f"values {b[0]} … {min(a[1], b[1]) - 1} of {what} are written by {one_row} and by {other_row}",
                "one arrival a value and step",
                other_row,
            )
    for (first, last), _, row in ordered:
        if first < 0 or last > values:
            raise fault(
                f"{row} writes values {first} … {last - 1} of {what}, which has {values}",
                "tasks that stay inside",
                row,
            )


def _owner(problem: Problem, row: Row, task: int) -> int:
    """The SM that has a task of the row."""
    first, count = shares(row.body.tasks, row.rotation, problem.sms)
    mine = task - row.tile_base
    return int(np.argmax((first <= mine) & (mine < first + count)))


def _complete(what: str, writings: list[Writing], values: int) -> None:
    covered = _joined_runs(writings)
    if covered != [(0, values)]:
        rows = ", ".join(str(w.row) for w in writings)
        raise fault(
            f"of {what}, {values} values, only {_text(covered)} are appended, by {rows}",
            "an append of every value",
            writings[-1].row,
        )


def _unwritten(
    row: Row, name: str, wanted: tuple[int, int], writers: list[Row], covered: Runs
) -> Exception:
    by = f"of which {writers[0]} writes {_text(covered)}" if writers else "which no row writes"
    return fault(
        f"{row} waits for values {wanted[0]} … {wanted[1] - 1} of channel {name}, {by}",
        f"an arrival from {writers[0] if writers else 'a writer'} to {row}",
        row,
    )


def _text(runs: Runs) -> str:
    shown = ", ".join(f"{a} … {b - 1}" for a, b in runs[:4])
    return f"{shown}, …" if len(runs) > 4 else shown or "none"
