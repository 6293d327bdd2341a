"""Who does which of a row's tasks, as loaders and consumers both compute it."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np

from tileir.dialect.attributes import get
from tileir.reference.arithmetic import Array, split_of, split_range
from tileir.reference.memory import RowPlan
from tileir.reference.steps import StepRecord
from tileir.scheduling.assign import shares


def mine(row: RowPlan, tasks: int, sm: int, sms: int) -> Array:
    """This SM's tasks of a row, from 0 on."""
    return _share(tasks, row.rotation, sm, sms)


@cache
def _share(tasks: int, rotation: int, sm: int, sms: int) -> Array:
    first, count = shares(tasks, rotation, sms)
    found = np.arange(first[sm], first[sm] + count[sm])
    found.flags.writeable = False
    return found


def pairs(row: RowPlan, routing: Array, op: Any, sm: int, sms: int) -> list[tuple[int, int]]:
    """This SM's (expert, tile) pairs of the experts that routing [T, k, 2] chose; op: fill or multiply."""
    first, behind = get(op, "experts")
    chosen = np.unique(routing[:, :, 0])
    active = chosen[(chosen >= first) & (chosen < behind)]
    tiles = get(op, "tiles")
    found = mine(row, len(active) * tiles, sm, sms)
    return [(int(active[n // tiles]), int(n % tiles)) for n in found]


def old_rows(record: StepRecord, sequence: int, split: int, op: Any) -> Array:
    """Old positions of a sequence that a split covers."""
    return np.arange(*split_range(record.bases[sequence], split, op))


def old_listed(record: StepRecord, t: int, listed: Array, split: int, op: Any) -> Array:
    """Old positions among those that a token's list names, that a split covers."""
    old = listed[(listed >= 0) & (listed < record.bases[record.sequences[t]])]
    return old[slice(*split_of(len(old), split, get(op, "splits")))]


def sequences(record: StepRecord) -> list[int]:
    """The sequences of a step, in order."""
    return sorted(set(record.sequences))


def in_slots(rows: Array, per_slot: int) -> Iterator[Array]:
    """Parts of what one slot holds each."""
    for at in range(0, len(rows), per_slot):
        yield rows[at : at + per_slot]
