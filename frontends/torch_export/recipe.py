"""The export recipe: a decode step around any Hugging Face causal language model.

`forward(input_ids [1, T], positions [T]) -> logits [1, T, vocabulary]`; KV caches are buffers that `index_copy`
writes, the mask is made from the positions. `run_decompositions({})` functionalises and keeps linear, attention, silu.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from tileir.errors import TileirError

SUPPORTED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def export_decode(model: Any, max_context: int) -> ExportedProgram:
    """A decode step of `model` with KV caches for `max_context` positions, functionalised.

    model: a transformers `*ForCausalLM` in eval mode, fp32, bf16 or fp16; its weights may be fake. Raises TileirError
    for a model in training mode, of another dtype, or without attention heads in its config.
    """
    _check(model, max_context)
    mode = _fake_mode(model)
    with _sdpa(model), torch.no_grad(), mode or nullcontext():
        step = _DecodeStep(model, max_context)
        example = (torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, dtype=torch.long))
        program = torch.export.export(step, example, strict=False)
        return program.run_decompositions({})


def load_hf(folder: str | Path) -> Any:
    """A causal language model from a folder, for exporting. Raises TileirError if there is none."""
    from transformers import AutoModelForCausalLM

    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise TileirError(
            f"{folder} holds no config.json", hint="name a folder that save_pretrained has written"
        )
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    return model.eval().requires_grad_(False)


def fake_hf(config: Any, dtype: torch.dtype = torch.bfloat16) -> Any:
    """A causal language model of a transformers config without memory for its weights.

    Buffers that the graph needs as numbers (rope's frequencies) are real.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode
    from transformers import AutoModelForCausalLM

    config._attn_implementation = "sdpa"
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    model.requires_grad_(False)
    _real_buffers(model, config)
    return model


def _real_buffers(model: Any, config: Any) -> None:
    """Replace fake rotary buffers by real ones, made by the same module outside the fake mode."""
    for module in model.modules():
        if "inv_freq" in dict(module.named_buffers(recurse=False)):
            real = type(module)(config)
            for name, value in real.named_buffers(recurse=False):
                module.register_buffer(name, value, persistent=False)


def _fake_mode(model: Any) -> Any:
    from torch._subclasses.fake_tensor import FakeTensor

    parameter = next(iter(model.parameters()))
    return parameter.fake_mode if isinstance(parameter, FakeTensor) else None


def _check(model: Any, max_context: int) -> None:
    if model.training:
        raise TileirError("the model is in training mode", hint="call model.eval() first")
    dtype = next(iter(model.parameters())).dtype
    if dtype not in SUPPORTED_DTYPES:
        raise TileirError(
            f"the model's dtype is {dtype}", hint="float32, bfloat16 and float16 work"
        )
    if not hasattr(getattr(model, "config", None), "num_attention_heads"):
        raise TileirError(
            f"{type(model).__name__} is no transformers causal language model",
            hint="export your own module with torch.export and pass the program to tileir.compile",
        )
    if max_context < 1:
        raise TileirError(
            f"max_context is {max_context}", hint="a context has at least one position"
        )


@contextmanager
def _sdpa(model: Any) -> Iterator[None]:
    """Attention as one scaled_dot_product_attention with grouped queries, for the export only."""
    name = "TRANSFORMERS_SDPA_FORCE_GQA"
    before, implementation = os.environ.get(name), model.config._attn_implementation
    os.environ[name] = "1"
    model.config._attn_implementation = "sdpa"
    try:
        yield
    finally:
        model.config._attn_implementation = implementation
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _cache(layers: list[Any], positions: Any) -> Any:
    from transformers.cache_utils import Cache, StaticLayer

    class BufferLayer(StaticLayer):
        """A layer's cache in two buffers of the wrapper."""

        def __init__(self, keys: Any, values: Any) -> None:
            super().__init__(keys.shape[2])
            self.keys, self.values, self.is_initialized = keys, values, True
            self.device, self.dtype = keys.device, keys.dtype

        def update(self, keys: Any, values: Any, *_: Any, **__: Any) -> tuple[Any, Any]:
            self.keys.index_copy_(2, positions, keys)
            self.values.index_copy_(2, positions, values)
            return self.keys, self.values

        def get_seq_length(self, *_: Any) -> int:
            return 0

    return Cache(layers=[BufferLayer(k, v) for k, v in layers])


class _DecodeStep(torch.nn.Module):
    def __init__(self, model: Any, context: int) -> None:
        super().__init__()
        self.model, self.context = model, context
        c = model.config
        size = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
        shape = (1, c.num_key_value_heads, context, size)
        dtype = next(iter(model.parameters())).dtype
        self.layers = c.num_hidden_layers
        for i in range(self.layers):
            for name in ("k", "v"):
                buffer = torch.zeros(shape, dtype=dtype)
                self.register_buffer(f"{name}_cache_{i}", buffer, persistent=False)

    def forward(self, input_ids: Any, positions: Any) -> Any:
        layers = [
            (getattr(self, f"k_cache_{i}"), getattr(self, f"v_cache_{i}"))
            for i in range(self.layers)
        ]
        columns = torch.arange(self.context, device=positions.device)
        full = (columns[None, :] <= positions[:, None])[None, None]
        mask: Any = full
        c = self.model.config
        if "sliding_attention" in (getattr(c, "layer_types", None) or ()):
            near = columns[None, :] > (positions - c.sliding_window)[:, None]
            mask = {"full_attention": full, "sliding_attention": full & near[None, None]}
        return self.model(
            input_ids=input_ids,
            position_ids=positions[None],
            attention_mask=mask,
            past_key_values=_cache(layers, positions),
            use_cache=True,
        ).logits
