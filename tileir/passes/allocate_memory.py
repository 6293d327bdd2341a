"""allocate-memory: a place for everything, in shared and in global memory."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from tileir.dialect.attributes import element_of, get, name_of, put, shape_of, walk
from tileir.dialect.tile import TILE_ROWS, padded
from tileir.errors import TileirError
from tileir.passes.base import Pass
from tileir.scheduling.pipeline import choose_rings
from tileir.target import Target, find_target

SCRATCH_BYTES = 2048
_BYTES = {"bf16": 2, "f32": 4, "i32": 4}


@dataclass(frozen=True)
class AllocateMemoryPass(Pass):
    """Lay out shared memory, exchange, constants and states.

    Before: engine level. After: channels, buffers and states have `offset` (bytes, 256-aligned), the rings `slots`,
    `smem_offset` and `barrier_offset`, the device `x_offset`, `part_offset`, `scratch_offset`, `smem_bytes`,
    `exchange_bytes`, `constant_bytes` and `state_bytes`. The tape ring is as deep as the rest of shared memory allows.
    """

    name: ClassVar[str] = "allocate-memory"
    before: ClassVar[str] = "engine"
    after: ClassVar[str] = "engine"

    target: str = "h100"

    def run(self, module: Any) -> None:
        """Put the attributes. Raises TileirError, with needed and available bytes, if it does not fit."""
        target = find_target(self.target)
        for device in walk(module, "engine.device"):
            sizes = {
                "exchange_bytes": _place(walk(device, "engine.channel"), _channel_bytes),
                "constant_bytes": _place(walk(device, "engine.buffer"), _tensor_bytes),
                "state_bytes": _place(walk(device, "engine.state"), _tensor_bytes),
            }
            put(device, **sizes)
            _shared(device, target)


def _product(sizes: Iterable[int | None]) -> int:
    result = 1
    for size in sizes:
        assert size is not None
        result *= size
    return result


def _channel_bytes(op: Any) -> int:
    """Packets of 8 bytes, `depth` copies."""
    values = _product(shape_of(op.results[0]))
    packets = values // 2 if get(op, "payload") == "bf16x2" else values
    return packets * 8 * int(get(op, "depth"))


def _tensor_bytes(op: Any) -> int:
    return _product(shape_of(op.results[0])) * _BYTES[element_of(op.results[0])]


def _place(ops: Iterable[Any], size: Any) -> int:
    at = 0
    for op in ops:
        put(op, offset=at)
        at += _up(size(op), 256)
    return at


def _up(size: int, unit: int = 128) -> int:
    return -(-size // unit) * unit


def _shared(device: Any, target: Target) -> None:
    tokens, warps, sms = (get(device, n) for n in ("tokens", "consumer_warps", "sms"))
    x_bytes = part_bytes = 0
    for op in walk(device):
        match name_of(op):
            case "engine.receive":
                x_bytes = max(x_bytes, tokens * padded(get(op, "k")) * 2)
            case "engine.multiply":
                part_bytes = max(part_bytes, -(-get(op, "tiles") // sms) * warps * TILE_ROWS * 4)
            case "engine.attend":
                group, size = get(op, "heads") // get(op, "kv_heads"), get(op, "head_size")
                x_bytes = max(x_bytes, (group + 2) * size * 2)
                part_bytes = max(part_bytes, warps * group * (size + 2) * 4)
            case "tile.combine":
                part_bytes = max(part_bytes, warps * 32 * 12)
    x_bytes, part_bytes = _up(x_bytes), _up(part_bytes)
    barriers = 16 * 32
    fixed = x_bytes + part_bytes + SCRATCH_BYTES + barriers
    rings = choose_rings(target.smem_bytes - fixed, target.slot_bytes, target.window)
    if rings is None:
        raise TileirError(
            f"activations and partial sums need {fixed} of {target.smem_bytes} bytes of shared memory",
            hint=f"rings of {target.slot_bytes}-byte slots do not fit beside them on {target.name}",
        )
    ring_bytes = (rings.tape_slots + rings.state_slots) * target.slot_bytes
    barrier_at = ring_bytes + x_bytes + part_bytes + SCRATCH_BYTES
    at = 0
    for op in walk(device, "engine.ring"):
        tape = get(op, "sym_name") == "tape"
        slots = rings.tape_slots if tape else rings.state_slots
        window = rings.tape_window if tape else rings.state_window
        put(op, slots=slots, window=window, smem_offset=at, barrier_offset=barrier_at)
        at, barrier_at = at + slots * target.slot_bytes, barrier_at + 16 * slots
    put(
        device,
        x_offset=ring_bytes,
        part_offset=ring_bytes + x_bytes,
        scratch_offset=ring_bytes + x_bytes + part_bytes,
        smem_bytes=ring_bytes + fixed,
    )
