"""Graph-level modules built by hand, for what no exported model shows on demand."""

from typing import Any

import numpy as np

from tileir.dialect.attributes import build, put, tensor
from tileir.mlir import func, ir

Array = np.ndarray


class Net:
    """A step function in the making: `op` adds operations, `weight` declares weights and keeps their values.

    Needs a current context and location.
    """

    def __init__(self, context: int, vocabulary: int, seed: int = 0) -> None:
        self.weights: dict[str, Array] = {}
        self._random = np.random.default_rng(seed)
        self._facts = {"level": "graph", "context": context, "vocabulary": vocabulary}
        self.module = ir.Module.create()
        kind = tensor([None], "i32")
        with ir.InsertionPoint(self.module.body):
            function = func.FuncOp("step", ([kind, kind], [kind]))
            self._block = function.add_entry_block()
        self.tokens, self.positions = self._block.arguments

    def weight(self, name: str, *shape: int, values: Any = None, mean: float = 0.0) -> Any:
        """A weight with these values, or random ones of deviation 0.15 round `mean`."""
        if values is None:
            values = self._random.standard_normal(shape) * 0.15 + mean
        self.weights[name] = np.asarray(values, np.float32)
        kind = tensor(self.weights[name].shape, "f32")
        return self._build("graph.weight", [], [kind], sym_name=name).results[0]

    def state(self, name: str, *shape: int) -> Any:
        """A state of heads × context × size."""
        return self._build("graph.state", [], [tensor(shape, "f32")], sym_name=name).results[0]

    def constant(self, name: str, values: Array) -> Any:
        """A constant."""
        kind = tensor(values.shape, "f32")
        return self._build("graph.constant", [], [kind], sym_name=name, value=values).results[0]

    def op(
        self, name: str, operands: list[Any], size: int, element: str = "f32", **facts: Any
    ) -> Any:
        """The value of `size` values a token that graph.`name` makes."""
        kind = tensor([None, size], element)
        return self._build(f"graph.{name}", operands, [kind], **facts).results[0]

    def append(self, state: Any, x: Any, **facts: Any) -> Any:
        """The state after the step's rows."""
        operands = [state, x, self.positions]
        return self._build("graph.append", operands, [state.type], **facts).results[0]

    def norm(self, name: str, x: Any, size: int) -> Any:
        """An RMS norm of whole rows."""
        weight = self.weight(name, size, mean=1.0)
        return self.op("rms_norm", [x, weight], size, eps=1e-6, unit_offset=False)

    def linear(self, name: str, x: Any, k: int, rows: int, values: Any = None) -> Any:
        """A linear of k values to `rows`."""
        return self.op("linear", [x, self.weight(name, rows, k, values=values)], rows)

    def route(self, logits: Any, k: int, *bias: Any, **facts: Any) -> tuple[Any, Any]:
        """(indices, weights) of a router."""
        kinds = [tensor([None, k], "i32"), tensor([None, k], "f32")]
        given = {"kind": "softmax", "groups": 1, "top_groups": 1, "normalize": True, "scale": 1.0}
        made = self._build("graph.router", [logits, *bias], kinds, k=k, **given | facts)
        return tuple(made.results)

    def experts(self, name: str, x: Any, indices: Any, k: int, shape: tuple[int, int, int]) -> Any:
        """An expert_linear of `shape` (experts, rows, K)."""
        return self.op("expert_linear", [x, indices, self.weight(name, *shape)], k * shape[1])

    def finish(self, logits: Any) -> Any:
        """Sample, return; the module, verified."""
        kind = tensor([None], "i32")
        token = self._build("graph.sample", [logits], [kind], kind="argmax").results[0]
        with ir.InsertionPoint(self._block):
            func.ReturnOp([token])
        put(self.module.operation, **{f"tileir.{n}": v for n, v in self._facts.items()})
        assert self.module.operation.verify()
        return self.module

    def _build(self, name: str, operands: list[Any], results: list[Any], **facts: Any) -> Any:
        with ir.InsertionPoint(self._block):
            return build(name, operands, results, **facts)


def routed(
    experts: int, k: int, context: int = 32, kind: str = "softmax"
) -> tuple[Any, dict[str, Array]]:
    """A net whose token v chooses experts v … v + k - 1 (mod experts): its vocabulary decides every routing.

    Returns the module and its weights.
    """
    hidden, inner = 32 + -(-experts // 8) * 8, 16
    net = Net(context, experts)
    table = net._random.standard_normal((experts, hidden)) * 0.3
    for token in range(experts):
        table[token, :experts] = 0
        for slot in range(k):
            table[token, (token + slot) % experts] = 2.0 - 0.25 * slot
    x = net.op("embedding", [net.weight("embed", values=table), net.tokens], hidden, scale=1.0)
    n = net.norm("norm", x, hidden)
    scores = np.zeros((experts, hidden), np.float32)
    scores[np.arange(experts), np.arange(experts)] = 1.0
    indices, weights = net.route(net.linear("router", n, hidden, experts, scores), k, kind=kind)
    gate = net.experts("gate", n, indices, k, (experts, inner, hidden))
    up = net.experts("up", n, indices, k, (experts, inner, hidden))
    h = net.op("glu", [gate, up], k * inner, activation="silu")
    down = net.experts("down", h, indices, k, (experts, hidden, inner))
    y = net.op("weighted_sum", [down, weights], hidden)
    shared = net.op(
        "glu",
        [net.linear("shared_gate", n, hidden, inner), net.linear("shared_up", n, hidden, inner)],
        inner,
        activation="silu",
    )
    y = net.op("add", [y, net.linear("shared_down", shared, inner, hidden)], hidden)
    x = net.op("add", [x, y], hidden)
    return net.finish(net.linear("head", net.norm("last", x, hidden), hidden, experts)), net.weights
