"""Structural patterns over ATen nodes, after `run_decompositions({})`. Nothing is matched by a model's name.

| pattern | becomes |
|---|---|
| arange ≤ position (and > position − window), or the contrary of what it hides; table[position] | an attention's mask |
| activation(a)·b | graph.glu |
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.fx import Node

from tileir.frontends.torch_export.attentions import LOWEST
from tileir.frontends.torch_export.elementwise import match_activation
from tileir.frontends.torch_export.lookups import Lookup, match_lookup
from tileir.frontends.torch_export.nodes import Constants, behind, op_name


@dataclass(frozen=True)
class Mask:
    """Columns ≤ position, and > position − window if window is not 0, and among `indices` if there are any."""

    positions: Node
    window: int
    indices: Node | None = None


def split_mul(node: Any) -> tuple[Any, Any] | None:
    """The operands of a product."""
    return (node.args[0], node.args[1]) if op_name(node) == "mul" else None


def match_mask(node: Any, constants: Constants, hidden: bool = False) -> Mask | None:
    """A mask made from arange and positions, or rows of a table of masks, of booleans or of 0 and lowest numbers.

    hidden: the node is true where a position is not seen.
    """
    node = _bare(node)
    name = op_name(node)
    if name in ("bitwise_not", "logical_not"):
        return match_mask(node.args[0], constants, not hidden)
    found = match_lookup(node, constants)
    if found is not None:
        return _of_table(found, hidden)
    if hidden:
        return _hiding(node)
    if name in ("bitwise_and", "logical_and", "and_", "__and__"):
        for part, other in (node.args[:2], node.args[1::-1]):
            indices, mask = _listed(other), match_mask(part, constants)
            if indices is not None and mask is not None:
                return replace(mask, indices=indices) if mask.indices is None else None
        parts = [match_mask(a, constants) for a in node.args[:2]]
        if None in parts or parts[0].positions is not parts[1].positions:  # type: ignore[union-attr]
            return None
        windows = [p.window for p in parts if p is not None]
        return Mask(parts[0].positions, max(windows)) if parts[0] else None
    if name not in ("le", "ge", "gt", "lt"):
        return None
    return _compared(name, *(_bare(a) for a in node.args[:2]))


def _compared(name: str, left: Any, right: Any) -> Mask | None:
    """The mask of a comparison of arange with positions, or with those minus a window."""
    if name in ("ge", "lt"):
        left, right, name = right, left, {"ge": "le", "lt": "gt"}[name]
    if op_name(left) != "arange" or not isinstance(right, Node):
        return None
    if name == "le" and right.op == "placeholder":
        return Mask(right, 0)
    if name == "gt" and op_name(right) == "sub" and isinstance(right.args[1], int):
        positions = _bare(right.args[0])
        return Mask(positions, right.args[1])
    return None


def _of_table(found: Lookup, hidden: bool) -> Mask | None:
    """The window of a table's rows, each of which sees the positions up to its own; None if it is another table."""
    table = found.values.reshape(len(found.values), -1)
    seen = table if table.dtype == torch.bool else table == 0
    if table.dtype != torch.bool and (table[~seen] > LOWEST).any():
        return None
    if seen.shape[1] < len(seen):
        return None  # one that is spread over the context
    seen = ~seen if hidden else seen
    rows, columns = torch.arange(len(seen))[:, None], torch.arange(seen.shape[1])
    last = int(seen[-1].sum())
    window = last if last < len(seen) else 0
    causal = (columns <= rows) & ((columns > rows - window) | (window == 0))
    return Mask(found.at, window) if torch.equal(seen, causal) else None


def _hiding(node: Any) -> Mask | None:
    """A mask of what is hidden: positions above the own, perhaps those before a window."""
    name = op_name(node)
    if name in ("bitwise_or", "logical_or", "or_", "__or__"):
        parts = [_hiding(_bare(a)) for a in node.args[:2]]
        if parts[0] is None or parts[1] is None or parts[0].positions is not parts[1].positions:
            return None
        return Mask(parts[0].positions, max(parts[0].window, parts[1].window))
    turned = {"gt": "le", "le": "gt", "lt": "ge", "ge": "lt"}.get(name)
    return None if turned is None else _compared(turned, *(_bare(a) for a in node.args[:2]))


def _listed(node: Any) -> Node | None:
    """The indices of a mask that is true at them: not ones with False scattered there, or zeros with True."""
    node, wanted = _bare(node), True
    if op_name(node) in ("bitwise_not", "logical_not"):
        node, wanted = _bare(node.args[0]), False
    if op_name(node) != "scatter" or node.args[3] is not wanted:
        return None
    base = op_name(node.args[0]).removeprefix("new_").removesuffix("_like")
    return behind(node.args[2]) if base == ("zeros" if wanted else "ones") else None


def _bare(node: Any) -> Any:
    while op_name(node) in ("unsqueeze", "expand", "_to_copy", "view", "alias", "select"):
        node = node.args[0]
    return node


def match_glu(node: Node) -> tuple[Any, Any, str] | None:
    """(gate, up, activation) of activation(gate) · up."""
    pair = split_mul(node)
    for active, up in (pair, pair[::-1]) if pair else ():
        found = match_activation(behind(active))
        if found is not None:
            return found[0], up, found[1]
    return None
