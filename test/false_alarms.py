"""Correct schedules that the verifier has to accept: random decoders, on usual and odd targets."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import strategies as st

from test.decoders import Facts, decoder, decoders
from test.models import export_own
from tileir.compiler import Options
from tileir.errors import TileirError
from tileir.frontends.torch_export import import_program
from tileir.mlir import ir, new_context
from tileir.passes.pipeline import run_pipeline
from tileir.scheduling.problem import ScheduleError
from tileir.target import TARGETS


@dataclasses.dataclass(frozen=True)
class Case:
    """A decoder, what it is compiled for, and options. target: one of the table; odd: what is changed in it."""

    decoder: Facts
    target: str
    odd: tuple[tuple[str, int], ...]
    options: tuple[tuple[str, Any], ...]


def cases() -> st.SearchStrategy[Case]:
    """Half of them on targets with odd sizes, a third over pages, a third on several GPUs."""
    odd = {
        "sms": st.sampled_from([1, 2, 3, 7, 31, 97, 144]),
        "slot_bytes": st.sampled_from([8, 16, 24, 32]).map(lambda n: 1024 * n),
        "window": st.sampled_from([1, 2, 4]),
        "alone_bytes": st.sampled_from([0, 512, 4096, 65536]),
        "split_bytes": st.sampled_from([1, 512, 16384]),
    }
    tokens = {"tokens": st.sampled_from([1, 2, 5, 8])}
    pages = {"sequences": st.integers(1, 8), "page": st.sampled_from([4, 8, 16])}
    devices = {"devices": st.sampled_from([2, 3, 4])}
    options = [tokens, tokens | pages, tokens | devices]
    return st.builds(
        Case,
        decoder=decoders(),
        target=st.sampled_from(["virtual", "h100", "h200"]),
        odd=st.one_of(st.just(()), st.fixed_dictionaries(odd).map(_items)),
        options=st.one_of(*(st.fixed_dictionaries(o).map(_items) for o in options)),
    )


def _items(facts: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    if "sequences" in facts:
        facts["sequences"] = min(facts["sequences"], facts["tokens"])
    return tuple(facts.items())


def accept(case: Case) -> str:
    """Why the compiler refused the model, "" if the verifier accepted it, which ends the pipeline.

    Raises ScheduleError for a false alarm; what other passes refuse is none.
    """
    with _target(case) as target, new_context() as context, ir.Location.unknown():
        module = import_program(export_own(decoder(case.decoder)), context)
        try:
            run_pipeline(module, Options(target, **dict(case.options)).pipeline)
        except ScheduleError:
            raise
        except TileirError as error:
            return str(error)
    return ""


@contextmanager
def _target(case: Case) -> Iterator[str]:
    """The case's target, under a name of its own if it is odd."""
    if not case.odd:
        yield case.target
        return
    with pytest.MonkeyPatch.context() as patch:
        odd = dataclasses.replace(TARGETS[case.target], name="odd", **dict(case.odd))
        patch.setitem(TARGETS, "odd", odd)
        yield "odd"
