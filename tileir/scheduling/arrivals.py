"""Proof of arrivals: every value of a channel, and of a state's row, is written exactly once a step.

Tasks are handled as arrays, once for each body and range of tiles, whatever the number of rows.
"""

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from tileir.scheduling.assign import shares
from tileir.scheduling.problem import (
    RECORD_WORDS,
    Channel,
    Located,
    Places,
    Problem,
    Row,
    Stream,
    Writers,
    fault,
)

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


class Case(NamedTuple):
    """What is written of a channel for slots whose expert is in [first, behind); always, if writers have no experts."""

    first: int
    behind: int
    runs: Runs


class Wanted(NamedTuple):
    """What a row waits for; of experts [first, behind) only in the slot that chose them."""

    name: str
    runs: Runs
    slot: int | None = None


ALL = 1 << 31


def check_arrivals(problems: Sequence[Problem]) -> None:
    """Every value of a GPU's copy of a channel is written exactly once a step, whatever experts are chosen; what is
    polled is written. Raises ScheduleError.
    """
    cover, writers, cases = Cover(problems), Writers(problems), dict[tuple[int, str], list[Case]]()
    for problem in problems:
        _check_states(problem, cover)
    for problem in problems:
        for name, channel in problem.channels.items():
            # Copies of a peer channel are written alike.
            first = problems[0] if channel.level == "peer" else problem
            if (first.index, name) not in cases:
                rows = writers.into(problem, name)
                cases[first.index, name] = _check_channel(problems, cover, channel, rows)
                those = problems if channel.level == "peer" else [problem]
                _check_alone(those, cover, channel, rows, cases[first.index, name])
            cases[problem.index, name] = cases[first.index, name]
    for problem in problems:
        for row in problem.rows:
            for wanted in _polled(problem, cover, row):
                low, high = _wanted_experts(problem, writers, row, wanted)
                for case in cases.get((problem.index, wanted.name), [Case(0, ALL, [])]):
                    if case.first < high and low < case.behind:
                        _check_written(writers, problem, row, wanted, case)


def check_offers(problems: Sequence[Problem]) -> None:
    """The records that a choice awaits are of the whole vocabulary, each token in one. Raises ScheduleError."""
    cover, writers = Cover(problems), Writers(problems)
    for problem in problems:
        for chooser in (row for row in problem.rows if row.body.chooses):
            names = dict.fromkeys(chooser.names[a] for a in chooser.body.chooses)
            rows = [row for name in names for row in writers.into(problem, name)]
            offers = [cover.touching(r, r.body.offers) for r in rows]
            last = max((b for o in offers for _, b in o.runs), default=0)
            _once(problems, "the vocabulary", problem, offers, last, "")
            runs = _joined_runs(offers)
            if len(runs) != 1 or runs[0][0] > 0 or last < problem.vocabulary:
                raise fault(
                    f"{chooser} chooses among tokens {_text(runs)} of a vocabulary of {problem.vocabulary}",
                    "a record that every token is in",
                    chooser,
                    *rows[:1],
                )


def _polled(problem: Problem, cover: "Cover", row: Row) -> list[Wanted]:
    """What the row waits for, by channel."""
    body, names = row.body, row.names
    waits = [Wanted(names[w.argument], [(w.first, w.last)], w.slot) for w in body.waits]
    records = [Wanted(names[a], [(0, problem.channels[names[a]].values)]) for a in body.chooses]
    return waits + records + [Wanted(names[p.argument], cover.runs(row, (p,))) for p in body.reads]


def _wanted_experts(
    problem: Problem, writers: Writers, row: Row, wanted: Wanted
) -> tuple[int, int]:
    """The experts for which the row waits: of a slot that others filled by the same routing, its own."""
    slots = [w for w in writers.into(problem, wanted.name) if w.body.experts is not None]
    if wanted.slot is None or not slots or row.body.experts is None:
        return 0, ALL
    size = problem.channels[wanted.name].values // slots[0].body.slots
    first, last = wanted.runs[0]
    if not wanted.slot * size <= first < last <= (wanted.slot + 1) * size:
        raise fault(
            f"{row} takes slot {wanted.slot} from values {first} … {last - 1} of channel {wanted.name}, where "
            f"{slots[0]} writes it at {wanted.slot * size} … {(wanted.slot + 1) * size - 1}",
            "the same slots on both sides",
            row,
            slots[0],
        )
    by, goes = (r.names[r.body.routing or 0] for r in (slots[0], row))
    if by != goes:
        raise fault(
            f"{row} takes slots of channel {wanted.name} by {goes}, and {slots[0]} fills them by {by}",
            "the same routing on both sides",
            row,
            slots[0],
        )
    return row.body.experts


def _check_written(
    writers: Writers, problem: Problem, row: Row, wanted: Wanted, case: Case
) -> None:
    for run in wanted.runs:
        if not any(a <= run[0] and run[1] <= b for a, b in case.runs):
            raise _unwritten(writers, problem, row, wanted.name, run, case)


def _check_channel(
    problems: Sequence[Problem], cover: "Cover", channel: Channel, rows: list[Row]
) -> list[Case]:
    """Every value at most once, for each expert that a token may choose; what is written."""
    cases = []
    for first, behind, those in _by_expert(cover, rows):
        when = "" if behind == ALL else f" when expert {first} is chosen"
        writings = [cover.writing(row, channel) for row in those]
        _once(problems, str(channel), channel, writings, channel.values, when)
        cases.append(Case(first, behind, _joined_runs(writings)))
    return cases


def _check_alone(
    problems: Sequence[Problem],
    cover: "Cover",
    channel: Channel,
    rows: list[Row],
    cases: list[Case],
) -> None:
    """Attention finishes exactly when its combine does nothing, and fills what the combine would.

    What only one of both cases fills, nobody but a row that knows the case may await.
    """
    finishers = [
        row
        for problem in problems
        for row in problem.rows
        if row.body.finishes and row.names[row.body.finishes.argument] == channel.name
    ]
    for row in rows:
        if row.body.alone and row.body.finishes:
            for reader in (r for p in problems for r in p.rows if channel.name in r.awaited):
                if reader.body.alone != row.body.alone or reader.body.finishes:
                    raise fault(
                        f"{reader} awaits channel {channel.name}, which {row} leaves out where one split has all rows",
                        f"the same case on both sides: {row.body.alone}",
                        reader,
                        row,
                    )
    idle = [row for row in rows if row.body.alone and not row.body.finishes]
    if idle and not finishers:
        raise fault(
            f"{idle[0]} does nothing for channel {channel.name} where one split has all rows, and nobody else fills it",
            "attention finishes exactly where its combine does nothing",
            idle[0],
            channel,
        )
    for one in finishers:
        for other in rows:
            if one.body.alone != other.body.alone:
                raise fault(
                    f"{one} fills channel {channel.name} in the case {one.body.alone}, {other} leaves it out in "
                    f"{other.body.alone}",
                    "attention finishes exactly where its combine does nothing",
                    one,
                    other,
                )
    if finishers:
        writings = [
            cover.touching(row, (row.body.finishes,)) for row in finishers if row.body.finishes
        ]
        _once(problems, str(channel), channel, writings, channel.values, " by split alone")
        runs = _joined_runs(writings)
        if [runs] != [case.runs for case in cases]:
            raise fault(
                f"of channel {channel.name} attention fills {_text(runs)}, its combine {_text(cases[0].runs)}",
                "the same values in both cases",
                finishers[0],
                *rows[:1],
                channel,
            )


def _by_expert(cover: "Cover", rows: list[Row]) -> list[tuple[int, int, list[Row]]]:
    """Who writes, for every range of experts: a slot's values are its expert's owner's."""
    bounds = {b for row in rows if row.body.experts is not None for b in row.body.experts}
    if not bounds:
        return [(0, ALL, rows)]
    bounds |= {0, max(cover.among(row) for row in rows)}
    return [
        (a, b, [r for r in rows if r.body.experts is None or _within(a, *r.body.experts)])
        for a, b in pairwise(sorted(bounds))
    ]


def _within(at: int, first: int, behind: int) -> bool:
    return first <= at < behind


def _check_states(problem: Problem, cover: "Cover") -> None:
    """Every value of a state's row is appended once, where rows of it are streamed."""
    writings, heads = cover.appends(problem), cover.streamed(problem)
    for name, by in writings.items():
        state = problem.states[name]
        _once([problem], f"a row of {state}", state, by, state.heads * state.size, "")
        for head, row in heads.get(name, {}).items():
            if head >= state.heads:
                raise fault(
                    f"{row} streams head {head} of {state}, which has {state.heads}",
                    "tasks whose heads are there",
                    row,
                    state,
                )
        missing = [h for h in sorted(heads.get(name, {})) if not _has(by, h, state.size)]
        if missing:
            rows = ", ".join(str(w.row) for w in by)
            raise fault(
                f"of a row of state {name}, {state.heads * state.size} values, only {_text(_joined_runs(by))} are "
                f"appended, by {rows}",
                f"an append of every value of head {missing[0]}, which {heads[name][missing[0]]} streams",
                by[-1].row,
                heads[name][missing[0]],
            )


def _has(writings: list[Writing], head: int, size: int) -> bool:
    runs = _joined_runs(writings)
    return any(a <= head * size and (head + 1) * size <= b for a, b in runs)


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
    wrong = np.flatnonzero(found.first != found.first[0] + np.arange(len(found.first)) * HALF_ROWS)
    if len(wrong) or (len(found.first) and found.first[0]) or found.last[-1] < channel.values:
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


def _joined_runs(writings: list[Writing]) -> Runs:
    """The runs of all rows as one list."""
    runs = sorted(run for writing in writings for run in writing.runs)
    ends = np.array(runs, np.int64).reshape(-1, 2).T
    return _joined(Pieces(ends[0], ends[1], ends[0]))


def _once(
    problems: Sequence[Problem],
    what: str,
    whole: Located,
    writings: list[Writing],
    values: int,
    when: str,
) -> None:
    """No value twice, by two tasks of a row or by two rows; none outside."""
    for row, found, _ in writings:
        twice = np.flatnonzero(found.first[1:] < np.maximum.accumulate(found.last)[:-1])
        if len(twice):
            at = int(twice[0])
            one, other = sorted(found.task[at : at + 2].tolist())
            raise fault(
                f"value {found.first[at + 1]} of {what} is written by tasks {one} and {other} of {row}{when}",
                "one arrival a value and step",
                row,
                whole,
                sm=_owner(problems[0], row, other),
            )
    ordered = sorted(
        ((run, w.row.number, w.row.device or 0, w.row) for w in writings for run in w.runs),
        key=lambda found: found[:3],
    )
    for (a, *_, one_row), (b, *_, other_row) in pairwise(ordered):
        if b[0] < a[1]:
            raise fault(
                f"values {b[0]} … {min(a[1], b[1]) - 1} of {what} are written by {one_row} and by {other_row}{when}",
                "one arrival a value and step",
                other_row,
                one_row,
            )
    for (first, last), *_, row in ordered:
        if first < 0 or last > values:
            raise fault(
                f"{row} writes values {first} … {last - 1} of {what}, which has {values}",
                "tasks that stay inside",
                row,
                whole,
            )


def _owner(problem: Problem, row: Row, task: int) -> int:
    """The SM that has a task of the row."""
    first, count = shares(row.body.tasks, row.rotation, problem.sms)
    mine = task - row.tile_base
    return int(np.argmax((first <= mine) & (mine < first + count)))


def _unwritten(
    writers: Writers,
    problem: Problem,
    row: Row,
    name: str,
    wanted: tuple[int, int],
    case: Case,
) -> Exception:
    here, anywhere = writers.into(problem, name), writers.anywhere(name)
    by = f"of which {here[0]} writes {_text(case.runs)}" if here else "which no row writes"
    missing = f"an arrival from {here[0] if here else 'a writer'} to {row}"
    other: Located = here[0] if here else problem.channels[name]
    if here and case.behind != ALL:
        by = f"of which {_text(case.runs)} are written when expert {case.first} is chosen"
    if len(anywhere) > len(here):
        other = next(w for w in anywhere if w.device != row.device)
        by += f", and {other} writes another copy"
        missing = f'level "peer" from {other} to {row}'
    return fault(
        f"{row} waits for values {wanted[0]} … {wanted[1] - 1} of channel {name}, {by}",
        missing,
        row,
        other,
    )


def _text(runs: Runs) -> str:
    shown = ", ".join(f"{a} … {b - 1}" for a, b in runs[:4])
    return f"{shown}, …" if len(runs) > 4 else shown or "none"
