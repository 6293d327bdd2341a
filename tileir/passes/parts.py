"""What a GPU does of a stage: its tiles, groups, experts, rows or values of K (docs/ir.md, GPUs)."""

from math import prod
from typing import Any

from tileir.dialect.attributes import get, name_of, put, static_shape, walk
from tileir.dialect.tile import source_of

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
    for name in ("share", "parts"):
        if name in part.attributes:
            del part.attributes[name]
    if name_of(op) == "tile.contract" and source_of(op) == "experts":
        put(part, experts=[0, _experts(op)])
    share, place = get(op, "share", "all"), devices.index(device)
    cut = {"rows": _rows, "sum": _values}.get(share)
    if cut is not None and not cut(part, get(op, "parts"), place):
        part.erase()
        return None
    return part


def _experts(op: Any) -> int:
    """How many experts a contract's routing chooses from."""
    (statement,) = walk(op, "tile.experts")
    owner = statement.operands[0].owner
    return int(get(owner, "experts"))


def _rows(part: Any, parts: Any, place: int) -> bool:
    """Keep a range of the stage's tasks; whether anything is left."""
    if name_of(part) == "tile.contract" and source_of(part) == "tape":
        return _tiles(part, parts, place)
    first, behind = parts[place], parts[place + 1]
    match name_of(part):
        case "tile.contract":
            put(part, experts=[first, behind])
        case "tile.attend":
            splits = get(part, "splits")
            put(part, tile_base=first * splits, tasks=(behind - first) * splits)
        case "tile.map":
            put(part, tile_base=first, rows=behind - first)
    return bool(behind > first)


def _tiles(part: Any, parts: list[list[int]], place: int) -> bool:
    """Cut a contract's segments to a GPU's tiles of each; of these, to the slice [number, slices] that it is."""
    segments = list(walk(part, "tile.segment"))
    held = [(bounds[place], bounds[place + 1]) for bounds in parts]
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
    """Tiles [first, behind) of a segment as a segment of their own."""
    inner, step, outer = (get(segment, n) for n in ("inner", "step", "outer"))
    shift = first // inner * outer
    if first % inner:
        assert first // inner == (behind - 1) // inner, "a cut within several heads"
        shift += first % inner * step
        put(segment, inner=behind - first)
    lo, lo_row, hi, hi_row = get(segment, "sources")
    put(segment, tiles=behind - first, sources=[lo, lo_row + shift, hi, hi_row + shift])
    for op in walk(segment, *BASED):
        put(op, bases=[base + shift for base in get(op, "bases")])


def _values(part: Any, parts: list[int], place: int) -> bool:
    """Keep a range of K; the raw sums go into this GPU's part of the channel."""
    first, behind = parts[place], parts[place + 1]
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
    held = [p for p in range(place) if parts[p + 1] > parts[p]]
    shape = static_shape(part.results[0])[1:]
    shift = len(held) * prod(shape[1:])
    for op in walk(part, "tile.publish"):
        put(op, bases=[base + shift for base in get(op, "bases")])
    return True
