"""Small models for tests."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


def tiny_llama(**changes: Any) -> Any:
    """A Llama of two small layers with random weights and norms, fp32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    facts = {
        "vocab_size": 128,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 256,
    }
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**(facts | changes))).eval().requires_grad_(False)
    for parameter in model.parameters():
        noise = torch.randn_like(parameter)
        parameter.copy_(noise * 0.15 if parameter.ndim > 1 else 1 + 0.1 * noise)
    return model


def arrays(model: Any) -> dict[str, np.ndarray]:
    """A model's state as NumPy arrays."""
    return {name: value.float().numpy() for name, value in model.state_dict().items()}


class OwnModel(nn.Module):
    """A user's decoder: F.rms_norm, grouped queries, SwiGLU, rope by chunks, caches as buffers."""

    def __init__(
        self, layers: int = 2, hidden: int = 64, heads: int = 4, kv: int = 2, context: int = 32
    ) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.heads, self.kv, self.size, self.context = heads, kv, hidden // heads, context
        self.embed = nn.Embedding(96, hidden)
        self.blocks = nn.ModuleList(_Block(hidden, heads, kv, context) for _ in range(layers))
        self.norm = nn.RMSNorm(hidden, 1e-5)
        self.head = nn.Linear(hidden, 96, bias=False)
        turn = 1.0 / (10000.0 ** (torch.arange(0, self.size, 2).float() / self.size))
        self.register_buffer("inv_freq", turn, persistent=False)

    def forward(self, ids: Any, positions: Any) -> Any:
        x = self.embed(ids)
        angle = positions[:, None].float() * self.inv_freq
        mask = torch.arange(self.context)[None, :] <= positions[:, None]
        for block in self.blocks:
            x = block(x, positions, angle.cos(), angle.sin(), mask)
        return self.head(self.norm(x))


class _Block(nn.Module):
    def __init__(self, hidden: int, heads: int, kv: int, context: int) -> None:
        super().__init__()
        self.heads, self.kv, self.size = heads, kv, hidden // heads
        self.q = nn.Linear(hidden, hidden)
        self.k = nn.Linear(hidden, kv * self.size)
        self.v = nn.Linear(hidden, kv * self.size)
        self.o = nn.Linear(hidden, hidden, bias=False)
        self.gate = nn.Linear(hidden, 96, bias=False)
        self.up = nn.Linear(hidden, 96, bias=False)
        self.down = nn.Linear(96, hidden, bias=False)
        self.first, self.second = nn.RMSNorm(hidden, 1e-5), nn.RMSNorm(hidden, 1e-5)
        for name in ("keys", "values"):
            self.register_buffer(name, torch.zeros(1, kv, context, self.size), persistent=False)

    def forward(self, x: Any, at: Any, cos: Any, sin: Any, mask: Any) -> Any:
        h = self.first(x)
        q, k, v = (
            p(h).view(1, x.shape[1], -1, self.size).transpose(1, 2)
            for p in (self.q, self.k, self.v)
        )

        def rope(t: Any) -> Any:
            a, b = t.chunk(2, -1)
            return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

        self.keys.index_copy_(2, at, rope(k))
        self.values.index_copy_(2, at, v)
        a = F.scaled_dot_product_attention(
            rope(q), self.keys, self.values, attn_mask=mask, enable_gqa=True
        )
        x = x + self.o(a.transpose(1, 2).reshape(1, x.shape[1], -1))
        h = self.second(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


def export_own(model: nn.Module) -> Any:
    """A user's own export."""
    example = (torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, dtype=torch.long))
    with torch.no_grad():
        program = torch.export.export(model.eval(), example, strict=False)
        return program.run_decompositions({})
