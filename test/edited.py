"""JSON that somebody has edited: numbers at their limits, other types, keys that are gone or stand twice."""

import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

EDGES = (
    *(0, 1, -1, 2, 7, 8, 16, 31, 33, 256, 2**31 - 1, 2**31, 2**32, 2**53, 2**62, 2**63, -(2**63), 10**40),
    *(0.5, 1.0, -0.0, 1e-320, 1e30, 1e308, float("nan"), float("inf"), float("-inf")),
    *(None, True, False, "", "1", "tensor", "\ud800\n", "x" * 5000),
)  # fmt: skip
STEPS = (-256, -16, -8, -1, 1, 8, 16, 256)
OF_VALUES = ("edge", "step", "alike", "other")
OF_SHAPE = ("gone", "twice", "moved", "nested", "empty", "other")
Pick = Callable[[int], int]


class Pairs(list[Any]):
    """An object: a list of pairs, so that a key may stand twice."""


class Pair(list[Any]):
    """A key's value, as a list of one."""

    name = ""


def edited(value: Any, pick: Pick) -> str:
    """The text of a value of JSON behind one to three edits. pick: makes a number below another one."""
    tree = [_opened(value)]
    for _ in range(1 + pick(3)):
        _edit(tree, pick)
    return _text(tree[0]) if tree else ""


def _edit(tree: list[Any], pick: Pick) -> None:
    places = list(_places(tree, ""))
    # Most edits are of values: behind one of the shape, little else is looked at.
    plain = [(n, v, at) for n, v, at in places if not isinstance(v[at], list)]
    kinds, chosen = (OF_VALUES, plain) if plain and pick(5) else (OF_SHAPE, places)
    if not chosen:
        return
    name, values, at = chosen[pick(len(chosen))]
    alike = [p for p in chosen if p[0] == name]
    match kinds[pick(len(kinds))]:
        case "edge":
            values[at] = EDGES[pick(len(EDGES))]
        case "step" if type(values[at]) in (int, float):
            values[at] += STEPS[pick(len(STEPS))]
        case "alike":
            _, there, number = alike[pick(len(alike))]
            values[at] = deepcopy(there[number])
        case "other":
            _, there, number = places[pick(len(places))]
            values[at] = deepcopy(there[number])
        case "gone":
            del values[at]
        case "twice":
            values.insert(at, deepcopy(values[at]))
        case "moved":
            values.append(values.pop(at))
        case "nested":
            values[at] = [values[at]]
        case "empty":
            values[at] = [] if isinstance(values[at], list) else Pairs()


def _opened(value: Any) -> Any:
    if isinstance(value, dict):
        return Pairs(_pair(name, _opened(v)) for name, v in value.items())
    return [_opened(v) for v in value] if isinstance(value, list) else value


def _pair(name: str, value: Any) -> Pair:
    made = Pair([value])
    made.name = name
    return made


def _places(values: list[Any], name: str) -> Iterator[tuple[str, list[Any], int]]:
    """(key that it stands under, list, place there) of every value, and of every pair of an object."""
    for at, value in enumerate(values):
        yield name, values, at
        if isinstance(value, list):
            yield from _places(value, value.name if isinstance(value, Pair) else name)


def _text(value: Any) -> str:
    if isinstance(value, Pairs):
        pairs = (v if isinstance(v, Pair) else _pair("other", v) for v in value)
        return f"{{{', '.join(f'{json.dumps(p.name)}: {_value(p)}' for p in pairs)}}}"
    return f"[{', '.join(map(_text, value))}]" if isinstance(value, list) else json.dumps(value)


def _value(pair: Pair) -> str:
    return _text(pair[0] if len(pair) == 1 else list(pair))
