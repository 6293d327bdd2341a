"""Proof of capacity: all fits, nothing overlaps, all blocks run at once, channels carry what their type needs."""

from collections import defaultdict
from itertools import pairwise

from tileir.scheduling.problem import Channel, Problem, Region, fault

PAYLOADS = {"bf16": "bf16x2", "f32": "f32", "i32": "record"}
PROTOCOLS = ("packet", "block")
# Words of an SM's record: key and index.
RECORD_WORDS = 2
# What is needed by name, as a sentence goes on; and what is missing.
NEEDS = {
    "sms": ("blocks wait for each other, one an SM", "co-residency of all blocks"),
    "threads": ("threads make a block", "a block that an SM can hold"),
    "registers": (
        "registers are asked for by an SM's roles",
        "registers: a role that grows waits for those that nobody gives back",
    ),
    "shared memory": ("bytes of shared memory are taken by a block", "shared memory"),
}


def check_capacity(problem: Problem) -> None:
    """Needs are within limits; regions are aligned, apart, and inside their memory. Raises ScheduleError."""
    for name, (what, missing) in NEEDS.items():
        if problem.needs[name] > problem.limits[name]:
            raise fault(f"{problem.needs[name]} {what}; there are {problem.limits[name]}", missing)
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
            )
    for a, b in pairwise(ordered):
        if b.first < a.last:
            raise fault(
                f"{a.name} and {b.name} overlap in {memory}: [{a.first}, {a.last}) and [{b.first}, {b.last})",
                "disjoint places for what lives at the same time",
            )
    if ordered[-1].last > size:
        raise fault(
            f"{ordered[-1].name} needs {memory} memory up to byte {ordered[-1].last}, of {size}",
            "memory for it",
        )


def check_channels(problem: Problem) -> None:
    """Payload, packets, protocol and level are what the type and the crossing need. Raises ScheduleError."""
    records = {row.written for row in problem.rows if row.body.records}
    records |= {row.names[a] for row in problem.rows for a in row.body.chooses}
    for channel in problem.channels.values():
        _check_packets(problem, channel)
        # A channel joins all SMs of one GPU: less does not reach them, more is another device's.
        if channel.protocol not in PROTOCOLS or channel.level != "gpu":
            raise fault(
                f"channel {channel.name} joins the SMs of a GPU by protocol {channel.protocol!r} of level "
                f"{channel.level!r}",
                'a protocol whose scope is level "gpu"',
            )
        if channel.name in records and (
            channel.payload != "record" or channel.values != RECORD_WORDS * problem.sms
        ):
            raise fault(
                f"channel {channel.name} has {channel.values} values of payload {channel.payload!r} for the records "
                f"of {problem.sms} SMs",
                f"{RECORD_WORDS * problem.sms} words: a record from every SM",
            )


def _check_packets(problem: Problem, channel: Channel) -> None:
    payload = PAYLOADS.get(channel.element)
    if channel.payload != payload:
        raise fault(
            f"channel {channel.name} of {channel.element} has payload {channel.payload!r}",
            f"payload {payload!r}",
        )
    if channel.payload == "bf16x2" and channel.values % 2:
        raise fault(
            f"channel {channel.name} has {channel.values} values in pairs",
            "a whole number of packets",
        )
    if channel.tokens != problem.tokens:
        raise fault(
            f"channel {channel.name} holds {channel.tokens} tokens, a step has {problem.tokens}",
            "a place for every token",
        )
