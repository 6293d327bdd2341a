"""The numerics gate: an engine's logits may be no further from the fp32 model than Hugging Face's bf16 run is."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


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
    return Distance(
        kl / len(exact), float(np.quantile(np.stack(errors), 0.999)), misses, len(exact)
    )


def _log_softmax(row: np.ndarray) -> np.ndarray:
    row = row.astype(np.float64)
    row = row - row.max()
    return row - np.log(np.exp(row).sum())


def verdict(ours: Distance, peer: Distance) -> dict[str, Any]:
    """Whether `ours` passes beside the peer's bf16 run, with the figures."""
    passed = {
        "kl": bool(ours.kl <= peer.kl),
        "p999": bool(ours.p999 <= 1.1 * peer.p999),
        "misses": bool(ours.misses <= peer.misses + 3 * peer.misses**0.5),
    }
    return {
        "passed": all(passed.values()),
        "by": passed,
        "ours": asdict(ours),
        "hf_bf16": asdict(peer),
    }
