"""The gate itself: it passes what is close and fails what is not."""

import numpy as np

from test.gpu.gate import distance, verdict


def case() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    exact = rng.standard_normal((64, 500)).astype(np.float32) * 3
    return exact, exact + rng.standard_normal(exact.shape).astype(np.float32) * 0.05


def test_equal_logits_pass() -> None:
    exact, peer = case()
    found = distance(exact, exact)
    assert (found.kl, found.p999, found.misses) == (0.0, 0.0, 0)
    assert verdict(found, distance(peer, exact))["passed"]


def test_each_figure_can_fail() -> None:
    exact, peer = case()
    beside = distance(peer, exact)
    noisy = exact + np.random.default_rng(1).standard_normal(exact.shape).astype(np.float32) * 0.5
    found = verdict(distance(noisy, exact), beside)
    assert not any(found["by"].values())
    spike = exact.copy()
    spike[:, :3] += 4.0
    assert not verdict(distance(spike, exact), beside)["by"]["p999"]


def test_not_a_number_fails() -> None:
    exact, peer = case()
    broken = exact.copy()
    broken[3] = np.nan
    assert not verdict(distance(broken, exact), distance(peer, exact))["passed"]
