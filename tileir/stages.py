"""What stages publish, as data: who, where, what; noted on one device and compared with another's."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray
# What is published: numbers; those that only order positions; SMs' best (key, index) pairs; what selects chose.
VALUES, SCORES, CANDIDATES, CHOICES = "values", "scores", "candidates", "choices"


@dataclass(frozen=True, order=True)
class Stage:
    """A row of a GPU's phase table as the writer of a channel. kind: one of those above."""

    gpu: int
    row: int
    body: str
    channel: str
    kind: str

    def __str__(self) -> str:
        gpu = f" of GPU {self.gpu}" if self.gpu else ""
        return f"{self.body} {self.channel} (row {self.row}{gpu})"


# Called with the stage, positions [T], index [n] of the channel's values, and values [T, n].
Heard = Callable[[Stage, Array, Array, Array], None]


@dataclass(frozen=True)
class Part:
    """What a stage has published at one position: values [n] at index [n], ascending, of its channel."""

    index: Array
    values: Array


class Notes:
    """What stages publish at some positions; `hear` is a device's listener."""

    def __init__(self, positions: Iterable[int]) -> None:
        self.positions = sorted(positions)
        self._heard: dict[tuple[int, Stage], list[tuple[Array, Array]]] = {}

    def hear(self, stage: Stage, positions: Array, index: Array, values: Array) -> None:
        """Keep what is of a wanted position, and all choices."""
        for position, row in zip(positions.tolist(), values, strict=True):
            if stage.kind == CHOICES or position in self.positions:
                self._heard.setdefault((position, stage), []).append((index, row))

    def parts(self) -> dict[tuple[int, Stage], Part]:
        """By position, then in the order of the table."""
        found = {}
        for key in sorted(self._heard):
            index, values = (np.concatenate(part) for part in zip(*self._heard[key], strict=True))
            order = np.argsort(index, kind="stable")
            found[key] = Part(index[order], values[order])
        return found


Parts = Mapping[tuple[int, Stage], Part]


def scales(parts: Parts) -> dict[tuple[int, int, str], float]:
    """The largest finite magnitude of each channel, by (position, GPU, channel), of all rows that write it."""
    found: dict[tuple[int, int, str], float] = {}
    for (position, stage), part in parts.items():
        if stage.kind in (VALUES, SCORES):
            key = position, stage.gpu, stage.channel
            finite = np.abs(part.values[np.isfinite(part.values)])
            found[key] = max(found.get(key, 0.0), float(finite.max(initial=0)))
    return found


def fact_of(stage: Stage) -> list[Any]:
    """A stage, ready for JSON; Stage(*fact) is it again."""
    return [stage.gpu, stage.row, stage.body, stage.channel, stage.kind]
