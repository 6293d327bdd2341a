"""The export recipe: a decode step around any Hugging Face causal language model.

`forward(input_ids [1, T], positions [T]) -> logits [1, T, vocabulary]`; KV caches are buffers that `index_copy`
writes, the mask is made from the positions. `run_decompositions({})` functionalises and keeps linear, attention, silu.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch.export import ExportedProgram

from tileir.errors import TileirError
from tileir.frontends.torch_export.frequencies import settled_frequencies
from tileir.frontends.torch_export.mistakes import check_model, exporting, reading
from tileir.frontends.torch_export.steps import DecodeStep, DraftStep, capped

SUPPORTED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def export_decode(model: Any, max_context: int) -> ExportedProgram:
    """A decode step of `model` with KV caches for `max_context` positions, functionalised.

    model: a transformers `*ForCausalLM` in eval mode, fp32, bf16 or fp16; its weights may be fake. Raises TileirError
    for a model in training mode, of another dtype, without attention heads in its config, and for max_context < 1.
    """
    return _export(DecodeStep, model, max_context=max_context)


def export_draft_decode(model: Any, draft: Any, max_context: int) -> ExportedProgram:
    """A decode step of `model` and of a layer that drafts the token behind the chosen one: (logits, draft logits).

    draft: a transformers `MtpModel` of one layer for `model`; its parameters are named "mtp.…" behind the model's. Its
    cache has row p where transformers has row p + 1, with the angle of p: only differences of positions count. Raises
    TileirError as export_decode does, and for more layers.
    """
    if len(getattr(draft, "layers", ())) != 1:
        raise TileirError(
            f"{type(draft).__name__} is no draft model of one layer",
            hint="transformers.modeling_layers.MtpModel(model, 1)",
        )
    return _export(DraftStep, model, draft, max_context=max_context)


def _export(
    kind: Callable[..., Any], model: Any, *others: Any, max_context: int
) -> ExportedProgram:
    _check(model, max_context)
    mode = _fake_mode(model)
    with (
        exporting(type(model).__name__),
        settled_frequencies(max_context, model, *others),
        _chosen_kernels(model, *others),
        _no_grad_switches(model, *others),
        torch.no_grad(),
        mode or nullcontext(),
    ):
        step = kind(model, *others, context=max_context)
        example = (torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, dtype=torch.long))
        program = torch.export.export(step, example, strict=False)
        return program.run_decompositions({})


def load_hf(folder: str | Path) -> Any:
    """A causal language model from a folder, for exporting: in eval mode, of the checkpoint's dtype.

    folder: config.json and safetensors, as save_pretrained writes them. Raises TileirError if there is no config.json.
    """
    from transformers import AutoModelForCausalLM

    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise TileirError(
            f"{folder} holds no config.json", hint="name a folder that save_pretrained has written"
        )
    with reading(folder):
        model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    return model.eval().requires_grad_(False)


def fake_hf(config: Any, dtype: torch.dtype = torch.bfloat16) -> Any:
    """A causal language model of a transformers config without memory for its weights.

    config: transformers', whose `num_hidden_layers` and sizes say the model. dtype: of the weights. Buffers that the
    graph needs as numbers (rope's frequencies, an embedding's scale) are real.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode
    from transformers import AutoModelForCausalLM

    config._attn_implementation = "eager" if capped(config) else "sdpa"
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    model.requires_grad_(False)
    _real_buffers(model, config)
    return model


def fake_draft(model: Any) -> Any:
    """A draft model of one layer for a model of fake_hf, of its dtype and without memory for its weights either."""
    from transformers.modeling_layers import MtpModel

    before = torch.get_default_dtype()
    torch.set_default_dtype(next(iter(model.parameters())).dtype)
    try:
        with _fake_mode(model) or nullcontext():
            return MtpModel(model, 1).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)


def _real_buffers(model: Any, config: Any) -> None:
    """Replace fake buffers that no checkpoint holds: constants, and what rotary modules make from the config."""
    for module in model.modules():
        held = dict(module.named_buffers(recurse=False))
        if any(name.endswith("inv_freq") for name in held):
            held = dict(type(module)(config).named_buffers(recurse=False))
        for name, value in held.items():
            real = getattr(value, "constant", None)
            if name in module._non_persistent_buffers_set:
                module.register_buffer(name, value if real is None else real, persistent=False)


def _fake_mode(model: Any) -> Any:
    from torch._subclasses.fake_tensor import FakeTensor

    parameter = next(iter(model.parameters()))
    return parameter.fake_mode if isinstance(parameter, FakeTensor) else None


def _check(model: Any, max_context: int) -> None:
    if not hasattr(getattr(model, "config", None), "num_attention_heads"):
        raise TileirError(
            f"{type(model).__name__} is no transformers causal language model with attention",
            hint="export your own module with torch.export and pass the program to tileir.compile",
        )
    check_model(model)
    if model.training:
        raise TileirError("the model is in training mode", hint="call model.eval() first")
    dtype = next(iter(model.parameters())).dtype
    if dtype not in SUPPORTED_DTYPES:
        raise TileirError(
            f"the model's dtype is {dtype}", hint="float32, bfloat16 and float16 work"
        )
    if not isinstance(max_context, int) or max_context < 1:
        raise TileirError(
            f"max_context is {max_context!r}", hint="a context has at least one position"
        )


@contextmanager
def _chosen_kernels(*models: Any) -> Iterator[None]:
    """For the export only: attention as one scaled_dot_product_attention with grouped queries, experts as bmm.

    Capped attention, which that operation has not, is spelled out.
    """
    name = "TRANSFORMERS_SDPA_FORCE_GQA"
    before = os.environ.get(name)
    held = [(m.config, n, getattr(m.config, n, None)) for m in models for n in _KERNELS]
    os.environ[name] = "1"
    for config, attribute, _ in held:
        setattr(config, attribute, _KERNELS[attribute])
        if capped(config) and attribute == "_attn_implementation":
            setattr(config, attribute, "eager")
    try:
        yield
    finally:
        for config, attribute, value in held:
            setattr(config, attribute, value)
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextmanager
def _no_grad_switches(*models: Any) -> Iterator[None]:
    """For the export only: forwards without their torch.no_grad, each of which makes all of a graph be rebuilt."""
    modules = {module for model in models for module in model.modules()}
    held = [
        (module, type(module).forward.__wrapped__)
        for module in modules
        if type(module).forward.__code__ is _GRAD_SWITCH and "forward" not in vars(module)
    ]
    for module, forward in held:
        module.forward = MethodType(forward, module)
    try:
        yield
    finally:
        for module, _ in held:
            del module.forward


_GRAD_SWITCH = torch.no_grad()(lambda: None).__code__
_KERNELS = {"_attn_implementation": "sdpa", "_experts_implementation": "batched_mm"}
