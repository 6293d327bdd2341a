"""select-sync: how each channel is synchronised, and what orders states."""

from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

from tileir.dialect.attributes import element_of, get, located, name_of, put, shape_of, walk
from tileir.errors import TileirError
from tileir.passes.base import Pass
from tileir.passes.dataflow import readers
from tileir.target import Target, find_target

STAGES = ("tile.contract", "tile.attend", "tile.map", "tile.select")
PAYLOADS = {"bf16": "bf16x2", "f32": "f32", "i32": "record"}
NOISE = 0.05


@dataclass(frozen=True)
class SelectSyncPass(Pass):
    """Choose payload, protocol, level and copies of every channel, and the edges that order states.

    Before: tile level. After: every stage that makes a channel has `payload`, `protocol` (the
    cheapest one, by the target's measured exchanges, for the words that a reader's SM takes), `level`, `depth` and
    `replicas`: two of what every SM reads whole, where packets in two copies are cheapest. A level that
    fuse-communication put stays; else it is "gpu", a channel joins SMs, or "sm" for a routing: that every SM computes
    it from the same scores costs less than an exchange. Candidates keep two copies, since every SM must have read
    the last step's before others may overwrite them; they order the reuse of all other channels. A contract
    that appends has `release` and an attend `acquire`, the names of the states that it hands to, or
    takes from, the copy engine of the next step.

        "tile.attend"(…) {payload = "f32", protocol = "packet", level = "gpu", depth = 1, replicas = 1,
                          acquire = ["k_0", "v_0"], …}
    """

    name: ClassVar[str] = "select-sync"
    before: ClassVar[str] = "tile"
    after: ClassVar[str] = "tile"

    target: str = "h100"

    def run(self, module: Any) -> None:
        """Put the attributes. Raises TileirError for an unknown target, and a channel whose element has no payload."""
        target = find_target(self.target)
        for op in walk(module, *STAGES):
            if name_of(op) != "tile.select" or get(op, "kind") != "argmax":
                payload, level = _payload(op), "sm" if get(op, "kind") == "route" else "gpu"
                level = get(op, "level", level)
                shared = level == "gpu" and _is_whole(op.operation.results[0])
                protocol, replicas = _protocol(target, _words(op, payload), shared)
                put(op, payload=payload, protocol=protocol, level=level)
                put(op, depth=_depth(op), replicas=replicas)
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


def _words(op: Any, payload: str) -> int:
    """32-bit words that a reader's SM takes: of partial results one head's, else everything."""
    shape = [size or 1 for size in shape_of(op.operation.results[0])]
    words = shape[0] * prod(shape[2:] if payload == "f32" else shape[1:])
    return words // 2 if payload == "bf16x2" else words


def _is_whole(value: Any) -> bool:
    """Whether a contract takes all of the channel on every SM, or of the channel that its ranges go on filling."""
    for reader in readers(value):
        if name_of(reader) == "tile.contract":
            x, *into = reader.operands
            if x == value or (into and into[0] == value and _is_whole(reader.results[0])):
                return True
    return False


def _protocol(target: Target, words: int, shared: bool) -> tuple[str, int]:
    """The cheapest protocol, and with how many replicas."""
    prices = {
        ("packet", 1): target.packet_us + target.packet_word_us * words,
        ("block", 1): target.block_us + target.block_word_us * words,
    }
    if shared:
        # What lies within the noise of measuring is not worth the memory.
        prices["packet", 2] = (target.copied_us + target.copied_word_us * words) / (1 - NOISE)
    return min(prices, key=lambda choice: prices[choice])


def _name(state: Any) -> str:
    return str(get(state.owner, "sym_name"))
