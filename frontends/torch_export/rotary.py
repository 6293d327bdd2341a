"""Patterns of rotary positions, in the spellings that models have.

| pattern | becomes |
|---|---|
| x·cos + cat(−x₂, x₁)·sin; cat(x₁·cos − x₂·sin, x₂·cos + x₁·sin) | graph.rope, style "half" |
| the latter of even and odd values | graph.rope, style "half" of permuted rows of a weight, or "split" |
| the first with stack(−x odd, x even) for cat, of angles repeated in pairs | graph.rope, style "interleaved" |
| the second with stack for cat, of even and odd values, or of x in pairs | graph.rope, style "interleaved" |
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.fx import Node

from tileir.frontends.torch_export.angles import (
    Angle,
    Table,
    component,
    half,
    match_angle,
    one_angle,
)
from tileir.frontends.torch_export.nodes import Constants, behind, op_name, shape
from tileir.frontends.torch_export.patterns import split_mul


@dataclass(frozen=True)
class Rope:
    """A rotation of all heads of x; inv_freq: [head size / 2] f32, None of tables that none give.

    style: that of graph.rope.
    """

    x: Node
    positions: Node
    inv_freq: np.ndarray | None
    scale: float
    style: str = "half"


def match_rope(node: Node, constants: Constants) -> Rope | None:
    """node as the last operation of a rotation."""
    return _rope_by_sum(node, constants) or _rope_by_halves(node, constants)


def _rope_by_sum(node: Node, constants: Constants) -> Rope | None:
    if op_name(node) != "add" or not all(split_mul(a) for a in node.args[:2]):
        return None
    for straight, turned in (node.args[:2], node.args[1::-1]):
        x, cos = _with_angle(straight, "cos", constants, whole=True)
        swapped, sin = _with_angle(turned, "sin", constants, whole=True)
        angle = one_angle(cos, sin, constants)
        pairs = angle is not None and angle.pairs
        swapped = behind(swapped)
        kind, pick = ("stack", _every_other) if pairs else ("cat", half)
        if angle is None or op_name(swapped) != kind or len(swapped.args[0]) != 2:
            continue
        minus, first = swapped.args[0]
        last = len(shape(minus)) - (0 if pairs else 1)
        if op_name(minus) != "neg" or swapped.args[1] not in (-1, last):
            continue
        parts = pick(minus.args[0], 1), pick(first, 0)
        same = parts[0] is not None and parts[0] is parts[1]
        if same and behind(parts[0]) is behind(x):
            style = "interleaved" if pairs else "half"
            return Rope(parts[0], angle.positions, angle.frequencies, angle.scale, style)
    return None


def _rope_by_halves(node: Node, constants: Constants) -> Rope | None:
    if op_name(node) not in ("cat", "stack") or len(node.args[0]) != 2:
        return None
    low, high = map(behind, node.args[0])
    if op_name(low) != "sub" or op_name(high) != "add":
        return None
    pairs = op_name(node) == "stack"
    if pairs and (*node.args, 0)[1] not in (-1, len(shape(node)) - 1):
        return None
    factors = (*low.args[:2], *high.args[:2])
    parts = [
        _with_angle(f, kind, constants, whole=False)
        for f, kind in zip(factors, ("cos", "sin") * 2, strict=True)
    ]
    first, second = (one_angle(parts[at][1], parts[at + 1][1], constants) for at in (0, 2))
    if first is None or second is None or not first.same(second):
        return None
    picks = {"interleaved": _of_pairs} if pairs else {"half": half, "split": _every_other}
    for style, pick in picks.items():
        sources = [pick(part, h) for (part, _), h in zip(parts, (0, 1, 1, 0), strict=True)]
        if sources[0] is not None and all(s is sources[0] for s in sources):
            return Rope(sources[0], first.positions, first.frequencies, first.scale, style)
    return None


def _with_angle(
    node: Any, function: str, constants: Constants, whole: bool
) -> tuple[Any, Angle | Table | None]:
    """(the other factor, angle) of a product with cos or sin of an angle."""
    pair = split_mul(node)
    for x, factor in (pair, pair[::-1]) if pair else ():
        angle = match_angle(factor, function, constants, whole)
        if angle is not None:
            return x, angle
    return None, None


def _of_pairs(node: Any, which: int) -> Any:
    """x, if the node is the first (0) or second (1) of each two values of x's last dimension."""
    found = component(node)
    if found is not None:
        return behind(found[0]) if found[1] == which else None
    return _every_other(node, which)


def _every_other(node: Any, which: int) -> Any:
    """x, if the node is the even (0) or odd (1) values of x's last dimension."""
    if op_name(node) != "slice" or len(node.args) != 5:
        return None
    x, dim, start, end, step = node.args
    size = shape(x)
    last = dim % len(size) == len(size) - 1
    return x if last and (start, step) == (which, 2) and end >= size[-1] else None
