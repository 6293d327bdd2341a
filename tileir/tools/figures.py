"""What a package says about itself in numbers: sizes, rows, and what one token costs to read."""

from collections import Counter
from typing import Any

from tileir.errors import TileirError
from tileir.package import Package


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
    gpus = package.manifest["row_reads"]
    return [[(row["weights"], _cache_bytes(row, held)) for row in rows] for rows in gpus]


def _cache_bytes(row: dict[str, Any], held: int) -> int:
    """Bytes of old rows that a row of the table reads, by its manifest entry (tileir/codegen/reads.py)."""
    cache = row.get("cache")
    return cache["heads"] * cache["bytes"] * min(held, cache["most"]) if cache else 0


def _size(count: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if count >= scale:
            return f"{count / scale:.2f} {unit}"
    return f"{count} bytes"
