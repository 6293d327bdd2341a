"""Targets: what a device can do, as frozen data. Passes ask for capabilities, never for names."""

from dataclasses import dataclass, replace
from difflib import get_close_matches

from tileir.errors import TileirError

# setmaxnreg acts on warpgroups (PTX ISA 9.7.19.5), so the two loader warps and the watchdog come with an idle one.
LOADER_WARPS = 4


@dataclass(frozen=True)
class Target:
    """One kind of device.

    sms: streaming multiprocessors, one resident block each.
    consumer_warps: warps that multiply, of 32 threads each.
    registers, loader_registers: of a consumer's and of a loader's thread, once roles have parted (setmaxnreg).
    queries: that share a key row in attention, which one product of a tensor core holds.
    smem_bytes: dynamic shared memory a block may have.
    slot_bytes: bytes of one ring slot, a multiple of 1024.
    window: copies of a ring on their way at once; their bytes, over a copy's latency, bound the bandwidth.
    alone_bytes: old rows of a kv head, keys and values, that one split takes alone at most: more are worth a combine.
    stream_tbps: measured streaming read, TB/s; hop_us: one packet exchange, µs. Both feed the cost model.
    chip, ptx: what LLVM and ptxas are told; empty chip means that no PTX is made.
    """

    name: str
    sms: int
    consumer_warps: int
    registers: int
    loader_registers: int
    queries: int
    smem_bytes: int
    slot_bytes: int
    window: int
    alone_bytes: int
    stream_tbps: float
    hop_us: float
    chip: str = ""
    ptx: int = 0

    @property
    def emits_ptx(self) -> bool:
        """Whether kernels can be generated for it."""
        return bool(self.chip)

    @property
    def threads(self) -> int:
        """Threads of a block: the consumer warps and a warpgroup of two loaders, a watchdog and an idle warp."""
        return (self.consumer_warps + LOADER_WARPS) * 32

    @property
    def entry_registers(self) -> int:
        """Registers a thread that all roles start with: an even share of the SM's 65536, in units of 8."""
        return 65536 // self.threads // 8 * 8


_H100 = Target(
    name="h100",
    sms=132,
    consumer_warps=16,
    registers=104,
    loader_registers=64,
    queries=8,
    smem_bytes=232448,
    slot_bytes=16384,
    window=3,
    alone_bytes=32768,
    stream_tbps=3.12,
    hop_us=1.0,
    chip="sm_90a",
    ptx=87,
)

TARGETS = {
    target.name: target
    for target in (
        _H100,
        replace(_H100, name="h200", window=3, stream_tbps=4.65),
        # A small device for tests and for machines without a GPU; nothing is emitted for it.
        replace(
            _H100,
            name="virtual",
            sms=4,
            consumer_warps=4,
            slot_bytes=65536,
            smem_bytes=1 << 21,
            alone_bytes=1024,
            chip="",
            ptx=0,
        ),
    )
}


def find_target(name: str) -> Target:
    """The target of that name. Raises TileirError, with near matches, if there is none."""
    if name in TARGETS:
        return TARGETS[name]
    near = get_close_matches(name, TARGETS, n=1)
    guess = f"did you mean {near[0]!r}? " if near else ""
    raise TileirError(f"unknown target {name!r}", hint=f"{guess}targets: {', '.join(TARGETS)}")
