"""The records of benchmarks.decode: one list a GPU, a line of text each, and a picture of all."""

import json
from pathlib import Path
from typing import Any

from tileir.errors import TileirError

RESULTS = Path("benchmarks/results")
GPUS = ("h100", "h200")
PEER = ("torch_compile_ms", "torch_compile_commit")


def results_path(gpu: str) -> Path:
    """Where the records of a GPU are, by its name. Raises TileirError for one that has no list."""
    for kind in GPUS:
        if kind in gpu.lower():
            return RESULTS / f"decode-{kind}.json"
    raise TileirError(f"no list holds records of {gpu!r}", hint=f"of {', '.join(GPUS)}; or --out")


def merge(path: Path, new: list[dict[str, Any]]) -> None:
    """Put records into the list, in place of those of the same GPU, model, dtype and context; whole or not at all.

    One without torch.compile's time takes over that of the record that it replaces, with the commit of its run.
    """

    def key(record: dict[str, Any]) -> tuple[str, str, str, int]:
        return record["gpu"], record["model"], record["dtype"], record["context"]

    old = json.loads(path.read_text()) if path.exists() else []
    held = {key(r): r for r in old}
    for record in new:
        peer = {name: held.get(key(record), record)[name] for name in PEER}
        held[key(record)] = record if record["torch_compile_ms"] is not None else record | peer
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps([held[k] for k in sorted(held)], indent=1) + "\n")
    part.replace(path)


def share(record: dict[str, Any], ceiling: float) -> float | None:
    """Of a ceiling in TB/s, what a step reads its bytes at; None if that is more, which no ceiling is."""
    part = float(record["bytes"] / (record["ms"] * 1e-3) / (ceiling * 1e12))
    return part if part <= 1 else None


def row_text(record: dict[str, Any]) -> str:
    """A record as a line: time, share of the ceiling, and what jitter and torch.compile say if they were measured."""
    ms, peer, p999 = (record[k] for k in ("ms", "torch_compile_ms", "p999_ms"))
    jitter = f", 99.9 % {p999:.4f} ms" if p999 is not None else ""
    beside = f", torch.compile {peer:.4f} ms ({peer / ms:.2f} ×)" if peer is not None else ""
    part = "more than the reading" if record["share"] is None else f"{record['share']:.1%}"
    return (
        f"{record['model']:13} {record['context']:7} {ms:.4f} ms, {part} of "
        f"{record['ceiling_tbps']:.3f} TB/s{jitter}{beside}"
    )


def plot(records: list[dict[str, Any]], path: Path) -> None:
    """Milliseconds against context: ours, the bytes over the ceiling, torch.compile where it was run."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    figure = Figure(figsize=(8, 6), layout="constrained")
    axes = figure.subplots()
    for number, name in enumerate(dict.fromkeys(r["model"] for r in records)):
        mine, colour = [r for r in records if r["model"] == name], f"C{number}"
        contexts = [r["context"] for r in mine]
        floors = [r["bytes"] / r["ceiling_tbps"] / 1e9 for r in mine]
        axes.plot(contexts, [r["ms"] for r in mine], "o-", color=colour, label=name, markersize=3)
        axes.plot(contexts, floors, "--", color=colour, linewidth=0.8)
        peers = [r for r in mine if r["torch_compile_ms"] is not None]
        axes.plot(
            [r["context"] for r in peers], [r["torch_compile_ms"] for r in peers], "x", color=colour
        )
    axes.set(yscale="log", xlabel="context", ylabel="ms a token, batch 1")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_title(f"{', '.join(dict.fromkeys(r['gpu'] for r in records))}, bf16")
    axes.plot([], [], "--", color="grey", linewidth=0.8, label="bytes / streaming read")
    axes.plot([], [], "x", color="grey", label="torch.compile")
    axes.grid(alpha=0.3, which="both")
    figure.legend(loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=110)
