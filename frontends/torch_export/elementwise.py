"""Patterns of what happens to each value by itself.

| pattern | becomes |
|---|---|
| x · number, x / number | graph.scale, or part of an embedding's or an attention's scale |
| tanh(x / c) · c | graph.softcap |
| silu(x), gelu(x), relu(x) | graph.activate, unless it is a gate |
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
    """(x, name) of an activation."""
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
    return None


def _number(node: Any, constants: Constants) -> float | None:
    if isinstance(node, bool | int | float):
        return float(node)
    value = constants.value(node)
    return float(value) if value is not None and value.numel() == 1 else None
