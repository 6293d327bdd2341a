"""select-sync: how each channel is synchronised, and what orders states."""

from dataclasses import dataclass
from typing import Any, ClassVar

from tileir.dialect.attributes import element_of, get, put, shape_of, walk
from tileir.passes.base import Pass

STAGES = ("tile.contract", "tile.attend", "tile.map")


@dataclass(frozen=True)
class SelectSyncPass(Pass):
    """Choose payload, protocol, level and depth of every channel, and the states' edges.

    Before: tile level. After: every stage that makes a channel has `payload`, `protocol`, `level` and `depth`; a contract
    that appends has `release`, an attend that streams `acquire`, the states by name. On one GPU every channel crosses
    SMs. Packets win for few tokens, blocks for many (docs/rationale.md has the measurements); candidates keep two
    copies, since nothing else orders their reuse.

        "tile.attend"(…) {payload = "f32", protocol = "packet", level = "gpu", depth = 1, acquire = ["k_0", "v_0"]}
    """

    name: ClassVar[str] = "select-sync"
    before: ClassVar[str] = "tile"
    after: ClassVar[str] = "tile"

    def run(self, module: Any) -> None:
        """Put the attributes."""
        for op in walk(module, *STAGES):
            channel = op.results[0]
            payload = {"bf16": "bf16x2", "f32": "f32", "i32": "record"}[element_of(channel)]
            depth = 2 if payload == "record" else 1
            put(op, payload=payload, protocol=_protocol(channel), level="gpu", depth=depth)
            appended = [_state_name(a.operands[-1]) for a in walk(op, "tile.append")]
            if appended:
                put(op, release=appended)
            if op.operation.name == "tile.attend":
                put(op, acquire=[_state_name(op.operands[i]) for i in (1, 2)])


def _state_name(value: Any) -> str:
    return str(get(value.owner, "sym_name"))


def _protocol(channel: Any) -> str:
    """The cheaper protocol for this many tokens: measured rounds in µs over K values, 132 SMs."""
    tokens, *sizes = shape_of(channel)
    assert tokens is not None
    values = 1
    for size in sizes:
        assert size is not None
        values *= size
    # From the table of hopper measurements: packets cost per value, blocks per writer first.
    packets = 0.5 + tokens * values * 0.19e-3 / 4
    blocks = 2.6 + tokens * values * 0.06e-3 / 4
    return "packet" if packets <= blocks or tokens == 1 else "block"
