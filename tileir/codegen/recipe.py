"""The packing recipe: where every byte of a package's tape, tile store and constants comes from.

JSON, read by the runtime without MLIR. `tape`: one entry per row of the phase table that streams weights, in order.
`store`: one per row that streams chosen experts' weights. `constants`: one entry per buffer.
"""

import reprlib
from collections.abc import Iterable, Sequence
from math import prod
from typing import Any

from tileir.codegen.plan import Body, Plan, read_plan
from tileir.dialect.attributes import all_of, element_of, get, name_of, static_shape, walk
from tileir.dialect.tile import padded
from tileir.errors import PackageError
from tileir.mlir import ir, new_context
from tileir.target import TARGETS

ELEMENT_BYTES = {"bf16": 2, "f32": 4, "i32": 4}


def packing_recipe(plan: Plan) -> dict[str, Any]:
    """The recipe of a GPU; sizes in rows, tiles of 16 rows, k, and bytes."""
    bodies = {body.name: _contract(body) for body in plan.bodies if body.kind == "contract"}
    tape, store = [], []
    for index, row in enumerate(plan.rows):
        if (found := bodies.get(get(row, "body"))) is None:
            continue
        contract, source, experts = found
        if source == "tape":
            placed = {n: get(row, n) for n in ("tile_base", "rotation")}
            tape.append(_weights(index, row, contract) | placed)
        elif source == "experts":
            store.append(_weights(index, row, contract) | {"experts": experts})
    block = plan.device.operation.regions[0].blocks[0]
    buffers = [op for op in block if name_of(op) == "engine.buffer"]
    return {"tape": tape, "store": store, "constants": [_constant(op) for op in buffers]}


def check_engine(engine_text: str, recipes: Sequence[dict[str, Any]]) -> None:
    """Raises PackageError, with the entry, for recipes that are not those of a package's engine module."""
    with new_context(), ir.Location.unknown():
        module = ir.Module.parse(engine_text)
        # No recipe depends on the target.
        plans = [read_plan(d, TARGETS["virtual"]) for d in walk(module, "engine.device")]
        made = [packing_recipe(plan) for plan in plans]
    for gpu, (wanted, found) in enumerate(zip(made, recipes, strict=True)):
        if wanted != found:
            where, right, value = _difference(wanted, found)
            raise PackageError(
                f"{reprlib.repr(value)}, {reprlib.repr(right)} by engine.mlir",
                location=f"packing.json, GPU {gpu}{where}",
                hint="the file was edited: compile the model again",
            )


def _difference(wanted: Any, found: Any) -> tuple[str, Any, Any]:
    """Where values of JSON differ first, and the two there."""
    places: Iterable[Any] = ()
    if isinstance(wanted, dict) and isinstance(found, dict) and wanted.keys() == found.keys():
        places = wanted
    elif isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        places = range(len(wanted))
    for place in places:
        if wanted[place] != found[place]:
            where, *values = _difference(wanted[place], found[place])
            return f", {place}{where}", *values
    return "", wanted, found


def _contract(body: Body) -> tuple[dict[str, Any], str, list[int]]:
    """What a body's rows have in common but for the weights' names, its weights' source, a range of experts."""
    multiply, emit = body.find("engine.multiply"), body.find("engine.emit")
    segments, first = [], 0
    for segment in emit.operation.regions[0].blocks[0]:
        if name_of(segment) != "tile.segment":
            continue
        numbers = {n: get(segment, n) for n in ("tiles", "inner", "step", "outer")}
        segments.append({"first": first, **numbers, "sources": get(segment, "sources")})
        first += numbers["tiles"]
    k, tiles = get(multiply, "k"), get(multiply, "tiles")
    facts = {"k": k, "blocks": padded(k) // 32, "tiles": tiles, "segments": segments}
    return facts, get(multiply, "source"), get(multiply, "experts")


def _weights(index: int, row: Any, contract: dict[str, Any]) -> dict[str, Any]:
    weights = get(row, "weights")
    views = get(row, "views") or [[]] * len(weights)

    def half(weight: int, first: int) -> dict[str, Any]:
        made = {"tensor": weights[weight], "row": first}
        return made | {"view": views[weight]} if views[weight] else made

    segments = []
    for segment in contract["segments"]:
        lo, lo_row, hi, hi_row = segment["sources"]
        numbers = {n: v for n, v in segment.items() if n != "sources"}
        segments.append(numbers | {"lo": half(lo, lo_row), "hi": half(hi, hi_row)})
    return {"row": index, **contract, "segments": segments}


def _constant(op: Any) -> dict[str, Any]:
    value = op.operation.results[0]
    shape, dtype = static_shape(value), element_of(value)
    facts = {k: v for k, v in all_of(op).items() if k in ("kind", "offset", "scale", "view")}
    if get(op, "tensor"):
        facts["source"] = get(op, "tensor")
    if get(op, "kind") == "rope":
        facts["inv_freq"] = [float(f) for f in get(op, "inv_freq")]
    size = ELEMENT_BYTES[dtype] * prod(shape)
    return {"tensor": get(op, "sym_name"), "shape": shape, "dtype": dtype, "bytes": size, **facts}
