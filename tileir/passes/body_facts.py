"""What an engine.body does, as the plain data that proofs need: computed once for all its rows."""

from collections.abc import Callable
from math import prod
from typing import Any

from tileir.dialect.attributes import get, name_of, shape_of, static_shape, walk
from tileir.dialect.tile import BLOCK_K, HALF_ROWS, padded
from tileir.scheduling.problem import Append, Body, Places, Stream, Whole

Facts = dict[str, Any]


def describe(op: Any) -> Body:
    """The facts of an engine.body."""
    arguments = list(op.operation.regions[0].blocks[0].arguments)
    roles = {get(o, "sym_name"): o for o in walk(op, "engine.role")}
    kind = get(op, "kind")
    facts = KINDS[kind](op, arguments.index)
    # Maps and attends have no ranges; a select runs on every SM and has no tasks.
    facts.setdefault("space", facts.get("tasks", 0))
    streams = [
        _stream(fill, role, arguments.index)
        for role, region in roles.items()
        for fill in walk(region, "engine.fill")
    ]
    drains = [
        _stream(o, "consumer", arguments.index)
        for o in walk(op, "engine.multiply", "engine.attend")
    ]
    program = roles["consumer"].operation.regions[0].blocks[0]
    return Body(
        name=get(op, "sym_name"),
        kind=kind,
        fills=tuple(streams),
        drains=tuple(drains),
        released=tuple(get(op, "release", [])),
        acquired=tuple(get(op, "acquire", [])),
        program=tuple(name_of(o).removeprefix("engine.") for o in program),
        **facts,
    )


def _stream(op: Any, role: str, number: Callable[[Any], int]) -> Stream:
    """What a fill puts into its ring, or a multiply or attend takes from it."""
    ring = get(op, "ring")
    if name_of(op) == "engine.multiply" or get(op, "source") == "tape":
        return Stream(ring, role, get(op, "tiles"), blocks=padded(get(op, "k")) // BLOCK_K)
    states = [v for v in op.operands if len(shape_of(v)) == 3]
    splits = get(op, "splits")
    return Stream(
        ring,
        role,
        get(op, "kv_heads") * splits,
        splits=splits,
        head_size=get(op, "head_size"),
        window=get(op, "window"),
        arguments=tuple(number(v) for v in states),
    )


def _contract(op: Any, number: Callable[[Any], int]) -> Facts:
    (receive,), (emit,) = walk(op, "engine.receive"), walk(op, "engine.emit")
    out = number(emit.operands[0])
    reads, writes, appends, first = [], [], [], 0
    for segment in walk(emit, "tile.segment"):
        made = _Segment(segment, first, number)
        first += made.tiles
        reads += made.reads()
        writes += made.writes(out)
        appends += made.appends()
    return {
        "tasks": get(emit, "tiles"),
        "space": first,
        "out": out,
        "waits": (Whole(number(receive.operands[0]), 0, get(receive, "k")),),
        "reads": tuple(reads),
        "writes": tuple(writes),
        "appends": tuple(appends),
        "records": bool(list(walk(emit, "tile.candidate"))),
    }


class _Segment:
    """The places of a tile.segment whose first tile is `first` of the space."""

    def __init__(self, op: Any, first: int, number: Callable[[Any], int]) -> None:
        self.op, self.first, self.number = op, first, number
        self.tiles, self.inner, self.step, self.outer = (
            get(op, n) for n in ("tiles", "inner", "step", "outer")
        )

    def _places(self, argument: int, bases: list[int]) -> Places:
        return Places(
            argument,
            self.first,
            self.tiles,
            self.inner,
            self.step,
            self.outer,
            tuple(bases),
            HALF_ROWS,
        )

    def reads(self) -> list[Places]:
        """Of the residual."""
        found = walk(self.op, "tile.residual")
        return [self._places(self.number(o.operands[2]), get(o, "bases")) for o in found]

    def writes(self, out: int) -> list[Places]:
        """Into the stage's channel."""
        return [self._places(out, get(o, "bases")) for o in walk(self.op, "tile.publish")]

    def appends(self) -> list[Append]:
        """Into states, with the places of the same values in the stage's channel."""
        published = {
            value: base
            for o in walk(self.op, "tile.publish")
            for value, base in zip(o.operands, get(o, "bases"), strict=True)
        }
        out = []
        for o in walk(self.op, "tile.append"):
            *values, state = o.operands
            places = self._places(self.number(state), get(o, "bases"))
            out.append(Append(places, tuple(published.get(value) for value in values)))
        return out


def _attend(op: Any, number: Callable[[Any], int]) -> Facts:
    """A task of (kv head, split) writes its split's partial result for each query head of the kv head."""
    (attend,) = walk(op, "engine.attend")
    qkv, *_, partial = attend.operands
    heads, kv, size, splits = (get(attend, n) for n in ("heads", "kv_heads", "head_size", "splits"))
    group, row = heads // kv, size + 2
    bases = tuple(g * splits * row for g in range(group))
    q, *own = get(attend, "offsets")
    lengths = zip((q, *own), (heads, kv, kv), strict=True)
    return {
        "tasks": kv * splits,
        "out": number(partial),
        "waits": tuple(Whole(number(qkv), a, a + n * size) for a, n in lengths),
        "writes": (
            Places(number(partial), 0, kv * splits, splits, row, group * splits * row, bases, row),
        ),
        "own": tuple(own),
    }


def _map(op: Any, number: Callable[[Any], int]) -> Facts:
    """A row of a lookup is a pair of values, one of a combine a head."""
    (made,) = walk(op, "engine.map")
    rows, out = get(made, "rows"), number(made.operands[0])
    combines = list(walk(made, "tile.combine"))
    partials = [static_shape(o.operands[0])[1:] for o in combines]
    width = partials[0][-1] - 2 if partials else 2
    return {
        "tasks": rows,
        "out": out,
        "waits": tuple(
            Whole(number(o.operands[0]), 0, prod(shape))
            for o, shape in zip(combines, partials, strict=True)
        ),
        "writes": (Places(out, 0, rows, rows, width, 0, (0,), width),),
    }


def _select(op: Any, number: Callable[[Any], int]) -> Facts:
    (select,) = walk(op, "engine.select")
    return {"chooses": tuple(number(v) for v in select.operands)}


KINDS: dict[str, Callable[[Any, Callable[[Any], int]], Facts]] = {
    "contract": _contract,
    "attend": _attend,
    "map": _map,
    "select": _select,
}
