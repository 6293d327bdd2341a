"""Host arrays to the device as bf16 or f32, through pinned memory that several threads fill."""

import mmap
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from tileir.runtime.driver import Device
from tileir.runtime.reading import not_numbers, refuse_unknown

PIECE_BYTES = 32 << 20  # of a pinned buffer
BUFFERS = 3
THREADS = max(1, min(8, os.cpu_count() or 1))


class Uploader:
    """Copies arrays while the device still works on earlier ones. A context manager: leaving it waits."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._buffers: deque[tuple[np.ndarray, Any]] = deque(
            (device.pinned(PIECE_BYTES), None) for _ in range(BUFFERS)
        )
        self._threads = ThreadPoolExecutor(THREADS)

    def __enter__(self) -> "Uploader":
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown()
        self._device.synchronize()
        for buffer, _ in self._buffers:
            self._device.unpin(buffer)

    def upload(self, name: str, array: np.ndarray, dtype: Any, pointer: int) -> None:
        """Copy an array of any strides, at least one dimension, rounded to `dtype`, to device memory.

        Pages of a mapped file are let go behind the copy. Raises PackageError if values are no numbers.
        """
        row_bytes = int(np.prod(array.shape[1:])) * np.dtype(dtype).itemsize
        rows = max(1, PIECE_BYTES // row_bytes)
        assert row_bytes <= PIECE_BYTES, f"rows of {row_bytes} bytes"
        for at in range(0, len(array), rows):
            part = array[at : at + rows]
            buffer, event = self._buffers.popleft()
            if event is not None:
                self._device.reach(event)
            staged = buffer[: len(part) * row_bytes].view(dtype).reshape(part.shape)
            step = -(-len(part) // THREADS)
            cuts = [slice(i, i + step) for i in range(0, len(part), step)]
            bad = self._threads.map(_copy, [staged[c] for c in cuts], [part[c] for c in cuts])
            refuse_unknown(name, sum(bad))
            _let_go(array)
            self._device.begin_upload(staged, pointer + at * row_bytes)
            self._buffers.append((buffer, self._device.event()))


def _copy(to: np.ndarray, source: np.ndarray) -> int:
    np.copyto(to, source, "unsafe")
    return not_numbers(to)


def _let_go(array: Any) -> None:
    while array is not None:
        if isinstance(array, mmap.mmap):
            array.madvise(mmap.MADV_DONTNEED)
        array = getattr(array, "base", None)
