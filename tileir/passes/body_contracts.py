"""What an engine.body of a contract does: where its tiles read, write and append."""

from collections.abc import Callable
from typing import Any

from tileir.dialect.attributes import get, walk
from tileir.dialect.tile import HALF_ROWS, joins_of
from tileir.passes.dataflow import channel_size
from tileir.scheduling.problem import OwnRow, Places, Whole


def describe_contract(op: Any, number: Callable[[Any], int]) -> dict[str, Any]:
    """A tile reads x, or its group's part of it, and writes what its segment says."""
    names = ("engine.receive", "engine.multiply", "engine.emit")
    receive, multiply, emit = (next(walk(op, name)) for name in names)
    source = get(multiply, "source")
    groups, parts = get(receive, "groups", 1), get(multiply, "k_parts", 1)
    slots = groups if source == "experts" else 1
    out = emit.operands[0]
    waits, reads = [], list[Places]()
    writes, appends, offers, first = [], [], [], 0
    for segment in walk(emit, "tile.segment"):
        made = _Segment(segment, first, number)
        first += made.tiles
        reads += made.reads()
        writes += made.writes(number(out), slots, channel_size(out) // slots)
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
        "k": k // parts if k % parts == 0 else k,
        "k_parts": parts,
        "joins": tuple(joins_of(o) for o in walk(emit, "tile.segment")),
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


def _own_keys(op: Any, multiply: Any, number: Callable[[Any], int]) -> OwnRow:
    """A step's own rows that are weights."""
    (fill,) = walk(op, "engine.fill_rows")
    size, own = get(multiply, "k"), number(multiply.operands[0])
    return OwnRow(
        Places(number(fill.operands[0]), 0, 1, 1, 0, 0, (0,), size),
        Places(own, 0, 1, 1, 0, 0, (get(multiply, "own"),), size),
    )


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
        return [self._places(self.number(list(o.operands)[-1]), get(o, "bases")) for o in found]

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
