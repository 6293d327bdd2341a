"""Attention: what it reads of the queries and keys of a step, and the combine map behind it."""

from typing import Any

from tileir.dialect.attributes import build, get, name_of
from tileir.mlir import ir
from tileir.passes.chains import appends_of
from tileir.passes.dataflow import row_size
from tileir.passes.tile_step import Step, empty_map, placement, row_operands, row_operation

# What graph.attention says; latents have no window and no cap.
_ATTENTION: dict[str, Any] = {
    "kv_heads": 1,
    "head_size": 0,
    "scale": 1.0,
    "window": 0,
    "softcap": 0.0,
}


def emit_attend(step: Step, members: list[Any]) -> Any:
    """An attend of a split for each kv head, and its combine."""
    *heads, op = members
    latent = name_of(op) == "graph.latent_attention"
    facts = dict(_ATTENTION)
    facts |= {n: get(op, n) for n in _ATTENTION if n in op.attributes}
    states = list(op.operands)[2:3] if latent else list(op.operands)[1:3]
    if latent:
        value, rope = get(op, "latent_size"), get(op, "rope_size")
        facts |= {"kv_heads": 1, "head_size": value + rope}
        queries = [(op.operands[0], value), (op.operands[1], rope)]
    else:
        value = facts["head_size"]
        queries = [(op.operands[0], value)]
    chains = [appends_of(state) for state in states]
    indices = list(op.operands)[4:]
    held = [step.declared.state(chain[0]) for chain in chains]
    done = [(o, row_operands(step, o)) for o in heads]
    count = get(op, "heads")
    result = step.channel(count, 1, value + 2, element="f32")
    partial = build(
        "tile.attend", held, [result], 1, heads=count, groups=facts["kv_heads"],
        value_size=value, splits=1, **facts, **placement(op),
    )  # fmt: skip
    with ir.InsertionPoint(partial.regions[0].blocks.append()):
        for x, size in queries:
            _piece(step, "tile.query", x, size, done)
        for kind, chain in zip(("tile.key", "tile.value"), chains, strict=False):
            for append in chain:
                row = row_size(append.operands[1])
                _piece(step, kind, append.operands[1], row // facts["kv_heads"], done)
        for value_ in indices:
            build("tile.gather", [step.place(value_)[0]])
        build("tile.yield")
    made, block = empty_map(step.channel(count * value), count, placement(op))
    with ir.InsertionPoint(block):
        inner = build("tile.combine", [partial.results[0]], [ir.F32Type.get()])
        build("tile.yield", [inner.results[0]])
    step.where[op.results[0]] = (made.results[0], 0)
    return made.results[0]


def _piece(step: Step, kind: str, value: Any, size: int, done: list[tuple[Any, list[Any]]]) -> None:
    """A piece, and behind it those operations of the stage, with what they address, that make `value` of it."""
    makes, source = {op.results[0]: op for op, _ in done}, value
    while source in makes:
        source = makes[source].operands[0]
    channel, offset = step.place(source)
    results = [] if source == value else [ir.F32Type.get()]
    piece = build(kind, [channel], results, offset=offset, stride=size, size=size)
    values = dict(zip([source], piece.results, strict=False))
    for op, operands in done:
        read = op.operands[1 if name_of(op) == "graph.append" else 0]
        if read in values:
            values[op.results[0]] = row_operation(step, op, values[read], operands, size)
