"""Maps: an embedding's rows, norms and ropes of rows by themselves, and the experts' sum."""

from typing import Any

from tileir.dialect.attributes import build, get, located, name_of, static_shape
from tileir.errors import TileirError
from tileir.mlir import ir
from tileir.passes.dataflow import producer, row_size
from tileir.passes.tile_step import (
    Step,
    empty_map,
    placement,
    plus,
    row_operands,
    row_operation,
    whole_tiles,
)


def emit_embedding(step: Step, members: list[Any]) -> Any:
    """The rows of a table that tokens, or what was chosen, name."""
    (op,) = members
    table = step.declared.buffer(op.operands[0])
    hidden = static_shape(table)[1]
    if hidden % 2:
        raise TileirError(
            f"an embedding of {hidden} values",
            location=located(op),
            hint="an even number: channels carry pairs",
        )
    facts: dict[str, Any] = {"scale": get(op, "scale")}
    if producer(op.operands[1]) is not None:
        facts["of"] = "choice"
    width = whole_tiles(hidden)
    made, block = empty_map(step.channel(width), width // 2, placement(op))
    with ir.InsertionPoint(block):
        value = build("tile.lookup", [table], [ir.F32Type.get()], **facts)
        build("tile.yield", [value.results[0]])
    step.where[op.results[0]] = (made.results[0], 0)
    return made.results[0]


def emit_rows(step: Step, members: list[Any]) -> Any:
    """A norm or a rope of rows by themselves, and what follows."""
    first, f32 = members[0], ir.F32Type.get()
    channel, offset = step.place(first.operands[0])
    values = row_size(first.results[0])
    size = get(first, "head_size") or static_shape(first.operands[1])[0]
    operands = {op.results[0]: row_operands(step, op) for op in members}
    width = whole_tiles(values) if size == values else values
    made, block = empty_map(step.channel(width), values // size, placement(first))
    with ir.InsertionPoint(block):
        value = build("tile.load", [channel], [f32], offset=offset, size=size).results[0]
        result = first.results[0]
        for op in members:
            value = row_operation(step, op, value, operands[op.results[0]], size)
            if name_of(op) != "graph.append":
                result = op.results[0]
        build("tile.yield", [value])
    step.where[result] = (made.results[0], 0)
    return made.results[0]


def emit_sum(step: Step, members: list[Any]) -> Any:
    """The experts' weighted values, and what is added to them."""
    total, *adds = members
    parts, _ = step.place(total.operands[0])
    f32, last = ir.F32Type.get(), members[-1].results[0]
    size = row_size(last)
    made, block = empty_map(step.channel(size), size // 2, placement(total))
    with ir.InsertionPoint(block):
        value = build("tile.sum", [parts], [f32], size=2).results[0]
        for op in adds:
            value = plus(step, op, value, 2)
        build("tile.yield", [value])
    step.where[last] = (made.results[0], 0)
    return made.results[0]
