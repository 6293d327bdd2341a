"""outline-stages: tile stages become engine bodies, once each, and rows of the phase table."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from tileir.dialect.attributes import build, get, located, name_of, put, shape_of, walk
from tileir.errors import ContractError
from tileir.mlir import ir
from tileir.passes.base import Pass
from tileir.target import find_target

STAGES = ("tile.contract", "tile.attend", "tile.map", "tile.select")
# What a channel is called, by what its stage holds.
NAMES = {
    "tile.append": "qkv",
    "tile.candidate": "candidates",
    "tile.glu": "gated",
    "tile.residual": "residual",
    "tile.attend": "partial",
    "tile.combine": "attention",
    "tile.lookup": "embedding",
    "tile.contract": "linear",
}
STREAM = ("heads", "kv_heads", "head_size", "window", "splits")


@dataclass(frozen=True)
class OutlineStagesPass(Pass):
    """Build the engine module: declarations, deduplicated bodies, phase table.

    Before: tile level, scheduled and synchronised, with roles. After: engine level, one
    engine.device. A body is what the roles do in a stage; stages that differ only in operands,
    weights, tile base and rotation share one, so that more layers make more rows and no more
    bodies. Channels are named by what they carry, ranges of one tile space share a channel. A body
    keeps its state edges, `release` and `acquire`, as numbers of its arguments.

        "tile.contract"(%x) … ; "tile.contract"(%y) …
        → "engine.body"() … {kind = "contract", sym_name = "contract_0"}
          "engine.row"() {body = "contract_0", names = ["embedding_0", "qkv_0", …], phase = 1, …}
          "engine.row"() {body = "contract_0", names = ["residual_1", "qkv_1", …], phase = 7, …}
    """

    name: ClassVar[str] = "outline-stages"
    before: ClassVar[str] = "tile"
    after: ClassVar[str] = "engine"

    target: str = "h100"

    def run(self, module: Any) -> None:
        """Replace the function by a device. Raises ContractError if an earlier pass has not run."""
        target = find_target(self.target)
        (function,) = walk(module, "func.func")
        stages = list(walk(function, *STAGES))
        roles = _decided(module, "tileir.roles", "specialize-warp")
        rings = _decided(module, "tileir.rings", "schedule-pipeline")
        with ir.InsertionPoint(module.body), function.location:
            device = build(
                "engine.device",
                regions=1,
                index=0,
                sms=target.sms,
                consumer_warps=roles["consumer"],
                tokens=shape_of(stages[0].operation.results[0])[0],
                context=_decided(module, "tileir.context", "the importer"),
                vocabulary=_decided(module, "tileir.vocabulary", "the importer"),
            )
        outliner = _Outliner()
        with ir.InsertionPoint(device.regions[0].blocks.append()):
            for ring in ("tape", "state"):
                build("engine.ring", sym_name=ring, slots=max(2, rings["window"]), **rings)
            outliner.declare(function, stages)
            for op in stages:
                with op.operation.location:
                    outliner.outline(op)
            for location, facts in outliner.rows:
                with location:
                    build("engine.row", **facts)
        function.operation.erase()
        put(module.operation, **{"tileir.level": "engine"})


def _decided(op: Any, name: str, by: str) -> Any:
    """An attribute that an earlier pass puts."""
    value = get(op, name)
    if value is None:
        raise ContractError(
            f"{name_of(op)} has no {name!r}",
            location=located(op),
            hint=f"{by} puts it: run it first",
        )
    return value


@dataclass
class _Outliner:
    """Names values, keeps one body a structure, collects the rows that go behind the bodies."""

    names: dict[Any, str] = field(default_factory=dict)
    bodies: dict[str, str] = field(default_factory=dict)
    rows: list[tuple[Any, dict[str, Any]]] = field(default_factory=list)
    taken: set[str] = field(default_factory=set)
    numbers: dict[str, int] = field(default_factory=dict)

    def _fresh(self, stem: str) -> str:
        """`stem` with the next number that makes a name of its own."""
        while True:
            number = self.numbers[stem] = self.numbers.get(stem, -1) + 1
            if f"{stem}_{number}" not in self.taken:
                return f"{stem}_{number}"

    def declare(self, function: Any, stages: list[Any]) -> None:
        """Buffers and states under their names, then the channels."""
        for op in walk(function, "tile.buffer", "tile.state"):
            value, facts = op.operation.results[0], dict(op.operation.attributes.items())
            self.names[value] = get(op, "sym_name")
            self.taken.add(self.names[value])
            build(name_of(op).replace("tile.", "engine."), [], [value.type], **facts)
        for op in stages:
            if name_of(op) == "tile.select":
                continue
            value = op.operation.results[0]
            into = list(op.operation.operands)[1:] if name_of(op) == "tile.contract" else []
            if into:
                self.names[value] = self.names[into[0]]
                continue
            holds = {name_of(o) for o in walk(op)}
            self.names[value] = self._fresh(next(NAMES[n] for n in NAMES if n in holds))
            parts = ("payload", "protocol", "level", "depth")
            facts = {n: _decided(op, n, "select-sync") for n in parts}
            build("engine.channel", [], [value.type], sym_name=self.names[value], **facts)

    def outline(self, op: Any) -> None:
        """The body of a stage, if no other has it, and the stage's row."""
        kind, stem, values = name_of(op).removeprefix("tile."), _stem(op), _operands(op)
        body = build("engine.body", regions=1, sym_name="", kind=kind)
        block = body.regions[0].blocks.append(*[v.type for v in values])
        with ir.InsertionPoint(block):
            EMIT[kind](op, dict(zip(values, block.arguments, strict=True)))
        names = [self.names[v] for v in values]
        for edge in ("release", "acquire"):
            if get(op, edge):
                put(body, **{edge: [names.index(state) for state in get(op, edge)]})
        # Without `assume_verified` printing verifies the whole module: quadratic.
        text = body.get_asm(assume_verified=True)
        if text in self.bodies:
            body.erase()
        else:
            self.bodies[text] = self._fresh(stem)
            put(body, sym_name=self.bodies[text])
        facts = {n: _decided(op, n, "schedule-pipeline") for n in ("phase", "rotation")}
        facts |= {"tile_base": get(op, "tile_base", 0), "weights": get(op, "weights", [])}
        row = {"body": self.bodies[text], "names": names, **facts}
        self.rows.append((op.operation.location, row))


def _stem(op: Any) -> str:
    """A body's name without number: its kind, a map's by what it computes."""
    if name_of(op) != "tile.map":
        return name_of(op).removeprefix("tile.")
    return name_of(op.operation.regions[0].blocks[0].operations[0]).removeprefix("tile.")


def _operands(op: Any) -> list[Any]:
    """The body's operands, each once: (x and) result, then what the regions use, in that order."""
    operands, result = list(op.operation.operands), list(op.operation.results)
    if name_of(op) == "tile.select":
        return operands
    if name_of(op) == "tile.attend":
        return operands + result
    values = operands[:1] + result if name_of(op) == "tile.contract" else result
    for region in op.operation.regions:
        for inner in (o for top in region.blocks[0] for o in walk(top)):
            used = [v for v in inner.operands if isinstance(v.type, ir.RankedTensorType)]
            values += [v for v in used if v not in values]
    return values


def _contract(op: Any, arguments: dict[Any, Any]) -> None:
    x, out = list(arguments.values())[:2]
    k, tiles = get(op, "k"), get(op, "tiles")
    space = sum(get(segment, "tiles") for segment in walk(op, "tile.segment"))

    def consumer() -> None:
        prologue, epilogue = _regions(op, arguments)
        receive = build("engine.receive", [x], regions=1, k=k)
        prologue.append_to(receive.regions[0])
        build("engine.barrier")
        build("engine.multiply", k=k, tiles=tiles, ring="tape")
        build("engine.barrier")
        emit = build("engine.emit", [out], regions=1, tiles=tiles, space=space)
        epilogue.append_to(emit.regions[0])

    _role("tape", lambda: build("engine.fill", ring="tape", source="tape", k=k, tiles=tiles))
    _role("consumer", consumer)


def _attend(op: Any, arguments: dict[Any, Any]) -> None:
    operands = list(arguments.values())
    stream = {"ring": "state"} | {n: get(op, n) for n in STREAM}
    rest = {n: get(op, n) for n in ("scale", "softcap", "offsets")}
    _role("state", lambda: build("engine.fill", operands[1:3], source="state", **stream))
    _role("consumer", lambda: build("engine.attend", operands, **stream, **rest))


def _map(op: Any, arguments: dict[Any, Any]) -> None:
    out = next(iter(arguments.values()))

    def consumer() -> None:
        (body,) = _regions(op, arguments)
        body.append_to(build("engine.map", [out], regions=1, rows=get(op, "rows")).regions[0])

    _role("consumer", consumer)


def _select(op: Any, arguments: dict[Any, Any]) -> None:
    channels = list(arguments.values())
    _role("consumer", lambda: build("engine.select", channels, kind=get(op, "kind")))


EMIT: dict[str, Callable[[Any, dict[Any, Any]], None]] = {
    "contract": _contract,
    "attend": _attend,
    "map": _map,
    "select": _select,
}


def _regions(op: Any, arguments: dict[Any, Any]) -> list[Any]:
    """The blocks of a stage's regions, with the body's arguments for what they use.

    They are moved, not copied: the stage is an empty shell until its function is erased.
    """
    blocks = [region.blocks[0] for region in op.operation.regions]
    for inner in (o for block in blocks for top in block for o in walk(top)):
        for i, value in enumerate(inner.operands):
            if value in arguments:
                inner.operands[i] = arguments[value]
    return blocks


def _role(name: str, emit: Callable[[], Any]) -> None:
    role = build("engine.role", regions=1, sym_name=name)
    with ir.InsertionPoint(role.regions[0].blocks.append()):
        emit()
