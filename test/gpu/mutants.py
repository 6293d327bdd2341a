"""Kernels with one seeded defect each: what the numerics gate has to catch.

Each mutant patches one function of the code generator while a package is compiled from an engine module.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tileir.codegen import attend, builder, contract, loaders


@contextmanager
def patched(places: list[tuple[Any, str]], make: Callable[[Any], Any]) -> Iterator[None]:
    """Replace a function in every module that holds it."""
    before = [(owner, name, getattr(owner, name)) for owner, name in places]
    for owner, name, function in before:
        setattr(owner, name, make(function))
    try:
        yield
    finally:
        for owner, name, function in before:
            setattr(owner, name, function)


SPLIT = [(loaders, "split_rows"), (attend, "split_rows")]


def _without_last(count: int) -> Callable[[Any], Any]:
    """Every split leaves out its last `count` old rows."""

    def make(function: Any) -> Any:
        def split_rows(*args: Any) -> Any:
            first, rows = function(*args)
            return first, rows - builder.umin(rows, count)

        return split_rows

    return make


def _one_back(function: Any) -> Any:
    """Every split begins one row too early, if it can."""

    def split_rows(*args: Any) -> Any:
        first, rows = function(*args)
        return first - builder.umin(first, 1), rows

    return split_rows


def _drop_split(function: Any) -> Any:
    """Split 1 reads nothing."""

    def split_rows(k: Any, op: Any, split: Any) -> Any:
        first, rows = function(k, op, split)
        return first, builder.select(builder.eq(split, 1), 0, rows)

    return split_rows


def _no_scale(_function: Any) -> Any:
    return lambda *_: None


MUTANTS: dict[str, tuple[list[tuple[Any, str]], Callable[[Any], Any]]] = {
    "kv tile dropped": (SPLIT, _without_last(8)),
    "split dropped": (SPLIT, _drop_split),
    "position off by one": (SPLIT, _one_back),
    "norm skipped": ([(contract, "_row_scale")], _no_scale),
}
