"""Proof of arrivals: every value of a channel, and of a state's row, is written exactly once a step."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from tileir.scheduling.assign import shares
from tileir.scheduling.cover import Cover, Runs, Writing, joined_runs
from tileir.scheduling.problem import Channel, Located, Problem, Row, Writers, fault


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
            runs = joined_runs(offers)
            if len(runs) != 1 or runs[0][0] > 0 or last < problem.vocabulary:
                raise fault(
                    f"{chooser} chooses among tokens {_text(runs)} of a vocabulary of {problem.vocabulary}",
                    "a record that every token is in",
                    chooser,
                    *rows[:1],
                )


def _polled(problem: Problem, cover: Cover, row: Row) -> list[Wanted]:
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
    problems: Sequence[Problem], cover: Cover, channel: Channel, rows: list[Row]
) -> list[Case]:
    """Every value at most once, for each expert that a token may choose; what is written."""
    cases = []
    for first, behind, those in _by_expert(cover, rows):
        when = "" if behind == ALL else f" when expert {first} is chosen"
        writings = [cover.writing(row, channel) for row in those]
        _once(problems, str(channel), channel, writings, channel.values, when)
        cases.append(Case(first, behind, joined_runs(writings)))
    return cases


def _check_alone(
    problems: Sequence[Problem],
    cover: Cover,
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
                        f"{reader} awaits channel {channel.name}, which {row} leaves out where one split has all rows, "
                        "and those of splits that have none",
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
        runs = joined_runs(writings)
        if [runs] != [case.runs for case in cases]:
            raise fault(
                f"of channel {channel.name} attention fills {_text(runs)}, its combine {_text(cases[0].runs)}",
                "the same values in both cases",
                finishers[0],
                *rows[:1],
                channel,
            )


def _by_expert(cover: Cover, rows: list[Row]) -> list[tuple[int, int, list[Row]]]:
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


def _check_states(problem: Problem, cover: Cover) -> None:
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
                f"of a row of state {name}, {state.heads * state.size} values, only {_text(joined_runs(by))} are "
                f"appended, by {rows}",
                f"an append of every value of head {missing[0]}, which {heads[name][missing[0]]} streams",
                by[-1].row,
                heads[name][missing[0]],
            )


def _has(writings: list[Writing], head: int, size: int) -> bool:
    runs = joined_runs(writings)
    return any(a <= head * size and (head + 1) * size <= b for a, b in runs)


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
