"""Executes engine modules: the roles of every SM of every GPU over real rings, channels and epochs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tileir.dialect.attributes import get, walk
from tileir.reference.arithmetic import Array, keep, round_bf16
from tileir.reference.consumers import Consumers
from tileir.reference.loaders import Loaders
from tileir.reference.memory import Device, read_device
from tileir.reference.protocol import CopyEngine, Link, LocalChannel, Mbarrier, Ring
from tileir.reference.scheduler import Scheduler
from tileir.reference.steps import Plan, Request
from tileir.stages import Heard

Recipes = Sequence[dict[str, Any]]


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
        self.trace: Callable[[int, str, int], None] | None = None
        self.heard: Heard | None = None
        self.devices = [
            read_device(op, place, recipe, weights, rounding=rounding)
            for place, (op, recipe) in enumerate(zip(found, recipes, strict=True))
        ]
        paged = [s for d in self.devices for s in d.states.values() if s.page]
        self.pages = len(paged[0].holder) // self.page if paged else 0
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
                channel.epochs[:] = 0
            for state in device.states.values():
                state.written[:] = 0
                state.holder[:] = -1

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
        self.epoch = launch.last_epoch


class Launch:
    """One launch: all roles of all SMs, from the first step to the last."""

    def __init__(self, engine: EngineExecutor, plan: Plan, logits: list[Array | None]) -> None:
        self.engine, self.plan, self.trace = engine, plan, engine.trace
        self.logits = logits
        self.step_logits = np.zeros((engine.tokens, engine.vocabulary), np.float32)
        self.first_epoch = self.last_epoch = engine.epoch + 1
        self.scheduler = Scheduler(engine.seed, engine.strategy)
        self.link = Link(self.scheduler)
        self.released = [np.full(d.sms, engine.epoch) for d in engine.devices]
        self.running = sum(d.sms for d in engine.devices)
        self._counted = -1
        for device in engine.devices:
            for sm in range(device.sms):
                worker = Sm(self, device, sm)
                for role in ("consumer", "tape", "state", "copies"):
                    name = f"GPU {device.index} " if len(engine.devices) > 1 else ""
                    self.scheduler.add(f"{name}SM {sm} {role}", worker.role(role))
        self.scheduler.add("links", self.link.role())

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
            self.link.close()


class Sm:
    """One SM: its rings, barriers, local channels, and the roles that share them."""

    def __init__(self, launch: Launch, device: Device, sm: int) -> None:
        self.launch, self.engine, self.device, self.sm = launch, launch.engine, device, sm
        self.scheduler = launch.scheduler
        self.who = f"GPU {device.index} SM {sm}" if len(launch.engine.devices) > 1 else f"SM {sm}"
        self.rings = {
            name: Ring(f"{self.who} {name} ring", get(op, "slots"), get(op, "window"), device.warps)
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

    def publish(self, channel: Any, epoch: int, tokens: Array, index: Array, values: Array) -> None:
        """Into a channel's copy here, and over links into those of other GPUs; [tokens, *index.shape]."""
        if self.scheduler.late:
            # Stores to different addresses become visible in any order: token by token, some time later.
            for i in range(len(tokens)):
                one = epoch, tokens[i : i + 1], index, np.array(values[i : i + 1])
                self.launch.link.send(channel, *one)
        else:
            channel.publish(self.scheduler, epoch, tokens, index, values)
        if channel.peer:
            for device in self.engine.devices:
                other = device.channels.get(channel.name)
                if other is not None and device is not self.device:
                    self.launch.link.send(other, epoch, tokens, index, np.array(values))
