"""outline-stages: tile stages become engine bodies, once each, and rows of the phase table."""

from dataclasses import dataclass
from typing import Any, ClassVar

from tileir.dialect.attributes import build, get, name_of, put, walk
from tileir.dialect.tile import source_of
from tileir.errors import ContractError
from tileir.mlir import ir
from tileir.passes.base import Pass
from tileir.passes.dataflow import decided, readers
from tileir.passes.outline_bodies import build_body, operands_of, stem_of
from tileir.passes.parts import part_of
from tileir.scheduling.rings import BLOCK_BYTES
from tileir.target import find_target

STAGES = ("tile.contract", "tile.attend", "tile.map", "tile.select")
# What a channel is called, by what its stage holds.
NAMES = {
    "tile.append": "qkv",
    "tile.candidate": "candidates",
    "tile.glu": "gated",
    "tile.weigh": "weighted",
    "tile.relu_sum": "scores",
    "tile.residual": "residual",
    "tile.attend": "partial",
    "tile.combine": "attention",
    "tile.lookup": "embedding",
    "tile.sum": "residual",
    "tile.map": "rows",
    "tile.contract": "linear",
}
SELECTED = {"route": "routing", "top_k": "indices"}


@dataclass(frozen=True)
class OutlineStagesPass(Pass):
    """Build the engine module: declarations, deduplicated bodies, phase table.

    Before: tile level, scheduled and synchronised, with roles. After: engine level, an
    engine.device for every GPU, with rows of the stages that it has a part in: its tiles, groups, experts
    or values of K. A body is what the roles do in a stage; stages that differ only in operands,
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
        """Replace the function by devices.

        Raises ContractError if an earlier pass has not run, or for rings of no size.
        """
        target = find_target(self.target)
        (function,) = walk(module, "func.func")
        stages = list(walk(function, *STAGES))
        roles = decided(module, "tileir.roles", "specialize-warp")
        _check_sizes(roles, "tileir.roles has ", {"consumer": 1})
        rings = decided(module, "tileir.rings", "schedule-pipeline")
        _check_sizes(rings, "tileir.rings has ", _RINGS)
        devices = sorted({d for op in stages for d in decided(op, "devices", "specialize-gpu")})
        facts = {n: get(module, f"tileir.{n}", d) for n, d in _STEP.items()}
        facts |= {n: decided(module, f"tileir.{n}", "the importer") for n in _MODEL}
        _check_sizes(facts, "the module has tileir.", dict.fromkeys(_COUNTS, 1))
        names = _name_channels(function, stages)
        for index in devices:
            with ir.InsertionPoint(module.body), function.location:
                device = build(
                    "engine.device",
                    regions=1,
                    index=index,
                    devices=len(devices),
                    sms=target.sms,
                    consumer_warps=roles["consumer"],
                    **facts,
                )
            outliner = _Outliner(index, names)
            with ir.InsertionPoint(device.regions[0].blocks.append()):
                for ring in _rings(stages):
                    build("engine.ring", sym_name=ring, slots=max(2, rings["window"]), **rings)
                outliner.outline(function, stages)
        function.operation.erase()
        put(module.operation, **{"tileir.level": "engine"})


_STEP = {"tokens": 1, "sequences": 1, "page": 0}
_MODEL = ("context", "vocabulary")
_COUNTS = ("tokens", "sequences", *_MODEL)
_RINGS = {"slot_bytes": BLOCK_BYTES, "window": 1, "fed_window": 1}


def _check_sizes(facts: dict[str, Any], what: str, units: dict[str, int]) -> None:
    """Raises ContractError for a fact that is no positive multiple of its unit."""
    for name, unit in units.items():
        if facts.get(name, 0) < unit or facts[name] % unit:
            said = f"{what}{name} = {facts.get(name)}"
            raise ContractError(said, hint=f"it is a positive multiple of {unit}")


def _rings(stages: list[Any]) -> list[str]:
    """The rings that stages need; each has a loader role of its name."""
    kinds = [get(op, "ring") for op in stages if name_of(op) == "tile.attend"]
    streamed = [source_of(op) for op in stages if name_of(op) == "tile.contract"]
    state = "state" in kinds or any(source != "tape" for source in streamed)
    return ["tape", "state"] if state else ["tape"]


def _name_channels(function: Any, stages: list[Any]) -> dict[Any, str]:
    """The names of buffers, states and channels, the same on all GPUs."""
    names: dict[Any, str] = {}
    for op in walk(function, "tile.buffer", "tile.state"):
        names[op.operation.results[0]] = get(op, "sym_name")
    views: dict[str, int] = {}
    for op in walk(function, "tile.buffer"):
        if get(op, "view"):
            name = get(op, "sym_name")
            views[name] = views.get(name, -1) + 1
            names[op.operation.results[0]] = f"{name}#{views[name]}"
    taken, numbers = set(names.values()), dict[str, int]()
    for op in stages:
        value = op.operation.results[0]
        into = list(op.operation.operands)[1:] if name_of(op) == "tile.contract" else []
        if into:
            names[value] = names[into[0]]
            continue
        if name_of(op) == "tile.select":
            if get(op, "kind") == "argmax":
                continue
            stem = SELECTED[get(op, "kind")]
        else:
            holds = {name_of(o) for o in walk(op)}
            stem = next(NAMES[n] for n in NAMES if n in holds)
        names[value] = fresh(stem, taken, numbers)
    return names


def fresh(stem: str, taken: set[str], numbers: dict[str, int]) -> str:
    """`stem` with the next number that makes a name of its own."""
    while True:
        number = numbers[stem] = numbers.get(stem, -1) + 1
        if f"{stem}_{number}" not in taken:
            return f"{stem}_{number}"


class _Outliner:
    """One GPU: keeps one body a structure, collects the rows that go behind the bodies."""

    def __init__(self, index: int, names: dict[Any, str]) -> None:
        self.index, self.names = index, names
        # By text, and by what codegen is told of channels' copies, which the text does not have.
        self.bodies: dict[Any, str] = {}
        self.copies: dict[str, tuple[int, int]] = {}
        self.rows: list[tuple[Any, dict[str, Any]]] = []
        self.taken, self.numbers = set(names.values()), dict[str, int]()
        self.scratch: Any = None
        self.last: Any = None

    def outline(self, function: Any, stages: list[Any]) -> None:
        """Declarations of what this GPU's rows use, bodies, rows."""
        (end,) = walk(function, "func.return")
        makes = {value: n for value, n in zip(end.operands, ("token", "draft"), strict=False)}
        parts = []
        for number, op in enumerate(stages):
            part = part_of(op.operation, self.index)
            if part is not None:
                _finish(op, part)
                parts.append((number, op, part))
        used = {v for _, op, part in parts for v in (*operands_of(part), op.operation.results[0])}
        self._declare(function, stages, used)
        # Bodies are built by themselves: printing one numbers everything around it.
        self.scratch = ir.Module.create()
        for number, op, part in parts:
            with op.operation.location:
                self._stage(number, op, part, makes.get(op.operation.results[0]))
            part.erase()
        for location, facts in self.rows:
            with location:
                build("engine.row", **facts)

    def _declare(self, function: Any, stages: list[Any], used: set[Any]) -> None:
        declared: set[str] = set()
        for op in walk(function, "tile.buffer", "tile.state"):
            value, facts = op.operation.results[0], dict(op.operation.attributes.items())
            if value in used:
                self._one(name_of(op).replace("tile.", "engine."), value, declared, facts)
        for op in stages:
            value = op.operation.results[0]
            if value in used and value in self.names:
                parts = ("payload", "protocol", "level", "depth", "replicas")
                facts = {n: decided(op, n, "select-sync") for n in parts}
                _check_sizes(
                    facts, f"channel {self.names[value]!r} has ", {"depth": 1, "replicas": 1}
                )
                self.copies[self.names[value]] = facts["depth"], facts["replicas"]
                self._one("engine.channel", value, declared, facts)

    def _one(self, op: str, value: Any, declared: set[str], facts: dict[str, Any]) -> None:
        name = self.names[value]
        if name not in declared:
            declared.add(name)
            if "sym_name" in facts and get(value.owner, "sym_name") != name:
                facts["tensor"] = facts["sym_name"]
            self.last = build(op, [], [value.type], **(facts | {"sym_name": name}))

    def _stage(self, number: int, op: Any, part: Any, makes: str | None) -> None:
        """The body of a stage, if no other has it, and the stage's row. part: what of the stage this GPU does."""
        stem, values = stem_of(op), operands_of(part, op)
        with ir.InsertionPoint(self.scratch.body):
            body = build_body(part, values, makes)
        names = [self.names[v] for v in values]
        for edge in ("release", "acquire"):
            states = [names.index(state) for state in get(op, edge, []) if state in names]
            if states:
                put(body, **{edge: states})
        # Without `assume_verified` printing verifies the whole module: quadratic.
        copies = tuple(self.copies.get(name) for name in names)
        text = body.get_asm(assume_verified=True), copies
        if text in self.bodies:
            body.erase()
        else:
            self.bodies[text] = fresh(stem, self.taken, self.numbers)
            put(body, sym_name=self.bodies[text])
            body.move_after(self.last)
            self.last = body
        facts = {n: decided(op, n, "schedule-pipeline") for n in ("phase", "rotation")}
        facts |= {"tile_base": get(part, "tile_base", 0), "weights": get(part, "weights", [])}
        if get(part, "views"):
            facts["views"] = get(part, "views")
        row = {"stage": number, "body": self.bodies[text], "names": names, **facts}
        self.rows.append((op.operation.location, row))


def _finish(op: Any, part: Any) -> None:
    """Attention whose split may be alone gets its combine's channel, to finish there."""
    if name_of(op) != "tile.attend" or not get(op, "alone"):
        return
    (combine,) = readers(op.operation.results[0])
    end = list(part.regions[0].blocks[0])[-1]
    with ir.InsertionPoint(end), op.operation.location:
        build("tile.finish", [combine.parent.results[0]])
