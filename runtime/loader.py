"""Weights onto the device: every tensor once, packed into the tapes by the package's own kernel."""

import ctypes
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from tileir.packing import DTYPES, constant, matrix, tape_layout, tensor
from tileir.runtime.driver import Device
from tileir.runtime.upload import Uploader

CHUNK = 8  # values that a thread of the packing kernel moves: rows are padded to whole ones
_Source = tuple[str, tuple[int, ...]]  # a tensor's name and the view of it


def pack_tape(
    device: Device,
    uploader: Uploader,
    pack: Any,
    recipe: list[dict[str, Any]],
    sms: int,
    tensors: Mapping[str, Any],
) -> tuple[int, int]:
    """Device addresses of the tape and of every SM's offset into it ([sms] int64).

    Uploads each row's tensors as bf16 and packs them; at most two rows' tensors are on the device beside the tape.
    """
    layout = tape_layout(recipe, sms)
    tape = device.allocate(layout.size, "the weight tape")
    places = np.stack([layout.bases, *layout.rows])
    bases = device.allocate(places.nbytes, "tape offsets")
    device.upload(places, bases)
    resident: dict[_Source, tuple[int, int]] = {}
    for i, row in enumerate(recipe):
        needed = [_source(s[half]) for s in row["segments"] for half in ("lo", "hi")]
        for source in [n for n in resident if n not in needed]:
            device.give_back(resident.pop(source)[0])
        for source in needed:
            if source not in resident:
                resident[source] = _upload(device, uploader, tensors, source, row["k"])
        _pack_row(device, pack, row, sms, tape, bases + (i + 1) * sms * 8, resident)
    for pointer, _ in resident.values():
        device.give_back(pointer)
    return tape, bases


def _source(half: Mapping[str, Any]) -> _Source:
    return half["tensor"], tuple(half.get("view", ()))


def _upload(
    device: Device, uploader: Uploader, tensors: Mapping[str, Any], source: _Source, k: int
) -> tuple[int, int]:
    """(device address, rows) of a tensor or a view of one, as bf16 rows of k."""
    name, view = source
    array = matrix(tensor(tensors, name), view)
    if k % CHUNK:
        array = np.pad(array, ((0, 0), (0, -k % CHUNK)))
    pointer = device.borrow(2 * array.size, f"tensor {name!r}")
    uploader.upload(name, array, ml_dtypes.bfloat16, pointer)
    return pointer, int(array.shape[0])


def _pack_row(
    device: Device,
    pack: Any,
    row: dict[str, Any],
    sms: int,
    tape: int,
    row_bases: int,
    resident: Mapping[_Source, tuple[int, int]],
) -> None:
    begin, end = row["tile_base"], row["tile_base"] + row["tiles"]
    pointer, word = ctypes.c_void_p, ctypes.c_uint32
    for s in row["segments"]:
        first, last = max(begin, s["first"]), min(end, s["first"] + s["tiles"])
        if first >= last:
            continue
        (lo, lo_rows), (hi, hi_rows) = (resident[_source(s[h])] for h in ("lo", "hi"))
        numbers = (
            *(s["lo"]["row"], s["hi"]["row"], lo_rows, hi_rows, s["inner"], s["step"], s["outer"]),
            *(
                -(-row["k"] // CHUNK) * CHUNK,
                first - s["first"],
                first - begin,
                row["tiles"],
                row["rotation"],
                sms,
            ),
        )
        arguments = [(p, pointer) for p in (tape, row_bases, lo, hi)] + [(n, word) for n in numbers]
        device.launch(pack, (last - first, row["blocks"]), 64, 0, arguments)


def upload_constants(
    device: Device,
    uploader: Uploader,
    recipe: list[dict[str, Any]],
    size: int,
    tensors: Mapping[str, Any],
) -> int:
    """Device address of the constants."""
    memory = device.allocate(size, "constants")
    for entry in recipe:
        array = constant(entry, tensors)
        uploader.upload(entry["tensor"], array, DTYPES[entry["dtype"]], memory + entry["offset"])
    return memory
