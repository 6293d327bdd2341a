"""A sample of what `make verify` runs in full: random decoders, down to ptxas, and past the verifier."""

import pytest

import tileir
from test.false_alarms import alarm
from test.fuzz import fuzz
from test.models import tiny_llama
from tileir.errors import TileirError
from tileir.frontends.torch_export import export_decode
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


def test_a_vocabulary_of_fewer_tiles_than_gpus() -> None:
    """A GPU that offers no token would leave the others waiting for its records."""
    program = export_decode(tiny_llama(num_hidden_layers=1, vocab_size=35), 64)
    with pytest.raises(TileirError, match="a vocabulary of 35 tokens on 4 GPUs") as error:
        tileir.compile(program, target="virtual", devices=4)
    assert "devices=3 at most" in str(error.value)
    tileir.compile(program, target="virtual", devices=3)
