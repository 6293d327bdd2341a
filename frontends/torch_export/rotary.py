"""Patterns of rotary positions, in the spellings that models have.

| pattern | becomes |
|---|---|
| x·cos + cat(−x₂, x₁)·sin; cat(x₁·cos − x₂·sin, x₂·cos + x₁·sin) | graph.rope, style "half" |
| the latter of even and odd values | graph.rope, style "half" of permuted rows of a weight, or "split" |
| the former with stack(−x odd, x even) for cat, of angles repeated in pairs | graph.rope, style "interleaved" |
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.fx import Node

from tileir.frontends.torch_export.nodes import Constants, behind, op_name, shape
from tileir.frontends.torch_export.patterns import split_mul


@dataclass(frozen=True)
class Rope:
    """A rotation of all heads of x; inv_freq: [head size / 2] f32. style: that of graph.rope."""

    x: Node
    positions: Node
    inv_freq: np.ndarray
    scale: float
    style: str = "half"


def match_rope(node: Node, constants: Constants) -> Rope | None:
    """node as the last operation of a rotation."""
    return _rope_by_sum(node, constants) or _rope_by_halves(node, constants)


def _rope_by_sum(node: Node, constants: Constants) -> Rope | None:
    if op_name(node) != "add" or not all(split_mul(a) for a in node.args[:2]):
        return None
    for straight, turned in (node.args[:2], node.args[1::-1]):
        x, cos = _with_angle(straight, "cos", constants)
        swapped, sin = _with_angle(turned, "sin", constants)
        pairs = cos is not None and cos.pairs
        swapped = behind(swapped)
        kind, pick = ("stack", _every_other) if pairs else ("cat", _half)
        if cos is None or sin is None or op_name(swapped) != kind or len(swapped.args[0]) != 2:
            continue
        minus, first = swapped.args[0]
        last = len(shape(minus)) - (0 if pairs else 1)
        if op_name(minus) != "neg" or swapped.args[1] not in (-1, last):
            continue
        parts = pick(minus.args[0], 1), pick(first, 0)
        same = parts[0] is not None and parts[0] is parts[1]
        if same and behind(parts[0]) is behind(x) and cos == sin:
            style = "interleaved" if pairs else "half"
            return Rope(parts[0], cos.positions, cos.frequencies, cos.scale, style)
    return None


def _rope_by_halves(node: Node, constants: Constants) -> Rope | None:
    if op_name(node) != "cat" or len(node.args[0]) != 2:
        return None
    low, high = node.args[0]
    if op_name(low) != "sub" or op_name(high) != "add":
        return None
    parts = [_with_angle(low.args[0], "cos", constants), _with_angle(low.args[1], "sin", constants)]
    parts += [
        _with_angle(high.args[0], "cos", constants),
        _with_angle(high.args[1], "sin", constants),
    ]
    angles = [angle for _, angle in parts]
    if any(a is None or a != angles[0] for a in angles):
        return None
    first = angles[0]
    assert first is not None
    for style, pick in (("half", _half), ("split", _every_other)):
        sources = [pick(part, h) for (part, _), h in zip(parts, (0, 1, 1, 0), strict=True)]
        if sources[0] is not None and all(s is sources[0] for s in sources):
            return Rope(sources[0], first.positions, first.frequencies, first.scale, style)
    return None


@dataclass(frozen=True, eq=False)
class _Angle:
    """positions · frequencies, times `scale` after the function. pairs: each one twice, else all and again all."""

    positions: Node
    frequencies: np.ndarray
    scale: float
    pairs: bool = False

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, _Angle)
            and self.positions is other.positions
            and (self.scale, self.pairs) == (other.scale, other.pairs)
            and np.array_equal(self.frequencies, other.frequencies)
        )


def _with_angle(node: Any, function: str, constants: Constants) -> tuple[Any, _Angle | None]:
    """(the other factor, angle) of a product with cos or sin of an angle."""
    pair = split_mul(node)
    for x, factor in (pair, pair[::-1]) if pair else ():
        angle = _angle(factor, function, constants)
        if angle is not None:
            return x, angle
    return None, None


def _angle(node: Any, function: str, constants: Constants) -> _Angle | None:
    node, scale = behind(node), 1.0
    pairs = _each_twice(node)
    node = node if pairs is None else behind(pairs)
    repeated = _half(node, 0) if op_name(node) == "slice" else None
    node = node if repeated is None else behind(repeated)
    if op_name(node) == "mul" and isinstance(node.args[1], int | float):
        node, scale = behind(node.args[0]), float(node.args[1])
    if op_name(node) != function:
        return None
    inner = behind(node.args[0])
    if op_name(inner) == "cat" and len(inner.args[0]) == 2 and inner.args[0][0] is inner.args[0][1]:
        inner = behind(inner.args[0][0])
    elif repeated is not None:
        return None
    pair = split_mul(inner)
    for positions, frequencies in (pair, pair[::-1]) if pair else ():
        value = constants.value(frequencies)
        at = behind(positions)
        if value is not None and isinstance(at, Node) and at.op == "placeholder":
            return _Angle(at, value.detach().float().reshape(-1).numpy(), scale, pairs is not None)
    return None


def _each_twice(node: Any) -> Any:
    """x, if the node is each value of x's last dimension twice."""
    if op_name(node) != "repeat_interleave" or node.args[1] != 2 or len(node.args) < 3:
        return None
    x, dim = node.args[0], node.args[2]
    return x if dim % len(shape(x)) == len(shape(x)) - 1 else None


def _half(node: Any, which: int) -> Any:
    """x, if the node is the lower (0) or upper (1) half of x's last dimension."""
    if op_name(node) == "slice":
        x, dim, start, end = (*node.args, 0, 2**63)[:4] if len(node.args) < 4 else node.args[:4]
        size = shape(x)
        last, half = len(size) - 1, size[-1] // 2
        wanted = (0, half) if which == 0 else (half, size[-1])
        return x if dim % len(size) == last and (start, min(end, size[-1])) == wanted else None
    if op_name(node) == "getitem" and node.args[1] == which:
        split = node.args[0]
        x = split.args[0]
        size, dim = shape(x), (split.args[2] if len(split.args) > 2 else 0)
        sizes = split.args[1]
        even = (
            sizes == size[-1] // 2
            or list(sizes if isinstance(sizes, list | tuple) else []) == [size[-1] // 2] * 2
        )
        last = dim % len(size) == len(size) - 1
        return x if op_name(split).startswith("split") and last and even else None
    return None


def _every_other(node: Any, which: int) -> Any:
    """x, if the node is the even (0) or odd (1) values of x's last dimension."""
    if op_name(node) != "slice" or len(node.args) != 5:
        return None
    x, dim, start, end, step = node.args
    size = shape(x)
    last = dim % len(size) == len(size) - 1
    return x if last and (start, step) == (which, 2) and end >= size[-1] else None
