"""What an engine.body of an attention does: its queries, its own rows and its partial results."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from tileir.dialect.attributes import get, name_of, static_shape, walk
from tileir.dialect.tile_attend import statements_on
from tileir.scheduling.problem import Alone, OwnRow, Places

# What a statement on a piece of attention says beside its operands.
_FACTS = ("eps", "unit_offset", "first", "style")


def describe_attend(op: Any, number: Callable[[Any], int]) -> dict[str, Any]:
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
        alone = alone_of(attend)
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


def alone_of(op: Any) -> Alone:
    """Of an attend or a combine."""
    return Alone(get(op, "alone"), get(op, "window"), get(op, "splits"), get(op, "least", 0))


def _appended(
    attend: Any, own: tuple[OwnRow, ...], number: Callable[[Any], int]
) -> Iterator[OwnRow]:
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
    piece: Any, number: Callable[[Any], int]
) -> Iterator[tuple[str, tuple[float | str, ...], tuple[int, ...]]]:
    """What a piece's statements make, storing aside."""
    for o in statements_on(piece):
        if name_of(o) != "tile.store":
            facts = tuple(get(o, name) for name in _FACTS if name in o.operation.attributes)
            yield name_of(o), facts, tuple(number(v) for v in list(o.operation.operands)[1:])


def _own_rows(attend: Any, states: list[Any], number: Callable[[Any], int]) -> tuple[OwnRow, ...]:
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
