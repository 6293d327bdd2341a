"""Proof of ring phases: on every SM, in every row, consumers take the slots that the loaders fill.

Equal numbers of slots in a row keep slot and parity equal on every lap and in every step. Old rows of states are not
unrolled over positions: the same function of the position on both sides is the same number at all of them.
"""

from collections.abc import Iterator
from itertools import zip_longest

import numpy as np

from tileir.scheduling.assign import rows_a_slot, shares, used_splits
from tileir.scheduling.problem import Problem, Ring, Row, Stream, fault

BLOCK_BYTES = 1024
# Of the bytes that an mbarrier counts in one phase (PTX ISA 9.7.13.15).
MOST_BYTES = (1 << 20) - 1


def check_rings(problem: Problem) -> None:
    """Rings are deep enough, each has one loader, both sides count the same slots. Raises ScheduleError."""
    for ring in problem.rings.values():
        if ring.slots < 2 or not 1 <= ring.window <= ring.slots or ring.fed_window < 1:
            raise fault(
                f"ring {ring.name} has {ring.slots} slots and a window of {ring.window}, fed of {ring.fed_window}",
                "2 slots or more and a window inside them",
                ring,
            )
        if ring.slot_bytes > MOST_BYTES:
            raise fault(
                f"a slot of ring {ring.name} has {ring.slot_bytes} bytes",
                f"at most {MOST_BYTES} bytes, which its mbarrier counts",
                ring,
            )
    _check_arrival_counts(problem)
    _check_tape_never_waits(problem)
    _check_record(problem)
    loaders: dict[str, tuple[str, Row]] = {}
    proved: set[tuple[str, int, int]] = set()
    for row in problem.rows:
        for stream in row.body.fills:
            role, before = loaders.setdefault(stream.ring, (stream.role, row))
            if role != stream.role:
                raise fault(
                    f"ring {stream.ring} is filled by role {role} in {before} and by role {stream.role} in {row}",
                    "an order between the two loaders",
                    row,
                    before,
                )
        if (row.body.name, row.rotation, row.tile_base) not in proved:
            proved.add((row.body.name, row.rotation, row.tile_base))
            _check_row(problem, row)


def _check_tape_never_waits(problem: Problem) -> None:
    """The tape is known before the step: who fills it runs ahead of all that depends on activations."""
    roles = {s.role: row for row in problem.rows for s in row.body.fills if _is_tape(s)}
    for row in problem.rows:
        for name, role in row.polls:
            if role in roles:
                raise fault(
                    f"role {role} waits for channel {name} in {row}, and fills the tape in {roles[role]}",
                    "a loader of its own for what depends on activations",
                    row,
                    roles[role],
                )


def _check_record(problem: Problem) -> None:
    """A step's record has one arrival and one loader that takes it: whoever fills what the record decides."""
    takers: dict[str, Row] = {}
    for row in problem.rows:
        for stream in row.body.fills:
            if not _is_tape(stream):
                takers.setdefault(stream.role, row)
    if len(takers) > 1:
        (one, first), (other, second), *_ = takers.items()
        raise fault(
            f"the step's record is awaited by role {one} in {first} and by role {other} in {second}, and one of them "
            f"takes it",
            "one loader for all that a step's record decides",
            second,
            first,
        )


def _is_tape(stream: Stream) -> bool:
    return not stream.head_size and stream.of is None


def _check_arrival_counts(problem: Problem) -> None:
    """A slot is free after one arrival of each consumer warp, and full after its loader's one and the bytes."""
    for role, warps in {"consumer": problem.warps, "tape": 1, "state": 1}.items():
        if problem.roles.get(role, 0) != warps:
            raise fault(
                f"slots count arrivals of {warps} {role} warps, of which {problem.roles.get(role, 0)} run",
                "one arrival for each warp and use of a slot",
                problem,
                *problem.rings.values(),
            )


def _check_row(problem: Problem, row: Row) -> None:
    for fill, drain in zip_longest(row.body.fills, row.body.drains):
        if fill is None or drain is None or fill.ring != drain.ring:
            filled, drained = (f"ring {s.ring}" if s else "nothing" for s in (fill, drain))
            raise fault(
                f"in {row} the loaders fill {filled} and the consumers drain {drained}",
                "one drain for each fill, in the same order",
                row,
                *(s for s in (fill, drain) if s),
            )
        if fill.ring not in problem.rings:
            raise fault(f"{row} uses ring {fill.ring!r}, which is not there", "the ring", row, fill)
        ring = problem.rings[fill.ring]
        if fill.head_size or drain.head_size:
            _check_states(problem, row, ring, fill, drain)
        elif _is_tape(fill) and _is_tape(drain):
            _check_blocks(problem, row, ring, fill, drain, 1, "")
        else:
            _check_experts(problem, row, ring, fill, drain)
        if row.body.kind == "contract":
            _check_k(row, fill, drain)


def _check_k(row: Row, fill: Stream, drain: Stream) -> None:
    """What of x a tile meets, to the last block's tail, which is zero, has been received."""
    filled = fill.k or fill.head_size
    if not filled == drain.k == row.body.k:
        raise fault(
            f"in {row} role {fill.role} fills ring {fill.ring} with tiles of k = {filled}, and the consumers multiply "
            f"k = {drain.k} by {row.body.k} values of x",
            "the same values of x on all sides",
            row,
            fill,
            drain,
        )
    wrong = [at for at in row.body.joins if at != (0,) * (row.body.k_parts - 1)]
    if wrong:
        raise fault(
            f"in {row} K has parts: {row.body.k_parts}; operations of a segment that add the halves of tiles: "
            f"{', '.join(map(str, wrong[0])) or 'none'}",
            "sums of both parts where there are two, first of all, and nowhere else",
            row,
            drain,
        )


def _check_experts(problem: Problem, row: Row, ring: Ring, fill: Stream, drain: Stream) -> None:
    """The same division by the same routing: (active expert, tile), whatever number of experts is active."""
    _check_chosen(row, fill, drain)
    if fill.experts != drain.experts or fill.experts is None or drain.experts is None:
        ends = [s.experts or (0, 0) for s in (fill, drain)]
        at = next((min(a, b) for a, b in zip(*ends, strict=True) if a != b), 0)
        filled, drained = (
            "no experts" if s.experts is None else f"experts {s.experts[0]} … {s.experts[1] - 1}"
            for s in (fill, drain)
        )
        raise fault(
            f"in {row} role {fill.role} fills ring {ring.name} with tiles of {filled} and the consumers drain it for "
            f"{drained}: they part when expert {at} is chosen",
            "the same experts on both sides",
            row,
            fill,
            drain,
        )
    most = min(fill.experts[1] - fill.experts[0], problem.tokens * row.body.slots)
    active = 1
    while active < most:
        _check_blocks(problem, row, ring, fill, drain, active, f" when {active} experts are active")
        active *= 2
    _check_blocks(problem, row, ring, fill, drain, most, f" when {most} experts are active")
    if (fill.tasks, fill.blocks) != (drain.tasks, drain.blocks):
        raise fault(
            f"in {row} role {fill.role} fills ring {ring.name} by (tiles, blocks) = {fill.tasks, fill.blocks} an "
            f"expert and the consumers drain it by {drain.tasks, drain.blocks}",
            "equal tiles in equal slots",
            row,
            fill,
            drain,
        )


def _check_chosen(row: Row, fill: Stream, drain: Stream) -> None:
    """Both sides go by the same choice, which the loader awaits."""
    filled, drained = ("nothing" if s.of is None else row.names[s.of] for s in (fill, drain))
    if filled != drained:
        raise fault(
            f"in {row} role {fill.role} fills ring {fill.ring} by what {filled} chose and the consumers drain it by "
            f"{drained}",
            "the same choice on both sides",
            row,
            fill,
            drain,
        )
    for role in (fill.role, "consumer"):
        if fill.of is not None and (filled, role) not in list(row.polls):
            raise fault(
                f"in {row} role {role} goes by what {filled} chose and does not await it",
                f"an edge from whoever writes channel {filled} to role {role}",
                row,
                fill,
            )


def _check_blocks(
    problem: Problem, row: Row, ring: Ring, fill: Stream, drain: Stream, times: int, when: str
) -> None:
    """Blocks, hence slots, of every SM; each warp releases a short last slot too. times: the tasks, so often."""
    per_slot = ring.slot_bytes // BLOCK_BYTES
    filled, drained = (
        shares(s.tasks * times, row.rotation, problem.sms)[1] * s.blocks for s in (fill, drain)
    )
    different = np.flatnonzero(filled != drained)
    if len(different):
        sm = int(different[0])
        raise fault(
            f"in {row} role {fill.role} fills {-(-filled[sm] // per_slot)} slots of ring {ring.name} with "
            f"{filled[sm]} blocks and the consumers drain {-(-drained[sm] // per_slot)} slots of {drained[sm]} blocks"
            f"{when}",
            "equal numbers of slots on every SM, also where an SM has no tile",
            row,
            fill,
            drain,
            sm=sm,
        )


def _check_states(problem: Problem, row: Row, ring: Ring, fill: Stream, drain: Stream) -> None:
    """The same function of the position on both sides; else an example where they part."""
    _check_chosen(row, fill, drain)
    if fill.arguments != drain.arguments:
        filled, drained = (
            " and ".join(row.names[a] for a in s.arguments) or "none" for s in (fill, drain)
        )
        raise fault(
            f"in {row} role {fill.role} streams states {filled} and the consumers take them for {drained}",
            "the same states on both sides",
            row,
            fill,
            drain,
        )
    sizes = [problem.states[row.names[a]].size for a in fill.arguments]
    if not _rows_a_slot(ring, fill) or max(sizes, default=0) > fill.head_size:
        raise fault(
            f"a slot of ring {ring.name} has {ring.slot_bytes} bytes for heads of {fill.head_size} in {row}, and rows "
            f"of {sizes} values",
            "room for k and v of one position",
            row,
            ring,
        )
    heads = [(fill.heads, fill), (drain.heads, drain)]
    for state in (problem.states[row.names[a]] for a in fill.arguments):
        for count, stream in heads:
            if count != state.heads:
                raise fault(
                    f"in {row} {stream} goes over {count} kv heads of {state}, which has {state.heads}",
                    "the heads that there are, on both sides",
                    row,
                    stream,
                    state,
                )
    facts = [
        (s.tasks, s.splits, s.groups, s.head_size, s.window, s.alone, s.least)
        for s in (fill, drain)
    ]
    if facts[0] == facts[1]:
        return
    for position, sm in _examples(problem):
        filled_slots, drained_slots = (
            _state_slots(problem, row, ring, s, position, sm) for s in (fill, drain)
        )
        if filled_slots != drained_slots:
            raise fault(
                f"in {row} at position {position} role {fill.role} fills {filled_slots} slots of ring {ring.name} "
                f"and the consumers drain {drained_slots}",
                "equal numbers of slots at every position",
                row,
                fill,
                drain,
                sm=sm,
                step=position + 1,
            )
    raise fault(
        f"in {row} role {fill.role} fills ring {ring.name} by (tasks, splits, groups, head size, window, alone, least) "
        f"= {facts[0]} and the consumers drain it by {facts[1]}",
        "equal rows in equal slots",
        row,
        fill,
        drain,
    )


def _rows_a_slot(ring: Ring, stream: Stream) -> int:
    """Positions: k, and v if there is one, in equal parts of the slot."""
    return rows_a_slot(ring.slot_bytes, max(1, len(stream.arguments)), max(1, stream.head_size))


def _state_slots(
    problem: Problem, row: Row, ring: Ring, stream: Stream, position: int, sm: int
) -> int:
    """Slots of an SM's (group, split) tasks at a position (docs/ir.md, state order)."""
    first, count = (int(v[sm]) for v in shares(stream.tasks, row.rotation, problem.sms))
    low = max(0, position + 1 - stream.window) if stream.window else 0
    old = position - low
    chunk = -(-old // used_splits(old, stream.splits, stream.alone, stream.least))
    per_slot = max(1, _rows_a_slot(ring, stream))
    slots = 0
    for task in range(first, first + count):
        begin = min(low + (row.tile_base + task) % stream.splits * chunk, position)
        slots += -(-(min(begin + chunk, position) - begin) // per_slot)
    return slots


def _examples(problem: Problem) -> Iterator[tuple[int, int]]:
    """Positions, twice as far each time and the last one, on every SM."""
    position = 1
    while position < problem.context:
        yield from ((position, sm) for sm in range(problem.sms))
        position *= 2
    yield from ((problem.context - 1, sm) for sm in range(problem.sms))
