"""tile-graph: stages of graph operations become tile stages on channels."""

from dataclasses import dataclass
from itertools import groupby
from typing import Any, ClassVar

from tileir.dialect.attributes import (
    build,
    get,
    located,
    name_of,
    put,
    shape_of,
    tensor,
    walk,
)
from tileir.dialect.tile import HALF_ROWS, TILE_ROWS
from tileir.errors import TileirError
from tileir.mlir import func, ir
from tileir.passes.base import Pass


@dataclass(frozen=True)
class TileGraphPass(Pass):
    """Turn stages into contract, attend, map and select on channels.

    Before: graph level, every compute op with `stage`, `stage_kind` and `devices`. After: tile level; one op per
    stage (attend with its combine), linears' rows cut into tiles whose halves hold what the epilogue needs together:
    rope's pairs, gate and up. `tokens`: most tokens a step.

        %c = "tile.contract"(%x) ({ ^bb0(%v: f32): %n = "tile.rms_norm"(%v, %w) … }, { "tile.segment"() … })
           {weights = ["q", "k", "v"], k = 576, tile_base = 0, tiles = 60, …}
    """

    name: ClassVar[str] = "tile-graph"
    before: ClassVar[str] = "graph"
    after: ClassVar[str] = "tile"

    tokens: int = 1

    def run(self, module: Any) -> None:
        """Replace the function. Raises TileirError for what has no tile form."""
        (function,) = walk(module, "func.func")
        ops = [o for o in function.regions[0].blocks[0] if get(o, "stage") is not None]
        with ir.InsertionPoint(module.body), function.location:
            tokens = ir.RankedTensorType(function.regions[0].blocks[0].arguments[0].type)
            made = func.FuncOp("step", ([tokens, tokens], [tokens]))
            block = made.add_entry_block()
        builder = _Builder(self.tokens, get(module, "tileir.context", 0))
        with ir.InsertionPoint(block):
            by_stage = sorted(ops, key=lambda o: get(o, "stage"))
            result = None
            for _, group in groupby(by_stage, key=lambda o: get(o, "stage")):
                members = list(group)
                with members[0].location:
                    result = builder.stage(members)
            with function.location:
                func.ReturnOp([result])
        function.operation.erase()
        put(module.operation, **{"tileir.level": "tile"})


class _Builder:
    """Emits tile stages; remembers where each graph value lies: (channel, first index)."""

    def __init__(self, tokens: int, context: int) -> None:
        self.tokens, self.context = tokens, context
        self.where: dict[Any, tuple[Any, int]] = {}
        self.declared: dict[Any, Any] = {}
        self.result: Any = None

    def stage(self, members: list[Any]) -> Any:
        """One stage; the op's result."""
        kind = get(members[0], "stage_kind")
        emit = {
            "contract": self._contract,
            "attend": self._attend,
            "map": self._embedding,
            "select": self._select,
        }[kind]
        self.result = emit(members)
        return self.result

    # ---- declarations, made where they are first needed

    def _buffer(self, value: Any) -> Any:
        """The packed constant of a weight that is addressed."""
        name = get(_owner(value), "sym_name")
        if name not in self.declared:
            kind = tensor(shape_of(value), "bf16", "buffer")
            self.declared[name] = build("tile.buffer", [], [kind], sym_name=name, kind="tensor").results[0]
        return self.declared[name]

    def _rope_table(self, op: Any) -> Any:
        frequencies, scale = get(_owner(op.operands[2]), "value"), get(op, "scale")
        key = (frequencies.tobytes(), scale)
        if key not in self.declared:
            kind = tensor([self.context, len(frequencies), 2], "f32", "buffer")
            number = sum(isinstance(k, tuple) for k in self.declared)
            self.declared[key] = build(
                "tile.buffer",
                [],
                [kind],
                sym_name=f"rope_{number}",
                kind="rope",
                inv_freq=frequencies,
                scale=scale,
            ).results[0]
        return self.declared[key]

    def _state(self, value: Any) -> Any:
        """The state behind an append's result."""
        owner = _owner(value)
        while name_of(owner) == "graph.append":
            owner = _owner(owner.operands[0])
        name = get(owner, "sym_name")
        if name not in self.declared:
            kind = tensor(shape_of(value), "bf16", "state")
            self.declared[name] = build("tile.state", [], [kind], sym_name=name).results[0]
        return self.declared[name]

    def _channel(self, size: int) -> Any:
        return tensor([self.tokens, size], "bf16", "channel")

    # ---- stages

    def _embedding(self, members: list[Any]) -> Any:
        (op,) = members
        table = self._buffer(op.operands[0])
        hidden = shape_of(table)[1]
        assert hidden is not None
        made = build(
            "tile.map", [table], [self._channel(hidden)], 1, rows=hidden // 2, devices=get(op, "devices")
        )
        with ir.InsertionPoint(made.regions[0].blocks.append()):
            row = build("tile.lookup", [table], [ir.F32Type.get()], scale=get(op, "scale"))
            build("tile.yield", [row.results[0]])
        self.where[op.results[0]] = (made.results[0], 0)
        return made.results[0]

    def _attend(self, members: list[Any]) -> Any:
        (op,) = members
        q, k, v = (op.operands[i] for i in range(3))
        places = [self._place(q), *(self._place(_owner(s).operands[1]) for s in (k, v))]
        if len({channel for channel, _ in places}) != 1:
            raise TileirError(
                "q, k and v come from different stages",
                location=located(op),
                hint="project q, k and v from the same values",
            )
        heads, size = get(op, "heads"), get(op, "head_size")
        names = ("heads", "kv_heads", "head_size", "scale", "window", "softcap", "devices")
        partial = build(
            "tile.attend",
            [places[0][0], self._state(k), self._state(v)],
            [tensor([self.tokens, heads, 1, size + 2], "f32", "channel")],
            splits=1,
            offsets=[offset for _, offset in places],
            **{n: get(op, n) for n in names},
        ).results[0]
        made = build(
            "tile.map", [partial], [self._channel(heads * size)], 1, rows=heads, devices=get(op, "devices")
        )
        with ir.InsertionPoint(made.regions[0].blocks.append()):
            value = build("tile.combine", [partial], [ir.F32Type.get()])
            build("tile.yield", [value.results[0]])
        self.where[op.results[0]] = (made.results[0], 0)
        return made.results[0]

    def _select(self, members: list[Any]) -> Any:
        (op,) = members
        channel, _ = self._place(op.operands[0])
        return build("tile.select", [channel], [op.results[0].type], kind=get(op, "kind"),
                     devices=get(op, "devices")).results[0]  # fmt: skip

    def _place(self, value: Any) -> tuple[Any, int]:
        """Where a value lies; through appends, since a state's new row travels in the channel."""
        assert value in self.where, f"{value} was not published"
        return self.where[value]

    def _contract(self, members: list[Any]) -> Any:
        linears = [o for o in members if name_of(o) == "graph.linear"]
        source = linears[0].operands[0]
        norm = _owner(source) if name_of(_owner(source)) == "graph.rms_norm" else None
        x, offset = self._place(source if norm is None else norm.operands[0])
        k = shape_of(linears[0].operands[1])[1]
        if offset or shape_of(x)[1] != k:
            raise TileirError(
                "a linear reads a part of what another stage made",
                location=located(linears[0]),
                hint="a linear reads all values of a stage",
            )
        gates = [o for o in members if name_of(o) == "graph.glu"]
        plans = [self._glu(g) for g in gates] if gates else [self._rows(o) for o in linears]
        self._declare(plans, norm)
        size = sum(p.outputs for p in plans)
        candidates = any(p.sampled for p in plans)
        result = tensor([self.tokens, 1, 2], "i32", "channel") if candidates else self._channel(size)
        names = [get(_owner(w), "sym_name") for p in plans for w in p.weights]
        made = build(
            "tile.contract", [x], [result], 2, weights=names, k=k, groups=1, k_parts=1, tile_base=0,
            tiles=sum(p.tiles for p in plans), devices=get(linears[0], "devices"),
        )  # fmt: skip
        self._prologue(made.regions[0], norm)
        with ir.InsertionPoint(made.regions[1].blocks.append()):
            at, weight = 0, 0
            for plan in plans:
                self._segment(plan, weight, at, made.results[0])
                at, weight = at + plan.outputs, weight + len(plan.weights)
            build("tile.yield")
        return made.results[0]

    def _declare(self, plans: list["_Plan"], norm: Any) -> None:
        """Declarations go before the contract that uses them."""
        if norm is not None:
            self._buffer(norm.operands[1])
        for plan in plans:
            for linear in plan.linears:
                for bias in list(linear.operands)[2:]:
                    self._buffer(bias)
            if plan.rope is not None:
                self._rope_table(plan.rope)
            for append in plan.appends:
                self._state(append.results[0])

    def _prologue(self, region: Any, norm: Any) -> None:
        f32 = ir.F32Type.get()
        block = region.blocks.append(f32)
        with ir.InsertionPoint(block):
            value = block.arguments[0]
            if norm is not None:
                facts = {"eps": get(norm, "eps"), "unit_offset": get(norm, "unit_offset")}
                weight = self._buffer(norm.operands[1])
                value = build("tile.rms_norm", [value, weight], [f32], **facts).results[0]
            build("tile.yield", [value])

    def _rows(self, linear: Any) -> "_Plan":
        """A linear with rope, appends, a residual or the sampler behind it."""
        rows = shape_of(linear.operands[1])[0]
        assert rows is not None
        value = linear.results[0]
        rope = _user(value, "graph.rope")
        value = rope.results[0] if rope is not None else value
        appends = [u.owner for u in value.uses if name_of(u.owner) == "graph.append"]
        add = _user(value, "graph.add")
        sampled = _user(value, "graph.sample") is not None
        value = add.results[0] if add is not None else value
        plan = _Plan([linear], rows, rows // TILE_ROWS, TILE_ROWS, rope=rope, appends=appends, add=add,
                     value=value, sampled=sampled)  # fmt: skip
        if rope is not None:
            plan = plan.of_heads(get(rope, "head_size"))
        if rows % TILE_ROWS and not sampled:
            raise TileirError(
                f"a linear of {rows} rows",
                location=located(linear),
                hint=f"rows are multiples of {TILE_ROWS}",
            )
        return plan if not sampled else plan.rounded_up()

    def _glu(self, glu: Any) -> "_Plan":
        gate, up = (_owner(v) for v in glu.operands)
        rows = shape_of(gate.operands[1])[0]
        assert rows is not None
        if any(name_of(o) != "graph.linear" for o in (gate, up)) or rows % HALF_ROWS:
            raise TileirError(
                f"a gated unit of {rows} rows from {name_of(gate)} and {name_of(up)}",
                location=located(glu),
                hint=f"gate and up are linears, with rows that are multiples of {HALF_ROWS}",
            )
        return _Plan([gate, up], rows, rows // HALF_ROWS, HALF_ROWS, value=glu.results[0], glu=glu)

    def _segment(self, plan: "_Plan", weight: int, at: int, channel: Any) -> None:
        f32 = ir.F32Type.get()
        other = (weight + 1, 0) if plan.glu is not None else (weight, plan.hi)
        op = build(
            "tile.segment", [], [], 1, tiles=plan.tiles, inner=plan.inner, step=plan.step,
            outer=plan.outer, sources=[weight, 0, *other],
        )  # fmt: skip
        block = op.regions[0].blocks.append(f32, f32)
        with ir.InsertionPoint(block):
            values = list(block.arguments)
            bases = [0, plan.hi]
            for linear in plan.linears:
                for bias in list(linear.operands)[2:]:
                    values = self._bias(plan, values, linear, self._buffer(bias))
            if plan.rope is not None:
                facts = {n: get(plan.rope, n) for n in ("head_size", "style")}
                table = self._rope_table(plan.rope)
                values = list(build("tile.rope", [*values, table], [f32, f32], **facts).results)
            for append in plan.appends:
                build("tile.append", [*values, self._state(append.results[0])], bases=bases)
            if plan.glu is not None:
                activation = get(plan.glu, "activation")
                values = list(build("tile.glu", values, [f32], activation=activation).results)
                bases = [0]
            if plan.add is not None:
                values = self._residual(plan, values, bases)
            if plan.sampled:
                build("tile.logits", values, bases=bases)
                build("tile.candidate", values, bases=bases)
            else:
                build("tile.publish", values, bases=[at + b for b in bases])
            build("tile.yield")
        self.where[plan.value] = (channel, at)

    def _bias(self, plan: "_Plan", values: list[Any], linear: Any, bias: Any) -> list[Any]:
        if plan.glu is not None:
            raise TileirError(
                "a bias inside a gated unit",
                location=located(linear),
                hint="gate and up projections without bias",
            )
        f32 = ir.F32Type.get()
        return list(build("tile.bias", [*values, bias], [f32, f32], bases=[0, plan.hi]).results)

    def _residual(self, plan: "_Plan", values: list[Any], bases: list[int]) -> list[Any]:
        mine = plan.linears[0].results[0]
        (other,) = [v for v in plan.add.operands if v != mine]
        channel, offset = self._place(other)
        places = [offset + b for b in bases]
        f32 = ir.F32Type.get()
        return list(build("tile.residual", [*values, channel], [f32, f32], bases=places).results)


@dataclass(frozen=True)
class _Plan:
    """A segment to be: its linears, the rows it makes, and what follows.

    Half hi begins `hi` rows behind lo; tiles go on as (t / inner)·outer + (t % inner)·step.
    """

    linears: list[Any]
    outputs: int
    tiles: int
    step: int
    value: Any
    inner: int = 0
    outer: int = 0
    hi: int = HALF_ROWS
    rope: Any = None
    appends: Any = ()
    add: Any = None
    glu: Any = None
    sampled: bool = False

    def __post_init__(self) -> None:
        if not self.inner:
            object.__setattr__(self, "inner", self.tiles)

    @property
    def weights(self) -> list[Any]:
        """The linears' weights."""
        return [o.operands[1] for o in self.linears]

    def of_heads(self, size: int) -> "_Plan":
        """The same rows, halves being the halves of heads of `size`."""
        if get(self.rope, "style") != "half" or size % TILE_ROWS:
            raise TileirError(
                f"rope of style {get(self.rope, 'style')!r} on heads of {size}",
                location=located(self.rope),
                hint=f'style "half" on head sizes that are multiples of {TILE_ROWS}',
            )
        changes = {"step": HALF_ROWS, "inner": size // TILE_ROWS, "outer": size, "hi": size // 2}
        return _Plan(**{**self.__dict__, **changes})

    def rounded_up(self) -> "_Plan":
        """The same rows with a last tile that may be short."""
        tiles = -(-self.outputs // TILE_ROWS)
        return _Plan(**{**self.__dict__, "tiles": tiles, "inner": tiles})


def _owner(value: Any) -> Any:
    owner = value.owner
    return owner.operation if hasattr(owner, "operation") else owner


def _user(value: Any, name: str) -> Any:
    """The first user of a value that is called `name`."""
    return next((u.owner for u in value.uses if name_of(u.owner) == name), None)
