"""Contracts: x against weights of the tape, experts or rows of a state, and what is made of the sums."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from tileir.dialect.attributes import get, name_of
from tileir.reference import tasks
from tileir.reference.arithmetic import Array, rms_scale, rows_of, run_segment
from tileir.reference.memory import RowPlan
from tileir.reference.scheduler import Role
from tileir.reference.sinks import PairSink, RowSink, ScoreSink
from tileir.scheduling.assign import MAX_TILES_PER_SM, rows_a_slot
from tileir.scheduling.rings import BLOCK_BYTES

if TYPE_CHECKING:
    from tileir.reference.consumers import Consumers


def run(consumers: "Consumers", row: RowPlan) -> Role:
    """This SM's part of a contract, by what it multiplies by."""
    yield from _SOURCES[get(row.ops["multiply"], "source")](consumers, row)


def _of_tape(consumers: "Consumers", row: RowPlan) -> Role:
    receive, multiply, emit = (row.ops[n] for n in ("receive", "multiply", "emit"))
    x, scale = yield from _receive(consumers, row)
    tiles = consumers.mine(row, get(multiply, "tiles"))
    k, groups, space = get(multiply, "k"), get(receive, "groups"), get(emit, "space")
    count, numbers = -(-k // 32), row.tile_base + tiles
    per_slot = consumers.sm.slot_bytes["tape"] // BLOCK_BYTES
    slots = yield from consumers.take("tape", -(-len(tiles) * count // per_slot))
    stride, group = get(receive, "stride"), numbers * groups // space
    first = int(group[0]) if len(tiles) else 0
    behind = int(group[-1]) + 1 if len(tiles) else 0

    def part(p: int) -> Array:
        held = [_blocks_of(x[:, g * stride + p * k :][:, :k]) for g in range(first, behind)]
        return _sums(slots, held, np.repeat(group - first, count), len(consumers.live))

    sums = part(0)
    if get(multiply, "k_parts", 1) > 1:
        sums = np.concatenate([sums[..., :8], part(1)[..., 8:]], -1)
    if scale is not None:
        sums = sums * scale[..., None]
    sink = RowSink(consumers, row, row.operand(emit.operands[0]))
    for segment, at in row.segments:
        some = (numbers >= at) & (numbers < at + get(segment, "tiles"))
        if some.any():
            inner = numbers[some] - at
            yield from _await_reads(consumers, row, segment, inner)
            values = sums[:, some]
            run_segment(segment, inner, values[..., :8], values[..., 8:], sink)
    if row.offers:
        sink.publish_best()


def _await_reads(consumers: "Consumers", row: RowPlan, segment: Any, tiles: Array) -> Role:
    """Until what a segment's tiles add is there."""
    for op in segment.regions[0].blocks[0]:
        if name_of(op) == "tile.residual":
            for base in get(op, "bases"):
                yield from consumers.await_(
                    row.operand(list(op.operands)[-1]), rows_of(segment, tiles) + base
                )


def _of_experts(consumers: "Consumers", row: RowPlan) -> Role:
    """This SM's (expert, tile) pairs, as many at a time as partial sums have room for."""
    multiply, emit = row.ops["multiply"], row.ops["emit"]
    routing = yield from consumers.routing(row, multiply.operands[0])
    found = tasks.pairs(row, routing, multiply, consumers.sm.sm, consumers.device.sms)
    count = -(-get(multiply, "k") // 32)
    per_slot = consumers.sm.slot_bytes["state"] // BLOCK_BYTES
    stride, slots = get(row.ops["receive"], "stride"), get(row.ops["receive"], "groups")
    out = row.operand(emit.operands[0])
    width, blocks, taken = out.values // slots, list[Array](), 0
    for at in range(0, len(found), MAX_TILES_PER_SM):
        batch, chose = found[at : at + MAX_TILES_PER_SM], {}
        for expert in dict(batch):
            tokens, chosen = np.nonzero(routing[:, :, 0] == expert)
            x, scale = yield from _chosen_x(consumers, row, tokens, chosen * stride)
            chose[expert] = tokens, chosen, x, scale
        needed = -(-(at + len(batch)) * count // per_slot)
        held = yield from consumers.take("state", needed - taken)
        taken, blocks = needed, [*blocks, *(block for (part,) in held for block in part)]
        for expert, tile in batch:
            tokens, chosen, x, scale = chose[expert]
            mine, blocks = [(np.stack(blocks[:count]),)], blocks[count:]
            sums = _sums(mine, [_blocks_of(x)], np.zeros(count, int), len(x))
            if scale is not None:
                sums = sums * scale[..., None]
            bits = routing[tokens, chosen, 1].astype(np.int32).view(np.float32)
            sink = PairSink(consumers, row, out, tokens, chosen * width, bits)
            segment, first = next(
                (s, f) for s, f in row.segments if f <= tile < f + get(s, "tiles")
            )
            run_segment(segment, np.array([tile - first]), sums[..., :8], sums[..., 8:], sink)


def _chosen_x(consumers: "Consumers", row: RowPlan, tokens: Array, begins: Array) -> Any:
    """x of (token, slot) pairs, each from its own place (a generator that returns it)."""
    op = row.ops["receive"]
    channel, k, offset = row.operand(op.operands[0]), get(op, "k"), get(op, "offset")
    rows = []
    for token, begin in zip(tokens, begins, strict=True):
        index, one = offset + begin + np.arange(k), np.array([token])
        yield from consumers.await_(channel, index, one)
        rows.append(consumers.values(channel, index, one))
    return _x(consumers, row, np.concatenate(rows))


def _of_rows(consumers: "Consumers", row: RowPlan) -> Role:
    """Scores of old rows of a state, and of the step's own."""
    multiply, emit, fill = row.ops["multiply"], row.ops["emit"], row.ops["fill_rows"]
    receive, out = row.ops["receive"], row.operand(emit.operands[0])
    x, _ = yield from _receive(consumers, row)
    k, heads, stride = get(multiply, "k"), get(receive, "groups"), get(receive, "stride")
    own_channel, own_at = row.operand(multiply.operands[0]), get(multiply, "own")
    per_slot = rows_a_slot(consumers.sm.slot_bytes["state"], 1, get(fill, "head_size"))
    ((segment, _),) = row.segments
    for op in segment.regions[0].blocks[0]:
        if name_of(op) == "tile.relu_sum":
            index = get(op, "offset") + np.arange(heads)
            yield from consumers.await_(row.operand(op.operands[2]), index)
    for split in consumers.mine(row, get(fill, "tasks")) + row.tile_base:
        for sequence in tasks.sequences(consumers.record):
            tokens = np.array(consumers.record.rows_of(sequence))
            queries = np.stack([x[tokens, h * stride : h * stride + k] for h in range(heads)])
            old = tasks.old_rows(consumers.record, sequence, int(split), fill)
            held = yield from consumers.take("state", -(-len(old) // per_slot))
            runs = [(int(old[0]), np.concatenate([p for (p,) in held]))] if len(old) else []
            if split == 0:
                index = own_at + np.arange(k)
                yield from consumers.await_(own_channel, index, tokens)
                own = consumers.values(own_channel, index, tokens)
                runs.append((consumers.record.bases[sequence], own))
            for first, rows in runs:
                sink = ScoreSink(consumers, row, out, tokens, first, first + len(rows))
                tiles = np.arange(first // 16, (first + len(rows) - 1) // 16 + 1)
                padded = np.zeros((len(tiles) * 16, k), np.float32)
                padded[first - tiles[0] * 16 :][: len(rows)] = rows
                scores = queries @ padded.T
                scores = scores.reshape(heads, len(tokens), len(tiles), 2, 8)
                run_segment(segment, tiles, scores[..., 0, :], scores[..., 1, :], sink)


_SOURCES: dict[str, Callable[["Consumers", RowPlan], Role]] = {
    "tape": _of_tape,
    "experts": _of_experts,
    "rows": _of_rows,
}


# ---- what sources share


def _receive(consumers: "Consumers", row: RowPlan) -> Any:
    """All of x that groups reach, after the prologue (a generator that returns it)."""
    op = row.ops["receive"]
    reach = get(op, "k") + (get(op, "groups") - 1) * get(op, "stride")
    for inner in op.regions[0].blocks[0]:
        if name_of(inner) == "tile.rms_norm":
            reach = max(reach, len(row.operand(inner.operands[1])))
    channel, index = row.operand(op.operands[0]), get(op, "offset") + np.arange(reach)
    yield from consumers.await_(channel, index)
    return _x(consumers, row, consumers.values(channel, index))


def _x(consumers: "Consumers", row: RowPlan, x: Array) -> tuple[Array, Array | None]:
    """x after the prologue, and the accumulators' factor."""
    for op in row.ops["receive"].regions[0].blocks[0]:
        if name_of(op) == "tile.rms_norm":
            weight = row.operand(op.operands[1])
            offset = np.float32(1 if get(op, "unit_offset") else 0)
            x = x[:, : len(weight)]
            return consumers.round(x * (weight + offset)), rms_scale(x, get(op, "eps"))
    return x, None


def _blocks_of(x: Array) -> Array:
    """x [T, k] as what blocks of 32 meet: [blocks, 32, T]."""
    blocks = -(-x.shape[1] // 32)
    padded = np.zeros((blocks * 32, len(x)), np.float32)
    padded[: x.shape[1]] = x.T
    return padded.reshape(blocks, 32, len(x))


def _sums(slots: list[Any], held: list[Array], group: Array, tokens: int) -> Array:
    """Weight blocks, slot by slot, against what `held` has for each block's group: [T, tiles, 16]."""
    parts, at = [np.zeros((0, 16, tokens), np.float32)], 0
    count = len(held[0]) if held else 1
    every = np.stack(held) if held else np.zeros((1, 1, 32, tokens), np.float32)
    for (blocks,) in slots:
        n = np.arange(at, at + len(blocks))
        parts.append(np.matmul(blocks, every[group[n], n % count]))
        at += len(blocks)
    return np.concatenate(parts).reshape(-1, count, 16, tokens).sum(1).transpose(2, 0, 1)
