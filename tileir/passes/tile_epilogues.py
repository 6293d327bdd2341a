"""A contract's segments: what is done with the values of a tile before they are published."""

from typing import Any

from tileir.dialect.attributes import build, get, located, name_of, static_shape
from tileir.dialect.tile import TILE_ROWS
from tileir.errors import TileirError
from tileir.mlir import ir
from tileir.passes.chains import ELEMENTWISE
from tileir.passes.dataflow import channel_size, readers, row_size
from tileir.passes.segments import Piece, Run, biases_of
from tileir.passes.tile_step import Step


def emit_segment(step: Step, run: Run, piece: Piece, weight: int, at: int, routing: Any) -> None:
    """weight: number of the run's first weight; at: where its values begin in the channel."""
    _, block = open_segment(piece, run.sources(piece, weight))
    bases = run.bases(piece)
    with ir.InsertionPoint(block):
        values = list(block.arguments)
        if run.k_parts > 1:
            values = list(build("tile.join", values, [ir.F32Type.get()]).results)
        values = _biased(step, run, bases, values)
        for inner in run.chain:
            values = _follow(step, run, piece, inner, values)
        if run.sampled:
            build("tile.logits", values, bases=bases)
            build("tile.candidate", values, bases=bases)
        elif "graph.router" in run.read_by:
            _scores(step, run, bases, at, values)
        else:
            if "graph.weighted_sum" in run.read_by:
                values = same("tile.weigh", values, routing)
            build("tile.publish", values, bases=[at + base for base in bases])
        build("tile.yield")


def open_segment(piece: Piece, sources: list[int]) -> tuple[Any, Any]:
    """A tile.segment and its block."""
    facts = {n: getattr(piece, n) for n in ("tiles", "inner", "step", "outer")}
    op = build("tile.segment", [], [], 1, sources=sources, **facts)
    return op, op.regions[0].blocks.append(ir.F32Type.get(), ir.F32Type.get())


def _biased(step: Step, run: Run, bases: list[int], values: list[Any]) -> list[Any]:
    """The values with a linear's bias, or with those of gate and up, which lie in a half each."""
    made: list[Any] = []
    parts = [[v] for v in values] if run.gated else [values]
    for linear, part in zip(run.linears, parts, strict=True):
        found = [step.declared.buffer(b) for b in biases_of(linear)]
        made += same("tile.bias", part, *found, bases=bases) if found else part
    return made


def _follow(step: Step, run: Run, piece: Piece, op: Any, values: list[Any]) -> list[Any]:
    """One operation of a chain on the values of both halves; the values after it."""
    name, bases = name_of(op), run.bases(piece)
    if name in ELEMENTWISE:
        facts: dict[str, Any] = {
            n: get(op, n) for n in ("activation", "factor", "cap") if n in op.attributes
        }
        return same(name.replace("graph.", "tile."), values, **facts)
    if name == "graph.rope":
        facts = {n: get(op, n) for n in ("head_size", "style")}
        if get(op, "offset", 0):
            facts["first"] = get(op, "offset")
        if not piece.turned:
            return values
        return same("tile.rope", values, step.declared.rope_table(op), **facts)
    if name == "graph.append":
        build("tile.append", [*values, step.declared.state(op)], bases=_in_state(op, bases, piece))
        return values
    if name == "graph.glu":
        facts = {"activation": get(op, "activation")}
        return list(build("tile.glu", values, [ir.F32Type.get()], **facts).results)
    assert name == "graph.add", name
    (other,) = [value for value in op.operands if value in step.where]
    channel, offset = step.place(other)
    if offset + run.outputs > channel_size(channel):
        raise TileirError(
            f"a sum of {run.rows} values",
            location=located(op),
            hint="what is added behind a linear is the embedding, another linear, a norm of whole rows, or has a "
            f"multiple of {TILE_ROWS} values",
        )
    return same("tile.residual", values, channel, bases=[offset + b for b in bases])


def _in_state(append: Any, bases: list[int], piece: Piece) -> list[int]:
    """Where a run's values go in a state's row: at its offset in rows of one head."""
    heads, _, size = static_shape(append.results[0])
    offset = get(append, "offset", 0)
    if heads > 1 and row_size(append.operands[1]) != heads * size:
        raise TileirError(
            "an append of parts of several heads behind a linear",
            location=located(append),
            hint="parts of a row go into states of one head",
        )
    return [offset + base for base in bases]


def _scores(step: Step, run: Run, bases: list[int], at: int, values: list[Any]) -> None:
    """A router's scores; with sigmoid, behind them the keys by which it chooses."""
    (router,) = [r for r in readers(run.value) if name_of(r) == "graph.router"]
    if get(router, "kind") == "sigmoid":
        f32 = ir.F32Type.get()
        values = list(build("tile.sigmoid", values, [f32, f32]).results)
        keys = values
        for bias in list(router.operands)[1:]:
            keys = same("tile.bias", keys, step.declared.buffer(bias), bases=bases)
        build("tile.publish", keys, bases=[at + run.outputs + base for base in bases])
    build("tile.publish", values, bases=[at + base for base in bases])


def same(name: str, values: list[Any], *operands: Any, **facts: Any) -> list[Any]:
    """An operation that makes as many values as it takes."""
    kinds = [ir.F32Type.get()] * len(values)
    return list(build(name, [*values, *operands], kinds, **facts).results)
