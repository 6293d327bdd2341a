"""What an engine.body of a map or of a select does: what its rows, or its choices, read and make."""

from collections.abc import Callable
from math import prod
from typing import Any

from tileir.dialect.attributes import get, name_of, static_shape, walk
from tileir.passes.body_attention import alone_of
from tileir.passes.dataflow import channel_size
from tileir.scheduling.problem import Choice, OwnRow, Places, Whole


def describe_map(op: Any, number: Callable[[Any], int]) -> dict[str, Any]:
    """A row reads and makes as many values as its body says; one of a lookup is a pair, of a combine a head."""
    (made,) = walk(op, "engine.map")
    rows, out, region = get(made, "rows"), made.operands[0], made.operation.regions[0].blocks[0]
    loads = [*walk(made, "tile.load"), *walk(made, "tile.sum")]
    combines = list(walk(made, "tile.combine"))
    lookups = list(walk(made, "tile.lookup"))
    space = get(made, "space", rows)
    # One whole row ends in zeros up to whole tiles.
    row = channel_size(out) // space
    width = get(loads[0], "size") if loads else row

    def places(argument: Any, base: int, step: int, size: int, *more: int) -> Places:
        return Places(number(argument), 0, space, space, step, 0, (base, *more), size)

    reads = []
    for o in loads:
        parts = static_shape(o.operands[0])[1] if name_of(o) == "tile.sum" else 1
        size, offset = get(o, "size"), get(o, "offset", 0)
        part = channel_size(o.operands[0]) // parts
        more = (offset + p * part for p in range(1, parts))
        reads.append(places(o.operands[0], offset, size, size, *more))
    for o in combines:
        size = prod(static_shape(o.operands[0])[2:])
        reads.append(places(o.operands[0], 0, size, size))
    alone = None
    for o in combines:
        if get(o, "alone"):
            alone = alone_of(o)
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


def describe_select(op: Any, number: Callable[[Any], int]) -> dict[str, Any]:
    """Every SM makes the token; a choice among scores is made for each token, wholly."""
    for o in walk(op, "engine.select"):
        return {
            "chooses": tuple(number(v) for v in o.operands),
            "makes": get(o, "makes", "token"),
        }
    (choose,) = walk(op, "engine.choose")
    scores, out = choose.operands
    kind, k = get(choose, "kind"), get(choose, "k")
    among = get(choose, "experts") if kind == "route" else channel_size(scores)
    read = among * (2 if get(choose, "score") == "sigmoid" else 1)
    words = k * (2 if kind == "route" else 1)
    return {
        "tasks": 1,
        "out": number(out),
        "waits": (Whole(number(scores), 0, channel_size(scores)),),
        "writes": (Places(number(out), 0, 1, 1, 0, 0, (0,), words),),
        "choice": Choice(kind, number(scores), k, among, read),
    }
