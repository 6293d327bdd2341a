"""Weights of a GGUF file by their Hugging Face names, dequantised to bf16 when asked for. `gguf` underneath."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from tileir.errors import PackageError

CHUNK_VALUES = 16 << 20  # dequantised at once: 64 MB of f32

Change = Callable[["GgufFile", str, np.ndarray], np.ndarray]


class GgufFile(Mapping[str, Any]):
    """Tensors of a GGUF file. Raises PackageError for a damaged file and for an architecture that is not known."""

    def __init__(self, path: Path) -> None:
        import gguf

        self._path = path
        try:
            self._reader: Any = gguf.GGUFReader(path)
            self._architecture = self._field("general.architecture")
            blocks = int(self._field(f"{self._architecture}.block_count"))
        except (ValueError, KeyError, IndexError, OSError, TypeError, OverflowError) as error:
            raise PackageError(
                f"{path} is no GGUF file, or damaged: {error}", hint="copy the file again"
            ) from None
        if self._architecture not in ARCHITECTURES:
            raise PackageError(
                f"{path} holds a {self._architecture!r} model",
                hint=f"weights are read of {', '.join(ARCHITECTURES)}: convert others to safetensors",
            )
        (kind,) = [k for k, name in gguf.MODEL_ARCH_NAMES.items() if name == self._architecture]
        self._names = gguf.get_tensor_name_map(kind, blocks)
        self._tensors = {t.name: t for t in self._reader.tensors}
        size = path.stat().st_size
        for t in self._tensors.values():
            if t.data_offset + t.n_bytes > size:
                raise PackageError(
                    f"{path} is truncated: tensor {t.name!r} ends at byte {t.data_offset + t.n_bytes} of {size}",
                    hint="copy the file again",
                )

    def _field(self, name: str) -> Any:
        return self._reader.fields[name].contents()

    def heads(self, of: str) -> int:
        """Attention's heads, "head_count" or "head_count_kv"."""
        prefix = f"{self._architecture}.attention."
        name = prefix + of if prefix + of in self._reader.fields else prefix + "head_count"
        return int(self._field(name))

    def _tensor(self, name: str) -> Any:
        """The file's tensor behind a Hugging Face name; None if it has none."""
        stem, _, suffix = name.rpartition(".")
        found = self._names.get_name(stem)
        if found is not None and f"{found}.{suffix}" in self._tensors:
            return self._tensors[f"{found}.{suffix}"]
        if found == "output" and "token_embd.weight" in self._tensors:  # a tied head
            return self._tensors["token_embd.weight"]
        return None

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without reading it. Raises KeyError."""
        tensor = self._tensor(name)
        if tensor is None:
            raise KeyError(name)
        return tuple(int(n) for n in reversed(tensor.shape))

    def __getitem__(self, name: str) -> np.ndarray:
        """The tensor, bf16; f32 as it is if the file has f32. Raises KeyError, PackageError for what does not read."""
        shape, tensor = self.shape(name), self._tensor(name)
        try:
            found = _dequantised(tensor).reshape(shape)
            for part, change in ARCHITECTURES[self._architecture].items():
                if part in tensor.name:
                    found = change(self, tensor.name, found)
        except (ValueError, NotImplementedError, ZeroDivisionError, MemoryError) as error:
            raise PackageError(
                f"{self._path}: tensor {tensor.name!r} cannot be read: {error}",
                hint="copy the file again; read are F32, F16, BF16 and quantisations that `gguf` dequantises",
            ) from None
        return found

    def __iter__(self) -> Iterator[str]:
        wanted: dict[str, str] = {}
        for name, (_, found) in self._names.mapping.items():
            if name.startswith(("model.", "lm_head")):
                wanted.setdefault(found, name)
        for full in self._tensors:
            stem, _, suffix = full.rpartition(".")
            yield f"{wanted[stem]}.{suffix}" if stem in wanted else full

    def unused(self, names: Iterable[str]) -> list[str]:
        """The file's own names of tensors that are behind none of these, without rope's frequencies."""
        used = {t.name for t in map(self._tensor, names) if t is not None}
        return [n for n in self._tensors if n not in used and not n.startswith("rope_")]

    def __len__(self) -> int:
        return len(self._tensors)


def _dequantised(tensor: Any) -> np.ndarray:
    """A tensor's values, flat; rows at a time, so that f32 values of all are never there."""
    import gguf

    rows = tensor.data.reshape(-1, tensor.data.shape[-1])
    if tensor.tensor_type == gguf.GGMLQuantizationType.F32:
        return np.array(tensor.data)
    step = max(1, CHUNK_VALUES * len(rows) // int(tensor.n_elements))
    out = np.empty(int(tensor.n_elements), ml_dtypes.bfloat16)
    at = 0
    for first in range(0, len(rows), step):
        part = gguf.quants.dequantize(rows[first : first + step], tensor.tensor_type).reshape(-1)
        out[at : at + part.size] = part
        at += part.size
    return out


def _unpermuted(file: GgufFile, name: str, array: np.ndarray) -> np.ndarray:
    """Rows of q and k as Hugging Face has them: llama.cpp puts the two of a rotated pair side by side."""
    heads = file.heads("head_count" if "attn_q" in name else "head_count_kv")
    rows = array.reshape(heads, len(array) // heads // 2, 2, *array.shape[1:])
    return np.ascontiguousarray(rows.swapaxes(1, 2)).reshape(array.shape)


def _less_one(_file: GgufFile, _name: str, array: np.ndarray) -> np.ndarray:
    """Norms of models that multiply by 1 + w: the file has the sum."""
    return np.asarray(array.astype(np.float32) - 1).astype(array.dtype)


# What the file's values differ in, by a part of its tensors' names. Source: transformers' modeling_gguf_pytorch_utils.
ARCHITECTURES: dict[str, dict[str, Change]] = {
    "llama": {"attn_q.": _unpermuted, "attn_k.": _unpermuted},
    "qwen2": {},
    "qwen3": {},
    "phi3": {},
    "gemma2": {"norm": _less_one},
    "gemma3": {"norm": _less_one},
}
