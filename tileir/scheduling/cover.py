"""What rows touch of channels and of states' rows, as arrays: once for each body and range of tiles."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tileir.scheduling.problem import RECORD_WORDS, Channel, Places, Problem, Row, Stream, fault

Runs = list[tuple[int, int]]
HALF_ROWS = 8


class Pieces(NamedTuple):
    """Values [first, last) by task, ordered by first: each [n] int64."""

    first: np.ndarray
    last: np.ndarray
    task: np.ndarray


class Writing(NamedTuple):
    """A row and what it writes; runs: joined, records included."""

    row: Row
    pieces: Pieces
    runs: Runs


class Cover:
    """What rows touch: rows of one body and one range of tiles share it."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self._pieces: dict[object, Pieces] = {}
        self._runs: dict[object, Runs] = {}
        self._first_record: dict[int | None, int] = {None: 0}
        self._choices = {
            row.written: row.body.choice for problem in problems for row in problem.rows
        }
        at = 0
        for problem in problems:
            self._first_record[problem.index], at = at, at + RECORD_WORDS * problem.sms
            self._records = RECORD_WORDS * problem.sms

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

    def touching(self, row: Row, places: tuple[Places, ...]) -> Writing:
        """The same, with its row."""
        return Writing(row, self.pieces(row, places), self.runs(row, places))

    def writing(self, row: Row, channel: Channel) -> Writing:
        """What a row writes into a channel."""
        runs = self.runs(row, row.body.writes)
        if row.body.records:
            first = self._first_record[row.device]
            runs = [*runs, (first, first + self._records)]
        if row.body.source == "rows":
            _check_positions(row, self.pieces(row, row.body.writes), channel)
            runs = [(a, min(b, channel.values)) for a, b in runs]
        return Writing(row, self.pieces(row, row.body.writes), runs)

    def among(self, row: Row) -> int:
        """How many experts there are to choose from for an experts' row."""
        routings = (row.names[s.of] for s in row.body.drains if s.of is not None)
        choices = (self._choices.get(name) for name in routings)
        return max((choice.among for choice in choices if choice is not None), default=0)

    def appends(self, problem: Problem) -> dict[str, list[Writing]]:
        """Who appends to each state."""
        states = defaultdict(list)
        for row in problem.rows:
            for argument in sorted({a.places.argument for a in row.body.appends}):
                places = tuple(a.places for a in row.body.appends if a.places.argument == argument)
                states[row.names[argument]].append(self.touching(row, places))
        return dict(states)

    def streamed(self, problem: Problem) -> dict[str, dict[int, Row]]:
        """The heads of each state whose rows are streamed, and by whom."""
        heads: dict[str, dict[int, Row]] = defaultdict(dict)
        for row in problem.rows:
            for stream in row.body.fills:
                for name in (row.names[a] for a in stream.arguments):
                    for head in streamed_heads(row, stream, problem.states[name].heads):
                        heads[name].setdefault(head, row)
        return heads


def streamed_heads(row: Row, stream: Stream, heads: int) -> list[int]:
    """The heads that the row's tasks have (docs/ir.md, attention)."""
    base = row.tile_base if row.body.source == "tape" else 0
    groups = range(base // stream.splits, -(-(base + stream.tasks) // stream.splits))
    return sorted({group * heads // stream.groups for group in groups})


def _check_positions(row: Row, found: Pieces, channel: Channel) -> None:
    """A state's row is written where its position says: whoever has the row, nobody else writes there."""
    if not len(found.first):
        return
    wrong = np.flatnonzero(found.first != np.arange(len(found.first)) * HALF_ROWS)
    if len(wrong) or found.last[-1] < channel.values:
        at = int(wrong[0]) if len(wrong) else len(found.first) - 1
        raise fault(
            f"{row} writes the values of positions {at * HALF_ROWS} … {at * HALF_ROWS + HALF_ROWS - 1} from "
            f"{found.first[at]} on, of {channel.values} of channel {channel.name}",
            "a value for every position, at its number",
            row,
            channel,
        )


def pieces(places: Sequence[Places], low: int, high: int) -> Pieces:
    """What the tasks [low, high) touch."""
    parts = [np.zeros((0, 3), np.int64)]
    for p in places:
        t = p.touching(low, high)
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


def joined_runs(writings: list[Writing]) -> Runs:
    """The runs of all rows as one list."""
    runs = sorted(run for writing in writings for run in writing.runs)
    ends = np.array(runs, np.int64).reshape(-1, 2).T
    return _joined(Pieces(ends[0], ends[1], ends[0]))
