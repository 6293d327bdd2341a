"""Placements of a model on several GPUs, as plain data: what each kind of work is shared out by, and what it costs.

A stage's work is of one role. "heads": attention and what makes its queries, keys and values; "heads sum": the
projection behind it. "columns" and "columns sum": a gated unit and the projection behind it. "experts". "vocabulary":
the head. "index": an indexer, its keys and its choice. "all": what every GPU does for itself.
"""

from dataclasses import dataclass, field
from itertools import pairwise

from tileir.scheduling.cost import stream_us
from tileir.target import Target

# A hop over NVLink costs more than one within a GPU, µs; no measurement of ours yet.
PEER_US = 1.5
CROSSING = ("heads sum", "columns sum", "experts", "vocabulary", "index")
SUMS = ("heads sum", "columns sum")
SHARED = ("heads", "heads sum", "columns", "columns sum", "experts", "vocabulary")


@dataclass(frozen=True)
class Work:
    """A stage: its role, into how many equal units it can be shared out, the bytes that it streams, its exchanges."""

    role: str
    units: int
    size: float
    hops: int = 1


@dataclass(frozen=True)
class Share:
    """devices that run a stage; how = "all", "rows" or "sum"; parts: bounds in `units`."""

    devices: list[int]
    how: str = "all"
    units: int = 1
    parts: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Placement:
    """A candidate. shares: one a stage; prices: µs a step by role, of the busiest GPU."""

    name: str
    shares: list[Share]
    prices: dict[str, float]

    @property
    def us(self) -> float:
        """µs of a step."""
        return sum(self.prices.values())

    def __str__(self) -> str:
        parts = ", ".join(f"{role} {price:.1f}" for role, price in sorted(self.prices.items()))
        return f"{self.name}: {self.us:.1f} us a step ({parts})"


def even(units: int, devices: int) -> list[int]:
    """Bounds of nearly equal ranges; the first are the larger ones, the last may be empty."""
    quotient, rest = divmod(units, devices)
    bounds = [0]
    for device in range(devices):
        bounds.append(bounds[-1] + quotient + (device < rest))
    return bounds


def candidates(work: list[Work], devices: int, target: Target) -> list[Placement]:
    """All placements of the stages on so many GPUs, priced."""
    every = list(range(devices))
    if devices == 1:
        return [_priced("one GPU", work, [Share(every) for _ in work], target)]
    plans = {"tensor-parallel": {role: every for role in SHARED}}
    whole = {role: every for role in SHARED if not role.startswith("heads")}
    plans["replicated-attention"] = whole
    if any(w.role == "index" for w in work):
        apart = {role: every[1:] for role in ("heads", "heads sum")}
        plans["indexer-apart"] = whole | apart | {"index": [0]}
    return [
        _priced(name, work, [_share(w, plan, every) for w in work], target)
        for name, plan in plans.items()
    ]


def _share(work: Work, plan: dict[str, list[int]], every: list[int]) -> Share:
    """What a plan makes of a stage; what cannot be shared out is done by all."""
    devices = plan.get(work.role)
    if devices is None:
        return Share(every)
    if work.role == "index":
        return Share(devices)
    how = "sum" if work.role in SUMS else "rows"
    return Share(devices, how, work.units, even(work.units, len(devices)))


def _priced(name: str, work: list[Work], shares: list[Share], target: Target) -> Placement:
    prices: dict[str, float] = {}
    for w, share in zip(work, shares, strict=True):
        largest = 1.0
        if share.how != "all":
            largest = max(b - a for a, b in pairwise(share.parts)) / w.units
        price = stream_us(target, w.size * largest) + w.hops * target.hop_us
        if w.role in CROSSING and (
            share.how != "all" or len(share.devices) < len(shares[0].devices)
        ):
            price += PEER_US
        prices[w.role] = prices.get(w.role, 0.0) + price
    return Placement(name, shares, prices)
