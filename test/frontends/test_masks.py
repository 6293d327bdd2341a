"""Masks that a program looks up: rows of another table than a causal one are refused."""

import pytest
import torch

from test import own_modules as own
from test.models import export_own
from tileir import compile as compile_
from tileir.errors import TileirError

SIZE = 24
SEEN = torch.ones(SIZE, SIZE, dtype=torch.bool).tril()
ADDED = torch.zeros(SIZE, SIZE).masked_fill(~SEEN, -torch.inf)
BOOLEANS = {
    "all seen, for every column at once": torch.ones(SIZE, 1, dtype=torch.bool),
    "all seen": torch.ones(SIZE, SIZE, dtype=torch.bool),
    "what is to come": ~SEEN,
    "one row late": SEEN.roll(1, 0),
    "a window that shrinks": SEEN & ~SEEN.tril(-5) | SEEN & (torch.arange(SIZE) < 8)[:, None],
    "a hole": SEEN & (torch.arange(SIZE) != 3),
}
NUMBERS = {
    "a small number": ADDED.clamp(min=-1.0),
    "a bias of some": ADDED + 0.5 * (torch.arange(SIZE) == 3),
}


@pytest.mark.parametrize("name", [*BOOLEANS, *NUMBERS])
def test_another_table_is_refused(name: str) -> None:
    booleans = name in BOOLEANS
    model = own.Decoder(mask=own.mask_of_table if booleans else own.mask_added, context=SIZE)
    model.register_buffer("seen" if booleans else "added", (BOOLEANS | NUMBERS)[name])
    with pytest.raises(TileirError, match="an attention mask that is not made from positions"):
        compile_(export_own(model), target="virtual")
