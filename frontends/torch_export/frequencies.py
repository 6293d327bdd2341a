"""Rotary frequencies that depend on the length of a sequence, chosen once, for the whole context."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch


@contextmanager
def settled_frequencies(context: int, *models: Any) -> Iterator[None]:
    """For the export only: what transformers computes for a sequence of `context` tokens, and no more updates.

    Of "dynamic" frequencies those at full length, of "longrope" the long ones if the context is longer than
    the original one, else the short ones.
    """
    modules = [module for model in models for module in model.modules() if _kinds(module)]
    held = [_copy(module) for module in modules]
    for module in modules:
        _settle(module, context)
    try:
        yield
    finally:
        for module, before in zip(modules, held, strict=True):
            vars(module).clear()
            vars(module).update(before)


def _kinds(module: Any) -> dict[str | None, str]:
    """The module's kinds of frequencies that depend on the length, by layer type (None: one for all)."""
    kinds = getattr(module, "rope_type", None)
    if not isinstance(kinds, str | dict):
        return {}
    by_layer: dict[str | None, str] = {None: kinds} if isinstance(kinds, str) else kinds
    return {n: kind for n, kind in by_layer.items() if "dynamic" in kind or kind == "longrope"}


def _copy(module: Any) -> dict[str, Any]:
    before = dict(vars(module))
    before["_buffers"] = {n: None if b is None else b.clone() for n, b in module._buffers.items()}
    return before


def _settle(module: Any, context: int) -> None:
    """Let the module see the last position of the context; its forward then stays as it is without updates."""
    last = torch.tensor([[context - 1]])
    for layer in _kinds(module):
        module(torch.zeros(1), last, *([] if layer is None else [layer]))
    module.forward = MethodType(inspect.unwrap(type(module).forward), module)
