"""outline-stages: tile stages become engine bodies, once each, and rows of the phase table."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from tileir.dialect.attributes import build, get, name_of, put, shape_of, walk
from tileir.mlir import ir
from tileir.passes.base import Pass
from tileir.target import Target, find_target

STAGES = ("tile.contract", "tile.attend", "tile.map", "tile.select")
_ATTEND = ("heads", "kv_heads", "head_size", "window", "splits")


@dataclass(frozen=True)
class OutlineStagesPass(Pass):
    """Build the engine module: declarations, deduplicated bodies, phase table.

    Before: tile level, scheduled and synchronised. After: engine level; one engine.device whose bodies differ in
    structure and whose rows hold what differs between stages of one structure: operands, weights, rotation, tile base.
    A model with more layers has more rows, not more bodies.

        "tile.contract"(%x) … ; "tile.contract"(%y) …
        → "engine.body"() … {sym_name = "contract_0"}
          "engine.row"() {body = "contract_0", names = ["stage_0", …]} ; "engine.row"() {body = "contract_0", …}
    """

    name: ClassVar[str] = "outline-stages"
    before: ClassVar[str] = "tile"
    after: ClassVar[str] = "engine"

    target: str = "h100"

    def run(self, module: Any) -> None:
        """Replace the function by a device."""
        target = find_target(self.target)
        (function,) = walk(module, "func.func")
        stages = list(walk(function, *STAGES))
        tokens = shape_of(stages[0].results[0])[0]
        with ir.InsertionPoint(module.body), function.location:
            device = build(
                "engine.device", [], [], 1, index=0, sms=target.sms,
                consumer_warps=get(module, "tileir.roles")["consumer"], tokens=tokens,
                context=get(module, "tileir.context"), vocabulary=get(module, "tileir.vocabulary"),
            )  # fmt: skip
        block = device.regions[0].blocks.append()
        outliner = _Outliner(target)
        with ir.InsertionPoint(block):
            outliner.declare(function, stages)
            for op in stages:
                with op.location:
                    outliner.outline(op)
            for row in outliner.rows:
                row()
        function.operation.erase()
        put(module.operation, **{"tileir.level": "engine"})


@dataclass
class _Outliner:
    """Names values, keeps one body a structure, collects rows to be put behind the bodies."""

    target: Target
    names: dict[Any, str] = field(default_factory=dict)
    bodies: dict[str, str] = field(default_factory=dict)
    rows: list[Callable[[], None]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    # ---- declarations

    def declare(self, function: Any, stages: list[Any]) -> None:
        """The rings, then channels, buffers and states under their names."""
        for ring in ("tape", "state"):
            size, window = self.target.slot_bytes, self.target.window
            build("engine.ring", sym_name=ring, slots=max(2, window), slot_bytes=size, window=window)
        for op in walk(function, "tile.buffer", "tile.state"):
            facts = {n: a for n, a in op.attributes.items()}
            self.names[op.results[0]] = get(op, "sym_name")
            build(op.operation.name.replace("tile.", "engine."), [], [op.results[0].type], **facts)
        for i, op in enumerate(stages):
            if name_of(op) == "tile.select":
                continue
            into = list(op.operands)[1:] if name_of(op) == "tile.contract" else []
            if into:
                self.names[op.results[0]] = self.names[into[0]]
                continue
            self.names[op.results[0]] = f"stage_{i}"
            facts = {n: get(op, n) for n in ("payload", "protocol", "level", "depth")}
            build("engine.channel", [], [op.results[0].type], sym_name=f"stage_{i}", **facts)

    # ---- bodies and rows

    def outline(self, op: Any) -> None:
        """The body of a stage, if it is new, and its row."""
        kind = name_of(op).removeprefix("tile.")
        emit = {
            "contract": self._contract,
            "attend": self._attend,
            "map": self._map,
            "select": self._select,
        }[kind]
        values = _operands(op)
        body = build("engine.body", [], [], 1, sym_name="", kind=kind)
        block = body.regions[0].blocks.append(*[v.type for v in values])
        with ir.InsertionPoint(block):
            emit(op, dict(zip(values, block.arguments, strict=True)))
        for edge in ("release", "acquire"):
            if get(op, edge):
                put(body, **{edge: [i for i, v in enumerate(values) if self.names[v] in get(op, edge)]})
        text = body.operation.get_asm(use_local_scope=True)
        if text in self.bodies:
            body.erase()
        else:
            number = self.counts[kind] = self.counts.get(kind, -1) + 1
            self.bodies[text] = f"{kind}_{number}"
            put(body, sym_name=self.bodies[text])
        facts = {n: get(op, n) for n in ("phase", "rotation")}
        facts |= {"tile_base": get(op, "tile_base", 0), "weights": get(op, "weights", [])}
        name, names, location = self.bodies[text], [self.names[v] for v in values], op.location

        def row() -> None:
            with location:
                build("engine.row", body=name, names=names, **facts)

        self.rows.append(row)

    def _contract(self, op: Any, arguments: dict[Any, Any]) -> None:
        k, tiles = get(op, "k"), get(op, "tiles")
        segments = walk(op, "tile.segment")
        space = sum(get(s, "tiles") for s in segments)
        x, out = list(arguments.values())[:2]
        copy = _clone(op, arguments)

        def consumer() -> None:
            receive = build("engine.receive", [x], [], 1, k=k)
            copy.regions[0].blocks[0].append_to(receive.regions[0])
            build("engine.barrier")
            build("engine.multiply", k=k, tiles=tiles, ring="tape")
            build("engine.barrier")
            emit = build("engine.emit", [out], [], 1, tiles=tiles, space=space)
            copy.regions[1].blocks[0].append_to(emit.regions[0])

        _role("tape", lambda: build("engine.fill", ring="tape", source="tape", k=k, tiles=tiles))
        _role("consumer", consumer)
        copy.erase()

    def _attend(self, op: Any, arguments: dict[Any, Any]) -> None:
        qkv, k, v, partial = arguments.values()
        shape = {n: get(op, n) for n in _ATTEND}
        more = {n: get(op, n) for n in ("scale", "softcap", "offsets")}
        _role("state", lambda: build("engine.fill", [k, v], ring="state", source="state", **shape))
        operands = [qkv, k, v, partial]
        _role("consumer", lambda: build("engine.attend", operands, ring="state", **shape, **more))

    def _map(self, op: Any, arguments: dict[Any, Any]) -> None:
        out, *_ = arguments.values()
        copy = _clone(op, arguments)

        def consumer() -> None:
            made = build("engine.map", [out], [], 1, rows=get(op, "rows"))
            copy.regions[0].blocks[0].append_to(made.regions[0])

        _role("consumer", consumer)
        copy.erase()

    def _select(self, op: Any, arguments: dict[Any, Any]) -> None:
        channels = list(arguments.values())
        _role("consumer", lambda: build("engine.select", channels, kind=get(op, "kind")))


def _operands(op: Any) -> list[Any]:
    """The body's operands: x and result, or result first, then what the regions use, each once."""
    name, operands = name_of(op), list(op.operands)
    if name == "tile.select":
        return operands
    if name == "tile.attend":
        return [*operands, op.results[0]]
    values = [operands[0], op.results[0]] if name == "tile.contract" else [op.results[0]]
    for inner in walk(op):
        if inner != op.operation:
            outside = [v for v in inner.operands if "tensor" in str(v.type)]
            values += [v for v in outside if v not in values]
    return values


def _clone(op: Any, arguments: dict[Any, Any]) -> Any:
    """A copy of a stage whose regions use the body's arguments."""
    copy = op.operation.clone()
    for inner in list(walk(copy)):
        for i, value in enumerate(inner.operands):
            if value in arguments:
                inner.operands[i] = arguments[value]
    return copy


def _role(name: str, emit: Callable[[], Any]) -> None:
    role = build("engine.role", [], [], 1, sym_name=name)
    with ir.InsertionPoint(role.regions[0].blocks.append()):
        emit()
