"""ExportedProgram → graph dialect."""

from math import prod
from typing import Any

from torch.export import ExportedProgram
from torch.fx import Node

from tileir.dialect.attributes import build, put, shape_of, tensor
from tileir.errors import TileirError
from tileir.frontends.torch_export.attentions import match_attention
from tileir.frontends.torch_export.caches import Write, match_write, read_cache
from tileir.frontends.torch_export.experts import (
    Router,
    match_experts,
    match_router,
    match_weighted_sum,
)
from tileir.frontends.torch_export.latents import Latents, match_indexer, match_latents
from tileir.frontends.torch_export.mistakes import check_inputs, check_program
from tileir.frontends.torch_export.nodes import behind, module_path, op_name, refuse, shape
from tileir.frontends.torch_export.patterns import Mask, match_mask
from tileir.frontends.torch_export.rows import Rows
from tileir.frontends.torch_export.values import Source, drop_unread
from tileir.mlir import func, ir


def import_program(program: ExportedProgram, context: Any) -> Any:
    """The graph-level module of a decode step `(input_ids [1, 1], positions [1]) -> logits [1, 1, vocabulary]`.

    program: after `run_decompositions({})`; a second output is a draft layer's logits. context: an MLIR context with
    tileir's dialects. The module's function returns what graph.sample makes of each output; its attributes say context
    and vocabulary. Raises TileirError for a node that nothing takes.
    """
    check_program(program)
    with context, ir.Location.unknown():
        return _Importer(program).run()


class _Importer(Rows):
    """Walks the nodes in order; `values` holds what has become SSA, the rest waits to be part of a pattern."""

    def __init__(self, program: ExportedProgram) -> None:
        super().__init__(program)
        self.routers = self._routers()
        self.context = 0

    def run(self) -> Any:
        """Build the module."""
        inputs, outputs = self._inputs(), self._logits()
        module = ir.Module.create()
        with ir.InsertionPoint(module.body):
            kind = tensor([None], "i32")
            function = func.FuncOp("step", ([kind, kind], [kind] * len(outputs)))
            block = function.add_entry_block()
        self.tokens, self.positions = block.arguments
        self.token_input, self.position_input = inputs
        with ir.InsertionPoint(block):
            for node in self.program.graph.nodes:
                if node.op == "call_function":
                    with ir.Location.name(module_path(node) or node.name):
                        self._node(node)
            vocabulary = shape_of(self.value(outputs[0]))[-1]
            func.ReturnOp([self.sample(node) for node in outputs])
        drop_unread(block)
        facts = {"level": "graph", "context": self.context, "vocabulary": vocabulary}
        put(module.operation, **{f"tileir.{n}": v for n, v in facts.items()})
        assert module.operation.verify()
        return module

    def _routers(self) -> dict[Node, Router]:
        """Routers by their topk, found from the sums that use their weights."""
        sums = [match_weighted_sum(n) for n in self.program.graph.nodes]
        routers = [match_router(s.weights) for s in sums if s is not None]
        return {router.chosen: router for router in routers if router is not None}

    def _inputs(self) -> list[Node]:
        names = self.program.graph_signature.user_inputs
        nodes = {n.name: n for n in self.program.graph.nodes if n.op == "placeholder"}
        found = [nodes[n] for n in names if n in nodes]
        check_inputs(self.program, found)
        return found

    def _logits(self) -> list[Node]:
        """The logits, and a draft layer's behind them."""
        (output,) = [n for n in self.program.graph.nodes if n.op == "output"]
        names = self.program.graph_signature.user_outputs
        found = [n for n in output.args[0] if isinstance(n, Node) and n.name in names]
        if len(found) not in (1, 2):
            raise TileirError(
                f"the program has {len(found)} outputs",
                hint="it returns the logits, or those and a draft layer's",
            )
        return found

    # ---- nodes

    def _node(self, node: Node) -> None:
        rules = {
            "embedding": self.embedding,
            "linear": self.linear,
            "layer_norm": self.layer_norm,
            **dict.fromkeys(("index_copy", "index_put"), self._append),
            "scaled_dot_product_attention": self._attention,
            "matmul": self._attention,
            "mul": self.product,
            "div": self.scaled,
            **dict.fromkeys(("silu", "gelu", "relu"), self.activation),
            "rms_norm": self.product,
            "add": self.add,
            **dict.fromkeys(("cat", "stack"), self.rope),
            "argmax": self.argmax,
            "topk": self._choice,
            "getitem": self._chosen,
            "bmm": self._experts,
            "sum": self._weighted_sum,
        }
        rule = rules.get(op_name(node))
        value = rule(node) if rule is not None else None
        if value is not None:
            self.values[node] = value

    # ---- caches and attention

    def _append(self, node: Node) -> Any:
        name, (heads, context, size), write = self._cache(node)
        if self.context not in (0, context):
            raise refuse(node, f"caches of {self.context} and {context} positions", "use one size")
        self.context = context
        state = self.state(name, [heads, context, size], write.buffer.meta["val"].dtype)
        operands = [state, self.value(write.rows), self.positions]
        return build("graph.append", operands, [state.type]).results[0]

    def _cache(self, node: Node) -> tuple[str, tuple[int, int, int], Write]:
        """(name, (heads, context, head size), write) of the cache that a node writes."""
        write = match_write(node)
        name = None if write is None else self.constants.state_name(write.buffer)
        sizes = None if write is None else write.sizes
        if write is None or name is None or sizes is None or not self.is_position(write.at):
            raise refuse(
                node,
                f"an {op_name(node)} that is no KV cache",
                "caches are buffers [1, kv heads, context, head size], or with kv heads behind the context, written "
                "along the context at positions",
            )
        return name, sizes, write

    def _attention(self, node: Node) -> Any:
        found = match_attention(node, self.constants)
        if found is None:
            return None
        k, v = found.k, found.v
        mask = match_mask(found.mask, self.constants, found.hidden)
        latents = match_latents(k, v)
        caches = [read_cache(k), read_cache(v)]
        if latents is None and not all(caches):
            grown = any(op_name(behind(s)) == "cat" for s in (k, v))
            raise refuse(
                node,
                "attention over a KV cache that grows by cat"
                if grown
                else "attention without a KV cache",
                "write caches with index_copy or cache[:, :, positions] = rows and pass them whole, as they are or "
                "repeated for the heads that share them; export_decode does so for transformers models",
            )
        if mask is None or not self.is_position(mask.positions):
            raise refuse(
                node,
                "an attention mask that is not made from positions",
                "mask = arange(context) <= positions[:, None], with & > positions - window for a window",
            )
        facts = {"heads": shape(found.q)[1], "scale": found.scale}
        indices = [] if mask.indices is None else [self.value(mask.indices)]
        if latents is not None:
            return self._latent_attention(node, latents, mask, indices, facts)
        q, factor = self.unscaled(self.value(found.q))
        facts["scale"] *= factor
        written = [c for c in caches if c is not None]
        if written[0] is written[1]:
            raise refuse(node, "attention whose keys are its values", "write two caches")
        operands = [q, *(self.values[c] for c in written), self.positions, *indices]
        _, (kv_heads, _, size), _ = self._cache(written[0])
        more: dict[str, Any] = {"kv_heads": kv_heads, "head_size": size}
        more |= {"window": mask.window, "softcap": found.softcap}
        kind = self.type(node)
        return build("graph.attention", operands, [kind], **facts | more).results[0]

    def _latent_attention(
        self, node: Node, found: Latents, mask: Mask, indices: list[Any], facts: dict[str, Any]
    ) -> Any:
        """Attention over latents: both caches become one state."""
        q = behind(node.args[0])
        if op_name(q) != "cat" or len(q.args[0]) != 2 or mask.window:
            raise refuse(
                node,
                "attention over latents with other queries than a cat of plain and rotated values, or a window",
                "torch.cat((q, q_rotated), -1), and the whole context",
            )
        name, (_, context, latent), _ = self._cache(found.latents)
        rope = shape(found.roped)[-1]
        sizes = {"nope_size": found.nope_size, "rope_size": rope, "value_size": found.value_size}
        state = self.state(name, [1, context, latent + rope], found.latents.meta["val"].dtype)
        for row, offset in ((found.latents.args[3], 0), (found.roped.args[3], latent)):
            where = {"offset": offset} if offset else {}
            operands = [state, self.value(row), self.positions]
            state = build("graph.append", operands, [state.type], **where).results[0]
        rows = found.nope_size + found.value_size
        view = (0, [found.heads, rows, latent], [rows * latent, latent, 1])
        weight = self.weight(found.weight, node, view)
        operands = [*(self.value(part) for part in q.args[0]), state, weight, self.positions]
        facts |= {**sizes, "latent_size": latent}
        kind = self.type(node)
        return build("graph.mla_attention", [*operands, *indices], [kind], **facts).results[0]

    # ---- choices: of experts, and of positions

    def _choice(self, node: Node) -> Any:
        """A topk; its value is the indices."""
        if node in self.routers:
            return self._router(self.routers[node])
        found = match_indexer(node)
        mask = match_mask(found.mask, self.constants) if found is not None else None
        if found is None or mask is None or not self.is_position(mask.positions):
            return None
        if mask.window or mask.indices is not None:
            raise refuse(node, "an indexer that sees a part of the context", "arange <= positions")
        keys = self.values[found.keys]
        operands = [self.value(found.q), self.value(found.weights), keys, self.positions]
        facts: dict[str, Any] = {
            "heads": found.heads,
            "head_size": found.head_size,
            "scale": found.scale,
        }
        kind = tensor([None, self.context], "f32")
        scores = build("graph.index_scores", operands, [kind], **facts).results[0]
        kind = tensor([None, found.k], "i32")
        return build("graph.top_k", [scores, self.positions], [kind], k=found.k).results[0]

    def _router(self, router: Router) -> Any:
        operands = [self.value(router.logits)]
        if router.bias is not None:
            operands.append(self.weight(router.bias, router.chosen))
        kinds = [tensor([None, router.facts["k"]], element) for element in ("i32", "f32")]
        op = build("graph.router", operands, kinds, **router.facts)
        self.values[router.weights] = op.results[1]
        return op.results[0]

    def _chosen(self, node: Node) -> Any:
        """The indices of a topk."""
        source, which = node.args
        return self.values.get(source) if op_name(source) == "topk" and which == 1 else None

    def _experts(self, node: Node) -> Any:
        found = match_experts(node)
        if found is None:
            return None
        if found.chosen not in self.values:
            raise refuse(
                found.chosen,
                "experts are chosen in a way that nothing takes",
                "supported: the topk of softmax(logits), or of sigmoid(logits) + bias, perhaps masked to the groups "
                "with the largest sums of two; weights: their scores, perhaps divided by the sum, times a number",
            )
        source = Source(self.value(found.x), found.weight, None, self.values[found.chosen])
        self.sources[node] = source
        return self.build_experts(source, shape(found.weight)[1:], None, node)

    def _weighted_sum(self, node: Node) -> Any:
        found = match_weighted_sum(node)
        if found is None or found.values not in self.values or found.weights not in self.values:
            return None
        operands = [self.values[found.values], self.values[found.weights]]
        kind = self.type(found.values, prod(shape(node)))
        return build("graph.weighted_sum", operands, [kind]).results[0]
