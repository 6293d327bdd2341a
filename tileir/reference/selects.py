"""Selects: the step's tokens and drafts from candidates; experts and positions from scores."""

from typing import TYPE_CHECKING

import numpy as np

from tileir.dialect.attributes import get
from tileir.reference.memory import LocalName, RowPlan
from tileir.reference.routing import choose_experts, choose_top_k
from tileir.reference.scheduler import Role
from tileir.stages import CHOICES

if TYPE_CHECKING:
    from tileir.reference.consumers import Consumers


def run(consumers: "Consumers", row: RowPlan) -> Role:
    """A token or draft on every SM, or this SM's part of a choice that is a channel."""
    if "select" not in row.ops:
        yield from _choose(consumers, row)
        return
    op = row.ops["select"]
    records = []
    for value in op.operands:
        channel = row.operand(value)
        words = np.arange(channel.values)
        yield from consumers.await_(channel, words)
        records.append(consumers.values(channel, words).reshape(len(consumers.live), -1, 2))
    every = np.concatenate(records, 1)
    chosen = [min(r.tolist(), key=lambda one: (-one[0], one[1]))[1] for r in every]
    if get(op, "makes") == "draft":
        consumers.drafts = np.array(chosen)
    else:
        consumers.choice = np.array(chosen)


def _choose(consumers: "Consumers", row: RowPlan) -> Role:
    op = row.ops["choose"]
    scores, out = (row.operand(v) for v in op.operands)
    if get(op, "kind") == "route" and isinstance(out, LocalName):
        index = np.arange(scores.values)
        yield from consumers.await_(scores, index)
        made = choose_experts(consumers.values(scores, index), op)
        if consumers.sm.sm == 0:
            # Every SM chooses alike.
            consumers.tell(
                CHOICES, out.name, consumers.live, np.arange(made.shape[1]), made[..., 0]
            )
        yield from consumers.sm.locals[out.name].write(consumers.scheduler, consumers.use, made)
        return
    for t in consumers.mine(row, consumers.device.tokens):
        if t >= len(consumers.live):
            continue
        one, position = np.array([t]), int(consumers.positions[t])
        last = position + 1 if get(op, "kind") == "top_k" else scores.values
        index = np.arange(last)
        yield from consumers.await_(scores, index, one)
        found = consumers.values(scores, index, one)
        if get(op, "kind") == "top_k":
            made = choose_top_k(found, np.array([position]), get(op, "k"))
        else:
            made = choose_experts(found, op).reshape(1, -1)
        consumers.publish(out, one, np.arange(made.shape[1]), made, kind="")
        chosen = made if get(op, "kind") == "top_k" else made[:, ::2]
        consumers.tell(CHOICES, out.name, one, np.arange(chosen.shape[1]), chosen)
