"""Executes tile-level modules: stages whole, segments and ranges as they say."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tileir.dialect.attributes import element_of, get, name_of, static_shape, walk
from tileir.dialect.tile import source_of
from tileir.dialect.tile_attend import PIECES
from tileir.packing import matrix, rope_table, tensor, view_of
from tileir.reference.arithmetic import (
    Array,
    best_of,
    keep,
    partial_softmax,
    rms_scale,
    round_bf16,
    run_map,
    run_piece,
    run_segment,
    split_of,
    split_range,
)
from tileir.reference.routing import choose_experts, choose_top_k

STAGES = ("tile.contract", "tile.attend", "tile.map", "tile.select")


class TileExecutor:
    """Runs a step of one sequence at a time; states live between steps, their rows are positions.

    weights: arrays by state-dict name. rounding: bf16 where the engine rounds, else fp32 everywhere.
    """

    def __init__(self, module: Any, weights: Mapping[str, Any], *, rounding: bool = False) -> None:
        (function,) = walk(module, "func.func")
        self._weights, self._round = weights, round_bf16 if rounding else keep
        self._stages = list(walk(function, *STAGES))
        (end,) = walk(function, "func.return")
        self._returned = list(end.operands)
        self._vocabulary = get(module, "tileir.vocabulary")
        self._values: dict[Any, Array] = {}
        self._matrices: dict[tuple[Any, ...], Array] = {}
        for op in walk(function, "tile.buffer", "tile.state"):
            shape = static_shape(op.results[0])
            if name_of(op) == "tile.state":
                self._values[op.results[0]] = np.zeros(shape, np.float32)
            elif get(op, "kind") == "rope":
                facts = {"shape": shape, "inv_freq": get(op, "inv_freq"), "scale": get(op, "scale")}
                self._values[op.results[0]] = rope_table(facts)
            else:
                whole = np.asarray(tensor(weights, get(op, "sym_name")))
                held = np.asarray(view_of(whole, get(op, "view", [])), np.float32)
                self._values[op.results[0]] = self._round(held.reshape(shape))

    def step(self, tokens: Array, positions: Array) -> tuple[Array, Array]:
        """(next tokens [T], logits [T, vocabulary] f32) for tokens and successive positions [T]."""
        self.step_tokens, self.positions = np.asarray(tokens), np.asarray(positions)
        self.choice: Array | None = None
        self._logits = np.zeros((len(tokens), self._vocabulary), np.float32)
        for number, op in enumerate(self._stages):
            rule = getattr(self, "_" + name_of(op).removeprefix("tile."))
            self._values[op.results[0]] = rule(op, number)
        return self._values[self._returned[0]], self._logits

    def drafts(self) -> Array:
        """The draft layer's tokens of the last step, [T]."""
        return self._values[self._returned[1]]

    # ---- archetypes

    def _map(self, op: Any, _number: int) -> Array:
        shape, rows = static_shape(op.results[0])[1:], get(op, "rows")
        values = int(np.prod(shape)) // rows
        sink = _Sink(self, op.results[0])
        made = run_map(op.regions[0].blocks[0], np.arange(rows), values, sink)
        sink.publish(np.arange(rows * values), made.reshape(len(self.positions), -1))
        return sink.channel.reshape(-1, *shape)

    def _attend(self, op: Any, _number: int) -> Array:
        k = self._values[op.operands[0]]
        v = self._values[op.operands[1]] if len(op.operands) > 1 else k
        heads, kv, groups, splits, value = (
            get(op, n) for n in ("heads", "kv_heads", "groups", "splits", "value_size")
        )
        shared, pieces = heads // groups, _Pieces(self, op)
        out = np.empty((len(self.positions), heads, splits, value + 2), np.float32)
        base = int(self.positions[0])
        for t, position in enumerate(self.positions):
            for group in range(groups):
                h = group * kv // groups
                mine = range(group * shared, (group + 1) * shared)
                queries = np.stack([pieces.row("tile.query", t, q) for q in mine])
                for s in range(splits):
                    old, own = self._seen(op, pieces, t, s, base)
                    keys = [k[h, old], *(pieces.row("tile.key", o, h)[None] for o in own)]
                    if v is k:
                        values = [row[:, :value] for row in keys]
                    else:
                        values = [v[h, old], *(pieces.row("tile.value", o, h)[None] for o in own)]
                    low = position + 1 - get(op, "window") if get(op, "window") else 0
                    seen = np.concatenate([old, np.array(own, int) + base]) >= low
                    part = partial_softmax(
                        queries, np.concatenate(keys)[seen], np.concatenate(values)[seen], op
                    )
                    out[t, mine.start : mine.stop, s] = part
        return out

    def _seen(
        self, op: Any, pieces: "_Pieces", t: int, split: int, base: int
    ) -> tuple[Array, list[int]]:
        """Old positions of a split, and the tokens of this step whose rows token t sees (split 0)."""
        own = list(range(t + 1)) if split == 0 else []
        if pieces.indices is None:
            return np.arange(*split_range(base, split, op)), own
        listed = pieces.indices[t][pieces.indices[t] >= 0]
        old = listed[listed < base]
        return old[slice(*split_of(len(old), split, get(op, "splits")))], [
            o for o in own if base + o in listed
        ]

    def _select(self, op: Any, _number: int) -> Array:
        scores, kind = self._values[op.operands[0]], get(op, "kind")
        if kind != "argmax":
            if kind == "route":
                return choose_experts(scores, op)
            return choose_top_k(scores, self.positions, get(op, "k"))
        tokens = []
        for t in range(len(self.positions)):
            records = [r for v in op.operands for r in self._values[v][t].reshape(-1, 2)]
            tokens.append(min(records, key=lambda r: (-int(r[0]), int(r[1])))[1])
        chosen = np.array(tokens, np.int32)
        self.choice = chosen if self.choice is None else self.choice
        return chosen

    # ---- contracts

    def _contract(self, op: Any, number: int) -> Array:
        sink = _Sink(self, op.results[0])
        into = list(op.operands)[1:]
        if into:
            sink.channel = self._values[into[0]].reshape(len(self.positions), -1)
        match source_of(op):
            case "tape":
                self._weights_of_tape(op, number, sink)
            case "experts":
                self._experts(op, number, sink)
            case "rows":
                self._rows(op, sink)
        shape = static_shape(op.results[0])
        if sink.offered is None:
            return sink.channel.reshape(-1, *shape[1:])
        out = np.zeros((len(self.positions), shape[1], 2), np.uint32)
        out[:, :, 1] = self._vocabulary
        out[:, 0] = [best_of(np.concatenate(v), np.concatenate(i)) for v, i in sink.offered]
        return out

    def _x(self, op: Any) -> tuple[Array, Array | None]:
        """x from its offset on, after the prologue, and the factor of the accumulators."""
        x = self._values[op.operands[0]].reshape(len(self.positions), -1)[:, get(op, "x", [0])[0] :]
        for inner in op.regions[0].blocks[0]:
            if name_of(inner) == "tile.rms_norm":
                weight = self._values[inner.operands[1]]
                x = x[:, : len(weight)]
                offset = np.float32(1 if get(inner, "unit_offset") else 0)
                return self._round(x * (weight + offset)), rms_scale(x, get(inner, "eps"))
        return x, None

    def _weights_of_tape(self, op: Any, number: int, sink: "_Sink") -> None:
        x, scale = self._x(op)
        parts = get(op, "k_parts")
        first, behind = get(op, "tile_base"), get(op, "tile_base") + get(op, "tiles")
        groups, k, (_, stride) = get(op, "groups"), get(op, "k"), get(op, "x", [0, 0])
        space = sum(get(o, "tiles") for o in walk(op, "tile.segment"))
        for i, segment, at in _segments(op):
            for g in range(groups):
                low, high = max(first, at, g * space // groups), (g + 1) * space // groups
                high = min(behind, at + get(segment, "tiles"), high)
                if low >= high:
                    continue
                tiles = np.arange(low, high) - at
                # Half hi meets the second part of K, if there are two.
                begins = g * stride, g * stride + (parts - 1) * k
                halves = [self._half(op, number, i, segment, tiles, h) for h in (0, 2)]
                sums = [
                    (x[:, begin : begin + k] @ m.T).reshape(len(x), len(tiles), 8)
                    for begin, m in zip(begins, halves, strict=True)
                ]
                if scale is not None:
                    sums = [s * scale[..., None] for s in sums]
                run_segment(segment, tiles, sums[0], sums[1], sink)

    def _experts(self, op: Any, number: int, sink: "_Sink") -> None:
        """Each active expert once, for all tokens and slots that chose it."""
        routing = next(walk(op, "tile.experts"))
        chosen = self._values[routing.operands[0]]
        k, (_, stride) = get(op, "k"), get(op, "x", [0, 0])
        x, scale = self._x(op)
        first, behind = get(routing, "experts", [0, 1 << 31])
        width = sink.channel.shape[1] // get(op, "groups")
        for expert in np.unique(chosen[:, :, 0]):
            if not first <= expert < behind:
                continue
            tokens, slots = np.nonzero(chosen[:, :, 0] == expert)
            begins = slots * stride
            rows = np.stack([x[t, b : b + k] for t, b in zip(tokens, begins, strict=True)])
            some = _PairSink(self, sink, tokens, slots, width)
            for i, segment, _ in _segments(op):
                tiles = np.arange(get(segment, "tiles"))
                halves = [self._half(op, number, i, segment, tiles, h, int(expert)) for h in (0, 2)]
                lo, hi = ((rows @ m.T).reshape(len(rows), -1, 8) for m in halves)
                if scale is not None:
                    lo, hi = (v * scale[tokens][..., None] for v in (lo, hi))
                run_segment(segment, tiles, lo, hi, some)

    def _rows(self, op: Any, sink: "_Sink") -> None:
        """Rows of a state against every head; a token's own row comes from a channel."""
        statement = next(walk(op, "tile.rows"))
        state, own = (self._values[v] for v in statement.operands)
        x, _ = self._x(op)
        k, heads, (_, stride) = get(op, "k"), get(op, "groups"), get(op, "x", [0, 0])
        base, at = int(self.positions[0]), get(statement, "offset")
        rows = np.concatenate([state[0, :base], own.reshape(len(x), -1)[:, at : at + k]])
        tiles = np.arange(-(-len(rows) // 16))
        padded = np.zeros((len(tiles) * 16, k), np.float32)
        padded[: len(rows)] = rows
        queries = np.stack([x[:, h * stride :][:, :k] for h in range(heads)])
        scores = (queries @ padded.T).reshape(heads, len(x), len(tiles), 2, 8)
        (segment,) = walk(op, "tile.segment")
        run_segment(segment, tiles, scores[..., 0, :], scores[..., 1, :], sink)

    def _half(
        self,
        op: Any,
        number: int,
        i: int,
        segment: Any,
        tiles: Array,
        which: int,
        expert: int | None = None,
    ) -> Array:
        """The weight rows of one half of the tiles: [8 · tiles, k]; kept, since they never change."""
        key = (number, i, which, expert, int(tiles[0]))
        if key not in self._matrices:
            inner, step, outer = (get(segment, n) for n in ("inner", "step", "outer"))
            source, base = get(segment, "sources")[which : which + 2]
            start = tiles // inner * outer + tiles % inner * step + base
            rows = (start[:, None] + np.arange(8)).reshape(-1)
            weight = tensor(self._weights, get(op, "weights")[source])
            view = (get(op, "views") or [[]] * (source + 1))[source]
            if expert is not None:
                weight, view = view_of(weight, view)[expert], []
            weight = matrix(weight, view)
            found = np.zeros((len(rows), weight.shape[1]), np.float32)
            inside = rows < len(weight)
            found[inside] = self._round(np.asarray(weight)[rows[inside]])
            self._matrices[key] = found
        return self._matrices[key]

    # ---- what regions ask for

    def value(self, value: Any) -> Array:
        """A buffer's array, or a channel's, [T, …]."""
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


def _segments(op: Any) -> Iterator[tuple[int, Any, int]]:
    """(number, segment, first tile) of a contract's segments."""
    at = 0
    for i, segment in enumerate(walk(op, "tile.segment")):
        yield i, segment, at
        at += get(segment, "tiles")


class _Pieces:
    """What an attend gathers of this step: query, key and value rows, and the listed positions."""

    def __init__(self, executor: TileExecutor, op: Any) -> None:
        self.indices: Array | None = None
        self._parts: dict[str, list[Array]] = {}
        sink = _Sink(executor, op.results[0])
        for inner in op.regions[0].blocks[0]:
            if name_of(inner) == "tile.gather":
                self.indices = executor.value(inner.operands[0])
            elif name_of(inner) in PIECES:
                held = executor.value(inner.operands[0])
                held = held.reshape(len(held), -1)
                offset, stride, size = (get(inner, n) for n in ("offset", "stride", "size"))
                count = get(op, "heads" if name_of(inner) == "tile.query" else "kv_heads")
                raw = [held[:, offset + h * stride :][:, :size] for h in range(count)]
                if inner.results:
                    raw = [executor._round(run_piece(inner, x, h, sink)) for h, x in enumerate(raw)]
                self._parts.setdefault(name_of(inner), []).append(np.stack(raw))

    def row(self, kind: str, t: int, head: int) -> Array:
        """The pieces of a head, one behind the other."""
        return np.concatenate([part[head, t] for part in self._parts[kind]])


class _Sink:
    """One stage at work. channel: [T, values], bf16 if the result is."""

    def __init__(self, executor: TileExecutor, result: Any) -> None:
        self._executor, self.positions = executor, executor.positions
        self._round = executor._round if element_of(result) == "bf16" else keep
        values = int(np.prod(static_shape(result)[1:]))
        self.channel = np.zeros((len(self.positions), values), np.float32)
        self.offered: list[tuple[list[Array], list[Array]]] | None = None
        self.splits: int | None = None
        self.append = executor.append
        self.constant = executor.value

    def read(self, value: Any, index: Array) -> Array:
        return self._executor.value(value).reshape(len(self.positions), -1)[:, index]

    def weights(self, routing: Any) -> Array:
        raise AssertionError(f"{routing} outside experts")

    def tokens(self, of: str) -> Array:
        chosen = self._executor.choice if of == "choice" else self._executor.step_tokens
        assert chosen is not None, "a lookup of a choice that is not made"
        return chosen

    def publish(self, index: Array, values: Array) -> None:
        inside = index < self.channel.shape[1]
        self.channel[:, index[inside]] = self._round(values[:, inside])

    def logits(self, index: Array, values: Array) -> None:
        if self._executor.choice is None:
            self._executor.record_logits(index, values)

    def candidate(self, index: Array, values: Array) -> None:
        inside = index < self._executor._vocabulary
        if self.offered is None:
            self.offered = [([], []) for _ in self.positions]
        for t, (found, indices) in enumerate(self.offered):
            found.append(values[t][inside])
            indices.append(index[inside])


class _PairSink(_Sink):
    """An experts contract's epilogue for the (token, slot) pairs that chose one expert."""

    def __init__(
        self, executor: TileExecutor, whole: _Sink, tokens: Array, slots: Array, width: int
    ) -> None:
        self._executor, self._whole = executor, whole
        self._tokens, self._slots, self._width = tokens, slots, width
        self.positions = executor.positions[tokens]
        self.constant = executor.value

    def read(self, value: Any, index: Array) -> Array:
        return self._whole.read(value, index)[self._tokens]

    def weights(self, routing: Any) -> Array:
        bits = self._executor.value(routing)[self._tokens, self._slots, 1]
        return np.ascontiguousarray(bits, np.int32).view(np.float32)

    def publish(self, index: Array, values: Array) -> None:
        for row, t, slot in zip(values, self._tokens, self._slots, strict=True):
            self._whole.channel[t, slot * self._width + index] = self._whole._round(row)
