"""Operations of attention: what is appended to states, what is chosen of them, what is read."""

from typing import Any

from tileir.dialect.attributes import divides, element_of, first_failure, get, shape_of
from tileir.dialect.graph import Graph, Operand, Result, Tensor
from tileir.mlir import ir


class AppendOp(Graph.Operation, name="append"):
    """The state after [h, position, offset : offset + n] has been set to x[h·n : (h+1)·n].

    state: [heads, context, size]; x: [T, heads·n]; positions: [T] i32. `offset` is 0 if absent.
    """

    state: Operand[Tensor]
    x: Operand[Tensor]
    positions: Operand[Tensor]
    result: Result[Tensor]

    @staticmethod
    def verify_region_invariants(op: Any) -> bool:
        """x holds a row, or a part of one, of every head."""
        state, x, _ = (shape_of(v) for v in op.operation.operands)
        offset = get(op, "offset", 0)
        fits = divides(state[0], x[-1]) and 0 <= offset <= state[2] - x[-1] // state[0]
        return first_failure(
            op,
            [
                (fits, f"x of {x} at {offset} for a state of {state}"),
                (shape_of(op.operation.results[0]) == state, "result's shape is not the state's"),
            ],
        )


class AttentionOp(Graph.Operation, name="attention"):
    """softmax(q·kᵀ·scale) · v over positions ≤ the token's own, grouped queries sharing a kv head.

    q: [T, heads·head_size]; k, v: states after append; indices: [T, k] i32, optional: only these positions, -1 is
    none. window > 0 keeps the last `window` positions; softcap > 0 replaces a score s by softcap·tanh(s / softcap).
    """

    q: Operand[Tensor]
    k: Operand[Tensor]
    v: Operand[Tensor]
    positions: Operand[Tensor]
    indices: Operand[Tensor] | None
    heads: ir.IntegerAttr
    kv_heads: ir.IntegerAttr
    head_size: ir.IntegerAttr
    scale: ir.FloatAttr
    window: ir.IntegerAttr
    softcap: ir.FloatAttr
    result: Result[Tensor]

    @staticmethod
    def verify_region_invariants(op: Any) -> bool:
        """Heads, head size and states fit."""
        q, k, v = (shape_of(o) for o in list(op.operation.operands)[:3])
        heads, kv, size = (get(op, n) for n in ("heads", "kv_heads", "head_size"))
        return first_failure(
            op,
            [
                (divides(kv, heads), f"{heads} heads cannot share {kv} kv heads"),
                (q[-1] == heads * size, f"q of {q} is not {heads} heads of {size}"),
                ((k[0], k[2]) == (kv, size), f"k state of {k} is not {kv} heads of {size}"),
                (k == v, f"k state of {k} and v state of {v} differ"),
                (get(op, "window") >= 0, "window is negative"),
            ],
        )


def _latents(op: Any, q_size: int) -> list[tuple[bool, str]]:
    """What attention over latents needs; q_size: values of a head of q."""
    q, turned, state = (shape_of(o) for o in list(op.operation.operands)[:3])
    heads, rope, latent = (get(op, n) for n in ("heads", "rope_size", "latent_size"))
    return [
        (q[-1] == heads * q_size, f"q of {q} is not {heads} heads of {q_size}"),
        (turned[-1] == heads * rope, f"q_rope of {turned} is not {heads} heads of {rope}"),
        (
            (state[0], state[2]) == (1, latent + rope),
            f"state of {state} is not one head of {latent} + {rope}",
        ),
    ]


class MlaAttentionOp(Graph.Operation, name="mla_attention"):
    """Attention over compressed keys and values, as exported. Source: DeepSeek-V2, 2024.

    A row of the state is a latent of R values and a roped key that all heads share. Head h's key at a position is
    (weight[h, :nope] · latent, roped key), its value weight[h, nope:] · latent; queries are (q, q_rope).
    softmax(scores · scale) over positions ≤ the token's own, only `indices` ([T, k] i32, -1 is none) if given.

    q: [T, heads·nope_size]; q_rope: [T, heads·rope_size]; latents: state [1, context, latent_size + rope_size];
    weight: [heads, nope_size + value_size, latent_size]; result: [T, heads·value_size].
    """

    q: Operand[Tensor]
    q_rope: Operand[Tensor]
    latents: Operand[Tensor]
    weight: Operand[Tensor]
    positions: Operand[Tensor]
    indices: Operand[Tensor] | None
    heads: ir.IntegerAttr
    nope_size: ir.IntegerAttr
    rope_size: ir.IntegerAttr
    value_size: ir.IntegerAttr
    latent_size: ir.IntegerAttr
    scale: ir.FloatAttr
    result: Result[Tensor]

    @staticmethod
    def verify_region_invariants(op: Any) -> bool:
        """Heads, sizes, state and weight fit."""
        heads, nope, value, latent = (
            get(op, n) for n in ("heads", "nope_size", "value_size", "latent_size")
        )
        weight = shape_of(op.operation.operands[3])
        out = shape_of(op.operation.results[0])
        return first_failure(
            op,
            [
                *_latents(op, nope),
                (
                    weight == [heads, nope + value, latent],
                    f"weight of {weight} is not {heads} × ({nope} + {value}) × {latent}",
                ),
                (out[-1] == heads * value, f"result of {out} is not {heads} heads of {value}"),
            ],
        )


class LatentAttentionOp(Graph.Operation, name="latent_attention"):
    """Attention whose keys are whole rows of a state, and values the first latent_size values of a row.

    softmax((q, q_rope) · row · scale) over positions ≤ the token's own, only `indices` ([T, k] i32, -1 is none) if
    given. All heads share the rows.

    q: [T, heads·latent_size]; q_rope: [T, heads·rope_size]; latents: state [1, context, latent_size + rope_size];
    result: [T, heads·latent_size].
    """

    q: Operand[Tensor]
    q_rope: Operand[Tensor]
    latents: Operand[Tensor]
    positions: Operand[Tensor]
    indices: Operand[Tensor] | None
    heads: ir.IntegerAttr
    latent_size: ir.IntegerAttr
    rope_size: ir.IntegerAttr
    scale: ir.FloatAttr
    result: Result[Tensor]

    @staticmethod
    def verify_region_invariants(op: Any) -> bool:
        """Heads, sizes and state fit."""
        q, out = shape_of(op.operation.operands[0]), shape_of(op.operation.results[0])
        checks = _latents(op, get(op, "latent_size"))
        return first_failure(op, [*checks, (q == out, f"q of {q}, result of {out}")])


class IndexScoresOp(Graph.Operation, name="index_scores"):
    """How much a token wants each position: Σ over heads h of weights[h] · relu(scale · q_h · key).

    Source: DeepSeek-V3.2, 2025. Scores of positions above the token's own are not defined.

    q: [T, heads·head_size]; weights: [T, heads]; keys: state [1, context, head_size]; result: [T, context] f32.
    """

    q: Operand[Tensor]
    weights: Operand[Tensor]
    keys: Operand[Tensor]
    positions: Operand[Tensor]
    heads: ir.IntegerAttr
    head_size: ir.IntegerAttr
    scale: ir.FloatAttr
    result: Result[Tensor]

    @staticmethod
    def verify_region_invariants(op: Any) -> bool:
        """Heads and the state fit."""
        q, weights, keys, _ = (shape_of(o) for o in op.operation.operands)
        heads, size = get(op, "heads"), get(op, "head_size")
        out = op.operation.results[0]
        return first_failure(
            op,
            [
                (q[-1] == heads * size, f"q of {q} is not {heads} heads of {size}"),
                (weights[-1] == heads, f"weights of {weights} for {heads} heads"),
                ((keys[0], keys[2]) == (1, size), f"state of {keys} is not one head of {size}"),
                (
                    shape_of(out)[-1] == keys[1] and element_of(out) == "f32",
                    f"result of {out.type} is no f32 score of {keys[1]} positions",
                ),
            ],
        )


class TopKOp(Graph.Operation, name="top_k"):
    """The k positions ≤ the token's own with the largest scores, ascending; -1 behind them if there are fewer.

    Ties go to the lowest position. scores: [T, context] f32; positions: [T] i32; result: [T, k] i32.
    """

    scores: Operand[Tensor]
    positions: Operand[Tensor]
    k: ir.IntegerAttr
    result: Result[Tensor]

    @staticmethod
    def verify_region_invariants(op: Any) -> bool:
        """k is what the result has."""
        k, out = get(op, "k"), op.operation.results[0]
        context = shape_of(op.operation.operands[0])[-1]
        return first_failure(
            op,
            [
                (0 < k <= context, f"k of {k} for {context} positions"),
                (
                    shape_of(out)[1:] == [k] and element_of(out) == "i32",
                    f"result of {out.type} is no {k} positions",
                ),
            ],
        )
