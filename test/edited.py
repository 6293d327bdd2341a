"""JSON that somebody has edited: numbers at their limits, other types, keys that are gone or there twice, other lists."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

EDGES = (
    *(0, 1, -1, 2, 7, 8, 16, 31, 33, 256, 2**31 - 1, 2**31, 2**32, 2**53, 2**62, 2**63, -(2**63), 10**40),
    *(0.5, 1.0, -0.0, 1e-320, 1e30, 1e308, float("nan"), float("inf"), float("-inf")),
    *(None, True, False, "", "1", "tensor", "\ud800\n", "x" * 5000),
)  # fmt: skip
STEPS = (-256, -16, -8, -1, 1, 8, 16, 256)


@dataclass
class Pairs:
    """An object: keys and values, which may stand twice."""

    keys: list[str]
    values: list[Any]


def edited(value: Any, draw: Any) -> str:
    """The text of a value of JSON with one to three edits. draw: of a hypothesis strategy."""
    tree = [_opened(value)]
    for _ in range(draw(st.integers(1, 3))):
        _edit(tree, draw)
    return _text(tree[0])


def _edit(tree: list[Any], draw: Any) -> None:
    places = list(_places(tree))
    holder, at = draw(st.sampled_from(places))
    values = holder.values if isinstance(holder, Pairs) else holder
    kind = draw(st.sampled_from(("edge", "step", "other", "gone", "twice", "nested", "empty")))
    if kind == "edge":
        values[at] = draw(st.sampled_from(EDGES))
    elif kind == "step" and type(values[at]) in (int, float):
        values[at] += draw(st.sampled_from(STEPS))
    elif kind == "other":
        # Of the same list or key somewhere else, as often as not.
        near = [p for p in places if _called(p) == _called((holder, at))]
        there, number = draw(st.sampled_from(near if draw(st.booleans()) else places[1:]))
        values[at] = _copy((there.values if isinstance(there, Pairs) else there)[number])
    elif kind == "gone" and holder is not tree:
        for found in (holder.keys, values) if isinstance(holder, Pairs) else (values,):
            del found[at]
    elif kind == "twice" and holder is not tree:
        values.insert(at, _copy(values[at]))
        if isinstance(holder, Pairs):
            holder.keys.insert(at, holder.keys[at])
    elif kind == "nested":
        values[at] = [values[at]]
    elif kind == "empty":
        values[at] = [] if isinstance(values[at], list) else Pairs([], [])


def _opened(value: Any) -> Any:
    if isinstance(value, dict):
        return Pairs(list(value), [_opened(v) for v in value.values()])
    return [_opened(v) for v in value] if isinstance(value, list) else value


def _places(holder: Any) -> Iterator[tuple[Any, int]]:
    values = holder.values if isinstance(holder, Pairs) else holder
    for at, value in enumerate(values):
        yield holder, at
        if isinstance(value, Pairs | list):
            yield from _places(value)


def _called(place: tuple[Any, int]) -> str:
    holder, at = place
    return holder.keys[at] if isinstance(holder, Pairs) else ""


def _copy(value: Any) -> Any:
    if isinstance(value, Pairs):
        return Pairs(list(value.keys), [_copy(v) for v in value.values])
    return [_copy(v) for v in value] if isinstance(value, list) else value


def _text(value: Any) -> str:
    if isinstance(value, Pairs):
        pairs = zip(value.keys, value.values, strict=True)
        return f"{{{', '.join(f'{json.dumps(k)}: {_text(v)}' for k, v in pairs)}}}"
    return f"[{', '.join(map(_text, value))}]" if isinstance(value, list) else json.dumps(value)
