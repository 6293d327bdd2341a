"""What passes the numerics gate."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Bounds:
    """The most that passes; the defaults are twice what the families in test/families.py and SmolLM2 need, or more.

    stage: a stage's error, of the largest magnitude in its channel in the step. logit: a logit's, of the position's
    largest. kl: KL(exact ‖ checked), nats, mean over positions. top1: positions whose best token differs although
    rounding does not explain it. choices: share of what routers and top-k selects choose that differs; what lies behind
    the first is not judged.
    """

    stage: float = 0.2
    logit: float = 0.25
    kl: float = 0.02
    top1: int = 0
    choices: float = 0.15


BOUNDS = Bounds()
