"""Weights of a Hugging Face folder: safetensors files, read tensor by tensor, without torch."""

import json
import struct
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from tileir.errors import PackageError

INDEX = "model.safetensors.index.json"
_DTYPES = {
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F64": np.float64,
}


class Weights(Mapping[str, Any]):
    """Tensors by name; each access maps it from disk. A missing name is answered with near matches."""

    def __init__(self, path: Path) -> None:
        """path: a folder with model.safetensors or an index, or one file. Raises PackageError."""
        self._where: dict[str, tuple[Path, dict[str, Any], int]] = {}
        for file in _files(path):
            header, start = _header(file)
            for name, entry in header.items():
                if name != "__metadata__":
                    self._where[name] = (file, entry, start)

    def __getitem__(self, name: str) -> np.ndarray:
        """The tensor, in the file's dtype, mapped read-only."""
        if name not in self._where:
            near = get_close_matches(name, self._where, n=3)
            guess = (
                f"near: {', '.join(near)}" if near else "are these the weights that were exported?"
            )
            raise PackageError(f"the weights have no tensor {name!r}", hint=guess)
        file, entry, start = self._where[name]
        dtype = _DTYPES.get(entry["dtype"])
        if dtype is None:
            raise PackageError(
                f"{file}: tensor {name!r} is {entry['dtype']}",
                hint=f"supported: {', '.join(_DTYPES)}",
            )
        begin, end = entry["data_offsets"]
        shape = tuple(entry["shape"])
        if end - begin != int(np.prod(shape)) * np.dtype(dtype).itemsize:
            raise PackageError(
                f"{file}: tensor {name!r} has a wrong size", hint="copy the file again"
            )
        return np.memmap(file, dtype, "r", start + begin, shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    index, single = path / INDEX, path / "model.safetensors"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError):
            raise PackageError(f"{index} is no safetensors index", hint="copy it again") from None
        missing = [n for n in names if not (path / n).is_file()]
        if missing:
            raise PackageError(f"{path} lacks {', '.join(missing)}", hint="copy the missing files")
        return [path / n for n in names]
    if single.is_file():
        return [single]
    raise PackageError(
        f"no weights at {path}", hint=f"name a folder with model.safetensors or {INDEX}, or a file"
    )


def _header(file: Path) -> tuple[dict[str, Any], int]:
    """(entries, where data starts) of a safetensors file; lengths are checked against the file's."""
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > size - 8:
                raise ValueError("the header is longer than the file")
            entries = json.loads(stream.read(length))
        end = max(
            (e["data_offsets"][1] for n, e in entries.items() if n != "__metadata__"), default=0
        )
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PackageError(
            f"{file} is no safetensors file: {error}", hint="copy it again"
        ) from None
    if 8 + length + end > size:
        raise PackageError(
            f"{file} is truncated: {size} of {8 + length + end} bytes", hint="copy the file again"
        )
    return entries, 8 + length
