"""A made-up GPU that packs: memory in which nothing is read or written outside, and the packing kernel in NumPy."""

from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from tileir.codegen.packing import ARGUMENTS
from tileir.runtime.loader import pack_tape, upload_constants
from tileir.scheduling.assign import shares


class PackingDevice:
    """The tape and the constants of a recipe, as the runtime packs them. Stands for a Device and its Uploader."""

    def __init__(
        self, manifest: Mapping[str, Any], recipe: Any, weights: Mapping[str, Any]
    ) -> None:
        self._held: dict[int, np.ndarray] = {}
        self._end, self._recipe, self._sms = 1 << 20, recipe, manifest["sms"]
        device: Any = self
        self._tape, self._bases = pack_tape(
            device, device, None, recipe["tape"], self._sms, weights
        )
        upload_constants(
            device, device, recipe["constants"], manifest["memory"]["constants"], weights
        )

    def blocks(self) -> list[np.ndarray]:
        """Of every row of the tape, and there of every SM, the blocks [blocks, 16, 32] bf16."""
        found = []
        for i, row in enumerate(self._recipe["tape"]):
            counts = shares(row["tiles"], row["rotation"], self._sms)[1] * row["blocks"]
            places = self._at(self._bases + 8 * (i + 1) * self._sms, 8 * self._sms).view(np.int64)
            for place, count in zip(places, counts, strict=True):
                part = self._at(self._tape + int(place), 1024 * int(count))
                found.append(part.view(ml_dtypes.bfloat16).reshape(-1, 16, 32))
        return found

    def _at(self, pointer: int, size: int) -> np.ndarray:
        """Bytes of one allocation."""
        first = max(p for p in self._held if p <= pointer)
        assert pointer - first + size <= len(self._held[first]), "outside an allocation"
        return self._held[first][pointer - first : pointer - first + size]

    # ---- what the runtime calls

    def allocate(self, size: int, _what: str) -> int:
        pointer, self._end = self._end, self._end + (size + 4095) // 4096 * 8192
        self._held[pointer] = np.zeros(size, np.uint8)
        return pointer

    borrow = allocate

    def give_back(self, pointer: int) -> None:
        del self._held[pointer]

    def upload(self, *given: Any) -> None:
        """(array, pointer) of a Device, (name, array, dtype, pointer) of an Uploader."""
        *_, pointer = given
        array = given[0] if len(given) == 2 else given[1].astype(given[2])
        self._at(pointer, array.nbytes)[:] = np.frombuffer(array.tobytes(), np.uint8)

    def launch(
        self,
        _kernel: Any,
        grid: tuple[int, int],
        _threads: int,
        _smem: int,
        arguments: Sequence[Any],
    ) -> None:
        """tileir/codegen/packing.py, block by block."""
        a = dict(zip(ARGUMENTS, (value for value, _ in arguments), strict=True))
        assert all(0 <= a[name] < 2**32 for name, kind in ARGUMENTS.items() if kind == "i32")
        first, count = shares(a["tiles"], a["rotation"], a["sms"])
        for x in range(grid[0]):
            t, tile = a["segment_tile"] + x, a["row_tile"] + x
            start = t // a["inner"] * a["outer"] + t % a["inner"] * a["step"]
            (sm,) = np.flatnonzero((first <= tile) & (tile < first + count))
            base = int(self._at(a["bases"] + 8 * int(sm), 8).view(np.int64)[0])
            for y in range(grid[1]):
                block = np.zeros((16, 32), np.uint16)
                for at, half in ((0, "lo"), (8, "hi")):
                    begin, width = start + a[f"{half}_row"], min(32, a["k"] - 32 * y)
                    for g in range(max(0, min(8, a[f"{half}_rows"] - begin))):
                        place = a[half] + 2 * ((begin + g) * a["k"] + 32 * y)
                        block[at + g, :width] = self._at(place, 2 * width).view(np.uint16)
                place = a["tape"] + base + 1024 * ((tile - int(first[sm])) * grid[1] + y)
                self._at(place, 1024)[:] = block.view(np.uint8).reshape(-1)
