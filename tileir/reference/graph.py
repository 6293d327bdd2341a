"""Executes graph-level modules: whole tensors, fp32."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tileir.dialect.attributes import get, name_of, shape_of, walk
from tileir.packing import tensor, view_of
from tileir.reference.arithmetic import (
    LOWEST,
    Array,
    activation,
    angles,
    rms_scale,
    scores_of,
    softcap,
    turn,
)
from tileir.reference.routing import choose_top_k, route


class GraphExecutor:
    """Runs a step at a time; states live between steps.

    weights: arrays by state-dict name. draft: of a program with a draft layer, the last step's drafts [T] and their
    logits [T, vocabulary]. Raises PackageError for a missing weight.
    """

    def __init__(self, module: Any, weights: Mapping[str, Any]) -> None:
        (function,) = walk(module, "func.func")
        self._block = function.regions[0].blocks[0]
        self._ops = [o for o in self._block if name_of(o).startswith("graph.")]
        self._samples = [o for o in self._ops if name_of(o) == "graph.sample"]
        self._values: dict[Any, Any] = {}
        self.draft: tuple[Array, Array] | None = None
        for op in self._ops:
            match name_of(op):
                case "graph.weight":
                    self._values[op.results[0]] = self._weight(op, weights)
                case "graph.constant":
                    self._values[op.results[0]] = get(op, "value")
                case "graph.state":
                    self._values[op.results[0]] = np.zeros(shape_of(op.results[0]), np.float32)

    def step(self, tokens: Array, positions: Array) -> tuple[Array, Array]:
        """(next tokens [T], logits [T, vocabulary] f32) for tokens and positions [T]."""
        self._values |= dict(zip(self._block.arguments, (tokens, positions), strict=True))
        for op in self._ops:
            rule = getattr(self, "_" + name_of(op).removeprefix("graph."), None)
            if name_of(op) in ("graph.weight", "graph.constant", "graph.state"):
                continue
            assert rule is not None, name_of(op)
            made = rule(op, *(self._values[v] for v in op.operands))
            results = made if isinstance(made, tuple) else (made,)
            self._values |= dict(zip(op.results, results, strict=True))
        chosen = [(self._values[o.results[0]], self._values[o.operands[0]]) for o in self._samples]
        self.draft = chosen[1] if len(chosen) > 1 else None
        return chosen[0]

    def _weight(self, op: Any, weights: Mapping[str, Any]) -> Array:
        held = np.asarray(tensor(weights, get(op, "sym_name")), np.float32)
        strides = get(op, "strides")
        shape = [int(s or 0) for s in shape_of(op.results[0])]
        view = [get(op, "offset", 0), *shape, *strides] if strides else []
        return np.ascontiguousarray(view_of(held, view))

    def _embedding(self, op: Any, table: Array, tokens: Array) -> Array:
        return np.asarray(table[tokens] * np.float32(get(op, "scale")))

    def _rms_norm(self, op: Any, x: Array, weight: Array) -> Array:
        offset = np.float32(1 if get(op, "unit_offset") else 0)
        runs = x.reshape(len(x), -1, len(weight))
        return (runs * rms_scale(runs, get(op, "eps")) * (weight + offset)).reshape(x.shape)

    def _layer_norm(self, op: Any, x: Array, weight: Array, bias: Array) -> Array:
        centred = x - x.mean(-1, keepdims=True, dtype=np.float32)
        return centred * rms_scale(centred, get(op, "eps")) * weight + bias

    def _linear(self, _op: Any, x: Array, weight: Array, bias: Array | None = None) -> Array:
        made = x @ weight.reshape(-1, weight.shape[-1]).T
        return made if bias is None else made + bias.reshape(-1)

    def _grouped_linear(self, _op: Any, x: Array, weight: Array) -> Array:
        groups, rows, k = weight.shape
        made = x.reshape(len(x), groups, k).swapaxes(0, 1) @ weight.swapaxes(1, 2)
        return made.swapaxes(0, 1).reshape(len(x), groups * rows)

    def _rope(self, op: Any, x: Array, positions: Array, inv_freq: Array) -> Array:
        heads = x.reshape(len(x), -1, get(op, "head_size")).copy()
        cos, sin = (a[:, None] for a in angles(positions, inv_freq, get(op, "scale")))
        first = get(op, "offset", 0)
        part = slice(first, first + 2 * len(inv_freq))
        heads[..., part] = turn(heads[..., part], cos, sin, get(op, "style"))
        return heads.reshape(x.shape)

    def _append(self, op: Any, state: Array, x: Array, positions: Array) -> Array:
        first = get(op, "offset", 0)
        rows = x.reshape(len(x), state.shape[0], -1).swapaxes(0, 1)
        state[:, positions, first : first + rows.shape[-1]] = rows
        return state

    def _attention(
        self, op: Any, q: Array, k: Array, v: Array, positions: Array, indices: Array | None = None
    ) -> Array:
        heads, kv, size, window = (get(op, n) for n in ("heads", "kv_heads", "head_size", "window"))
        out = np.empty((len(q), kv, heads // kv, size), np.float32)
        for t, position in enumerate(positions):
            seen = _seen(t, position, indices)
            seen = seen[seen > position - window] if window else seen
            queries = q[t].reshape(kv, heads // kv, size)
            for h in range(kv):
                out[t, h] = _weighted(scores_of(queries[h], k[h, seen], op), v[h, seen])
        return out.reshape(q.shape)

    def _mla_attention(
        self,
        op: Any,
        q: Array,
        q_rope: Array,
        latents: Array,
        weight: Array,
        positions: Array,
        indices: Array | None = None,
    ) -> Array:
        """Expands every latent, as the exported program does."""
        heads, nope, rank = (get(op, n) for n in ("heads", "nope_size", "latent_size"))
        queries = _beside(heads, q, q_rope)
        out = np.empty((len(q), heads, get(op, "value_size")), np.float32)
        for t, position in enumerate(positions):
            rows = latents[0, _seen(t, position, indices)]
            expanded = rows[:, :rank] @ weight.swapaxes(1, 2)
            for h in range(heads):
                keys = np.concatenate([expanded[h, :, :nope], rows[:, rank:]], -1)
                scores = queries[t, h : h + 1] @ keys.T * np.float32(get(op, "scale"))
                out[t, h] = _weighted(scores, expanded[h, :, nope:])[0]
        return out.reshape(len(q), -1)

    def _latent_attention(
        self,
        op: Any,
        q: Array,
        q_rope: Array,
        latents: Array,
        positions: Array,
        indices: Array | None = None,
    ) -> Array:
        queries = _beside(get(op, "heads"), q, q_rope)
        out = np.empty((len(q), get(op, "heads"), get(op, "latent_size")), np.float32)
        for t, position in enumerate(positions):
            rows = latents[0, _seen(t, position, indices)]
            scores = queries[t] @ rows.T * np.float32(get(op, "scale"))
            out[t] = _weighted(scores, rows[:, : get(op, "latent_size")])
        return out.reshape(q.shape)

    def _index_scores(
        self, op: Any, q: Array, weights: Array, keys: Array, positions: Array
    ) -> Array:
        queries = q.reshape(len(q), get(op, "heads"), get(op, "head_size"))
        scores = np.maximum(queries @ keys[0].T * np.float32(get(op, "scale")), 0)
        sums = np.einsum("th,thc->tc", weights, scores)
        return np.where(np.arange(keys.shape[1]) <= positions[:, None], sums, LOWEST)

    def _top_k(self, op: Any, scores: Array, positions: Array) -> Array:
        return choose_top_k(scores, positions, get(op, "k"))

    def _router(self, op: Any, logits: Array, bias: Array | None = None) -> tuple[Array, Array]:
        return route(logits, bias, op)

    def _expert_linear(self, _op: Any, x: Array, indices: Array, weight: Array) -> Array:
        slots = indices.shape[1]
        parts = x.reshape(len(x), -1, weight.shape[2])
        parts = np.broadcast_to(parts, (len(x), slots, weight.shape[2]))
        made = np.einsum("tjk,tjnk->tjn", parts, weight[indices])
        return made.reshape(len(x), -1)

    def _weighted_sum(self, _op: Any, x: Array, weights: Array) -> Array:
        parts = x.reshape(*weights.shape, -1)
        total = np.zeros_like(parts[:, 0])
        for j in range(weights.shape[1]):
            total += weights[:, j, None] * parts[:, j]
        return total

    def _glu(self, op: Any, gate: Array, up: Array) -> Array:
        return activation(get(op, "activation"), gate) * up

    def _activate(self, op: Any, x: Array) -> Array:
        return activation(get(op, "activation"), x)

    def _scale(self, op: Any, x: Array) -> Array:
        return x * np.float32(get(op, "factor"))

    def _softcap(self, op: Any, x: Array) -> Array:
        return softcap(x, get(op, "cap"))

    def _add(self, _op: Any, a: Array, b: Array) -> Array:
        return a + b

    def _sample(self, _op: Any, logits: Array) -> Array:
        return np.argmax(logits, -1).astype(np.int32)


def _seen(token: int, position: int, indices: Array | None) -> Array:
    """The positions that a token attends to."""
    if indices is None:
        return np.arange(position + 1)
    listed = indices[token]
    return listed[(listed >= 0) & (listed <= position)]


def _weighted(scores: Array, values: Array) -> Array:
    """softmax(scores [H, P]) · values [P, V]."""
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray(powers @ values / powers.sum(-1, keepdims=True))


def _beside(heads: int, q: Array, q_rope: Array) -> Array:
    """Queries of both parts, [T, heads, size]."""
    return np.concatenate([x.reshape(len(x), heads, -1) for x in (q, q_rope)], -1)
