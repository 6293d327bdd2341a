"""Proof of capacity: all fits, nothing overlaps, all blocks run at once, channels carry what their type needs."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

from tileir.scheduling.problem import RECORD_WORDS, Channel, Problem, Region, Row, Writers, fault

PAYLOADS = {"bf16": "bf16x2", "f32": "f32", "i32": "record"}
PROTOCOLS = ("packet", "block")
# What is needed by name, as a sentence goes on; and what is missing.
NEEDS = {
    "sms": ("blocks wait for each other, one an SM", "co-residency of all blocks"),
    "threads": ("threads make a block", "a block that an SM can hold"),
    "registers": (
        "registers are asked for by an SM's roles",
        "registers: a role that grows waits for those that nobody gives back",
    ),
    "consumer registers": (
        "registers a consumer's thread",
        "registers: the kernel is made for the target's",
    ),
    "loader registers": (
        "registers a loader's thread",
        "registers: the kernel is made for the target's",
    ),
    "barriers": ("named barriers are used by a block", "barriers: an SM's block has no more"),
    "shared memory": ("bytes of shared memory are taken by a block", "shared memory"),
}


def check_capacity(problem: Problem) -> None:
    """Needs are within limits; regions are aligned, apart, and inside their memory. Raises ScheduleError."""
    for name, (what, missing) in NEEDS.items():
        if problem.needs[name] > problem.limits[name]:
            raise fault(
                f"{problem.needs[name]} {what}; there are {problem.limits[name]}", missing, problem
            )
    by_memory: dict[str, list[Region]] = defaultdict(list)
    for region in problem.regions:
        by_memory[region.memory].append(region)
    for memory, regions in by_memory.items():
        _check_memory(memory, regions, problem.memories[memory])


def _check_memory(memory: str, regions: list[Region], size: int) -> None:
    ordered = sorted(regions, key=lambda r: (r.first, r.last))
    for region in ordered:
        if region.first < 0 or region.first % region.alignment:
            raise fault(
                f"{region.name} is at byte {region.first} of {memory}",
                f"alignment to {region.alignment} bytes",
                region,
            )
    for a, b in pairwise(ordered):
        if b.first < a.last:
            raise fault(
                f"{a.name} and {b.name} overlap in {memory}: [{a.first}, {a.last}) and [{b.first}, {b.last})",
                "disjoint places for what lives at the same time",
                b,
                a,
            )
    if ordered[-1].last > size:
        raise fault(
            f"{ordered[-1].name} needs {memory} memory up to byte {ordered[-1].last}, of {size}",
            "memory for it",
            ordered[-1],
        )


def check_channels(problems: Sequence[Problem]) -> None:
    """Payload, packets, protocol and level are what the type and the crossing need. Raises ScheduleError."""
    writers, sms = Writers(problems), sum(problem.sms for problem in problems)
    crossing = _crossing(problems)
    for problem in problems:
        records = {row.written for row in problem.rows if row.body.records}
        records |= {row.names[a] for row in problem.rows for a in row.body.chooses}
        for channel in problem.channels.values():
            _check_packets(problem, channel, writers.into(problem, channel.name))
            _check_level(problem, channel, writers, crossing)
            if channel.name in records and (
                channel.payload != "record" or channel.values != RECORD_WORDS * sms
            ):
                raise fault(
                    f"channel {channel.name} has {channel.values} values of payload {channel.payload!r} for the "
                    f"records of {sms} SMs",
                    f"{RECORD_WORDS * sms} words: a record from every SM",
                    channel,
                    *writers.into(problem, channel.name)[:1],
                )
        _check_local(problem)
    _check_copies(problems, crossing)


def _check_copies(problems: Sequence[Problem], crossing: set[str]) -> None:
    """A channel that crosses GPUs is the same on all, at the same place: that is where others write."""
    first: dict[str, tuple[Problem, Channel]] = {}
    for problem in problems:
        for channel in problem.channels.values():
            other, there = first.setdefault(channel.name, (problem, channel))
            if (channel.level == "peer") != (there.level == "peer"):
                raise fault(
                    f"channel {channel.name} is of level {there.level!r} on {other} and of level {channel.level!r} on "
                    f"{problem}",
                    "one level on all GPUs: who writes into others' copies writes into all",
                    channel,
                    other,
                    problem,
                )
    copies: dict[str, set[object]] = defaultdict(set)
    for problem in problems:
        places = {(r.memory, r.name): (r.first, r.last) for r in problem.regions}
        for name in crossing & problem.channels.keys():
            channel = problem.channels[name]
            if channel.level == "peer":
                facts = (channel.values, channel.payload, channel.protocol, channel.depth)
                copies[name].add((*facts, places.get(("exchange", name))))
    for name, found in copies.items():
        if len(found) > 1:
            raise fault(
                f"channel {name} crosses GPUs, where its (values, payload, protocol, depth, place) are "
                f"{' and '.join(sorted(map(str, found)))}",
                "one and the same channel at one place on all GPUs",
                *(p.channels[name] for p in problems if name in p.channels),
                *problems,
            )


def _crossing(problems: Sequence[Problem]) -> set[str]:
    """The channels of level "peer" that some GPU awaits and another one writes."""
    writes, awaits = defaultdict(set), defaultdict(set)
    for problem in problems:
        for row in problem.rows:
            if row.written is not None:
                writes[row.written].add(problem.index)
            for name in row.awaited:
                awaits[name].add(problem.index)
    return {n for n in writes if any(w != r for w in writes[n] for r in awaits[n])}


def _check_level(problem: Problem, channel: Channel, writers: Writers, crossing: set[str]) -> None:
    """Level "gpu" joins the SMs of a GPU, "peer" GPUs; "sm" the warps of each SM, all of which make all values."""
    by = writers.into(problem, channel.name)
    every = bool(by) and all(row.body.choice is not None for row in by)
    levels = ["gpu", *(["peer"] if channel.name in crossing else []), *(["sm"] if every else [])]
    if channel.level == "sm" and channel.depth != 1:
        raise fault(
            f"channel {channel.name} of level 'sm' has {channel.depth} copies",
            "one copy, of which its full and its empty mbarrier tell",
            *by[:1],
            channel,
        )
    if channel.protocol not in PROTOCOLS or channel.level not in levels:
        joins = "GPUs" if channel.level == "peer" else "the SMs of a GPU"
        raise fault(
            f"channel {channel.name} joins {joins} by protocol {channel.protocol!r} of level {channel.level!r}",
            f"a protocol whose scope is level {' or '.join(map(repr, levels))}",
            channel,
            *by[:1],
        )


def _check_local(problem: Problem) -> None:
    """A channel of level "sm" is freed by the loader that reads it: one there has to be."""
    readers: dict[str, set[str]] = defaultdict(set)
    for row in problem.rows:
        for name, role in row.polls:
            readers[name].add(role)
    for row in problem.rows:
        if row.written is None or problem.channels[row.written].level != "sm":
            continue
        loaders = sorted(readers[row.written] - {"consumer"})
        if len(loaders) != 1:
            who = " and ".join(loaders) or "no loader"
            raise fault(
                f"{row} waits until channel {row.written} of its SM is free, and {who} frees it",
                "a free edge from the one loader that reads it",
                row,
                problem.channels[row.written],
                step=2,
            )


def _check_packets(problem: Problem, channel: Channel, by: list[Row]) -> None:
    payload = PAYLOADS.get(channel.element)
    if channel.payload != payload:
        raise fault(
            f"channel {channel.name} of {channel.element} has payload {channel.payload!r}",
            f"payload {payload!r}",
            channel,
            *by[:1],
        )
    if channel.payload == "bf16x2" and channel.values % 2:
        raise fault(
            f"channel {channel.name} has {channel.values} values in pairs",
            "a whole number of packets",
            channel,
            *by[:1],
        )
    if channel.tokens != problem.tokens:
        raise fault(
            f"channel {channel.name} holds {channel.tokens} tokens, a step has {problem.tokens}",
            "a place for every token",
            channel,
            problem,
        )
