"""What the importer knows of nodes: which are SSA values by now, which are linears that others may pick from."""

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.fx import Node

from tileir.dialect.attributes import build, get, shape_of, tensor
from tileir.errors import TileirError
from tileir.frontends.torch_export.nodes import (
    Constants,
    behind,
    module_path,
    op_name,
    refuse,
    shape,
)
from tileir.frontends.torch_export.selections import pairs_apart, selected, strided
from tileir.mlir import ir

SUPPORTED = (
    "embedding, linear, rms_norm, layer_norm, rotary embedding, KV caches, attention with a "
    "position mask or a list of positions, latents expanded by a linear, silu, gelu and relu, with or without a gate, "
    "products with a number, tanh caps, experts as batched products, softmax and sigmoid routers, residual add"
)
DTYPES = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "bf16"}
_PARTS = "parts of a linear's values can be used by themselves, parts of others cannot"
_EARLY = {
    "addmm": "export without core-ATen decompositions: run_decompositions({})",
    "mm": "export without core-ATen decompositions: run_decompositions({})",
    "cond": "data-dependent control flow cannot be compiled: make the step straight-line",
    "while_loop": "data-dependent control flow cannot be compiled: make the step straight-line",
    "native_dropout": "the graph was exported in training mode: call model.eval()",
    "dropout": "the graph was exported in training mode: call model.eval()",
    "slice": _PARTS,
    "getitem": _PARTS,
    "linear": "a linear of all cached rows belongs to an attention whose keys are the first of its values beside a "
    "cached key of all heads, and whose values are the rest",
    "_grouped_mm": 'export experts as batched products: config._experts_implementation = "batched_mm"',
}
# A part of a weight: offset, sizes, strides, all in values.
View = tuple[int, list[int], list[int]]


@dataclass(frozen=True)
class Source:
    """A linear, or one of chosen experts, of which parts may be read. indices: SSA, the experts chosen."""

    x: Any
    weight: Node
    bias: Node | None = None
    indices: Any = None


class Values:
    """SSA values by node, and what is declared; builds at the current insertion point."""

    def __init__(self, program: ExportedProgram) -> None:
        self.program, self.constants = program, Constants(program)
        self.values: dict[Node, Any] = {}
        self.sources: dict[Node, Source] = {}
        self.parts: dict[tuple[Node, bytes], Any] = {}
        self.declared: dict[Any, Any] = {}

    def value(self, node: Any) -> Any:
        """The SSA value of a node. Raises TileirError for one that no pattern took."""
        found = self.known(node)
        if found is not None:
            return found
        node = behind(node)
        if isinstance(node, Node) and node.op == "call_function":
            name = op_name(node)
            hint = _EARLY.get(name, f"supported: {SUPPORTED}")
            raise refuse(node, f"nothing takes the operation {name!r}", hint)
        raise TileirError(f"node {node} is used where a computed value belongs")

    def known(self, node: Any, pairs: bool = False) -> Any:
        """The SSA value of a node, or of a part of a linear; None if there is none.

        pairs: with the even values of the last dimension before the odd ones, of parts of linears only.
        """
        node = node if pairs else behind(node)
        if not pairs and node in self.values:
            return self.values[node]
        found = selected(node, self.sources)
        if found is None:
            return None
        source, indices = found
        return self._selection(source, pairs_apart(indices) if pairs else indices, node)

    def picked(self, source: Node, indices: Any, user: Node) -> Any:
        """The SSA value of a source's values at `indices`: all of them in order, or a part of a linear."""
        if torch.equal(indices, torch.arange(prod(shape(source)))):
            return self.known(source)
        return self._selection(source, indices, user) if source in self.sources else None

    def _selection(self, source: Node, indices: Any, user: Node) -> Any:
        flat = indices.reshape(-1).numpy()
        key = (source, flat.tobytes())
        if key not in self.parts:
            with ir.Location.name(module_path(source) or source.name):
                self.parts[key] = self._part(source, flat, user)
        return self.parts[key]

    def _part(self, node: Node, indices: np.ndarray, user: Node) -> Any:
        """Some values of a linear, as the linear of a view of its weight."""
        source = self.sources[node]
        width = shape(source.weight)[-1]
        slots = 1 if source.indices is None else int(shape_of(source.indices)[1] or 0)
        rows = indices.reshape(slots, -1) - np.arange(slots)[:, None] * (prod(shape(node)) // slots)
        view = strided(rows[0])
        if view is None or np.any(rows != rows[:1]) or (slots > 1 and len(view[1]) > 1):
            raise refuse(
                user,
                "a part of a linear that is no view of its weight",
                "slices and transpositions",
            )
        if slots > 1:
            return self.build_experts(source, [view[1][0], width], view, node)
        bias = None
        if source.bias is not None:
            bias = self.weight(source.bias, node, view)
        wide = (view[0] * width, [*view[1], width], [*(s * width for s in view[2]), 1])
        return self.build_linear(source.x, self.weight(source.weight, node, wide), bias, node)

    def build_linear(self, x: Any, weight: Any, bias: Any, node: Node) -> Any:
        """A graph.linear; node gives the dtype."""
        operands = [x, weight] + ([] if bias is None else [bias])
        kind = self.type(node, prod(int(s or 0) for s in shape_of(weight)[:-1]))
        return build("graph.linear", operands, [kind]).results[0]

    def build_experts(self, source: Source, sizes: list[int], rows: View | None, node: Node) -> Any:
        """A graph.expert_linear; sizes: [rows, K] of an expert; rows: which, or None for all."""
        number, every, width = shape(source.weight)
        view = None
        if rows is not None:
            strides = [every * width, rows[2][0] * width, 1]
            view = (rows[0] * width, [number, *sizes], strides)
        weight = self.weight(source.weight, node, view)
        kind = self.type(node, (shape_of(source.indices)[1] or 0) * sizes[0])
        return build("graph.expert_linear", [source.x, source.indices, weight], [kind]).results[0]

    def type(self, node: Node, size: int | None = None) -> Any:
        """T rows of so many values; by default, of all that a node has for one token."""
        dtype = DTYPES.get(node.meta["val"].dtype, "f32")
        return tensor([None, prod(shape(node)) if size is None else size], dtype)

    def weight(self, node: Any, user: Node, view: View | None = None) -> Any:
        """A parameter or persistent buffer, or a view of it. Raises TileirError for another node."""
        name = self.constants.weight_name(node)
        if name is None:
            raise refuse(
                user, "a weight is no parameter", "weights are parameters or persistent buffers"
            )
        source = behind(node)
        whole = shape(source)
        if view is not None and view == (
            0,
            whole,
            [prod(whole[i + 1 :]) for i in range(len(whole))],
        ):
            view = None
        key = (name, str(view)) if view else name
        if key not in self.declared:
            dtype = source.meta["val"].dtype
            if dtype not in DTYPES:
                raise refuse(user, f"weight {name!r} is {dtype}", "float32, bfloat16, float16 work")
            offset, sizes, strides = view or (0, whole, None)
            facts: dict[str, Any] = {"strides": strides} if strides else {}
            if offset:
                facts["offset"] = offset
            kind = tensor(sizes, DTYPES[dtype])
            op = build("graph.weight", [], [kind], sym_name=name, **facts)
            self.declared[key] = op.results[0]
        return self.declared[key]

    def constant(self, value: np.ndarray) -> Any:
        """A graph.constant of rope's frequencies, one for equal ones."""
        key = value.tobytes()
        if key not in self.declared:
            kind = tensor(value.shape, "f32")
            number = sum(isinstance(k, bytes) for k in self.declared)
            name = f"inv_freq_{number}"
            op = build("graph.constant", [], [kind], sym_name=name, value=value)
            self.declared[key] = op.results[0]
        return self.declared[key]

    def state(self, name: str, sizes: list[int], dtype: torch.dtype) -> Any:
        """A graph.state, declared once."""
        key = ("state", name, tuple(sizes))
        if key not in self.declared:
            kind = tensor(sizes, DTYPES[dtype])
            self.declared[key] = build("graph.state", [], [kind], sym_name=name).results[0]
        return self.declared[key]


def drop_unread(block: Any) -> None:
    """Erase operations whose results nothing reads: what larger patterns have taken over."""
    for op in reversed(list(block)):
        name = str(op.operation.name)
        if name.startswith("graph.") and all(not list(r.uses) for r in op.operation.results):
            assert get(op, "kind") != "argmax", "a token is always returned"
            op.operation.erase()
