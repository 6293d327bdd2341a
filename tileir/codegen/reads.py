"""What a step of one token reads of memory, row by row: for the manifest, and for who asks what a step costs.

An entry for each row of the phase table: `weights`, bytes of the tape and of the experts that the token chooses; and,
of a row that reads old rows of states, `cache`: of each of `heads` kv heads, `bytes` a position (keys and values) of
`most` positions at most, by a window, a list or the context, in `splits` parts.
"""

from typing import Any

from tileir.codegen.plan import Plan
from tileir.dialect.attributes import get, name_of, static_shape, walk
from tileir.dialect.tile import BLOCK_K, padded
from tileir.scheduling.cost import ELEMENT_BYTES
from tileir.scheduling.rings import BLOCK_BYTES


def row_reads(plan: Plan, recipe: dict[str, Any]) -> list[dict[str, Any]]:
    """The entries of a GPU, ready for JSON. recipe: its packing recipe."""
    tape = {e["row"]: e["tiles"] * e["blocks"] * BLOCK_BYTES for e in recipe["tape"]}
    bodies = {body.name: body.op for body in plan.bodies}
    found = []
    for number, row in enumerate(plan.rows):
        body = bodies[get(row, "body")]
        experts = sum(_expert_bytes(fill) for fill in walk(body, "engine.fill"))
        entry: dict[str, Any] = {"weights": tape.get(number, 0) + experts}
        # A row has one stream of old rows at most: one loader, one ring.
        for fill in walk(body, "engine.fill_rows", "engine.fill_gathered"):
            assert "cache" not in entry, f"row {number} reads two caches"
            entry["cache"] = _cache(fill, plan.context)
        found.append(entry)
    return found


def _expert_bytes(fill: Any) -> int:
    """Bytes of the experts that one token chooses; 0 if the weights come from the tape."""
    if get(fill, "source") != "experts":
        return 0
    first, behind = get(fill, "experts")
    chosen = min(static_shape(fill.operands[0])[1], behind - first)
    return int(chosen * get(fill, "tiles") * padded(get(fill, "k")) // BLOCK_K * BLOCK_BYTES)


def _cache(fill: Any, context: int) -> dict[str, int]:
    """The old rows that one token attends to, every row of a kv head once."""
    states, most = list(fill.operands), context
    if name_of(fill) == "engine.fill_gathered":
        most = min(most, static_shape(states.pop(1))[1])
    if window := get(fill, "window"):
        # The token's own row is one of the window's, and is not old.
        most = min(most, window - 1)
    splits = get(fill, "splits")
    return {
        "heads": min(get(fill, "tasks") // splits, get(fill, "kv_heads")),
        "bytes": sum(static_shape(s)[-1] for s in states) * ELEMENT_BYTES,
        "most": most,
        "splits": splits,
    }
