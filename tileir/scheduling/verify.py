"""Proofs about a schedule, at full size: on the phase table, for any number of steps, without unrolling.

The step loop is covered by induction: what holds between a step and the next holds for all. A failure names the two
offenders, an example (stage, SM, step) and the edge that is missing. Arrivals, rings and capacity have files of their
own; here is who waits for whom.
"""

from collections.abc import Sequence
from itertools import pairwise

from tileir.scheduling.arrivals import check_arrivals, check_offers
from tileir.scheduling.assign import MAX_TILES_PER_SM
from tileir.scheduling.capacity import check_capacity, check_channels
from tileir.scheduling.choices import check_choices, check_same, exchange
from tileir.scheduling.problem import Problem, Row, Writers, fault
from tileir.scheduling.rings import check_rings
from tileir.scheduling.states import check_states

# What a warp leaves in shared memory for others: by, for, what.
HANDED = (("receive", "multiply", "activations"), ("multiply", "emit", "partial sums"))


def verify(*problems: Problem) -> None:
    """Prove arrivals, ring phases, program order, reuse, state order and capacity of a GPU, or of all together.

    Raises ScheduleError.
    """
    for problem in problems:
        check(problem)
    check_channels(problems)
    for problem in problems:
        check_capacity(problem)
        check_barriers(problem)
        check_choices(problem, problems)
    check_arrivals(problems)
    check_order(problems)
    edges = []
    for problem in problems:
        check_rings(problem)
        edges.append(exchange(problem))
    check_same(problems, edges)
    check_offers(problems)
    writers = Writers(problems)
    for problem, (edge, chooser) in zip(problems, edges, strict=True):
        check_reuse(problem, edge, chooser, writers)
        check_states(problem, edge, chooser)


def check(problem: Problem) -> None:
    """What the proofs take for granted: rows in order, tasks inside their space, each of them some SM's."""
    for a, b in pairwise(problem.rows):
        if a.number >= b.number:
            raise fault(f"{b} follows {a}", "an order of rows", b)
    for row in problem.rows:
        tasks, share = row.body.tasks, -(-row.body.tasks // problem.sms)
        if not 0 <= row.rotation < problem.sms:
            raise fault(
                f"{row} is rotated by {row.rotation} of {problem.sms} SMs",
                "a rotation that gives every task to one SM",
                row,
            )
        if row.tile_base < 0 or row.tile_base + tasks > row.body.space:
            raise fault(
                f"{row} has tasks {row.tile_base} … {row.tile_base + tasks - 1} of a space of {row.body.space}",
                "tasks inside their space",
                row,
            )
        if row.body.space % row.body.groups:
            raise fault(
                f"{row} has {row.body.groups} groups in a space of {row.body.space} tiles",
                "equal parts, each of which meets its values of x",
                row,
            )
        if row.body.kind == "contract" and row.body.source == "tape" and share > MAX_TILES_PER_SM:
            raise fault(
                f"{row} gives an SM {share} tiles", f"at most {MAX_TILES_PER_SM} tiles an SM", row
            )


def check_barriers(problem: Problem) -> None:
    """What one warp leaves in shared memory and another takes has a barrier of the consumers in between.

    The same barriers keep a row from overwriting what the row before still reads.
    """
    for row in {row.body.name: row for row in reversed(problem.rows)}.values():
        program = row.body.program
        for writer, reader, what in HANDED if row.body.kind == "contract" else ():
            places = [program.index(o) if o in program else -1 for o in (writer, reader)]
            if min(places) < 0 or "barrier" not in program[places[0] + 1 : places[1]]:
                raise fault(
                    f"in {row} {writer} leaves {what} that {reader} takes from other warps: {', '.join(program)}",
                    f"a barrier from {writer} to {reader}",
                    row,
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
                    )


def check_reuse(problem: Problem, edge: Row, chooser: Row, writers: Writers) -> None:
    """A copy is rewritten only after its last reader, ordered by the records that every SM awaits from every SM.

    Consumers: reader → (program order) its SM's record → the row that awaits all records → (next step) writer. Who
    reads behind its SM's record, as the awaiting row itself does, is ordered by the next step's record: that needs a
    copy more. A loader may have nothing to load, so that its SM's consumers do not wait for it: it is ordered when it
    has taken the next step's record, before its SM leaves the one after; that needs another. A channel of level "sm"
    has a free edge from the loader.
    """
    for row in problem.rows:
        for name, role in row.polls:
            channel = problem.channels[name]
            needed = 1 if row.number <= edge.number else 2
            if role != "consumer":
                needed = 3
            if channel.level == "sm" or channel.depth >= needed:
                continue
            writer = writers.into(problem, name)[0]
            who = str(row) if role == "consumer" else f"role {role} of {row}"
            copies = "1 copy" if channel.depth == 1 else f"{channel.depth} copies"
            step = 1 + channel.depth
            raise fault(
                f"channel {name} has {copies}: {who} on a slow SM may still read step 1's when {writer} on a fast SM "
                f"writes step {step}'s",
                f"the path {who} → record of {edge} → {chooser} → {writer}, as {who} comes behind its SM's record; "
                f"{'a second copy' if needed == 2 else 'three copies'} by epoch makes it",
                row,
                step=step,
            )
