"""Weights from disk, tensor by tensor, without torch: safetensors folders and files, and GGUF files."""

import json
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping
from difflib import get_close_matches
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from tileir.errors import PackageError
from tileir.runtime.gguf_file import GgufFile

INDEX = "model.safetensors.index.json"
_DTYPES = {
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F64": np.float64,
}
# Fused tensors and the parts of an expert that they are made of, as folders name them.
_FUSED: dict[str, list[tuple[str, ...]]] = {
    "gate_up_proj": [("gate_proj", "up_proj"), ("w1", "w3")],
    "down_proj": [("down_proj",), ("w2",)],
}


def open_weights(path: Path) -> Mapping[str, Any]:
    """Tensors by Hugging Face name: of a folder or a file of safetensors, or of a GGUF file. Raises PackageError."""
    if path.is_file():
        with path.open("rb") as stream:
            if stream.read(4) == b"GGUF" or path.suffix == ".gguf":
                return GgufFile(path)
    return Weights(path)


class Weights(Mapping[str, Any]):
    """Tensors of safetensors files by name; each access maps one from disk.

    Experts that a folder stores one by one are also there under the fused names that transformers' models have:
    `….experts.gate_up_proj` [E, 2·I, H] and `….experts.down_proj` [E, H, I].
    """

    def __init__(self, path: Path) -> None:
        """path: a folder with model.safetensors or an index, or one file. Raises PackageError."""
        self._where: dict[str, tuple[Path, dict[str, Any], int]] = {}
        for file in _files(path):
            header, start = _header(file)
            for name, entry in header.items():
                if name != "__metadata__":
                    self._where[name] = (file, entry, start)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without reading it. Raises KeyError, and PackageError for experts that differ."""
        parts = self._experts(name)
        if not parts:
            return tuple(self._where[name][1]["shape"])
        shapes = {n: self.shape(n) for expert in parts for n in expert}
        first, *others = shapes
        odd = next((n for n in others if shapes[n] != shapes[first]), None)
        if odd is not None or len(shapes[first]) != 2:
            beside = f", {odd!r} is {list(shapes[odd])}" if odd is not None else ""
            raise PackageError(
                f"experts that do not stack: {first!r} is {list(shapes[first])}{beside}",
                hint="all experts of a layer have matrices of one shape; copy the files again",
            )
        rows, columns = shapes[first]
        return len(parts), rows * len(parts[0]), columns

    def __getitem__(self, name: str) -> np.ndarray:
        """The tensor, in the file's dtype, mapped read-only. Raises PackageError for a name or a dtype unknown."""
        parts = self._experts(name)
        if parts:
            self.shape(name)
            return np.stack([np.concatenate([self[n] for n in expert]) for expert in parts])
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
        if end - begin != prod(shape) * np.dtype(dtype).itemsize:
            raise PackageError(
                f"{file}: tensor {name!r} has a wrong size", hint="copy the file again"
            )
        return np.memmap(file, dtype, "r", start + begin, shape)

    def unused(self, names: Iterable[str]) -> list[str]:
        """Tensors that are behind none of these names, without those that are usual: see `usual`."""
        names = set(names)
        used = names | {n for name in names for expert in self._experts(name) for n in expert}
        return [n for n in self._where if n not in used and not usual(n, used)]

    def _experts(self, name: str) -> list[list[str]]:
        """For a fused name that is not there: of each expert the names of its parts."""
        stem, _, last = name.rpartition(".")
        if name in self._where or last not in _FUSED or not stem.endswith("experts"):
            return []
        found: list[list[str]] = []
        for parts in _FUSED[last]:
            while all(f"{stem}.{len(found)}.{p}.weight" in self._where for p in parts):
                found.append([f"{stem}.{len(found)}.{p}.weight" for p in parts])
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)


def usual(name: str, used: Collection[str]) -> bool:
    """Whether folders carry it beside what a step needs: a tied head's other name, rope's frequencies."""
    tied = name == "lm_head.weight" and "model.embed_tokens.weight" in used
    return tied or name.endswith("inv_freq")


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
    """(entries, where data starts) of a safetensors file; places are checked against each other and the file."""
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > size - 8:
                raise ValueError("the header is longer than the file")
            entries = json.loads(stream.read(length), object_pairs_hook=_once)
        places = sorted(e["data_offsets"] for n, e in entries.items() if n != "__metadata__")
        ends = [0, *(end for _, end in places)]
        for (begin, end), before in zip(places, ends, strict=False):
            if not before <= begin <= end:
                raise ValueError(
                    f"bytes {begin} … {end} of two tensors overlap, or of one run back"
                )
        for name, entry in entries.items():
            if name != "__metadata__" and any(n < 0 for n in entry["shape"]):
                raise ValueError("a shape has a negative size")
            if name != "__metadata__" and not isinstance(entry["dtype"], str):
                raise ValueError("a dtype is no text")
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PackageError(
            f"{file} is no safetensors file: {error}", hint="copy it again"
        ) from None
    if 8 + length + ends[-1] > size:
        raise PackageError(
            f"{file} is truncated: {size} of {8 + length + ends[-1]} bytes",
            hint="copy the file again",
        )
    return entries, 8 + length


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in the header")
    return found
