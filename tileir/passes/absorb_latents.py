"""absorb-latents: attention over latents as they are cached, instead of over what they expand to."""

from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

from tileir.dialect.attributes import (
    build,
    element_of,
    get,
    located,
    name_of,
    static_shape,
    tensor,
    walk,
)
from tileir.errors import TileirError
from tileir.mlir import ir
from tileir.passes.base import Pass
from tileir.passes.dataflow import producer


@dataclass(frozen=True)
class AbsorbLatentsPass(Pass):
    """Move the matrix that expands latents from every cached row to the queries and to the output.

    A score q · (W_k · latent) is (W_kᵀ · q) · latent, and a sum of values W_v · latent is W_v · the sum of latents,
    head by head. Source: DeepSeek-V2, 2024, section 2.1.2. Both halves of the matrix become views of it.

    Before: graph level. After: no graph.mla_attention is left, unless `enable` is false.

        %a = "graph.mla_attention"(%q, %q_rope, %latents, %w, %positions)
        →
        %k = "graph.weight"()                             [heads, latent, nope] of %w
        %l = "graph.grouped_linear"(%q, %k)
        %s = "graph.latent_attention"(%l, %q_rope, %latents, %positions)
        %v = "graph.weight"()                             [heads, value, latent] of %w
        %a = "graph.grouped_linear"(%s, %v)
    """

    name: ClassVar[str] = "absorb-latents"
    before: ClassVar[str] = "graph"
    after: ClassVar[str] = "graph"

    enable: bool = True

    def run(self, module: Any) -> None:
        """Rewrite. Raises TileirError for a matrix that is no graph.weight."""
        if self.enable:
            for op in list(walk(module, "graph.mla_attention")):
                _absorb(op)


def _absorb(op: Any) -> None:
    """Rewrite one attention; its matrix goes if nothing else reads it."""
    q, q_rope, latents, matrix, positions, *indices = op.operands
    heads, nope, value, rank = (
        get(op, n) for n in ("heads", "nope_size", "value_size", "latent_size")
    )
    owner = producer(matrix)
    if owner is None or name_of(owner) != "graph.weight":
        raise TileirError(
            "latents are expanded by something else than a weight",
            location=located(op),
            hint="a graph.weight [heads, nope + value, latent], or absorb-latents{enable=false}",
        )
    element = element_of(q)
    with ir.InsertionPoint(op), op.location:
        offset, (head, row, column) = _layout(owner)
        keys = _view(owner, [heads, rank, nope], offset, [head, column, row])
        absorbed = _grouped(q, keys, heads * rank, element)
        facts = {n: get(op, n) for n in ("heads", "latent_size", "rope_size", "scale")}
        operands = [absorbed, q_rope, latents, positions, *indices]
        attended = build(
            "graph.latent_attention", operands, [tensor([None, heads * rank], element)], **facts
        )
        values = _view(owner, [heads, value, rank], offset + nope * row, [head, row, column])
        made = _grouped(attended.results[0], values, heads * value, element)
    op.results[0].replace_all_uses_with(made)
    op.erase()
    if not list(matrix.uses):
        owner.erase()


def _layout(weight: Any) -> tuple[int, list[int]]:
    """(offset, strides) of a weight's values in the checkpoint's tensor."""
    shape = static_shape(weight.results[0])
    whole = [prod(shape[i + 1 :]) for i in range(len(shape))]
    return get(weight, "offset", 0), get(weight, "strides", whole)


def _view(weight: Any, shape: list[int], offset: int, strides: list[int]) -> Any:
    kind = tensor(shape, element_of(weight.results[0]))
    facts = {"sym_name": get(weight, "sym_name"), "strides": strides}
    if offset:
        facts["offset"] = offset
    return build("graph.weight", [], [kind], **facts).results[0]


def _grouped(x: Any, weight: Any, size: int, element: str) -> Any:
    kind = tensor([None, size], element)
    return build("graph.grouped_linear", [x, weight], [kind]).results[0]
