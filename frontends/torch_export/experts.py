"""Patterns of mixtures of experts: who is chosen, with what weight, and what experts compute.

| pattern | becomes |
|---|---|
| topk of softmax(logits), or of sigmoid(logits) + bias within the best groups; / sum, · scale | graph.router |
| bmm of weights indexed by the chosen | graph.expert_linear |
| sum over slots of values · weights | graph.weighted_sum |
"""

from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from tileir.frontends.torch_export.nodes import behind, op_name, shape


@dataclass(frozen=True)
class Experts:
    """weight[chosen] · x: `chosen` is a topk; x: one row for all slots, or one each."""

    x: Node
    chosen: Node
    weight: Node


@dataclass(frozen=True)
class WeightedSum:
    """Σ over slots of values · weights."""

    values: Node
    weights: Node


@dataclass(frozen=True)
class Router:
    """A choice of experts. `chosen` is the topk, `weights` the node of the final weights."""

    chosen: Node
    weights: Node
    logits: Node
    bias: Node | None
    facts: dict[str, Any]


def match_experts(node: Node) -> Experts | None:
    """node as the product of chosen weights with a token's values."""
    if op_name(node) != "bmm" or op_name(node.args[0]) != "index":
        return None
    weight, places = node.args[0].args
    chosen = _chosen(places[0]) if len(places) == 1 else None
    x = behind(node.args[1])
    if op_name(x) == "repeat_interleave" and shape(x.args[0])[0] == 1:
        x = behind(x.args[0])
    return None if chosen is None else Experts(x, chosen, weight)


def _chosen(node: Any) -> Node | None:
    """The topk whose indices a node holds."""
    node = behind(node)
    found = op_name(node) == "getitem" and node.args[1] == 1 and op_name(node.args[0]) == "topk"
    return node.args[0] if found else None


def match_weighted_sum(node: Node) -> WeightedSum | None:
    """node as the sum of experts' values, each with its weight."""
    if op_name(node) != "sum" or list(node.args[1]) != [1] or len(shape(node.args[0])) != 3:
        return None
    product = behind(node.args[0])
    if op_name(product) != "mul":
        return None
    for values, weights in (product.args[:2], product.args[1::-1]):
        if op_name(behind(values)) == "bmm" and isinstance(weights, Node):
            return WeightedSum(behind(values), behind(weights))
    return None


def match_router(weights: Node) -> Router | None:
    """The router whose final weights a node holds."""
    node, scale = behind(weights), 1.0
    if op_name(node) == "mul" and isinstance(node.args[1], int | float):
        node, scale = behind(node.args[0]), float(node.args[1])
    normalize = op_name(node) == "div"
    if normalize:
        if not _is_sum(node.args[1], behind(node.args[0])):
            return None
        node = behind(node.args[0])
    found = _by_softmax(node) or _by_sigmoid(node)
    if found is None:
        return None
    chosen, logits, bias, facts = found
    facts |= {"k": int(chosen.args[1]), "normalize": normalize}
    return Router(chosen, weights, logits, bias, facts | {"scale": scale})


def _is_sum(node: Any, of: Node) -> bool:
    """Whether a node is the sum of another's values, perhaps with something tiny added."""
    node = behind(node)
    if op_name(node) == "add" and isinstance(node.args[1], float) and node.args[1] <= 1e-9:
        node = behind(node.args[0])
    return op_name(node) == "sum" and behind(node.args[0]) is of


_Choice = tuple[Node, Node, Node | None, dict[str, Any]]


def _by_softmax(node: Any) -> _Choice | None:
    if op_name(node) != "getitem" or node.args[1] != 0 or op_name(node.args[0]) != "topk":
        return None
    probabilities = behind(node.args[0].args[0])
    if op_name(probabilities) not in ("softmax", "_softmax"):
        return None
    facts = {"kind": "softmax", "groups": 1, "top_groups": 1}
    return node.args[0], probabilities.args[0], None, facts


def _by_sigmoid(node: Any) -> _Choice | None:
    scores = behind(node.args[0]) if op_name(node) == "gather" else None
    chosen = _chosen(node.args[2]) if scores is not None else None
    if chosen is None or op_name(scores) != "sigmoid":
        return None
    facts = {"kind": "sigmoid", "groups": 1, "top_groups": 1}
    choice = behind(chosen.args[0])
    if op_name(choice) == "masked_fill":
        limit = _best_groups(choice)
        if limit is None:
            return None
        facts |= limit
        choice = behind(choice.args[0])
    bias = None
    if op_name(choice) == "add":
        first, second = (behind(a) for a in choice.args[:2])
        choice, bias = (first, second) if first is scores else (second, first)
    return (chosen, scores.args[0], bias, facts) if choice is scores else None


def _best_groups(masked: Node) -> dict[str, Any] | None:
    """How choices outside the best groups are masked: scatter of 1 at the topk of the sums of groups' two best."""
    mask: Any = masked.args[1]
    kept: Any = behind(mask.args[0]) if op_name(mask) in ("bitwise_not", "logical_not") else None
    if op_name(kept) == "expand":
        kept = behind(kept.args[0])
    if op_name(kept) != "scatter" or op_name(behind(kept.args[0])) != "zeros_like":
        return None
    groups = _chosen(kept.args[2])
    sums: Any = behind(groups.args[0]) if groups is not None else None
    best: Any = behind(sums.args[0]) if op_name(sums) == "sum" else None
    if groups is None or op_name(best) != "getitem" or best.args[1] != 0:
        return None
    two = best.args[0]
    if (
        op_name(two) != "topk"
        or two.args[1] != 2
        or behind(two.args[0]) is not behind(masked.args[0])
    ):
        return None
    number = shape(two.args[0])[-2]
    facts = {"groups": number, "top_groups": int(groups.args[1]), "fill": float(masked.args[2])}
    return facts if number > 1 else {}
