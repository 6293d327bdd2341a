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

SCHEMA = 1
SHOWN_ROOTS, SHOWN_GROUPS = 3, 12
LOADERS = ("tape loader", "state loader")
_FACTS = ("schema", "device", "target", "rows", "waits")


@dataclass(frozen=True)
class Group:
    """Warps of one role that waited in one row and epoch for one kind of thing. number: what the first one reported."""

    role: str
    row: int
    body: str
    epoch: int
    wait: str
    sms: frozenset[int]
    warps: int
    number: int

    def __str__(self) -> str:
        return f"{self.role} in row {self.row} ({self.body}) waited for {self.wait} in epoch {self.epoch}"


def dump_of(words: np.ndarray, manifest: dict[str, Any], device: str) -> dict[str, Any]:
    """The report of every warp, ready for JSON. words: [sms · (warps + 2), 8] uint32, see codegen/kernel.py.

    "rows" are the table's: body, and the channels that a row awaits and writes. "waits" have "sm", "warp", "role",
    "row", "epoch", "wait" and "number": a packet's or a slot's.
    """
    warps, waits, rows = manifest["warps"], manifest["report"]["waits"], manifest["row_bodies"]
    found = []
    for index, (code, row, epoch, number, *_) in enumerate(words.tolist()):
        if code:
            sm, warp = divmod(index, warps + 2)
            role = "consumer" if warp < warps else LOADERS[warp - warps]
            facts = {"row": row % len(rows), "epoch": epoch, "wait": waits[code - 1]}
            found.append({"sm": sm, "warp": warp, "role": role, **facts, "number": number})
    channels = zip(rows, manifest["row_awaits"], manifest["row_writes"], strict=True)
    return {
        "schema": SCHEMA,
        "device": device,
        "target": manifest["target"],
        "rows": [{"body": body, "awaits": a, "writes": w} for body, a, w in channels],
        "waits": found,
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
        )
        for (role, row, epoch, wait), members in found.items()
    ]
    return sorted(groups, key=lambda g: (g.epoch, g.row, -g.warps, g.role))


def waits_for(dump: dict[str, Any], group: Group, groups: list[Group]) -> list[Group]:
    """The groups that have to go on before `group` can."""
    same_sms = [g for g in groups if g.sms & group.sms]
    match group.wait:
        case "a packet":
            last = max(writers_of(dump, group), default=-1)
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
    """The rows that write the channels which a group's row awaits."""
    awaited = set(dump["rows"][group.row]["awaits"])
    return [i for i, row in enumerate(dump["rows"]) if awaited & set(row["writes"])]


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
    table = [f"  {g.warps:5d} × {g}; {_sms(g.sms)}, number {g.number}" for g in groups]
    more = [f"  … and {len(table) - SHOWN_GROUPS} more kinds"] if len(table) > SHOWN_GROUPS else []
    return "\n".join([" ".join(lines), *table[:SHOWN_GROUPS], *more])


def _why(dump: dict[str, Any], group: Group, groups: list[Group]) -> str:
    who = f"{group.warps} × {group}, on {_sms(group.sms)}"
    if waits_for(dump, group, groups):
        return f"{who}: in a circle with others."
    match group.wait:
        case "a packet":
            awaited = " and ".join(dump["rows"][group.row]["awaits"])
            by = [f"row {w} ({dump['rows'][w]['body']})" for w in writers_of(dump, group)]
            if not by:
                return f"{who}, of channel {awaited}, which no row writes."
            return (
                f"{who}, of channel {awaited}, which {' and '.join(by)} writes; nobody waits before that row: packets "
                "were not written, or elsewhere, or with another epoch."
            )
        case "a full ring slot":
            return f"{who}: the loaders of these SMs have reported no wait, they had ended."
        case "an earlier copy to land":
            return f"{who}: the copy engine did not finish a copy that was issued."
    return f"{who}: nobody on these SMs has reported a wait that would explain it."


def _sms(sms: frozenset[int]) -> str:
    shown = sorted(sms)
    if len(shown) == 1:
        return f"SM {shown[0]}"
    if shown[-1] - shown[0] + 1 == len(shown):
        return f"SMs {shown[0]} … {shown[-1]}"
    text = ", ".join(map(str, shown[:4]))
    return f"SMs {text}" + (f", … ({len(shown)} of them)" if len(shown) > 4 else "")
