"""Weights while they are loaded: how far it is, and whether their values are numbers."""

from collections.abc import Callable, Iterator, Mapping
from math import prod
from typing import Any

import numpy as np

from tileir.errors import PackageError

Progress = Callable[[int, int], None]  # values read, values of all tensors that are needed
_EXPONENTS = {2: 0x7F80, 4: 0x7F800000}  # of bf16 and of f32: all ones in what is no number


class Reading(Mapping[str, Any]):
    """Tensors as another mapping has them; tells `progress` when one is asked for, and raises for NaN if `check`."""

    def __init__(
        self,
        tensors: Mapping[str, Any],
        shapes: Mapping[str, tuple[int, ...]],
        progress: Progress | None,
        *,
        check: bool,
    ) -> None:
        """shapes: of the tensors that are needed."""
        self._tensors, self._progress, self._check = tensors, progress, check
        self._left = {name: prod(shape) for name, shape in shapes.items()}
        self._all = sum(self._left.values())

    def __getitem__(self, name: str) -> Any:
        """The tensor. Raises PackageError if values of it are no numbers."""
        found = self._tensors[name]
        fresh = self._left.pop(name, None)
        if fresh is not None and self._check:
            refuse_unknown(name, not_numbers(np.asarray(found, np.float32)))
        if fresh is not None and self._progress is not None:
            self._progress(self._all - sum(self._left.values()), self._all)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def not_numbers(array: np.ndarray) -> int:
    """How many values of a bf16 or f32 array are NaN or infinite."""
    size = array.dtype.itemsize
    bits, ones = array.view(f"u{size}"), _EXPONENTS[size]
    return int(np.count_nonzero((bits & ones) == ones))


def refuse_unknown(name: str, count: int) -> None:
    """Raises PackageError if a tensor has values that are no numbers."""
    if count:
        raise PackageError(
            f"tensor {name!r} has {count} values that are NaN or infinite",
            hint="the file is damaged, or the training failed: copy it again",
        )
