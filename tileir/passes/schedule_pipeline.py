"""schedule-pipeline: order stages in time and even out the SMs' load."""

from dataclasses import dataclass
from typing import Any, ClassVar

from tileir.dialect.attributes import get, name_of, put, walk
from tileir.passes.base import Pass
from tileir.scheduling.pipeline import phases, rotations
from tileir.target import find_target

STAGES = ("tile.contract", "tile.attend", "tile.map", "tile.select")


@dataclass(frozen=True)
class SchedulePipelinePass(Pass):
    """Number phases, rotate remainders, describe the rings.

    Before: tile level. After: every stage has `phase`, the longest path to it from the step's token
    (stages that do not depend on each other share one), and `rotation`, where its tasks start on
    the SMs: where the contract before it left off, so that the SMs stream nearly the same bytes
    over a step and the ring absorbs the rest. The module has `tileir.rings`; how many slots fit is
    allocate-memory's to say.

        module attributes {tileir.rings = {slot_bytes = 16384, window = 3}}
        "tile.contract"(…) {phase = 1, rotation = 72, …}
    """

    name: ClassVar[str] = "schedule-pipeline"
    before: ClassVar[str] = "tile"
    after: ClassVar[str] = "tile"

    target: str = "h100"

    def run(self, module: Any) -> None:
        """Put the attributes. Raises TileirError for an unknown target."""
        target = find_target(self.target)
        stages = list(walk(module, *STAGES))
        tiles = [get(op, "tiles") if name_of(op) == "tile.contract" else 0 for op in stages]
        levels = phases(len(stages), _edges(stages))
        starts = rotations(tiles, target.sms)
        for op, phase, rotation in zip(stages, levels, starts, strict=True):
            put(op, phase=phase, rotation=rotation)
        rings = {"slot_bytes": target.slot_bytes, "window": target.window}
        put(module.operation, **{"tileir.rings": rings})


def _edges(stages: list[Any]) -> list[tuple[int, int]]:
    """(producer, reader) by number.

    Ranges that fill one channel do not wait for each other; their reader waits for all of them.
    """
    makers: dict[Any, list[int]] = {}
    edges = []
    for number, op in enumerate(stages):
        ranged = list(op.operation.operands)[1:] if name_of(op) == "tile.contract" else []
        before = [maker for value in ranged for maker in makers[value]]
        read = {
            value: None
            for inner in walk(op)
            for value in inner.operands
            if value in makers and value not in ranged
        }
        edges += [(maker, number) for value in read for maker in makers[value]]
        makers[op.operation.results[0]] = [*before, number]
    return edges
