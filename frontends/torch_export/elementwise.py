"""Patterns of what happens to each value by itself.

| pattern | becomes |
|---|---|
| x · number, x / number | graph.scale, or part of an embedding's or an attention's scale |
| tanh(x / c) · c | graph.softcap |
| silu(x), gelu(x), relu(x), silu and gelu by tanh spelled out | graph.activate, unless it is a gate |
"""

from typing import Any

from tileir.frontends.torch_export.nodes import Constants, behind, op_name


def match_scale(node: Any, constants: Constants) -> tuple[Any, float] | None:
    """(x, factor) of x times, or over, a number or a constant of one value."""
    if op_name(node) not in ("mul", "div") or node.kwargs.get("rounding_mode"):
        return None
    sides = [node.args[:2]] if op_name(node) == "div" else [node.args[:2], node.args[1::-1]]
    for x, other in sides:
        factor = _number(other, constants)
        if factor is not None and not isinstance(x, int | float):
            return x, 1 / factor if op_name(node) == "div" else factor
    return None


def match_softcap(node: Any, constants: Constants) -> tuple[Any, float] | None:
    """(x, cap) of cap · tanh(x / cap)."""
    outer = match_scale(node, constants)
    if outer is None or op_name(behind(outer[0])) != "tanh":
        return None
    inner = match_scale(behind(behind(outer[0]).args[0]), constants)
    cap = outer[1]
    same = inner is not None and cap > 0 and abs(inner[1] * cap - 1) < 1e-6
    return (inner[0], cap) if same and inner is not None else None


def match_activation(node: Any) -> tuple[Any, str] | None:
    """(x, name) of an activation, called or spelled out."""
    match op_name(node):
        case "silu" | "relu" as name:
            return node.args[0], name
        case "gelu":
            tanh = node.kwargs.get("approximate", "none") == "tanh"
            return node.args[0], "gelu_tanh" if tanh else "gelu"
        case "mul":
            for x, gate in (node.args[:2], node.args[1::-1]):
                if op_name(gate) == "sigmoid" and behind(gate.args[0]) is behind(x):
                    return x, "silu"
                if _is(x, "mul", 0.5) is not None and _tanh_of(gate) is behind(_is(x, "mul", 0.5)):
                    return _is(x, "mul", 0.5), "gelu_tanh"
    return None


def _tanh_of(node: Any) -> Any:
    """x of 1 + tanh(sqrt(2 / π) · (x + 0.044715 · x³))."""
    tanh = _is(node, "add", 1.0)
    if tanh is None or op_name(tanh) != "tanh":
        return None
    inner = _is(tanh.args[0], "mul", 0.7978845608028654)
    if inner is None or op_name(inner) != "add":
        return None
    for x, other in (inner.args[:2], inner.args[1::-1]):
        cube = _is(other, "mul", 0.044715)
        if op_name(cube) == "pow" and cube.args[1] == 3 and behind(cube.args[0]) is behind(x):
            return behind(x)
    return None


def _is(node: Any, name: str, number: float) -> Any:
    """x, if the node is a sum or product of x and a number."""
    node = behind(node)
    for x, other in (node.args[:2], node.args[1::-1]) if op_name(node) == name else ():
        if isinstance(other, int | float) and abs(other - number) < 1e-6:
            return x
    return None


def _number(node: Any, constants: Constants) -> float | None:
    if isinstance(node, bool | int | float):
        return float(node)
    value = constants.value(node)
    return float(value) if value is not None and value.numel() == 1 else None
