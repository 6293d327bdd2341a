"""A sample of what `make verify` runs in full: random decoders, down to ptxas, and past the verifier."""

from functools import partial
from typing import Any

from hypothesis import strategies as st

from test.decoders import decoders
from test.false_alarms import accept, cases
from test.fuzz import fuzz
from test.hunt import hunt
from tileir.target import TARGETS

MODELS, VERIFIED = 20, 20


def test_levels_agree_with_eager() -> None:
    found = hunt(decoders(), partial(fuzz, target=TARGETS["h100"]), MODELS)
    assert found.failure == ""
    assert len(found.outcomes) == MODELS
    assert [o.refused for o in found.outcomes.values() if o.refused] == []
    assert {*map(frozenset, (o.errors for o in found.outcomes.values()))} == {
        frozenset(("graph", "tile", "engine"))
    }


def test_no_false_alarm() -> None:
    found = hunt(cases(), accept, VERIFIED)
    assert found.failure == ""
    assert len(found.outcomes) == VERIFIED


def test_what_fails_is_made_small() -> None:
    """Different cases, counted, and the smallest that fails."""
    assert len(hunt(st.integers(0, 9), bool, 10).outcomes) == 10

    def check(case: Any) -> None:
        assert case.hidden < 64, "too wide"

    found = hunt(decoders(), check, 50)
    assert "hidden=64, inner=16, kv=1, shared=1, head=16" in found.failure
    assert "AssertionError: too wide" in found.failure
