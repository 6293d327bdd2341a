"""Proofs about a schedule, at full size: on the phase table, for any number of steps, without unrolling.

The step loop is covered by induction: what holds between a step and the next holds for all. A failure names the two
offenders, an example (stage, SM, step) and the edge that is missing. Arrivals, rings and capacity have files of their
own; here is who waits for whom.
"""

from itertools import pairwise

from tileir.scheduling.arrivals import check_arrivals
from tileir.scheduling.assign import MAX_TILES_PER_SM
from tileir.scheduling.capacity import check_capacity, check_channels
from tileir.scheduling.problem import Append, Problem, Row, fault
from tileir.scheduling.rings import check_rings

# What a warp leaves in shared memory for others: by, for, what.
HANDED = (("receive", "multiply", "activations"), ("multiply", "emit", "partial sums"))
Appends = dict[str, list[tuple[Row, Append]]]


def verify(problem: Problem) -> None:
    """Prove arrivals, ring phases, program order, reuse, state order and capacity. Raises ScheduleError."""
    check(problem)
    check_channels(problem)
    check_capacity(problem)
    check_barriers(problem)
    check_arrivals(problem)
    check_order(problem)
    check_rings(problem)
    check_reuse(problem)
    check_states(problem)


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
        if row.body.kind == "contract" and share > MAX_TILES_PER_SM:
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


def check_order(problem: Problem) -> None:
    """Whoever waits in a row waits for an earlier row: no cycle, since every SM runs rows in order."""
    last = {row.written: row for row in problem.rows if row.written is not None}
    for row in problem.rows:
        for name in row.awaited:
            writer = last.get(name)
            if writer is not None and writer.number >= row.number:
                raise fault(
                    f"{row} waits for channel {name}, which {writer} writes later in the same step",
                    f"{writer} before {row}",
                    row,
                )


def _exchange(problem: Problem) -> tuple[Row, Row]:
    """(the last row that leaves records, the row that awaits those of all SMs): a step's all-to-all edge."""
    choosers = [row for row in problem.rows if row.body.chooses]
    if len(choosers) != 1:
        who = ", ".join(map(str, choosers)) or "no row"
        raise fault(
            f"{who} of {len(problem.rows)} rows await the records of all SMs, which one has to",
            "an all-to-all edge, from the record of every SM to one select",
            problem.rows[-1],
        )
    (chooser,) = choosers
    recorders = [row for row in problem.rows if row.body.records]
    unread = [row for row in recorders if row.written not in list(chooser.awaited)]
    if unread or not recorders:
        who = f"{unread[0]} leaves" if unread else "no row leaves"
        raise fault(
            f"{who} records that {chooser} awaits",
            f"an edge from {unread[0] if unread else 'records'} to {chooser}",
            chooser,
        )
    return recorders[-1], chooser


def check_reuse(problem: Problem) -> None:
    """A copy is rewritten only after its last reader, ordered by the records that every SM awaits from every SM.

    reader → (program order) its SM's record → the row that awaits all records → (next step) writer. Who reads behind
    its SM's record, as the awaiting row itself does, is ordered by the next step's record: that needs a copy more.
    """
    edge, chooser = _exchange(problem)
    writers = {row.written: row for row in reversed(problem.rows) if row.written is not None}
    for row in problem.rows:
        for name in row.awaited:
            if problem.channels[name].depth < (1 if row.number <= edge.number else 2):
                writer = writers[name]
                raise fault(
                    f"channel {name} has 1 copy: {row} on a slow SM may still read step 1's when {writer} on a fast "
                    f"SM writes step 2's",
                    f"the path {row} → record of {edge} → {chooser} → {writer}, as {row} comes behind its SM's "
                    f"record; a second copy by epoch makes it",
                    row,
                    step=2,
                )


def check_states(problem: Problem) -> None:
    """Rows that are appended are streamed across release and acquire, and never in their own step.

    append → release → its SM's record → the row that awaits all → step record → acquire → the loader, a step later.
    """
    edge, chooser = _exchange(problem)
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
                )
            if row.number > edge.number:
                raise fault(
                    f"{row} appends to state {name} behind {edge}, the step's last record",
                    f"a path from {row} to the next step's copies",
                    row,
                )
            if problem.states[name].positions < problem.context:
                positions = problem.states[name].positions
                raise fault(
                    f"{row} appends to state {name}, of {positions} positions for a context of {problem.context}",
                    "a row for every position",
                    row,
                    step=positions + 1,
                )
    for row in problem.rows:
        for argument in (a for stream in row.body.fills for a in stream.arguments):
            _check_acquire(row, argument, appends)
            _check_own_row(row, argument, appends)


def _check_acquire(row: Row, argument: int, appends: Appends) -> None:
    name = row.names[argument]
    if name not in appends:
        raise fault(
            f"{row} streams state {name}, which no row appends to", "an append", row, step=2
        )
    if argument not in row.body.acquired:
        raise fault(
            f"{row} streams state {name} with no acquire after the step record: it may miss what {appends[name][0][0]} "
            f"appended",
            "fence.acq_rel.gpu and fence.proxy.async before the loader's copies",
            row,
            step=2,
        )


def _check_own_row(row: Row, argument: int, appends: Appends) -> None:
    """The loader stops before the step's own row, so that this has to come through the channel."""
    name, channel = row.names[argument], row.names[row.body.waits[0].argument]
    streamed = [a for stream in row.body.fills for a in stream.arguments]
    place = row.body.own[streamed.index(argument)]
    for writer, append in appends[name]:
        pairs = zip(append.places.bases, append.published, strict=True)
        there = [None if to is None else to - base for base, to in pairs]
        if writer.written != channel or any(at != place for at in there):
            made = "nowhere" if there[0] is None else f"at {there[0]} of channel {writer.written}"
            raise fault(
                f"{row} takes the step's own row of state {name} at {place} of channel {channel}, and {writer} "
                f"publishes what it appends {made}",
                f"the step's own row through a channel, from {writer} to {row}",
                row,
            )
