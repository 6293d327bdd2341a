"""Every task on one SM, evenly, remainders rotating; ranges and splits that follow from it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tileir.scheduling.assign import (
    MAX_SPLITS,
    MAX_TILES_PER_SM,
    choose_k_parts,
    next_rotation,
    ranges,
    shares,
    used_splits,
)
from tileir.scheduling.cost import attend_us, choose_splits, contract_us, usual_rows
from tileir.target import TARGETS, Target

SMS = st.integers(1, 200)
TASKS = st.integers(0, 20_000)
TARGET = st.sampled_from(sorted(TARGETS)).map(TARGETS.__getitem__)


def tasks_of(tasks: int, rotation: int, sms: int) -> list[range]:
    """The tasks of every SM."""
    first, count = shares(tasks, rotation, sms)
    return [range(a, a + n) for a, n in zip(first.tolist(), count.tolist(), strict=True)]


@given(TASKS, st.integers(0, 1000), SMS)
def test_every_task_runs_once(tasks: int, rotation: int, sms: int) -> None:
    found = sorted(task for mine in tasks_of(tasks, rotation, sms) for task in mine)
    assert found == list(range(tasks))


@given(st.integers(1, 4000), st.integers(1, 1000), SMS, st.integers(1, 28))
def test_two_parts_of_k_leave_no_sm_more(tiles: int, blocks: int, sms: int, warps: int) -> None:
    """Whoever has most has less with two parts, or K stays whole."""
    parts = choose_k_parts(tiles, blocks, sms, warps)
    whole, halves = (int(shares(tiles * n, 0, sms)[1].max()) for n in (1, 2))
    assert parts in (1, 2)
    if parts == 2:
        assert halves / 2 < whole
        assert halves <= MAX_TILES_PER_SM
        assert blocks / 2 >= 2 * warps
    elif halves / 2 < whole:
        assert halves > MAX_TILES_PER_SM or blocks / 2 < 2 * warps


@given(TASKS, st.integers(0, 1000), SMS)
def test_shares_differ_by_one_at_most(tasks: int, rotation: int, sms: int) -> None:
    counts = [len(mine) for mine in tasks_of(tasks, rotation, sms)]
    assert len(counts) == sms
    assert max(counts) - min(counts) <= 1


@given(TASKS, st.data())
def test_rotation_turns_the_shares(tasks: int, data: st.DataObject) -> None:
    sms = data.draw(SMS)
    rotation = data.draw(st.integers(0, sms - 1))
    straight, turned = tasks_of(tasks, 0, sms), tasks_of(tasks, rotation, sms)
    assert turned == straight[rotation:] + straight[:rotation]


@given(st.lists(TASKS, min_size=1, max_size=8), SMS)
def test_next_stage_goes_on_where_the_last_ended(stages: list[int], sms: int) -> None:
    """The SM that would get the next task of the last stage gets the first of this one."""
    rotation, total = 0, np.zeros(sms, np.int64)
    for tasks in stages:
        assert 0 <= rotation < sms
        (holder,) = np.flatnonzero((np.arange(sms) + rotation) % sms == 0)
        assert total[holder] == total.min()
        total += shares(tasks, rotation, sms)[1]
        rotation = next_rotation(rotation, tasks, sms)


def test_assignment_of_ten_tasks() -> None:
    assert tasks_of(10, 0, 4) == [range(3), range(3, 6), range(6, 8), range(8, 10)]
    assert tasks_of(10, 3, 4) == [range(8, 10), range(3), range(3, 6), range(6, 8)]
    assert next_rotation(0, 10, 4) == 2


@given(st.integers(1, 300_000), SMS, st.integers(1, 32))
def test_ranges_cover_all_tiles_nearly_equally(tiles: int, sms: int, most: int) -> None:
    parts = ranges(tiles, sms, most)
    assert [first for first, _ in parts] == np.cumsum([0, *(n for _, n in parts[:-1])]).tolist()
    assert sum(count for _, count in parts) == tiles
    counts = [count for _, count in parts]
    assert max(counts) - min(counts) <= 1
    assert shares(max(counts), 0, sms)[1].max() <= most
    # No fewer would do.
    assert len(parts) == 1 or tiles > (len(parts) - 1) * most * sms


def test_ranges_of_a_vocabulary() -> None:
    assert MAX_TILES_PER_SM == 16
    assert ranges(3072, 132) == [(0, 1536), (1536, 1536)]
    assert ranges(2112, 132) == [(0, 2112)]


@given(TARGET, st.integers(1, 256), st.sampled_from([16, 64, 128]), st.integers(0, 1 << 17))
def test_splits_fit_the_sms(target: Target, kv_heads: int, size: int, rows: int) -> None:
    splits = choose_splits(target, kv_heads, size, rows)
    assert 1 <= splits <= MAX_SPLITS
    assert splits == 1 or splits * kv_heads <= target.sms
    price = attend_us(target, kv_heads, size, splits, rows)
    assert price <= attend_us(target, kv_heads, size, 1, rows)


@pytest.mark.parametrize(
    ("facts", "used"),
    [
        ((0, 4, 16, 8), 1),
        ((16, 4, 16, 8), 1),
        ((17, 4, 16, 8), 3),
        ((25, 4, 16, 8), 4),
        ((999, 4, 16, 8), 4),
        ((3, 4, 2, 8), 1),
        ((3, 4, 0, 0), 4),
        ((999, 1, 16, 8), 1),
    ],
)
def test_splits_that_take_part(facts: tuple[int, int, int, int], used: int) -> None:
    assert used_splits(*facts) == used


def test_prices_on_an_h100() -> None:
    h100 = TARGETS["h100"]
    assert contract_us(h100, 3120, 1000) == pytest.approx(2.0 + h100.hop_us)
    assert choose_splits(h100, 8, 128, 0) == 1
    assert choose_splits(h100, 8, 128, 1 << 16) == 132 // 8
    assert choose_splits(h100, 1, 128, 1 << 17) == MAX_SPLITS
    assert choose_splits(h100, 256, 64, 1 << 12) == 1


def test_a_window_bounds_the_rows() -> None:
    assert usual_rows(4096, 0) == 2048
    assert usual_rows(4096, 512) == 512
    assert usual_rows(4096, 1 << 20) == 2048
