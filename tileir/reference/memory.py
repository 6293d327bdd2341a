"""What a GPU of the reference device holds: rows of the table with their operands, weights, states, channels."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from tileir.dialect.attributes import element_of, get, name_of, static_shape, walk
from tileir.dialect.engine import declarations
from tileir.errors import DeviceHang
from tileir.packing import constant, pack_row, pack_store
from tileir.reference.arithmetic import Array
from tileir.reference.protocol import Channel
from tileir.reference.steps import StepRecord


@dataclass
class State:
    """Rows by head; of each the epoch in which it was written, and for whom: (request, position)."""

    name: str
    rows: Array
    page: int
    written: Array
    holder: Array

    def row(self, record: StepRecord, sequence: int, position: int) -> int:
        """Where a sequence's position lies."""
        if not self.page:
            return position
        number, inside = divmod(position, self.page)
        held = int(record.table[sequence, number])
        if held < 0:
            raise DeviceHang(f"state {self.name}: sequence {sequence} has no page for {position}")
        return held * self.page + inside

    def write(self, record: StepRecord, t: int, epoch: int, index: Array, values: Array) -> None:
        """Values of the row of a step's token, by head · size + i."""
        sequence, position = record.sequences[t], record.positions[t]
        row, size = self.row(record, sequence, position), self.rows.shape[2]
        self.rows[index // size, row, index % size] = values
        self.written[row] = epoch
        self.holder[row] = record.holders[sequence], position

    def read(
        self, record: StepRecord, sequence: int, positions: Array, epoch: int, who: str
    ) -> Array:
        """Where these old positions lie. Raises DeviceHang for what this step may not see."""
        rows = np.array([self.row(record, sequence, int(p)) for p in positions], np.int64)
        for row, position in zip(rows, positions, strict=True):
            wanted = (record.holders[sequence], position)
            if not 0 < self.written[row] < epoch or tuple(self.holder[row]) != wanted:
                raise DeviceHang(
                    f"{who} streams position {position} of state {self.name}, which is not there: row {row} holds "
                    f"position {self.holder[row][1]} of request {self.holder[row][0]}, written in epoch "
                    f"{self.written[row]}"
                )
        return rows


@dataclass
class RowPlan:
    """A row of the phase table with what its body's arguments stand for."""

    number: int
    kind: str
    rotation: int
    tile_base: int
    ops: dict[str, Any]
    segments: list[tuple[Any, int]]
    bind: dict[Any, Any]

    def operand(self, value: Any) -> Any:
        """A channel, a state or an array."""
        return self.bind[value]


@dataclass
class LocalName:
    """A channel of level "sm": every SM has its own of this name."""

    name: str
    shape: list[int]


@dataclass
class Device:
    """A GPU: the rows of its table, and its memory."""

    index: int
    place: int
    sms: int
    warps: int
    tokens: int
    rings: dict[str, Any]
    rows: list[RowPlan]
    tape: dict[int, list[Array]]
    store: dict[int, Array]
    channels: dict[str, Channel]
    states: dict[str, State]
    locals: dict[str, LocalName]
    ordered: bool


def read_device(
    op: Any, place: int, recipe: dict[str, Any], weights: Mapping[str, Any], *, rounding: bool
) -> Device:
    """A GPU with its weights packed."""
    block = list(op.regions[0].blocks[0])
    sms = get(op, "sms")
    dtype = ml_dtypes.bfloat16 if rounding else np.float32
    bodies = {get(o, "sym_name"): o for o in block if name_of(o) == "engine.body"}
    constants = {
        e["tensor"]: np.asarray(constant(e, weights, exact=not rounding), np.float32)
        for e in recipe["constants"]
    }
    channels: dict[str, Channel] = {}
    states: dict[str, State] = {}
    local: dict[str, LocalName] = {}
    for declared in declarations(op):
        name, value = get(declared, "sym_name"), declared.operation.results[0]
        shape = static_shape(value)
        if name_of(declared) == "engine.state":
            rows = np.zeros(shape, np.float32)
            written, holder = np.zeros(shape[1], np.int64), np.full((shape[1], 2), -1)
            states[name] = State(name, rows, get(declared, "page", 0), written, holder)
        elif name_of(declared) == "engine.channel" and get(declared, "level") == "sm":
            local[name] = LocalName(name, shape)
        elif name_of(declared) == "engine.channel":
            kinds = {"bf16": np.float32, "f32": np.float32, "i32": np.int64}
            channels[name] = Channel(
                name, shape, kinds[element_of(value)], get(declared, "depth"),
                rounded=element_of(value) == "bf16", peer=get(declared, "level") == "peer",
            )  # fmt: skip
    bound: dict[str, Any] = {**constants, **channels, **states, **local}
    table = [o for o in block if name_of(o) == "engine.row"]
    return Device(
        index=get(op, "index"),
        place=place,
        sms=sms,
        warps=get(op, "consumer_warps"),
        tokens=get(op, "tokens"),
        rings={get(o, "sym_name"): o for o in block if name_of(o) == "engine.ring"},
        rows=[_row(i, row, bodies[get(row, "body")], bound) for i, row in enumerate(table)],
        tape={
            e["row"]: [b.astype(np.float32) for b in pack_row(e, sms, weights, dtype)]
            for e in recipe["tape"]
        },
        store={e["row"]: pack_store(e, weights, dtype).astype(np.float32) for e in recipe["store"]},
        channels=channels,
        states=states,
        locals=local,
        ordered=all(_ordered(body) for body in bodies.values()),
    )


def _row(number: int, row: Any, body: Any, bound: dict[str, Any]) -> RowPlan:
    arguments = list(body.regions[0].blocks[0].arguments)
    ops = {
        name_of(o).removeprefix("engine."): o
        for role in walk(body, "engine.role")
        for o in role.regions[0].blocks[0]
    }
    segments, at = [], 0
    if "emit" in ops:
        for segment in walk(ops["emit"], "tile.segment"):
            segments.append((segment, at))
            at += get(segment, "tiles")
    return RowPlan(
        number,
        get(body, "kind"),
        get(row, "rotation"),
        get(row, "tile_base"),
        ops,
        segments,
        {a: bound[n] for a, n in zip(arguments, get(row, "names"), strict=True)},
    )


def _ordered(body: Any) -> bool:
    """Whether every state that a body writes is released by it, and every one that it streams acquired."""
    writes = {o.operands[len(o.operands) - 1] for o in walk(body, "tile.append", "tile.store")}
    reads = {v for o in walk(body, "engine.fill_rows") for v in o.operands}
    reads |= {
        v
        for o in walk(body, "engine.fill_gathered")
        for v in (o.operands[0], *list(o.operands)[2:])
    }
    return len(writes) <= len(get(body, "release", [])) and len(reads) <= len(
        get(body, "acquire", [])
    )
