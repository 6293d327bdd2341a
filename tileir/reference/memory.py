"""What a GPU of the reference device holds: rows of the table with their operands, weights, states, channels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import ml_dtypes
import numpy as np

from tileir.dialect.attributes import element_of, get, name_of, static_shape, walk
from tileir.dialect.engine import declarations
from tileir.errors import DeviceHang
from tileir.packing import DTYPES, constant, pack_row, pack_store
from tileir.reference.arithmetic import Array
from tileir.reference.protocol import Channel
from tileir.reference.steps import StepRecord
from tileir.reference.stores import Memory, Shared


class State(Shared["Rows"]):
    """Rows of KV, [heads, rows, size] f32, in pages unless page is 0. views: one for all SMs, or one each."""

    def __init__(self, name: str, shape: Sequence[int], page: int) -> None:
        self.name, self.page, self.views = name, page, [Rows(name, shape)]

    def places(self, record: StepRecord, sequence: int, positions: Array) -> Array:
        """Where these positions of a sequence lie. Raises DeviceHang for one that has no page."""
        if not self.page:
            return positions
        pages = record.table[sequence, positions // self.page]
        if (pages < 0).any():
            position = positions[pages < 0][0]
            raise DeviceHang(f"state {self.name}: sequence {sequence} has no page for {position}")
        return np.asarray(pages * self.page + positions % self.page)

    def own(self, record: StepRecord, t: int) -> "OwnRow":
        """Where the row of a step's token lies, and for what. Raises DeviceHang if it has no page."""
        sequence, position = record.sequences[t], record.positions[t]
        (place,) = self.places(record, sequence, np.array([position]))
        return OwnRow(int(place), (record.holders[sequence], position, record.tokens[t]))


@dataclass(frozen=True)
class OwnRow:
    """A row that a step writes. holder: (request, position, token)."""

    place: int
    holder: tuple[int, int, int]


class Rows(Memory):
    """A state's rows as some SMs see them; of each the epoch in which it was written, and for what (its holder).

    values: how many values of a head's row have been written in that epoch.
    """

    kind = "rows"

    def __init__(self, name: str, shape: Sequence[int]) -> None:
        super().__init__(name)
        self.rows: Array = np.zeros(shape, np.float32)
        self.written: Array = np.zeros(shape[:2], np.int64)
        self.values: Array = np.zeros(shape[:2], np.int64)
        self.holder: Array = np.full((shape[1], 3), -1)

    def copy(self) -> Self:
        """The same rows."""
        made = type(self)(self.name, self.rows.shape)
        for name in ("rows", "written", "values", "holder"):
            setattr(made, name, getattr(self, name).copy())
        return made

    def write(self, own: OwnRow, epoch: int, index: Array, values: Array) -> None:
        """Values of a row are seen, by head · size + i. Raises DeviceHang for one that is there already."""
        row, size = own.place, self.rows.shape[2]
        head = index // size
        self.rows[head, row, index % size] = values
        self.values[head[self.written[head, row] != epoch], row] = 0
        self.written[head, row] = epoch
        np.add.at(self.values, (head, row), 1)
        if (self.values[head, row] > size).any():
            position = own.holder[1]
            raise DeviceHang(f"state {self.name}: position {position} is written twice in a step")
        self.holder[row] = own.holder

    def read(self, head: int, rows: Array, old: "OldRows") -> Array:
        """Old rows of a head, [positions, size]. Raises DeviceHang for those that the step may not see."""
        record, positions = old.record, old.positions
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
    """A row of the phase table with what its body's arguments stand for. offers: it makes candidates.

    releases, acquires: the states of which its body orders what it writes before its SM's record, and what it streams
    behind the records of the step before.
    """

    number: int
    body: str
    kind: str
    rotation: int
    tile_base: int
    ops: dict[str, Any]
    segments: list[tuple[Any, int]]
    offers: bool
    releases: frozenset[str]
    acquires: frozenset[str]
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
    """A GPU: the rows of its table, and its memory.

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
    record: int

    def who(self, sm: int, gpus: int) -> str:
        """An SM's name, among so many GPUs."""
        return f"GPU {self.index} SM {sm}" if gpus > 1 else f"SM {sm}"


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
            states[name] = State(name, shape, get(declared, "page", 0))
        elif name_of(declared) == "engine.channel" and get(declared, "level") == "sm":
            local[name] = LocalName(name, shape)
        elif name_of(declared) == "engine.channel":
            kinds = {"bf16": np.float32, "f32": np.float32, "i32": np.int64}
            channels[name] = Channel(
                name, shape, kinds[element_of(value)], get(declared, "depth"), get(declared, "replicas"),
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
        frozenset(get(row, "names")[i] for i in get(body, "release", [])),
        frozenset(get(row, "names")[i] for i in get(body, "acquire", [])),
        {a: bound[n] for a, n in zip(arguments, get(row, "names"), strict=True)},
    )
