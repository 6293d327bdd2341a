"""What a proof needs to know of a kernel: plain data, no MLIR.

Bodies are described once, symbolically in the task; rows say on which operands, tiles and SMs they run. Tasks go to
SMs by tileir/scheduling/assign.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from tileir.errors import TileirError


class ScheduleError(TileirError):
    """A schedule that could hang, race or not fit."""


@dataclass(frozen=True)
class Places:
    """Values that the tasks [first, first + tasks) of a stage touch, in one of a row's operands.

    Task first + t: `width` values from base + (t // inner) · outer + (t % inner) · step on, for each of `bases`.
    argument: the operand's number.
    """

    argument: int
    first: int
    tasks: int
    inner: int
    step: int
    outer: int
    bases: tuple[int, ...]
    width: int


@dataclass(frozen=True)
class Whole:
    """Values [first, last) of operand `argument`: all that any SM of the row waits for."""

    argument: int
    first: int
    last: int


@dataclass(frozen=True)
class Append:
    """Values that go into a state's row of the step's position.

    published: where the stage's channel gets the same values, one for each of the places' bases; None: nowhere.
    """

    places: Places
    published: tuple[int | None, ...]


@dataclass(frozen=True)
class Stream:
    """What passes a ring, from `role`, in tasks that are shared out over the SMs.

    The tape: `blocks` of 1 KB a task. States: the old rows of `arguments` = (k, v), head_size values each, of which a
    task has one kv head's and one of `splits` parts; window 0 is the whole context.
    """

    ring: str
    role: str
    tasks: int
    blocks: int = 0
    splits: int = 1
    head_size: int = 0
    window: int = 0
    arguments: tuple[int, ...] = ()


@dataclass(frozen=True)
class Body:
    """What the roles do in a stage; operands are numbers.

    tasks: of a row; space: of the whole stage. waits: what SMs poll; reads: what a task polls; writes: what a task
    publishes into channel `out`. records: every SM leaves a record in `out`. chooses: channels whose records of every
    SM are awaited. own: where the channel of the first wait holds the step's own k and v. released, acquired: states
    that the body's fences cover. program: the consumers' operations, in order.
    """

    name: str
    kind: str
    tasks: int = 0
    space: int = 0
    out: int | None = None
    waits: tuple[Whole, ...] = ()
    reads: tuple[Places, ...] = ()
    writes: tuple[Places, ...] = ()
    appends: tuple[Append, ...] = ()
    fills: tuple[Stream, ...] = ()
    drains: tuple[Stream, ...] = ()
    records: bool = False
    chooses: tuple[int, ...] = ()
    own: tuple[int, ...] = ()
    released: tuple[int, ...] = ()
    acquired: tuple[int, ...] = ()
    program: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """A stage of the phase table: a body on operands, by name."""

    number: int
    body: Body
    names: tuple[str, ...]
    rotation: int = 0
    tile_base: int = 0

    @property
    def awaited(self) -> Iterator[str]:
        """The channels that the row polls, records included."""
        waits = (w.argument for w in self.body.waits)
        reads = (p.argument for p in self.body.reads)
        return (self.names[a] for a in (*waits, *reads, *self.body.chooses))

    @property
    def written(self) -> str | None:
        """The channel that the row writes."""
        return None if self.body.out is None else self.names[self.body.out]

    def __str__(self) -> str:
        return f"row {self.number} ({self.body.name})"


@dataclass(frozen=True)
class Channel:
    """Of one copy: tokens × values."""

    name: str
    tokens: int
    values: int
    element: str
    payload: str
    protocol: str
    level: str
    depth: int


@dataclass(frozen=True)
class State:
    """heads × positions × size values."""

    name: str
    heads: int
    positions: int
    size: int


@dataclass(frozen=True)
class Ring:
    """slots and window in slots."""

    name: str
    slots: int
    slot_bytes: int
    window: int


@dataclass(frozen=True)
class Region:
    """Bytes [first, last) of a memory, and the alignment they need."""

    memory: str
    name: str
    first: int
    last: int
    alignment: int = 1


@dataclass(frozen=True)
class Problem:
    """A device's schedule.

    warps: consumer arrivals that free a slot. roles: warps by role. memories: bytes of each. needs: what the kernel
    takes of the target; limits: what that has, by the same names (tileir/scheduling/capacity.py).
    """

    rows: tuple[Row, ...]
    channels: dict[str, Channel]
    states: dict[str, State]
    rings: dict[str, Ring]
    regions: tuple[Region, ...]
    sms: int
    warps: int
    tokens: int
    context: int
    roles: dict[str, int] = field(default_factory=dict)
    memories: dict[str, int] = field(default_factory=dict)
    needs: dict[str, int] = field(default_factory=dict)
    limits: dict[str, int] = field(default_factory=dict)


def fault(
    what: str, missing: str, row: Row | None = None, sm: int = 0, step: int = 1
) -> ScheduleError:
    """The error of a proof that fails: what, an example (stage, SM, step), and the edge that is missing."""
    example = f"; for example {row}, SM {sm}, step {step}" if row is not None else ""
    return ScheduleError(what + example, hint=f"missing: {missing}")
