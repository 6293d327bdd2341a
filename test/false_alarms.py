"""Correct schedules that the verifier has to accept: random decoders, on usual and odd targets."""

import dataclasses
import random
from contextlib import contextmanager
from typing import Any

import pytest

from test.fuzz import model_of
from test.models import export_own
from tileir.compiler import Options
from tileir.errors import TileirError
from tileir.frontends.torch_export import import_program
from tileir.mlir import ir, new_context
from tileir.passes.pipeline import run_pipeline
from tileir.scheduling.problem import ScheduleError
from tileir.target import TARGETS


def alarm(seed: int) -> tuple[bool, str]:
    """(whether the compiler refused the model, the verifier's message or "") of a decoder, a target and options.

    The pipeline ends with the verifier; what other passes refuse is no alarm.
    """
    pick = random.Random(~seed)
    model, text = model_of(seed)
    options: dict[str, Any] = {"tokens": pick.choice([1, 1, 2, 5, 8])}
    if pick.random() < 0.3:
        options |= {
            "sequences": pick.randint(1, options["tokens"]),
            "page": pick.choice([4, 8, 16]),
        }
    if pick.random() < 0.3:
        options["devices"] = pick.choice([2, 3, 4])
    with _target(pick) as target, new_context() as context, ir.Location.unknown():
        module = import_program(export_own(model), context)
        try:
            run_pipeline(module, Options(target, **options).pipeline)
        except ScheduleError as error:
            return False, f"{text}; {options} on {target}: {error}"
        except TileirError:
            return True, ""
    return False, ""


@contextmanager
def _target(pick: random.Random) -> Any:
    """A target of the table, or one with odd sizes."""
    name = pick.choice(["virtual", "h100", "h200", "odd", "odd"])
    with pytest.MonkeyPatch.context() as patch:
        if name == "odd":
            facts = {
                "sms": pick.choice([1, 2, 3, 7, 31, 97, 144]),
                "slot_bytes": 1024 * pick.choice([8, 16, 24, 32]),
                "window": pick.choice([1, 2, 4]),
                "alone_bytes": pick.choice([0, 512, 4096, 65536]),
            }
            base = TARGETS[pick.choice(["virtual", "h100"])]
            patch.setitem(TARGETS, name, dataclasses.replace(base, name=name, **facts))
        yield name
