"""Selects: the token, experts, positions."""

from typing import Any

from tileir.dialect.attributes import build, get, name_of
from tileir.passes.dataflow import row_size
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
