"""What tile-graph's stages share: where values lie, which GPUs run them, maps and their operations on a row."""

from dataclasses import dataclass, field
from typing import Any

from tileir.dialect.attributes import build, get, name_of, tensor
from tileir.dialect.tile import TILE_ROWS
from tileir.mlir import ir
from tileir.passes.dataflow import decided
from tileir.passes.declarations import Declarations
from tileir.target import Target

PLACEMENT = ("devices", "share", "units", "parts")


@dataclass(frozen=True)
class Step:
    """What the stages share. where: of each graph value, in which channel it lies and from which index on.

    target: None if tiles are made for none.
    """

    tokens: int
    vocabulary: int
    declared: Declarations
    target: Target | None = None
    where: dict[Any, tuple[Any, int]] = field(default_factory=dict)

    def channel(self, *shape: int, element: str = "bf16") -> Any:
        """The type of a channel that carries so much of each token."""
        return tensor([self.tokens, *shape], element, "channel")

    def place(self, value: Any) -> tuple[Any, int]:
        """Where a value lies."""
        assert value in self.where, f"{value} was not published"
        return self.where[value]


def placement(op: Any) -> dict[str, Any]:
    """Which GPUs run what of it."""
    decided(op, "devices", "specialize-gpu")
    return {n: get(op, n) for n in PLACEMENT if n in op.attributes}


def whole_tiles(values: int) -> int:
    """What a contract's epilogue may read of a channel of so many values: zeros behind them."""
    return -(-values // TILE_ROWS) * TILE_ROWS


def empty_map(result: Any, rows: int, facts: dict[str, Any]) -> tuple[Any, Any]:
    """An empty map, and its body's block."""
    made = build("tile.map", [], [result], 1, rows=rows, **facts)
    return made, made.regions[0].blocks.append()


def row_operands(step: Step, op: Any) -> list[Any]:
    """What a map's operation addresses, declared before the map."""
    match name_of(op):
        case "graph.rope":
            return [step.declared.rope_table(op)]
        case "graph.append":
            return [step.declared.state(op)]
        case "graph.add":
            return []
    return [step.declared.buffer(v) for v in list(op.operands)[1:]]


def row_operation(step: Step, op: Any, value: Any, operands: list[Any], size: int) -> Any:
    """One operation on a row's `size` values; the values after it."""
    f32 = ir.F32Type.get()
    match name_of(op):
        case "graph.add":
            return plus(step, op, value, size)
        case "graph.append":
            build("tile.store", [value, *operands], offset=get(op, "offset", 0))
            return value
        case "graph.rope":
            name = "tile.rotate"
            facts = {"first": get(op, "offset", 0), "style": get(op, "style")}
        case "graph.layer_norm":
            name, facts = "tile.layer_norm", {"eps": get(op, "eps")}
        case _:
            name = "tile.rms_norm"
            facts = {"eps": get(op, "eps"), "unit_offset": get(op, "unit_offset")}
    return build(name, [value, *operands], [f32], **facts).results[0]


def plus(step: Step, add: Any, value: Any, size: int) -> Any:
    """A row's values and those of the same row of the summand that another stage has made."""
    f32 = ir.F32Type.get()
    (other,) = [v for v in add.operands if v in step.where]
    channel, offset = step.place(other)
    more = build("tile.load", [channel], [f32], offset=offset, size=size).results[0]
    return build("tile.plus", [value, more], [f32]).results[0]
