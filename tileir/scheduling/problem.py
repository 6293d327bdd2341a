"""What a proof needs to know of a kernel: plain data, no MLIR.

Bodies are described once, symbolically in the task; rows say on which operands, tiles and SMs they run. Tasks go to
SMs by tileir/scheduling/assign.py.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from tileir.errors import TileirError

# Words of an SM's record: key and index.
RECORD_WORDS = 2


class ScheduleError(TileirError):
    """A schedule that could hang, race or not fit."""


def _place() -> Any:
    """Where an operation of the module stands, "" if that is not known; what is alike elsewhere is equal."""
    return field(default="", compare=False)


class Located(Protocol):
    """What can offend: its text names it."""

    @property
    def location(self) -> str:
        """Where it stands in the IR."""


@dataclass(frozen=True)
class Places:
    """Values that the tasks [first, first + tasks) of a stage touch, in one of a row's operands.

    Task first + t: `width` values from base + (t // inner) · outer + (t % inner) · step on, for each of `bases`.
    argument: the operand's number. every: only each `every`-th of the tasks, from the first on.
    """

    argument: int
    first: int
    tasks: int
    inner: int
    step: int
    outer: int
    bases: tuple[int, ...]
    width: int
    every: int = 1

    def touching(self, low: int, high: int) -> np.ndarray:
        """Those of the tasks [low, high) that touch any, counted from `first`."""
        t = np.arange(max(low, self.first), min(high, self.first + self.tasks)) - self.first
        return t[t % self.every == 0]


@dataclass(frozen=True)
class Whole:
    """Values [first, last) of operand `argument`: all that `role` of any SM of the row waits for.

    slot: of a token's experts; who has experts waits for the slots that chose them.
    """

    argument: int
    first: int
    last: int
    role: str = "consumer"
    slot: int | None = None


@dataclass(frozen=True)
class OwnRow:
    """Values of a state's row of the step's position, and where a channel has the same ones, place by place.

    Of what a row appends and of what attention takes for its own rows. published: None if no channel has them. by: what
    the row itself makes the values of, in order: a name, facts and the numbers of arguments, for each statement.
    """

    places: Places
    published: Places | None
    by: tuple[tuple[str, tuple[float | str, ...], tuple[int, ...]], ...] = ()


@dataclass(frozen=True)
class Stream:
    """What passes a ring, from `role`, in tasks that are shared out over the SMs.

    Weights: `blocks` of 1 KB a task, that meet `k` values of x. States: the old rows of `arguments` = (k, v), head_size
    values each, those before the first position of a sequence's step; a task has one of `groups` groups, hence one of
    `heads` kv heads, and one of `splits` parts, but up to `alone` rows are the first's, and of more so many parts have
    some as get `least` rows (0: all); window 0 is the whole context.
    of: the operand whose values, known only in the step, say which tasks there are, of the experts [first, behind) that
    it may choose, or which old rows they take.
    """

    ring: str
    role: str
    tasks: int
    blocks: int = 0
    k: int = 0
    splits: int = 1
    groups: int = 1
    heads: int = 1
    head_size: int = 0
    window: int = 0
    alone: int = 0
    least: int = 0
    arguments: tuple[int, ...] = ()
    of: int | None = None
    experts: tuple[int, int] | None = None
    location: str = _place()

    def __str__(self) -> str:
        does = "drain" if self.role == "consumer" else "fill"
        return f"role {self.role}'s {does} of ring {self.ring}"


@dataclass(frozen=True)
class Alone:
    """When one of `splits` splits takes all old rows: up to `rows` of them, of `window` that are seen (0: all).

    Of more, so many splits take some as get `least` rows (0: all).
    """

    rows: int
    window: int
    splits: int
    least: int = 0


@dataclass(frozen=True)
class Choice:
    """A choice of k among so many, "route" or "top_k", from `scores` values of operand `argument`."""

    kind: str
    argument: int
    k: int
    among: int
    scores: int


@dataclass(frozen=True)
class Body:
    """What the roles do in a stage; operands are numbers.

    tasks: of a row; space: of the whole stage; of experts, both of one expert; of a state's rows, both tiles of
    positions. tiles: what a contract's segments describe of the space; sums: of how many tiles multiply leaves sums; k:
    values that a tile, or a half with its part of K, meets of what is received of x; k_parts: how many such parts there
    are; joins: of each segment, which operations add halves. source: what a contract streams, "tape", "experts" or
    "rows". groups: equal parts of the space that meet x by themselves. slots: experts of a token. waits: what SMs poll;
    reads: what a task polls; writes: what a task publishes into channel `out`. records: every SM leaves a record in
    `out`, of the best of `offers`. chooses: channels whose records of every SM are awaited, to make the "token" or the
    "draft". chosen: the body needs the token just chosen. choice: what the body chooses and publishes. alone: when one
    split takes all old rows; then attention publishes `finishes`, by group, instead of `writes`, and a combine does
    nothing. own: where channels have the step's own rows of what `fills` streams. released, acquired: states that the
    body's fences cover. program: the consumers' operations, in order; places: where they stand. text: all of it, as IR,
    if there are several GPUs.
    """

    name: str
    kind: str
    tasks: int = 0
    space: int = 0
    tiles: int = 0
    sums: int = 0
    k: int = 0
    k_parts: int = 1
    joins: tuple[tuple[int, ...], ...] = ()
    out: int | None = None
    source: str = "tape"
    groups: int = 1
    slots: int = 1
    waits: tuple[Whole, ...] = ()
    reads: tuple[Places, ...] = ()
    writes: tuple[Places, ...] = ()
    appends: tuple[OwnRow, ...] = ()
    fills: tuple[Stream, ...] = ()
    drains: tuple[Stream, ...] = ()
    records: bool = False
    offers: tuple[Places, ...] = ()
    chooses: tuple[int, ...] = ()
    makes: str = "token"
    chosen: bool = False
    choice: Choice | None = None
    alone: Alone | None = None
    finishes: Places | None = None
    own: tuple[OwnRow, ...] = ()
    released: tuple[int, ...] = ()
    acquired: tuple[int, ...] = ()
    program: tuple[str, ...] = ()
    places: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    text: str = field(default="", repr=False)
    location: str = _place()

    def __str__(self) -> str:
        return f"body {self.name}"

    @property
    def experts(self) -> tuple[int, int] | None:
        """The experts whose results the body's rows make, if of experts."""
        return next((s.experts for s in self.drains if s.experts is not None), None)

    @property
    def routing(self) -> int | None:
        """The operand that says which experts these are."""
        return next((s.of for s in self.drains if s.experts is not None), None)


@dataclass(frozen=True)
class Row:
    """A stage of the phase table: a body on operands, by name. number: the stage's, the same on all GPUs.

    device: the GPU, if there are several. weights: names and views of what it multiplies by.
    """

    number: int
    body: Body
    names: tuple[str, ...]
    rotation: int = 0
    tile_base: int = 0
    device: int | None = None
    weights: tuple[str, ...] = ()
    location: str = _place()

    @property
    def awaited(self) -> Iterator[str]:
        """The channels that the row polls, records included."""
        yield from (name for name, _ in self.polls)

    @property
    def polls(self) -> Iterator[tuple[str, str]]:
        """(channel, role that polls it), records included."""
        body = self.body
        yield from ((self.names[w.argument], w.role) for w in body.waits)
        yield from (
            (self.names[a], "consumer") for a in (*(p.argument for p in body.reads), *body.chooses)
        )

    @property
    def written(self) -> str | None:
        """The channel that the row writes."""
        return None if self.body.out is None else self.names[self.body.out]

    @property
    def fills_channels(self) -> set[str]:
        """The channels that the row writes, in one case or another."""
        body = self.body
        arguments = [body.out, body.finishes.argument if body.finishes else None]
        return {self.names[a] for a in arguments if a is not None}

    def __str__(self) -> str:
        where = "" if self.device is None else f" of GPU {self.device}"
        return f"row {self.number} ({self.body.name}){where}"


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
    location: str = _place()

    def __str__(self) -> str:
        return f"channel {self.name}"


@dataclass(frozen=True)
class State:
    """heads × positions × size values; positions are whole pages of `page`, 0 = one piece a sequence."""

    name: str
    heads: int
    positions: int
    size: int
    page: int = 0
    location: str = _place()

    def __str__(self) -> str:
        return f"state {self.name}"


@dataclass(frozen=True)
class Ring:
    """slots and windows in slots."""

    name: str
    slots: int
    slot_bytes: int
    window: int
    fed_window: int
    location: str = _place()

    def __str__(self) -> str:
        return f"ring {self.name}"


@dataclass(frozen=True)
class Region:
    """Bytes [first, last) of a memory, and the alignment they need."""

    memory: str
    name: str
    first: int
    last: int
    alignment: int = 1
    location: str = _place()

    def __str__(self) -> str:
        return f"{self.name} in {self.memory}"


@dataclass(frozen=True)
class Problem:
    """A device's schedule, `index` of `devices` that are proved together.

    warps: consumer arrivals that free a slot. tokens, sequences: most a step; page: rows of a KV page. context: of a
    sequence. roles: warps by role. memories: bytes of each. needs: what the kernel takes of the target; limits: what
    that has, by the same names (tileir/scheduling/capacity.py).
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
    vocabulary: int = 0
    index: int = 0
    devices: int = 1
    sequences: int = 1
    page: int = 0
    roles: dict[str, int] = field(default_factory=dict)
    memories: dict[str, int] = field(default_factory=dict)
    needs: dict[str, int] = field(default_factory=dict)
    limits: dict[str, int] = field(default_factory=dict)
    location: str = _place()

    def __str__(self) -> str:
        return f"GPU {self.index}"


def fault(
    what: str, missing: str, *offenders: Located, sm: int = 0, step: int = 1
) -> ScheduleError:
    """The error of a proof that fails: what, an example (row, SM, step), the edge that is missing, where offenders are.

    offenders: the first one's place is the error's.
    """
    row = next((f"{o}, " for o in offenders if isinstance(o, Row)), "")
    places = {str(o): o.location for o in offenders}
    stand = [f"{who} is at {place}" for who, place in places.items() if place and len(places) > 1]
    return ScheduleError(
        f"{what}; for example {row}SM {sm}, step {step}",
        location=offenders[0].location,
        hint="\n  ".join([f"missing: {missing}", *stand]),
    )


class Writers:
    """Which rows write a GPU's copy of a channel: its own, of a channel of level "peer" those of all GPUs."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self._own: dict[tuple[int, str], list[Row]] = {}
        self._all: dict[str, list[Row]] = {}
        for problem in problems:
            for row in problem.rows:
                if row.written is not None:
                    self._own.setdefault((problem.index, row.written), []).append(row)
                    self._all.setdefault(row.written, []).append(row)

    def into(self, problem: Problem, name: str) -> list[Row]:
        """The rows that write the GPU's copy."""
        if problem.channels[name].level == "peer":
            return self.anywhere(name)
        return self._own.get((problem.index, name), [])

    def anywhere(self, name: str) -> list[Row]:
        """The rows of all GPUs that write some copy."""
        return self._all.get(name, [])
