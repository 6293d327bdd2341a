"""A sample of what `make verify` runs in full: random decoders, down to ptxas, and past the verifier."""

import pytest

from test.false_alarms import alarm
from test.fuzz import fuzz
from tileir.target import TARGETS

MODELS, VERIFIED = 20, 20


@pytest.mark.parametrize("seed", range(MODELS))
def test_levels_agree_with_eager(seed: int) -> None:
    outcome = fuzz(seed, TARGETS["h100"])
    assert outcome.refused == ""
    assert set(outcome.errors) == {"graph", "tile", "engine"}


@pytest.mark.parametrize("seed", range(100, 100 + VERIFIED))
def test_no_false_alarm(seed: int) -> None:
    assert alarm(seed)[1] == ""
