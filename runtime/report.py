"""What a kernel that gave up left behind: who waited for whom, as data that a file can hold, and as text."""

import json
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tileir.errors import TileirError
from tileir.runtime.seen import channels_seen, sentences

SCHEMA = 2
SHOWN_ROOTS, SHOWN_GROUPS = 3, 12
LOADERS = ("tape loader", "state loader")
_FACTS = ("schema", "device", "target", "rows", "waits", "channels", "ends")


@dataclass(frozen=True)
class Group:
    """Warps of one role that waited in one row and epoch for one kind of thing.

    number, parity: what the first one reported; parity is None of packets.
    """

    role: str
    row: int
    body: str
    epoch: int
    wait: str
    sms: frozenset[int]
    warps: int
    number: int
    parity: int | None

    def __str__(self) -> str:
        return f"{self.role} in row {self.row} ({self.body}) waited for {self.wait} in epoch {self.epoch}"


def dump_of(memory: np.ndarray, manifest: dict[str, Any], device: str) -> dict[str, Any]:
    """What the kernel left, ready for JSON. memory: the control memory with its snapshot, uint8 (codegen/kernel.py).

    "rows" are the table's: body, and the channels that a row awaits and writes. "waits" have "sm", "warp", "role",
    "row", "epoch", "wait", "number": a packet's or a slot's, and "parity": of the mbarrier's phase that was awaited,
    None of a packet. "channels": see seen.py. "ends": the SMs whose limit ran out, and how many ns after the first of
    these each SM ended, None if it had ended before.
    """
    control, rows = manifest["control"], manifest["row_bodies"]
    waits = _waits(memory[control["reports"] : control["ends"]].view(np.uint32), manifest)
    channels = zip(rows, manifest["row_awaits"], manifest["row_writes"], strict=True)
    times = memory[control["ends"] :][: manifest["sms"] * 16].view(np.int64).reshape(-1, 2)
    return {
        "schema": SCHEMA,
        "device": device,
        "target": manifest["target"],
        "rows": [{"body": body, "awaits": a, "writes": w} for body, a, w in channels],
        "waits": waits,
        "channels": channels_seen(waits, memory[control["snapshot"] :].view(np.uint64), manifest),
        "ends": _ends(times),
    }


def _waits(words: np.ndarray, manifest: dict[str, Any]) -> list[dict[str, Any]]:
    warps, rows, found = manifest["warps"], manifest["row_bodies"], []
    for index, (what, row, epoch, number) in enumerate(
        words[: words.size // 4 * 4].reshape(-1, 4).tolist()
    ):
        code, parity = what & 0xFF, what >> 8
        sm, warp = divmod(index, warps + 2)
        if code and sm < manifest["sms"]:
            role = "consumer" if warp < warps else LOADERS[warp - warps]
            facts = {"row": row % len(rows), "epoch": epoch, "wait": manifest["waits"][code - 1]}
            own = {"number": number, "parity": parity - 1 if parity else None}
            found.append({"sm": sm, "warp": warp, "role": role} | facts | own)
    return found


def _ends(times: np.ndarray) -> dict[str, Any]:
    expired, ended = times.T
    first = int(min(expired[expired > 0], default=0))
    return {
        "expired": np.flatnonzero(expired).tolist(),
        "after_ns": [int(t) - first if t and first else None for t in ended],
    }


def save_dump(dump: dict[str, Any]) -> Path | None:
    """A new file for it, where temporary files are; None if there is no room for one."""
    try:
        handle, name = tempfile.mkstemp(prefix="tileir-hang-", suffix=".json")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(dump, file)
    except OSError:
        return None
    return Path(name)


def load_dump(path: Path) -> dict[str, Any]:
    """A dump that a hang has written. Raises TileirError for what is none."""
    hint = "DeviceHang names the file that it has written"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        lacking = [name for name in _FACTS if name not in found]
        if lacking or found["schema"] != SCHEMA:
            raise TileirError(f"{path} is no dump of a hang of this version", hint=hint)
        describe(found)
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise TileirError(f"{path} is no dump of a hang: {error}", hint=hint) from None
    return dict(found)


def groups_of(dump: dict[str, Any]) -> list[Group]:
    """Waits that are alike, the earliest in the step first, of those the most frequent."""
    found: dict[tuple[str, int, int, str], list[dict[str, Any]]] = {}
    for wait in dump["waits"]:
        key = (wait["role"], wait["row"], wait["epoch"], wait["wait"])
        found.setdefault(key, []).append(wait)
    groups = [
        Group(
            role,
            row,
            dump["rows"][row]["body"],
            epoch,
            wait,
            frozenset(int(w["sm"]) for w in members),
            len(members),
            members[0]["number"],
            members[0]["parity"],
        )
        for (role, row, epoch, wait), members in found.items()
    ]
    return sorted(groups, key=lambda g: (g.epoch, g.row, -g.warps, g.role))


def waits_for(dump: dict[str, Any], group: Group, groups: list[Group]) -> list[Group]:
    """The groups that have to go on before `group` can."""
    same_sms = [g for g in groups if g.sms & group.sms]
    match group.wait:
        case "a packet":
            # A row behind its reader writes after it: nobody can go on there.
            last = max((w for w in writers_of(dump, group) if w < group.row), default=-1)
            before = [g for g in groups if g.role == "consumer" and g != group]
            return [g for g in before if (g.epoch, g.row) <= (group.epoch, last)]
        case "a full ring slot":
            return [g for g in same_sms if g.role in LOADERS]
        case "a free ring slot":
            return [g for g in same_sms if g.role == "consumer"]
        case "the step record":
            consumer = group.role == "consumer"
            return [g for g in same_sms if (g.role == "consumer") != consumer]
    return []


def writers_of(dump: dict[str, Any], group: Group) -> list[int]:
    """The rows that write the channels which a group's row lacks."""
    lacking = set(lacking_of(dump, group))
    return [i for i, row in enumerate(dump["rows"]) if lacking & set(row["writes"])]


def lacking_of(dump: dict[str, Any], group: Group) -> list[str]:
    """Of the channels that a group's row awaits, those with packets of another epoch; all, if there are none."""
    at = (group.row, group.epoch)
    seen = [s for s in dump["channels"] if (s["row"], s["epoch"]) == at and s["others"]]
    return [s["channel"] for s in seen] or list(dump["rows"][group.row]["awaits"])


def roots_of(dump: dict[str, Any], groups: list[Group]) -> list[Group]:
    """The groups that wait for no other; of waits in a circle, all that are in one."""
    edges = {g: waits_for(dump, g, groups) for g in groups}
    free = [g for g in groups if not edges[g]]
    return free or [g for g in groups if g in _reached(edges[g], edges)]


def _reached(begin: Iterable[Group], edges: dict[Group, list[Group]]) -> set[Group]:
    found, left = set[Group](), list(begin)
    while left:
        group = left.pop()
        if group not in found:
            found.add(group)
            left += edges[group]
    return found


def describe(dump: dict[str, Any]) -> str:
    """One paragraph that says who waits for whom, and a table, the earliest waits first."""
    groups = groups_of(dump)
    if not groups:
        return (
            "a wait on the device ran out of time; all blocks ended, and none has reported a wait"
        )
    roots = roots_of(dump, groups)
    lines = ["a wait on the device ran out of time; all blocks ended."]
    lines += [_why(dump, g, groups) for g in roots[:SHOWN_ROOTS]]
    rest = sum(g.warps for g in groups) - sum(g.warps for g in roots)
    if rest:
        lines.append(f"{rest} other warps waited for these.")
    table = [f"  {g.warps:5d} × {g}; {_sms(g.sms)}, {_number(g)}" for g in groups]
    more = [f"  … and {len(table) - SHOWN_GROUPS} more kinds"] if len(table) > SHOWN_GROUPS else []
    return "\n".join([" ".join(lines), *table[:SHOWN_GROUPS], *more])


def _number(group: Group) -> str:
    """What one of them reported. A phase that is awaited has not completed: the one seen is the other by definition."""
    if group.parity is None:
        return f"number {group.number}"
    return f"number {group.number}: phase {group.parity} awaited, phase {group.parity ^ 1} seen"


def _why(dump: dict[str, Any], group: Group, groups: list[Group]) -> str:
    who = f"{group.warps} × {group}, on {_sms(group.sms)}"
    if waits_for(dump, group, groups):
        return f"{who}: in a circle with others."
    match group.wait:
        case "a packet":
            return " ".join([_lost(dump, group, who), *sentences(dump, group.row, group.epoch)])
        case "a full ring slot":
            return f"{who}: the loaders of these SMs have reported no wait, they had ended."
        case "an earlier copy to land":
            return f"{who}: the copy engine did not finish a copy that was issued."
    return f"{who}: nobody on these SMs has reported a wait that would explain it."


def _lost(dump: dict[str, Any], group: Group, who: str) -> str:
    """Of packets that nobody is about to write."""
    awaited, writers = " and ".join(lacking_of(dump, group)), writers_of(dump, group)
    if not writers:
        return f"{who}, of channel {awaited}, which no row writes."
    by = " and ".join(f"row {w} ({dump['rows'][w]['body']})" for w in writers)
    if min(writers) >= group.row:
        return f"{who}, of channel {awaited}, which {by} writes, later in the step: the row waits for itself."
    return (
        f"{who}, of channel {awaited}, which {by} writes; nobody waits before that row: packets were not written, or "
        "elsewhere, or with another epoch."
    )


def _sms(sms: frozenset[int]) -> str:
    shown = sorted(sms)
    if len(shown) == 1:
        return f"SM {shown[0]}"
    if shown[-1] - shown[0] + 1 == len(shown):
        return f"SMs {shown[0]} … {shown[-1]}"
    text = ", ".join(map(str, shown[:4]))
    return f"SMs {text}" + (f", … ({len(shown)} of them)" if len(shown) > 4 else "")
