"""Patterns of attention over cached rows, called or spelled out.

| pattern | becomes |
|---|---|
| scaled_dot_product_attention(q, k, v, mask) | graph.attention |
| softmax(mask of cap·tanh(q·kᵀ·scale / cap)) · v, with or without the cap | graph.attention with softcap |

Keys and values are caches, as they are or repeated for the query heads that share them (expand, repeat_interleave).
A mask selects scores (where, masked_fill), or 0 and a lowest number are added.
"""

from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from tileir.frontends.torch_export.caches import unrepeated
from tileir.frontends.torch_export.elementwise import match_scale
from tileir.frontends.torch_export.lookups import match_lookup
from tileir.frontends.torch_export.nodes import CASTS, Constants, behind, op_name, shape

LOWEST = -1e4


@dataclass(frozen=True)
class Attention:
    """softmax(capped(q·kᵀ·scale), masked)·v. mask: boolean, True where a position is seen; hidden: the contrary."""

    q: Node
    k: Node
    v: Node
    mask: Any
    scale: float
    softcap: float = 0.0
    hidden: bool = False


def match_attention(node: Node, constants: Constants) -> Attention | None:
    """node as a whole attention."""
    if op_name(node) == "scaled_dot_product_attention":
        return _called(node)
    return _spelled(node, constants) if op_name(node) == "matmul" else None


def _called(node: Node) -> Attention:
    q, k, v, *rest = node.args
    mask = rest[0] if rest else node.kwargs.get("attn_mask")
    given = node.kwargs.get("scale")
    scale = float(shape(q)[-1] ** -0.5 if given is None else given)
    seen, hidden = _boolean(mask)
    return Attention(q, unrepeated(k), unrepeated(v), seen, scale, hidden=hidden)


def _spelled(node: Node, constants: Constants) -> Attention | None:
    weights = _plain(node.args[0])
    if op_name(weights) not in ("softmax", "_softmax") or weights.args[1] not in (-1, 3):
        return None
    masked = _masked(_plain(weights.args[0]), constants)
    if masked is None:
        return None
    scores, mask, hidden = masked
    scores, factor = _unscaled(scores, constants)
    cap = 0.0
    if op_name(scores) == "tanh":
        cap = factor
        scores, factor = _unscaled(scores.args[0], constants)
        factor *= cap
    if op_name(scores) != "matmul":
        return None
    q, turned = scores.args[0], scores.args[1]
    last = {2, 3} if len(shape(node)) == 4 else set()
    if op_name(turned) != "transpose" or {d % 4 for d in turned.args[1:]} != last:
        return None
    k, v = unrepeated(turned.args[0]), unrepeated(node.args[1])
    return Attention(q, k, v, mask, factor, cap, hidden)


def _masked(node: Any, constants: Constants) -> tuple[Any, Any, bool] | None:
    """(scores, mask, whether the mask says what is hidden) of masked scores."""
    match op_name(node):
        case "add":
            for scores, mask in (node.args[:2], node.args[1::-1]):
                found, hidden = _boolean(mask)
                if found is not mask or match_lookup(behind(mask), constants) is not None:
                    return scores, found, hidden
        case "where" if _lowest(node.args[2]):
            return node.args[1], node.args[0], False
        case "masked_fill" if _lowest(node.args[2]):
            return node.args[0], node.args[1], True
    return None


def _boolean(mask: Any) -> tuple[Any, bool]:
    """(boolean mask, whether it says what is hidden) behind one of 0 and a lowest number; else the mask."""
    inner = _plain(mask)
    if op_name(inner) == "where":
        chosen, seen, other = inner.args
        if _number(seen) == 0 and _lowest(other):
            return chosen, False
        if _number(other) == 0 and _lowest(seen):
            return chosen, True
    if op_name(inner) == "masked_fill" and _number(inner.args[0]) == 0 and _lowest(inner.args[2]):
        return inner.args[1], True
    return mask, False


def _lowest(value: Any) -> bool:
    number = _number(value)
    return number is not None and number <= LOWEST


def _number(node: Any) -> float | None:
    """The number that a node has everywhere."""
    node = _plain(node)
    if isinstance(node, int | float):
        return float(node)
    match op_name(node).removeprefix("new_").removesuffix("_like"):
        case "zeros":
            return 0.0
        case "full":
            return float(node.args[1])
        case "scalar_tensor":
            return float(node.args[0])
    return None


def _unscaled(node: Any, constants: Constants) -> tuple[Any, float]:
    """A node without the numbers that it is multiplied by, and their product."""
    factor, node = 1.0, _plain(node)
    while (found := match_scale(node, constants)) is not None:
        node, factor = _plain(found[0]), factor * found[1]
    return node, factor


def _plain(node: Any) -> Any:
    """A node behind casts, copies and dropout, which does nothing in eval mode."""
    while op_name(node) in (*CASTS, "clone", "contiguous", "alias", "dropout"):
        node = node.args[0]
    return node
