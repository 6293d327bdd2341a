"""fuse-communication: values that cross GPUs become channels."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

from tileir.dialect.attributes import (
    build,
    element_of,
    get,
    name_of,
    put,
    static_shape,
    tensor,
    walk,
)
from tileir.dialect.tile import source_of
from tileir.mlir import ir
from tileir.passes.base import Pass
from tileir.passes.dataflow import decided

STAGES = ("tile.contract", "tile.attend", "tile.map", "tile.select")
PLACED = ("devices", "share", "units", "parts")


@dataclass(frozen=True)
class FuseCommunicationPass(Pass):
    """Make collectives into channels between GPUs.

    Before: tile level, every stage with `devices` and `share`. After: a contraction over ranges of K leaves raw sums
    in a channel of parts, [T, P, N] f32, and a map behind it, on all GPUs, adds the parts in rank order and then what
    the epilogue added; what is read on a GPU that does not write all of it has level "peer". On one GPU nothing
    crosses, and nothing changes.

        %y = "tile.contract"(%x) … { … "tile.residual"(%lo, %hi, %r) … } {share = "sum", …}
        →
        %p = "tile.contract"(%x) … {share = "sum", level = "peer", …} : … -> tensor<1x3x64xf32, "channel">
        %y = "tile.map"() ({ %s = "tile.sum"(%p) …; %v = "tile.load"(%r) …; %a = "tile.plus"(%s, %v) … }) …
    """

    name: ClassVar[str] = "fuse-communication"
    before: ClassVar[str] = "tile"
    after: ClassVar[str] = "tile"

    def run(self, module: Any) -> None:
        """Rewrite sums, put levels. Raises ContractError for a stage without devices."""
        stages = list(walk(module, *STAGES))
        every = sorted({d for op in stages for d in decided(op, "devices", "specialize-gpu")})
        if len(every) == 1:
            return
        for op in stages:
            if get(op, "share") == "sum":
                _sum(op, every)
        makers: dict[Any, Any] = {}
        for op in walk(module, *STAGES):
            for value in _read(op):
                if value in makers and _crosses(makers[value], op, value):
                    put(makers[value], level="peer")
            makers[op.operation.results[0]] = op


def _read(op: Any) -> list[Any]:
    """The values that a stage reads, in its operands and regions."""
    found = list(dict.fromkeys(v for inner in walk(op) for v in inner.operands))
    return [v for v in found if isinstance(v.type, ir.RankedTensorType)]


def _crosses(maker: Any, reader: Any, value: Any) -> bool:
    """Whether some GPU reads what it does not write."""
    if element_of(value) == "i32" and name_of(maker) == "tile.contract":
        return True
    here, there = ({n: get(op, n) for n in PLACED} for op in (maker, reader))
    if here["share"] == "all":
        return not set(there["devices"]) <= set(here["devices"])
    if here["share"] == "sum" or here != there | {"share": here["share"]}:
        return True
    # Both are shared out alike: local, if the reader takes no more than its own range.
    return there["share"] == "all" or not _by_range(maker, reader, value)


def _by_range(maker: Any, reader: Any, value: Any) -> bool:
    """Whether a reader's range needs only the same range of the value."""
    if get(reader, "share") == "sum":
        return bool(reader.operands[0] == value)
    match name_of(reader):
        case "tile.attend" | "tile.map":
            return True
        case "tile.contract":
            experts = source_of(reader) == source_of(maker) == "experts"
            return bool(reader.operands[0] == value) and (experts or get(reader, "groups") > 1)
    return False


def _sum(op: Any, every: list[int]) -> None:
    """Raw sums into a channel of parts, and the map that adds them and what the epilogue added."""
    old = op.results[0]
    tokens, size = static_shape(old)
    bounds = get(op, "parts")
    parts = sum(b > a for a, b in pairwise(bounds))
    added = []
    for segment in walk(op, "tile.segment"):
        for inner in list(segment.regions[0].blocks[0]):
            if name_of(inner) == "tile.residual":
                added.append((list(inner.operands)[-1], min(get(inner, "bases"))))
                for result, value in zip(inner.operation.results, inner.operands, strict=False):
                    result.replace_all_uses_with(value)
                inner.operation.erase()
    uses = list(old.uses)
    made_type = old.type
    old.set_type(tensor([tokens, parts, size], "f32", "channel"))
    f32 = ir.F32Type.get()
    with ir.InsertionPoint(_behind(op)), op.location:
        made = build("tile.map", [], [made_type], 1, rows=size // 2, devices=every, share="all")
        with ir.InsertionPoint(made.regions[0].blocks.append()):
            value = build("tile.sum", [old], [f32], size=2).results[0]
            for channel, offset in dict(added).items():
                facts = {"offset": offset, "size": 2}
                more = build("tile.load", [channel], [f32], **facts).results[0]
                value = build("tile.plus", [value, more], [f32]).results[0]
            build("tile.yield", [value])
    for use in uses:
        use.owner.operation.operands[use.operand_number] = made.results[0]


def _behind(op: Any) -> Any:
    """The operation behind this one in its block."""
    ops = list(op.operation.parent.regions[0].blocks[0])
    at = next(i for i, o in enumerate(ops) if o.operation == op.operation)
    return ops[at + 1]
