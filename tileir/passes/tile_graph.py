"""tile-graph: stages of graph operations become tile stages on channels."""

from dataclasses import dataclass
from itertools import groupby
from typing import Any, ClassVar

from tileir.dialect.attributes import build, get, located, name_of, put, shape_of, tensor
from tileir.errors import TileirError
from tileir.mlir import func, ir
from tileir.passes.base import Pass
from tileir.passes.dataflow import DECLARATIONS, decided, operations, producer, step_function
from tileir.passes.declarations import Declarations
from tileir.passes.segments import Run, runs_of


@dataclass(frozen=True)
class TileGraphPass(Pass):
    """Turn stages into contract, attend, map and select on channels.

    Before: graph level, every compute op with `stage`, `stage_kind` and `devices`. After: tile
    level, one op a stage (attend with its combine), for at most `tokens` tokens a step. A linear's
    rows are tiles whose halves hold what the epilogue needs together: rope's pairs, gate and up.
    q, k and v lie one behind the other in a channel. Channels, buffers and states are bf16, partial
    results and rope tables f32. Candidates have one record and attention one split:
    specialize-block says how many there are.

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

    def run(self, module: Any) -> None:
        """Replace the function. Raises TileirError for what has no tile form."""
        if self.tokens < 1:
            raise TileirError(f"{self.tokens} tokens a step", hint="a step carries one or more")
        function = step_function(module)
        *body, end = operations(function)
        members = sorted((op for op in body if name_of(op) not in DECLARATIONS), key=_stage)
        facts = [decided(module, f"tileir.{n}", "the importer") for n in ("context", "vocabulary")]
        builder = _Builder(self.tokens, *facts)
        with ir.InsertionPoint(module.body), function.location:
            row = function.regions[0].blocks[0].arguments[0].type
            block = func.FuncOp("step", ([row, row], [row])).add_entry_block()
        with ir.InsertionPoint(block):
            made = {n: builder.stage(list(group)) for n, group in groupby(members, key=_stage)}
            with function.location:
                func.ReturnOp([made[_stage(producer(end.operands[0]))]])
        function.operation.erase()
        put(module.operation, **{"tileir.level": "tile"})


def _stage(op: Any) -> int:
    return int(decided(op, "stage", "graph-fuse"))


class _Builder:
    """Emits tile stages; remembers where each graph value lies: (channel, first index)."""

    def __init__(self, tokens: int, context: int, vocabulary: int) -> None:
        self.tokens, self.vocabulary = tokens, vocabulary
        self.where: dict[Any, tuple[Any, int]] = {}
        self.declared = Declarations(context)

    def stage(self, members: list[Any]) -> Any:
        """Emit a stage; what it makes."""
        emit = {
            "contract": self._contract,
            "attend": self._attend,
            "map": self._embedding,
            "select": self._select,
        }[decided(members[0], "stage_kind", "graph-fuse")]
        with members[0].location:
            return emit(members)

    def _channel(self, size: int) -> Any:
        return tensor([self.tokens, size], "bf16", "channel")

    def _place(self, value: Any) -> tuple[Any, int]:
        assert value in self.where, f"{value} was not published"
        return self.where[value]

    def _map(self, op: Any, name: str, operand: Any, size: int, rows: int, **facts: Any) -> Any:
        """A map of one operand that makes what the graph operation makes."""
        devices = decided(op, "devices", "specialize-gpu")
        made = build("tile.map", [operand], [self._channel(size)], 1, rows=rows, devices=devices)
        with ir.InsertionPoint(made.regions[0].blocks.append()):
            value = build(name, [operand], [ir.F32Type.get()], **facts)
            build("tile.yield", [value.results[0]])
        self.where[op.results[0]] = (made.results[0], 0)
        return made.results[0]

    def _embedding(self, members: list[Any]) -> Any:
        (op,) = members
        table = self.declared.buffer(op.operands[0])
        hidden = shape_of(table)[1]
        assert hidden is not None
        if hidden % 2:
            raise TileirError(
                f"an embedding of {hidden} values",
                location=located(op),
                hint="an even number: channels carry pairs",
            )
        return self._map(op, "tile.lookup", table, hidden, hidden // 2, scale=get(op, "scale"))

    def _attend(self, members: list[Any]) -> Any:
        (op,) = members
        appends = [producer(state) for state in list(op.operands)[1:3]]
        values = [op.operands[0], *(append.operands[1] for append in appends if append)]
        places = [self._place(value) for value in values]
        if any(channel != places[0][0] for channel, _ in places):
            raise TileirError(
                "q, k and v come from different stages",
                location=located(op),
                hint="project q, k and v from the same values",
            )
        heads, size = get(op, "heads"), get(op, "head_size")
        names = ("heads", "kv_heads", "head_size", "scale", "window", "softcap")
        operands = [places[0][0], *(self.declared.state(append) for append in appends)]
        result = tensor([self.tokens, heads, 1, size + 2], "f32", "channel")
        facts = {n: get(op, n) for n in names} | {"offsets": [offset for _, offset in places]}
        facts |= {"splits": 1, "devices": decided(op, "devices", "specialize-gpu")}
        partial = build("tile.attend", operands, [result], **facts).results[0]
        return self._map(op, "tile.combine", partial, heads * size, heads)

    def _select(self, members: list[Any]) -> Any:
        (op,) = members
        channel, _ = self._place(op.operands[0])
        facts = {"kind": get(op, "kind"), "devices": decided(op, "devices", "specialize-gpu")}
        return build("tile.select", [channel], [op.results[0].type], **facts).results[0]

    def _contract(self, members: list[Any]) -> Any:
        runs = runs_of(members, self.vocabulary)
        linear = runs[0].linears[0]
        source = linear.operands[0]
        norm = producer(source)
        if norm is not None and name_of(norm) != "graph.rms_norm":
            norm = None
        x, k = self._source(linear, source if norm is None else norm.operands[0])
        self._declare_operands(runs, norm)
        sampled = any(run.sampled for run in runs)
        size = sum(run.outputs for run in runs)
        result = tensor([self.tokens, 1, 2], "i32", "channel") if sampled else self._channel(size)
        weights = [o.operands[1] for run in runs for o in run.linears]
        made = build(
            "tile.contract", [x], [result], 2, weights=[get(producer(w), "sym_name") for w in weights],
            k=k, groups=1, k_parts=1, tile_base=0, tiles=sum(run.tiles for run in runs),
            devices=decided(linear, "devices", "specialize-gpu"),
        )  # fmt: skip
        self._prologue(made.regions[0], norm)
        with ir.InsertionPoint(made.regions[1].blocks.append()):
            at, weight = 0, 0
            for run in runs:
                self._segment(run, weight, at)
                self.where[run.value] = (made.results[0], at)
                at, weight = at + run.outputs, weight + len(run.linears)
            build("tile.yield")
        return made.results[0]

    def _source(self, linear: Any, value: Any) -> tuple[Any, int]:
        """The channel that a linear reads, and its K."""
        x, offset = self._place(value)
        k = shape_of(value)[1]
        if k is None or offset or shape_of(x)[1] != k:
            raise TileirError(
                "a linear reads a part of what another stage made",
                location=located(linear),
                hint="a linear reads all values of a stage",
            )
        return x, k

    def _declare_operands(self, runs: list[Run], norm: Any) -> None:
        """Declarations go before the contract that uses them."""
        if norm is not None:
            self.declared.buffer(norm.operands[1])
        for run in runs:
            for bias in run.biases:
                self.declared.buffer(bias)
            for op in run.chain:
                if name_of(op) == "graph.rope":
                    self.declared.rope_table(op)
                elif name_of(op) == "graph.append":
                    self.declared.state(op)

    # ---- a contract's regions

    def _prologue(self, region: Any, norm: Any) -> None:
        f32 = ir.F32Type.get()
        block = region.blocks.append(f32)
        with ir.InsertionPoint(block):
            value = block.arguments[0]
            if norm is not None:
                facts = {"eps": get(norm, "eps"), "unit_offset": get(norm, "unit_offset")}
                weight = self.declared.buffer(norm.operands[1])
                value = build("tile.rms_norm", [value, weight], [f32], **facts).results[0]
            build("tile.yield", [value])

    def _segment(self, run: Run, weight: int, at: int) -> None:
        """weight: number of the run's first weight; at: where its values begin in the channel."""
        facts = {n: getattr(run, n) for n in ("tiles", "inner", "step", "outer")}
        op = build("tile.segment", [], [], 1, sources=run.sources(weight), **facts)
        block = op.regions[0].blocks.append(ir.F32Type.get(), ir.F32Type.get())
        with ir.InsertionPoint(block):
            values = list(block.arguments)
            for bias in run.biases:
                values = self._pair(
                    "tile.bias", values, self.declared.buffer(bias), bases=run.bases
                )
            for inner in run.chain:
                values = self._follow(run, inner, values)
            if run.sampled:
                build("tile.logits", values, bases=run.bases)
                build("tile.candidate", values, bases=run.bases)
            else:
                build("tile.publish", values, bases=[at + base for base in run.bases])
            build("tile.yield")

    def _follow(self, run: Run, op: Any, values: list[Any]) -> list[Any]:
        """One operation of a chain on the values of both halves; the values after it."""
        name = name_of(op)
        if name == "graph.rope":
            facts = {n: get(op, n) for n in ("head_size", "style")}
            return self._pair("tile.rope", values, self.declared.rope_table(op), **facts)
        if name == "graph.append":
            build("tile.append", [*values, self.declared.state(op)], bases=run.bases)
            return values
        if name == "graph.glu":
            facts = {"activation": get(op, "activation")}
            return list(build("tile.glu", values, [ir.F32Type.get()], **facts).results)
        assert name == "graph.add", name
        (other,) = [value for value in op.operands if value in self.where]
        channel, offset = self._place(other)
        return self._pair("tile.residual", values, channel, bases=[offset + b for b in run.bases])

    def _pair(self, name: str, values: list[Any], operand: Any, **facts: Any) -> list[Any]:
        f32 = ir.F32Type.get()
        return list(build(name, [*values, operand], [f32, f32], **facts).results)
