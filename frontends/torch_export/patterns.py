"""Structural patterns over ATen nodes, after `run_decompositions({})`. Nothing is matched by a model's name.

| pattern | becomes |
|---|---|
| pow 2, mean, + eps, rsqrt, · x, · w (or · (1 + w)); rms_norm | graph.rms_norm |
| x·cos + cat(−x₂, x₁)·sin; cat(x₁·cos − x₂·sin, x₂·cos + x₁·sin) | graph.rope, style "half" |
| the latter of even and odd values | graph.rope, style "half" of permuted rows of a weight, or "split" |
| index_copy into a buffer along its positions | graph.append |
| scaled_dot_product_attention over such buffers, mask arange ≤ position (and > position − window) | graph.attention |
| silu(a)·b, gelu(a, tanh)·b | graph.glu |
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch.fx import Node

from tileir.frontends.torch_export.nodes import Constants, behind, op_name, shape


@dataclass(frozen=True)
class Norm:
    """x · rsqrt(mean(x²) + eps) · weight."""

    x: Node
    weight: Any
    eps: float
    unit_offset: bool


@dataclass(frozen=True)
class Rope:
    """A rotation of all heads of x; inv_freq: [head size / 2] f32. style: that of graph.rope, "half" or "split"."""

    x: Node
    positions: Node
    inv_freq: np.ndarray
    scale: float
    style: str = "half"


@dataclass(frozen=True)
class Mask:
    """Columns ≤ position, and > position − window if window is not 0, and among `indices` if there are any."""

    positions: Node
    window: int
    indices: Node | None = None


def split_mul(node: Any) -> tuple[Any, Any] | None:
    """The operands of a product."""
    return (node.args[0], node.args[1]) if op_name(node) == "mul" else None


def match_norm(node: Node) -> Norm | None:
    """node as the last operation of an RMS norm."""
    if op_name(node) in ("rms_norm", "_fused_rms_norm"):
        eps = node.args[3] if len(node.args) > 3 else None
        dtype_eps = 1.1920928955078125e-07
        return Norm(node.args[0], node.args[2], float(eps if eps is not None else dtype_eps), False)
    pair = split_mul(node)
    if pair is None:
        return None
    for scaled, weight in (pair, pair[::-1]):
        inner = _normalised(behind(scaled))
        if inner is None:
            continue
        w = behind(weight)
        offset = op_name(w) == "add" and w.args[1] in (1, 1.0)
        return Norm(inner[0], w.args[0] if offset else w, inner[1], offset)
    return None


def _normalised(node: Any) -> tuple[Node, float] | None:
    """(x, eps) of x · rsqrt(mean(x²) + eps)."""
    pair = split_mul(node)
    for x, r in (pair, pair[::-1]) if pair else ():
        if op_name(r) != "rsqrt" or op_name(r.args[0]) != "add":
            continue
        mean, eps = r.args[0].args[:2]
        square = mean.args[0] if op_name(mean) == "mean" else None
        if (
            square is not None
            and op_name(square) == "pow"
            and square.args[1] == 2
            and behind(square.args[0]) is behind(x)
        ):
            return behind(x), float(eps)
    return None


def match_rope(node: Node, constants: Constants) -> Rope | None:
    """node as the last operation of a rotation."""
    return _rope_by_sum(node, constants) or _rope_by_halves(node, constants)


def _rope_by_sum(node: Node, constants: Constants) -> Rope | None:
    if op_name(node) != "add" or not all(split_mul(a) for a in node.args[:2]):
        return None
    for straight, turned in (node.args[:2], node.args[1::-1]):
        x, cos = _with_angle(straight, "cos", constants)
        swapped, sin = _with_angle(turned, "sin", constants)
        if cos is None or sin is None or op_name(swapped) != "cat" or len(swapped.args[0]) != 2:
            continue
        minus, first = swapped.args[0]
        if op_name(minus) != "neg":
            continue
        halves = _half(minus.args[0], 1), _half(first, 0)
        if halves[0] is not None and halves[0] is halves[1] and halves[0] is x and cos == sin:
            return Rope(x, cos.positions, cos.frequencies, cos.scale)
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
    """positions · frequencies, times `scale` after the function."""

    positions: Node
    frequencies: np.ndarray
    scale: float

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, _Angle)
            and self.positions is other.positions
            and self.scale == other.scale
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
            return _Angle(at, value.detach().float().reshape(-1).numpy(), scale)
    return None


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


def match_mask(node: Any) -> Mask | None:
    """A boolean mask made from arange and positions."""
    node = _bare(node)
    name = op_name(node)
    if name in ("bitwise_and", "logical_and", "and_", "__and__"):
        for part, other in (node.args[:2], node.args[1::-1]):
            indices, mask = _listed(other), match_mask(part)
            if indices is not None and mask is not None:
                return replace(mask, indices=indices) if mask.indices is None else None
        parts = [match_mask(a) for a in node.args[:2]]
        if None in parts or parts[0].positions is not parts[1].positions:  # type: ignore[union-attr]
            return None
        windows = [p.window for p in parts if p is not None]
        return Mask(parts[0].positions, max(windows)) if parts[0] else None
    left, right = (
        (_bare(a) for a in node.args[:2]) if name in ("le", "ge", "gt", "lt") else (None, None)
    )
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
        inner = behind(active)
        if op_name(inner) == "silu":
            return inner.args[0], up, "silu"
        if op_name(inner) == "gelu" and inner.kwargs.get("approximate") == "tanh":
            return inner.args[0], up, "gelu_tanh"
    return None
