"""Producers, readers and sizes of values, and what an earlier pass must have decided."""

from math import prod
from typing import Any

from tileir.dialect.attributes import get, located, name_of, shape_of, static_shape, walk
from tileir.errors import ContractError
from tileir.mlir import ir

DECLARATIONS = ("graph.weight", "graph.constant", "graph.state")


def step_function(module: Any) -> Any:
    """The module's only function, of tokens and positions. Raises ContractError if it has another."""
    functions = list(walk(module, "func.func"))
    takes = [len(function.regions[0].blocks[0].arguments) for function in functions]
    if takes != [2]:
        raise ContractError(
            f"the module holds {len(functions)} functions, of {takes} arguments",
            hint="a model is one func.func @step of tokens and positions",
        )
    return functions[0]


def operations(function: Any) -> list[Any]:
    """The operations of a function's body, in order, its return last."""
    return [op.operation for op in function.regions[0].blocks[0]]


def producer(value: Any) -> Any | None:
    """The operation that makes a value; None for a function's argument."""
    owner = value.owner
    return None if isinstance(owner, ir.Block) else owner.operation


def readers(value: Any) -> list[Any]:
    """The operations that read a value, each once."""
    found: list[Any] = []
    for use in value.uses:
        if use.owner.operation not in found:
            found.append(use.owner.operation)
    return found


def row_size(value: Any) -> int:
    """How many values a graph value has for a token."""
    size = shape_of(value)[-1]
    assert size is not None
    return size


def channel_size(value: Any) -> int:
    """How many values a channel has for a token."""
    return prod(static_shape(value)[1:])


def decided(op: Any, name: str, by: str) -> Any:
    """An attribute that something earlier puts. Raises ContractError if it is missing."""
    value = get(op, name)
    if value is None:
        raise ContractError(
            f"{name_of(op)} has no {name!r}",
            location=located(op),
            hint=f"{by} puts it: run it first",
        )
    return value
