"""Proof of replicas: what several GPUs compute for themselves has the same bits on all of them.

They then choose the same experts and positions, and add the same parts in the same order.
"""

from collections.abc import Sequence
from itertools import combinations

from tileir.scheduling.arrivals import ALL
from tileir.scheduling.cover import Cover, Runs
from tileir.scheduling.problem import Channel, Problem, Row, Writers, fault


def check_replicas(problems: Sequence[Problem]) -> None:
    """Values that GPUs write into copies of their own come of the same work on the same operands. Raises ScheduleError.

    By induction over rows: operands are values of earlier rows, made alike, or of channels of level "peer", whose
    copies are one GPU's values.
    """
    cover, writers = Cover(problems), Writers(problems)
    for one, other in combinations(problems, 2):
        for row in one.rows:
            channel = one.channels.get(row.written or "")
            if channel is None or channel.level == "peer":
                continue
            if channel.name in other.channels:
                for twin in writers.into(other, channel.name):
                    _check_twins(cover, channel, row, twin)


def _check_twins(cover: Cover, channel: Channel, row: Row, twin: Row) -> None:
    shared = _shared(*(cover.writing(r, channel).runs for r in (row, twin)))
    # Experts fill the places of whoever chose them.
    chosen = _shared(*([r.body.experts or (0, ALL)] for r in (row, twin)))
    if shared is None or chosen is None:
        return
    different = [
        what
        for what, a, b in (
            ("stages", row.number, twin.number),
            ("operations", row.body.text, twin.body.text),
            ("operands", row.names, twin.names),
            ("weights", row.weights, twin.weights),
            ("tiles", row.tile_base, twin.tile_base),
        )
        if a != b
    ]
    if different:
        raise fault(
            f"{row} and {twin} make values {shared[0]} … {shared[1] - 1} of {channel}, each for its own GPU, by "
            f"different {' and '.join(different)}",
            "the same work on all GPUs that hold a value: the same bits, choices and order of sums",
            row,
            twin,
        )


def _shared(a: Runs, b: Runs) -> tuple[int, int] | None:
    """The first values that are in both."""
    for first, last in a:
        for low, high in b:
            if max(first, low) < min(last, high):
                return max(first, low), min(last, high)
    return None
