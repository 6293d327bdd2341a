"""select-sync: how each channel is synchronised, and what orders states."""

from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

from tileir.dialect.attributes import element_of, get, located, name_of, put, shape_of, walk
from tileir.errors import TileirError
from tileir.passes.base import Pass

STAGES = ("tile.contract", "tile.attend", "tile.map", "tile.select")
PAYLOADS = {"bf16": "bf16x2", "f32": "f32", "i32": "record"}
# µs to begin, and for each 32-bit word that an SM reads, fitted to a round among 132 SMs of an
# H100: for 4096 bf16 values packets took 0.82 µs, blocks 2.69; for 64 × 4096 values 12.8 and 6.4;
# for 64 × 14336, 49.3 and 17.1.
PRICES = {"packet": (0.5, 0.095e-3), "block": (2.6, 0.03e-3)}


@dataclass(frozen=True)
class SelectSyncPass(Pass):
    """Choose payload, protocol, level and depth of every channel, and the edges that order states.

    Before: tile level. After: every stage that makes a channel has `payload`, `protocol` (the
    cheaper one for the words that a reader's SM takes), `level` and `depth`. A level that fuse-communication put stays;
    else it is "gpu", a channel joins SMs, or "sm" for a routing: that every SM computes it from the same scores costs
    less than an exchange. Candidates keep two copies, since every SM must have read the last
    step's before others may overwrite them; they order the reuse of all other channels. A contract
    that appends has `release` and an attend `acquire`, the names of the states that it hands to, or
    takes from, the copy engine of the next step.

        "tile.attend"(…) {payload = "f32", protocol = "packet", level = "gpu", depth = 1,
                          acquire = ["k_0", "v_0"], …}
    """

    name: ClassVar[str] = "select-sync"
    before: ClassVar[str] = "tile"
    after: ClassVar[str] = "tile"

    def run(self, module: Any) -> None:
        """Put the attributes. Raises TileirError for a channel whose element has no payload."""
        for op in walk(module, *STAGES):
            if name_of(op) != "tile.select" or get(op, "kind") != "argmax":
                payload, level = _payload(op), "sm" if get(op, "kind") == "route" else "gpu"
                put(op, payload=payload, protocol=_protocol(op, payload), depth=_depth(op))
                put(op, level=get(op, "level", level))
            stored = [
                a.operands[len(a.operands) - 1] for a in walk(op, "tile.append", "tile.store")
            ]
            read = [a.operands[0] for a in walk(op, "tile.rows")]
            if name_of(op) == "tile.attend":
                read = list(op.operation.operands)
            for edge, states in (("release", stored), ("acquire", read)):
                if states:
                    put(op, **{edge: list(dict.fromkeys(_name(s) for s in states))})


def _payload(op: Any) -> str:
    element = element_of(op.operation.results[0])
    if element not in PAYLOADS:
        raise TileirError(
            f"{name_of(op)} makes a channel of {element}",
            location=located(op),
            hint=f"channels carry {', '.join(PAYLOADS)}",
        )
    return PAYLOADS[element]


def _depth(op: Any) -> int:
    """Copies by epoch: of what each SM's record does not order, enough to bridge the steps until another does."""
    if next(walk(op, "tile.candidate"), None) is not None:
        return 2
    # Loaders read lists of positions too; one that finds nothing to stream may be up to two steps behind its consumers.
    return 3 if get(op, "kind") == "top_k" else 1


def _protocol(op: Any, payload: str) -> str:
    """The cheapest protocol; of partial results a reader takes one head's, else everything."""
    shape = [size or 1 for size in shape_of(op.operation.results[0])]
    words = shape[0] * prod(shape[2:] if payload == "f32" else shape[1:])
    words //= 2 if payload == "bf16x2" else 1
    return min(PRICES, key=lambda protocol: PRICES[protocol][0] + PRICES[protocol][1] * words)


def _name(state: Any) -> str:
    return str(get(state.owner, "sym_name"))
