"""What passes the numerics gate."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Bounds:
    """The most that passes. docs/models.md says what the defaults were derived from.

    stage: a stage's error, of the largest magnitude in its channel in the step. rise: a stage's mean
    error beside that of every row before, or of rounding. logit: a logit's, of the position's
    largest. kl: KL(exact ‖ checked), nats, mean over positions. top1: positions whose best token differs although
    rounding does not explain it. choices: share of what routers and top-k selects choose that differs; what lies behind
    the first is not judged.
    """

    stage: float = 0.2
    rise: float = 4.0
    logit: float = 0.25
    kl: float = 0.05
    top1: int = 0
    choices: float = 0.15


BOUNDS = Bounds()
