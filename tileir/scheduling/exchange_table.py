"""Where channels lie in the exchange memory, and who writes which packet: for the manifest, and for who reads it.

    "exchange"   by channel: `offset` in bytes, `packets` of one copy, `depth` copies, `values` of a packet
    "row_tasks"  by row of the phase table: `first` task, `tasks`, `rotation`, the `writes` of tasks, and the channel of
                 its `records`, "" if it leaves none

A copy is `packets` words of 8 bytes: payload, then epoch, 4 bytes each; of epoch e that is copy e mod depth.
"""

from collections.abc import Mapping
from dataclasses import astuple
from typing import Any, NamedTuple

import numpy as np

from tileir.scheduling.assign import shares
from tileir.scheduling.problem import RECORD_WORDS, Places, Problem, Row

PACKET_BYTES = 8


class Written(NamedTuple):
    """What a row writes of a channel: task and SM by packet, [packets] int64, -1 for what it does not write."""

    row: int
    task: np.ndarray
    sm: np.ndarray


def exchange_table(problem: Problem) -> dict[str, Any]:
    """The two entries, ready for JSON. Channels of level "sm" are not in the exchange memory, and not in the table."""
    offsets = {r.name: r.first for r in problem.regions if r.memory == "exchange"}
    channels = {}
    for name, channel in problem.channels.items():
        if name in offsets:
            values = 2 if channel.payload == "bf16x2" else 1
            packets = channel.tokens * channel.values // values
            facts = {"packets": packets, "depth": channel.depth, "values": values}
            channels[name] = {"offset": offsets[name]} | facts
    return {"exchange": channels, "row_tasks": [_tasks(row) for row in problem.rows]}


def _tasks(row: Row) -> dict[str, Any]:
    body = row.body
    places = [*body.writes, *([body.finishes] if body.finishes else [])]
    records = row.names[body.out] if body.records and body.out is not None else ""
    return {
        "first": row.tile_base,
        "tasks": body.tasks,
        "rotation": row.rotation,
        "writes": [[row.names[p.argument], *_plain(p)] for p in places],
        "records": records,
    }


def _plain(places: Places) -> list[Any]:
    """The fields as JSON has them: what is read back is equal."""
    return [list(f) if isinstance(f, tuple) else f for f in astuple(places)]


def epochs_of(table: Mapping[str, Any], name: str, epoch: int, memory: np.ndarray) -> np.ndarray:
    """What the packets of an epoch's copy of a channel bear, [packets] uint32. memory: the exchange's bytes, uint8."""
    facts = table["exchange"][name]
    size = facts["packets"] * PACKET_BYTES
    first = facts["offset"] + epoch % facts["depth"] * size
    return memory[first : first + size].view(np.uint32)[1::2]


def writers(table: Mapping[str, Any], name: str, sms: int) -> list[Written]:
    """The rows that write a channel, in one case or another, and their packets."""
    facts, found = table["exchange"][name], []
    for number, row in enumerate(table["row_tasks"]):
        task = np.full(facts["packets"] * facts["values"], -1, np.int64)
        if row["records"] == name:
            owner = np.arange(facts["packets"]) // RECORD_WORDS
            found.append(Written(number, owner, owner))
            continue
        for channel, *places in row["writes"]:
            if channel == name:
                _mark(task, Places(*places), row["first"], row["first"] + row["tasks"])
        task = task[:: facts["values"]]
        if (task >= 0).any():
            found.append(Written(number, task, _sm_of(task, row, sms)))
    return found


def _mark(task: np.ndarray, places: Places, low: int, high: int) -> None:
    t = places.touching(low, high)
    first = t // places.inner * places.outer + t % places.inner * places.step
    for base in places.bases:
        at = (base + first)[:, None] + np.arange(places.width)
        inside = at < len(task)
        task[at[inside]] = np.broadcast_to((t + places.first)[:, None], at.shape)[inside]


def _sm_of(task: np.ndarray, row: Mapping[str, Any], sms: int) -> np.ndarray:
    first, count = shares(row["tasks"], row["rotation"], sms)
    owner = np.full(row["tasks"], -1, np.int64)
    for sm in range(sms):
        owner[first[sm] : first[sm] + count[sm]] = sm
    return np.where(task < 0, -1, owner[np.maximum(task - row["first"], 0)])
