"""Stores that are late, out of order and seen by one SM before another; releases and acquires order them."""

from collections.abc import Callable
from typing import Any, Self

import numpy as np
import pytest

import tileir
from test.models import arrays, tiny_llama
from tileir.errors import DeviceHang
from tileir.frontends.torch_export import export_decode
from tileir.reference.engine import Sm
from tileir.reference.scheduler import LATE, Scheduler
from tileir.reference.session import ReferenceSession
from tileir.reference.steps import Request
from tileir.reference.stores import Memory, Store, Stores

SEEDS = 40


class Cell(Memory):
    kind = "rows"

    def copy(self) -> Self:
        return self


def stores(seed: int) -> Stores:
    scheduler = Scheduler(seed, "stores")
    made = Stores(scheduler, ["SM 0", "SM 1"], ["a", "b"])
    for name in ("stores", LATE):
        scheduler.add(name, made.role(name))
    return made


def landed(seed: int, *wanted: tuple[str, int]) -> list[tuple[str, int]]:
    """The order in which stores to (memory, epoch) land, all at one place."""
    order: list[tuple[str, int]] = []
    cells, made = {name: Cell(name) for name, _ in wanted}, stores(seed)

    def land(what: tuple[str, int]) -> Callable[[], None]:
        return lambda: order.append(what)

    for name, epoch in wanted:
        made.send(Store("SM 0", "SM 1", cells[name], 0, epoch, land((name, epoch))))
    made.close()
    list(made.scheduler.run())
    return order


def test_stores_to_different_addresses_land_in_any_order() -> None:
    assert {tuple(landed(seed, ("a", 1), ("b", 1))) for seed in range(SEEDS)} == {
        (("a", 1), ("b", 1)),
        (("b", 1), ("a", 1)),
    }


def test_stores_to_one_address_land_in_order() -> None:
    for seed in range(SEEDS):
        found = landed(seed, ("a", 1), ("a", 2), ("b", 1), ("a", 3))
        assert [epoch for name, epoch in found if name == "a"] == [1, 2, 3]


def test_a_store_lands_once() -> None:
    made, seen = stores(0), list[int]()
    store = Store("SM 0", "SM 1", Cell("a"), 0, 1, lambda: seen.append(1))
    made.send(store)
    made.land(store)
    made.close()
    list(made.scheduler.run())
    assert seen == [1]


@pytest.fixture(scope="module")
def session() -> ReferenceSession:
    model = tiny_llama(num_hidden_layers=1)
    package = tileir.compile(export_decode(model, 64), target="virtual")
    return ReferenceSession(package.engine_text, package.packing, arrays(model))


def watched(session: ReferenceSession, patch: pytest.MonkeyPatch, strategy: str) -> dict[str, int]:
    """How often an SM saw packets that another did not see, and rows that it acquired, over some schedules."""
    counts = {"stale": 0, "acquired": 0}
    see, acquire = Sm.see, Sm.acquire

    def seen(self: Sm, view: Any, *packets: Any) -> None:
        see(self, view, *packets)
        views = self.device.channels[view.name].views
        counts["stale"] += any((v.epochs != view.epochs).any() for v in views)

    def acquired(self: Sm, row: Any) -> None:
        counts["acquired"] += sum(not store.landed for store in self.released)
        acquire(self, row)
        assert not [s for s in self.released if s.memory.name in row.acquires]

    patch.setattr(Sm, "see", seen)
    patch.setattr(Sm, "acquire", acquired)
    for seed in range(16):
        session.schedule(seed, strategy)
        session.batch_logits([Request([3, 1, 4, 1], 2)])
    return counts


def test_late_stores(session: ReferenceSession, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = watched(session, monkeypatch, "stores")
    assert counts["stale"] > 0
    assert counts["acquired"] > 0


@pytest.mark.parametrize("strategy", ["random", "priorities", "delays"])
def test_stores_that_are_not_late(
    strategy: str, session: ReferenceSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert watched(session, monkeypatch, strategy) == {"stale": 0, "acquired": 0}


def test_what_a_launch_that_failed_had_stored_is_forgotten(
    session: ReferenceSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.schedule(1, "stores")
    (wanted,) = session.batch_logits([Request([3, 1, 4, 1], 2)])
    with monkeypatch.context() as patch:
        patch.setattr(Stores, "role", lambda self, name: iter(()))
        with pytest.raises(DeviceHang, match="deadlock"):
            session.batch_logits([Request([5, 9], 2)])
    (found,) = session.batch_logits([Request([3, 1, 4, 1], 2)])
    assert np.array_equal(found, wanted)


def test_views_stay_while_their_number_does(session: ReferenceSession) -> None:
    """A launch does not copy what it has."""
    (device,) = session._engine.devices
    kept: list[int] = []
    for _ in range(2):
        session.schedule(1, "random")
        session.batch_logits([Request([3, 1], 1)])
        kept.append(id(device.states["k_cache_0"].views[0].rows))
    assert kept[0] == kept[1]


def test_all_sms_see_the_same_in_the_end(session: ReferenceSession) -> None:
    """Launches of other strategies go on from there."""
    session.schedule(1, "stores")
    session.batch_logits([Request([3, 1, 4, 1], 2)])
    (device,) = session._engine.devices
    for channel in device.channels.values():
        assert len(channel.views) == device.sms
        for view in channel.views:
            assert np.array_equal(view.epochs, channel.views[0].epochs)
            assert not any(view.coming.values())
