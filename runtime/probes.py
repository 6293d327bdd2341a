"""What a GPU can do, measured by the small kernels of probes.ptx, which the driver assembles.

A figure is a median over repeats. Every wait in a probe is bounded: a GPU on which one does not work gives an error.
"""

import ctypes
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from tileir.errors import DeviceError, TileirError
from tileir.runtime.driver import Device
from tileir.target import Target

PTX = Path(__file__).with_name("probes.ptx")
REPEATS = 11
SPREAD = 0.25  # of the median, between the second least and the second largest
LIMIT_CLOCKS = 4_000_000_000  # about 2 s at 1.98 GHz
PIECE_BYTES, RING_BYTES = 16384, 12 * 16384
STREAM_BYTES = 4_000_000_000 // PIECE_BYTES * PIECE_BYTES  # so much that caches do not matter
# 32-bit words of each block in an exchange: of few and of many, between which prices are a line.
FEW, MANY = 8, 64
EXCHANGES = {
    "packet": ("exchange_packets", 1),
    "copied": ("exchange_packets", 2),
    "block": ("exchange_blocks", 1),
}
PACKET_BYTES, FLAG_BYTES = 8, 16
ROUNDS = 1000
LAUNCHES = 50
SMEM = "MAX_SHARED_MEMORY_PER_BLOCK_OPTIN"
POINTER, WORD, LONG = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint64


def measure(base: Target, index: int = 0) -> Target:
    """`base` with what GPU `index` has and is measured at: name, SMs, shared memory, bandwidth and times.

    Raises DeviceError for a GPU that is not there, no Hopper GPU, too full, or on which a probe waits in vain;
    TileirError for a base without kernels, and for figures that differ wildly between repeats.
    """
    if not base.emits_ptx:
        raise TileirError(
            f"base {base.name!r} has no kernels to measure for", hint="name a GPU's target: h100"
        )
    with closing(Device(index)) as device:
        if device.attribute("COMPUTE_CAPABILITY_MAJOR") != 9:
            raise DeviceError(f"{device.name} is no Hopper GPU", hint="probes run on H100 and H200")
        sms, smem = device.attribute("MULTIPROCESSOR_COUNT"), device.attribute(SMEM)
        probes = _Probes(device, sms, smem, base.threads)
        return replace(
            base,
            name=_label(device.name),
            sms=sms,
            smem_bytes=smem,
            stream_tbps=_figure("stream_tbps", "TB/s", probes.stream_tbps),
            **_prices(probes),
            mbarrier_us=_figure("mbarrier_us", "µs", probes.mbarrier_us),
            launch_us=_figure("launch_us", "µs", probes.launch_us),
        )


def _prices(probes: "_Probes") -> dict[str, Any]:
    """What each kind of exchange costs: to begin, and for each word that an SM reads. hop_us: packets of few words."""
    found: dict[str, Any] = {}
    for kind in EXCHANGES:
        few, many = (
            _figure(f"{kind}_us", "µs", partial(probes.exchange_us, kind, n)) for n in (FEW, MANY)
        )
        if kind == "packet":
            found["hop_us"] = few
        # A line through noise may fall.
        word = max((many - few) / (probes.sms * (MANY - FEW)), 1e-9)
        begin = max(few - word * probes.sms * FEW, 1e-3)
        found |= {f"{kind}_us": float(f"{begin:.4g}"), f"{kind}_word_us": float(f"{word:.4g}")}
    return found


def _label(name: str) -> str:
    """A GPU's name as a target's: "nvidia-h100-80gb-hbm3"."""
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


def _figure(name: str, unit: str, once: Callable[[], float]) -> float:
    """The median of repeats, to four digits. Raises TileirError if they differ wildly."""
    once()  # clocks come up, code is loaded
    found = sorted(once() for _ in range(REPEATS))
    middle = median(found)
    if found[-2] - found[1] > SPREAD * middle:
        raise TileirError(
            f"{name} differs between repeats: {found[1]:.3g} … {found[-2]:.3g} {unit}",
            hint="end other work on the GPU, let it cool, and measure again",
        )
    return float(f"{middle:.4g}")


@dataclass
class _Probes:
    """Each method runs its probe once; needs nothing else on the GPU."""

    device: Device
    sms: int
    smem: int
    threads: int

    def __post_init__(self) -> None:
        d = self.device
        free = d.free_bytes()
        if free < STREAM_BYTES:
            raise DeviceError(
                f"{free} bytes are free on {d.name}, the streaming probe reads {STREAM_BYTES}",
                hint="end other processes on the GPU",
            )
        module = d.module(PTX.read_text(encoding="utf-8"))
        self._stream = d.function(module, "stream_read", RING_BYTES)
        self._exchange = {name: d.function(module, name) for name, _ in EXCHANGES.values()}
        self._mbarrier = d.function(module, "mbarrier")
        self._nothing = d.function(module, "nothing", self.smem)
        self._data = d.allocate(STREAM_BYTES, "the streaming probe")
        # Two places of two copies; the flags of blocks take no more than what packets have beside their words.
        self._memory_bytes = 4 * self.sms * max(MANY * PACKET_BYTES, FLAG_BYTES)
        self._memory = d.allocate(self._memory_bytes, "the probes of exchanges")
        self._status = d.allocate(4, "the probes' status")

    def stream_tbps(self) -> float:
        """All SMs read STREAM_BYTES, TB/s."""
        pieces = STREAM_BYTES // PIECE_BYTES
        arguments = [(self._data, POINTER), (pieces, LONG)]
        return (
            STREAM_BYTES / self._timed("stream_read", self._stream, 32, RING_BYTES, arguments) / 1e9
        )

    def exchange_us(self, kind: str, words: int) -> float:
        """An exchange of so many words of each of all blocks, of a kind of EXCHANGES, µs."""
        name, copies = EXCHANGES[kind]
        self.device.fill(self._memory, self._memory_bytes)
        arguments: list[tuple[int, Any]] = [(self._memory, POINTER), (words, WORD)]
        if name == "exchange_packets":
            arguments.append((copies, WORD))
        arguments.append((ROUNDS, WORD))
        return self._timed(name, self._exchange[name], 512, 0, arguments) * 1e3 / ROUNDS

    def mbarrier_us(self) -> float:
        """A hand-over from warp to warp, µs; a round is two."""
        return self._timed("mbarrier", self._mbarrier, 64, 0, [(ROUNDS, WORD)]) * 1e3 / (2 * ROUNDS)

    def launch_us(self) -> float:
        """A launch among many, µs. The GPU is kept busy first, so that the host is ahead of it."""
        d = self.device
        d.fill(self._data, STREAM_BYTES)
        arguments = [(self._status, POINTER)]
        begin = d.event()
        for _ in range(LAUNCHES):
            d.launch(
                self._nothing, (self.sms,), self.threads, self.smem, arguments, cooperative=True
            )
        return self._since(begin) * 1e3 / LAUNCHES

    def _timed(
        self, name: str, function: Any, threads: int, smem: int, arguments: list[tuple[int, Any]]
    ) -> float:
        """Milliseconds of one launch of a probe. Raises DeviceError if it waited in vain."""
        d = self.device
        d.fill(self._status, 4)
        given = [*arguments, (self._status, POINTER), (LIMIT_CLOCKS, LONG)]
        begin = d.event()
        d.launch(function, (self.sms,), threads, smem, given, cooperative=True)
        took = self._since(begin)
        if d.download(self._status, (1,), np.uint32)[0]:
            raise DeviceError(
                f"probe {name} waited in vain on {d.name}",
                hint="end other processes on the GPU, and measure again",
            )
        return took

    def _since(self, begin: Any) -> float:
        end = self.device.event()
        self.device.synchronize()
        took = self.device.milliseconds(begin, end)
        self.device.reach(begin)
        self.device.reach(end)
        return took
