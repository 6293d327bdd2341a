"""Schedules of every strategy give the same bits, and a defect that needs an unlucky one is found."""

import dataclasses
import re
from typing import Any

import pytest

import tileir
from test.models import arrays, tiny_llama
from tileir.frontends.torch_export import export_decode
from tileir.reference import protocol
from tileir.reference.explore import Exploration, explore
from tileir.reference.scheduler import Scheduler
from tileir.reference.steps import Request
from tileir.target import TARGETS

REQUESTS = [Request([3, 1, 4, 1, 5, 9], 3)]


@pytest.fixture(scope="module")
def case() -> Any:
    model = tiny_llama(num_hidden_layers=1)
    package = tileir.compile(export_decode(model, 64), target="virtual")
    return package.engine_text, package.packing, arrays(model)


def run(case: Any, schedules: int = 30) -> Exploration:
    return explore(*case, REQUESTS, schedules)


def test_every_strategy_gives_the_same_bits(case: Any) -> None:
    found = run(case, 40)
    assert found.failure == ""
    assert found.by == dict.fromkeys(Scheduler.STRATEGIES, 10)
    assert found.steps == 40 * 8
    assert [len(tokens) for tokens in found.made] == [3]
    assert len(found.logits[0]) == 8


def test_schedules_differ(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every schedule of a strategy takes roles in an order of its own."""
    orders, take = list[list[str]](), Scheduler._next

    def heard(self: Any) -> Any:
        name, role = take(self)
        orders[-1].append(name)
        return name, role

    def begin(self: Any, *args: Any) -> None:
        orders.append([])
        init(self, *args)

    init = Scheduler.__init__
    monkeypatch.setattr(Scheduler, "_next", heard)
    monkeypatch.setattr(Scheduler, "__init__", begin)
    run(case, 12)
    assert len(set(map(tuple, orders))) == len(orders) == 12


def test_other_bits_are_a_failure(case: Any) -> None:
    wanted = [run(case, 1).logits[0] + 1]
    found = explore(*case, REQUESTS, 5, wanted)
    assert (found.schedules, found.failure) == (
        1,
        "request 0: logits of row 0 differ from token 0 on",
    )


def test_records_of_one_copy_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """An SM without tasks may be so slow that its records are overwritten while it reads them."""
    wide = dataclasses.replace(TARGETS["virtual"], name="wide", sms=96)
    monkeypatch.setitem(TARGETS, "wide", wide)
    model = tiny_llama(num_hidden_layers=1, hidden_size=32, intermediate_size=32, vocab_size=64)
    package = tileir.compile(export_decode(model, 64), target="wide")
    broken = package.engine_text.replace("depth = 2", "depth = 1")
    assert broken != package.engine_text
    found = explore(broken, package.packing, arrays(model), REQUESTS, 100)
    assert "overwritten before its reader" in found.failure


def test_a_wait_that_waits_for_nothing(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that takes packets as they are is found."""
    wait = protocol.View.wait

    def hasty(self: Any, epoch: int, tokens: Any, index: Any) -> Any:
        made = wait(self, epoch, tokens, index)
        return made._replace(ready=lambda: True) if self.name == "qkv_0" else made

    monkeypatch.setattr(protocol.View, "wait", hasty)
    assert re.match(r"channel qkv_0: epoch \d is read before it is there", run(case).failure)
