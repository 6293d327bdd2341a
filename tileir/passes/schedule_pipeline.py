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
    """Number phases and rotate remainders.

    Before: tile level with synchronised channels. After: every stage has `phase`, its longest path from the token, and
    `rotation`, where its tiles start on the SMs. Contracts rotate, so that over a step all SMs stream as many bytes as
    the ring can even out.

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
        numbers = {op.results[0]: i for i, op in enumerate(stages)}
        edges = [
            (numbers[value], i)
            for i, op in enumerate(stages)
            for inner in walk(op)
            for value in inner.operands
            if value in numbers and numbers[value] != i
        ]
        tiles = [get(op, "tiles") if name_of(op) == "tile.contract" else 0 for op in stages]
        turned = rotations(tiles, target.sms)
        for op, phase, rotation in zip(stages, phases(len(stages), edges), turned, strict=True):
            put(op, phase=phase, rotation=rotation)
