"""Executes tile-level modules: stages whole, segments and ranges as they say."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tileir.dialect.attributes import get, name_of, static_shape, walk
from tileir.packing import rope_table, tensor
from tileir.reference.arithmetic import (
    Array,
    best_of,
    combine,
    keep,
    partial_softmax,
    rms_scale,
    round_bf16,
    run_segment,
    split_range,
)

STAGES = ("tile.contract", "tile.attend", "tile.map", "tile.select")


class TileExecutor:
    """Runs a step at a time; states live between steps.

    weights: arrays by state-dict name. rounding: bf16 where the engine rounds, else fp32 everywhere.
    """

    def __init__(self, module: Any, weights: Mapping[str, Any], *, rounding: bool = False) -> None:
        (function,) = walk(module, "func.func")
        self._weights, self._round = weights, round_bf16 if rounding else keep
        self._stages = list(walk(function, *STAGES))
        self._vocabulary = get(module, "tileir.vocabulary")
        self._values: dict[Any, Array] = {}
        self._matrices: dict[tuple[Any, int, int], Array] = {}
        for op in walk(function, "tile.buffer", "tile.state"):
            shape = static_shape(op.results[0])
            if name_of(op) == "tile.state":
                self._values[op.results[0]] = np.zeros(shape, np.float32)
            elif get(op, "kind") == "rope":
                facts = {"shape": shape, "inv_freq": get(op, "inv_freq"), "scale": get(op, "scale")}
                self._values[op.results[0]] = rope_table(facts)
            else:
                self._values[op.results[0]] = self._round(tensor(weights, get(op, "sym_name")))

    def step(self, tokens: Array, positions: Array) -> tuple[Array, Array]:
        """(next tokens [T], logits [T, vocabulary] f32) for tokens and positions [T]."""
        self._tokens, self.positions = np.asarray(tokens), np.asarray(positions)
        self._logits = np.zeros((len(tokens), self._vocabulary), np.float32)
        for number, op in enumerate(self._stages):
            rule = getattr(self, "_" + name_of(op).removeprefix("tile."))
            self._values[op.results[0]] = rule(op, number)
        return self._values[self._stages[-1].results[0]], self._logits

    # ---- archetypes

    def _map(self, op: Any, _number: int) -> Array:
        body = op.regions[0].blocks[0].operations[0]
        value = self._values[body.operands[0]]
        if name_of(body) == "tile.lookup":
            return self._round(value[self._tokens] * np.float32(get(body, "scale")))
        return self._round(combine(value).reshape(len(self._tokens), -1))

    def _attend(self, op: Any, _number: int) -> Array:
        qkv, k, v = (self._values[o] for o in op.operands)
        heads, kv, size, splits = (get(op, n) for n in ("heads", "kv_heads", "head_size", "splits"))
        q_at, k_at, v_at = get(op, "offsets")
        group = heads // kv
        out = np.empty((len(qkv), heads, splits, size + 2), np.float32)
        for t, position in enumerate(self.positions):
            queries = qkv[t, q_at : q_at + heads * size].reshape(kv, group, size)
            for h in range(kv):
                own = [qkv[t, a + h * size : a + (h + 1) * size][None] for a in (k_at, v_at)]
                for s in range(splits):
                    first, last = split_range(int(position), s, op)
                    rows = [state[h, first:last] for state in (k, v)]
                    if s == 0:
                        rows = [np.concatenate(pair) for pair in zip(rows, own, strict=True)]
                    part = partial_softmax(queries[h], rows[0], rows[1], op)
                    out[t, h * group : (h + 1) * group, s] = part
        return out

    def _select(self, op: Any, _number: int) -> Array:
        tokens = []
        for t in range(len(self._tokens)):
            records = [r for v in op.operands for r in self._values[v][t].reshape(-1, 2)]
            tokens.append(min(records, key=lambda r: (-int(r[0]), int(r[1])))[1])
        return np.array(tokens, np.int32)

    def _contract(self, op: Any, number: int) -> Array:
        x = self._values[op.operands[0]]
        prologue = op.regions[0].blocks[0].operations[0]
        scale: Array | None = None
        if name_of(prologue) == "tile.rms_norm":
            weight = self._values[prologue.operands[1]]
            offset = np.float32(1 if get(prologue, "unit_offset") else 0)
            scale = rms_scale(x, get(prologue, "eps"))
            x = self._round(x * (weight + offset))
        shape = static_shape(op.results[0])
        first, count = get(op, "tile_base"), get(op, "tiles")
        into = list(op.operands)[1:]
        records = bool(list(walk(op, "tile.candidate")))
        size = 0 if records else shape[1]
        channel = self._values[into[0]] if into else np.zeros((len(x), size), np.float32)
        sink = _StageSink(self, channel)
        at = 0
        for i, segment in enumerate(walk(op, "tile.segment")):
            tiles = np.arange(max(first, at), min(first + count, at + get(segment, "tiles"))) - at
            if len(tiles):
                halves = [self._half(op, number, i, segment, tiles, h) for h in (0, 2)]
                sums = [(x @ m.T).reshape(len(x), -1, 8) for m in halves]
                if scale is not None:
                    sums = [s * scale[..., None] for s in sums]
                run_segment(segment, tiles, sums[0], sums[1], sink)
            at += get(segment, "tiles")
        if not records:
            return channel
        out = np.zeros((len(x), shape[1], 2), np.uint32)
        out[:, :, 1] = self._vocabulary
        out[:, 0] = [best_of(np.concatenate(v), np.concatenate(i)) for v, i in sink.offered]
        return out

    def _half(self, op: Any, number: int, i: int, segment: Any, tiles: Array, which: int) -> Array:
        """The weight rows of one half of the tiles: [8 · tiles, k]; kept, since they never change."""
        key = (number, i, which)
        if key not in self._matrices:
            inner, step, outer = (get(segment, n) for n in ("inner", "step", "outer"))
            source, base = get(segment, "sources")[which : which + 2]
            start = tiles // inner * outer + tiles % inner * step + base
            rows = (start[:, None] + np.arange(8)).reshape(-1)
            weight = tensor(self._weights, get(op, "weights")[source])
            matrix = np.zeros((len(rows), weight.shape[1]), np.float32)
            inside = rows < len(weight)
            matrix[inside] = self._round(np.asarray(weight)[rows[inside]])
            self._matrices[key] = matrix
        return self._matrices[key]

    # ---- what epilogues ask for

    def constant(self, value: Any) -> Array:
        """A buffer's array."""
        return self._values[value]

    def record_logits(self, index: Array, values: Array) -> None:
        """Keep logits of indices inside the vocabulary."""
        inside = index < self._vocabulary
        self._logits[:, index[inside]] = values[:, inside]

    def append(self, state: Any, index: Array, values: Array) -> None:
        """Write rows of the tokens' positions."""
        held = self._values[state]
        size = held.shape[2]
        for t, position in enumerate(self.positions):
            held[index // size, position, index % size] = self._round(values[t])


class _StageSink:
    """One contract's epilogue at work."""

    def __init__(self, executor: TileExecutor, channel: Array) -> None:
        self._executor, self._channel = executor, channel
        self.positions = executor.positions
        self.constant, self.append = executor.constant, executor.append
        self.offered: list[tuple[list[Array], list[Array]]] = [([], []) for _ in self.positions]

    def residual(self, value: Any, index: Array) -> Array:
        return self._executor.constant(value)[:, index]

    def publish(self, index: Array, values: Array) -> None:
        self._channel[:, index] = self._executor._round(values)

    def logits(self, index: Array, values: Array) -> None:
        self._executor.record_logits(index, values)

    def candidate(self, index: Array, values: Array) -> None:
        inside = index < self._executor._vocabulary
        for t, (found, indices) in enumerate(self.offered):
            found.append(values[t][inside])
            indices.append(index[inside])
