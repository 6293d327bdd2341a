"""What the kernel needs to know of an engine module, read once.

A table row is 32-bit words: body and rotation (16 bits each), tile base, then one word per operand, its byte offset
in the operand's memory divided by `UNIT`. The kernel walks the table; its code does not grow with the number of layers.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tileir.dialect.attributes import element_of, get, name_of, static_shape, walk
from tileir.dialect.engine import declarations
from tileir.dialect.tile_attend import PIECES
from tileir.errors import TileirError
from tileir.scheduling.assign import rows_a_slot
from tileir.target import Target

UNIT = 256
HEADER_WORDS = 2
MAX_HEAD_SIZE = 256
MAX_QUERIES = 8  # columns of an mma
BLOCK_ROWS = 16  # of old rows, and rows of an mma
MAPS = (
    *("tile.lookup", "tile.combine", "tile.load", "tile.plus", "tile.rms_norm", "tile.layer_norm"),
    *("tile.rotate", "tile.store", "tile.yield"),
)
EPILOGUES = (
    *("tile.bias", "tile.join", "tile.residual", "tile.rope", "tile.glu", "tile.activate"),
    *("tile.scale", "tile.softcap", "tile.append", "tile.publish", "tile.logits"),
    *("tile.candidate", "tile.yield"),
)


@dataclass(frozen=True)
class Ring:
    """Slots between a loader and the consumers; offsets and sizes in bytes of shared memory."""

    name: str
    slots: int
    slot_bytes: int
    window: int
    fed_window: int
    smem_offset: int
    full: int
    empty: int

    @property
    def narrows(self) -> bool:
        """Whether fewer copies are on their way while it is fed; else kernels know one window alone."""
        return self.fed_window < self.window


@dataclass(frozen=True)
class Body:
    """A stage body: its number in the dispatch, its kind, its operation."""

    index: int
    name: str
    kind: str
    op: Any

    def argument(self, value: Any) -> int:
        """The position of a region argument among the row's operands."""
        for i, argument in enumerate(self.op.operation.regions[0].blocks[0].arguments):
            if argument == value:
                return i
        raise AssertionError(f"{value} is no argument of body {self.name}")

    def role(self, name: str) -> list[Any]:
        """The operations of one of the body's roles; none if it has no such role."""
        for op in self.op.operation.regions[0].blocks[0]:
            if name_of(op) == "engine.role" and get(op, "sym_name") == name:
                return list(op.operation.regions[0].blocks[0])
        return []

    def loads(self, role: str, name: str) -> bool:
        """Whether the operation called `name` is one of a role's."""
        return name in map(name_of, self.role(role))

    def find(self, name: str) -> Any:
        """The one operation called `name` in any role."""
        roles = self.op.operation.regions[0].blocks[0]
        found = [o for r in roles for o in r.operation.regions[0].blocks[0] if name_of(o) == name]
        assert len(found) == 1, f"{len(found)} × {name} in {self.name}"
        return found[0]


@dataclass(frozen=True)
class Copies:
    """How many copies a channel has by epoch, the bytes of one, and how often all of them are there for its readers."""

    depth: int
    bytes: int
    replicas: int


@dataclass(frozen=True)
class Plan:
    """An engine.device, in Python: sizes in bytes.

    blocks: of 16 rows, that a warp of attention takes at once at most. early_words: registers of a
    consumer's thread for what comes of x and, before it, of weights.
    """

    device: Any
    target: Target
    sms: int
    warps: int
    tokens: int
    sequences: int
    page: int
    devices: int
    context: int
    vocabulary: int
    rings: dict[str, Ring]
    bodies: list[Body]
    rows: list[Any]
    operands: list[list[Any]]
    x_offset: int
    part_offset: int
    scratch_offset: int
    smem_bytes: int
    trace_bytes: int
    blocks: int = 2
    early_words: int = 60

    @property
    def row_words(self) -> int:
        """Words of a table row, a multiple of 4."""
        most = max(len(o) for o in self.operands)
        return -(-(HEADER_WORDS + most) // 4) * 4

    @property
    def threads(self) -> int:
        """Consumer threads of a block."""
        return self.warps * 32

    def copies(self, body: Body, argument: int) -> Copies:
        """Of the operand of a body, which outline-stages keeps equal in all rows of it."""
        row = next(i for i, r in enumerate(self.rows) if get(r, "body") == body.name)
        declared = self.operands[row][argument]
        if name_of(declared) != "engine.channel":
            return Copies(1, 0, 1)
        size = packets_of(declared.operation.results[0]) * 8
        return Copies(get(declared, "depth"), size, get(declared, "replicas"))

    def table(self) -> list[list[int]]:
        """The phase table's rows of words."""
        index = {b.name: b.index for b in self.bodies}
        table = []
        for row, operands in zip(self.rows, self.operands, strict=True):
            words = [index[get(row, "body")] | get(row, "rotation") << 16, get(row, "tile_base")]
            words += [get(op, "offset") // UNIT for op in operands]
            table.append(words + [0] * (self.row_words - len(words)))
        return table


def read_plan(device: Any, target: Target) -> Plan:
    """Read an engine.device."""
    block = device.operation.regions[0].blocks[0]
    rings: dict[str, Ring] = {}
    bodies: list[Body] = []
    rows = []
    for op in block:
        match name_of(op):
            case "engine.ring":
                rings[get(op, "sym_name")] = _ring(op)
            case "engine.body":
                bodies.append(Body(len(bodies), get(op, "sym_name"), get(op, "kind"), op))
            case "engine.row":
                rows.append(op)
    values = {get(op, "sym_name"): op for op in declarations(device)}
    return Plan(
        device=device,
        target=target,
        sms=get(device, "sms"),
        warps=get(device, "consumer_warps"),
        tokens=get(device, "tokens"),
        sequences=get(device, "sequences"),
        page=get(device, "page"),
        devices=get(device, "devices"),
        context=get(device, "context"),
        vocabulary=get(device, "vocabulary"),
        rings=rings,
        bodies=bodies,
        rows=rows,
        operands=[[values[n] for n in get(row, "names")] for row in rows],
        trace_bytes=get(device, "trace_bytes") or 0,
        **{n: get(device, n) for n in ("x_offset", "part_offset", "scratch_offset", "smem_bytes")},
    )


def packets_of(value: Any) -> int:
    """Packets of one copy of a channel: a pair of bf16, an f32 or a word each."""
    count = 1
    for size in static_shape(value):
        count *= size
    return count // 2 if element_of(value) == "bf16" else count


def _ring(op: Any) -> Ring:
    slots, barriers = get(op, "slots"), get(op, "barrier_offset")
    facts = {n: get(op, n) for n in ("slot_bytes", "window", "fed_window", "smem_offset")}
    return Ring(get(op, "sym_name"), slots, full=barriers, empty=barriers + 8 * slots, **facts)


def check_supported(plan: Plan) -> None:
    """Raise TileirError for what kernels are not generated for; the reference device runs it."""
    for what, hint in _unsupported(plan):
        raise TileirError(what, hint=f"{hint}; the reference device runs it")


def _unsupported(plan: Plan) -> Iterator[tuple[str, str]]:
    """(what, what is supported)."""
    for n, name, most in (
        (plan.tokens, "tokens", 1),
        (plan.sequences, "sequences", 1),
        (plan.devices, "GPUs", 1),
        (plan.page, "rows a page", 0),
    ):
        if n > most:
            yield f"{n} {name}", f"kernels are generated for {most}"
    for ring in plan.rings.values():
        if ring.slot_bytes != plan.warps * 1024:
            size = f"ring {ring.name!r} has slots of {ring.slot_bytes} bytes"
            yield (
                size,
                f"generated kernels give each of {plan.warps} warps one 1 KB block of a slot",
            )
    for declared in (op for operands in plan.operands for op in operands):
        if name_of(declared) == "engine.channel":
            facts = (get(declared, "protocol"), get(declared, "level"))
            if facts != ("packet", "gpu"):
                name = get(declared, "sym_name")
                yield (
                    f"channel {name!r} has protocol {facts[0]!r} and level {facts[1]!r}",
                    'kernels are generated for packets of level "gpu"',
                )
    for body in plan.bodies:
        yield from _unsupported_body(body)
    for attend in (op for body in plan.bodies for op in walk(body.op, "engine.attend")):
        ring, size = plan.rings[get(attend, "ring")], get(attend, "head_size")
        rows = rows_a_slot(ring.slot_bytes, 2, size)
        if rows < BLOCK_ROWS or rows & swizzle_mask(size):
            yield (
                f"slots of {ring.slot_bytes} bytes hold {rows} rows of heads of {size}",
                f"generated kernels take {BLOCK_ROWS} at a time, of a multiple of 8",
            )


def _unsupported_body(body: Body) -> Iterator[tuple[str, str]]:
    for op in walk(body.op, "engine.receive", "engine.multiply", "engine.attend", "engine.choose"):
        match name_of(op):
            case "engine.receive":
                norms = [static_shape(o.operands[1])[0] for o in walk(op, "tile.rms_norm")]
                if get(op, "groups") != 1 or norms not in ([], [get(op, "k")]):
                    yield (
                        "a linear of groups or of a part of a norm",
                        "kernels read one run of values",
                    )
                elif get(op, "offset") % 2 or get(op, "k") % 2:
                    yield (
                        f"a linear of values {get(op, 'offset')} … of a channel",
                        "pairs of values",
                    )
            case "engine.multiply" if get(op, "source") != "tape":
                yield f"weights from {get(op, 'source')}", "kernels stream weights from the tape"
            case "engine.attend":
                yield from _unsupported_attend(op)
            case "engine.choose":
                yield f"a select of kind {get(op, 'kind')!r}", "kernels sample by argmax"
    for op in walk(body.op, "engine.map"):
        yield from _unsupported_map(op)
    for op in walk(body.op, "engine.select"):
        if get(op, "makes") != "token":
            yield "a draft layer", "kernels choose one token a step"
    for op in walk(body.op, "engine.emit"):
        for inner in (o for s in walk(op, "tile.segment") for o in s.regions[0].blocks[0]):
            if name_of(inner) not in EPILOGUES:
                yield f"{name_of(inner)} in an epilogue", f"kernels know {', '.join(EPILOGUES)}"


def _unsupported_map(op: Any) -> Iterator[tuple[str, str]]:
    for inner in op.regions[0].blocks[0]:
        name = name_of(inner)
        if name not in MAPS or get(inner, "of") == "choice":
            yield f"{name} in a map", f"kernels know {', '.join(MAPS)}, of the step's tokens"
        width = {"tile.load": get(inner, "offset"), "tile.rotate": get(inner, "first")}.get(name)
        if width and width % 2:
            yield f"{name} from value {width} on", "kernels read pairs of values"
    if static_shape(op.operands[0])[1] // get(op, "space") % 2:
        yield "a map over rows of an odd size", "kernels read pairs of values"


def _unsupported_attend(op: Any) -> Iterator[tuple[str, str]]:
    taken = (*PIECES, "tile.gather")
    pieces = [o for o in op.regions[0].blocks[0] if name_of(o) in taken]
    names = [name_of(o) for o in pieces]
    size = get(op, "head_size")
    whole = all((get(o, "size"), get(o, "offset") % 2) == (size, 0) for o in pieces)
    if names != ["tile.query", "tile.key", "tile.value"] or size != get(op, "value_size"):
        yield "attention over latents or lists", "kernels read a q, a k and a v"
    elif get(op, "heads") // get(op, "groups") > MAX_QUERIES:
        yield (
            f"{get(op, 'heads') // get(op, 'groups')} queries a task of attention",
            f"kernels take {MAX_QUERIES}: lower the target's `queries`",
        )
    elif not whole or size % 8 or not 8 <= size <= MAX_HEAD_SIZE:
        yield (
            f"attention with heads of {size} values",
            f"kernels read whole heads of multiples of 8 up to {MAX_HEAD_SIZE} values",
        )
    for inner in walk(op, "tile.rotate"):
        if get(inner, "first") % 2:
            yield f"tile.rotate from value {get(inner, 'first')} on", "kernels read pairs of values"


def swizzle_mask(size: int) -> int:
    """What a position is masked with to turn the chunks of 16 bytes of its row of a state, of `size` values of bf16.

    Chunk i of position p lies in place i ^ (p & mask): lanes that read the same chunk of eight rows meet in no bank of
    shared memory. 0 where rows are no multiple of all banks, which spreads them anyway.
    """
    return 7 if size % 64 == 0 else 0
