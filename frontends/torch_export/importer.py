"""ExportedProgram → graph dialect."""

from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.fx import Node

from tileir.dialect.attributes import build, put, shape_of, tensor
from tileir.errors import TileirError
from tileir.frontends.torch_export.nodes import (
    Constants,
    behind,
    module_path,
    op_name,
    refuse,
    shape,
)
from tileir.frontends.torch_export.patterns import match_glu, match_mask, match_norm, match_rope
from tileir.mlir import func, ir

SUPPORTED = (
    "embedding, linear, rms_norm, rotary embedding by halves, index_copy KV caches, "
    "scaled_dot_product_attention with a position mask, silu and gelu(tanh) gated units, residual add"
)
_DTYPES = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "bf16"}
_EARLY = {
    "addmm": "export without core-ATen decompositions: run_decompositions({})",
    "mm": "export without core-ATen decompositions: run_decompositions({})",
    "cond": "data-dependent control flow cannot be compiled: make the step straight-line",
    "while_loop": "data-dependent control flow cannot be compiled: make the step straight-line",
    "native_dropout": "the graph was exported in training mode: call model.eval()",
    "dropout": "the graph was exported in training mode: call model.eval()",
}


def import_program(program: ExportedProgram, context: Any) -> Any:
    """The graph-level module of a decode step `(input_ids [1, 1], positions [1]) -> logits [1, 1, vocabulary]`.

    program: after `run_decompositions({})`. context: an MLIR context with tileir's dialects. The module's function
    ends in graph.sample; its attributes say context and vocabulary. Raises TileirError for a node that nothing takes.
    """
    with context, ir.Location.unknown():
        return _Importer(program).run()


class _Importer:
    """Walks the nodes in order; `values` holds what has become SSA, the rest waits to be part of a pattern."""

    def __init__(self, program: ExportedProgram) -> None:
        self.program, self.constants = program, Constants(program)
        self.values: dict[Node, Any] = {}
        self.declared: dict[Any, Any] = {}
        self.tokens: Any = None
        self.positions: Any = None
        self.context = 0

    def run(self) -> Any:
        """Build the module."""
        inputs = self._inputs()
        module = ir.Module.create()
        with ir.InsertionPoint(module.body):
            kind = tensor([None], "i32")
            function = func.FuncOp("step", ([kind, kind], [kind]))
            block = function.add_entry_block()
        self.tokens, self.positions = block.arguments
        self.inputs = dict(zip(inputs, block.arguments, strict=True))
        with ir.InsertionPoint(block):
            for node in self.program.graph.nodes:
                if node.op == "call_function":
                    with ir.Location.name(module_path(node) or node.name):
                        self._node(node)
            logits = self._value(self._logits())
            token = build("graph.sample", [logits], [kind], kind="argmax").results[0]
            func.ReturnOp([token])
        vocabulary = shape_of(logits)[-1]
        facts = {"level": "graph", "context": self.context, "vocabulary": vocabulary}
        put(module.operation, **{f"tileir.{n}": v for n, v in facts.items()})
        assert module.operation.verify()
        return module

    def _inputs(self) -> list[Node]:
        names = self.program.graph_signature.user_inputs
        nodes = {n.name: n for n in self.program.graph.nodes if n.op == "placeholder"}
        found = [nodes[n] for n in names if n in nodes]
        if len(found) != 2 or any(torch.Size(shape(n)).numel() != 1 for n in found):
            raise TileirError(
                f"the program takes inputs of {[shape(n) for n in found]}",
                hint="export forward(input_ids [1, 1], positions [1]); the compiler adds tokens a step",
            )
        return found

    def _logits(self) -> Node:
        (output,) = [n for n in self.program.graph.nodes if n.op == "output"]
        names = self.program.graph_signature.user_outputs
        found = [n for n in output.args[0] if isinstance(n, Node) and n.name in names]
        if len(found) != 1:
            raise TileirError(f"the program has {len(found)} outputs", hint="it returns the logits")
        return found[0]

    def _value(self, node: Any) -> Any:
        """The SSA value of a node. Raises TileirError for one that no pattern took."""
        node = behind(node)
        if node in self.values:
            return self.values[node]
        if isinstance(node, Node) and node.op == "call_function":
            name = op_name(node)
            hint = _EARLY.get(name, f"supported: {SUPPORTED}")
            raise refuse(node, f"nothing takes the operation {name!r}", hint)
        raise TileirError(f"node {node} is used where a computed value belongs")

    def _type(self, node: Node, size: int) -> Any:
        return tensor([None, size], _DTYPES.get(node.meta["val"].dtype, "f32"))

    def _weight(self, node: Any, user: Node) -> Any:
        name = self.constants.weight_name(node)
        if name is None:
            raise refuse(
                user, "a weight is no parameter", "weights are parameters or persistent buffers"
            )
        if name not in self.declared:
            source = behind(node)
            dtype = source.meta["val"].dtype
            if dtype not in _DTYPES:
                raise refuse(user, f"weight {name!r} is {dtype}", "float32, bfloat16, float16 work")
            kind = tensor(shape(source), _DTYPES[dtype])
            self.declared[name] = build("graph.weight", [], [kind], sym_name=name).results[0]
        return self.declared[name]

    def _constant(self, value: np.ndarray) -> Any:
        key = value.tobytes()
        if key not in self.declared:
            kind = tensor(value.shape, "f32")
            number = sum(isinstance(k, bytes) for k in self.declared)
            name = f"inv_freq_{number}"
            op = build("graph.constant", [], [kind], sym_name=name, value=value)
            self.declared[key] = op.results[0]
        return self.declared[key]

    # ---- nodes

    def _node(self, node: Node) -> None:
        rules = {
            "embedding": self._embedding,
            "linear": self._linear,
            "index_copy": self._append,
            "scaled_dot_product_attention": self._attention,
            "mul": self._product,
            "rms_norm": self._product,
            "add": self._sum,
            "cat": self._rope,
        }
        rule = rules.get(op_name(node))
        value = rule(node) if rule is not None else None
        if value is not None:
            self.values[node] = value

    def _embedding(self, node: Node) -> Any:
        if behind(node.args[1]) not in self.inputs:
            raise refuse(node, "an embedding of something else than the tokens", "embed input_ids")
        table = self._weight(node.args[0], node)
        hidden = shape(node)[-1]
        kind = self._type(node, hidden)
        return build("graph.embedding", [table, self.tokens], [kind], scale=1.0).results[0]

    def _linear(self, node: Node) -> Any:
        x, weight = self._value(node.args[0]), self._weight(node.args[1], node)
        bias = node.args[2] if len(node.args) > 2 else None
        operands = [x, weight] + ([self._weight(bias, node)] if bias is not None else [])
        return build("graph.linear", operands, [self._type(node, shape(node)[-1])]).results[0]

    def _product(self, node: Node) -> Any:
        norm = match_norm(node)
        if norm is not None:
            x, weight = self._value(norm.x), self._weight(norm.weight, node)
            facts: dict[str, Any] = {"eps": norm.eps, "unit_offset": norm.unit_offset}
            if shape_of(weight) != shape_of(x)[-1:]:
                raise refuse(node, "a norm over heads", "norms go over whole rows")
            return build(
                "graph.rms_norm", [x, weight], [self._type(node, shape(node)[-1])], **facts
            ).results[0]
        glu = match_glu(node)
        if glu is None:
            return None
        gate, up = self._value(glu[0]), self._value(glu[1])
        kind = self._type(node, shape(node)[-1])
        return build("graph.glu", [gate, up], [kind], activation=glu[2]).results[0]

    def _sum(self, node: Node) -> Any:
        rope = self._rope(node)
        if rope is not None:
            return rope
        sides = [behind(a) for a in node.args[:2]]
        if any(s not in self.values for s in sides) or node.kwargs.get("alpha", 1) != 1:
            return None
        a, b = (self.values[s] for s in sides)
        return build("graph.add", [a, b], [self._type(node, shape(node)[-1])]).results[0]

    def _rope(self, node: Node) -> Any:
        rope = match_rope(node, self.constants)
        if rope is None:
            return None
        if type(rope.inv_freq) is not np.ndarray:
            raise refuse(
                node, "rope's frequencies have no values", "keep buffers real: fake_hf does"
            )
        size = shape(node)[-1]
        if 2 * len(rope.inv_freq) != size:
            raise refuse(
                node, f"rope turns {2 * len(rope.inv_freq)} of {size} values", "turn all values"
            )
        x = self._value(rope.x)
        operands = [x, self.positions, self._constant(rope.inv_freq)]
        facts: dict[str, Any] = {"head_size": size, "scale": rope.scale, "style": "half"}
        return build("graph.rope", operands, [x.type], **facts).results[0]

    def _append(self, node: Node) -> Any:
        buffer, dim, at, rows = node.args
        name = self.constants.state_name(buffer)
        if name is None or dim != 2 or len(shape(buffer)) != 4 or behind(at) not in self.inputs:
            raise refuse(
                node,
                "an index_copy that is no KV cache",
                "caches are buffers [1, kv heads, context, head size], written along dimension 2 at positions",
            )
        _, heads, context, size = shape(buffer)
        if self.context not in (0, context):
            raise refuse(node, f"caches of {self.context} and {context} positions", "use one size")
        self.context = context
        if name not in self.declared:
            kind = tensor([heads, context, size], _DTYPES[buffer.meta["val"].dtype])
            self.declared[name] = build("graph.state", [], [kind], sym_name=name).results[0]
        state = self.declared[name]
        operands = [state, self._value(rows), self.positions]
        return build("graph.append", operands, [state.type]).results[0]

    def _attention(self, node: Node) -> Any:
        q, k, v, *rest = node.args
        if any(op_name(s) != "index_copy" for s in (k, v)):
            grown = any(op_name(behind(s)) == "cat" for s in (k, v))
            raise refuse(
                node,
                "attention over a KV cache that grows by cat"
                if grown
                else "attention without a KV cache",
                "write caches with index_copy and pass them whole, with enable_gqa=True instead of "
                "repeated heads; export_decode does so for transformers models",
            )
        mask = match_mask(rest[0]) if rest else None
        if mask is None or behind(mask.positions) not in self.inputs:
            raise refuse(
                node,
                "an attention mask that is not made from positions",
                "mask = arange(context) <= positions[:, None], with & > positions - window for a window",
            )
        _, heads, _, size = shape(q)
        scale = node.kwargs.get("scale")
        operands = [self._value(q), self.values[k], self.values[v], self.positions]
        facts: dict[str, Any] = {
            "heads": heads,
            "kv_heads": shape(k)[1],
            "head_size": size,
            "scale": float(size**-0.5 if scale is None else scale),
            "window": mask.window,
            "softcap": 0.0,
        }
        return build(
            "graph.attention", operands, [self._type(node, heads * size)], **facts
        ).results[0]
