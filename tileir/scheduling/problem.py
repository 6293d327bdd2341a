"""What a proof needs to know of a kernel: plain data, no MLIR."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Span:
    """Values [first, last) of a channel, by its name."""

    channel: str
    first: int
    last: int


@dataclass(frozen=True)
class Stream:
    """What a ring carries for a row: the numbers that decide how many slots each SM sees, in order."""

    ring: str
    numbers: tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """A stage of the phase table.

    reads, writes: spans of channels. fills, drains: what the loaders put into rings and the consumers take. appends,
    streams: states by name; released, acquired: those that the row's fences cover. records: the channel that gets this
    row's record of every SM; chooses: the channels whose records of every SM this row awaits.
    """

    number: int
    body: str
    reads: tuple[Span, ...] = ()
    writes: tuple[Span, ...] = ()
    fills: tuple[Stream, ...] = ()
    drains: tuple[Stream, ...] = ()
    appends: tuple[str, ...] = ()
    streams: tuple[str, ...] = ()
    released: tuple[str, ...] = ()
    acquired: tuple[str, ...] = ()
    records: str = ""
    chooses: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"row {self.number} ({self.body})"


@dataclass(frozen=True)
class Channel:
    """values: of one copy; words: of 32 bits that a packet's payload must hold for each value."""

    name: str
    values: int
    element: str
    payload: str
    protocol: str
    level: str
    depth: int


@dataclass(frozen=True)
class Ring:
    """slots and window in slots."""

    name: str
    slots: int
    window: int


@dataclass(frozen=True)
class Region:
    """Bytes [first, last) of a memory."""

    memory: str
    name: str
    first: int
    last: int


@dataclass(frozen=True)
class Problem:
    """A device's schedule; sizes in bytes, limits of its target."""

    rows: tuple[Row, ...]
    channels: dict[str, Channel]
    rings: dict[str, Ring]
    regions: tuple[Region, ...]
    sms: int
    warps: int
    max_sms: int
    smem_bytes: int
    max_smem_bytes: int
    memories: dict[str, int] = field(default_factory=dict)
