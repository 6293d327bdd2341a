"""The packing recipe: where every byte of a package's tape and constants comes from.

JSON, read by the runtime without MLIR. `tape`: one entry per row of the phase table that streams weights, in order.
`constants`: one entry per buffer.
"""

from typing import Any

from tileir.codegen.plan import Plan
from tileir.dialect.attributes import all_of, element_of, get, name_of, shape_of
from tileir.dialect.tile import padded

ELEMENT_BYTES = {"bf16": 2, "f32": 4, "i32": 4}


def packing_recipe(device: Any, plan: Plan) -> dict[str, Any]:
    """The recipe of an engine.device; sizes in rows, tiles of 16 rows, k, and bytes."""
    bodies = {body.name: body for body in plan.bodies}
    tape = []
    for index, row in enumerate(plan.rows):
        body = bodies[get(row, "body")]
        if body.role("tape"):
            tape.append(
                _tape_row(index, row, body.find("engine.multiply"), body.find("engine.emit"))
            )
    block = device.operation.regions[0].blocks[0]
    buffers = [op for op in block if name_of(op) == "engine.buffer"]
    return {"tape": tape, "constants": [_constant(op) for op in buffers]}


def _tape_row(index: int, row: Any, multiply: Any, emit: Any) -> dict[str, Any]:
    weights = get(row, "weights")
    segments, first = [], 0
    for segment in emit.operation.regions[0].blocks[0]:
        if name_of(segment) != "tile.segment":
            continue
        lo, lo_row, hi, hi_row = get(segment, "sources")
        numbers = {n: get(segment, n) for n in ("tiles", "inner", "step", "outer")}
        halves = {
            "lo": {"tensor": weights[lo], "row": lo_row},
            "hi": {"tensor": weights[hi], "row": hi_row},
        }
        segments.append({"first": first, **numbers, **halves})
        first += numbers["tiles"]
    k = get(multiply, "k")
    return {
        "row": index,
        "k": k,
        "blocks": padded(k) // 32,
        "tiles": get(multiply, "tiles"),
        "tile_base": get(row, "tile_base"),
        "rotation": get(row, "rotation"),
        "segments": segments,
    }


def _constant(op: Any) -> dict[str, Any]:
    value = op.operation.results[0]
    shape, dtype = shape_of(value), element_of(value)
    size = ELEMENT_BYTES[dtype]
    for n in shape:
        assert n is not None
        size *= n
    facts = {k: v for k, v in all_of(op).items() if k in ("kind", "offset", "scale")}
    if get(op, "kind") == "rope":
        facts["inv_freq"] = [float(f) for f in get(op, "inv_freq")]
    return {"tensor": get(op, "sym_name"), "shape": shape, "dtype": dtype, "bytes": size, **facts}
