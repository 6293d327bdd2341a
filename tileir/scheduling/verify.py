"""Proofs about a schedule, at full size: on the phase table, for any number of steps, without unrolling.

The step loop is covered by induction: what holds between a step and the next holds for all. A failure names the two
offenders and the edge that is missing.
"""

from collections import defaultdict
from itertools import pairwise

from tileir.errors import TileirError
from tileir.scheduling.problem import Problem, Row, Span

PAYLOADS = {"bf16": "bf16x2", "f32": "f32", "i32": "record"}


class ScheduleError(TileirError):
    """A schedule that could hang, race or not fit."""


def verify(problem: Problem) -> None:
    """Prove arrivals, ring phases, program order, reuse, state order and capacity. Raises ScheduleError."""
    check_capacity(problem)
    check_channels(problem)
    check_arrivals(problem)
    check_rings(problem)
    check_order(problem)
    check_reuse(problem)
    check_states(problem)


def _fail(what: str, missing: str) -> ScheduleError:
    return ScheduleError(what, hint=f"missing: {missing}")


def check_capacity(problem: Problem) -> None:
    """Everything fits, nothing overlaps, all blocks are co-resident."""
    if problem.sms > problem.max_sms:
        raise _fail(
            f"{problem.sms} blocks wait for each other on {problem.max_sms} SMs",
            "co-residency of all blocks, one an SM",
        )
    if problem.smem_bytes > problem.max_smem_bytes:
        raise _fail(
            f"a block needs {problem.smem_bytes} bytes of shared memory, an SM has {problem.max_smem_bytes}",
            "capacity",
        )
    by_memory = defaultdict(list)
    for region in problem.regions:
        by_memory[region.memory].append(region)
    for memory, regions in by_memory.items():
        regions.sort(key=lambda r: (r.first, r.last))
        for a, b in pairwise(regions):
            if b.first < a.last:
                raise _fail(
                    f"{a.name} and {b.name} overlap in {memory}: [{a.first}, {a.last}) and [{b.first}, {b.last})",
                    "disjoint places for buffers that live at the same time",
                )
        size = problem.memories.get(memory, 0)
        if regions[-1].last > size:
            raise _fail(f"{regions[-1].name} ends behind the {size} bytes of {memory}", "capacity")


def check_channels(problem: Problem) -> None:
    """Payload, protocol and level say what the type and the crossing need."""
    for c in problem.channels.values():
        if PAYLOADS.get(c.element) != c.payload:
            raise _fail(
                f"channel {c.name} of {c.element} has payload {c.payload!r}",
                f"payload {PAYLOADS.get(c.element)!r}",
            )
        if c.payload == "bf16x2" and c.values % 2:
            raise _fail(
                f"channel {c.name} has {c.values} values in pairs", "a whole number of packets"
            )
        if c.level != "gpu":
            raise _fail(
                f"channel {c.name} crosses SMs at level {c.level!r}", 'scope of level "gpu"'
            )


def check_arrivals(problem: Problem) -> None:
    """Every value of a channel is written exactly once a step, and what is read is written."""
    writers: dict[str, list[tuple[Span, Row]]] = defaultdict(list)
    for row in problem.rows:
        for span in row.writes:
            writers[span.channel].append((span, row))
        if row.records:
            channel = problem.channels[row.records]
            writers[row.records].append((Span(row.records, 0, channel.values), row))
    covered: dict[str, list[tuple[int, int]]] = {}
    for name, written in writers.items():
        written.sort(key=lambda w: (w[0].first, w[0].last))
        for (a, row_a), (b, row_b) in pairwise(written):
            if b.first < a.last:
                raise _fail(
                    f"values {b.first} … {min(a.last, b.last) - 1} of channel {name} are written by "
                    f"{row_a} and by {row_b}",
                    "one arrival a value and step",
                )
        runs: list[tuple[int, int]] = []
        for span, _ in written:
            if runs and runs[-1][1] == span.first:
                runs[-1] = (runs[-1][0], span.last)
            else:
                runs.append((span.first, span.last))
        covered[name] = runs
    for row in problem.rows:
        for span in (*row.reads, *(Span(c, 0, problem.channels[c].values) for c in row.chooses)):
            runs = covered.get(span.channel, [])
            if not any(first <= span.first and span.last <= last for first, last in runs):
                raise _fail(
                    f"{row} waits for values {span.first} … {span.last - 1} of channel {span.channel}, "
                    f"of which {runs or 'none'} are written",
                    f"a writer of channel {span.channel}",
                )


def check_rings(problem: Problem) -> None:
    """Loaders and consumers agree, row by row, on what passes each ring: so slots and phases agree on every lap."""
    for ring in problem.rings.values():
        if ring.slots < 2 or not 1 <= ring.window <= ring.slots:
            raise _fail(
                f"ring {ring.name} has {ring.slots} slots and a window of {ring.window}",
                "2 slots or more and a window inside them",
            )
    for row in problem.rows:
        if row.fills != row.drains:
            raise _fail(
                f"in {row} the loaders fill {list(row.fills)} and the consumers drain {list(row.drains)}",
                "equal numbers of slots on every SM, also where an SM has no tile",
            )
        for stream in row.fills:
            if stream.ring not in problem.rings:
                raise _fail(f"{row} uses ring {stream.ring!r}, which is not there", "the ring")


def check_order(problem: Problem) -> None:
    """Whoever waits in a row waits for an earlier row: no cycle, since every SM runs rows in order."""
    first: dict[str, Row] = {}
    last: dict[str, Row] = {}
    for row in problem.rows:
        for name in [s.channel for s in row.writes] + ([row.records] if row.records else []):
            first.setdefault(name, row)
            last[name] = row
    for row in problem.rows:
        for name in [s.channel for s in row.reads] + list(row.chooses):
            if name in last and last[name].number >= row.number:
                raise _fail(
                    f"{row} waits for channel {name}, which {last[name]} writes later in the same step",
                    f"{last[name]} before {row}",
                )


def check_reuse(problem: Problem) -> None:
    """A copy is rewritten only after its last reader: by the records that every SM awaits from every SM.

    reader → (program order) its SM's record → (the choosing row awaits all) the next step's writer. The records
    themselves need a second copy: their reader of step n is ordered before step n + 1's record, not before its own.
    """
    choosers = [row for row in problem.rows if row.chooses]
    if len(choosers) != 1:
        raise _fail(
            f"{len(choosers)} rows await the records of all SMs", "one all-to-all edge a step"
        )
    (chooser,) = choosers
    recorders = [row for row in problem.rows if row.records]
    unread = [row for row in recorders if row.records not in chooser.chooses]
    if not recorders or unread:
        raise _fail(
            f"{unread[0] if unread else 'no row'} leaves records that {chooser} awaits", "the edge"
        )
    for name in chooser.chooses:
        if problem.channels[name].depth < 2:
            raise _fail(
                f"channel {name} has 1 copy: {chooser} on a slow SM may still read step n "
                f"when a fast SM's record of step n + 1 overwrites it",
                "a second copy by epoch",
            )
    edge = max(row.number for row in recorders)
    for row in problem.rows:
        for span in row.reads:
            if row.number > edge and problem.channels[span.channel].depth < 2:
                raise _fail(
                    f"{row} reads channel {span.channel} after the last record of its SM ({problem.rows[edge]}): "
                    f"a fast SM may overwrite it in the next step",
                    f"an edge from {row} to the next step's writer",
                )


def check_states(problem: Problem) -> None:
    """Rows that are appended are streamed only across release and acquire, and never in their own step."""
    recorders = [row.number for row in problem.rows if row.records]
    writer: dict[str, Row] = {}
    for row in problem.rows:
        for name in row.appends:
            if name in writer:
                raise _fail(f"{writer[name]} and {row} append to state {name}", "one writer a step")
            writer[name] = row
            if name not in row.released:
                raise _fail(
                    f"{row} appends to state {name} with no release: the copy engine of the next step may miss it",
                    "fence.proxy.async and fence.acq_rel.gpu before the SM's record",
                )
            if not recorders or row.number > max(recorders):
                raise _fail(
                    f"{row} appends to state {name} after the step's last record", "the release"
                )
    for row in problem.rows:
        for name in row.streams:
            if name not in row.acquired:
                raise _fail(
                    f"{row} streams state {name} with no acquire after the step record",
                    "fence.acq_rel.gpu and fence.proxy.async before the loader's copies",
                )
            source = writer.get(name)
            if source is None:
                raise _fail(f"{row} streams state {name}, which nobody appends to", "an append")
            own = {s.channel for s in row.reads} & {s.channel for s in source.writes}
            if not own:
                raise _fail(
                    f"{row} streams state {name} but reads nothing that {source} makes: "
                    f"the step's own row would be missing",
                    f"a channel from {source} to {row}",
                )
