"""fuse-communication: values that cross GPUs become channels."""

from dataclasses import dataclass
from typing import Any, ClassVar

from tileir.dialect.attributes import located, name_of, walk
from tileir.errors import TileirError
from tileir.passes.base import Pass
from tileir.passes.dataflow import decided

STAGES = ("tile.contract", "tile.attend", "tile.map", "tile.select")


@dataclass(frozen=True)
class FuseCommunicationPass(Pass):
    """Make collectives into channels between GPUs.

    Before: tile level, every stage with `devices`. After: no value crosses GPUs except through a
    channel between their stages. On one GPU nothing crosses: the pass checks that all stages run
    there and changes nothing.

        "tile.map"(…) {devices = array<i64: 0>, …}
        "tile.contract"(…) {devices = array<i64: 0>, …}   → the same
    """

    name: ClassVar[str] = "fuse-communication"
    before: ClassVar[str] = "tile"
    after: ClassVar[str] = "tile"

    def run(self, module: Any) -> None:
        """Check that all stages run on one and the same GPU. Raises TileirError if not."""
        seen: list[int] | None = None
        for op in walk(module, *STAGES):
            devices = decided(op, "devices", "specialize-gpu")
            seen = devices if seen is None else seen
            if devices != seen or len(devices) != 1:
                raise TileirError(
                    f"{name_of(op)} on GPUs {devices}, the first stage on {seen}",
                    location=located(op),
                    hint="this version makes channels within one GPU: give all stages the same one",
                )
