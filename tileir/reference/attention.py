"""Attention: a task is a group of heads, a split of old rows and a sequence."""

from typing import TYPE_CHECKING, Any

import numpy as np

from tileir.dialect.attributes import get, name_of
from tileir.reference import tasks
from tileir.reference.arithmetic import (
    Array,
    combine,
    is_alone,
    partial_softmax,
    run_piece,
    splits_at,
)
from tileir.reference.memory import RowPlan
from tileir.reference.protocol import Channel
from tileir.reference.scheduler import Role
from tileir.reference.sinks import PieceSink
from tileir.scheduling.assign import rows_a_slot

if TYPE_CHECKING:
    from tileir.reference.consumers import Consumers


def run(consumers: "Consumers", row: RowPlan) -> Role:
    """This SM's tasks of attention, each for every sequence."""
    op = row.ops["attend"]
    for task in consumers.mine(row, get(op, "tasks")) + row.tile_base:
        group, split = divmod(int(task), get(op, "splits"))
        for sequence in tasks.sequences(consumers.record):
            yield from _attend_task(consumers, row, op, group, split, sequence)


def _attend_task(
    consumers: "Consumers", row: RowPlan, op: Any, group: int, split: int, sequence: int
) -> Role:
    heads, kv, groups, splits = (get(op, n) for n in ("heads", "kv_heads", "groups", "splits"))
    shared, head = heads // groups, group * kv // groups
    tokens = np.array(consumers.record.rows_of(sequence))
    base, window = consumers.record.bases[sequence], get(op, "window")
    mine = range(group * shared, (group + 1) * shared)
    if split >= splits_at(base, op):
        return
    finish = _finish(row, op) if is_alone(base, op) else None
    queries = []
    for q in mine:
        made = yield from _pieces(consumers, row, op, "tile.query", q, tokens)
        queries.append(made)
    own_k = own_v = np.zeros((0, 0), np.float32)
    states = len(op.operands) - 1
    if split == 0:
        stores = group % (groups // kv) == 0
        own_k = yield from _pieces(consumers, row, op, "tile.key", head, tokens, stores)
        own_v = own_k
        if states > 1:
            own_v = yield from _pieces(consumers, row, op, "tile.value", head, tokens)
    lists = yield from _lists(consumers, row, op)
    fill = row.ops["fill_rows" if lists is None else "fill_gathered"]
    per_slot = rows_a_slot(consumers.sm.slot_bytes[get(op, "ring")], states, get(fill, "head_size"))
    old = (
        tasks.old_rows(consumers.record, sequence, split, fill)
        if lists is None
        else np.zeros(0, int)
    )
    held = yield from consumers.take(get(op, "ring"), -(-len(old) // per_slot))
    value = get(op, "value_size")
    for i, t in enumerate(tokens):
        own = np.arange(i + 1) if split == 0 else np.zeros(0, int)
        if lists is not None:
            old = tasks.old_listed(consumers.record, int(t), lists[t], split, fill)
            held = yield from consumers.take(get(op, "ring"), -(-len(old) // per_slot))
            own = own[np.isin(base + own, lists[t])]
        size = get(op, "head_size")
        keys = [np.zeros((0, size), np.float32), *(p[0] for p in held)]
        values = [np.zeros((0, value), np.float32), *(p[-1][:, :value] for p in held)]
        if len(own):
            keys.append(own_k[own])
            values.append(own_v[own][:, :value])
        low = consumers.positions[t] + 1 - window if window else 0
        seen = np.concatenate([old, base + own]) >= low
        part = partial_softmax(
            np.stack([q[i] for q in queries]),
            np.concatenate(keys)[seen],
            np.concatenate(values)[seen],
            op,
        )
        if finish is not None:
            index = mine.start * value + np.arange(shared * value)
            consumers.publish(finish, np.array([t]), index, combine(part[:, None]).reshape(1, -1))
            continue
        for g, q in enumerate(mine):
            index = (q * splits + split) * (value + 2) + np.arange(value + 2)
            # Parts of a softmax may be scaled alike: what counts is what the combine makes of them.
            to = row.operand(op.operands[0])
            consumers.publish(to, np.array([t]), index, part[g][None], kind="")


def _finish(row: RowPlan, op: Any) -> Channel | None:
    """Where attention's result goes if one split has all rows; None if it never does."""
    for inner in op.regions[0].blocks[0]:
        if name_of(inner) == "tile.finish":
            found: Channel = row.operand(inner.operands[0])
            return found
    return None


def _pieces(
    consumers: "Consumers",
    row: RowPlan,
    op: Any,
    kind: str,
    head: int,
    tokens: Array,
    stores: bool = False,
) -> Any:
    """The pieces of a head, one behind the other, [tokens, size] (a generator that returns it).

    stores: whether this task is the one that appends what a piece's statements store.
    """
    found = []
    for inner in op.regions[0].blocks[0]:
        if name_of(inner) == kind:
            offset, stride, size = (get(inner, n) for n in ("offset", "stride", "size"))
            channel, index = (
                row.operand(inner.operands[0]),
                offset + head * stride + np.arange(size),
            )
            yield from consumers.await_(channel, index, tokens)
            values = consumers.values(channel, index, tokens)
            if inner.results:
                sink = PieceSink(consumers, row, channel, tokens, stores)
                values = consumers.round(run_piece(inner, values, head, sink))
            found.append(values)
    return np.concatenate(found, -1)


def _lists(consumers: "Consumers", row: RowPlan, op: Any) -> Any:
    """The positions that tokens attend to, [T, k], None for all (a generator that returns it)."""
    for inner in op.regions[0].blocks[0]:
        if name_of(inner) == "tile.gather":
            channel = row.operand(inner.operands[0])
            words = np.arange(channel.values)
            yield from consumers.await_(channel, words)
            return consumers.values(channel, words)
    return None
