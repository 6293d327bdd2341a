"""specialize-gpu: split the node into GPU roles."""

from dataclasses import dataclass
from typing import Any, ClassVar

from tileir.dialect.attributes import get, put, walk
from tileir.errors import TileirError
from tileir.passes.base import Pass


@dataclass(frozen=True)
class SpecializeGpuPass(Pass):
    """Place every stage on GPUs.

    Before: graph level with stages. After: every op of a stage has `devices`, the GPUs that run it. One GPU has one
    placement; several are refused, for want of a candidate that keeps their promise.

        "graph.linear"(…) {stage = 1, stage_kind = "contract", devices = array<i64: 0>}
    """

    name: ClassVar[str] = "specialize-gpu"
    before: ClassVar[str] = "graph"
    after: ClassVar[str] = "graph"

    devices: int = 1

    def run(self, module: Any) -> None:
        """Put `devices`. Raises TileirError for more than one GPU."""
        if self.devices != 1:
            raise TileirError(
                f"{self.devices} devices", hint="this version places models on one GPU: devices=1"
            )
        for op in walk(module):
            if get(op, "stage") is not None:
                put(op, devices=[0])
