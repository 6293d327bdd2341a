"""Proofs about a schedule, at full size: on the phase table, for any number of steps, without unrolling.

The step loop is covered by induction: what holds between a step and the next holds for all. A failure names the two
offenders, where they stand, an example (stage, SM, step) and the edge that is missing. Each property has a file of its
own; here is who waits for whom.
"""

from collections.abc import Sequence
from itertools import pairwise

from tileir.scheduling.arrivals import check_arrivals, check_offers
from tileir.scheduling.assign import MAX_TILES_PER_SM
from tileir.scheduling.capacity import check_capacity, check_channels
from tileir.scheduling.choices import check_choices, check_same, exchange
from tileir.scheduling.lifetimes import check_lifetimes
from tileir.scheduling.problem import Problem, Row, Writers, fault
from tileir.scheduling.replicas import check_replicas
from tileir.scheduling.reuse import Path, check_reuse
from tileir.scheduling.rings import check_rings
from tileir.scheduling.states import check_states, check_tables


def verify(*problems: Problem) -> list[Path]:
    """Prove arrivals, ring phases, program order, reuse, state order and capacity of a GPU, or of all together.

    Returns the paths that order every channel's readers before its next writers. Raises ScheduleError.
    """
    for problem in problems:
        check(problem)
    check_channels(problems)
    for problem in problems:
        check_capacity(problem)
        check_lifetimes(problem)
        check_choices(problem, problems)
    check_arrivals(problems)
    check_order(problems)
    edges = []
    for problem in problems:
        check_rings(problem)
        edges.append(exchange(problem))
    check_same(problems, edges)
    check_replicas(problems)
    check_offers(problems)
    writers, paths = Writers(problems), list[Path]()
    for problem, (edge, chooser) in zip(problems, edges, strict=True):
        paths += check_reuse(problem, edge, chooser, writers)
        check_states(problem, edge, chooser)
    check_tables(problems)
    return paths


def check(problem: Problem) -> None:
    """What the proofs take for granted: rows in order, tasks inside their space, each of them some SM's."""
    for a, b in pairwise(problem.rows):
        if a.number >= b.number:
            raise fault(f"{b} follows {a}", "an order of rows", b, a)
    for row in problem.rows:
        tasks, share = row.body.tasks, -(-row.body.tasks // problem.sms)
        if not 0 <= row.rotation < problem.sms:
            raise fault(
                f"{row} is rotated by {row.rotation} of {problem.sms} SMs",
                "a rotation that gives every task to one SM",
                row,
                problem,
            )
        if row.tile_base < 0 or row.tile_base + tasks > row.body.space:
            raise fault(
                f"{row} has tasks {row.tile_base} … {row.tile_base + tasks - 1} of a space of {row.body.space}",
                "tasks inside their space",
                row,
                row.body,
            )
        if row.body.space % row.body.groups:
            raise fault(
                f"{row} has {row.body.groups} groups in a space of {row.body.space} tiles",
                "equal parts, each of which meets its values of x",
                row,
                row.body,
            )
        if row.body.kind == "contract" and row.body.source == "tape" and share > MAX_TILES_PER_SM:
            raise fault(
                f"{row} gives an SM {share} tiles",
                f"at most {MAX_TILES_PER_SM} tiles an SM",
                row,
                row.body,
            )
        if row.body.kind == "contract":
            _check_tiles(row)


def _check_tiles(row: Row) -> None:
    body = row.body
    if body.tiles != body.space:
        raise fault(
            f"{row} has segments for {body.tiles} tiles of a space of {body.space}",
            "a segment for every tile of the space, and no more",
            row,
            body,
        )
    if body.drains and body.sums != body.tasks:
        raise fault(
            f"in {row} multiply leaves sums of {body.sums} tiles, and emit takes those of {body.tasks}",
            "the same tiles in all operations",
            row,
            body,
        )


def check_order(problems: Sequence[Problem]) -> None:
    """Whoever waits in a row waits for an earlier row: no cycle, since every SM of every GPU runs rows in order."""
    writers = Writers(problems)
    for problem in problems:
        last: dict[str, Row | None] = {}
        for row in problem.rows:
            for name in row.awaited:
                if name not in last:
                    by = writers.into(problem, name)
                    last[name] = max(by, key=lambda writer: writer.number, default=None)
                writer = last[name]
                if writer is not None and writer.number >= row.number:
                    raise fault(
                        f"{row} waits for channel {name}, which {writer} writes later in the same step",
                        f"{writer} before {row}",
                        row,
                        writer,
                        problem.channels[name],
                    )
