"""Executes graph-level modules: whole tensors, fp32."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tileir.dialect.attributes import get, name_of, shape_of, walk
from tileir.packing import tensor
from tileir.reference.arithmetic import Array, activation, angles, rms_scale, scores_of


class GraphExecutor:
    """Runs a step at a time; states live between steps.

    weights: arrays by state-dict name. Raises PackageError for a missing one.
    """

    def __init__(self, module: Any, weights: Mapping[str, Any]) -> None:
        (function,) = walk(module, "func.func")
        self._block = function.regions[0].blocks[0]
        self._ops = [o for o in self._block if name_of(o).startswith("graph.")]
        self._values: dict[Any, Any] = {}
        for op in self._ops:
            match name_of(op):
                case "graph.weight":
                    held = tensor(weights, get(op, "sym_name"))
                    self._values[op.results[0]] = np.asarray(held, np.float32)
                case "graph.constant":
                    self._values[op.results[0]] = get(op, "value")
                case "graph.state":
                    self._values[op.results[0]] = np.zeros(shape_of(op.results[0]), np.float32)

    def step(self, tokens: Array, positions: Array) -> tuple[Array, Array]:
        """(next tokens [T], logits [T, vocabulary] f32) for tokens and positions [T]."""
        self._values |= dict(zip(self._block.arguments, (tokens, positions), strict=True))
        for op in self._ops:
            rule = getattr(self, "_" + name_of(op).removeprefix("graph."), None)
            if rule is not None:
                args = [self._values[v] for v in op.operands]
                self._values[op.results[0]] = rule(op, *args)
        last = self._ops[-1]
        return self._values[last.results[0]], self._values[last.operands[0]]

    def _embedding(self, op: Any, table: Array, tokens: Array) -> Array:
        return np.asarray(table[tokens] * np.float32(get(op, "scale")))

    def _rms_norm(self, op: Any, x: Array, weight: Array) -> Array:
        offset = np.float32(1 if get(op, "unit_offset") else 0)
        return x * rms_scale(x, get(op, "eps")) * (weight + offset)

    def _linear(self, _op: Any, x: Array, weight: Array, bias: Array | float = 0.0) -> Array:
        return x @ weight.T + np.float32(bias)

    def _rope(self, op: Any, x: Array, positions: Array, inv_freq: Array) -> Array:
        size = get(op, "head_size")
        heads = x.reshape(len(x), -1, size)
        cos, sin = (a[:, None] for a in angles(positions, inv_freq, get(op, "scale")))
        if get(op, "style") == "half":
            lo, hi = heads[..., : size // 2], heads[..., size // 2 :]
            turned = np.concatenate([lo * cos - hi * sin, hi * cos + lo * sin], -1)
        else:
            lo, hi = heads[..., ::2], heads[..., 1::2]
            turned = np.stack([lo * cos - hi * sin, hi * cos + lo * sin], -1)
        return turned.reshape(x.shape)

    def _append(self, _op: Any, state: Array, x: Array, positions: Array) -> Array:
        state[:, positions] = x.reshape(len(x), state.shape[0], state.shape[2]).swapaxes(0, 1)
        return state

    def _attention(self, op: Any, q: Array, k: Array, v: Array, positions: Array) -> Array:
        heads, kv, size, window = (get(op, n) for n in ("heads", "kv_heads", "head_size", "window"))
        out = np.empty((len(q), kv, heads // kv, size), np.float32)
        for t, position in enumerate(positions):
            low = max(0, position + 1 - window) if window else 0
            queries = q[t].reshape(kv, heads // kv, size)
            for h in range(kv):
                scores = scores_of(queries[h], k[h, low : position + 1], op)
                weights = np.exp(scores - scores.max(-1, keepdims=True))
                out[t, h] = weights @ v[h, low : position + 1] / weights.sum(-1, keepdims=True)
        return out.reshape(q.shape)

    def _glu(self, op: Any, gate: Array, up: Array) -> Array:
        return activation(get(op, "activation"), gate) * up

    def _add(self, _op: Any, a: Array, b: Array) -> Array:
        return a + b

    def _sample(self, _op: Any, logits: Array) -> Array:
        return np.argmax(logits, -1).astype(np.int32)
