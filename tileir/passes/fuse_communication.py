"""fuse-communication: values that cross GPUs become channels."""

from dataclasses import dataclass
from typing import Any, ClassVar

from tileir.dialect.attributes import get, located, walk
from tileir.errors import TileirError
from tileir.passes.base import Pass


@dataclass(frozen=True)
class FuseCommunicationPass(Pass):
    """Make collectives into channels between GPUs.

    Before: tile level, every stage with `devices`. After: no value crosses GPUs except through a channel between
    their stages. On one GPU nothing crosses, which this pass proves and leaves as it is.
    """

    name: ClassVar[str] = "fuse-communication"
    before: ClassVar[str] = "tile"
    after: ClassVar[str] = "tile"

    def run(self, module: Any) -> None:
        """Check that all stages share their GPUs. Raises TileirError if not."""
        seen: list[int] | None = None
        for op in walk(module):
            devices = get(op, "devices")
            if devices is None:
                continue
            if seen is not None and devices != seen:
                raise TileirError(
                    f"a stage on GPUs {devices} beside one on {seen}",
                    location=located(op),
                    hint="this version makes channels within one GPU",
                )
            seen = devices
