"""tile-graph: stages of graph operations become tile stages on channels."""

from dataclasses import dataclass
from itertools import groupby
from math import prod
from typing import Any, ClassVar

from tileir.dialect.attributes import (
    build,
    get,
    located,
    name_of,
    put,
    static_shape,
    tensor,
)
from tileir.dialect.tile import HALF_ROWS, TILE_ROWS
from tileir.errors import TileirError
from tileir.mlir import func, ir
from tileir.passes.base import Pass
from tileir.passes.dataflow import (
    DECLARATIONS,
    decided,
    operations,
    producer,
    readers,
    row_size,
    step_function,
)
from tileir.passes.declarations import Declarations
from tileir.passes.graph_fuse import ELEMENTWISE, appends_of, in_prologue
from tileir.passes.segments import Piece, Run, biases_of, runs_of, weight_of

MAX_TOKENS = 8  # columns of an mma
PLACEMENT = ("devices", "share", "units", "parts")
SELECT_FACTS = ("k", "groups", "top_groups", "normalize", "scale")


@dataclass(frozen=True)
class TileGraphPass(Pass):
    """Turn stages into contract, attend, map and select on channels.

    Before: graph level, every compute op with `stage`, `stage_kind` and `devices`. After: tile
    level, one op a stage (attend with its combine), for at most `tokens` tokens a step of at most
    `sequences` sequences. With `page` > 0 states are `pages` pages of so many rows (0: enough for all
    sequences at full length). A linear's rows are tiles whose halves hold what the epilogue needs together: rope's
    pairs, gate and up. q, k and v lie one behind the other in a channel. Channels, buffers and states are bf16,
    scores, partial results and rope tables f32. Candidates have one record, attention one split and a group for each
    kv head: specialize-block says how many there are.

        %g = "graph.linear"(%h, %wg)   {stage = 4, …}
        %u = "graph.linear"(%h, %wu)   {stage = 4, …}
        %m = "graph.glu"(%g, %u)       {stage = 4, …}
        →
        %m = "tile.contract"(%x) ({ ^bb0(%v: f32): %n = "tile.rms_norm"(%v, %w) … }, {
          "tile.segment"() ({ ^bb0(%lo: f32, %hi: f32):
            %y = "tile.glu"(%lo, %hi) …
            "tile.publish"(%y) {bases = [0]}
          }) {tiles = 192, inner = 192, step = 8, outer = 0, sources = [0, 0, 1, 0]}
        }) {weights = ["gate", "up"], k = 576, tile_base = 0, tiles = 192, …}
    """

    name: ClassVar[str] = "tile-graph"
    before: ClassVar[str] = "graph"
    after: ClassVar[str] = "tile"

    tokens: int = 1
    sequences: int = 1
    page: int = 0
    pages: int = 0

    def run(self, module: Any) -> None:
        """Replace the function. Raises TileirError for what has no tile form."""
        if not 1 <= self.tokens <= MAX_TOKENS:
            raise TileirError(
                f"{self.tokens} tokens a step", hint=f"a step carries 1 … {MAX_TOKENS}"
            )
        if self.sequences < 1 or (self.sequences > 1 and not self.page):
            raise TileirError(
                f"{self.sequences} sequences with pages of {self.page} rows",
                hint="one sequence, or several with KV in pages: page=64",
            )
        function = step_function(module)
        *body, end = operations(function)
        members = sorted((op for op in body if name_of(op) not in DECLARATIONS), key=_stage)
        context, vocabulary = (
            decided(module, f"tileir.{n}", "the importer") for n in ("context", "vocabulary")
        )
        pages = self.pages or self.sequences * -(-context // max(1, self.page))
        if self.page and pages * self.page < context:
            raise TileirError(
                f"{pages} pages of {self.page} rows for a context of {context}",
                hint=f"one sequence may need them all: pages={-(-context // self.page)} or more",
            )
        declared = Declarations(context, self.page, pages)
        builder = _Builder(self.tokens, vocabulary, declared)
        count = len(list(end.operands))
        with ir.InsertionPoint(module.body), function.location:
            row = function.regions[0].blocks[0].arguments[0].type
            block = func.FuncOp("step", ([row, row], [row] * count)).add_entry_block()
        with ir.InsertionPoint(block):
            made = {n: builder.stage(list(group)) for n, group in groupby(members, key=_stage)}
            with function.location:
                func.ReturnOp([made[_stage(producer(value))] for value in end.operands])
        function.operation.erase()
        facts = {"tokens": self.tokens, "sequences": self.sequences, "page": self.page}
        put(
            module.operation,
            **{"tileir.level": "tile"},
            **{f"tileir.{n}": v for n, v in facts.items()},
        )


def _stage(op: Any) -> int:
    return int(decided(op, "stage", "graph-fuse"))


def _placement(op: Any) -> dict[str, Any]:
    """Which GPUs run what of it."""
    decided(op, "devices", "specialize-gpu")
    return {n: get(op, n) for n in PLACEMENT if n in op.attributes}


def view_of(weight: Any) -> list[int]:
    """A graph.weight's view: [offset, sizes, strides], [] for the whole tensor."""
    owner = producer(weight)
    assert owner is not None
    strides = get(owner, "strides")
    return [get(owner, "offset", 0), *static_shape(weight), *strides] if strides else []


def _whole_tiles(values: int) -> int:
    """What a contract's epilogue may read of a channel of so many values: zeros behind them."""
    return -(-values // TILE_ROWS) * TILE_ROWS


class _Builder:
    """Emits tile stages; remembers where each graph value lies: (channel, first index)."""

    def __init__(self, tokens: int, vocabulary: int, declared: Declarations) -> None:
        self.tokens, self.vocabulary = tokens, vocabulary
        self.where: dict[Any, tuple[Any, int]] = {}
        self.declared = declared

    def stage(self, members: list[Any]) -> Any:
        """Emit a stage; what it makes."""
        names = {name_of(op) for op in members}
        kind = decided(members[0], "stage_kind", "graph-fuse")
        emit = {"attend": self._attend, "select": self._select}.get(kind)
        if kind == "contract":
            emit = self._index_scores if "graph.index_scores" in names else self._contract
        elif kind == "map":
            emit = self._rows
            if "graph.embedding" in names:
                emit = self._embedding
            elif "graph.weighted_sum" in names:
                emit = self._sum
        assert emit is not None, f"no stage of kind {kind}"
        with members[0].location:
            return emit(members)

    def _channel(self, *shape: int, element: str = "bf16") -> Any:
        return tensor([self.tokens, *shape], element, "channel")

    def _place(self, value: Any) -> tuple[Any, int]:
        assert value in self.where, f"{value} was not published"
        return self.where[value]

    # ---- maps

    def _map(self, result: Any, rows: int, facts: dict[str, Any]) -> tuple[Any, Any]:
        """An empty map, and its body's block."""
        made = build("tile.map", [], [result], 1, rows=rows, **facts)
        return made, made.regions[0].blocks.append()

    def _embedding(self, members: list[Any]) -> Any:
        (op,) = members
        table = self.declared.buffer(op.operands[0])
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
        width = _whole_tiles(hidden)
        made, block = self._map(self._channel(width), width // 2, _placement(op))
        with ir.InsertionPoint(block):
            value = build("tile.lookup", [table], [ir.F32Type.get()], **facts)
            build("tile.yield", [value.results[0]])
        self.where[op.results[0]] = (made.results[0], 0)
        return made.results[0]

    def _rows(self, members: list[Any]) -> Any:
        """A norm or a rope of rows by themselves, and what follows."""
        first, f32 = members[0], ir.F32Type.get()
        channel, offset = self._place(first.operands[0])
        values = row_size(first.results[0])
        size = get(first, "head_size") or static_shape(first.operands[1])[0]
        operands = {op.results[0]: self._row_operands(op) for op in members}
        width = _whole_tiles(values) if size == values else values
        made, block = self._map(self._channel(width), values // size, _placement(first))
        with ir.InsertionPoint(block):
            value = build("tile.load", [channel], [f32], offset=offset, size=size).results[0]
            result = first.results[0]
            for op in members:
                value = self._row(op, value, operands[op.results[0]], size)
                if name_of(op) != "graph.append":
                    result = op.results[0]
            build("tile.yield", [value])
        self.where[result] = (made.results[0], 0)
        return made.results[0]

    def _row_operands(self, op: Any) -> list[Any]:
        """What a map's operation addresses, declared before the map."""
        match name_of(op):
            case "graph.rope":
                return [self.declared.rope_table(op)]
            case "graph.append":
                return [self.declared.state(op)]
            case "graph.add":
                return []
        return [self.declared.buffer(v) for v in list(op.operands)[1:]]

    def _row(self, op: Any, value: Any, operands: list[Any], size: int) -> Any:
        """One operation on a row's `size` values; the values after it."""
        f32 = ir.F32Type.get()
        match name_of(op):
            case "graph.add":
                return self._plus(op, value, size)
            case "graph.append":
                build("tile.store", [value, *operands], offset=get(op, "offset", 0))
                return value
            case "graph.rope":
                name = "tile.rotate"
                facts = {"first": get(op, "offset", 0), "style": get(op, "style")}
            case "graph.layer_norm":
                name, facts = "tile.layer_norm", {"eps": get(op, "eps")}
            case _:
                name = "tile.rms_norm"
                facts = {"eps": get(op, "eps"), "unit_offset": get(op, "unit_offset")}
        return build(name, [value, *operands], [f32], **facts).results[0]

    def _sum(self, members: list[Any]) -> Any:
        """The experts' weighted values, and what is added to them."""
        total, *adds = members
        parts, _ = self._place(total.operands[0])
        f32, last = ir.F32Type.get(), members[-1].results[0]
        size = row_size(last)
        made, block = self._map(self._channel(size), size // 2, _placement(total))
        with ir.InsertionPoint(block):
            value = build("tile.sum", [parts], [f32], size=2).results[0]
            for op in adds:
                value = self._plus(op, value, 2)
            build("tile.yield", [value])
        self.where[last] = (made.results[0], 0)
        return made.results[0]

    def _plus(self, add: Any, value: Any, size: int) -> Any:
        """A row's values and those of the same row of the summand that another stage has made."""
        f32 = ir.F32Type.get()
        (other,) = [v for v in add.operands if v in self.where]
        channel, offset = self._place(other)
        more = build("tile.load", [channel], [f32], offset=offset, size=size).results[0]
        return build("tile.plus", [value, more], [f32]).results[0]

    # ---- attention

    def _attend(self, members: list[Any]) -> Any:
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
        held = [self.declared.state(chain[0]) for chain in chains]
        done = [(o, self._row_operands(o)) for o in heads]
        count = get(op, "heads")
        result = self._channel(count, 1, value + 2, element="f32")
        partial = build(
            "tile.attend", held, [result], 1, heads=count, groups=facts["kv_heads"],
            value_size=value, splits=1, **facts, **_placement(op),
        )  # fmt: skip
        with ir.InsertionPoint(partial.regions[0].blocks.append()):
            for x, size in queries:
                self._piece("tile.query", x, size, done)
            for kind, chain in zip(("tile.key", "tile.value"), chains, strict=False):
                for append in chain:
                    row = row_size(append.operands[1])
                    self._piece(kind, append.operands[1], row // facts["kv_heads"], done)
            for value_ in indices:
                build("tile.gather", [self._place(value_)[0]])
            build("tile.yield")
        made, block = self._map(self._channel(count * value), count, _placement(op))
        with ir.InsertionPoint(block):
            inner = build("tile.combine", [partial.results[0]], [ir.F32Type.get()])
            build("tile.yield", [inner.results[0]])
        self.where[op.results[0]] = (made.results[0], 0)
        return made.results[0]

    def _piece(self, kind: str, value: Any, size: int, done: list[tuple[Any, list[Any]]]) -> None:
        """A piece, and behind it those operations of the stage, with what they address, that make `value` of it."""
        makes, source = {op.results[0]: op for op, _ in done}, value
        while source in makes:
            source = makes[source].operands[0]
        channel, offset = self._place(source)
        results = [] if source == value else [ir.F32Type.get()]
        piece = build(kind, [channel], results, offset=offset, stride=size, size=size)
        values = dict(zip([source], piece.results, strict=False))
        for op, operands in done:
            read = op.operands[1 if name_of(op) == "graph.append" else 0]
            if read in values:
                values[op.results[0]] = self._row(op, values[read], operands, size)

    # ---- selects

    def _select(self, members: list[Any]) -> Any:
        (op,) = members
        channel, _ = self._place(op.operands[0])
        facts = _placement(op)
        match name_of(op):
            case "graph.sample":
                result, kind = op.results[0].type, get(op, "kind")
            case "graph.top_k":
                kind, facts = "top_k", facts | {"k": get(op, "k")}
                result = self._channel(get(op, "k"), element="i32")
            case _:
                facts |= {n: get(op, n) for n in SELECT_FACTS} | {
                    "score": get(op, "kind"),
                    "experts": row_size(op.operands[0]),
                    "fill": get(op, "fill", 0.0),
                }
                kind, result = "route", self._channel(get(op, "k"), 2, element="i32")
        made = build("tile.select", [channel], [result], kind=kind, **facts).results[0]
        for value in op.results:
            self.where[value] = (made, 0)
        return made

    # ---- contracts

    def _contract(self, members: list[Any]) -> Any:
        runs = runs_of(members, self.vocabulary)
        linear = runs[0].linears[0]
        source = linear.operands[0]
        norm = producer(source)
        if norm is not None and not (name_of(norm) == "graph.rms_norm" and in_prologue(norm)):
            norm = None
        facts = self._x(linear, source if norm is None else norm.operands[0])
        self._declare_operands(runs, norm)
        experts = name_of(linear) == "graph.expert_linear"
        slots = facts["groups"] if experts else 1
        result = self._result(runs, slots)
        weights = [weight_of(o) for run in runs for o in run.linears]
        views = [view_of(w) for w in weights]
        if get(linear, "share") == "sum":
            # Ranges of K are views.
            views = [
                v or [0, *static_shape(w), facts["k"], 1]
                for v, w in zip(views, weights, strict=True)
            ]
        if any(views):
            facts["views"] = views
        made = build(
            "tile.contract", [facts.pop("channel")], [result], 2,
            weights=[get(producer(w), "sym_name") for w in weights], k_parts=1, tile_base=0,
            tiles=sum(run.tiles for run in runs), **facts, **_placement(linear),
        )  # fmt: skip
        routing = self._place(linear.operands[1])[0] if experts else None
        self._prologue(made.regions[0], norm, routing)
        with ir.InsertionPoint(made.regions[1].blocks.append()):
            at, weight = 0, 0
            for run in runs:
                for piece in run.pieces:
                    self._segment(run, piece, weight, at, routing)
                self.where[run.value] = (made.results[0], at)
                at, weight = at + run.outputs, weight + len(run.linears)
            build("tile.yield")
        return made.results[0]

    def _result(self, runs: list[Run], slots: int) -> Any:
        """The channel that a contract of these runs fills; of experts with so many slots."""
        size = sum(run.outputs for run in runs)
        read_by = set().union(*(run.read_by for run in runs))
        if "graph.sample" in read_by:
            return tensor([self.tokens, 1, 2], "i32", "channel")
        if "graph.router" in read_by:
            (router,) = [r for r in readers(runs[0].value) if name_of(r) == "graph.router"]
            return self._channel(
                size * (2 if get(router, "kind") == "sigmoid" else 1), element="f32"
            )
        if "graph.weighted_sum" in read_by:
            return self._channel(slots, size, element="f32")
        return self._channel(slots * size)

    def _x(self, linear: Any, value: Any) -> dict[str, Any]:
        """What a linear multiplies: `channel`, `k`, `groups`, and `x` unless it is all of the channel."""
        channel, offset = self._place(value)
        k, groups, stride = static_shape(weight_of(linear))[-1], 1, 0
        values = prod(static_shape(channel)[1:])
        if name_of(linear) == "graph.grouped_linear":
            groups, stride = static_shape(weight_of(linear))[0], k
        elif name_of(linear) == "graph.expert_linear":
            groups = row_size(linear.operands[1])
            if row_size(value) != k:
                stride = values // groups
        facts = {"channel": channel, "k": k, "groups": groups}
        return facts if (offset, stride, values) == (0, 0, k) else facts | {"x": [offset, stride]}

    def _declare_operands(self, runs: list[Run], norm: Any) -> None:
        """Declarations go before the contract that uses them."""
        if norm is not None:
            self.declared.buffer(norm.operands[1])
        for run in runs:
            for bias in run.biases:
                self.declared.buffer(bias)
            for reader in readers(run.value):
                if name_of(reader) == "graph.router":
                    for bias in list(reader.operands)[1:]:
                        self.declared.buffer(bias)
            for op in run.chain:
                if name_of(op) == "graph.rope":
                    self.declared.rope_table(op)
                elif name_of(op) == "graph.append":
                    self.declared.state(op)

    def _index_scores(self, members: list[Any]) -> Any:
        """Rows of the keys' state against every head of the queries."""
        (op,) = members
        q, weights, keys, _ = op.operands
        (append,) = appends_of(keys)
        heads, size = get(op, "heads"), get(op, "head_size")
        (channel, offset), (own, at) = self._place(q), self._place(append.operands[1])
        context = row_size(op.results[0])
        tiles = -(-context // TILE_ROWS)
        state = self.declared.state(append)
        made = build(
            "tile.contract", [channel], [self._channel(context, element="f32")], 2, weights=[],
            k=size, x=[offset, size], groups=heads, k_parts=1, tile_base=0, tiles=tiles, splits=1,
            **_placement(op),
        )  # fmt: skip
        f32 = ir.F32Type.get()
        block = made.regions[0].blocks.append(f32)
        with ir.InsertionPoint(block):
            build("tile.rows", [state, own], offset=at)
            build("tile.yield", [block.arguments[0]])
        whole = Piece(tiles, tiles, TILE_ROWS, 0, 0, HALF_ROWS)
        with ir.InsertionPoint(made.regions[1].blocks.append()):
            _, inner = _open_segment(whole, [0, 0, 0, HALF_ROWS])
            with ir.InsertionPoint(inner):
                place, first = self._place(weights)
                facts = {"scale": get(op, "scale"), "offset": first}
                values = self._same("tile.relu_sum", list(inner.arguments), place, **facts)
                build("tile.publish", values, bases=[0, HALF_ROWS])
                build("tile.yield")
            build("tile.yield")
        self.where[op.results[0]] = (made.results[0], 0)
        return made.results[0]

    # ---- a contract's regions

    def _prologue(self, region: Any, norm: Any, routing: Any) -> None:
        f32 = ir.F32Type.get()
        block = region.blocks.append(f32)
        with ir.InsertionPoint(block):
            value = block.arguments[0]
            if routing is not None:
                build("tile.experts", [routing])
            if norm is not None:
                facts = {"eps": get(norm, "eps"), "unit_offset": get(norm, "unit_offset")}
                weight = self.declared.buffer(norm.operands[1])
                value = build("tile.rms_norm", [value, weight], [f32], **facts).results[0]
            build("tile.yield", [value])

    def _segment(self, run: Run, piece: Piece, weight: int, at: int, routing: Any) -> None:
        """weight: number of the run's first weight; at: where its values begin in the channel."""
        _, block = _open_segment(piece, run.sources(piece, weight))
        bases = run.bases(piece)
        with ir.InsertionPoint(block):
            values = list(block.arguments)
            values = self._biased(run, bases, values)
            for inner in run.chain:
                values = self._follow(run, piece, inner, values)
            if run.sampled:
                build("tile.logits", values, bases=bases)
                build("tile.candidate", values, bases=bases)
            elif "graph.router" in run.read_by:
                self._scores(run, bases, at, values)
            else:
                if "graph.weighted_sum" in run.read_by:
                    values = self._same("tile.weigh", values, routing)
                build("tile.publish", values, bases=[at + base for base in bases])
            build("tile.yield")

    def _biased(self, run: Run, bases: list[int], values: list[Any]) -> list[Any]:
        """The values with a linear's bias, or with those of gate and up, which lie in a half each."""
        made: list[Any] = []
        parts = [[v] for v in values] if run.gated else [values]
        for linear, part in zip(run.linears, parts, strict=True):
            found = [self.declared.buffer(b) for b in biases_of(linear)]
            made += self._same("tile.bias", part, *found, bases=bases) if found else part
        return made

    def _scores(self, run: Run, bases: list[int], at: int, values: list[Any]) -> None:
        """A router's scores; with sigmoid, behind them the keys by which it chooses."""
        (router,) = [r for r in readers(run.value) if name_of(r) == "graph.router"]
        if get(router, "kind") == "sigmoid":
            f32 = ir.F32Type.get()
            values = list(build("tile.sigmoid", values, [f32, f32]).results)
            keys = values
            for bias in list(router.operands)[1:]:
                keys = self._same("tile.bias", keys, self.declared.buffer(bias), bases=bases)
            build("tile.publish", keys, bases=[at + run.outputs + base for base in bases])
        build("tile.publish", values, bases=[at + base for base in bases])

    def _follow(self, run: Run, piece: Piece, op: Any, values: list[Any]) -> list[Any]:
        """One operation of a chain on the values of both halves; the values after it."""
        name, bases = name_of(op), run.bases(piece)
        if name in ELEMENTWISE:
            facts: dict[str, Any] = {
                n: get(op, n) for n in ("activation", "factor", "cap") if n in op.attributes
            }
            return self._same(name.replace("graph.", "tile."), values, **facts)
        if name == "graph.rope":
            facts = {n: get(op, n) for n in ("head_size", "style")}
            if get(op, "offset", 0):
                facts["first"] = get(op, "offset")
            if not piece.turned:
                return values
            return self._same("tile.rope", values, self.declared.rope_table(op), **facts)
        if name == "graph.append":
            build(
                "tile.append", [*values, self.declared.state(op)], bases=_in_state(op, bases, piece)
            )
            return values
        if name == "graph.glu":
            facts = {"activation": get(op, "activation")}
            return list(build("tile.glu", values, [ir.F32Type.get()], **facts).results)
        assert name == "graph.add", name
        (other,) = [value for value in op.operands if value in self.where]
        channel, offset = self._place(other)
        if offset + run.outputs > prod(static_shape(channel)[1:]):
            raise TileirError(
                f"a sum of {run.rows} values",
                location=located(op),
                hint="what is added behind a linear is the embedding, another linear, a norm of whole rows, or has a "
                f"multiple of {TILE_ROWS} values",
            )
        return self._same("tile.residual", values, channel, bases=[offset + b for b in bases])

    def _same(self, name: str, values: list[Any], *operands: Any, **facts: Any) -> list[Any]:
        """An operation that makes as many values as it takes."""
        kinds = [ir.F32Type.get()] * len(values)
        return list(build(name, [*values, *operands], kinds, **facts).results)


# What graph.attention says; latents have no window and no cap.
_ATTENTION: dict[str, Any] = {
    "kv_heads": 1,
    "head_size": 0,
    "scale": 1.0,
    "window": 0,
    "softcap": 0.0,
}


def _open_segment(piece: Piece, sources: list[int]) -> tuple[Any, Any]:
    """A tile.segment and its block."""
    facts = {n: getattr(piece, n) for n in ("tiles", "inner", "step", "outer")}
    op = build("tile.segment", [], [], 1, sources=sources, **facts)
    return op, op.regions[0].blocks.append(ir.F32Type.get(), ir.F32Type.get())


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
