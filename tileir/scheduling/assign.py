"""Which SM does which tasks: one formula, used by passes, packing, executors and proofs (docs/ir.md, assignment)."""

from itertools import pairwise

import numpy as np

MAX_TILES_PER_SM = 16
MAX_SPLITS = 64
ATTEND_WARPS = 8  # consumer warps that share a split's rows


def shares(tasks: int, rotation: int, sms: int) -> tuple[np.ndarray, np.ndarray]:
    """First task and number of tasks of every SM, each [sms] int64."""
    v = (np.arange(sms) + rotation) % sms
    quotient, rest = divmod(tasks, sms)
    return v * quotient + np.minimum(v, rest), quotient + (v < rest)


def used_splits(rows: int, splits: int, alone: int, least: int) -> int:
    """How many of `splits` splits take part in `rows` old rows (docs/ir.md, attention)."""
    if alone and rows <= alone:
        return 1
    return max(1, min(splits, -(-rows // least))) if least else splits


def rows_a_slot(slot_bytes: int, states: int, head_size: int) -> int:
    """Positions that a slot of the state ring holds, bf16, of one state or of k and v.

    As if heads were a power of two wide: a warp's lanes then read whole rows, at the same places in every slot.
    """
    return slot_bytes // (2 * states * (1 << (head_size - 1).bit_length()))


def fed_slots(slots: int) -> int:
    """Of how many slots no more are free in a ring that is fed: a quarter (docs/ir.md, rings)."""
    return slots // 4


def choose_k_parts(tiles: int, blocks: int, sms: int, warps: int) -> int:
    """How many parts K has: two make twice as many tiles of half the blocks, if the most of an SM is less then.

    A part gives each of an SM's `warps` two blocks at least: with one, more tiles are more work.
    """
    one, two = (-(-tiles * parts // sms) for parts in (1, 2))
    enough = blocks >= 2 * 2 * warps
    return 2 if enough and two < 2 * one and two <= MAX_TILES_PER_SM else 1


def next_rotation(rotation: int, tasks: int, sms: int) -> int:
    """Where the next stage's assignment starts: where this one's remainder ended."""
    return (rotation - tasks) % sms


def ranges(tiles: int, sms: int, most: int = MAX_TILES_PER_SM) -> list[tuple[int, int]]:
    """(first, count) of nearly equal ranges of tiles that give no SM more than `most`."""
    parts = -(-tiles // (most * sms))
    edges = [i * tiles // parts for i in range(parts + 1)]
    return [(a, b - a) for a, b in pairwise(edges)]
