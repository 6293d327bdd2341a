"""specialize-warp: split a block's warps into roles."""

from dataclasses import dataclass
from typing import Any, ClassVar

from tileir.dialect.attributes import put
from tileir.errors import TileirError
from tileir.passes.base import Pass
from tileir.target import find_target

REGISTER_FILE = 65536


@dataclass(frozen=True)
class SpecializeWarpPass(Pass):
    """Give a block's warps their roles.

    Before: tile level. After: the module has `tileir.roles`: warps of "consumer", "tape" and "state", and the registers
    of a thread. A loader is one warp of which one thread works; it never waits for an activation.

        module attributes {tileir.roles = {consumer = 16, tape = 1, state = 1, registers = 112}}
    """

    name: ClassVar[str] = "specialize-warp"
    before: ClassVar[str] = "tile"
    after: ClassVar[str] = "tile"

    target: str = "h100"

    def run(self, module: Any) -> None:
        """Put the roles. Raises TileirError if the registers do not hold them."""
        target = find_target(self.target)
        warps = target.consumer_warps + 2
        if warps * 32 * target.registers > REGISTER_FILE:
            raise TileirError(
                f"{warps} warps of {target.registers} registers a thread exceed {REGISTER_FILE}",
                hint="fewer consumer warps, or fewer registers",
            )
        roles = {"consumer": target.consumer_warps, "tape": 1, "state": 1, "registers": target.registers}
        put(module.operation, **{"tileir.roles": roles})
