"""What a package says about itself in numbers: sizes, rows, and what one token costs to read."""

from collections import Counter
from typing import Any

from tileir.dialect.attributes import get, name_of, static_shape, walk
from tileir.errors import TileirError
from tileir.mlir import ir, new_context
from tileir.package import Package

STATE_BYTES = 2  # a value of a KV cache, bf16
BLOCK_BYTES = 1024  # 16 rows × 32 values of a weight, bf16


def figures(package: Package, context: int | None = None) -> dict[str, Any]:
    """A package's numbers, ready for JSON.

    context: positions that the KV cache holds when the token is made; all of the package's if None.
    Keys: "target", "devices", "sms", "threads", "smem_bytes", "context", "vocabulary", "tokens", "sequences", "memory"
    (bytes of the first GPU), "rows" (of the phase table by kind of body), "bodies", "kernel" (registers, spilled bytes,
    bytes of PTX; None without one), "token" (what a step of one token reads of one sequence, on the GPU that reads
    most: "context", "weight_bytes", "kv_bytes", "bytes", and "predicted_ms" at "stream_tbps", TB/s). Raises TileirError
    for a context that the package does not hold.
    """
    m = package.manifest
    held = m["context"] if context is None else context
    if not 0 <= held <= m["context"]:
        raise TileirError(
            f"a context of {held} positions: the package holds {m['context']}",
            hint=f"name 0 … {m['context']}, or compile with a larger max_context",
        )
    same = ("target", "devices", "sms", "threads", "smem_bytes", "context", "vocabulary")
    found = {name: m[name] for name in (*same, "tokens", "sequences", "memory")}
    found["rows"] = dict(Counter(_kind(body) for body in m["row_bodies"]))
    found["bodies"] = len(m["bodies"])
    found["kernel"] = _kernel(package)
    found["token"] = _token(package, held)
    return found


def table_of(found: dict[str, Any]) -> list[tuple[str, str]]:
    """(what, how much) of `figures` for people, in the order of reading."""
    m, token, kernel = found["memory"], found["token"], found["kernel"]
    rows = ", ".join(f"{n} {kind}" for kind, n in found["rows"].items())
    lines = [
        ("target", f"{found['target']}, {found['devices']} GPU{'s' * (found['devices'] > 1)}"),
        (
            "launch",
            f"{found['sms']} SMs, {found['threads']} threads and "
            f"{found['smem_bytes'] / 1024:.0f} KB of shared memory each",
        ),
        ("phases", f"{sum(found['rows'].values())} rows of {found['bodies']} bodies: {rows}"),
        ("a step", f"{found['tokens']} tokens of {found['sequences']} sequences at most"),
        ("context", f"{found['context']} positions; vocabulary {found['vocabulary']}"),
        ("memory", ", ".join(f"{name} {_size(size)}" for name, size in m.items() if size)),
        ("kernel", "none: this target runs on the reference device only"),
    ]
    if kernel:
        lines[-1] = (
            "kernel",
            f"{_size(kernel['ptx_bytes'])} of PTX, {kernel['registers']} registers, "
            f"{kernel['spill_bytes']} bytes spilled",
        )
    return [
        *lines,
        (
            "a token",
            f"reads {_size(token['bytes'])} at context {token['context']}: weights "
            f"{_size(token['weight_bytes'])}, KV {_size(token['kv_bytes'])}",
        ),
        (
            "predicted",
            f"{token['predicted_ms']:.3g} ms a token at least: the reading alone, at {token['stream_tbps']} TB/s",
        ),
    ]


def _kind(body: str) -> str:
    """The kind of a body: "contract" of "contract_3"."""
    return body.rpartition("_")[0]


def _kernel(package: Package) -> dict[str, int] | None:
    facts = package.manifest.get("assembled")
    if not facts:
        return None
    sizes = {"registers": facts["registers"], "spill_bytes": facts["spill_bytes"]}
    return sizes | {"ptx_bytes": len(package.ptx.encode())}


def _token(package: Package, held: int) -> dict[str, Any]:
    """What a step reads, on the GPU that reads most."""
    totals = [tuple(map(sum, zip(*rows, strict=True))) for rows in row_bytes(package, held)]
    weights, cached = max(totals, key=sum)
    rate = package.manifest["stream_tbps"]
    return {
        "context": held,
        "weight_bytes": weights,
        "kv_bytes": cached,
        "bytes": weights + cached,
        "stream_tbps": rate,
        "predicted_ms": (weights + cached) / (rate * 1e9),
    }


def row_bytes(package: Package, held: int) -> list[list[tuple[int, int]]]:
    """(bytes of weights, bytes of KV) that each row of the phase table reads of one token, by GPU.

    held: positions that the KV cache holds.
    """
    found = []
    with new_context(), ir.Location.unknown():
        module = ir.Module.parse(package.engine_text)
        for device, recipe in zip(walk(module, "engine.device"), package.packing, strict=True):
            tape = {e["row"]: e["tiles"] * e["blocks"] * BLOCK_BYTES for e in recipe["tape"]}
            bodies = {get(b, "sym_name"): b for b in walk(device, "engine.body")}
            rows = []
            for number, row in enumerate(walk(device, "engine.row")):
                body = bodies[get(row, "body")]
                experts = sum(_expert_bytes(f) for f in walk(body, "engine.fill"))
                cached = sum(_cache_bytes(f, held) for f in walk(body, *_CACHE_FILLS))
                rows.append((tape.get(number, 0) + experts, cached))
            found.append(rows)
    return found


_CACHE_FILLS = ("engine.fill_rows", "engine.fill_gathered")


def _expert_bytes(fill: Any) -> int:
    """Bytes of the experts that one token chooses; 0 if the weights come from the tape."""
    if get(fill, "source") != "experts":
        return 0
    first, behind = get(fill, "experts")
    chosen = min(static_shape(fill.operands[0])[1], behind - first)
    return int(chosen * get(fill, "tiles") * -(-get(fill, "k") // 32) * BLOCK_BYTES)


def _cache_bytes(fill: Any, held: int) -> int:
    """Bytes of the old rows that one token attends to, every row of a kv head once."""
    states = list(fill.operands)
    if name_of(fill) == "engine.fill_gathered":
        held = min(held, static_shape(states.pop(1))[1])
    window = get(fill, "window")
    rows = min(held, window - 1) if window else held
    heads = min(get(fill, "tasks") // get(fill, "splits"), get(fill, "kv_heads"))
    return int(heads * rows * sum(static_shape(s)[-1] for s in states) * STATE_BYTES)


def _size(count: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if count >= scale:
            return f"{count / scale:.2f} {unit}"
    return f"{count} bytes"
