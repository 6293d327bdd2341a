"""Weights that are drawn, for a package whose speed is asked for and not its words."""

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from tileir.package import Package
from tileir.packing import last_start, reach

HALF_ROWS = 8  # of a tile, that "lo" and "hi" each name


class DrawnWeights(Mapping[str, Any]):
    """bf16 arrays by name, each made when it is asked for: matrices keep the size of values, vectors are about 1.

    recipes: a package's `packing`, which says what rows are read, not how many there are beyond: shapes are the least
    that fit. A block of normal values repeats, for drawing billions takes minutes.
    """

    def __init__(self, recipes: Sequence[dict[str, Any]]) -> None:
        self._shapes = _shapes(recipes)
        self._block = np.random.default_rng(0).standard_normal(1_000_003, np.float32)

    def __getitem__(self, name: str) -> np.ndarray:
        shape = self._shapes[name]
        vector = len(shape) == 1
        block = 1 + self._block * 0.1 if vector else self._block * shape[-1] ** -0.5
        return np.resize(block.astype(ml_dtypes.bfloat16), shape)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor, without making it. Raises KeyError."""
        return self._shapes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def named_or_drawn(package: Package, weights: Path | None) -> Path | DrawnWeights:
    """What a package is loaded with: the weights that were named, or drawn ones."""
    return DrawnWeights(package.packing) if weights is None else weights


def _shapes(recipes: Sequence[dict[str, Any]]) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors that a package takes: [rows, k] of matrices that are streamed, of experts' one more."""
    streamed: dict[str, tuple[int, int, int]] = {}
    whole: dict[str, tuple[int, ...]] = {}
    for recipe in recipes:
        for row in [*recipe["tape"], *recipe["store"]]:
            most = row.get("experts", (0, 0))[1]
            for segment in row["segments"]:
                for half in (segment["lo"], segment["hi"]):
                    # A view of columns says how long rows are, and any where experts begin.
                    *_, down, along = half.get("view") or (row["k"], 1)
                    size = down if along == 1 else row["k"]
                    experts, rows, k = streamed.get(half["tensor"], (0, 0, size))
                    experts = max(experts, 0 if half.get("view") else most)
                    streamed[half["tensor"]] = experts, max(rows, _rows(segment, half, k)), k
        for entry in recipe["constants"]:
            if entry["kind"] == "tensor":
                view = entry.get("view", [])
                size = (reach(view) + 1,) if view else tuple(entry["shape"])
                name = entry.get("source", entry["tensor"])
                whole[name] = max(whole.get(name, size), size, key=prod)
    for name in streamed.keys() & whole.keys():
        experts, rows, k = streamed[name]
        streamed[name] = experts, max(rows, -(-prod(whole.pop(name)) // k)), k
    return {**whole, **{name: s if s[0] else s[1:] for name, s in streamed.items()}}


def _rows(segment: dict[str, Any], half: dict[str, Any], k: int) -> int:
    """Rows of k values that a half of a segment's tiles reads up to."""
    view = half.get("view", [])
    if view:
        return -(-(reach(view) + 1) // k)
    return int(last_start(segment) + half["row"] + HALF_ROWS)
