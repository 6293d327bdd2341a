"""verify-schedule: prove that the kernel neither hangs nor races, before it is made."""

import sys
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

from tileir.dialect.attributes import element_of, get, located, name_of, static_shape, walk
from tileir.dialect.engine import ROLES, declarations
from tileir.dialect.tile import TILE_ROWS, padded
from tileir.errors import ContractError
from tileir.passes.allocate_memory import (
    ALIGNMENT,
    BARRIER_BYTES,
    ELEMENT_BYTES,
    PACKET_BYTES,
    SCRATCH_BYTES,
    stage_bytes,
)
from tileir.passes.base import Pass
from tileir.passes.body_facts import describe
from tileir.scheduling.problem import Channel, Problem, Region, Ring, Row, State
from tileir.scheduling.verify import verify
from tileir.target import LOADER_WARPS, Target, find_target

MEMORIES = {"channel": "exchange", "buffer": "constant", "state": "state"}
# Bulk copies go to multiples of 16 bytes (PTX ISA 9.7.9.25), mbarriers are 8 wide.
COPY_ALIGNMENT, BARRIER_ALIGNMENT = 128, 8
# Of a block (PTX ISA 9.7.13.1).
NAMED_BARRIERS = 16


@dataclass(frozen=True)
class VerifySchedulePass(Pass):
    """Prove arrivals, ring phases, program order, channel reuse, state order and capacity.

    Before: engine level, memory allocated. After: the same module, proved; tileir/scheduling/verify.py says what and
    how. `print-paths` writes to stderr what orders each channel's readers before its next writer. A failure names the
    two offenders and where they stand, an example and the missing edge.

        tiny.mlir:178:5: row 4 (contract_1) waits for channel residual_1, which row 6 (contract_1) writes later in the
        same step; for example row 4 (contract_1), SM 0, step 1
          missing: row 6 (contract_1) before row 4 (contract_1)
          row 4 (contract_1) is at tiny.mlir:178:5
          row 6 (contract_1) is at tiny.mlir:180:5
    """

    name: ClassVar[str] = "verify-schedule"
    before: ClassVar[str] = "engine"
    after: ClassVar[str] = "engine"

    target: str = "h100"
    print_paths: bool = False

    def run(self, module: Any) -> None:
        """Verify all devices together. Raises ScheduleError, and ContractError if an earlier pass has not run."""
        target = find_target(self.target)
        paths = verify(*(problem_of(device, target) for device in walk(module, "engine.device")))
        if self.print_paths:
            print(*(path.line for path in paths), sep="\n", file=sys.stderr)


def problem_of(device: Any, target: Target) -> Problem:
    """The plain data that the proofs need. Raises ContractError for what earlier passes have not decided."""
    block = list(device.operation.regions[0].blocks[0])
    values = {get(op, "sym_name"): op for op in declarations(device)}
    index, devices = get(device, "index"), get(device, "devices")
    several = index if devices > 1 else None
    bodies = {
        get(o, "sym_name"): describe(o, text=several is not None)
        for o in block
        if name_of(o) == "engine.body"
    }
    rows = [o for o in block if name_of(o) == "engine.row"]
    rings = [o for o in block if name_of(o) == "engine.ring"]
    roles = _decided(device.operation.parent, "tileir.roles", "specialize-warp")
    smem = _decided(device, "smem_bytes", "allocate-memory")
    names = MEMORIES.values()
    memories = {n: _decided(device, f"{n}_bytes", "allocate-memory") for n in names}
    return Problem(
        rows=tuple(
            Row(
                get(row, "stage"),
                bodies[get(row, "body")],
                tuple(get(row, "names")),
                get(row, "rotation"),
                get(row, "tile_base"),
                several,
                tuple(map(str, (*get(row, "weights"), *get(row, "views", [])))),
                located(row),
            )
            for row in rows
        ),
        channels={n: _channel(op) for n, op in values.items() if name_of(op) == "engine.channel"},
        states={n: _state(op) for n, op in values.items() if name_of(op) == "engine.state"},
        rings={get(o, "sym_name"): _ring(o) for o in rings},
        regions=(*(_placed(op) for op in values.values()), *_shared(device, rings)),
        sms=get(device, "sms"),
        warps=get(device, "consumer_warps"),
        tokens=get(device, "tokens"),
        context=get(device, "context"),
        vocabulary=get(device, "vocabulary"),
        index=index,
        devices=devices,
        sequences=get(device, "sequences"),
        page=get(device, "page"),
        roles=roles,
        memories={**memories, "shared": smem},
        needs=_needs(device, roles, smem),
        limits={
            "sms": target.sms,
            "threads": 1024,
            "registers": target.threads * target.entry_registers,
            "consumer registers": target.registers,
            "loader registers": target.loader_registers,
            "barriers": NAMED_BARRIERS,
            "shared memory": target.smem_bytes,
        },
        location=located(device),
    )


def _decided(op: Any, name: str, by: str) -> Any:
    """An attribute that an earlier pass puts."""
    value = get(op, name)
    if value is None:
        raise ContractError(
            f"{name_of(op)} has no {name!r}",
            location=located(op),
            hint=f"{by} puts it: run it first",
        )
    return value


def _needs(device: Any, roles: dict[str, int], smem: int) -> dict[str, int]:
    """What a block takes of an SM: registers once roles have parted (setmaxnreg)."""
    consumers = roles["consumer"]
    loaders = LOADER_WARPS * roles["loader_registers"]
    return {
        "sms": get(device, "sms"),
        "threads": 32 * (consumers + LOADER_WARPS),
        "registers": 32 * (consumers * roles["registers"] + loaders),
        "consumer registers": roles["registers"],
        "loader registers": roles["loader_registers"],
        # One of the whole block, and one of each role that has several warps.
        "barriers": 1 + sum(roles.get(role, 0) > 1 for role in ROLES),
        "shared memory": smem,
    }


def _channel(op: Any) -> Channel:
    tokens, *shape = static_shape(op.results[0])
    facts = {n: get(op, n) for n in ("payload", "protocol", "level", "depth")}
    facts |= {"element": element_of(op.results[0]), "location": located(op)}
    return Channel(get(op, "sym_name"), tokens, prod(shape), **facts)


def _state(op: Any) -> State:
    heads, positions, size = static_shape(op.results[0])
    return State(get(op, "sym_name"), heads, positions, size, get(op, "page", 0), located(op))


def _ring(op: Any) -> Ring:
    facts = {n: get(op, n) for n in ("slots", "slot_bytes", "window", "fed_window")}
    return Ring(get(op, "sym_name"), **facts, location=located(op))


# ---- places


def _placed(op: Any) -> Region:
    """All copies of a channel's packets, a buffer or a state."""
    value, kind = op.results[0], name_of(op).removeprefix("engine.")
    size = prod(static_shape(value))
    if kind == "channel" and get(op, "level") == "sm":
        first = _decided(op, "offset", "allocate-memory")
        size = size * ELEMENT_BYTES[element_of(value)] * get(op, "depth") + BARRIER_BYTES
        return Region(
            "shared", get(op, "sym_name"), first, first + size, BARRIER_ALIGNMENT, located(op)
        )
    if kind == "channel":
        size = (
            size // (2 if get(op, "payload") == "bf16x2" else 1) * PACKET_BYTES * get(op, "depth")
        ) * get(op, "replicas")
    else:
        size *= ELEMENT_BYTES[element_of(value)]
    first = _decided(op, "offset", "allocate-memory")
    # The phase table counts places in units of the alignment.
    return Region(MEMORIES[kind], get(op, "sym_name"), first, first + size, ALIGNMENT, located(op))


def _shared(device: Any, rings: list[Any]) -> list[Region]:
    """Rings, their barriers, and what stages need at most of the device's three places."""

    def region(op: Any, attribute: str, name: str, size: int, alignment: int) -> Region:
        first = _decided(op, attribute, "allocate-memory")
        return Region("shared", name, first, first + size, alignment, located(op))

    x_bytes, part_bytes = map(max, stage_bytes(device), _least_bytes(device))
    regions = [
        region(device, "x_offset", "activations", x_bytes, 16),
        region(device, "part_offset", "partial sums", part_bytes, 16),
        region(device, "scratch_offset", "scratch", SCRATCH_BYTES, 16),
    ]
    for ring in rings:
        name, slots = f"ring {get(ring, 'sym_name')}", get(ring, "slots")
        size = slots * get(ring, "slot_bytes")
        regions.append(region(ring, "smem_offset", name, size, COPY_ALIGNMENT))
        barriers, size = f"barriers of {name}", slots * BARRIER_BYTES
        regions.append(region(ring, "barrier_offset", barriers, size, BARRIER_ALIGNMENT))
    return regions


def _least_bytes(device: Any) -> tuple[int, int]:
    """Bytes of activations and of partial sums that no layout can do without."""
    tokens, sms = (get(device, n) for n in ("tokens", "sms"))
    x_bytes, part_bytes = [0], [0]
    for op in walk(device, "engine.receive", "engine.multiply", "engine.attend"):
        match name_of(op):
            case "engine.receive":
                x_bytes.append(tokens * padded(get(op, "k")) * 2)
            case "engine.multiply" if get(op, "source") == "tape":
                part_bytes.append(tokens * -(-get(op, "tiles") // sms) * TILE_ROWS * 4)
            case "engine.attend":
                x_bytes.append(
                    tokens * get(op, "heads") // get(op, "groups") * get(op, "head_size") * 2
                )
    return max(x_bytes), max(part_bytes)
