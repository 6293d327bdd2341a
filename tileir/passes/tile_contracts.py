"""Contracts of linears and of a state's rows: what they multiply, their prologue, and the channel that they fill."""

from typing import Any

from tileir.dialect.attributes import build, get, name_of, static_shape, tensor
from tileir.dialect.tile import BLOCK_K, HALF_ROWS, TILE_ROWS
from tileir.mlir import ir
from tileir.passes.chains import appends_of, in_prologue
from tileir.passes.dataflow import channel_size, producer, readers, row_size
from tileir.passes.segments import Piece, Run, runs_of, weight_of
from tileir.passes.tile_epilogues import emit_segment, open_segment, same
from tileir.passes.tile_step import Step, placement
from tileir.scheduling.assign import choose_k_parts


def emit_contract(step: Step, members: list[Any]) -> Any:
    """Linears that read the same values, with what stands before and behind them."""
    runs = _in_k_parts(step, runs_of(members, step.vocabulary))
    linear, k_parts = runs[0].linears[0], runs[0].k_parts
    source = linear.operands[0]
    norm = producer(source)
    if norm is not None and not (name_of(norm) == "graph.rms_norm" and in_prologue(norm)):
        norm = None
    facts = _x(step, linear, source if norm is None else norm.operands[0])
    _declare_operands(step, runs, norm)
    experts = name_of(linear) == "graph.expert_linear"
    slots = facts["groups"] if experts else 1
    result = _result(step, runs, slots)
    weights = [weight_of(o) for run in runs for o in run.linears]
    views = [_view_of(w) for w in weights]
    if get(linear, "share") == "sum" or k_parts > 1:
        # Ranges of K are views.
        views = [
            v or [0, *static_shape(w), facts["k"], 1] for v, w in zip(views, weights, strict=True)
        ]
    if k_parts > 1:
        facts["k"] //= k_parts
        weights = [w for w in weights for _ in range(k_parts)]
        views = [_part_of(v, p, facts["k"]) for v in views for p in range(k_parts)]
    if any(views):
        facts["views"] = views
    made = build(
        "tile.contract", [facts.pop("channel")], [result], 2,
        weights=[get(producer(w), "sym_name") for w in weights], k_parts=k_parts, tile_base=0,
        tiles=sum(run.tiles for run in runs), **facts, **placement(linear),
    )  # fmt: skip
    routing = step.place(linear.operands[1])[0] if experts else None
    _prologue(step, made.regions[0], norm, routing)
    with ir.InsertionPoint(made.regions[1].blocks.append()):
        at, weight = 0, 0
        for run in runs:
            for piece in run.pieces:
                emit_segment(step, run, piece, weight, at, routing)
            step.where[run.value] = (made.results[0], at)
            at, weight = at + run.outputs, weight + len(run.linears) * k_parts
        build("tile.yield")
    return made.results[0]


def _in_k_parts(step: Step, runs: list[Run]) -> list[Run]:
    """The runs with K in two parts, if fewer blocks then pass the SM that has most."""
    linear, target = runs[0].linears[0], step.target
    found = [folded for run in runs if (folded := run.folded()) is not None]
    if target is None or len(found) < len(runs) or get(linear, "share", "all") != "all":
        return runs
    tiles, k = sum(run.tiles for run in runs), static_shape(weight_of(linear))[-1]
    parts = choose_k_parts(tiles, k // BLOCK_K, target.sms, target.consumer_warps)
    return found if parts == 2 else runs


def _part_of(view: list[int], part: int, k: int) -> list[int]:
    """The view of k columns of a weight's view, [offset, rows, columns, stride, stride]."""
    offset, rows, _, down, along = view
    return [offset + part * k * along, rows, k, down, along]


def _x(step: Step, linear: Any, value: Any) -> dict[str, Any]:
    """What a linear multiplies: `channel`, `k`, `groups`, and `x` unless it is all of the channel."""
    channel, offset = step.place(value)
    k, groups, stride = static_shape(weight_of(linear))[-1], 1, 0
    values = channel_size(channel)
    if name_of(linear) == "graph.grouped_linear":
        groups, stride = static_shape(weight_of(linear))[0], k
    elif name_of(linear) == "graph.expert_linear":
        groups = row_size(linear.operands[1])
        if row_size(value) != k:
            stride = values // groups
    facts = {"channel": channel, "k": k, "groups": groups}
    return facts if (offset, stride, values) == (0, 0, k) else facts | {"x": [offset, stride]}


def _declare_operands(step: Step, runs: list[Run], norm: Any) -> None:
    """Declarations go before the contract that uses them."""
    if norm is not None:
        step.declared.buffer(norm.operands[1])
    for run in runs:
        for bias in run.biases:
            step.declared.buffer(bias)
        for reader in readers(run.value):
            if name_of(reader) == "graph.router":
                for bias in list(reader.operands)[1:]:
                    step.declared.buffer(bias)
        for op in run.chain:
            if name_of(op) == "graph.rope":
                step.declared.rope_table(op)
            elif name_of(op) == "graph.append":
                step.declared.state(op)


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


def _result(step: Step, runs: list[Run], slots: int) -> Any:
    """The channel that a contract of these runs fills; of experts with so many slots."""
    size = sum(run.outputs for run in runs)
    read_by = set().union(*(run.read_by for run in runs))
    if "graph.sample" in read_by:
        return tensor([step.tokens, 1, 2], "i32", "channel")
    if "graph.router" in read_by:
        (router,) = [r for r in readers(runs[0].value) if name_of(r) == "graph.router"]
        return step.channel(size * (2 if get(router, "kind") == "sigmoid" else 1), element="f32")
    if "graph.weighted_sum" in read_by:
        return step.channel(slots, size, element="f32")
    return step.channel(slots * size)


def _view_of(weight: Any) -> list[int]:
    """A graph.weight's view: [offset, sizes, strides], [] for the whole tensor."""
    owner = producer(weight)
    assert owner is not None
    strides = get(owner, "strides")
    return [get(owner, "offset", 0), *static_shape(weight), *strides] if strides else []


def _prologue(step: Step, region: Any, norm: Any, routing: Any) -> None:
    f32 = ir.F32Type.get()
    block = region.blocks.append(f32)
    with ir.InsertionPoint(block):
        value = block.arguments[0]
        if routing is not None:
            build("tile.experts", [routing])
        if norm is not None:
            facts = {"eps": get(norm, "eps"), "unit_offset": get(norm, "unit_offset")}
            weight = step.declared.buffer(norm.operands[1])
            value = build("tile.rms_norm", [value, weight], [f32], **facts).results[0]
        build("tile.yield", [value])
