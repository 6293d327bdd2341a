"""Whether weights are those that a package was compiled for: before anything is loaded, everything that is wrong."""

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from math import prod
from typing import Any

from tileir.errors import PackageError
from tileir.packing import last_start, reach
from tileir.runtime.weights import usual


def check_weights(
    recipes: Sequence[dict[str, Any]], tensors: Mapping[str, Any]
) -> tuple[dict[str, tuple[int, ...]], list[str]]:
    """(shapes of the tensors that a package needs, names that the weights have beside them and that are not usual).

    recipes: a package's `packing`. Raises PackageError that lists all missing names, with near matches, and all wrong
    shapes.
    """
    needs: dict[str, list[Any]] = {}
    for recipe in recipes:
        for row in [*recipe["tape"], *recipe["store"]]:
            for segment in row["segments"]:
                for half in ("lo", "hi"):
                    needs.setdefault(segment[half]["tensor"], []).append((row, segment, half))
        for entry in recipe["constants"]:
            if entry["kind"] == "tensor":
                needs.setdefault(entry.get("source", entry["tensor"]), []).append(entry)
    shapes = {name: shape_of(tensors, name) for name in needs}
    known = {name: shape for name, shape in shapes.items() if shape is not None}
    missing, wrong = [name for name in needs if name not in known], []
    for name, shape in known.items():
        found = next(filter(None, (_mismatch(use, shape) for use in needs[name])), None)
        wrong += [f"{name} is {list(shape)}, {found}"] if found else []
    if missing:
        near = [
            f"{name} (near: {', '.join(_near(name, tensors)) or 'nothing'})" for name in missing
        ]
        what = "tensor" if len(missing) == 1 else "tensors"
        raise PackageError(
            f"the weights lack {len(missing)} {what}: {_list(near)}",
            hint="are these the weights that were exported?",
        )
    if wrong:
        raise PackageError(
            f"{len(wrong)} tensors have another shape: {_list(wrong)}",
            hint="load the weights of the model that was exported",
        )
    unused = getattr(tensors, "unused", None)
    if unused is not None:
        return known, unused(needs)
    return known, [n for n in tensors if n not in needs and not usual(n, needs)]


def shape_of(tensors: Mapping[str, Any], name: str) -> tuple[int, ...] | None:
    """A tensor's shape, without reading it where the source can say; None if there is no such tensor."""
    try:
        known = getattr(tensors, "shape", None)
        return tuple(known(name) if known is not None else tensors[name].shape)
    except KeyError:
        return None


def _mismatch(use: Any, shape: tuple[int, ...]) -> str | None:
    """What a use of a tensor wants instead of this shape; None if it fits."""
    if isinstance(use, dict):
        fits = _holds(shape, use["view"]) if "view" in use else list(shape) == use["shape"]
        return None if fits else f"not {use['shape']}"
    row, segment, name = use
    half, sizes = segment[name], shape
    if "view" in half:
        if not _holds(shape, half["view"]):
            return f"a part of it reaches value {reach(half['view'])}"
        sizes = tuple(half["view"][1 : 1 + len(half["view"]) // 2])
    if "experts" in row:
        if len(sizes) < 2 or sizes[0] < row["experts"][1]:
            return f"weights of {row['experts'][1]} experts are wanted"
        sizes = sizes[1:]
    if not sizes or sizes[-1] != row["k"]:
        return f"rows of {row['k']} values are wanted"
    # The upper half of a weight's last tile may be beyond it.
    first = last_start(segment) + half["row"] - (8 if name == "hi" else 0)
    return None if first < prod(sizes[:-1]) else f"more than {first} rows are wanted"


def _holds(shape: tuple[int, ...], view: Sequence[int]) -> bool:
    """Whether a tensor has all values of a view, and as many."""
    values = prod(view[1 : 1 + len(view) // 2])
    return reach(view) < prod(shape) and values <= prod(shape)


def _near(name: str, names: Iterable[str]) -> list[str]:
    return get_close_matches(name, list(names), n=2)


def _list(lines: Sequence[str]) -> str:
    return "".join(f"\n  {line}" for line in lines)
