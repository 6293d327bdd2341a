"""specialize-warp: split an SM's warps into roles."""

from dataclasses import dataclass
from typing import Any, ClassVar

from tileir.dialect.attributes import put
from tileir.errors import TileirError
from tileir.passes.base import Pass
from tileir.target import LOADER_WARPS, find_target

LOADERS = ("tape", "state")


@dataclass(frozen=True)
class SpecializeWarpPass(Pass):
    """Give an SM's warps their roles.

    Before: tile level. After: the module has `tileir.roles`: how many warps are "consumer", "tape"
    and "state", and the registers of a consumer's and a loader's thread. A loader is one warp, of which one thread
    works: it only starts copies. The tape's never waits for an activation, the states' waits for
    each step's record.

        module attributes {tileir.roles = {consumer = 16, loader_registers = 64, registers = 104, state = 1, tape = 1}}
    """

    name: ClassVar[str] = "specialize-warp"
    before: ClassVar[str] = "tile"
    after: ClassVar[str] = "tile"

    target: str = "h100"

    def run(self, module: Any) -> None:
        """Put the roles. Raises TileirError for an unknown target, and for too many registers."""
        target = find_target(self.target)
        roles = {"consumer": target.consumer_warps} | dict.fromkeys(LOADERS, 1)
        needed = 32 * (
            target.consumer_warps * target.registers + LOADER_WARPS * target.loader_registers
        )
        most = target.threads * target.entry_registers
        if needed > most:
            raise TileirError(
                f"consumers of {target.registers} and loaders of {target.loader_registers} registers a "
                f"thread need {needed}",
                location=f"target {target.name!r}",
                hint=f"{target.threads} threads start with {most}: lower consumer_warps or registers",
            )
        registers = {"registers": target.registers, "loader_registers": target.loader_registers}
        put(module.operation, **{"tileir.roles": roles | registers})
