"""Selections: nodes that only pick and order values of another one, by slices, splits, transpositions.

A selection of a linear's outputs is the linear of a view of its weight: so activations are never sliced.
"""

from collections.abc import Container
from typing import Any

import numpy as np
import torch
from torch.fx import Node

from tileir.frontends.torch_export.nodes import CASTS, op_name, shape

_RESHAPES = ("view", "_unsafe_view", "reshape")
_PICKS = (
    *("unsqueeze", "squeeze", "alias", "clone", "contiguous"),
    *("transpose", "permute", "slice", "select"),
)


def root(node: Any) -> Any:
    """The node whose values a selection picks; the node itself if it is none."""
    while isinstance(node, Node) and _picks(node):
        node = _source(node)
    return node


def selected(node: Any, sources: Container[Any]) -> tuple[Node, torch.Tensor] | None:
    """(source, flat indices into it in the node's shape), if a node is a selection of one of `sources`."""
    chain: list[Node] = []
    while node not in sources:
        if not isinstance(node, Node) or not _picks(node):
            return None
        chain.append(node)
        node = _source(node)
    indices = torch.arange(int(np.prod(shape(node)))).reshape(shape(node))
    for step in reversed(chain):
        indices = _replay(step, indices)
    return node, indices


def strided(indices: np.ndarray) -> tuple[int, list[int], list[int]] | None:
    """(offset, shape, strides) of flat indices in order, all strides positive; None if they are no such view."""
    sizes: list[int] = []
    strides: list[int] = []
    rest = indices
    while len(rest) > 1:
        steps = np.diff(rest)
        step = int(steps[0])
        other = np.flatnonzero(steps != step)
        count = int(np.gcd(len(rest), other[0] + 1 if len(other) else len(rest)))
        runs = rest.reshape(-1, count)
        if count == 1 or step < 1 or np.any(runs != runs[:, :1] + np.arange(count) * step):
            return None
        sizes, strides, rest = [count, *sizes], [step, *strides], runs[:, 0]
    return int(rest[0]), sizes or [1], strides or [1]


def pairs_apart(indices: torch.Tensor) -> torch.Tensor:
    """Indices [..., n] with those of even places before those of odd ones: what is rotated in pairs, in halves."""
    return torch.cat([indices[..., ::2], indices[..., 1::2]], -1)


def _picks(node: Node) -> bool:
    name = op_name(node)
    if name == "getitem":
        return op_name(node.args[0]).startswith("split") or op_name(node.args[0]) == "unbind"
    if name == "mul":
        return node.args[1] in (1, 1.0)
    if name == "expand":
        return shape(node) == shape(node.args[0])
    return name in (*CASTS, *_RESHAPES, *_PICKS)


def _source(node: Node) -> Any:
    return node.args[0].args[0] if op_name(node) == "getitem" else node.args[0]


def _replay(node: Node, indices: torch.Tensor) -> torch.Tensor:
    """What a node does to its source, done to indices of the source's shape."""
    name = op_name(node)
    if name in (*CASTS, "mul", "expand"):
        return indices
    if name in _RESHAPES:
        return indices.reshape(node.args[1])
    if name == "getitem":
        parts = node.args[0].target(indices, *node.args[0].args[1:], **node.args[0].kwargs)
        return parts[node.args[1]]
    return node.target(indices, *node.args[1:], **node.kwargs)
