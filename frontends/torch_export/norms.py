"""Patterns of RMS norms, called or spelled out.

| pattern | becomes |
|---|---|
| rms_norm(x, w); x · rsqrt(mean(x²) + eps) · w, in any order | graph.rms_norm |
| the same with / sqrt(…) or · (…) ** −0.5, with x · x, x² or square(x) | graph.rms_norm |
| the same with 1 + w for w | graph.rms_norm with unit_offset |
"""

from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from tileir.frontends.torch_export.nodes import behind, op_name
from tileir.frontends.torch_export.patterns import split_mul


@dataclass(frozen=True)
class Norm:
    """x · rsqrt(mean(x²) + eps) · weight, or · (1 + weight)."""

    x: Node
    weight: Any
    eps: float
    unit_offset: bool


def match_norm(node: Node) -> Norm | None:
    """node as the last operation of an RMS norm."""
    if op_name(node) in ("rms_norm", "_fused_rms_norm"):
        eps = node.args[3] if len(node.args) > 3 else None
        dtype_eps = 1.1920928955078125e-07
        return Norm(node.args[0], node.args[2], float(eps if eps is not None else dtype_eps), False)
    pair = split_mul(node)
    for scaled, weight in (pair, pair[::-1]) if pair else ():
        inner = _normalised(behind(scaled))
        if inner is not None:
            w, offset = _weight(behind(weight))
            return Norm(inner[0], w, inner[1], offset)
    return None


def _weight(node: Any) -> tuple[Any, bool]:
    """(w, whether the factor is 1 + w)."""
    if op_name(node) == "add":
        for w, one in (node.args[:2], node.args[1::-1]):
            if one in (1, 1.0):
                return w, True
    return node, False


def _normalised(node: Any) -> tuple[Node, float] | None:
    """(x, eps) of x · rsqrt(mean(x²) + eps)."""
    pair = split_mul(node)
    if op_name(node) == "div":
        return _of(node.args[0], _rooted(behind(node.args[1])))
    for x, factor in (pair, pair[::-1]) if pair else ():
        found = _of(x, _reciprocal_root(behind(factor)))
        if found is not None:
            return found
    return None


def _reciprocal_root(node: Any) -> Any:
    """y of 1 / sqrt(y)."""
    if op_name(node) == "rsqrt" or (op_name(node) == "pow" and node.args[1] == -0.5):
        return node.args[0]
    return _rooted(behind(node.args[0])) if op_name(node) == "reciprocal" else None


def _rooted(node: Any) -> Any:
    """y of sqrt(y)."""
    if op_name(node) == "sqrt" or (op_name(node) == "pow" and node.args[1] == 0.5):
        return node.args[0]
    return None


def _of(x: Any, total: Any) -> tuple[Node, float] | None:
    """(x, eps), if total is mean(x²) + eps."""
    total = behind(total)
    if op_name(total) != "add":
        return None
    for mean, eps in (total.args[:2], total.args[1::-1]):
        if isinstance(eps, int | float) and op_name(mean) == "mean" and mean.args[1:2] == ([-1],):
            squared = _squared(behind(mean.args[0]))
            if squared is not None and behind(squared) is behind(x):
                return behind(x), float(eps)
    return None


def _squared(node: Any) -> Any:
    """y of y²."""
    if op_name(node) == "square" or (op_name(node) == "pow" and node.args[1] == 2):
        return node.args[0]
    pair = split_mul(node)
    return pair[0] if pair is not None and pair[0] is pair[1] else None
