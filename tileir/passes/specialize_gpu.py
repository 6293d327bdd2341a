"""specialize-gpu: split the node into GPU roles."""

import sys
from dataclasses import dataclass
from typing import Any, ClassVar

from tileir.dialect.attributes import get, name_of, put, shape_of
from tileir.errors import TileirError
from tileir.passes.base import Pass
from tileir.passes.dataflow import DECLARATIONS, decided, operations, step_function
from tileir.scheduling.cost import attend_us, choose_splits, contract_us, usual_rows
from tileir.target import Target, find_target


@dataclass(frozen=True)
class Placement:
    """A candidate: the GPUs that share every stage, and µs a step by stage kind."""

    devices: list[int]
    prices: dict[str, float]

    def __str__(self) -> str:
        parts = ", ".join(f"{kind} {price:.1f}" for kind, price in self.prices.items())
        us = sum(self.prices.values())
        return f"tp={len(self.devices)} on GPUs {self.devices}: {us:.1f} us a step ({parts})"


@dataclass(frozen=True)
class SpecializeGpuPass(Pass):
    """Place every stage on GPUs.

    Before: graph level with stages. After: every op of a stage has `devices`, the GPUs that run it:
    those of the cheapest candidate for `target`. One GPU has one candidate; several are refused,
    since no pass makes channels between GPUs. `print-candidates` writes the priced candidates to
    stderr.

        "graph.linear"(…) {stage = 1, stage_kind = "contract"}
        →
        "graph.linear"(…) {stage = 1, stage_kind = "contract", devices = array<i64: 0>}
    """

    name: ClassVar[str] = "specialize-gpu"
    before: ClassVar[str] = "graph"
    after: ClassVar[str] = "graph"

    devices: int = 1
    target: str = "h100"
    print_candidates: bool = False

    def run(self, module: Any) -> None:
        """Put `devices`. Raises TileirError for another number of GPUs than one."""
        if self.devices != 1:
            raise TileirError(
                f"{self.devices} devices", hint="this version places models on one GPU: devices=1"
            )
        target = find_target(self.target)
        ops = [o for o in operations(step_function(module))[:-1] if name_of(o) not in DECLARATIONS]
        stages: dict[int, list[Any]] = {}
        for op in ops:
            stages.setdefault(decided(op, "stage", "graph-fuse"), []).append(op)
        context = decided(module, "tileir.context", "the importer")
        candidates = [Placement([0], _prices(stages, target, context))]
        if self.print_candidates:
            print(*candidates, sep="\n", file=sys.stderr)
        best = min(candidates, key=lambda placement: sum(placement.prices.values()))
        for op in ops:
            put(op, devices=best.devices)


def _prices(stages: dict[int, list[Any]], target: Target, context: int) -> dict[str, float]:
    """µs of all stages on one GPU, by kind."""
    prices: dict[str, float] = {}
    for ops in stages.values():
        kind = decided(ops[0], "stage_kind", "graph-fuse")
        prices[kind] = prices.get(kind, 0.0) + _price(ops, target, context)
    return prices


def _price(ops: list[Any], target: Target, context: int) -> float:
    weights = [shape_of(op.operands[1]) for op in ops if name_of(op) == "graph.linear"]
    if weights:
        rows, k = sum(shape[0] or 0 for shape in weights), weights[0][1] or 0
        return contract_us(target, rows, k)
    if name_of(ops[0]) == "graph.attention":
        heads, size, window = (get(ops[0], n) for n in ("kv_heads", "head_size", "window"))
        rows = usual_rows(context, window)
        return attend_us(target, heads, size, choose_splits(target, heads, size, rows), rows)
    return target.hop_us
