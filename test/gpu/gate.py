"""The numerics gate: an engine's logits may be no further from the fp32 model than Hugging Face's bf16 run is.

Three rules, each beside the peer's run at the same positions: KL, by what is likely; misses; and `tail`, by any logit.

A tail is a percentile of all logits' errors, and these are no sample of independent ones. What reaches a position's
residual stream moves all of its logits together, and some positions (two keys that score alike, a norm of little)
make many times the usual of the same rounding. The largest 0.1 % then are the logits of one or two positions, and
which side rounds worse there is a toss: of random grids of equal spacing, one exceeds 1.1 times another's plain
percentile in a third of the pairs. So `tail` measures errors in units of their position: the root mean square of both
sides' errors there. That is the same unit for both, so it favours none, and all positions count. Between such grids
(docs/models.md) it differs by less than 10 % even with 17 logits a position, while logits that are off, a shift of all,
and noise in all positions change it as they change the errors. One bad position of many is KL's to find.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

TAIL, WITHIN = 0.999, 1.1


@dataclass(frozen=True)
class Distance:
    """How far logits lie from the fp32 model's.

    kl: mean over positions of KL(fp32 ‖ other), nats. p999: 99.9th percentile of |Δlogit|. misses: positions whose
    top token differs. positions: how many.
    """

    kl: float
    p999: float
    misses: int
    positions: int


def distance(logits: np.ndarray, exact: np.ndarray) -> Distance:
    """logits, exact: [positions, vocabulary] f32."""
    logits, exact = (np.asarray(a, np.float32) for a in (logits, exact))
    kl = 0.0
    errors = []
    for ours, true in zip(logits, exact, strict=True):
        p, q = _log_softmax(true), _log_softmax(ours)
        kl += float(np.sum(np.exp(p) * (p - q)))
        errors.append(np.abs(ours - true))
    misses = int(np.sum(logits.argmax(1) != exact.argmax(1)))
    return Distance(kl / len(exact), _percentile(errors), misses, len(exact))


def tails(ours: np.ndarray, peer: np.ndarray, exact: np.ndarray) -> tuple[float, float]:
    """99.9th percentiles of both sides' |Δlogit|, in units of their position; all [positions, vocabulary] f32."""
    found: tuple[list[np.ndarray], list[np.ndarray]] = [], []
    for true, *sides in zip(exact, ours, peer, strict=True):
        errors = [np.abs(np.asarray(side, np.float32) - true) for side in sides]
        unit = np.sqrt(np.mean(np.square(errors)))
        for errors_of, error in zip(found, errors, strict=True):
            errors_of.append(error / (unit if unit != 0 else 1))
    return _percentile(found[0]), _percentile(found[1])


def few_misses(ours: int, peer: int) -> bool:
    """Whether so many misses are no more than the peer's, within chance."""
    return bool(ours <= peer + 3 * peer**0.5)


def verdict(ours: np.ndarray, peer: np.ndarray, exact: np.ndarray) -> dict[str, Any]:
    """Whether `ours` passes beside the peer's bf16 run, with the figures; all [positions, vocabulary] f32."""
    mine, beside, (tail, other) = (
        distance(ours, exact),
        distance(peer, exact),
        tails(ours, peer, exact),
    )
    passed = {
        "kl": bool(mine.kl <= beside.kl),
        "tail": bool(tail <= WITHIN * other),
        "misses": few_misses(mine.misses, beside.misses),
    }
    return {
        "passed": all(passed.values()),
        "by": passed,
        "ours": asdict(mine) | {"tail": tail},
        "hf_bf16": asdict(beside) | {"tail": other},
    }


def _percentile(errors: list[np.ndarray]) -> float:
    return float(np.quantile(np.stack(errors), TAIL))


def _log_softmax(row: np.ndarray) -> np.ndarray:
    row = row.astype(np.float64)
    row = row - row.max()
    return row - np.log(np.exp(row).sum())
