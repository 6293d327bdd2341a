"""Where channels lie in the exchange memory, and who writes which packet: for the manifest, and for who reads it.

    "channels"   by channel: `offset` in bytes, `depth` copies, `payload`, `values` of a token
    "row_tasks"  by row of the phase table: `first` task, `tasks`, `rotation`, the `writes` of tasks, and the channel of
                 its `records`, "" if it leaves none

A packet is 8 bytes, little endian: the payload in the low word, the epoch that it belongs to in the high one
(docs/ir.md, epochs). A channel's copies lie one behind the other; of epoch e that is number e mod depth. A copy has the
values of one token in order, since kernels take one: two to a packet with payload "bf16x2", the even one in the low
half; one with "f32"; one 32-bit word with "record".
"""

from collections.abc import Mapping
from dataclasses import astuple
from typing import Any, NamedTuple

import numpy as np

from tileir.scheduling.assign import shares
from tileir.scheduling.problem import RECORD_WORDS, Places, Problem, Row

PACKET_BYTES = 8
PACKET_VALUES = {"bf16x2": 2, "f32": 1, "record": 1}


class Written(NamedTuple):
    """What a row writes of a channel: task and SM by packet, [packets] int64, -1 for what it does not write."""

    row: int
    task: np.ndarray
    sm: np.ndarray


def exchange_table(problem: Problem) -> dict[str, Any]:
    """The two entries, ready for JSON. Channels of level "sm" are not in the exchange memory, and not in the table."""
    offsets = {r.name: r.first for r in problem.regions if r.memory == "exchange"}
    channels = {
        name: {"offset": offsets[name], "depth": c.depth, "payload": c.payload, "values": c.values}
        for name, c in problem.channels.items()
        if name in offsets
    }
    return {"channels": channels, "row_tasks": [_tasks(row) for row in problem.rows]}


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


def packets_of(channel: Mapping[str, Any], epoch: int, memory: np.ndarray) -> np.ndarray:
    """An epoch's copy of a channel, [packets] uint64. memory: the exchange's, uint64."""
    count = channel["values"] // PACKET_VALUES[channel["payload"]]
    first = channel["offset"] // PACKET_BYTES + epoch % channel["depth"] * count
    return memory[first : first + count]


def epochs_of(packets: np.ndarray) -> np.ndarray:
    """The epochs that packets (uint64) bear, uint32."""
    return (packets >> np.uint64(32)).astype(np.uint32)


def writers(table: Mapping[str, Any], name: str, sms: int) -> list[Written]:
    """The rows that write a channel, in one case or another, and their packets."""
    facts, found = table["channels"][name], []
    values = PACKET_VALUES[facts["payload"]]
    for number, row in enumerate(table["row_tasks"]):
        task = np.full(facts["values"], -1, np.int64)
        if row["records"] == name:
            owner = np.arange(facts["values"] // values) // RECORD_WORDS
            found.append(Written(number, owner, owner))
            continue
        for channel, *places in row["writes"]:
            if channel == name:
                _mark(task, Places(*places), row["first"], row["first"] + row["tasks"])
        task = task[::values]
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
