"""What outline-stages makes of a tile stage: an engine.body, with a region for each role."""

from collections.abc import Callable
from typing import Any

from tileir.dialect.attributes import build, get, name_of, walk
from tileir.dialect.tile import ROUTE_FACTS, source_of
from tileir.mlir import ir
from tileir.passes.dataflow import decided

_STREAM = (
    *("heads", "kv_heads", "groups", "head_size", "value_size", "window"),
    *("splits", "alone", "least"),
)


def operands_of(part: Any, op: Any = None) -> list[Any]:
    """The body's operands, each once: (x and) result, then what the regions use, in that order.

    op: the stage, whose result stands for its part's.
    """
    result = [] if op is None else list(op.operation.results)
    operands = list(part.operation.operands)
    if name_of(part) == "tile.select":
        return operands + ([] if get(part, "kind") == "argmax" else result)
    values = operands[:1] + result if name_of(part) == "tile.contract" else result + operands
    if name_of(part) == "tile.map":
        values = result
    for region in part.operation.regions:
        for inner in (o for top in region.blocks[0] for o in walk(top)):
            used = [v for v in inner.operands if isinstance(v.type, ir.RankedTensorType)]
            values += [v for v in used if v not in values]
    return values


def stem_of(op: Any) -> str:
    """A body's name without number: its kind, a map's by what it computes."""
    if name_of(op) != "tile.map":
        return name_of(op).removeprefix("tile.")
    first = name_of(op.operation.regions[0].blocks[0].operations[0]).removeprefix("tile.")
    return "rows" if first == "load" else first


def build_body(part: Any, values: list[Any], makes: str | None) -> Any:
    """A body, without a name, of what the roles do in a stage's part. values: its operands_of. makes: what the step
    returns of it.
    """
    kind = name_of(part).removeprefix("tile.")
    body = build("engine.body", regions=1, sym_name="", kind=kind)
    block = body.regions[0].blocks.append(*[v.type for v in values])
    with ir.InsertionPoint(block):
        arguments = dict(zip(values, block.arguments, strict=True))
        if makes and kind == "select":
            _argmax(part, arguments, makes)
        else:
            _EMIT[kind](part, arguments)
    return body


def _contract(op: Any, arguments: dict[Any, Any]) -> None:
    x, out = list(arguments.values())[:2]
    k, tiles, source = get(op, "k"), get(op, "tiles"), source_of(op)
    k_parts = get(op, "k_parts")
    space = sum(get(segment, "tiles") for segment in walk(op, "tile.segment"))
    facts: dict[str, Any] = {"k": k, "tiles": tiles, "source": source}
    ring, of = "state", []
    if source == "tape":
        ring = "tape"
        _role(ring, lambda: build("engine.fill", ring=ring, **facts))
    elif source == "experts":
        (statement,) = walk(op, "tile.experts")
        facts["experts"] = decided(op, "experts", "outline-stages")
        of = [arguments[statement.operands[0]]]
        _role(ring, lambda: build("engine.fill", of, ring=ring, **facts))
    else:
        (statement,) = walk(op, "tile.rows")
        keys, own = (arguments[v] for v in statement.operands)
        stream = {
            "kv_heads": 1,
            "groups": 1,
            "head_size": k,
            "window": 0,
            "splits": get(op, "splits"),
            "alone": 0,
            "least": 0,
        }
        stream["tasks"] = get(op, "splits")
        facts |= {"splits": get(op, "splits"), "own": get(statement, "offset")}
        facts["heads"] = get(op, "groups")
        of = [own]
        _role(ring, lambda: build("engine.fill_rows", [keys], ring=ring, **stream))
    offset, stride = get(op, "x", [0, 0])

    def consumer() -> None:
        prologue, epilogue = _regions(op, arguments)
        at = {"offset": offset, "stride": stride, "groups": get(op, "groups")}
        receive = build("engine.receive", [x], regions=1, k=k * k_parts, **at)
        prologue.append_to(receive.regions[0])
        build("engine.barrier")
        parts = {"k_parts": k_parts} if k_parts > 1 else {}
        build("engine.multiply", of, ring=ring, **facts, **parts)
        build("engine.barrier")
        emit = build("engine.emit", [out], regions=1, tiles=tiles, space=space)
        epilogue.append_to(emit.regions[0])

    _role("consumer", consumer)


def _attend(op: Any, arguments: dict[Any, Any]) -> None:
    partial, *states = list(arguments.values())[: 1 + len(op.operation.operands)]
    ring = decided(op, "ring", "schedule-pipeline")
    stream = {"ring": ring} | {n: get(op, n, 0) for n in _STREAM}
    stream["tasks"] = get(op, "tasks") or get(op, "groups") * get(op, "splits")
    rest = {n: get(op, n) for n in ("scale", "softcap")}
    gather = [arguments[o.operands[0]] for o in walk(op, "tile.gather")]
    fill, read = (
        ("fill_gathered", [states[0], *gather, *states[1:]]) if gather else ("fill_rows", states)
    )
    _role(ring, lambda: build(f"engine.{fill}", read, **stream))

    def consumer() -> None:
        (body,) = _regions(op, arguments)
        made = build("engine.attend", [partial, *states], regions=1, **stream, **rest)
        body.append_to(made.regions[0])

    _role("consumer", consumer)


def _map(op: Any, arguments: dict[Any, Any]) -> None:
    out = next(iter(arguments.values()))

    def consumer() -> None:
        (body,) = _regions(op, arguments)
        rows = get(op, "rows")
        facts = {"rows": rows, "space": get(op, "space", rows)}
        body.append_to(build("engine.map", [out], regions=1, **facts).regions[0])

    _role("consumer", consumer)


def _argmax(op: Any, arguments: dict[Any, Any], makes: str) -> None:
    channels = list(arguments.values())
    _role("consumer", lambda: build("engine.select", channels, kind=get(op, "kind"), makes=makes))


def _choose(op: Any, arguments: dict[Any, Any]) -> None:
    facts = {n: get(op, n) for n in ("kind", *ROUTE_FACTS) if n in op.operation.attributes}
    _role("consumer", lambda: build("engine.choose", list(arguments.values()), **facts))


_EMIT: dict[str, Callable[[Any, dict[Any, Any]], None]] = {
    "contract": _contract,
    "attend": _attend,
    "map": _map,
    "select": _choose,
}


def _regions(op: Any, arguments: dict[Any, Any]) -> list[Any]:
    """The blocks of a part's regions, with the body's arguments for what they use; moved, not copied."""
    blocks = [region.blocks[0] for region in op.operation.regions]
    for inner in (o for block in blocks for top in block for o in walk(top)):
        for i, value in enumerate(inner.operands):
            if value in arguments:
                inner.operands[i] = arguments[value]
    return blocks


def _role(name: str, emit: Callable[[], Any]) -> None:
    role = build("engine.role", regions=1, sym_name=name)
    with ir.InsertionPoint(role.regions[0].blocks.append()):
        emit()
