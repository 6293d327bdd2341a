"""Packing recipes as a package's file has them: all that packers take for granted, before anything is allocated.

What a recipe needs of weights is checked when there are some (weights_check.py).
"""

import json
import reprlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, NoReturn

import numpy as np

from tileir.errors import PackageError
from tileir.packing import DTYPES, store_bytes

ALIGNMENT = 256  # bytes: where constants begin
_MOST = 2**31 - 1  # the packing kernel counts in 32 bits
_RANK = 8  # most dimensions of a shape
_LONGEST = 1000  # characters of a name
_LARGEST = 1e30  # of what is a factor in f32: rope's frequencies and scale
_STREAMED = ("row", "k", "blocks", "tiles", "segments")
_OWN = {"tape": ("tile_base", "rotation"), "store": ("experts",)}
_SEGMENT = ("first", "tiles", "inner", "step", "outer", "lo", "hi")
_CONSTANT = ("tensor", "shape", "dtype", "bytes", "kind", "offset")


@dataclass(frozen=True)
class _Part:
    """A value of the recipe, and where it stands."""

    where: str
    value: Any

    def refuse(self, what: str) -> NoReturn:
        hint = "the file was edited, or is not this manifest's: compile the model again"
        raise PackageError(what, location=self.where, hint=hint)

    def has(self, must: Collection[str], may: Collection[str] = ()) -> None:
        """It is an object with these keys."""
        if not isinstance(self.value, dict):
            self._is_no("an object")
        lacking = [name for name in must if name not in self.value]
        unknown = [name for name in self.value if name not in (*must, *may)]
        if lacking or unknown:
            says = f"lacks {', '.join(lacking)}" if lacking else f"has {reprlib.repr(unknown)}"
            self.refuse(f"it {says}; known are {', '.join((*must, *may))}")

    def __getitem__(self, name: str) -> "_Part":
        return _Part(f"{self.where}, {name}", self.value[name])

    def parts(self, name: str, called: str, most: int = _MOST) -> list["_Part"]:
        """The parts of a list of so many at most, each with its number behind what it is called."""
        part = self[name]
        if not isinstance(part.value, list) or len(part.value) > most:
            part._is_no(f"a list of up to {most}" if most < _MOST else "a list")
        return [_Part(f"{self.where}, {called} {i}", v) for i, v in enumerate(part.value)]

    def number(self, least: int, most: int = _MOST) -> int:
        """A whole number in [least, most]."""
        if type(self.value) is not int or not least <= self.value <= most:
            self._is_no(f"{least}" if least == most else f"a whole number in {least} … {most}")
        return int(self.value)

    def factor(self) -> None:
        """A number that f32 has, times a position as well."""
        if type(self.value) not in (int, float) or not abs(self.value) <= _LARGEST:
            self._is_no(f"a number in -{_LARGEST:g} … {_LARGEST:g}")

    def text(self, known: Collection[str] = ()) -> str:
        """A text, one of those that are known."""
        if not isinstance(self.value, str) or len(self.value) > _LONGEST:
            self._is_no(f"a text of up to {_LONGEST} characters")
        if known and self.value not in known:
            self._is_no(f"one of {', '.join(known)}")
        return self.value

    def named(self, name: str) -> "_Part":
        """It, told by its text of that key."""
        return _Part(f"{self.where} {self[name].text()!r}", self.value)

    def _is_no(self, wanted: str) -> NoReturn:
        self.refuse(f"{reprlib.repr(self.value)} is not {wanted}")


def read_recipes(data: bytes, manifest: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """The packing recipe of every GPU, checked.

    data: packing.json's; where: what to call it. Views have positive strides; tiles follow each other without a gap
    and begin 8 rows of their weight apart; tape, tile store and constants are as large as the manifest says, which
    tells it of the first GPU. Raises PackageError that says which entry is wrong.
    """
    whole = _Part(where, None)
    try:
        recipes: list[dict[str, Any]] = json.loads(data, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        whole.refuse(f"no JSON: {error}")
    gpus = _Part(where, {"recipes": recipes}).parts("recipes", "GPU")
    if len(gpus) != manifest["devices"]:
        whole.refuse(f"recipes for {len(gpus)} GPUs, not for {manifest['devices']}")
    for gpu in gpus:
        tasks = manifest["row_tasks"] if gpu is gpus[0] else None
        gpu.has(("tape", "store", "constants"))
        for kind in ("tape", "store"):
            row = -1
            for entry in gpu.parts(kind, f"{kind} entry"):
                row = _streamed(entry, kind, row, manifest["sms"], tasks)
        size = _constants(gpu, manifest["context"])
        if tasks is not None:
            _sizes(gpu, size, manifest["memory"])
    return recipes


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in an object")
    return found


def _sizes(gpu: _Part, constants: int, memory: Mapping[str, int]) -> None:
    tape = sum(e["tiles"] * e["blocks"] * 1024 for e in gpu.value["tape"])
    sizes = {"tape": tape, "store": store_bytes(gpu.value["store"]), "constants": constants}
    for name, size in sizes.items():
        if size != memory[name]:
            gpu[name].refuse(f"it takes {size} bytes, {memory[name]} by the manifest")


# ---- weights that are streamed


def _streamed(
    entry: _Part, kind: str, before: int, sms: int, tasks: list[dict[str, Any]] | None
) -> int:
    """Check an entry of tape or store; returns its row of the table, which is behind `before`.

    tasks: of every row of the table, by the manifest; None for a GPU that it does not tell of.
    """
    entry.has((*_STREAMED, *_OWN[kind]))
    row = entry["row"].number(before + 1, _MOST if tasks is None else len(tasks) - 1)
    k, tiles = entry["k"].number(1), entry["tiles"].number(1)
    entry["blocks"].number(-(-k // 32), -(-k // 32))
    base, experts = 0, 0
    if kind == "tape":
        base, _ = entry["tile_base"].number(0), entry["rotation"].number(0, sms - 1)
    else:
        experts = _experts(entry)
    total = 0
    for segment in entry.parts("segments", "segment"):
        total = _segment(segment, total, k, experts)
    if base + tiles > total or (experts and tiles < total):
        entry.refuse(f"of {total} tiles it takes {base} … {base + tiles - 1}")
    for name, other in (("tile_base", "first"), ("tiles", "tasks"), ("rotation", "rotation")):
        if tasks is not None and name in entry.value and entry.value[name] != tasks[row][other]:
            entry[name].refuse(f"{entry.value[name]}, {tasks[row][other]} by the manifest")
    return row


def _experts(entry: _Part) -> int:
    """Check a range of experts; returns the one behind it."""
    bounds = [p.number(0) for p in entry.parts("experts", "experts")]
    if len(bounds) != 2 or bounds[0] >= bounds[1]:
        entry["experts"].refuse(f"{reprlib.repr(bounds)} is no range of experts")
    return bounds[1]


def _segment(segment: _Part, first: int, k: int, experts: int) -> int:
    """Check a segment, whose tiles come behind `first` others; returns how many there are with them."""
    segment.has(_SEGMENT)
    segment["first"].number(first, first)
    tiles, inner = segment["tiles"].number(1), segment["inner"].number(1)
    step, outer = segment["step"].number(0), segment["outer"].number(0)
    length, runs = min(inner, tiles), -(-tiles // inner)
    one = length == 1 or step >= 8
    nested = outer >= (length - 1) * step + 8
    crossed = outer >= 8 and step >= (runs - 1) * outer + 8
    if not (one and (runs == 1 or nested or crossed)):
        segment.refuse(f"{tiles} tiles by inner {inner}, step {step}, outer {outer} overlap")
    for name in ("lo", "hi"):
        segment[name].has(("tensor", "row"), ("view",))
        half = segment[name].named("tensor")
        half["row"].number(0)
        sizes = _view(half)
        if sizes and (sizes[-1] != k or (experts and (len(sizes) < 2 or sizes[0] < experts))):
            half["view"].refuse(f"{sizes} is not [{'experts, ' if experts else ''}rows, {k}]")
    return first + tiles


def _view(part: _Part) -> list[int]:
    """Check a part's view of a tensor (packing.view_of); returns its sizes, none if it has no view."""
    if "view" not in part.value:
        return []
    offset, *rest = [p.number(0, 2**62) for p in part.parts("view", "view", 1 + 2 * _RANK)] or [0]
    rank = len(rest) // 2
    if len(rest) != 2 * rank or min(rest, default=0) < 1:
        part["view"].refuse(
            f"{reprlib.repr([offset, *rest])} is no offset with sizes and strides from 1 on"
        )
    return rest[:rank]


# ---- constants


def _constants(gpu: _Part, context: int) -> int:
    """Check the constants, which lie one behind the other; returns the bytes of all."""
    names, end = set[str](), 0
    for entry in gpu.parts("constants", "constant"):
        rope = isinstance(entry.value, dict) and entry.value.get("kind") == "rope"
        if rope:
            entry.has((*_CONSTANT, "scale", "inv_freq"))
        else:
            entry.has(_CONSTANT, ("source", "view"))
        part = entry.named("tensor")
        if part.value["tensor"] in names:
            part.refuse("a constant of this name is there already")
        names.add(part.value["tensor"])
        part["kind"].text(("rope", "tensor"))
        dtype = np.dtype(DTYPES[part["dtype"].text(tuple(DTYPES))])
        shape = [p.number(1) for p in part.parts("shape", "shape", _RANK)]
        size = dtype.itemsize * prod(shape)
        part["bytes"].number(size, size)
        part["offset"].number(end, end)
        end = -(-(end + size) // ALIGNMENT) * ALIGNMENT
        if rope:
            _rope(part, shape, context)
        else:
            _tensor(part, shape)
    return end


def _rope(part: _Part, shape: list[int], context: int) -> None:
    frequencies = part.parts("inv_freq", "inv_freq")
    for factor in (part["scale"], *frequencies):
        factor.factor()
    if shape != [context, len(frequencies), 2]:
        part["shape"].refuse(f"{shape} is not {[context, len(frequencies), 2]}")


def _tensor(part: _Part, shape: list[int]) -> None:
    if "source" in part.value:
        part["source"].text()
    sizes = _view(part)
    if sizes and sizes != shape:
        part["view"].refuse(f"sizes are {sizes}, not {shape}")
