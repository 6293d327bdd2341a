"""verify-schedule: prove that the kernel neither hangs nor races, before it is made."""

from dataclasses import dataclass
from typing import Any, ClassVar

from tileir.dialect.attributes import element_of, get, name_of, shape_of, walk
from tileir.dialect.engine import declarations
from tileir.passes.base import Pass
from tileir.scheduling.problem import Channel, Problem, Region, Ring, Row, Span, Stream
from tileir.scheduling.verify import verify
from tileir.target import Target, find_target

_BYTES = {"bf16": 2, "f32": 4, "i32": 4}
_ATTEND = ("heads", "kv_heads", "head_size", "window", "splits")


@dataclass(frozen=True)
class VerifySchedulePass(Pass):
    """Prove arrivals, ring phases, program order, channel reuse, state order and capacity.

    Before: engine level, memory allocated. After: the same module, proved; tileir/scheduling/verify.py says what and
    how. A failure names the two offenders and the missing edge.
    """

    name: ClassVar[str] = "verify-schedule"
    before: ClassVar[str] = "engine"
    after: ClassVar[str] = "engine"

    target: str = "h100"

    def run(self, module: Any) -> None:
        """Verify every device. Raises ScheduleError."""
        target = find_target(self.target)
        for device in walk(module, "engine.device"):
            verify(problem_of(device, target))


def problem_of(device: Any, target: Target) -> Problem:
    """The plain data that the proofs need."""
    declared = {get(op, "sym_name"): op for op in declarations(device)}
    block = list(device.regions[0].blocks[0])
    bodies = {get(o, "sym_name"): o for o in block if name_of(o) == "engine.body"}
    facts = {name: _Facts(body) for name, body in bodies.items()}
    rows = [o for o in block if name_of(o) == "engine.row"]
    rings = [o for o in block if name_of(o) == "engine.ring"]
    names = ("exchange", "constant", "state")
    memories = {n: get(device, f"{n}_bytes", 0) for n in names}
    smem = get(device, "smem_bytes", 0)
    return Problem(
        rows=tuple(_row(i, row, facts[get(row, "body")]) for i, row in enumerate(rows)),
        channels={n: _channel(op) for n, op in declared.items() if name_of(op) == "engine.channel"},
        rings={
            get(o, "sym_name"): Ring(get(o, "sym_name"), get(o, "slots"), get(o, "window"))
            for o in rings
        },
        regions=tuple(_regions(device, rings, declared)),
        sms=get(device, "sms"),
        warps=get(device, "consumer_warps"),
        max_sms=target.sms,
        smem_bytes=smem,
        max_smem_bytes=target.smem_bytes,
        memories={**memories, "shared": smem},
    )


def _size(value: Any) -> int:
    """Values of one token's copy; channels of all tokens are laid out alike."""
    result = 1
    for n in shape_of(value):
        assert n is not None
        result *= n
    return result


def _channel(op: Any) -> Channel:
    value = op.results[0]
    facts = (get(op, n) for n in ("payload", "protocol", "level", "depth"))
    return Channel(get(op, "sym_name"), _size(value), element_of(value), *facts)


def _regions(device: Any, rings: list[Any], declared: dict[str, Any]) -> list[Region]:
    out = []
    for name, op in declared.items():
        value, kind = op.results[0], name_of(op).removeprefix("engine.")
        memory = {"channel": "exchange", "buffer": "constant", "state": "state"}[kind]
        size = _size(value) * _BYTES[element_of(value)]
        if kind == "channel":
            packets = _size(value) // (2 if element_of(value) == "bf16" else 1)
            size = packets * 8 * get(op, "depth")
        first = get(op, "offset", 0)
        out.append(Region(memory, name, first, first + size))
    for ring in rings:
        name, slots = get(ring, "sym_name"), get(ring, "slots")
        first, barriers = get(ring, "smem_offset", 0), get(ring, "barrier_offset", 0)
        out.append(Region("shared", f"ring {name}", first, first + slots * get(ring, "slot_bytes")))
        out.append(Region("shared", f"barriers of ring {name}", barriers, barriers + 16 * slots))
    places = [get(device, f"{n}_offset", 0) for n in ("x", "part", "scratch")]
    ends = [*places[1:], places[2] + 1024]
    for name, first, last in zip(
        ("activations", "partial sums", "scratch"), places, ends, strict=True
    ):
        out.append(Region("shared", name, first, last))
    return out


class _Facts:
    """What a body does, by argument number: computed once for all its rows."""

    def __init__(self, body: Any) -> None:
        self.name = get(body, "sym_name")
        self.arguments = list(body.regions[0].blocks[0].arguments)
        self.fills, self.drains = _streams(body, "engine.fill"), _streams(body, "")
        self.released, self.acquired = get(body, "release", []), get(body, "acquire", [])
        self.appends = [self._argument(a.operands[-1]) for a in walk(body, "tile.append")]
        self.streams = [
            self._argument(v)
            for f in walk(body, "engine.fill")
            if get(f, "source") == "state"
            for v in f.operands
        ]
        self.reads = self._reads(body)
        self.out, self.written = self._writes(body)
        self.records = bool(list(walk(body, "tile.candidate")))
        self.chooses = [self._argument(v) for o in walk(body, "engine.select") for v in o.operands]

    def _argument(self, value: Any) -> int:
        return self.arguments.index(value)

    def _whole(self, value: Any) -> tuple[int, int, int]:
        return self._argument(value), 0, _size(value)

    def _reads(self, body: Any) -> list[tuple[int, int, int]]:
        out = [self._whole(o.operands[0]) for o in walk(body, "engine.receive", "engine.attend")]
        out += [self._whole(o.operands[0]) for o in walk(body, "tile.combine")]
        return out + [self._whole(o.operands[2]) for o in walk(body, "tile.residual")]

    def _writes(self, body: Any) -> tuple[int | None, list[tuple[int, int, int, int]]]:
        """(the argument written, [(first tile, tiles …)] as (first tile, last tile, first, last value))."""
        for op in walk(body, "engine.map"):
            return self._argument(op.operands[0]), [(0, 0, 0, _size(op.operands[0]))]
        for op in walk(body, "engine.attend"):
            return self._argument(op.operands[3]), [(0, 0, 0, _size(op.operands[3]))]
        for op in walk(body, "engine.emit"):
            return self._argument(op.operands[0]), _published(op)
        return None, []


def _published(emit: Any) -> list[tuple[int, int, int, int]]:
    """Runs of values that tiles publish: (tile, tile + 1, first, last), halves apart."""
    out, at = [], 0
    for segment in walk(emit, "tile.segment"):
        tiles, inner, step, outer = (get(segment, n) for n in ("tiles", "inner", "step", "outer"))
        bases = [b for p in walk(segment, "tile.publish") for b in get(p, "bases")]
        for t in range(tiles):
            start = t // inner * outer + t % inner * step
            out += [(at + t, at + t + 1, start + b, start + b + 8) for b in bases]
        at += tiles
    return out


def _streams(body: Any, fills: str) -> tuple[Stream, ...]:
    """What loaders fill, or, with no name given, what consumers drain."""
    out = []
    for op in walk(body, *((fills,) if fills else ("engine.multiply", "engine.attend"))):
        tape = name_of(op) == "engine.multiply" or get(op, "source") == "tape"
        numbers = ("k", "tiles") if tape else _ATTEND
        out.append(Stream(get(op, "ring"), tuple(get(op, n, -1) for n in numbers)))
    return tuple(out)


def _row(number: int, row: Any, facts: _Facts) -> Row:
    names = get(row, "names")
    base = get(row, "tile_base")
    tiles = next((s.numbers[1] for s in facts.fills if len(s.numbers) == 2), None)
    writes = []
    for low, high, first, last in facts.written:
        if tiles is None or high == 0 or (base <= low and high <= base + tiles):
            writes.append(Span(names[facts.out or 0] if facts.out is not None else "", first, last))
    return Row(
        number=number,
        body=facts.name,
        reads=tuple(Span(names[a], first, last) for a, first, last in facts.reads),
        writes=() if facts.records else tuple(_joined(writes)),
        fills=facts.fills,
        drains=facts.drains,
        appends=tuple(names[a] for a in facts.appends),
        streams=tuple(names[a] for a in facts.streams),
        released=tuple(names[a] for a in facts.released),
        acquired=tuple(names[a] for a in facts.acquired),
        records=names[facts.out or 0] if facts.records else "",
        chooses=tuple(names[a] for a in facts.chooses),
    )


def _joined(spans: list[Span]) -> list[Span]:
    """Neighbouring spans as one; overlaps stay, to be found."""
    out: list[Span] = []
    for span in sorted(spans, key=lambda s: (s.first, s.last)):
        if out and out[-1].last == span.first:
            out[-1] = Span(span.channel, out[-1].first, span.last)
        else:
            out.append(span)
    return out
