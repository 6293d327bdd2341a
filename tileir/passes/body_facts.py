"""What an engine.body does, as the plain data that proofs need: computed once for all its rows."""

import re
from collections.abc import Callable
from typing import Any

from tileir.dialect.attributes import get, located, name_of, place_of, walk
from tileir.dialect.tile import BLOCK_K, padded
from tileir.passes.body_attention import describe_attend
from tileir.passes.body_contracts import describe_contract
from tileir.passes.body_maps import describe_map, describe_select
from tileir.passes.dataflow import channel_size
from tileir.scheduling.problem import Body, Stream, Whole, fault

# A kind's operations of the consumers, in order, barriers aside.
_PROGRAMS: dict[str, list[tuple[str, ...]]] = {
    "contract": [("receive", "multiply", "emit")],
    "attend": [("attend",)],
    "map": [("map",)],
    "select": [("select",), ("choose",)],
}
_KINDS: dict[str, Callable[[Any, Callable[[Any], int]], dict[str, Any]]] = {
    "contract": describe_contract,
    "attend": describe_attend,
    "map": describe_map,
    "select": describe_select,
}
FILLS = ("engine.fill", "engine.fill_rows", "engine.fill_gathered")


def describe(op: Any, *, text: bool = False) -> Body:
    """The facts of an engine.body; with its text, to be compared with other GPUs'. Raises ScheduleError for operations
    that its kind has not.
    """
    number = list(op.operation.regions[0].blocks[0].arguments).index
    roles = {get(o, "sym_name"): o for o in walk(op, "engine.role")}
    kind = get(op, "kind")
    blocks = list(roles["consumer"].operation.regions[0].blocks)
    program = [(name_of(o).removeprefix("engine."), located(o)) for block in blocks for o in block]
    _check_program(op, [name for name, _ in program])
    facts = _KINDS[kind](op, number)
    # A select runs on every SM and has no tasks.
    facts.setdefault("space", facts.get("tasks", 0))
    fills = [
        _stream(fill, role, number)
        for role, region in roles.items()
        for fill in walk(region, *FILLS)
    ]
    drains = [_drain(o, fills, number) for o in walk(op, "engine.multiply", "engine.attend")]
    awaited = [
        Whole(s.of, 0, channel_size(_argument(op, s.of)), s.role)
        for s in (*fills, *drains)
        if s.of is not None
    ]
    return Body(
        name=get(op, "sym_name"),
        kind=kind,
        fills=tuple(fills),
        drains=tuple(drains),
        released=tuple(get(op, "release", [])),
        acquired=tuple(get(op, "acquire", [])),
        program=tuple(name for name, _ in program),
        places=dict(program),
        text=_text(op) if text else "",
        location=located(op),
        **(facts | {"waits": (*facts.get("waits", ()), *awaited)}),
    )


def _check_program(op: Any, program: list[str]) -> None:
    """The kind's operations are there; rows that are weights are filled, and experts are chosen."""
    body = Body(get(op, "sym_name"), get(op, "kind"), location=located(op))
    found = tuple(name for name in program if name != "barrier")
    if found not in _PROGRAMS[body.kind]:
        wanted = " or ".join(", ".join(names) for names in _PROGRAMS[body.kind])
        raise fault(
            f"{body} of kind {body.kind!r} has the operations {', '.join(found) or 'none'}",
            f"{wanted}, in this order",
            body,
        )
    for multiply in walk(op, "engine.multiply"):
        source, fills = get(multiply, "source"), [name_of(o) for o in walk(op, *FILLS)]
        if (source == "experts") != (get(multiply, "experts") is not None) or (
            (source == "rows") != ("engine.fill_rows" in fills)
        ):
            raise fault(
                f"{body} multiplies by {source}, of which {', '.join(fills) or 'nothing'} fills the ring",
                "one source of weights for loaders and consumers",
                body,
            )


def _text(op: Any) -> str:
    """The body as IR, without its name; values are numbered in order, whatever stands around it."""
    text = str(op.operation.get_asm(assume_verified=True)).rpartition("sym_name = ")[0]
    names: dict[str, str] = {}
    return re.sub(r"%\w+", lambda m: names.setdefault(m[0], f"%{len(names)}"), text)


def _argument(op: Any, number: int) -> Any:
    return op.operation.regions[0].blocks[0].arguments[number]


# ---- streams


def _stream(op: Any, role: str, number: Callable[[Any], int]) -> Stream:
    """What a fill puts into its ring."""
    if name_of(op) == "engine.fill":
        return _weights(op, role, number)
    states = [v for v in op.operands if place_of(v) == "state"]
    chosen = [number(v) for v in op.operands if place_of(v) == "channel"]
    return _old_rows(op, role, tuple(map(number, states)), *chosen)


def _drain(op: Any, fills: list[Stream], number: Callable[[Any], int]) -> Stream:
    """What the consumers take from a ring."""
    if name_of(op) == "engine.attend":
        states = tuple(number(v) for v in list(op.operands)[1:])
        gathers = (number(o.operands[0]) for o in walk(op, "tile.gather"))
        return _old_rows(op, "consumer", states, *gathers)
    if get(op, "source") == "rows":
        # Rows that are weights have no name among the operands: they are what the loader fills.
        filled = tuple(a for stream in fills for a in stream.arguments)
        splits = get(op, "splits")
        return Stream(
            get(op, "ring"),
            "consumer",
            splits,
            splits=splits,
            head_size=get(op, "k"),
            k=get(op, "k"),
            arguments=filled,
            location=located(op),
        )
    return _weights(op, "consumer", number)


def _weights(op: Any, role: str, number: Callable[[Any], int]) -> Stream:
    """Tiles of the tape, or of the experts that an operand chose."""
    of = [number(v) for v in op.operands]
    experts = get(op, "experts")
    return Stream(
        get(op, "ring"),
        role,
        get(op, "tiles"),
        blocks=padded(get(op, "k")) // BLOCK_K,
        k=get(op, "k"),
        of=of[0] if of else None,
        experts=None if experts is None else (experts[0], experts[1]),
        location=located(op),
    )


def _old_rows(op: Any, role: str, states: tuple[int, ...], of: int | None = None) -> Stream:
    splits, groups = get(op, "splits"), get(op, "groups")
    return Stream(
        get(op, "ring"),
        role,
        get(op, "tasks", groups * splits),
        splits=splits,
        groups=groups,
        heads=get(op, "kv_heads"),
        head_size=get(op, "head_size"),
        window=get(op, "window"),
        alone=get(op, "alone"),
        least=get(op, "least", 0),
        arguments=states,
        of=of,
        location=located(op),
    )
