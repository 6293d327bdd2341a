"""Frequencies that are read from tables of cosines and sines."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from test import own_modules as own
from test.models import export_own
from tileir import compile as compile_
from tileir.errors import TileirError
from tileir.frontends.torch_export.angles import frequencies_of


def tables(
    frequencies: np.ndarray, rows: int, scale: float = 1.0, dtype: torch.dtype = torch.float32
) -> tuple[np.ndarray, np.ndarray]:
    """As a model makes them."""
    angle = torch.outer(torch.arange(rows).float(), torch.from_numpy(frequencies))
    cosines, sines = ((f * scale).to(dtype).double().numpy() for f in (angle.cos(), angle.sin()))
    return cosines, sines


def of_base(base: float, count: int) -> np.ndarray:
    return (base ** -(np.arange(count) / count)).astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(
    base=st.sampled_from([1e4, 5e5, 1e6, 1e7]),
    count=st.integers(1, 64),
    rows=st.integers(2, 5000),
    scale=st.floats(0.1, 8),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
)
def test_a_table_tells_its_frequencies(
    base: float, count: int, rows: int, scale: float, dtype: torch.dtype
) -> None:
    """Well enough that no angle of the table is off by more than its own rounding."""
    wanted = of_base(base, count)
    found, factor = frequencies_of(*tables(wanted, rows, scale, dtype))
    assert found is not None
    rounding = {torch.bfloat16: 2**-8, torch.float16: 2**-10}.get(dtype, 2**-20)
    assert abs(factor / scale - 1) <= rounding
    assert np.abs((found.astype(np.float64) - wanted) * rows).max() <= 4 * rounding


@pytest.mark.parametrize("rows", [4096, 131072])
def test_of_long_tables_in_f32_the_frequencies_are_exact(rows: int) -> None:
    wanted = of_base(5e5, 64)
    found, scale = frequencies_of(*tables(wanted, rows))
    assert scale == 1
    assert found is not None
    assert found.dtype == np.float32
    fast = wanted * rows > 100
    np.testing.assert_array_equal(found[fast], wanted[fast])


def bent(cosines: np.ndarray, sines: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The last rows of other frequencies, as where these depend on the length."""
    other = tables(of_base(3e4, cosines.shape[1]), len(cosines))
    for table, last in zip((cosines, sines), other, strict=True):
        table[-8:] = last[-8:]
    return cosines, sines


DEFECTS = {
    "bent": bent,
    "a row late": lambda c, s: (c[1:], s[1:]),
    "sines first": lambda c, s: (s, c),
    "one factor each": lambda c, s: (c, 1.1 * s),
    "zeros": lambda c, s: (0 * c, 0 * s),
    "one row": lambda c, s: (c[:1], s[:1]),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_of_other_tables_there_are_none(name: str) -> None:
    assert frequencies_of(*DEFECTS[name](*tables(of_base(1e4, 8), 64)))[0] is None


def test_a_model_with_another_table_is_refused_by_name() -> None:
    model = own.Decoder(lookup=own.rows_by_index, context=40)
    model.sines *= 1.2
    with pytest.raises(TileirError, match="no frequencies give the tables") as error:
        compile_(export_own(model), target="virtual")
    assert "own_modules.py:" in str(error.value)


def test_a_buffer_without_values_is_refused_by_name() -> None:
    with torch._subclasses.FakeTensorMode():
        model = own.Decoder(lookup=own.rows_by_index)
    with pytest.raises(TileirError, match="the buffer 'cosines', which has none"):
        compile_(export_own(model), target="virtual")
