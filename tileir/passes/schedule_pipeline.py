"""schedule-pipeline: order stages in time and even out the SMs' load."""

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

from tileir.dialect.attributes import get, name_of, put, walk
from tileir.dialect.tile import TILE_ROWS, padded, source_of
from tileir.passes.base import Pass
from tileir.scheduling.assign import next_rotation
from tileir.scheduling.cost import ELEMENT_BYTES, choose_windows
from tileir.scheduling.pipeline import phases, rotations
from tileir.target import find_target

STAGES = ("tile.contract", "tile.attend", "tile.map", "tile.select")


@dataclass(frozen=True)
class SchedulePipelinePass(Pass):
    """Number phases, rotate remainders, describe the rings.

    Before: tile level. After: every stage has `phase`, the latest that delays nobody (stages that do not depend on
    each other share one), and stages stand in their phases' order, within one those first that wait for no choice of
    experts or positions. They have `rotation`, where their tasks start on
    the SMs: where the contract before left off, so that the SMs stream nearly the same bytes
    over a step and the ring absorbs the rest. Maps of one phase start on SMs of their own. The module has
    `tileir.rings`; how many slots fit is allocate-memory's to say. Old rows of states pass the tape's ring, between
    the weights of the stages around them, unless a loader waits for experts or positions that the step chooses: then
    data that the step decides has a ring and a loader of its own. Where a step waits for exchanges rather than for
    weights, fewer copies are on their way (`spare_window`, `spare_fed_window` of the target).

        module attributes {tileir.rings = {slot_bytes = 16384, window = 4, fed_window = 2}}
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
        levels = phases(len(stages), _edges(stages))
        stages = _in_order(module, stages, levels)
        levels = sorted(levels)
        tiles = [_static_tiles(op) for op in stages]
        starts = rotations(tiles, target.sms)
        for i, (before, op) in enumerate(pairwise(stages), 1):
            # Maps that do not wait for each other run beside each other.
            if levels[i - 1] == levels[i] and name_of(before) == name_of(op) == "tile.map":
                starts[i] = next_rotation(starts[i - 1], get(before, "rows"), target.sms)
        for op, phase, rotation in zip(stages, levels, starts, strict=True):
            put(op, phase=phase, rotation=rotation)
        ring = "state" if any(map(_waits, stages)) else "tape"
        for op in (op for op in stages if name_of(op) == "tile.attend"):
            put(op, ring=ring)
        rings = {n: getattr(target, n) for n in ("slot_bytes", "window", "fed_window")}
        if ring == "tape":
            count = max(levels, default=0) + 1
            windows = choose_windows(target, _tape_bytes(stages), count)
            rings |= zip(("window", "fed_window"), windows, strict=True)
        put(module.operation, **{"tileir.rings": rings})


def _static_tiles(op: Any) -> int:
    """Tiles of weights on the tape; others move no rotation."""
    if name_of(op) != "tile.contract" or source_of(op) != "tape":
        return 0
    return int(get(op, "tiles"))


def _tape_bytes(stages: list[Any]) -> int:
    """Weights on the tape, of the GPU that has most."""
    sizes: Counter[int] = Counter()
    for op in stages:
        if tiles := _static_tiles(op):
            size = tiles * TILE_ROWS * padded(get(op, "k")) * ELEMENT_BYTES
            devices, parts = get(op, "devices", [0]), get(op, "parts")
            held = [size] * len(devices)
            if parts:
                held = [size * (behind - first) // parts[-1] for first, behind in pairwise(parts)]
            sizes.update(dict(zip(devices, held, strict=True)))
    return max(sizes.values(), default=0)


def _waits(op: Any) -> bool:
    """Whether a stage's loader waits for what the step computes: then it cannot be the tape's."""
    return next(walk(op, "tile.experts", "tile.gather", "tile.rows"), None) is not None


def _in_order(module: Any, stages: list[Any], levels: list[int]) -> list[Any]:
    """Stages by phase, moved so, behind all declarations."""
    dynamic = [any(True for _ in walk(op, "tile.experts", "tile.gather")) for op in stages]
    order = sorted(range(len(stages)), key=lambda i: (levels[i], dynamic[i], i))
    if order != list(range(len(stages))):
        (function,) = walk(module, "func.func")
        block = function.regions[0].blocks[0]
        end = list(block)[-1].operation
        for op in [stages[i] for i in order]:
            op.operation.move_before(end)
    return [stages[i] for i in order]


def _edges(stages: list[Any]) -> list[tuple[int, int]]:
    """(producer, reader) by number.

    Ranges that fill one channel do not wait for each other; their reader waits for all of them. What looks up the
    token that was just chosen waits for the choice.
    """
    makers: dict[Any, list[int]] = {}
    edges: list[tuple[int, int]] = []
    chosen: int | None = None
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
        if any(get(o, "of") == "choice" for o in walk(op, "tile.lookup")):
            assert chosen is not None, "a lookup of a choice that nothing makes"
            edges.append((chosen, number))
        if name_of(op) == "tile.select" and get(op, "kind") == "argmax" and chosen is None:
            chosen = number
        makers[op.operation.results[0]] = [*before, number]
    return edges
