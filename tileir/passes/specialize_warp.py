"""specialize-warp: split an SM's warps into roles."""

from dataclasses import dataclass
from typing import Any, ClassVar

from tileir.dialect.attributes import put
from tileir.errors import TileirError
from tileir.passes.base import Pass
from tileir.target import find_target

LOADERS = ("tape", "state")
REGISTER_FILE = 65536  # 32-bit registers of an SM


@dataclass(frozen=True)
class SpecializeWarpPass(Pass):
    """Give an SM's warps their roles.

    Before: tile level. After: the module has `tileir.roles`: how many warps are "consumer", "tape"
    and "state", and how many registers a thread has. A loader is one warp, of which one thread
    works: it only starts copies. The tape's never waits for an activation, the states' waits for
    each step's record.

        module attributes {tileir.roles = {consumer = 16, registers = 112, state = 1, tape = 1}}
    """

    name: ClassVar[str] = "specialize-warp"
    before: ClassVar[str] = "tile"
    after: ClassVar[str] = "tile"

    target: str = "h100"

    def run(self, module: Any) -> None:
        """Put the roles. Raises TileirError for an unknown target, and for too many registers."""
        target = find_target(self.target)
        roles = {"consumer": target.consumer_warps} | dict.fromkeys(LOADERS, 1)
        warps = sum(roles.values())
        needed = warps * 32 * target.registers
        if needed > REGISTER_FILE:
            raise TileirError(
                f"{warps} warps with {target.registers} registers a thread need {needed} registers",
                location=f"target {target.name!r}",
                hint=f"an SM has {REGISTER_FILE}: lower consumer_warps or registers",
            )
        put(module.operation, **{"tileir.roles": roles | {"registers": target.registers}})
