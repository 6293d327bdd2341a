"""Rows that a step reads from a table which the program holds."""

from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from tileir.frontends.torch_export.nodes import Constants, behind, op_name


@dataclass(frozen=True)
class Lookup:
    """table[at], `at` an input of the program. values: the table, the dimension that is indexed being its first."""

    at: Node
    table: Node
    values: torch.Tensor


def match_lookup(node: Any, constants: Constants) -> Lookup | None:
    """node as one index of a constant: table[at], index_select, embedding.

    Raises TileirError for a constant without values.
    """
    match op_name(node):
        case "index":
            dims = [d for d, index in enumerate(node.args[1]) if index is not None]
            if len(dims) != 1:
                return None
            table, dim, index = node.args[0], dims[0], node.args[1][dims[0]]
        case "index_select":
            table, dim, index = node.args[:3]
        case "embedding":
            table, dim, index = node.args[0], 0, node.args[1]
        case _:
            return None
    at = behind(index)
    if not isinstance(at, Node) or at.op != "placeholder":
        return None
    values = constants.value(table)
    return None if values is None else Lookup(at, table, values.detach().movedim(dim, 0))
