"""What each level may hold. Checked before and after every pass."""

from dataclasses import dataclass
from typing import Any

from tileir.dialect.attributes import element_of, get, located, name_of, place_of, walk
from tileir.errors import ContractError
from tileir.mlir import ir

_COMMON = ("builtin.module", "func.func", "func.return")
_REGION_OPS = tuple(
    f"tile.{name}"
    for name in (
        *("segment", "rms_norm", "bias", "join", "residual", "rope", "glu", "sigmoid", "weigh"),
        *("relu_sum", "activate", "scale", "softcap"),
        *("append", "publish", "logits", "candidate", "experts", "rows", "query", "key", "value"),
        *(
            "gather",
            "finish",
            "lookup",
            "combine",
            "load",
            "sum",
            "plus",
            "layer_norm",
            "rotate",
            "store",
        ),
        "yield",
    )
)


@dataclass(frozen=True)
class Contract:
    """What a level holds.

    operations: names, and "dialect." for all of a dialect. places: the encodings of its tensors, "" for none.
    tokens: whether the step's i32 tokens and positions may stand without a place.
    """

    operations: tuple[str, ...]
    places: tuple[str, ...]
    tokens: bool = False

    def allows(self, name: str) -> bool:
        """Whether an operation may occur."""
        return name in self.operations or f"{name.partition('.')[0]}." in self.operations


CONTRACTS = {
    "graph": Contract((*_COMMON, "graph."), ("",)),
    "tile": Contract((*_COMMON, "tile."), ("channel", "buffer", "state"), tokens=True),
    "engine": Contract(("builtin.module", "engine.", *_REGION_OPS), ("channel", "buffer", "state")),
}


def level_of(module: Any) -> str:
    """The level that a module says it has. Raises ContractError if it says none."""
    level = get(module, "tileir.level", "")
    if level not in CONTRACTS:
        raise ContractError(
            f"the module's level is {level!r}",
            hint='write module attributes {tileir.level = "graph"}; '
            f"levels: {', '.join(CONTRACTS)}",
        )
    return str(level)


def check(module: Any, level: str = "any") -> None:
    """Check that a module has this level and holds only what it allows. Raises ContractError."""
    found = level_of(module)
    if level not in (found, "any"):
        raise ContractError(
            f"the module is at {found} level, not {level}", hint="run the passes in their order"
        )
    contract = CONTRACTS[found]
    for op in walk(module):
        name = name_of(op)
        if not contract.allows(name):
            allowed = (a + "*" if a.endswith(".") else a for a in contract.operations)
            raise ContractError(
                f"{name} does not belong to {found} level",
                location=located(op),
                hint=f"allowed: {', '.join(allowed)}",
            )
        for value in _values(op):
            _check_place(op, value, contract, found)


def _values(op: Any) -> list[Any]:
    """What an operation defines: its results and its regions' arguments."""
    blocks = [block for region in op.regions for block in region.blocks]
    return [*op.results, *(a for block in blocks for a in block.arguments)]


def _check_place(op: Any, value: Any, contract: Contract, level: str) -> None:
    if not isinstance(value.type, ir.RankedTensorType):
        return
    place = place_of(value)
    if place in contract.places or (contract.tokens and not place and element_of(value) == "i32"):
        return
    allowed = " or ".join(f'"{p}"' if p else "no place" for p in contract.places)
    raise ContractError(
        f"{name_of(op)} makes a value of type {value.type}: a tensor at {level} level has {allowed}",
        location=located(op),
        hint="docs/ir.md has the types of each level",
    )
