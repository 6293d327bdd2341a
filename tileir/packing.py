"""The packing recipe's meaning, in NumPy: where weights go in the tape, and what constants hold.

The oracle of the packing kernel, and what the reference device loads. No MLIR, no GPU. A package's recipe is checked
when it is read (tileir.runtime.recipe_check), and with the weights (tileir.runtime.weights_check).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from tileir.errors import PackageError
from tileir.scheduling.assign import shares

DTYPES = {"bf16": ml_dtypes.bfloat16, "f32": np.float32}


@dataclass(frozen=True)
class TapeLayout:
    """Where each SM's weights lie: bytes. bases: [sms]; rows: per tape row, [sms] absolute; size: of all."""

    bases: np.ndarray
    rows: list[np.ndarray]
    size: int


def tape_layout(tape: list[dict[str, Any]], sms: int) -> TapeLayout:
    """Lay out every SM's blocks in the order in which it consumes them."""
    lengths = [shares(r["tiles"], r["rotation"], sms)[1] * r["blocks"] * 1024 for r in tape]
    totals = np.sum(lengths, axis=0) if lengths else np.zeros(sms, np.int64)
    bases = np.concatenate([[0], np.cumsum(totals)[:-1]]).astype(np.int64)
    rows, at = [], bases.copy()
    for length in lengths:
        rows.append(at.copy())
        at = at + length
    return TapeLayout(bases, rows, int(totals.sum()))


def store_bytes(store: list[dict[str, Any]]) -> int:
    """Bytes of the tile store: all experts' blocks of all rows."""
    return sum((e["experts"][1] - e["experts"][0]) * e["tiles"] * e["blocks"] * 1024 for e in store)


def pack_row(
    row: dict[str, Any], sms: int, tensors: Mapping[str, Any], dtype: Any
) -> list[np.ndarray]:
    """A tape row's blocks of every SM, each [blocks, 16, 32] of `dtype`, in the order of consumption."""
    tiles = _tiles(row, tensors, dtype, row["tile_base"], None)
    blocked = tiles.reshape(-1, 16, 32)
    firsts, counts = shares(row["tiles"], row["rotation"], sms)
    per = row["blocks"]
    return [
        np.ascontiguousarray(blocked[f * per : (f + c) * per])
        for f, c in zip(firsts, counts, strict=True)
    ]


def pack_store(entry: dict[str, Any], tensors: Mapping[str, Any], dtype: Any) -> np.ndarray:
    """A tile store's blocks, [experts, tiles, blocks, 16, 32] of `dtype`, for the experts from the entry's first on."""
    return np.stack([_tiles(entry, tensors, dtype, 0, e) for e in range(*entry["experts"])])


def _tiles(
    row: dict[str, Any], tensors: Mapping[str, Any], dtype: Any, base: int, expert: int | None
) -> np.ndarray:
    """Blocks of the tiles from `base` on, [tiles, blocks, 16, 32]; of one expert, if weights begin with experts."""
    k, blocks = row["k"], row["blocks"]
    tiles = np.zeros((row["tiles"], 16, blocks * 32), dtype)
    for s in row["segments"]:
        held = [_rows(s[half], tensors, expert) for half in ("lo", "hi")]
        for t in range(
            max(0, base - s["first"]), min(s["tiles"], base + row["tiles"] - s["first"])
        ):
            place = s["first"] + t - base
            start = t // s["inner"] * s["outer"] + t % s["inner"] * s["step"]
            for h, half in enumerate(("lo", "hi")):
                first = start + s[half]["row"]
                rows = held[h][first : first + 8]
                tiles[place, 8 * h : 8 * h + len(rows), :k] = rows
    return tiles.reshape(row["tiles"], 16, blocks, 32).transpose(0, 2, 1, 3)


def last_start(segment: Mapping[str, Any]) -> int:
    """The last row at which a tile of a segment begins, before those of its halves."""
    runs, rest = divmod(segment["tiles"], segment["inner"])
    whole = (runs - 1) * segment["outer"] + (segment["inner"] - 1) * segment["step"]
    part = runs * segment["outer"] + (rest - 1) * segment["step"]
    return int(max(whole if runs else 0, part if rest else 0))


def _rows(half: dict[str, Any], tensors: Mapping[str, Any], expert: int | None) -> Any:
    """A weight's rows, [rows, k]."""
    whole, view = tensor(tensors, half["tensor"]), half.get("view", [])
    if expert is None:
        return matrix(whole, view)
    return matrix(view_of(whole, view)[expert], [])


def view_of(array: Any, view: Sequence[int]) -> Any:
    """A view of a tensor: element (i, …) = flat[offset + i·s0 + …]; view = [offset, d…, s…], [] for all of it.

    Offset and strides are positive. Raises PackageError if the tensor is too small.
    """
    if not view:
        return array
    rank = len(view) // 2
    flat = np.ascontiguousarray(array).reshape(-1)
    if reach(view) >= flat.size:
        raise PackageError(
            f"a view of {flat.size} values reaches value {reach(view)}",
            hint="are these the weights that were exported?",
        )
    strides = [s * flat.itemsize for s in view[1 + rank :]]
    return np.lib.stride_tricks.as_strided(
        flat[view[0] :], view[1 : 1 + rank], strides, writeable=False
    )


def reach(view: Sequence[int]) -> int:
    """The last value of a view that is not []."""
    rank = len(view) // 2
    return view[0] + sum(
        (d - 1) * s for d, s in zip(view[1 : 1 + rank], view[1 + rank :], strict=True)
    )


def matrix(array: Any, view: Sequence[int]) -> Any:
    """A weight, or a view of it, as [rows, k]."""
    found = view_of(array, view)
    return found.reshape(-1, found.shape[-1])


def tensor(tensors: Mapping[str, Any], name: str) -> Any:
    """The tensor of that name. Raises PackageError if the weights have none."""
    try:
        return tensors[name]
    except KeyError:
        raise PackageError(
            f"the weights have no tensor {name!r}", hint="are these the weights that were exported?"
        ) from None


def constant(entry: dict[str, Any], tensors: Mapping[str, Any]) -> Any:
    """A constant's array, [*shape], of the weights' dtype."""
    if entry["kind"] == "rope":
        return rope_table(entry)
    return view_of(tensor(tensors, entry.get("source", entry["tensor"])), entry.get("view", []))


def rope_table(entry: dict[str, Any]) -> np.ndarray:
    """cos and sin, [context, head_size / 2, 2] f32, angles in f32 as the exported model computes them."""
    positions = np.arange(entry["shape"][0], dtype=np.float32)
    angles = positions[:, None] * np.asarray(entry["inv_freq"], np.float32)[None]
    table = np.stack([np.cos(angles), np.sin(angles)], -1) * np.float32(entry["scale"])
    return np.ascontiguousarray(table, np.float32)
