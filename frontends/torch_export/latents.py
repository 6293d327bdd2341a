"""Patterns of attention over compressed keys and values, and of the indexer that picks positions.

| pattern | becomes |
|---|---|
| attention over (linear of cached latents, cached roped key of all heads) | graph.mla_attention |
| Σ over heads of weight · relu(q · cached keys · scale), masked, topk | graph.index_scores, graph.top_k |
"""

from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from tileir.frontends.torch_export.nodes import behind, op_name, shape


@dataclass(frozen=True)
class Latents:
    """Keys and values that are expanded from a cache: `latents` and `roped` are index_copy nodes."""

    latents: Node
    roped: Node
    weight: Node
    heads: int
    nope_size: int
    value_size: int


@dataclass(frozen=True)
class Indexer:
    """Scores of cached keys: `keys` is an index_copy node; `mask` says which positions count."""

    q: Node
    weights: Node
    keys: Node
    mask: Node
    heads: int
    head_size: int
    scale: float
    k: int


def match_latents(k: Any, v: Any) -> Latents | None:
    """The keys and values of an attention, as what they are expanded from."""
    parts = _parts_of_keys(k)
    if parts is None or op_name(v) != "getitem" or op_name(parts[0]) != "getitem":
        return None
    nope, roped = parts[0], parts[1]
    split = v.args[0]
    if nope.args[0] is not split or (nope.args[1], v.args[1]) != (0, 1):
        return None
    if not op_name(split).startswith("split") or len(split.meta["val"]) != 2:
        return None
    expanded = _transposed_linear(split.args[0])
    if op_name(roped) == "expand":
        roped = behind(roped.args[0])
    if expanded is None or not all(op_name(n) == "index_copy" for n in (expanded.args[0], roped)):
        return None
    return Latents(
        latents=expanded.args[0],
        roped=roped,
        weight=expanded.args[1],
        heads=shape(v)[1],
        nope_size=shape(nope)[-1],
        value_size=shape(v)[-1],
    )


def _parts_of_keys(node: Any) -> tuple[Any, Any] | None:
    """(first, last) values of each key: of a cat, or of two copies into an empty tensor."""
    node = behind(node)
    if op_name(node) == "cat" and len(node.args[0]) == 2:
        first, last = (behind(part) for part in node.args[0])
        return first, last
    if op_name(node) != "slice_scatter":
        return None
    inner, copied = node.args[0], behind(node.args[1])
    if op_name(inner) != "slice_scatter" or op_name(inner.args[0]) not in ("new_empty", "empty"):
        return None
    copies = [inner.args[1], copied]
    if any(op_name(c) != "copy" for c in copies):
        return None
    last = len(shape(node)) - 1
    middle = shape(inner.args[1])[-1]
    ends = [tuple(n.args[2:5]) for n in (inner, node)]
    wanted = [(last, 0, middle), (last, middle)]
    if [end[: len(want)] for end, want in zip(ends, wanted, strict=True)] != wanted:
        return None
    return behind(copies[0].args[1]), behind(copies[1].args[1])


def _transposed_linear(node: Any) -> Node | None:
    """The linear [1, C, H·D] of which a node is the transposed view [1, H, C, D]."""
    if op_name(node) != "transpose" or sorted(node.args[1:3]) != [1, 2]:
        return None
    view = node.args[0]
    linear = behind(view)
    if op_name(view) not in ("view", "reshape") or op_name(linear) != "linear":
        return None
    whole = shape(linear)
    fits = len(linear.args) == 2 and [whole[-2], whole[-1]] == [
        shape(view)[1],
        shape(view)[2] * shape(view)[3],
    ]
    return linear if fits else None


def match_indexer(node: Node) -> Indexer | None:
    """node as the topk of an indexer's scores."""
    masked: Any = behind(node.args[0]) if op_name(node) == "topk" else None
    if op_name(masked) != "masked_fill" or masked.args[2] != float("-inf"):
        return None
    mask = behind(masked.args[1])
    sums = behind(masked.args[0])
    if op_name(mask) not in ("bitwise_not", "logical_not") or op_name(sums) != "matmul":
        return None
    weights, factor = _factor(sums.args[0])
    positive = behind(sums.args[1])
    scores: Any
    scores, scale = _factor(positive.args[0]) if op_name(positive) == "relu" else (None, 0.0)
    if op_name(scores) != "matmul" or factor <= 0 or scale <= 0:
        return None
    q, keys = scores.args[0], _untransposed(scores.args[1])
    if op_name(keys) != "index_copy" or len(shape(q)) != 4 or shape(sums)[-2] != 1:
        return None
    heads, size = shape(q)[2:]
    return Indexer(q, weights, keys, mask.args[0], heads, size, scale * factor, int(node.args[1]))


def _factor(node: Any) -> tuple[Any, float]:
    """(x, number) of x · number, through views."""
    node, number = behind(node), 1.0
    while op_name(node) == "mul" and isinstance(node.args[1], int | float):
        node, number = behind(node.args[0]), number * node.args[1]
    return node, number


def _untransposed(node: Any) -> Any:
    """Behind the transposition of the last two dimensions."""
    node = behind(node)
    if op_name(node) != "transpose":
        return None
    rank = len(shape(node))
    swapped = sorted(d % rank for d in node.args[1:3]) == [rank - 2, rank - 1]
    return behind(node.args[0]) if swapped else None
