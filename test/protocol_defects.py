"""Defects of the protocol itself, in the reference device: what a kernel may do wrong with a correct module.

Each is (base, what it does, the patch).
"""

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from tileir.reference import contracts
from tileir.reference.consumers import Consumers
from tileir.reference.engine import Sm
from tileir.reference.loaders import Loaders
from tileir.reference.memory import OwnRow, Rows
from tileir.reference.protocol import CopyEngine, LocalChannel, Mbarrier, Ring, View
from tileir.reference.scheduler import PAUSE
from tileir.reference.stores import Store, Stores

Patch = pytest.MonkeyPatch


def wrong_phase(patch: Patch) -> None:
    """The consumers wait for the parity of the other lap."""

    def take(self: Ring, use: int) -> Any:
        yield self.full[use % self.slots].wait((use // self.slots + 1) & 1)

    patch.setattr(Ring, "take", take)


def early_release(patch: Patch) -> None:
    """A slot is freed when it is full, and read later."""
    taken = Ring.take

    def take(self: Any, name: str, slots: int) -> Any:
        ring, found = self.sm.rings[name], []
        first = self.uses[name]
        for use in range(first, first + slots):
            yield from taken(ring, use)
            ring.empty[use % ring.slots].arrive(self.scheduler, ring.warps)
            yield from _pause()
            found.append(ring.read(use))
            ring.data[use % ring.slots] = None
        self.uses[name] = first + slots
        return found

    patch.setattr(Consumers, "take", take)


def _pause() -> Any:
    yield PAUSE


def no_release(patch: Patch) -> None:
    def release(self: Ring, _scheduler: Any, use: int) -> None:
        self.data[use % self.slots] = None

    patch.setattr(Ring, "release", release)


def wrong_count(patch: Patch, more: int) -> None:
    def release(self: Ring, scheduler: Any, use: int) -> None:
        self.data[use % self.slots] = None
        self.empty[use % self.slots].arrive(scheduler, self.warps + more)

    patch.setattr(Ring, "release", release)


def unawaited_slot(patch: Patch) -> None:
    """The loader fills a slot without waiting until it is free."""

    def fill(self: Ring, use: int, copy: Any, copies: CopyEngine) -> Any:
        yield from _pause()
        copies.start(self, use, copy)

    patch.setattr(Ring, "fill", fill)


def full_before_bytes(patch: Patch) -> None:
    """A slot's barrier completes when its copy starts."""
    start = CopyEngine.start

    def early(self: CopyEngine, ring: Ring, use: int, copy: Any) -> None:
        start(self, ring, use, copy)
        ring.full[use % ring.slots].arrive(self.scheduler)

    patch.setattr(CopyEngine, "start", early)


def epoch_off_by_one(patch: Patch) -> None:
    publish = Sm.publish

    def ahead(self: Sm, channel: Any, epoch: int, *packet: Any, releases: bool = False) -> None:
        publish(self, channel, epoch + (channel.name == "qkv_0"), *packet, releases=releases)

    patch.setattr(Sm, "publish", ahead)


def previous_epoch(patch: Patch) -> None:
    """Packets of the step before are taken for this one's."""
    wait = View.wait

    def stale(self: View, epoch: int, tokens: Any, index: Any) -> Any:
        at = epoch % self.depth, tokens[:, None], index.reshape(-1)
        return wait(self, epoch, tokens, index)._replace(
            ready=lambda: bool((self.epochs[at] >= epoch - 1).all())
        )

    def read(self: View, epoch: int, tokens: Any, index: Any) -> Any:
        at = epoch % self.depth, tokens[:, None], index.reshape(-1)
        return self.payload[at].reshape(len(tokens), *index.shape)

    patch.setattr(View, "wait", stale)
    patch.setattr(View, "read", read)


def premature_publish(patch: Patch) -> None:
    """Epochs are visible at once, payloads later."""
    see = Sm.see

    def early(self: Sm, view: View, carried: Any, epoch: int, *packets: Any) -> None:
        if view.name != "qkv_0":
            see(self, view, carried, epoch, *packets)
            return
        tokens, index, values = packets
        at = epoch % view.depth, tokens[:, None], index
        view.epochs[at] = epoch
        self.scheduler.notify(view)
        land = partial(view.payload.__setitem__, at, values)
        self.launch.stores.send(Store(self.who, self.who, view, at[0], epoch, land))

    patch.setattr(Sm, "see", early)


def first_packet_only(patch: Patch) -> None:
    """A reader polls the first value that it needs, not all."""
    wait = View.wait

    def short(self: View, epoch: int, tokens: Any, index: Any) -> Any:
        return wait(self, epoch, tokens[:1], index.reshape(-1)[:1])

    patch.setattr(View, "wait", short)


def lost_packet(patch: Patch) -> None:
    send = Stores.send

    def lossy(self: Stores, store: Store) -> None:
        if store.epoch != 2:
            send(self, store)

    patch.setattr(Stores, "send", lossy)


def packet_twice(patch: Patch) -> None:
    send = Stores.send

    def twice(self: Stores, store: Store) -> None:
        send(self, store)
        send(self, replace(store))

    patch.setattr(Stores, "send", twice)


def unawaited_routing(patch: Patch) -> None:
    """Consumers overwrite the routing that their loader has not taken."""
    write = LocalChannel.write

    def hasty(self: LocalChannel, scheduler: Any, use: int, values: Any) -> Any:
        self.loaded, loaded = False, self.loaded
        yield from write(self, scheduler, use, values)
        self.loaded = self.wanted = loaded

    patch.setattr(LocalChannel, "write", hasty)


def unawaited_record(patch: Patch) -> None:
    """A loader takes whatever record its SM has."""

    def record(self: Any, use: int) -> Any:
        yield from _pause()
        found = self.sm.record
        self.sm.record_empty.arrive(self.scheduler)
        self.epoch = self.sm.launch.first_epoch + found.number
        return found

    patch.setattr(Loaders, "_record", record)


def no_fence(patch: Patch) -> None:
    """An SM's record does not release the rows that it wrote."""
    publish = Sm.publish

    def unfenced(self: Sm, *packets: Any, releases: bool = False) -> None:
        publish(self, *packets, releases=releases and self.sm != 1)

    patch.setattr(Sm, "publish", unfenced)


def row_not_written(patch: Patch) -> None:
    write = Rows.write

    def forgetful(self: Rows, own: OwnRow, *rest: Any) -> None:
        if own.holder[1] != 2:
            write(self, own, *rest)

    patch.setattr(Rows, "write", forgetful)


def order_not_fixed(patch: Patch) -> None:
    """Blocks are added in the order in which they happen to arrive."""
    sums, order = contracts._sums, random.Random(0)

    def unordered(slots: list[Any], held: list[Any], group: Any, tokens: int) -> Any:
        count = len(held[0]) if held else 1
        if len(slots) != 1 or len(held) != 1 or count < 3:
            return sums(slots, held, group, tokens)
        ((blocks,),) = slots
        some = order.sample(range(count), count)
        tiles = blocks.reshape(-1, count, *blocks.shape[1:])[:, some]
        return sums([(tiles.reshape(blocks.shape),)], [held[0][some]], group, tokens)

    patch.setattr(contracts, "_sums", unordered)


def phase_never_ends(patch: Patch) -> None:
    """A barrier loses its first arrival."""
    arrive = Mbarrier.arrive

    def lossy(self: Any, scheduler: Any, arrivals: int = 1) -> None:
        if "empty" not in self.name or self.phase or hasattr(self, "lost"):
            arrive(self, scheduler, arrivals)
        self.lost = True

    patch.setattr(Mbarrier, "arrive", lossy)


def one_replica(patch: Patch) -> None:
    """Packets are written to the first replica only."""
    see = Sm.see

    def first(self: Sm, view: View, *packets: Any) -> None:
        if view is self.device.channels[view.name].views[0]:
            see(self, view, *packets)

    patch.setattr(Sm, "see", first)


def other_replica(patch: Patch) -> None:
    """Packets of an epoch go into one replica, by its number, and readers look into that of their SM."""
    see = Sm.see

    def by_epoch(self: Sm, view: View, carried: Any, epoch: int, *packets: Any) -> None:
        views = self.device.channels[view.name].views
        if view is views[epoch % len(views)]:
            see(self, view, carried, epoch, *packets)

    patch.setattr(Sm, "see", by_epoch)


def rows_before_their_record(patch: Patch) -> None:
    """Rows are released by the SM's first packets of a step, before it has written them all."""
    publish = Sm.publish

    def early(self: Sm, channel: Any, epoch: int, *packets: Any, releases: bool = False) -> None:
        publish(self, channel, epoch, *packets, releases=channel.name == "embedding_0")

    patch.setattr(Sm, "publish", early)


def stores_overtake(patch: Patch) -> None:
    """A packet of an epoch may be seen before one of an older epoch at its place."""

    def land(self: Stores, store: Store) -> None:
        if not store.landed:
            store.landed = True
            store.memory.coming[store.place].remove(store)
            store.land()

    patch.setattr(Stores, "land", land)


PROTOCOL: dict[str, tuple[str, str, Callable[[Patch], None]]] = {
    "wrong phase": ("dense", "consumers wait for a slot's other parity", wrong_phase),
    "early slot release": ("dense", "a slot is freed before it is read", early_release),
    "dropped arrival": ("dense", "a slot is read and never freed", no_release),
    "count one too high": ("dense", "a warp frees a slot twice", lambda p: wrong_count(p, 1)),
    "count one too low": ("dense", "a warp does not free its slot", lambda p: wrong_count(p, -1)),
    "a slot that is not awaited": ("dense", "a loader fills a slot in use", unawaited_slot),
    "full before the bytes": ("dense", "a copy arrives when it starts", full_before_bytes),
    "epoch off by one": ("dense", "packets of qkv_0 bear the next epoch", epoch_off_by_one),
    "packets of the step before": ("dense", "epoch - 1 is taken for epoch", previous_epoch),
    "premature publish": ("dense", "epochs are visible before payloads", premature_publish),
    "one packet polled for all": ("dense", "readers poll the first value only", first_packet_only),
    "a packet lost between GPUs": ("parts", "step 2's packets do not arrive", lost_packet),
    "a packet sent twice": ("parts", "every packet crosses twice", packet_twice),
    "a routing overwritten": ("idle", "consumers do not wait for their loader", unawaited_routing),
    "a record that is not awaited": ("dense", "a loader takes a step's record early", unawaited_record),
    "a record without fence": ("dense", "SM 1's record releases nothing", no_fence),
    "a row that is not written": ("dense", "position 2 of every state is left out", row_not_written),
    "rows released too early": ("dense", "a step's first packets release its rows", rows_before_their_record),
    "a store that overtakes": ("idle", "an older packet lands on a newer one", stores_overtake),
    "one replica written": ("copied", "packets go into the first of two replicas", one_replica),
    "wrong replica": ("copied", "packets go into the other replica", other_replica),
    "order of a reduction not fixed": ("dense", "blocks are added as they arrive", order_not_fixed),
    "a lost arrival": ("dense", "a slot's first release is lost", phase_never_ends),
}  # fmt: skip
