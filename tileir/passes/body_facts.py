"""What an engine.body does, as the plain data that proofs need: computed once for all its rows."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from math import prod
from typing import Any

from tileir.dialect.attributes import get, located, name_of, place_of, static_shape, walk
from tileir.dialect.tile import BLOCK_K, HALF_ROWS, padded
from tileir.dialect.tile_attend import statements_on
from tileir.scheduling.problem import Alone, Body, Choice, OwnRow, Places, Stream, Whole, fault

Facts = dict[str, Any]
Number = Callable[[Any], int]
# What a statement on a piece of attention says beside its operands.
_FACTS = ("eps", "unit_offset", "first", "style")
# A kind's operations of the consumers, in order, barriers aside.
_PROGRAMS: dict[str, list[tuple[str, ...]]] = {
    "contract": [("receive", "multiply", "emit")],
    "attend": [("attend",)],
    "map": [("map",)],
    "select": [("select",), ("choose",)],
}
FILLS = ("engine.fill", "engine.fill_rows", "engine.fill_gathered")


def describe(op: Any, *, text: bool = False) -> Body:
    """The facts of an engine.body; with its text, to be compared with other GPUs'. Raises ScheduleError for operations
    that its kind has not.
    """
    number = list(op.operation.regions[0].blocks[0].arguments).index
    roles = {get(o, "sym_name"): o for o in walk(op, "engine.role")}
    kind = get(op, "kind")
    blocks = list(roles["consumer"].operation.regions[0].blocks)
    program = [(name_of(o).removeprefix("engine."), located(o)) for block in blocks for o in block]
    _check_program(op, [name for name, _ in program])
    facts = KINDS[kind](op, number)
    # A select runs on every SM and has no tasks.
    facts.setdefault("space", facts.get("tasks", 0))
    fills = [
        _stream(fill, role, number)
        for role, region in roles.items()
        for fill in walk(region, *FILLS)
    ]
    drains = [_drain(o, fills, number) for o in walk(op, "engine.multiply", "engine.attend")]
    awaited = [
        Whole(s.of, 0, _values(_argument(op, s.of)), s.role)
        for s in (*fills, *drains)
        if s.of is not None
    ]
    return Body(
        name=get(op, "sym_name"),
        kind=kind,
        fills=tuple(fills),
        drains=tuple(drains),
        released=tuple(get(op, "release", [])),
        acquired=tuple(get(op, "acquire", [])),
        program=tuple(name for name, _ in program),
        places=dict(program),
        text=_text(op) if text else "",
        location=located(op),
        **(facts | {"waits": (*facts.get("waits", ()), *awaited)}),
    )


def _check_program(op: Any, program: list[str]) -> None:
    """The kind's operations are there; rows that are weights are filled, and experts are chosen."""
    body = Body(get(op, "sym_name"), get(op, "kind"), location=located(op))
    found = tuple(name for name in program if name != "barrier")
    if found not in _PROGRAMS[body.kind]:
        wanted = " or ".join(", ".join(names) for names in _PROGRAMS[body.kind])
        raise fault(
            f"{body} of kind {body.kind!r} has the operations {', '.join(found) or 'none'}",
            f"{wanted}, in this order",
            body,
        )
    for multiply in walk(op, "engine.multiply"):
        source, fills = get(multiply, "source"), [name_of(o) for o in walk(op, *FILLS)]
        if (source == "experts") != (get(multiply, "experts") is not None) or (
            (source == "rows") != ("engine.fill_rows" in fills)
        ):
            raise fault(
                f"{body} multiplies by {source}, of which {', '.join(fills) or 'nothing'} fills the ring",
                "one source of weights for loaders and consumers",
                body,
            )


def _text(op: Any) -> str:
    """The body as IR, without its name; values are numbered in order, whatever stands around it."""
    text = str(op.operation.get_asm(assume_verified=True)).rpartition("sym_name = ")[0]
    names: dict[str, str] = {}
    return re.sub(r"%\w+", lambda m: names.setdefault(m[0], f"%{len(names)}"), text)


def _argument(op: Any, number: int) -> Any:
    return op.operation.regions[0].blocks[0].arguments[number]


def _values(value: Any) -> int:
    """Of a token."""
    return prod(static_shape(value)[1:])


# ---- streams


def _stream(op: Any, role: str, number: Number) -> Stream:
    """What a fill puts into its ring."""
    if name_of(op) == "engine.fill":
        return _weights(op, role, number)
    states = [v for v in op.operands if place_of(v) == "state"]
    chosen = [number(v) for v in op.operands if place_of(v) == "channel"]
    return _old_rows(op, role, tuple(map(number, states)), *chosen)


def _drain(op: Any, fills: list[Stream], number: Number) -> Stream:
    """What the consumers take from a ring."""
    if name_of(op) == "engine.attend":
        states = tuple(number(v) for v in list(op.operands)[1:])
        gathers = (number(o.operands[0]) for o in walk(op, "tile.gather"))
        return _old_rows(op, "consumer", states, *gathers)
    if get(op, "source") == "rows":
        # Rows that are weights have no name among the operands: they are what the loader fills.
        filled = tuple(a for stream in fills for a in stream.arguments)
        splits = get(op, "splits")
        return Stream(
            get(op, "ring"),
            "consumer",
            splits,
            splits=splits,
            head_size=get(op, "k"),
            k=get(op, "k"),
            arguments=filled,
            location=located(op),
        )
    return _weights(op, "consumer", number)


def _weights(op: Any, role: str, number: Number) -> Stream:
    """Tiles of the tape, or of the experts that an operand chose."""
    of = [number(v) for v in op.operands]
    experts = get(op, "experts")
    return Stream(
        get(op, "ring"),
        role,
        get(op, "tiles"),
        blocks=padded(get(op, "k")) // BLOCK_K,
        k=get(op, "k"),
        of=of[0] if of else None,
        experts=None if experts is None else (experts[0], experts[1]),
        location=located(op),
    )


def _old_rows(op: Any, role: str, states: tuple[int, ...], of: int | None = None) -> Stream:
    splits, groups = get(op, "splits"), get(op, "groups")
    return Stream(
        get(op, "ring"),
        role,
        get(op, "tasks", groups * splits),
        splits=splits,
        groups=groups,
        heads=get(op, "kv_heads"),
        head_size=get(op, "head_size"),
        window=get(op, "window"),
        alone=get(op, "alone"),
        least=get(op, "least", 0),
        arguments=states,
        of=of,
        location=located(op),
    )


# ---- contracts


def _contract(op: Any, number: Number) -> Facts:
    names = ("engine.receive", "engine.multiply", "engine.emit")
    receive, multiply, emit = (next(walk(op, name)) for name in names)
    source = get(multiply, "source")
    groups = get(receive, "groups", 1)
    slots = groups if source == "experts" else 1
    out = emit.operands[0]
    waits, reads = [], list[Places]()
    writes, appends, offers, first = [], [], [], 0
    for segment in walk(emit, "tile.segment"):
        made = _Segment(segment, first, number)
        first += made.tiles
        reads += made.reads()
        writes += made.writes(number(out), slots, _values(out) // slots)
        appends += made.appends(number(out))
        offers += made.offers(number(out))
    x, at, stride, k = (
        number(receive.operands[0]),
        get(receive, "offset", 0),
        get(receive, "stride", 0),
        get(receive, "k"),
    )
    if source == "tape" and groups > 1:
        # An SM receives the groups of its tiles.
        reads.append(Places(x, 0, first, max(1, first // groups), 0, stride, (at,), k))
    else:
        begins = range(at, at + groups * stride, stride) if stride not in (0, k) else [at]
        whole = k + (groups - 1) * stride if stride in (0, k) else k
        slot = source == "experts" and stride > 0
        if slot:
            begins, whole = range(at, at + groups * stride, stride), k
        waits = [
            Whole(x, begin, begin + whole, slot=j if slot else None)
            for j, begin in enumerate(begins)
        ]
    for o in walk(emit, "tile.relu_sum"):
        offset = get(o, "offset")
        waits.append(Whole(number(o.operands[2]), offset, offset + groups))
    facts = {
        "tasks": get(emit, "tiles"),
        "space": get(emit, "space"),
        "tiles": first,
        "sums": get(multiply, "tiles"),
        "k": k,
        "out": number(out),
        "source": source,
        "groups": groups if source == "tape" else 1,
        "slots": slots,
        "waits": tuple(waits),
        "reads": tuple(reads),
        "writes": tuple(writes),
        "appends": tuple(appends),
        "records": bool(offers),
        "offers": tuple(offers),
    }
    if source == "rows":
        facts["own"] = (_own_keys(op, multiply, number),)
    return facts


def _own_keys(op: Any, multiply: Any, number: Number) -> OwnRow:
    """A step's own rows that are weights."""
    (fill,) = walk(op, "engine.fill_rows")
    size, own = get(multiply, "k"), number(multiply.operands[0])
    return OwnRow(
        Places(number(fill.operands[0]), 0, 1, 1, 0, 0, (0,), size),
        Places(own, 0, 1, 1, 0, 0, (get(multiply, "own"),), size),
    )


class _Segment:
    """The places of a tile.segment whose first tile is `first` of the space."""

    def __init__(self, op: Any, first: int, number: Number) -> None:
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

    def writes(self, out: int, slots: int, size: int) -> list[Places]:
        """Into the stage's channel, `size` values for each of a token's slots."""
        found = [get(o, "bases") for o in walk(self.op, "tile.publish")]
        return [self._places(out, [j * size + b for j in range(slots) for b in f]) for f in found]

    def offers(self, out: int) -> list[Places]:
        """Of the vocabulary, for the SM's record."""
        return [self._places(out, get(o, "bases")) for o in walk(self.op, "tile.candidate")]

    def appends(self, out: int) -> list[OwnRow]:
        """Into states, with the places of the same values in the stage's channel."""
        published = {
            value: base
            for o in walk(self.op, "tile.publish")
            for value, base in zip(o.operands, get(o, "bases"), strict=True)
        }
        found = []
        for o in walk(self.op, "tile.append"):
            *values, state = o.operands
            places = self._places(self.number(state), get(o, "bases"))
            there = [published[value] for value in values if value in published]
            same = self._places(out, there) if len(there) == len(values) else None
            found.append(OwnRow(places, same))
        return found


# ---- attention


def _attend(op: Any, number: Number) -> Facts:
    """A task of (group, split) writes its split's partial result for each query head of the group."""
    (attend,) = walk(op, "engine.attend")
    partial, *states = attend.operands
    heads, groups, value, splits = (
        get(attend, n) for n in ("heads", "groups", "value_size", "splits")
    )
    shared, row, space = heads // groups, value + 2, groups * splits
    bases = tuple(h * splits * row for h in range(shared))
    reads, own = [], _own_rows(attend, states, number)
    for o in walk(attend, "tile.query"):
        offset, stride, size = (get(o, n) for n in ("offset", "stride", "size"))
        at = tuple(offset + h * stride for h in range(shared))
        channel = number(o.operands[0])
        reads.append(Places(channel, 0, space, splits, 0, shared * stride, at, size))
    # A group's kv head's rows, of every split: whoever has split 0 waits for them.
    share = splits * groups // get(attend, "kv_heads")
    for piece in (o.published for o in own):
        assert piece is not None
        facts = (share, 0, piece.step, piece.bases, piece.width)
        reads.append(Places(piece.argument, 0, space, *facts))
    finishes, alone = None, None
    for o in walk(attend, "tile.finish"):
        # One piece a group: its first split's.
        whole = shared * value
        tasks = (0, space, splits, 0)
        finishes = Places(number(o.operands[0]), *tasks, whole, (0,), whole, splits)
        alone = _alone(attend)
    return {
        "tasks": get(attend, "tasks", space),
        "space": space,
        "out": number(partial),
        "alone": alone,
        "finishes": finishes,
        "reads": tuple(reads),
        "writes": (
            Places(number(partial), 0, space, splits, row, shared * splits * row, bases, row),
        ),
        "own": own,
        "appends": tuple(_appended(attend, own, number)),
    }


def _alone(op: Any) -> Alone:
    """Of an attend or a combine."""
    return Alone(get(op, "alone"), get(op, "window"), get(op, "splits"), get(op, "least", 0))


def _appended(attend: Any, own: tuple[OwnRow, ...], number: Number) -> Iterator[OwnRow]:
    """What attention's own keys and values store: a kv head's row by the first of its tasks."""
    splits, groups, kv = (get(attend, n) for n in ("splits", "groups", "kv_heads"))
    share = splits * groups // kv
    tasks = {"tasks": splits * groups, "inner": share, "step": 0, "every": share}
    pieces = (*walk(attend, "tile.key"), *walk(attend, "tile.value"))
    for piece, link in zip(pieces, own, strict=True):
        for o in (o for o in statements_on(piece) if name_of(o) == "tile.store"):
            assert link.published is not None
            to = replace(link.places, outer=link.places.step, **tasks)
            to = replace(to, argument=number(o.operands[1]), bases=(get(o, "offset"),))
            yield OwnRow(to, replace(link.published, outer=link.published.step, **tasks), link.by)


def _made_by(
    piece: Any, number: Number
) -> Iterator[tuple[str, tuple[float | str, ...], tuple[int, ...]]]:
    """What a piece's statements make, storing aside."""
    for o in statements_on(piece):
        if name_of(o) != "tile.store":
            facts = tuple(get(o, name) for name in _FACTS if name in o.operation.attributes)
            yield name_of(o), facts, tuple(number(v) for v in list(o.operation.operands)[1:])


def _own_rows(attend: Any, states: list[Any], number: Number) -> tuple[OwnRow, ...]:
    """Where attention takes the own rows of its states: pieces of keys and of values, one behind the other."""
    kv, found = get(attend, "kv_heads"), []
    for kind, state in zip(("tile.key", "tile.value"), states, strict=False):
        first, size = 0, static_shape(state)[2]
        for o in walk(attend, kind):
            offset, stride, width = (get(o, n) for n in ("offset", "stride", "size"))
            places = Places(number(state), 0, kv, kv, size, 0, (first,), width)
            there = Places(number(o.operands[0]), 0, kv, kv, stride, 0, (offset,), width)
            found.append(OwnRow(places, there, tuple(_made_by(o, number))))
            first += width
    return tuple(found)


# ---- maps and selects


def _map(op: Any, number: Number) -> Facts:
    """A row reads and makes as many values as its body says; one of a lookup is a pair, of a combine a head."""
    (made,) = walk(op, "engine.map")
    rows, out, region = get(made, "rows"), made.operands[0], made.operation.regions[0].blocks[0]
    loads = [*walk(made, "tile.load"), *walk(made, "tile.sum")]
    combines = list(walk(made, "tile.combine"))
    lookups = list(walk(made, "tile.lookup"))
    space = get(made, "space", rows)
    # One whole row ends in zeros up to whole tiles.
    row = _values(out) // space
    width = get(loads[0], "size") if loads else row

    def places(argument: Any, base: int, step: int, size: int, *more: int) -> Places:
        return Places(number(argument), 0, space, space, step, 0, (base, *more), size)

    reads = []
    for o in loads:
        parts = static_shape(o.operands[0])[1] if name_of(o) == "tile.sum" else 1
        size, offset = get(o, "size"), get(o, "offset", 0)
        part = _values(o.operands[0]) // parts
        more = (offset + p * part for p in range(1, parts))
        reads.append(places(o.operands[0], offset, size, size, *more))
    for o in combines:
        size = prod(static_shape(o.operands[0])[2:])
        reads.append(places(o.operands[0], 0, size, size))
    alone = None
    for o in combines:
        if get(o, "alone"):
            alone = _alone(o)
    (yielded,) = list(region)[-1].operands
    appends = []
    for o in walk(made, "tile.store"):
        value, state = o.operands
        to = places(state, get(o, "offset"), static_shape(state)[2], width)
        appends.append(OwnRow(to, places(out, 0, row, width) if value == yielded else None))
    return {
        "tasks": rows,
        "space": space,
        "out": number(out),
        "reads": tuple(reads),
        "writes": (places(out, 0, row, row),),
        "appends": tuple(appends),
        "alone": alone,
        "chosen": any(get(o, "of") == "choice" for o in lookups),
    }


def _select(op: Any, number: Number) -> Facts:
    """Every SM makes the token; a choice among scores is made for each token, wholly."""
    for o in walk(op, "engine.select"):
        return {
            "chooses": tuple(number(v) for v in o.operands),
            "makes": get(o, "makes", "token"),
        }
    (choose,) = walk(op, "engine.choose")
    scores, out = choose.operands
    kind, k = get(choose, "kind"), get(choose, "k")
    among = get(choose, "experts") if kind == "route" else _values(scores)
    read = among * (2 if get(choose, "score") == "sigmoid" else 1)
    words = k * (2 if kind == "route" else 1)
    return {
        "tasks": 1,
        "out": number(out),
        "waits": (Whole(number(scores), 0, _values(scores)),),
        "writes": (Places(number(out), 0, 1, 1, 0, 0, (0,), words),),
        "choice": Choice(kind, number(scores), k, among, read),
    }


KINDS: dict[str, Callable[[Any, Number], Facts]] = {
    "contract": _contract,
    "attend": _attend,
    "map": _map,
    "select": _select,
}
