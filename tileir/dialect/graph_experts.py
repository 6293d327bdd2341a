"""Operations of experts: routing, linears of the chosen, their sum."""

from typing import Any

from tileir.dialect.attributes import divides, first_failure, get, shape_of
from tileir.dialect.graph import Graph, Operand, Result, Tensor
from tileir.mlir import ir


class RouterOp(Graph.Operation, name="router"):
    """The k experts of each token, best first, and the weights of what they make. Ties go to the lowest expert.

    kind "softmax": the largest probabilities (the largest logits), which are the weights. "sigmoid": scores are
    sigmoid(logits); the choice is by score + bias, within the `top_groups` groups (of `groups` equal ones) whose two
    best choices have the largest sums, where other experts count as `fill` (f64, 0.0 if absent); weights are the
    scores without bias. With `normalize` weights are divided by their sum + 1e-20. Then they are multiplied by `scale`.

    logits: [T, experts]; bias: [experts], optional; indices: [T, k] i32; weights: [T, k] f32.
    """

    logits: Operand[Tensor]
    bias: Operand[Tensor] | None
    kind: ir.StringAttr
    k: ir.IntegerAttr
    groups: ir.IntegerAttr
    top_groups: ir.IntegerAttr
    normalize: ir.IntegerAttr
    scale: ir.FloatAttr
    indices: Result[Tensor]
    weights: Result[Tensor]

    @staticmethod
    def verify_region_invariants(op: Any) -> bool:
        """A known kind; groups and k fit the experts."""
        logits, *bias = (shape_of(v) for v in op.operation.operands)
        k, groups, top = (get(op, n) for n in ("k", "groups", "top_groups"))
        experts, kind = logits[-1], get(op, "kind")
        even = 0 < top <= groups and divides(groups, experts)
        return first_failure(
            op,
            [
                (kind in ("softmax", "sigmoid"), "kind is softmax or sigmoid"),
                (0 < k <= experts, f"{k} of {experts} experts"),
                (even, f"{top} of {groups} groups of {experts} experts"),
                (groups <= 1 or experts // groups > 1, "a group has two experts or more"),
                (kind == "sigmoid" or groups == 1, "groups are for sigmoid"),
                (all(b == [experts] for b in bias), f"bias of {bias} for {experts} experts"),
                (kind == "sigmoid" or not bias, "a bias is for sigmoid"),
                (
                    all(shape_of(r)[1:] == [k] for r in op.operation.results),
                    f"results are {k} experts and weights",
                ),
            ],
        )


class ExpertLinearOp(Graph.Operation, name="expert_linear"):
    """For each of a token's k experts e: x · weight[e]ᵀ, one result behind the other.

    x: [T, K], the same for all, or [T, k·K], a part for each; indices: [T, k] i32; weight: [experts, N, K];
    result: [T, k·N].
    """

    x: Operand[Tensor]
    indices: Operand[Tensor]
    weight: Operand[Tensor]
    result: Result[Tensor]

    @staticmethod
    def verify_region_invariants(op: Any) -> bool:
        """Sizes agree."""
        x, indices, weight = (shape_of(v) for v in op.operation.operands)
        out = shape_of(op.operation.results[0])
        fits = len(weight) == 3 and x[-1] in (weight[2], indices[-1] * weight[2])
        return first_failure(
            op,
            [
                (fits, f"x of {x} against weight of {weight}"),
                (fits and out[-1] == indices[-1] * weight[1], f"result of {out} from {weight}"),
            ],
        )


class WeightedSumOp(Graph.Operation, name="weighted_sum"):
    """Σ over j, ascending, of weights[j] · part j of x.

    x: [T, k·N]; weights: [T, k] f32; result: [T, N].
    """

    x: Operand[Tensor]
    weights: Operand[Tensor]
    result: Result[Tensor]

    @staticmethod
    def verify_region_invariants(op: Any) -> bool:
        """x holds a part for each weight."""
        x, weights = (shape_of(v) for v in op.operation.operands)
        out = shape_of(op.operation.results[0])
        fits = x[-1] == weights[-1] * out[-1]
        return first_failure(op, [(fits, f"{weights} weights of {x} for a result of {out}")])
