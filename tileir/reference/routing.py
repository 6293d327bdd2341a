"""Which experts a token goes to and which positions it attends to, in NumPy. Ties always go to the lowest index."""

from typing import Any

import numpy as np

from tileir.dialect.attributes import get

Array = np.ndarray
# What keeps a sum of scores that are all zero from dividing by it, as models have it.
SMALLEST_SUM = np.float32(1e-20)


def route(logits: Array, bias: Array | None, op: Any) -> tuple[Array, Array]:
    """A graph.router: (experts [T, k] i32, weights [T, k] f32) for logits [T, E] and a bias [E]."""
    if get(op, "kind") == "softmax":
        return _chosen(softmax(logits), logits, op)
    scores = sigmoid(logits)
    return _chosen(scores, scores if bias is None else scores + np.float32(bias), op)


def choose_experts(scores: Array, op: Any) -> Array:
    """A tile.select of kind "route": routing [T, k, 2] i32, expert and its weight's f32 bits.

    scores: logits [T, ≥ E] with score = "softmax"; with "sigmoid" scores, and keys of the choice from the middle on.
    """
    experts = get(op, "experts")
    first = keys = scores[:, :experts]
    if get(op, "score") == "softmax":
        first = softmax(first)
    else:
        keys = scores[:, scores.shape[1] // 2 :][:, :experts]
    indices, weights = _chosen(first, keys, op)
    return np.stack([indices, weights.view(np.int32)], -1)


def choose_top_k(scores: Array, positions: Array, k: int) -> Array:
    """The k positions ≤ own of the largest scores [T, ≥ context], ascending, -1 behind them: [T, k] i32."""
    out = np.full((len(positions), k), -1, np.int32)
    for t, position in enumerate(positions):
        best = np.sort(_best(scores[t, : position + 1], k))
        out[t, : len(best)] = best
    return out


def softmax(logits: Array) -> Array:
    """Of each row, f32."""
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True, dtype=np.float32))


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), f32."""
    return np.asarray(1 / (1 + np.exp(-np.asarray(x, np.float32))))


def _chosen(scores: Array, keys: Array, op: Any) -> tuple[Array, Array]:
    """Experts by descending key, within the best groups, and their weights by score."""
    k = get(op, "k")
    keys = _in_best_groups(keys, get(op, "groups"), get(op, "top_groups"), get(op, "fill", 0.0))
    indices = np.stack([_best(row, k) for row in keys])
    weights = np.take_along_axis(scores, indices, -1)
    if get(op, "normalize"):
        weights = weights / (weights.sum(-1, keepdims=True, dtype=np.float32) + SMALLEST_SUM)
    return indices.astype(np.int32), np.asarray(weights * np.float32(get(op, "scale")), np.float32)


def _in_best_groups(keys: Array, groups: int, top_groups: int, fill: float) -> Array:
    """Keys, with `fill` outside the `top_groups` groups whose two best keys have the largest sums."""
    if groups == 1:
        return keys
    grouped = keys.reshape(len(keys), groups, -1)
    sums = np.sort(grouped, -1)[..., :-3:-1].sum(-1, dtype=np.float32)
    out = np.full_like(grouped, fill)
    for t, row in enumerate(sums):
        best = _best(row, top_groups)
        out[t, best] = grouped[t, best]
    return out.reshape(keys.shape)


def _best(values: Array, k: int) -> Array:
    """Indices of the k largest values, in descending order."""
    return np.argsort(-values, kind="stable")[:k]
