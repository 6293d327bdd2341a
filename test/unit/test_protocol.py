"""The reference device finds broken protocols, and its result does not depend on the schedule."""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import tileir
from test.models import arrays, tiny_llama
from tileir.errors import DeviceHang
from tileir.frontends.torch_export import export_decode
from tileir.package import Package
from tileir.reference import protocol
from tileir.reference.explore import explore
from tileir.reference.session import ReferenceSession
from tileir.reference.steps import Request

IDS = [3, 1, 4, 1, 5, 9]


@pytest.fixture(scope="module")
def case() -> tuple[Package, dict[str, np.ndarray]]:
    model = tiny_llama()
    return tileir.compile(export_decode(model, 64), target="virtual"), arrays(model)


def session(case: Any, text: str | None = None, seed: int = 0) -> ReferenceSession:
    package, weights = case
    return ReferenceSession(text or package.engine_text, package.packing, weights, seed=seed)


def test_schedules_give_the_same_bits(case: Any) -> None:
    wanted = session(case).logits(IDS)
    for seed in range(1, 25):
        assert np.array_equal(session(case, seed=seed).logits(IDS), wanted)


def test_missing_release_of_a_slot(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slots that are never freed stop the loader, and the report names both."""

    def release(self: Any, scheduler: Any, use: int) -> None:
        self.data[use % self.slots] = None

    monkeypatch.setattr(protocol.Ring, "release", release)
    with pytest.raises(DeviceHang, match=r"(?s)deadlock.*slot 0 empty") as error:
        session(case).logits(IDS)
    assert "SM 0" in str(error.value)


def test_one_arrival_too_many(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def release(self: Any, scheduler: Any, use: int) -> None:
        self.data[use % self.slots] = None
        self.empty[use % self.slots].arrive(scheduler, self.warps + 1)

    monkeypatch.setattr(protocol.Ring, "release", release)
    with pytest.raises(DeviceHang, match="more arrivals"):
        session(case).logits(IDS)


def test_wrong_epoch(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that is an epoch behind leaves its readers waiting; the report says for what."""
    publish = protocol.View.publish

    def late(self: Any, scheduler: Any, epoch: int, *packet: Any) -> None:
        if not (self.name == "qkv_0" and epoch == 3):
            publish(self, scheduler, epoch, *packet)

    monkeypatch.setattr(protocol.View, "publish", late)
    with pytest.raises(DeviceHang, match="channel qkv_0 in epoch 3"):
        session(case).logits(IDS)


def test_early_release(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slot that is freed before it is read is overwritten under its reader, and noticed."""
    take = protocol.Ring.take

    def early(self: Any, use: int) -> Iterator[Any]:
        yield from take(self, use)
        self.data[use % self.slots] = None

    monkeypatch.setattr(protocol.Ring, "take", early)
    with pytest.raises(DeviceHang, match="read before it was filled"):
        session(case).logits(IDS)


@pytest.mark.parametrize("edge", ["release", "acquire"])
def test_state_order_is_demanded(case: Any, edge: str) -> None:
    """Without its fences a state's rows may not be there yet when they are streamed."""
    package, weights = case
    text = re.sub(rf"{edge} = array<i64: [^>]*>, ", "", package.engine_text)
    assert text != package.engine_text
    found = explore(text, package.packing, weights, [Request(IDS, 0)], 60)
    assert re.search(r"streams position \d+ of state \S+, which is not there", found.failure)
    assert found.by["stores"] == found.schedules // 4
