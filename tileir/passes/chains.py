"""Chains of graph operations: what stands behind what, and what no stage takes."""

from itertools import pairwise
from typing import Any

from tileir.dialect.attributes import get, located, name_of, shape_of
from tileir.dialect.tile import TILE_ROWS
from tileir.errors import TileirError
from tileir.passes.dataflow import producer, readers

_CHAIN = (
    "rope, append, activation, scale, softcap and residual add follow a linear, an add also a norm, "
    "glu a pair of linears on the same values"
)
LINEARS = ("graph.linear", "graph.grouped_linear", "graph.expert_linear")
ATTENDS = ("graph.attention", "graph.latent_attention")
NORMS = ("graph.rms_norm", "graph.layer_norm")
# What an epilogue does to each value by itself.
ELEMENTWISE = ("graph.activate", "graph.scale", "graph.softcap")


def in_prologue(norm: Any) -> bool:
    """Whether a norm belongs to the contracts that read it: rms_norm of whole rows, read by contracts only."""
    if (
        name_of(norm) != "graph.rms_norm"
        or shape_of(norm.operands[1]) != shape_of(norm.results[0])[1:]
    ):
        return False
    value = norm.results[0]
    found = readers(value)
    return bool(found) and all(name_of(r) in LINEARS and r.operands[0] == value for r in found)


def turns_in_tiles(rope: Any) -> bool:
    """Whether an epilogue can rotate: halves whose pairs fill tiles; otherwise a map does."""
    owner = producer(rope.operands[0])
    size, turned = get(rope, "head_size"), 2 * (shape_of(rope.operands[2])[0] or 0)
    return (
        get(rope, "style") == "half"
        and turned % TILE_ROWS == 0
        and (size - turned) % TILE_ROWS == 0
        and get(rope, "offset", 0) % TILE_ROWS == 0
        and owner is not None
        and name_of(owner) == "graph.linear"
    )


def through(value: Any, reader: Any) -> list[Any]:
    """The values that a reader of `value` waits for: behind a prologue's norm, behind appends to a state."""
    owner = producer(value)
    if owner is not None and name_of(owner) in NORMS and in_prologue(owner):
        return [owner.operands[0]]
    if owner is not None and name_of(owner) == "graph.append":
        if name_of(reader) == "graph.append":
            return []
        return [append.operands[1] for append in appends_of(value)]
    return [value]


def appends_of(state: Any) -> list[Any]:
    """The appends that made a state's value, in the order of the values that they wrote."""
    found = []
    owner = producer(state)
    while owner is not None and name_of(owner) == "graph.append":
        found.append(owner)
        owner = producer(owner.operands[0])
    return sorted(found, key=lambda append: int(get(append, "offset", 0)))


def states_of(op: Any) -> list[Any]:
    """The states that an attention reads: k and v, or latents."""
    return [v for v in op.operands if len(shape_of(v)) == 3]


def feeds(value: Any) -> set[str]:
    """The operations behind a value that begin stages of their own, through norms, ropes and appends."""
    found: set[str] = set()
    for op in readers(value):
        name = name_of(op)
        if name in (*NORMS, "graph.rope", "graph.append"):
            found |= feeds(op.results[0])
        else:
            found.add(name)
    return found


def only_reader(op: Any, value: Any) -> bool:
    """Whether nobody but `op` reads a value, appends aside."""
    return all(r == op or name_of(r) == "graph.append" for r in readers(value))


def head_size(op: Any) -> int:
    """Values of a row of a map that a norm or a rope begins."""
    return int(get(op, "head_size") or shape_of(op.operands[1])[0] or 0)


def check_once(append: Any) -> None:
    """Raises TileirError if an append writes values of a state's row that another has written in the step."""
    taken = []
    for op in appends_of(append.results[0]):
        first = get(op, "offset", 0)
        width = (shape_of(op.operands[1])[-1] or 0) // (shape_of(op.operands[0])[0] or 1)
        taken.append((first, first + width))
    for (_, behind), (first, last) in pairwise(taken):
        if first < behind:
            what = f"values {first} … {min(behind, last) - 1} of a state's row are appended twice"
            raise refuse(append, what, "append each value of a row once")


def refuse(op: Any, what: str, hint: str = _CHAIN) -> TileirError:
    """The error that no stage takes an operation as it stands; by default with what stages take."""
    return TileirError(what, location=located(op), hint=hint)


def origin(value: Any) -> str:
    """Where a value comes from, as errors say it."""
    owner = producer(value)
    return "it reads an argument" if owner is None else f"it reads a {name_of(owner)}"
