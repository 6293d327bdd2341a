"""A sample of what `make verify` runs in full: random decoders, down to ptxas, and past the verifier."""

import re
from functools import partial
from typing import Any

import numpy as np
from hypothesis import strategies as st

import tileir
from test.decoders import Facts, decoder, decoders
from test.false_alarms import accept, cases
from test.fuzz import TOLERANCE, eager, fuzz
from test.hunt import hunt
from test.models import arrays, export_own
from tileir.target import TARGETS

MODELS, VERIFIED = 20, 20


def test_levels_agree_with_eager() -> None:
    found = hunt(decoders(), partial(fuzz, target=TARGETS["h100"]), MODELS)
    assert found.failure == ""
    assert len(found.outcomes) == MODELS
    assert [o.refused for o in found.outcomes.values() if o.refused] == []
    assert {*map(frozenset, (o.errors for o in found.outcomes.values()))} == {
        frozenset(("graph", "tile", "engine", "engine on two GPUs"))
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


def test_a_range_that_begins_within_a_head() -> None:
    """A GPU's tiles of a wide projection are cut into ranges; what is left of a head is a segment of its own."""
    facts = Facts(
        wirings=("before",), hidden=32, inner=16, kv=2, shared=3, head=256, vocabulary=17, context=8, norm="rms",
        activation="silu", gated=False, parts="split", attention="called", bias=True, mlp_bias=False, head_bias=False,
        final=False, tied=False, half_turned=False, seed=0,
    )  # fmt: skip
    model, ids = decoder(facts), [3, 1, 4, 1, 5, 9]
    program, exact = export_own(model), eager(model, ids)
    package = tileir.compile(program, target="virtual", devices=2)
    assert re.search(r'"tile.rope".*first = -\d', package.engine_text)
    found = package.load(arrays(model), "reference").logits(ids)
    assert np.abs(found - exact).max() < TOLERANCE * np.abs(exact).max()
