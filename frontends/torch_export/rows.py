"""Rules for what works on rows of values: embeddings, linears, norms, gated units, sums, rotations."""

from math import prod
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from tileir.dialect.attributes import all_of, build, get, name_of, shape_of, tensor
from tileir.frontends.torch_export.elementwise import (
    match_activation,
    match_scale,
    match_softcap,
)
from tileir.frontends.torch_export.nodes import behind, op_name, refuse, shape
from tileir.frontends.torch_export.norms import match_norm
from tileir.frontends.torch_export.patterns import match_glu
from tileir.frontends.torch_export.rotary import Rope, match_rope
from tileir.frontends.torch_export.selections import root, selected
from tileir.frontends.torch_export.values import Source, Values
from tileir.mlir import ir


class Rows(Values):
    """Each rule returns a node's SSA value, or None if the node is no such thing by itself."""

    def __init__(self, program: ExportedProgram) -> None:
        super().__init__(program)
        self.ropes: dict[Node, Rope] = {}
        self.token_input: Node | None = None
        self.position_input: Node | None = None
        self.tokens: Any = None
        self.positions: Any = None

    def sample(self, node: Node) -> Any:
        """The token that logits choose."""
        logits = self.value(node)
        if logits not in self.declared:
            kind = tensor([None], "i32")
            op = build("graph.sample", [logits], [kind], kind="argmax")
            self.declared[logits] = op.results[0]
        return self.declared[logits]

    def is_position(self, node: Any) -> bool:
        """Whether a node is the program's second input, or a view of it."""
        return behind(node) is self.position_input

    def embedding(self, node: Node) -> Any:
        """Rows of a table, of the step's tokens or of those just chosen."""
        place = behind(node.args[1])
        if self.is_position(place):
            if self.constants.value(node.args[0]) is not None:
                return None  # rows of a table, which a rotation or a mask reads
            raise refuse(
                node,
                "an embedding of positions",
                "learned positions do not compile; rotary ones do",
            )
        tokens = self.tokens if place is self.token_input else self.values.get(place)
        if tokens is None:
            raise refuse(
                node,
                "an embedding of something else than tokens",
                "embed input_ids, or the argmax of logits",
            )
        table = self.weight(node.args[0], node)
        return build("graph.embedding", [table, tokens], [self.type(node)], scale=1.0).results[0]

    def argmax(self, node: Node) -> Any:
        """The token that logits choose."""
        rank = len(shape(node.args[0]))
        whole = len(node.args) > 1 and node.args[1] in (-1, rank - 1)
        return self.sample(node.args[0]) if whole else None

    def linear(self, node: Node) -> Any:
        """A linear, or the sum of several, of values side by side."""
        if op_name(behind(node.args[0])) == "index_copy":
            return None  # of every cached row: part of an attention, or refused where it is read
        bias = node.args[2] if len(node.args) > 2 else None
        if self.known(node.args[0]) is None and op_name(behind(node.args[0])) == "cat":
            return self._linear_of_parts(node, bias)
        x, weight = self.value(node.args[0]), self.weight(node.args[1], node)
        self.sources[node] = Source(x, node.args[1], bias)
        return self.build_linear(x, weight, None if bias is None else self.weight(bias, node), node)

    def _linear_of_parts(self, node: Node, bias: Any) -> Any:
        """A linear of values side by side, as the sum of linears of parts of its weight."""
        cat = behind(node.args[0])
        rows, width = shape(node.args[1])
        total, at = None, 0
        for part in cat.args[0]:
            size = shape(part)[-1]
            weight = self.weight(node.args[1], node, (at, [rows, size], [width, 1]))
            made = self.build_linear(self.value(part), weight, None, node)
            if total is None:
                total = made if bias is None else self._biased(made, bias, node)
            else:
                total = build("graph.add", [total, made], [made.type]).results[0]
            at += size
        if at != width:
            raise refuse(cat, "values side by side along another dimension", "cat along the last")
        return total

    def _biased(self, made: Any, bias: Any, node: Node) -> Any:
        op = made.owner
        value = self.build_linear(op.operands[0], op.operands[1], self.weight(bias, node), node)
        op.operation.erase()
        return value

    def product(self, node: Node) -> Any:
        """The last multiplication of an RMS norm, or of a gated unit."""
        norm = match_norm(node)
        if norm is not None:
            x, weight = self.value(norm.x), self.weight(norm.weight, node)
            facts: dict[str, Any] = {"eps": norm.eps, "unit_offset": norm.unit_offset}
            if shape_of(weight) != shape(node)[-1:]:
                raise refuse(
                    node, "a norm over something else than rows or heads", "normalise rows"
                )
            return build("graph.rms_norm", [x, weight], [self.type(node)], **facts).results[0]
        glu = match_glu(node)
        if glu is not None and match_scale(node, self.constants) is None:
            gate, up = self.value(glu[0]), self.value(glu[1])
            if shape_of(gate) != shape_of(up):
                raise refuse(node, "a gate of another size than what it lets pass", "one size")
            return build("graph.glu", [gate, up], [self.type(node)], activation=glu[2]).results[0]
        value = self.activation(node)
        return self.scaled(node) if value is None else value

    def activation(self, node: Node) -> Any:
        """An activation without a gate; one that gates is not read and goes."""
        found = match_activation(node)
        x = None if found is None else self.known(found[0])
        if found is None or x is None:
            return None
        return build("graph.activate", [x], [x.type], activation=found[1]).results[0]

    def scaled(self, node: Node) -> Any:
        """A capped or scaled value."""
        found = match_softcap(node, self.constants)
        x = None if found is None else self.known(found[0])
        if found is not None and x is not None:
            return build("graph.softcap", [x], [x.type], cap=found[1]).results[0]
        found = match_scale(node, self.constants)
        x = None if found is None else self.known(found[0])
        if found is None or x is None:
            return None
        op = x.owner
        if name_of(op) == "graph.embedding":
            factor = get(op, "scale") * found[1]
            return build("graph.embedding", list(op.operands), [x.type], scale=factor).results[0]
        return build("graph.scale", [x], [x.type], factor=found[1]).results[0]

    def unscaled(self, value: Any) -> tuple[Any, float]:
        """A value without the numbers that it is multiplied by, through rotations, and their product."""
        op = value.owner
        if isinstance(op, ir.Block) or name_of(op) not in ("graph.scale", "graph.rope"):
            return value, 1.0
        inner, factor = self.unscaled(op.operands[0])
        if name_of(op) == "graph.scale":
            return inner, factor * get(op, "factor")
        if factor == 1.0:
            return value, 1.0
        turned = build("graph.rope", [inner, *list(op.operands)[1:]], [value.type], **all_of(op))
        return turned.results[0], factor

    def layer_norm(self, node: Node) -> Any:
        """A layer norm of whole rows."""
        x, sizes, weight, bias, eps, *_ = (*node.args, None, None, 1e-5)[: max(5, len(node.args))]
        if weight is None or bias is None or list(sizes) != [prod(shape(x))]:
            raise refuse(node, "a layer norm of parts of rows, or without weight or bias", "rows")
        operands = [self.value(x), self.weight(weight, node), self.weight(bias, node)]
        return build("graph.layer_norm", operands, [self.type(node)], eps=float(eps)).results[0]

    def add(self, node: Node) -> Any:
        """The last addition of a rotation, or a sum of values."""
        rope = self.rope(node)
        if rope is not None:
            return rope
        sides = [behind(a) for a in node.args[:2]]
        if any(s not in self.values for s in sides):
            return None
        a, b = (self.values[s] for s in sides)
        if shape_of(a) != shape_of(b):
            raise refuse(node, "a sum of values of two sizes", "one size")
        return build("graph.add", [a, b], [self.type(node)]).results[0]

    # ---- rotary positions

    def rope(self, node: Node) -> Any:
        """The last operation of a rotation of all values, or of a part of each head."""
        rope = match_rope(node, self.constants)
        if rope is None:
            return self._partial_rope(node) if op_name(node) == "cat" else None
        if not self.is_position(rope.positions):
            raise refuse(
                node,
                "a rotation by something else than positions",
                "angles = positions[:, None] * frequencies, of the program's second input",
            )
        if rope.inv_freq is None:
            raise refuse(
                node,
                "no frequencies give the tables that rope reads",
                "row p holds the cosines, or sines, of p · frequency, times one factor",
            )
        size = prod(shape(node)[-2:]) if op_name(node) == "stack" else shape(node)[-1]
        if 2 * len(rope.inv_freq) != size:
            raise refuse(
                node, f"rope turns {2 * len(rope.inv_freq)} of {size} values", "turn all values"
            )
        self.ropes[node] = rope
        x, style = self.known(rope.x), rope.style
        if style == "split":
            apart = self.known(rope.x, pairs=True)
            x, style = (x, style) if apart is None else (apart, "half")
        return None if x is None else self._turn(rope, x, size, 0, style)

    def _partial_rope(self, node: Node) -> Any:
        """A cat of a head's rotated values with those that pass."""
        parts = list(node.args[0])
        ropes = [self.ropes.get(behind(part)) for part in parts]
        if sum(rope is not None for rope in ropes) != 1:
            return None
        picked = [part if rope is None else rope.x for part, rope in zip(parts, ropes, strict=True)]
        base = root(picked[0])
        found = [selected(part, (base,)) for part in picked]
        if any(f is None for f in found):
            return None
        whole = torch.cat([f[1] for f in found if f is not None], -1).reshape(-1)
        x = self.picked(base, whole, node)
        if x is None:
            return None
        (rope,) = [rope for rope in ropes if rope is not None]
        first = sum(shape(part)[-1] for part in parts[: ropes.index(rope)])
        return self._turn(rope, x, shape(node)[-1], first, rope.style)

    def _turn(self, rope: Rope, x: Any, size: int, first: int, style: str) -> Any:
        assert rope.inv_freq is not None
        operands = [x, self.positions, self.constant(rope.inv_freq)]
        facts: dict[str, Any] = {"head_size": size, "scale": rope.scale, "style": style}
        if first:
            facts["offset"] = first
        return build("graph.rope", operands, [x.type], **facts).results[0]
