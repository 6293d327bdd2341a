"""allocate-memory: a place for everything, in shared and in global memory."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

from tileir.dialect.attributes import element_of, get, located, name_of, put, shape_of, walk
from tileir.dialect.tile import TILE_ROWS, padded
from tileir.errors import ContractError, TileirError
from tileir.passes.base import Pass
from tileir.scheduling.assign import ATTEND_WARPS, MAX_TILES_PER_SM
from tileir.scheduling.pipeline import (
    MAX_TAPE_SLOTS,
    STATE_SLOTS,
    choose_rings,
    least_ring_bytes,
)
from tileir.target import Target, find_target

ALIGNMENT = 256  # of whatever lies in global memory
SCRATCH_BYTES = 2048
BARRIER_BYTES = 16  # of a slot: full and empty
PACKET_BYTES = 8
MARK_BYTES = 8 * 9  # of a row on an SM: what codegen's MARKS name
ELEMENT_BYTES = {"bf16": 2, "f32": 4, "i32": 4}


@dataclass(frozen=True)
class AllocateMemoryPass(Pass):
    """Lay out shared memory, exchange, constants and states.

    Before: engine level. After: channels, buffers and states have `offset` in their memory (bytes,
    multiples of 256), the rings `slots`, a `window` inside them, `smem_offset` and `barrier_offset` (full, then
    empty mbarriers of 8 bytes), the device `x_offset` (a stage's activations, bf16), `part_offset`
    (partial sums, f32), `scratch_offset`, and `smem_bytes`, `exchange_bytes`, `constant_bytes`,
    `state_bytes`. The tape ring is as deep as shared memory allows. With `trace` the device has `trace_bytes` too:
    its kernel notes when each SM does each row of one step.

        "engine.ring"() {sym_name = "tape", slots = 10, smem_offset = 0, barrier_offset = 230784, …}
        "engine.channel"() {sym_name = "qkv_0", offset = 2304, …}
    """

    name: ClassVar[str] = "allocate-memory"
    before: ClassVar[str] = "engine"
    after: ClassVar[str] = "engine"

    target: str = "h100"
    trace: bool = False

    def run(self, module: Any) -> None:
        """Put the attributes. Raises TileirError, with the bytes, if shared memory is too small; ContractError."""
        target = find_target(self.target)
        devices = list(walk(module, "engine.device"))
        shared = _place_peers(devices)
        for device in devices:
            own = [op for op in _channels(device) if get(op, "level") != "peer"]
            put(
                device,
                exchange_bytes=_place(own, _channel_bytes, shared),
                constant_bytes=_place(walk(device, "engine.buffer"), _tensor_bytes),
                state_bytes=_place(walk(device, "engine.state"), _tensor_bytes),
            )
            if self.trace:
                rows = len(list(walk(device, "engine.row"))) + 1
                put(device, trace_bytes=get(device, "sms") * rows * MARK_BYTES)
            _shared(device, target)


def _channels(device: Any, *, local: bool = False) -> list[Any]:
    """The channels in global memory, or those of level "sm" in shared memory."""
    return [o for o in walk(device, "engine.channel") if (get(o, "level") == "sm") == local]


def _up(size: int, unit: int) -> int:
    return -(-size // unit) * unit


# ---- global memory


def _place_peers(devices: list[Any]) -> int:
    """Channels that cross GPUs come first, at one place on all; returns the bytes of all."""
    places: dict[str, int] = {}
    end = 0
    for op in (o for device in devices for o in _channels(device) if get(o, "level") == "peer"):
        name = get(op, "sym_name")
        if name not in places:
            places[name], end = end, _place([op], _channel_bytes, end)
        put(op, offset=places[name])
    return end


def _place(ops: Iterable[Any], size: Callable[[Any], int], at: int = 0) -> int:
    """One after the other from `at` on; returns where they end."""
    for op in ops:
        put(op, offset=at)
        at += _up(size(op), ALIGNMENT)
    return at


def _values(op: Any) -> int:
    return prod(size or 1 for size in shape_of(op.operation.results[0]))


def _channel_bytes(op: Any) -> int:
    """`replicas` times `depth` copies of packets, each two bf16, one f32 or one word of a record."""
    packets = _values(op) // 2 if get(op, "payload") == "bf16x2" else _values(op)
    return packets * PACKET_BYTES * int(get(op, "depth") * get(op, "replicas"))


def _tensor_bytes(op: Any) -> int:
    return _values(op) * ELEMENT_BYTES[element_of(op.operation.results[0])]


# ---- shared memory


def _shared(device: Any, target: Target) -> None:
    """Rings, x, partial sums, scratch, barriers, in this order; all multiples of 128."""
    x_bytes, part_bytes = (_up(size, 128) for size in stage_bytes(device))
    local = _channels(device, local=True)
    local_bytes = _up(sum(local_channel_bytes(op) for op in local), 128)
    barriers = _up(BARRIER_BYTES * (MAX_TAPE_SLOTS + STATE_SLOTS), 128)
    fixed = x_bytes + part_bytes + SCRATCH_BYTES + barriers + local_bytes
    ops = {get(op, "sym_name"): op for op in walk(device, "engine.ring")}
    if "tape" not in ops:
        raise ContractError(
            f"{name_of(device)} has no ring 'tape'",
            location=located(device),
            hint="outline-stages puts it: run it first",
        )
    slot_bytes, most = (get(ops["tape"], name) for name in ("slot_bytes", "window"))
    free = target.smem_bytes - fixed
    rings = choose_rings(free, slot_bytes, most, state="state" in ops)
    if rings is None:
        least = least_ring_bytes(slot_bytes, state="state" in ops)
        raise TileirError(
            f"shared memory: {fixed + least} bytes needed, {target.smem_bytes} available",
            location=located(device) or f"target {target.name!r}",
            hint=f"activations take {x_bytes}, partial sums {part_bytes}, the least rings {least}:"
            " fewer tokens, narrower layers or fewer query heads for each kv head fit",
        )
    depth = {"tape": rings.tape_slots, "state": rings.state_slots}
    window = {"tape": rings.tape_window, "state": rings.state_window}
    x_offset = sum(depth[name] for name in ops) * slot_bytes
    part_offset = x_offset + x_bytes
    scratch_offset = part_offset + part_bytes
    at, barrier_at = 0, scratch_offset + SCRATCH_BYTES
    local_at = barrier_at + barriers
    for op in local:
        put(op, offset=local_at)
        local_at += local_channel_bytes(op)
    for name in sorted(ops, key=lambda n: n != "tape"):
        put(
            ops[name],
            slots=depth[name],
            window=window[name],
            smem_offset=at,
            barrier_offset=barrier_at,
        )
        at += depth[name] * slot_bytes
        barrier_at += depth[name] * BARRIER_BYTES
    put(
        device,
        x_offset=x_offset,
        part_offset=part_offset,
        scratch_offset=scratch_offset,
        smem_bytes=x_offset + fixed,
    )


def local_channel_bytes(op: Any) -> int:
    """A channel of level "sm": plain words, then a full and an empty mbarrier."""
    return _up(_values(op) * ELEMENT_BYTES[element_of(op.operation.results[0])], 16) + BARRIER_BYTES


def stage_bytes(device: Any) -> tuple[int, int]:
    """Bytes of activations and of partial sums: the most that any stage needs."""
    tokens, warps, sms = (get(device, n) for n in ("tokens", "consumer_warps", "sms"))
    x_bytes = part_bytes = 0
    for op in walk(device, *_NEEDS):
        x, part = _NEEDS[name_of(op)](op, warps, sms)
        x_bytes, part_bytes = max(x_bytes, tokens * x), max(part_bytes, tokens * part)
    return x_bytes, part_bytes


def _receive_bytes(op: Any, _warps: int, sms: int) -> tuple[int, int]:
    """Activations, bf16: of a contract with groups those that an SM's tiles belong to."""
    (multiply,) = walk(op.operation.parent, "engine.multiply")
    groups, reach = get(op, "groups"), padded(get(op, "k"))
    if get(multiply, "source") == "tape" and groups > 1:
        (emit,) = walk(op.operation.parent, "engine.emit")
        share, each = -(-get(multiply, "tiles") // sms), get(emit, "space") // groups
        return min(groups, -(-(share - 1) // each) + 1) * reach * 2, 0
    return (reach + (groups - 1) * get(op, "stride")) * 2, 0


def _multiply_bytes(op: Any, warps: int, sms: int) -> tuple[int, int]:
    """A tile's sums, 16 f32 a warp; of a state's rows one tile for every head at a time."""
    tiles = min(-(-get(op, "tiles") // sms), MAX_TILES_PER_SM)
    if get(op, "source") == "experts":
        tiles = MAX_TILES_PER_SM
    elif get(op, "source") == "rows":
        tiles = get(op, "heads", 1)
    return 0, tiles * warps * TILE_ROWS * 4


def _attend_bytes(op: Any, warps: int, _sms: int) -> tuple[int, int]:
    """Queries and own rows, rotated ones in f32 too; results of every warp, of latents one, shared out by heads."""
    queries = get(op, "heads") // get(op, "groups")
    size, value = get(op, "head_size"), get(op, "value_size")
    if len(op.operands) == 2:
        return (queries + 1) * size * 2, queries * (value + 2) * 4
    turned = 4 if next(walk(op, "tile.rotate"), None) else 0
    return (queries + 2) * size * (2 + turned), min(warps, ATTEND_WARPS) * queries * (value + 2) * 4


def _combine_bytes(_op: Any, warps: int, _sms: int) -> tuple[int, int]:
    """A thread's running (maximum, weight, sum)."""
    return 0, warps * 32 * 12


def _rotate_bytes(op: Any, _warps: int, _sms: int) -> tuple[int, int]:
    """A map's row, f32; attention counts its own."""
    map_ = op.operation.parent
    if name_of(map_) == "engine.attend":
        return 0, 0
    return 0, 4 * (shape_of(map_.operands[0])[1] or 1) // get(map_, "space")


def _choose_bytes(op: Any, _warps: int, _sms: int) -> tuple[int, int]:
    """All scores, f32."""
    shape = shape_of(op.operands[0])[1:]
    return prod(size or 1 for size in shape) * 4, 0


_NEEDS: dict[str, Callable[[Any, int, int], tuple[int, int]]] = {
    "engine.receive": _receive_bytes,
    "engine.multiply": _multiply_bytes,
    "engine.attend": _attend_bytes,
    "tile.combine": _combine_bytes,
    "tile.rotate": _rotate_bytes,
    "engine.choose": _choose_bytes,
}
