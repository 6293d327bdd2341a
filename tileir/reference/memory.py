"""What a GPU of the reference device holds: rows of the table with their operands, weights, states, channels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from tileir.dialect.attributes import element_of, get, name_of, static_shape, walk
from tileir.dialect.engine import declarations
from tileir.errors import DeviceHang
from tileir.packing import DTYPES, constant, pack_row, pack_store
from tileir.reference.arithmetic import Array
from tileir.reference.protocol import Channel
from tileir.reference.steps import StepRecord


@dataclass
class State:
    """Rows by head; of each the epoch in which it was written, and for what: (request, position, token).

    values: how many values of a head's row have been written in that epoch.
    """

    name: str
    rows: Array
    page: int
    written: Array
    values: Array
    holder: Array

    def places(self, record: StepRecord, sequence: int, positions: Array) -> Array:
        """Where these positions of a sequence lie. Raises DeviceHang for one that has no page."""
        if not self.page:
            return positions
        pages = record.table[sequence, positions // self.page]
        if (pages < 0).any():
            position = positions[pages < 0][0]
            raise DeviceHang(f"state {self.name}: sequence {sequence} has no page for {position}")
        return np.asarray(pages * self.page + positions % self.page)

    def write(self, record: StepRecord, t: int, epoch: int, index: Array, values: Array) -> None:
        """Values of the row of a step's token, by head · size + i. Raises DeviceHang for one that is there already."""
        sequence, position = record.sequences[t], record.positions[t]
        (row,), size = self.places(record, sequence, np.array([position])), self.rows.shape[2]
        head = index // size
        self.rows[head, row, index % size] = values
        self.values[head[self.written[head, row] != epoch], row] = 0
        self.written[head, row] = epoch
        np.add.at(self.values, (head, row), 1)
        if (self.values[head, row] > size).any():
            raise DeviceHang(f"state {self.name}: position {position} is written twice in a step")
        self.holder[row] = record.holders[sequence], position, record.tokens[t]

    def read(self, head: int, old: "OldRows") -> Array:
        """Old rows of a head, [positions, size]. Raises DeviceHang for those that the step may not see."""
        record, positions = old.record, old.positions
        rows = self.places(record, old.sequence, positions)
        wanted = np.empty((len(rows), 3), np.int64)
        wanted[:, 0], wanted[:, 1] = record.holders[old.sequence], positions
        wanted[:, 2] = [old.text[p] for p in positions]
        written, base = self.written[head, rows], record.bases[old.sequence]
        values, size = self.values[head, rows], self.rows.shape[2]
        good = (written > 0) & (written < old.epoch) & (positions < base) & (values == size)
        good &= (self.holder[rows] == wanted).all(1)
        if not good.all():
            at = int(np.argmin(good))
            request, position, token = self.holder[rows[at]]
            raise DeviceHang(
                f"{old.who} streams position {positions[at]} of state {self.name}, which is not there: in epoch "
                f"{old.epoch} with rows from position {base} on, row {rows[at]} holds token {token} at position "
                f"{position} of request {request}, {values[at]} of {size} values written in epoch "
                f"{written[at]}; the text has token {wanted[at, 2]}"
            )
        return self.rows[head, rows]


@dataclass(frozen=True)
class OldRows:
    """Rows that a loader streams: positions of a sequence, in an epoch; text: the sequence's tokens so far."""

    record: StepRecord
    sequence: int
    positions: Array
    text: Sequence[int]
    epoch: int
    who: str


@dataclass
class RowPlan:
    """A row of the phase table with what its body's arguments stand for. offers: it makes candidates."""

    number: int
    body: str
    kind: str
    rotation: int
    tile_base: int
    ops: dict[str, Any]
    segments: list[tuple[Any, int]]
    offers: bool
    bind: dict[Any, Any]

    @property
    def ring(self) -> str:
        """The ring that the row's loader fills; "" if it has none."""
        fills = ("fill", "fill_rows", "fill_gathered")
        return next((str(get(self.ops[n], "ring")) for n in fills if n in self.ops), "")

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
    """A GPU: the rows of its table, and its memory. ordered: states cross steps by release and acquire.

    record: the last row that makes candidates; its record releases what the SM has written in the step.
    """

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
    record: int


def read_device(
    op: Any, place: int, recipe: dict[str, Any], weights: Mapping[str, Any], *, rounding: bool
) -> Device:
    """A GPU with its weights packed."""
    block = list(op.regions[0].blocks[0])
    sms = get(op, "sms")
    dtype = ml_dtypes.bfloat16 if rounding else np.float32
    bodies = {get(o, "sym_name"): o for o in block if name_of(o) == "engine.body"}
    constants = {
        e["tensor"]: constant(e, weights)
        .astype(DTYPES[e["dtype"] if rounding else "f32"], copy=False)
        .astype(np.float32, copy=False)
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
            written, values = np.zeros(shape[:2], np.int64), np.zeros(shape[:2], np.int64)
            holder = np.full((shape[1], 3), -1)
            states[name] = State(name, rows, get(declared, "page", 0), written, values, holder)
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
    plans = [_row(i, row, bodies[get(row, "body")], bound) for i, row in enumerate(table)]
    return Device(
        index=get(op, "index"),
        place=place,
        sms=sms,
        warps=get(op, "consumer_warps"),
        tokens=get(op, "tokens"),
        rings={get(o, "sym_name"): o for o in block if name_of(o) == "engine.ring"},
        rows=plans,
        tape={
            e["row"]: [b.astype(np.float32) for b in pack_row(e, sms, weights, dtype)]
            for e in recipe["tape"]
        },
        store={e["row"]: pack_store(e, weights, dtype).astype(np.float32) for e in recipe["store"]},
        channels=channels,
        states=states,
        locals=local,
        ordered=all(_ordered(body) for body in bodies.values()),
        record=max((row.number for row in plans if row.offers), default=-1),
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
        get(row, "body"),
        get(body, "kind"),
        get(row, "rotation"),
        get(row, "tile_base"),
        ops,
        segments,
        any(name_of(o) == "tile.candidate" for s, _ in segments for o in s.regions[0].blocks[0]),
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
