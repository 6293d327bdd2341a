"""The engine dialect: one persistent kernel a device.

Roles, rings, channels, a phase table of rows, and stage bodies outlined once. docs/ir.md has the
protocol: assignment of tasks to SMs, epochs, and the order in which states are written and streamed.
"""

from collections.abc import Sequence
from typing import Any

from tileir.dialect.attributes import (
    all_positive,
    fail,
    first_failure,
    get,
    name_of,
    place_of,
    shape_of,
    walk,
)
from tileir.dialect.tile import select_kind
from tileir.dialect.tile_attend import attend_shapes
from tileir.mlir import ext, ir

Tensor = ir.RankedTensorType
Operand = ext.Operand
Result = ext.Result
OPEN = [ir.NoTerminatorTrait]

PAYLOADS = ("bf16x2", "f32", "record")
PROTOCOLS = ("packet", "block")
LEVELS = ("warp", "sm", "cluster", "gpu", "peer")
ROLES = ("tape", "state", "consumer")
STREAM_COUNTS = ("splits", "groups", "kv_heads", "head_size")


class Engine(ext.Dialect, name="engine"):
    """Persistent kernels: who runs what, and how they talk."""


class DeviceOp(Engine.Operation, name="device", traits=OPEN):
    """One GPU's kernel: declarations, bodies, then the phase table, in its region.

    index: of `devices` GPUs. tokens, sequences: most a step; page: rows of a KV page, 0 = none; context: positions a
    sequence may have; smem_bytes, exchange_bytes, constant_bytes,
    state_bytes: what allocate-memory laid out.
    """

    index: ir.IntegerAttr
    devices: ir.IntegerAttr
    sms: ir.IntegerAttr
    consumer_warps: ir.IntegerAttr
    tokens: ir.IntegerAttr
    sequences: ir.IntegerAttr
    page: ir.IntegerAttr
    context: ir.IntegerAttr
    vocabulary: ir.IntegerAttr
    body: ext.Region

    @staticmethod
    def verify_region_invariants(op: Any) -> bool:
        """Sizes are positive; every row names a body and declarations of its arguments' types."""
        sizes = ("devices", "sms", "consumer_warps", "tokens", "sequences", "context", "vocabulary")
        if not all_positive(op, *sizes):
            return False
        block = op.operation.regions[0].blocks[0]
        bodies = {get(o, "sym_name"): o for o in block if name_of(o) == "engine.body"}
        types = {get(o, "sym_name"): o.operation.results[0].type for o in declarations(op)}
        for row in (o for o in block if name_of(o) == "engine.row"):
            body = bodies.get(get(row, "body"))
            if body is None:
                return fail(row, f"no body {get(row, 'body')!r}")
            names = get(row, "names")
            missing = [n for n in names if n not in types]
            if missing:
                return fail(row, f"nothing is declared as {missing[0]!r}")
            arguments = body.operation.regions[0].blocks[0].arguments
            if [types[n] for n in names] != [a.type for a in arguments]:
                return fail(row, f"operands are not the arguments of body {get(row, 'body')!r}")
        return True


def declarations(device: Any) -> list[Any]:
    """The channels, buffers and states of an engine.device, in order."""
    kinds = ("engine.channel", "engine.buffer", "engine.state")
    return [o for o in device.operation.regions[0].blocks[0] if name_of(o) in kinds]


class RingOp(Engine.Operation, name="ring"):
    """slots × slot_bytes of shared memory at smem_offset; at most `window` slots are outstanding.

    And at most `fed_window` while no more than a quarter of the slots are free.
    """

    sym_name: ir.StringAttr
    slots: ir.IntegerAttr
    slot_bytes: ir.IntegerAttr
    window: ir.IntegerAttr
    fed_window: ir.IntegerAttr

    @staticmethod
    def verify_region_invariants(op: Any) -> bool:
        """At least two slots of whole blocks, and windows inside the ring."""
        slots, size, window, fed = (
            get(op, n) for n in ("slots", "slot_bytes", "window", "fed_window")
        )
        return first_failure(
            op,
            [
                (slots >= 2, "a ring has at least 2 slots"),
                (size > 0 and size % 1024 == 0, "slot_bytes is a multiple of 1024"),
                (1 <= window <= slots, f"window of {window} outside 1 … {slots}"),
                (fed >= 1, f"fed window of {fed}"),
            ],
        )


class ChannelOp(Engine.Operation, name="channel"):
    """Values that cross SMs, [T, …]; `depth` copies by epoch, at byte `offset` of the exchange memory.

    All of them are there `replicas` times, one behind the other: writers write each, a reader reads that of its SM's
    number mod the launch's `replicas`, so that fewer SMs ask for one line at once.
    """

    sym_name: ir.StringAttr
    payload: ir.StringAttr
    protocol: ir.StringAttr
    level: ir.StringAttr
    depth: ir.IntegerAttr
    replicas: ir.IntegerAttr
    result: Result[Tensor]

    @staticmethod
    def verify_region_invariants(op: Any) -> bool:
        """Known payload, protocol and level."""
        payload, protocol, level = (get(op, n) for n in ("payload", "protocol", "level"))
        return first_failure(
            op,
            [
                (payload in PAYLOADS, f"payload {payload!r} is none of {PAYLOADS}"),
                (protocol in PROTOCOLS, f"protocol {protocol!r} is none of {PROTOCOLS}"),
                (level in LEVELS, f"level {level!r} is none of {LEVELS}"),
                (get(op, "depth") >= 1, "depth is at least 1"),
                (get(op, "replicas") in (1, 2), "replicas is 1 or 2"),
                (
                    get(op, "replicas") == 1 or (protocol, level) == ("packet", "gpu"),
                    'only packets of level "gpu" have replicas',
                ),
                (place_of(op.operation.results[0]) == "channel", "result is no channel"),
            ],
        )


class BufferOp(Engine.Operation, name="buffer"):
    """A packed constant at byte `offset` of the constant memory; attributes as tile.buffer's."""

    sym_name: ir.StringAttr
    kind: ir.StringAttr
    result: Result[Tensor]


class StateOp(Engine.Operation, name="state"):
    """A mutable state at byte `offset` of the state memory; attributes as tile.state's."""

    sym_name: ir.StringAttr
    result: Result[Tensor]


class BodyOp(Engine.Operation, name="body", traits=OPEN):
    """What the roles do in a stage. The region's arguments stand for a row's operands."""

    sym_name: ir.StringAttr
    kind: ir.StringAttr
    body: ext.Region

    @staticmethod
    def verify_region_invariants(op: Any) -> bool:
        """One role of a kind, one of them the consumers; groups of x do not outnumber the tape's tiles."""
        tape = [get(o, "source") for o in walk(op, "engine.multiply")] == ["tape"]
        groups = max((get(o, "groups", 1) for o in walk(op, "engine.receive")), default=1)
        space = min((get(o, "space") for o in walk(op, "engine.emit")), default=groups)
        names = [get(o, "sym_name") for o in walk(op, "engine.role")]
        kinds = ("contract", "attend", "map", "select")
        return first_failure(
            op,
            [
                (get(op, "kind") in kinds, f"kind is none of {kinds}"),
                (len(set(names)) == len(names), "a role occurs twice"),
                (set(names) <= set(ROLES), f"roles {names} are none of {ROLES}"),
                ("consumer" in names, "no consumer role"),
                (not tape or groups <= space, f"{groups} groups in a space of {space} tiles"),
            ],
        )


class RoleOp(Engine.Operation, name="role", traits=OPEN):
    """The program of one warp role in this stage."""

    sym_name: ir.StringAttr
    body: ext.Region


class RowOp(Engine.Operation, name="row"):
    """One stage of the phase table.

    stage: its number in the tile function, the same on all GPUs. names: of declarations, one for each of the body's
    arguments. rotation: where the assignment of tasks starts. phase: stages that do not depend on each other may share
    one. tile_base: first task of the space that this row covers. weights: state-dict names, by the segments' index, and
    with attribute `views` what of them.
    """

    stage: ir.IntegerAttr
    names: Any
    body: ir.StringAttr
    phase: ir.IntegerAttr
    rotation: ir.IntegerAttr
    tile_base: ir.IntegerAttr
    weights: Any


class FillOp(Engine.Operation, name="fill"):
    """A loader's part of a contract: weight tiles, from the tape, or of the experts that routing `of` chose."""

    of: Operand[Tensor] | None
    ring: ir.StringAttr
    source: ir.StringAttr

    @staticmethod
    def verify_region_invariants(op: Any) -> bool:
        """Known source with its operand."""
        source, count = get(op, "source"), len(op.operation.operands)
        return first_failure(
            op,
            [
                (source in ("tape", "experts"), "source is tape or experts"),
                (count == (source == "experts"), "experts take their routing, the tape nothing"),
            ],
        )


class FillRowsOp(Engine.Operation, name="fill_rows"):
    """A loader's part: old rows of one state, or of k and v."""

    k: Operand[Tensor]
    v: Operand[Tensor] | None
    ring: ir.StringAttr

    @staticmethod
    def verify_region_invariants(op: Any) -> bool:
        """Counts are positive."""
        return all_positive(op, *STREAM_COUNTS)


class FillGatheredOp(Engine.Operation, name="fill_gathered"):
    """A loader's part: old rows that `indices` list, of one state, or of k and v."""

    k: Operand[Tensor]
    indices: Operand[Tensor]
    v: Operand[Tensor] | None
    ring: ir.StringAttr

    @staticmethod
    def verify_region_invariants(op: Any) -> bool:
        """Counts are positive."""
        return all_positive(op, *STREAM_COUNTS)


class ReceiveOp(Engine.Operation, name="receive"):
    """Consumers poll a channel into shared memory; the region is a contract's prologue."""

    channel: Operand[Tensor]
    k: ir.IntegerAttr
    prologue: ext.Region

    @staticmethod
    def verify_region_invariants(op: Any) -> bool:
        """Counts are positive."""
        return all_positive(op, "k", "groups")


class MultiplyOp(Engine.Operation, name="multiply"):
    """Consumers drain the ring: partial sums of `tiles` tiles of K `k`, one for each warp.

    source: "tape", "experts" (of: their routing) or "rows" of a state (of: the channel with the step's own). With
    k_parts = 2, half hi of each tile meets the k values behind those of half lo.
    """

    of: Operand[Tensor] | None
    k: ir.IntegerAttr
    tiles: ir.IntegerAttr
    ring: ir.StringAttr
    source: ir.StringAttr

    @staticmethod
    def verify_region_invariants(op: Any) -> bool:
        """One part of K, or two of the tape's weights."""
        parts = get(op, "k_parts", 1)
        known = parts == 1 or (parts == 2 and get(op, "source") == "tape")
        return first_failure(op, [(known, f"{parts} parts of K")])


class EmitOp(Engine.Operation, name="emit"):
    """Consumers add the warps' sums and run the segments' epilogues into the channel."""

    channel: Operand[Tensor]
    tiles: ir.IntegerAttr
    space: ir.IntegerAttr
    epilogue: ext.Region

    @staticmethod
    def verify_region_invariants(op: Any) -> bool:
        """The space is not empty."""
        return all_positive(op, "space")


class AttendOp(Engine.Operation, name="attend"):
    """Consumers' part of tile.attend: operands the partial channel, k and v; facts and region as there."""

    partial: Operand[Tensor]
    k: Operand[Tensor]
    v: Operand[Tensor] | None
    heads: ir.IntegerAttr
    kv_heads: ir.IntegerAttr
    groups: ir.IntegerAttr
    head_size: ir.IntegerAttr
    value_size: ir.IntegerAttr
    scale: ir.FloatAttr
    window: ir.IntegerAttr
    softcap: ir.FloatAttr
    splits: ir.IntegerAttr
    ring: ir.StringAttr
    gathers: ext.Region

    @staticmethod
    def verify_region_invariants(op: Any) -> bool:
        """As tile.attend."""
        partial, *states = op.operation.operands
        return attend_shapes(op, states, shape_of(partial)[1:])


class MapOp(Engine.Operation, name="map"):
    """Consumers' part of tile.map: the region computes a value of the channel."""

    channel: Operand[Tensor]
    rows: ir.IntegerAttr
    body: ext.Region

    @staticmethod
    def verify_region_invariants(op: Any) -> bool:
        """The space is not empty."""
        return all_positive(op, "space")


class SelectOp(Engine.Operation, name="select"):
    """Consumers' part of an argmax, on every SM: makes the step's "token" or "draft" (`makes`); the last one of a
    step also the step record and the mailbox.
    """

    ins: Sequence[Operand[Tensor]]
    kind: ir.StringAttr


class ChooseOp(Engine.Operation, name="choose"):
    """Consumers' part of a tile.select that makes a channel, from scores: kinds "route" and "top_k"."""

    scores: Operand[Tensor]
    out: Operand[Tensor]
    kind: ir.StringAttr

    @staticmethod
    def verify_region_invariants(op: Any) -> bool:
        """A known kind with its facts."""
        return select_kind(op)


class BarrierOp(Engine.Operation, name="barrier"):
    """All consumer warps of the SM meet."""
