"""Selects, and the scores of a state's keys that one of them chooses from."""

from typing import Any

from tileir.dialect.attributes import build, get, name_of
from tileir.dialect.tile import HALF_ROWS, TILE_ROWS
from tileir.mlir import ir
from tileir.passes.dataflow import row_size
from tileir.passes.graph_fuse import appends_of
from tileir.passes.segments import Piece
from tileir.passes.tile_epilogues import open_segment, same
from tileir.passes.tile_step import Step, placement

SELECT_FACTS = ("k", "groups", "top_groups", "normalize", "scale")


def emit_select(step: Step, members: list[Any]) -> Any:
    """A sample, a router's choice of experts or a top-k."""
    (op,) = members
    channel, _ = step.place(op.operands[0])
    facts = placement(op)
    match name_of(op):
        case "graph.sample":
            result, kind = op.results[0].type, get(op, "kind")
        case "graph.top_k":
            kind, facts = "top_k", facts | {"k": get(op, "k")}
            result = step.channel(get(op, "k"), element="i32")
        case _:
            facts |= {n: get(op, n) for n in SELECT_FACTS} | {
                "score": get(op, "kind"),
                "experts": row_size(op.operands[0]),
                "fill": get(op, "fill", 0.0),
            }
            kind, result = "route", step.channel(get(op, "k"), 2, element="i32")
    made = build("tile.select", [channel], [result], kind=kind, **facts).results[0]
    for value in op.results:
        step.where[value] = (made, 0)
    return made


def emit_index_scores(step: Step, members: list[Any]) -> Any:
    """Rows of the keys' state against every head of the queries."""
    (op,) = members
    q, weights, keys, _ = op.operands
    (append,) = appends_of(keys)
    heads, size = get(op, "heads"), get(op, "head_size")
    (channel, offset), (own, at) = step.place(q), step.place(append.operands[1])
    context = row_size(op.results[0])
    tiles = -(-context // TILE_ROWS)
    state = step.declared.state(append)
    made = build(
        "tile.contract", [channel], [step.channel(context, element="f32")], 2, weights=[],
        k=size, x=[offset, size], groups=heads, k_parts=1, tile_base=0, tiles=tiles, splits=1,
        **placement(op),
    )  # fmt: skip
    f32 = ir.F32Type.get()
    block = made.regions[0].blocks.append(f32)
    with ir.InsertionPoint(block):
        build("tile.rows", [state, own], offset=at)
        build("tile.yield", [block.arguments[0]])
    whole = Piece(tiles, tiles, TILE_ROWS, 0, 0, HALF_ROWS)
    with ir.InsertionPoint(made.regions[1].blocks.append()):
        _, inner = open_segment(whole, [0, 0, 0, HALF_ROWS])
        with ir.InsertionPoint(inner):
            place, first = step.place(weights)
            facts = {"scale": get(op, "scale"), "offset": first}
            values = same("tile.relu_sum", list(inner.arguments), place, **facts)
            build("tile.publish", values, bases=[0, HALF_ROWS])
            build("tile.yield")
        build("tile.yield")
    step.where[op.results[0]] = (made.results[0], 0)
    return made.results[0]
