"""What a GPU does of a stage: its tiles, groups, experts, rows or values of K (docs/ir.md, GPUs)."""

from math import prod
from typing import Any

from tileir.dialect.attributes import get, located, name_of, put, static_shape, walk
from tileir.dialect.tile import source_of
from tileir.errors import TileirError
from tileir.mlir import ir

BASED = (
    "tile.bias",
    "tile.residual",
    "tile.append",
    "tile.publish",
    "tile.logits",
    "tile.candidate",
)


def part_of(op: Any, device: int) -> Any | None:
    """A detached copy of a stage that does what GPU `device` does of it; None if that is nothing."""
    devices = get(op, "devices")
    if device not in devices:
        return None
    part = op.clone(ip=False)
    for name in ("share", "parts", "units"):
        if name in part.attributes:
            del part.attributes[name]
    if name_of(op) == "tile.contract" and source_of(op) == "experts":
        put(part, experts=[0, _experts(op)])
    share, place = get(op, "share", "all"), devices.index(device)
    cut = {"rows": _rows, "sum": _values}.get(share)
    if cut is not None and not cut(part, op, place):
        part.erase()
        return None
    return part


def bounds_of(op: Any, total: int) -> list[int]:
    """Where the GPUs' ranges of `total` things begin and end: `parts` of `units`, by default the things themselves.

    Raises TileirError if a bound lies inside a thing.
    """
    units = get(op, "units", total)
    places = [total * part for part in get(op, "parts")]
    if any(place % units for place in places):
        raise TileirError(
            f"{total} of {name_of(op)} in {units} equal units",
            location=located(op),
            hint="choose another placement, or another number of GPUs",
        )
    return [place // units for place in places]


def _experts(op: Any) -> int:
    """How many experts a contract's routing chooses from."""
    (statement,) = walk(op, "tile.experts")
    owner = statement.operands[0].owner
    return int(get(owner, "experts"))


def _rows(part: Any, op: Any, place: int) -> bool:
    """Keep a range of the stage's tasks; whether anything is left."""
    match name_of(op):
        case "tile.contract" if source_of(op) == "tape":
            return _tiles(part, op, place)
        case "tile.contract":
            first, behind = bounds_of(op, _experts(op))[place : place + 2]
            put(part, experts=[first, behind])
        case "tile.attend":
            first, behind = bounds_of(op, get(op, "groups"))[place : place + 2]
            splits = get(part, "splits")
            put(part, tile_base=first * splits, tasks=(behind - first) * splits)
        case _:
            first, behind = bounds_of(op, get(op, "rows"))[place : place + 2]
            put(part, tile_base=first, rows=behind - first, space=get(op, "rows"))
    return bool(behind > first)


def _tiles(part: Any, op: Any, place: int) -> bool:
    """Cut a contract's segments to a GPU's tiles of each; of these, to the slice [number, slices] that it is."""
    segments = list(walk(part, "tile.segment"))
    bounds = [bounds_of(op, get(segment, "tiles")) for segment in segments]
    held = [(b[place], b[place + 1]) for b in bounds]
    total = sum(behind - first for first, behind in held)
    number, slices = get(part, "slice", [0, 1])
    low, high, at, left = number * total // slices, (number + 1) * total // slices, 0, 0
    if "slice" in part.attributes:
        del part.attributes["slice"]
    _groups(part, held)
    for segment, (first, behind) in zip(segments, held, strict=True):
        begin, end = first + max(0, low - at), first + min(behind - first, high - at)
        at += behind - first
        if end <= begin:
            segment.operation.erase()
            continue
        inner = get(segment, "inner")
        head = -(-begin // inner) * inner
        if begin < head < end:
            # The end of a head, and what lies behind it, are segments of their own.
            with ir.InsertionPoint(segment):
                _cut(segment.operation.clone(), begin, head)
            _cut(segment, head, end)
        else:
            _cut(segment, begin, end)
        left += end - begin
    put(part, tile_base=0, tiles=left)
    return left > 0


def _groups(part: Any, held: list[tuple[int, int]]) -> None:
    """Of a contract of groups, those that the tiles belong to, and where they begin in x."""
    groups = get(part, "groups")
    if groups == 1:
        return
    ((first, behind),) = held
    each = sum(get(o, "tiles") for o in walk(part, "tile.segment")) // groups
    assert first % each == behind % each == 0, "a cut within a group"
    offset, stride = get(part, "x")
    put(part, groups=max(1, (behind - first) // each), x=[offset + first // each * stride, stride])


def _cut(segment: Any, first: int, behind: int) -> None:
    """Tiles [first, behind) of a segment as a segment of their own: of one head, or from a head's first on."""
    inner, step, outer = (get(segment, n) for n in ("inner", "step", "outer"))
    shift = first // inner * outer
    if first % inner:
        within = first % inner * step
        shift += within
        put(segment, inner=behind - first)
        for rope in walk(segment, "tile.rope"):
            put(rope, first=get(rope, "first", 0) - within)
    lo, lo_row, hi, hi_row = get(segment, "sources")
    put(segment, tiles=behind - first, sources=[lo, lo_row + shift, hi, hi_row + shift])
    for op in walk(segment, *BASED):
        put(op, bases=[base + shift for base in get(op, "bases")])


def _values(part: Any, op: Any, place: int) -> bool:
    """Keep a range of K; the raw sums go into this GPU's part of the channel."""
    bounds = bounds_of(op, get(op, "k"))
    first, behind = bounds[place : place + 2]
    if behind <= first:
        return False
    offset, stride = get(part, "x", [0, 0])
    views = []
    for view in get(part, "views"):
        rank = (len(view) - 1) // 2
        sizes, strides = view[1 : 1 + rank], view[1 + rank :]
        begin = view[0] + first * strides[-1]
        views.append([begin, *sizes[:-1], behind - first, *strides])
    put(part, k=behind - first, x=[offset + first, stride], views=views)
    before = sum(bounds[p + 1] > bounds[p] for p in range(place))
    shift = before * prod(static_shape(part.results[0])[2:])
    for inner in walk(part, "tile.publish"):
        put(inner, bases=[base + shift for base in get(inner, "bases")])
    return True
