"""How a step writes rows into a KV cache, and how attention reads it.

| pattern | becomes |
|---|---|
| index_copy(cache, dimension, positions, rows); cache[:, :, positions] = rows | graph.append |

A cache is [1, heads, positions, size], or [1, positions, heads, size] and transposed where attention reads it.
"""

from dataclasses import dataclass
from math import prod
from typing import Any

from torch.fx import Node

from tileir.frontends.torch_export.nodes import op_name, shape


@dataclass(frozen=True)
class Write:
    """rows, at `at` along dimension `dim` of a buffer."""

    buffer: Node
    dim: int
    at: Node
    rows: Node

    @property
    def heads_last(self) -> bool:
        """Whether positions come before heads."""
        return len(shape(self.buffer)) == 4 and self.dim % 4 == 1

    @property
    def sizes(self) -> tuple[int, int, int] | None:
        """(heads, positions, head size), None of a buffer that is no cache."""
        one, *sizes = shape(self.buffer)
        if one != 1 or len(sizes) < 2:
            return None
        if self.heads_last:
            return sizes[1], sizes[0], sizes[2]
        along = self.dim % (len(sizes) + 1) == len(sizes) - 1
        return (prod(sizes[:-2]), sizes[-2], sizes[-1]) if along else None


def match_write(node: Any) -> Write | None:
    """node as a buffer of which some rows are new."""
    match op_name(node):
        case "index_copy":
            return Write(*node.args)
        case "index_put":
            buffer, indices, rows, *more = node.args
            dims = [d for d, index in enumerate(indices) if index is not None]
            if len(dims) != 1 or any(more):
                return None
            (dim,) = dims
            new = [*shape(buffer)[:dim], *shape(indices[dim]), *shape(buffer)[dim + 1 :]]
            same = prod(new) == prod(shape(rows))
            return Write(buffer, dim, indices[dim], rows) if same else None
    return None


def read_cache(node: Any) -> Node | None:
    """The write whose cache attention reads as [1, heads, positions, size], repeated or not; None if there is none."""
    node = unrepeated(node)
    swapped = _swaps_middle(node)
    inner = unrepeated(node.args[0], heads=2) if swapped else node
    write = match_write(inner)
    return inner if write is not None and write.heads_last == swapped else None


def _swaps_middle(node: Any) -> bool:
    """Whether a node is four dimensions, the second and third of which change places."""
    if op_name(node) == "transpose":
        return len(shape(node)) == 4 and {d % 4 for d in node.args[1:]} == {1, 2}
    return op_name(node) == "permute" and [d % 4 for d in node.args[1]] == [0, 2, 1, 3]


def unrepeated(node: Any, heads: int = 1) -> Any:
    """A cache of four dimensions behind copies of each of its heads, one behind the other. heads: their dimension."""
    if op_name(node) == "repeat_interleave" and node.args[2:] in ((heads,), (heads - 4,)):
        return node.args[0]
    inner = node
    while op_name(inner) in ("view", "_unsafe_view", "reshape", "clone", "contiguous"):
        inner = inner.args[0]
    if op_name(inner) != "expand" or op_name(inner.args[0]) != "unsqueeze":
        return node
    source, dim = inner.args[0].args
    sizes, copies = shape(source), shape(inner)
    at = heads + 1
    spread = dim % 5 == at and copies == [*sizes[:at], copies[at], *sizes[at:]]
    same = shape(node) == [*sizes[:heads], sizes[heads] * copies[at], *sizes[at:]]
    return source if spread and same else node
