"""Llama shapes with random weights on a GPU: for the gate at many positions, and as torch.compile's baseline."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

SHAPES: dict[str, dict[str, Any]] = {
    "smollm2-135m": dict(hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
                         intermediate_size=1536, vocab_size=49152, head_dim=64, rope_theta=100000.0, tied=True),
    "llama-3.2-1b": dict(hidden_size=2048, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8,
                         intermediate_size=8192, vocab_size=128256, head_dim=64, rope_theta=500000.0, tied=True),
    "llama-3.1-8b": dict(hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
                         intermediate_size=14336, vocab_size=128256, head_dim=128, rope_theta=500000.0, tied=False),
}  # fmt: skip


def config_of(name: str) -> Any:
    """The transformers config of a shape."""
    from transformers import LlamaConfig

    facts = dict(SHAPES[name])
    tied, theta = facts.pop("tied"), facts.pop("rope_theta")
    return LlamaConfig(
        **facts,
        rms_norm_eps=1e-5,
        max_position_embeddings=131072,
        tie_word_embeddings=tied,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
    )


def random_model(name: str, dtype: torch.dtype, seed: int = 0, score_deviation: float = 3.0) -> Any:
    """A Hugging Face model on the GPU; q and k are scaled so that scores deviate by `score_deviation`."""
    from transformers import LlamaForCausalLM

    config = config_of(name)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model = model.to(torch.bfloat16).to_empty(device="cuda")
    generator = torch.Generator("cuda").manual_seed(seed)
    sharp = math.sqrt(score_deviation)
    for key, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, device="cuda", generator=generator)
        if parameter.ndim == 1:
            parameter.data.copy_(1 + 0.1 * noise)
        else:
            gain = sharp if "q_proj" in key or "k_proj" in key else 1.0
            parameter.data.copy_(noise * gain / math.sqrt(parameter.shape[1]))
    model.tie_weights()
    model = model.to(dtype)
    # Frequencies stay fp32, as where transformers loads a model.
    frequencies = 1.0 / config.rope_parameters["rope_theta"] ** (
        torch.arange(0, config.head_dim, 2, device="cuda").float() / config.head_dim
    )
    for key in ("inv_freq", "original_inv_freq"):
        model.model.rotary_emb.register_buffer(key, frequencies.clone(), persistent=False)
    return model.eval().requires_grad_(False)


class TorchWeights(Mapping[str, Any]):
    """A model's parameters as bf16 NumPy arrays, by checkpoint name."""

    def __init__(self, model: Any) -> None:
        self._state = model.state_dict()

    def __getitem__(self, name: str) -> np.ndarray:
        import ml_dtypes

        value = self._state[name].to(torch.bfloat16).contiguous().cpu()
        return np.asarray(value.view(torch.int16).numpy().view(ml_dtypes.bfloat16))

    def __iter__(self) -> Iterator[str]:
        return iter(self._state)

    def __len__(self) -> int:
        return len(self._state)


def compiled_ms(model: Any, context: int, steps: int = 100) -> float:
    """torch.compile's milliseconds a token: max-autotune, CUDA graphs, a static cache of just `context` positions.

    model: Hugging Face's, of Llama or Qwen3, on the GPU; its projections move into fused ones.
    """
    step = _Step(model, context)
    run = torch.compile(step, mode="max-autotune", fullgraph=True)
    token = torch.zeros(1, 1, dtype=torch.long, device="cuda")
    position = torch.tensor([context - 1], device="cuda")
    with torch.no_grad():
        for _ in range(8):
            torch.compiler.cudagraph_mark_step_begin()
            token = run(token, position).clone()
        times = []
        for _ in range(5):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(steps):
                torch.compiler.cudagraph_mark_step_begin()
                token = run(token, position).clone()
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end) / steps)
    return sorted(times)[2]


class _Step(torch.nn.Module):
    """A plain decode step over a Hugging Face model's weights: fused projections, static caches."""

    def __init__(self, model: Any, context: int) -> None:
        super().__init__()
        c = model.config
        self.c, self.model = c, model
        for i, layer in enumerate(model.model.layers):
            a, m = layer.self_attn, layer.mlp
            weights = {
                f"qkv{i}": torch.cat([a.q_proj.weight, a.k_proj.weight, a.v_proj.weight]),
                f"up{i}": torch.cat([m.gate_proj.weight, m.up_proj.weight]),
                f"k{i}": torch.zeros(1, c.num_key_value_heads, context, c.head_dim, device="cuda"),
                f"v{i}": torch.zeros(1, c.num_key_value_heads, context, c.head_dim, device="cuda"),
            }
            for key, value in weights.items():
                self.register_buffer(key, value.to(torch.bfloat16))
            for p in (a.q_proj, a.k_proj, a.v_proj, m.gate_proj, m.up_proj):
                p.weight = None
        angles = (
            torch.arange(context, device="cuda").float()[:, None] * model.model.rotary_emb.inv_freq
        )
        angles = torch.cat([angles, angles], -1)
        self.register_buffer("cos", angles.cos().bfloat16())
        self.register_buffer("sin", angles.sin().bfloat16())
        columns = torch.arange(context, device="cuda")
        self.register_buffer("mask", columns[None] <= columns[:, None])

    def forward(self, token: Any, position: Any) -> Any:
        c, functional = self.c, torch.nn.functional
        x = self.model.model.embed_tokens(token)
        cos, sin, mask = self.cos[position], self.sin[position], self.mask[position][None, None]
        heads, kv, size = c.num_attention_heads, c.num_key_value_heads, c.head_dim

        def rope(t: Any) -> Any:
            low, high = t.chunk(2, -1)
            return t * cos + torch.cat([-high, low], -1) * sin

        def norm(x: Any, layer: Any) -> Any:
            return functional.rms_norm(x, (x.shape[-1],), layer.weight, c.rms_norm_eps)

        for i, layer in enumerate(self.model.model.layers):
            qkv = functional.linear(norm(x, layer.input_layernorm), getattr(self, f"qkv{i}"))
            q, k, v = qkv.split([heads * size, kv * size, kv * size], -1)
            q, k, v = (t.view(1, 1, -1, size).transpose(1, 2) for t in (q, k, v))
            if c.model_type == "qwen3":
                q, k = norm(q, layer.self_attn.q_norm), norm(k, layer.self_attn.k_norm)
            keys, values = getattr(self, f"k{i}"), getattr(self, f"v{i}")
            keys[:, :, position], values[:, :, position] = rope(k), v
            a = functional.scaled_dot_product_attention(
                rope(q), keys, values, attn_mask=mask, enable_gqa=True
            )
            x = x + layer.self_attn.o_proj(a.transpose(1, 2).reshape(1, 1, -1))
            gate, up = functional.linear(
                norm(x, layer.post_attention_layernorm), getattr(self, f"up{i}")
            ).chunk(2, -1)
            x = x + layer.mlp.down_proj(functional.silu(gate) * up)
        return self.model.lm_head(norm(x, self.model.model.norm)).argmax(-1)
