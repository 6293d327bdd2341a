"""How a step writes rows into a KV cache.

| pattern | becomes |
|---|---|
| index_copy(cache, dimension, positions, rows); cache[:, :, positions] = rows | graph.append |
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
