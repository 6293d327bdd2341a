"""What each level may hold. Checked before and after every pass."""

from typing import Any

from tileir.dialect.attributes import get, located, name_of, walk
from tileir.errors import ContractError

LEVELS = ("graph", "tile", "engine")
_REGION_OPS = (
    *("tile.segment", "tile.rms_norm", "tile.bias", "tile.residual", "tile.rope", "tile.glu"),
    *("tile.append", "tile.publish", "tile.logits", "tile.candidate", "tile.lookup"),
    *("tile.combine", "tile.yield"),
)
_COMMON = ("builtin.module", "func.func", "func.return")
ALLOWED = {
    "graph": (*_COMMON, "graph."),
    "tile": (*_COMMON, "tile."),
    "engine": ("builtin.module", "engine.", *_REGION_OPS),
}


def level_of(module: Any) -> str:
    """The level that a module says it has. Raises ContractError if it says none."""
    level = get(module, "tileir.level", "")
    if level not in LEVELS:
        raise ContractError(
            f"the module's level is {level!r}",
            hint=f'write module attributes {{tileir.level = "graph"}}; levels: {", ".join(LEVELS)}',
        )
    return str(level)


def check(module: Any, level: str) -> None:
    """Check that a module has this level and holds only what it allows. Raises ContractError."""
    found = level_of(module)
    if found != level:
        raise ContractError(
            f"the module is at {found} level, not {level}", hint="run the passes in their order"
        )
    allowed = ALLOWED[level]
    exact = tuple(a for a in allowed if not a.endswith("."))
    dialects = tuple(a for a in allowed if a.endswith("."))
    for op in walk(module):
        name = name_of(op)
        if name not in exact and not name.startswith(dialects):
            raise ContractError(
                f"{name} does not belong to {level} level",
                location=located(op),
                hint=f"allowed: {', '.join(a + '*' if a.endswith('.') else a for a in allowed)}",
            )
