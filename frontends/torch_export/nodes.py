"""Reading an exported program's nodes: names, layouts, constants, and errors that point at the source."""

import re
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import ExportedProgram
from torch.fx import Node

from tileir.errors import TileirError

_T = TypeVar("_T")
WRAPPERS = "tileir.frontends.torch_export.steps."
TORCH = str(Path(torch.__file__).parent)
FULL = 2**62
# Operations that leave the flattened order of values as it is, given the checks in `behind`.
_SAME = (
    "view",
    "_unsafe_view",
    "reshape",
    "unsqueeze",
    "squeeze",
    "alias",
    "clone",
    "contiguous",
    "expand",
)
_MADE = ("arange", "full", "ones", "zeros", "scalar_tensor")
CASTS = ("_to_copy", "type_as", "to", "lift_fresh_copy", "detach")


def op_name(node: Any) -> str:
    """aten's name of a call without overload ("linear"), or "" if the node is no call.

    What adds or subtracts a multiple is another operation than the plain one: "add with alpha".
    """
    if not isinstance(node, Node) or node.op != "call_function":
        return ""
    name = getattr(node.target, "__name__", str(node.target))
    if "aten" in str(node.target):
        name = str(node.target).removeprefix("aten.").split(".")[0]
    return f"{name} with alpha" if node.kwargs.get("alpha", 1) != 1 else name


def shape(node: Node) -> list[int]:
    """A node's shape."""
    return [int(s) for s in node.meta["val"].shape]


def behind(node: Any) -> Any:
    """The node whose values, in the same flattened order, this one has: through views and casts."""
    while isinstance(node, Node):
        if not _same_values(node):
            return node
        node = node.args[0]
    return node


def _same_values(node: Node) -> bool:
    """Whether a node has its first argument's values, in the same flattened order."""
    name, kept = op_name(node), False
    if name in CASTS:
        kept = True
    elif name in _SAME:
        kept = name != "expand" or shape(node) == shape(node.args[0])
    elif name in ("transpose", "permute"):
        kept = _keeps_order(node)
    elif name == "slice":
        kept = shape(node) == shape(node.args[0])
    elif name == "select":
        kept = shape(node.args[0])[node.args[1]] == 1
    elif name == "mul":
        kept = node.args[1] in (1, 1.0)
    return kept


def _keeps_order(node: Node) -> bool:
    """Whether a transposition moves only dimensions of size 1."""
    source = shape(node.args[0])
    order = list(range(len(source)))
    if op_name(node) == "permute":
        order = [d % len(source) for d in node.args[1]]
    else:
        a, b = (d % len(source) for d in node.args[1:3])
        order[a], order[b] = order[b], order[a]
    real = [d for d in order if source[d] != 1]
    return real == sorted(real)


class Constants:
    """Tensors that the program holds, and what can be computed from them alone."""

    def __init__(self, program: ExportedProgram) -> None:
        signature = program.graph_signature
        self.program = program
        self.parameters = dict(signature.inputs_to_parameters)
        self.buffers = dict(signature.inputs_to_buffers)
        self.lifted = dict(getattr(signature, "inputs_to_lifted_tensor_constants", {}))
        self.mutated = set(signature.buffers_to_mutate.values())
        self._names = self._first_names()
        self._fixed: set[Node] = set()
        self._made: dict[Hashable, Any] = {}
        for node in program.graph.nodes:
            if self._is_fixed(node):
                self._fixed.add(node)

    def _first_names(self) -> dict[int, str]:
        """The first state-dict name of every storage: tied weights have several."""
        first: dict[int, str] = {}
        for name, value in self.program.state_dict.items():
            first.setdefault(value.untyped_storage()._cdata, name)
        return first

    def weight_name(self, node: Any) -> str | None:
        """The checkpoint's name of a parameter or persistent buffer; None if the node is none."""
        node = behind(node)
        if not isinstance(node, Node) or node.op != "placeholder":
            return None
        target = self.parameters.get(node.name) or self.buffers.get(node.name)
        if target is None or target in self.mutated or target not in self.program.state_dict:
            return None
        first = self._names[self.program.state_dict[target].untyped_storage()._cdata]
        return first.removeprefix("model.") if self._wrapped() else first

    def _wrapped(self) -> bool:
        """Whether export_decode's wrapper put "model." before every name, but for a draft model's."""
        stacks = (n.meta.get("nn_module_stack") for n in self.program.graph.nodes)
        stack = next(filter(None, stacks), {"": ("", "")})
        return str(next(iter(stack.values()))[1]).startswith(WRAPPERS)

    def state_name(self, node: Node) -> str | None:
        """The name of a mutable buffer that a placeholder stands for."""
        target = self.buffers.get(node.name)
        return target if target in self.mutated else None

    def value(self, node: Any) -> torch.Tensor | None:
        """A node's tensor, if it depends on constants only. Raises TileirError for a buffer without values."""
        if not isinstance(node, Node) or node not in self._fixed:
            return None
        if node.op == "placeholder":
            held = self._held(node)
            if held is not None and (held.is_meta or isinstance(held, FakeTensor)):
                name = self.buffers.get(node.name, node.name)
                message = f"the graph needs the numbers of the buffer {name!r}, which has none"
                raise refuse(node, message, "keep buffers real, as fake_hf does")
            return held
        return self.once(node, lambda: self._computed(node))

    def _computed(self, node: Node) -> torch.Tensor | None:
        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), self.value)
        result = node.target(*args, **kwargs)
        return result if isinstance(result, torch.Tensor) else None

    def once(self, key: Hashable, make: Callable[[], _T]) -> _T:
        """What `make` gives, made once for a key: what is found out about constants, layer after layer."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def _is_fixed(self, node: Node) -> bool:
        """Whether a node, whose inputs have been looked at, depends on constants only."""
        if node.op == "placeholder":
            return self._held(node) is not None
        if node.op != "call_function":
            return False
        if not node.all_input_nodes:
            return op_name(node) in _MADE
        return all(n in self._fixed for n in node.all_input_nodes)

    def _held(self, node: Node) -> torch.Tensor | None:
        """The tensor that the program holds for a placeholder and no step changes; no parameter's."""
        target = self.buffers.get(node.name) or self.lifted.get(node.name)
        if target is None or target in self.mutated:
            return None
        held = self.program.constants.get(target, self.program.state_dict.get(target))
        return held if isinstance(held, torch.Tensor) else None


def module_path(node: Node) -> str:
    """The path of the module that made a node."""
    stack = node.meta.get("nn_module_stack") or {}
    return str(list(stack.values())[-1][0]) if stack else ""


def refuse(node: Node, message: str, hint: str) -> TileirError:
    """An error that names the node, its module and its source line."""
    trace = node.meta.get("stack_trace") or ""
    lines = re.findall(r'File "([^"]+)", line (\d+).*\n\s+(.*)', trace)
    # Torch's own modules are nobody's mistake: who called them is.
    lines = [line for line in lines if not line[0].startswith(TORCH)] or lines
    where = f"{lines[-1][0]}:{lines[-1][1]}" if lines else node.name
    source = f" ({lines[-1][2].strip()})" if lines else ""
    place = f" in module {module_path(node)!r}" if module_path(node) else ""
    return TileirError(f"{message}: node {node.name!r}{place}{source}", location=where, hint=hint)
