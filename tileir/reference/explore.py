"""Adversarial execution: the same steps under many schedules have to give the same bits."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tileir.errors import DeviceHang
from tileir.reference.arithmetic import Array
from tileir.reference.scheduler import Scheduler
from tileir.reference.session import ReferenceSession
from tileir.reference.steps import Request


@dataclass
class Exploration:
    """What ran: schedules and steps, and the schedules of each strategy.

    logits, made: of each request, of the first schedule; failure: why the last schedule failed; "" if none did.
    """

    schedules: int = 0
    steps: int = 0
    by: Counter[str] = field(default_factory=Counter)
    logits: list[Array] = field(default_factory=list)
    made: list[list[int]] = field(default_factory=list)
    failure: str = ""


def explore(
    engine_text: str,
    recipes: Sequence[dict[str, Any]],
    weights: Mapping[str, Any],
    requests: Sequence[Request],
    schedules: int,
    wanted: Sequence[Array] = (),
) -> Exploration:
    """Run requests under so many schedules, strategies in turn, each with a seed of its own; stop at the first failure.

    A schedule fails if it hangs, breaks the protocol, gives other logits, bit for bit, than `wanted` (one array
    [positions, vocabulary] f32 a request; () stands for those of the first schedule), or other tokens than the first.
    """
    session = ReferenceSession(engine_text, recipes, weights)
    found = Exploration(logits=list(wanted))
    for seed in range(schedules):
        strategy = Scheduler.STRATEGIES[seed % len(Scheduler.STRATEGIES)]
        session.schedule(seed, strategy)
        found.schedules += 1
        found.by[strategy] += 1
        try:
            logits = session.batch_logits(requests)
        except DeviceHang as hang:
            found.failure = str(hang)
            break
        found.steps += session.steps
        found.logits, found.made = found.logits or logits, found.made or session.made
        found.failure = _difference(logits, found.logits)
        if not found.failure and session.made != found.made:
            found.failure = (
                f"tokens {session.made} are made, and {found.made} by the first schedule"
            )
        if found.failure:
            break
    return found


def _difference(logits: Sequence[Array], wanted: Sequence[Array]) -> str:
    """Where logits differ first."""
    for request, (got, right) in enumerate(zip(logits, wanted, strict=True)):
        if got.shape != right.shape:
            return f"request {request} has {len(got)} rows of logits instead of {len(right)}"
        if not np.array_equal(got, right):
            row, token = np.argwhere(got != right)[0]
            return f"request {request}: logits of row {row} differ from token {token} on"
    return ""
