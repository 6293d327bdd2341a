"""What the packets that a hang waits for bore when every warp had stopped."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tileir.scheduling.exchange_table import Written, epochs_of, packets_of, writers

SHOWN = 4
Runs = list[list[int]]


def channels_seen(
    waits: Sequence[Mapping[str, Any]], memory: np.ndarray, manifest: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """For each row and epoch whose warps wait for packets, each channel that the row awaits; ready for JSON.

    memory: the exchange as it was, uint64. "others" are packets that bear another epoch than the row's, by the epoch
    that they bear: "count", "runs" of their numbers (first, last), and who writes them: "row", "tasks", "sms" as runs.
    "idle": whether attention writes some that it leaves out in steps whose old rows are too few for all splits.
    """
    found = []
    for row, epoch in sorted({(w["row"], w["epoch"]) for w in waits if w["wait"] == "a packet"}):
        for name in manifest["row_awaits"][row]:
            if name in manifest["channels"]:
                seen = epochs_of(packets_of(manifest["channels"][name], epoch, memory))
                by = writers(manifest, name, manifest["sms"])
                others = [_other(seen, int(e), by) for e in np.unique(seen) if e != epoch]
                caches = [manifest["row_reads"][0][w.row].get("cache", {}) for w in by]
                idle = any(cache.get("splits", 1) > 1 for cache in caches)
                facts = {
                    "row": row,
                    "epoch": epoch,
                    "channel": name,
                    "packets": len(seen),
                    "idle": idle,
                }
                found.append(facts | {"others": others})
    return found


def _other(seen: np.ndarray, epoch: int, by: list[Written]) -> dict[str, Any]:
    at = np.flatnonzero(seen == epoch)
    return {
        "epoch": epoch,
        "count": len(at),
        "runs": _runs(at),
        "writers": [
            {"row": w.row, "tasks": _runs(w.task[at]), "sms": _runs(w.sm[at])}
            for w in by
            if (w.task[at] >= 0).any()
        ],
    }


def _runs(numbers: np.ndarray) -> Runs:
    """Ascending runs (first, last) of the numbers that are not negative."""
    numbers = np.unique(numbers[numbers >= 0])
    parts = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    return [[int(p[0]), int(p[-1])] for p in parts if len(p)]


def sentences(dump: Mapping[str, Any], row: int, epoch: int) -> list[str]:
    """One for each channel that a row awaits in an epoch."""
    return [
        _sentence(dump["rows"], seen)
        for seen in dump["channels"]
        if (seen["row"], seen["epoch"]) == (row, epoch)
    ]


def _sentence(rows: Sequence[Mapping[str, Any]], seen: Mapping[str, Any]) -> str:
    name, packets, epoch = seen["channel"], seen["packets"], seen["epoch"]
    if not seen["others"]:
        return f"Channel {name}: all {packets} packets bear epoch {epoch}."
    parts = []
    for other in seen["others"]:
        text = f"{other['count']} of {packets} packets bear epoch {other['epoch']} instead of {epoch}: "
        text += f"packets {_shown(other['runs'])}"
        by = [
            f"row {w['row']} ({rows[w['row']]['body']}) writes in tasks {_shown(w['tasks'])} on SMs {_shown(w['sms'])}"
            for w in other["writers"]
        ]
        parts.append(text + (f", which {' or '.join(by)}" if by else ""))
    idle = " Splits that have no rows write none." if seen.get("idle") else ""
    return f"Channel {name}: {'; '.join(parts)}.{idle}"


def _shown(runs: Runs) -> str:
    texts = [str(a) if a == b else f"{a} … {b}" for a, b in runs[:SHOWN]]
    more = [f"… ({len(runs)} runs)"] if len(runs) > SHOWN else []
    return ", ".join(texts + more)
