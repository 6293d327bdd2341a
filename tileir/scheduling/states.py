"""Proof of state order: old rows are streamed across release and acquire, a step's own rows come through channels."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tileir.scheduling.cover import streamed_heads
from tileir.scheduling.problem import OwnRow, Places, Problem, Row, State, Stream, fault

Appends = dict[str, list[tuple[Row, OwnRow]]]
NOWHERE = -1


def check_states(problem: Problem, edge: Row, chooser: Row) -> None:
    """Rows that are appended are streamed across release and acquire, and never in their own step.

    append → release → its SM's record → the row that awaits all → step record → acquire → the loader, a step later. A
    row that was rejected, or a freed page's, is written again a step later at the earliest: what streams it is drained
    before its SM's record, which the writer has awaited. Raises ScheduleError.
    """
    appends: Appends = {}
    for row in problem.rows:
        for append in row.body.appends:
            name, argument = row.names[append.places.argument], append.places.argument
            appends.setdefault(name, []).append((row, append))
            if argument not in row.body.released:
                raise fault(
                    f"{row} appends to state {name} with no release: the copy engine of the next step, behind "
                    f"{chooser}, may miss it",
                    "fence.proxy.async and fence.acq_rel.gpu before the SM's record",
                    row,
                    chooser,
                )
            if row.number > edge.number:
                raise fault(
                    f"{row} appends to state {name} behind {edge}, the step's last record",
                    f"a path from {row} to the next step's copies",
                    row,
                    edge,
                )
    _check_pages(problem, appends)
    held = _Held()
    for row in problem.rows:
        for stream in row.body.fills:
            if stream.arguments and row.number > edge.number:
                name = row.names[stream.arguments[0]]
                raise fault(
                    f"{row} streams state {name} behind {edge}, the step's last record: a rejected row or a freed page "
                    f"may be written again by {appends[name][0][0] if name in appends else 'another row'} meanwhile",
                    f"the path {row} → record of {edge} → {chooser} → the next step's appends",
                    row,
                    edge,
                    step=2,
                )
            for argument in stream.arguments:
                _check_acquire(problem, row, argument, appends)
                _check_own_rows(problem, row, stream, argument, appends, held)


def check_tables(problems: Sequence[Problem]) -> None:
    """The step's one table of pages means as many pages on all GPUs. Raises ScheduleError."""
    paged = [(p, s) for p in problems for s in p.states.values() if s.page]
    for problem, state in paged:
        first, other = paged[0]
        if state.positions // state.page != other.positions // other.page:
            raise fault(
                f"one table of pages for all GPUs names {other.positions // other.page} of {other} of {first} and "
                f"{state.positions // state.page} of {state} of {problem}",
                "the same number of pages on all GPUs",
                state,
                other,
                first,
            )


def _check_pages(problem: Problem, appends: Appends) -> None:
    """A place for every position: in one piece, or in whole pages that the table of the step can name."""
    tables = {}
    for name, state in problem.states.items():
        if state.page == 0:
            _check_room(problem, state, state.positions, appends)
            if problem.sequences > 1:
                raise fault(
                    f"state {name} is one piece for {problem.sequences} sequences",
                    "pages, which a table gives to sequences",
                    state,
                )
            continue
        if state.page != problem.page or state.positions % state.page:
            raise fault(
                f"state {name} has {state.positions} rows in pages of {state.page}, the step's table names pages of "
                f"{problem.page}",
                "whole pages of one size for all who append and stream",
                state,
                problem,
            )
        _check_room(problem, state, state.positions, appends)
        tables[state.positions // state.page] = name
        if len(tables) > 1:
            counts = " and ".join(f"{n} of state {s}" for n, s in tables.items())
            raise fault(
                f"one table of pages for all states names {counts}",
                "the same number of pages in all states",
                *(problem.states[s] for s in tables.values()),
            )


def _check_room(problem: Problem, state: State, positions: int, appends: Appends) -> None:
    if positions < problem.context:
        row = appends[state.name][0][0] if state.name in appends else None
        who = f"{row} appends to state" if row is not None else "there is a state"
        raise fault(
            f"{who} {state.name}, of {positions} positions for a context of {problem.context}",
            "a row for every position",
            *((row, state) if row is not None else (state,)),
            step=positions + 1,
        )


def _check_acquire(problem: Problem, row: Row, argument: int, appends: Appends) -> None:
    name = row.names[argument]
    state = problem.states[name]
    if name not in appends:
        raise fault(
            f"{row} streams {state}, which no row appends to", "an append", row, state, step=2
        )
    if argument not in row.body.acquired:
        raise fault(
            f"{row} streams state {name} with no acquire after the step record: it may miss what {appends[name][0][0]} "
            f"appended",
            "fence.acq_rel.gpu and fence.proxy.async before the loader's copies",
            row,
            appends[name][0][0],
            step=2,
        )


class Whereabouts(NamedTuple):
    """For every value of a state's row: channel (its number in `names`) and place there, NOWHERE if none, and whose."""

    channel: np.ndarray
    value: np.ndarray
    row: np.ndarray


class _Held:
    """Where channels have the values of states' rows; pieces are computed once for rows of one body and range."""

    def __init__(self) -> None:
        self.names: dict[str, int] = {}
        self._spread: dict[object, tuple[np.ndarray, np.ndarray]] = {}
        self._appended: dict[str, Whereabouts] = {}

    def appended(self, state: State, appends: list[tuple[Row, OwnRow]]) -> Whereabouts:
        """By the rows that append."""
        if state.name not in self._appended:
            self._appended[state.name] = self._places(state, appends)
        return self._appended[state.name]

    def taken(self, state: State, row: Row, own: Sequence[OwnRow]) -> Whereabouts:
        """By a row that streams. Its own rows are all heads', whatever tasks it has."""
        return self._places(state, [(row, o) for o in own], whole=True)

    def _places(
        self, state: State, links: list[tuple[Row, OwnRow]], *, whole: bool = False
    ) -> Whereabouts:
        size = state.heads * state.size
        channel, value, by = (np.full(size, NOWHERE) for _ in range(3))
        for i, (row, link) in enumerate(links):
            at, to = self._values(row, link, whole)
            inside = (at >= 0) & (at < size)
            at, to = at[inside], to[inside]
            by[at], value[at] = i, to
            if link.published is not None:
                name = _named(row, link)
                channel[at] = self.names.setdefault(name, len(self.names))
        return Whereabouts(channel, value, by)

    def _values(self, row: Row, link: OwnRow, whole: bool) -> tuple[np.ndarray, np.ndarray]:
        """The values of the state's row, and the channel's, one by one."""
        first = 0 if whole else row.tile_base
        behind = link.places.tasks if whole else first + row.body.tasks
        key = (first, behind, link)
        if key not in self._spread:
            at = _spread(link.places, first, behind)
            to = np.full(len(at), NOWHERE)
            if link.published is not None:
                to = _spread(link.published, first, behind)
            self._spread[key] = at, to
        return self._spread[key]


def _named(row: Row, link: OwnRow) -> str:
    """A channel, and what the row makes of its values."""
    assert link.published is not None
    steps = (
        f" through {what}({', '.join(map(str, (*(row.names[a] for a in arguments), *facts)))})"
        for what, facts, arguments in link.by
    )
    return row.names[link.published.argument] + "".join(steps)


def _spread(places: Places, first: int, behind: int) -> np.ndarray:
    """Every value of the places, in the order of tasks and bases."""
    t = places.touching(first, behind)
    begin = (t // places.inner * places.outer + t % places.inner * places.step)[:, None]
    begin = (begin + np.array(places.bases, np.int64)).reshape(-1, 1)
    return (begin + np.arange(places.width)).reshape(-1)


def _check_own_rows(
    problem: Problem, row: Row, stream: Stream, argument: int, appends: Appends, held: _Held
) -> None:
    """The loader stops before the step's own rows, so that these have to come through channels."""
    name = row.names[argument]
    state = problem.states[name]
    heads = streamed_heads(row, stream, state.heads)
    wanted = (np.array(heads)[:, None] * state.size + np.arange(state.size)).reshape(-1)
    made = held.appended(state, appends[name])
    own = [o for o in row.body.own if o.places.argument == argument]
    taken = held.taken(state, row, own)
    same = (made.channel == taken.channel) & (made.value == taken.value)
    wrong = wanted[~same[wanted] | (taken.channel[wanted] == NOWHERE)]
    if not len(wrong):
        return
    at = int(wrong[0])
    names = list(held.names)
    takes = "nowhere"
    if taken.channel[at] != NOWHERE:
        takes = f"at {taken.value[at]} of channel {names[taken.channel[at]]}"
    writer, where = appends[name][max(0, int(made.row[at]))][0], "nowhere"
    if made.channel[at] != NOWHERE:
        where = f"at {made.value[at]} of channel {names[made.channel[at]]}"
    raise fault(
        f"{row} takes the step's own row of state {name} {takes}, and {writer} publishes what it appends {where}",
        f"the step's own row through a channel, from {writer} to {row}",
        row,
        writer,
    )
