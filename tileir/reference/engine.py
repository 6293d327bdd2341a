"""Executes engine modules: the roles of every SM of every GPU over real rings, channels and epochs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from tileir.dialect.attributes import get, walk
from tileir.reference.arithmetic import Array, keep, round_bf16
from tileir.reference.consumers import Consumers
from tileir.reference.loaders import Loaders
from tileir.reference.memory import Device, OwnRow, RowPlan, State, read_device
from tileir.reference.protocol import Channel, CopyEngine, LocalChannel, Mbarrier, Ring, View
from tileir.reference.scheduler import LATE, Scheduler
from tileir.reference.steps import Plan, Request
from tileir.reference.stores import Store, Stores
from tileir.stages import Heard

Recipes = Sequence[dict[str, Any]]
# Words of a packet that no reader sees half of.
RECORD = 2


class EngineExecutor:
    """GPUs in NumPy. weights: by state-dict name; rounding: the kernel's bf16, else fp32 everywhere."""

    def __init__(
        self,
        module: Any,
        recipes: Recipes,
        weights: Mapping[str, Any],
        *,
        rounding: bool = False,
        seed: int = 0,
    ) -> None:
        found = list(walk(module, "engine.device"))
        names = ("tokens", "sequences", "page", "context", "vocabulary")
        self.tokens, self.sequences, self.page, self.context, self.vocabulary = (
            get(found[0], n) for n in names
        )
        self.round = round_bf16 if rounding else keep
        self.seed, self.strategy, self.epoch = seed, "random", 0
        self.steps = self.pages_used = 0
        self.made: list[list[int]] = []
        self.trace: Callable[[int, str, int], None] | None = None
        self.heard: Heard | None = None
        self.devices = [
            read_device(op, place, recipe, weights, rounding=rounding)
            for place, (op, recipe) in enumerate(zip(found, recipes, strict=True))
        ]
        paged = [s for d in self.devices for s in d.states.values() if s.page]
        self.pages = len(paged[0].views[0].holder) // self.page if paged else 0
        self.drafts = any(
            get(row.ops["select"], "makes") == "draft"
            for row in self.devices[0].rows
            if "select" in row.ops
        )

    def reset(self) -> None:
        """Forget all states and packets."""
        self.epoch = 0
        for device in self.devices:
            for channel in device.channels.values():
                for view in channel.views:
                    view.epochs[:] = 0
                    view.coming.clear()
            for state in device.states.values():
                for rows in state.views:
                    rows.written[:] = 0
                    rows.holder[:] = -1
                    rows.coming.clear()

    def run(
        self, requests: Sequence[Request], logits: Sequence[Array | None] = ()
    ) -> Iterator[list[list[int]]]:
        """Run requests to their end; yields what each has made, whenever there is more.

        logits: for each request [positions, vocabulary] f32 to be filled with those of accepted rows, or None. Raises
        DeviceHang on a deadlock or a broken protocol.
        """
        plan = Plan(
            requests,
            tokens=self.tokens,
            sequences=self.sequences,
            context=self.context,
            page=self.page,
            pages=self.pages,
        )
        launch = Launch(self, plan, list(logits))
        made = 0
        for _ in launch.scheduler.run():
            if sum(map(len, plan.made)) > made:
                made = sum(map(len, plan.made))
                yield plan.made
        self.steps, self.pages_used = plan.record.number, plan.pages_used
        self.made = plan.made
        self.epoch = launch.last_epoch


class Launch:
    """One launch: all roles of all SMs, from the first step to the last."""

    def __init__(self, engine: EngineExecutor, plan: Plan, logits: list[Array | None]) -> None:
        self.engine, self.plan, self.trace = engine, plan, engine.trace
        self.logits = logits
        self.step_logits = np.zeros((engine.tokens, engine.vocabulary), np.float32)
        self.first_epoch = self.last_epoch = engine.epoch + 1
        self.scheduler = Scheduler(engine.seed, engine.strategy)
        gpus, late = len(engine.devices), self.scheduler.late
        every = [(device, sm) for device in engine.devices for sm in range(device.sms)]
        memories = {n for d in engine.devices for n in (*d.channels, *d.states)}
        self.stores = Stores(
            self.scheduler, [device.who(sm, gpus) for device, sm in every], sorted(memories)
        )
        self.running = len(every)
        self._counted = -1
        for device in engine.devices:
            for channel in device.channels.values():
                channel.split(device.sms if late else min(channel.replicas, device.sms))
            for state in device.states.values():
                state.split(device.sms if late else 1)
        self.sms = {(device.place, sm): Sm(self, device, sm) for device, sm in every}
        for worker in self.sms.values():
            for role in ("consumer", "tape", "state", "copies"):
                self.scheduler.add(f"{worker.who} {role}", worker.role(role))
        for role in ("stores", LATE):
            self.scheduler.add(role, self.stores.role(role))

    def count_logits(self, number: int) -> None:
        """Keep the logits of a step's accepted rows, once."""
        if number <= self._counted:
            return
        self._counted = number
        for request, position, row in self.plan.accepted:
            wanted = self.logits[request] if request < len(self.logits) else None
            if wanted is not None:
                wanted[position] = self.step_logits[row]

    def left(self) -> None:
        """An SM's consumers have ended."""
        self.running -= 1
        if not self.running:
            self.stores.close()


class Sm:
    """One SM: its rings, barriers, local channels, and the roles that share them."""

    def __init__(self, launch: Launch, device: Device, sm: int) -> None:
        self.launch, self.engine, self.device, self.sm = launch, launch.engine, device, sm
        self.scheduler = launch.scheduler
        self.who = device.who(sm, len(launch.engine.devices))
        self.rings = {
            name: Ring(
                f"{self.who} {name} ring",
                get(op, "slots"),
                get(op, "window"),
                get(op, "fed_window"),
                device.warps,
            )
            for name, op in device.rings.items()
        }
        self.slot_bytes = {n: get(op, "slot_bytes") for n, op in device.rings.items()}
        loaded = {
            row.bind[row.ops["fill"].operands[0]].name
            for row in device.rows
            if "fill" in row.ops and get(row.ops["fill"], "source") == "experts"
        }
        self.locals = {
            n: LocalChannel(f"{self.who} {n}", c.shape, loaded=n in loaded)
            for n, c in device.locals.items()
        }
        self.copies = CopyEngine(self.scheduler)
        self.record_full = Mbarrier(1, f"{self.who} step record full")
        self.record_empty = Mbarrier(1, f"{self.who} step record empty")
        self.record = launch.plan.record
        self.finished = False
        # Rows that its next record releases, and those that records which it sees have released to it.
        self.unreleased: list[Store] = []
        self.released: list[Store] = []
        self._loaders = 2
        self.loads, self.consumes = Loaders(self), Consumers(self)

    def role(self, name: str) -> Any:
        """The program of a role."""
        match name:
            case "consumer":
                return self.consumes.role()
            case "tape":
                return self.loads.tape()
            case "state":
                return self.loads.state()
        return self.copies.role()

    def finish(self) -> None:
        """The consumers take no more."""
        self.finished = True
        for ring in self.rings.values():
            for barrier in (*ring.empty, *ring.full):
                self.scheduler.notify(barrier)
        self.launch.left()

    def loader_ends(self) -> None:
        """Copies end with the last loader."""
        self._loaders -= 1
        if not self._loaders:
            self.copies.close()

    def publish(
        self,
        channel: Channel,
        epoch: int,
        tokens: Array,
        index: Array,
        values: Array,
        *,
        releases: bool = False,
    ) -> None:
        """Into a channel here and, if it crosses, on other GPUs; [tokens, *index.shape].

        releases: with them goes what the SM has stored before, for those that acquire it.
        """
        before: list[Store] = []
        if releases:
            before, self.unreleased = self.unreleased, []
        parts = self._parts(tokens, index.reshape(-1), np.array(values).reshape(len(tokens), -1))
        for device in self.engine.devices if channel.peer else (self.device,):
            there = device.channels.get(channel.name)
            for sm, view in enumerate(there.views if there is not None else ()):
                reader = self.launch.sms[device.place, sm]
                carried = [store for store in before if store.reader == reader.who]
                for part in parts:
                    land = partial(reader.see, view, carried, epoch, *part)
                    if device is self.device and not self.scheduler.late:
                        land()
                    else:
                        place = epoch % view.depth
                        store = Store(self.who, reader.who, view, place, epoch, land)
                        self.launch.stores.send(store)

    def append(
        self, row: RowPlan, state: State, own: OwnRow, epoch: int, index: Array, values: Array
    ) -> None:
        """Values of a row of a state, by head · size + i."""
        for sm, view in enumerate(state.views):
            land = partial(view.write, own, epoch, index.reshape(-1), values)
            if not self.scheduler.late:
                land()
                continue
            reader = self.launch.sms[self.device.place, sm]
            store = Store(self.who, reader.who, view, own.place, epoch, land)
            self.launch.stores.send(store)
            if state.name in row.releases:
                self.unreleased.append(store)

    def see(
        self,
        view: View,
        carried: list[Store],
        epoch: int,
        tokens: Array,
        index: Array,
        values: Array,
    ) -> None:
        """Packets that somebody has sent, and may acquire what they carry."""
        view.publish(self.scheduler, epoch, tokens, index, values)
        self.released += carried

    def acquire(self, row: RowPlan) -> None:
        """See what has been released to this SM, of the states that a row acquires."""
        for store in self.released:
            if store.memory.name in row.acquires:
                self.launch.stores.land(store)
        self.released = [store for store in self.released if not store.landed]

    def _parts(
        self, tokens: Array, index: Array, values: Array
    ) -> list[tuple[Array, Array, Array]]:
        """What is seen at once: if stores are late, of each token two parts, but records as they are."""
        if not self.scheduler.late:
            return [(tokens, index, values)]
        parts = []
        for i in range(len(tokens)):
            cut = self.scheduler.choose(len(index)) if len(index) > RECORD else 0
            for some in (slice(0, cut), slice(cut, None)):
                if len(index[some]):
                    parts.append((tokens[i : i + 1], index[some], values[i : i + 1, some]))
        return parts
