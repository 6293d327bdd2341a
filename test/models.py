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


_HARD = {
    "vocab_size": 128,
    "hidden_size": 64,
    "max_position_embeddings": 256,
    "num_attention_heads": 4,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LATENT = _HARD | {
    "num_key_value_heads": 4,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "routed_scaling_factor": 2.5,
    "norm_topk_prob": True,
    "num_hidden_layers": 3,
}
_SPARSE = _LATENT | {
    "n_group": 1,
    "topk_group": 1,
    "index_topk": 8,
    "index_head_dim": 32,
    "index_n_heads": 16,
    "mlp_layer_types": ["dense", "sparse", "sparse"],
}


def tiny_moe(**changes: Any) -> Any:
    """A Qwen3-MoE of two layers: norms over heads, 2 of 8 experts by softmax, fp32."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    facts = _HARD | {
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "norm_topk_prob": True,
    }
    torch.manual_seed(0)
    return spread(Qwen3MoeForCausalLM(Qwen3MoeConfig(**(facts | changes))))


def tiny_mla(**changes: Any) -> Any:
    """A DeepSeek-V3 of three layers: latents, yarn, 2 of 8 experts of the better of 2 groups, one shared; fp32."""
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    yarn = {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "mscale": 1.0,
        "mscale_all_dim": 0.5,
    }
    yarn |= {"beta_fast": 32, "beta_slow": 1, "original_max_position_embeddings": 64}
    facts = _LATENT | {
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "rope_parameters": yarn,
    }
    torch.manual_seed(0)
    return spread(DeepseekV3ForCausalLM(DeepseekV3Config(**(facts | changes))))


def tiny_dsa(**changes: Any) -> Any:
    """A GLM-5 of three layers: latents, 8 positions by an indexer, which the last layer takes from the second; fp32."""
    from transformers import GlmMoeDsaConfig, GlmMoeDsaForCausalLM

    facts = _SPARSE | {"indexer_types": ["full", "full", "shared"]}
    torch.manual_seed(0)
    return spread(GlmMoeDsaForCausalLM(GlmMoeDsaConfig(**(facts | changes))))


def tiny_v32(**changes: Any) -> Any:
    """A DeepSeek-V3.2 of three layers: as tiny_dsa, with an indexer each and its other rotation; fp32."""
    from transformers import DeepseekV32Config, DeepseekV32ForCausalLM

    facts = _SPARSE | {"n_group": 2}
    torch.manual_seed(0)
    return spread(DeepseekV32ForCausalLM(DeepseekV32Config(**(facts | changes))))


def tiny_mtp() -> tuple[Any, Any]:
    """tiny_mla and a layer that drafts."""
    from transformers.modeling_layers import MtpModel

    model = tiny_mla(num_mtp_layers=1)
    torch.manual_seed(1)
    draft = MtpModel(model, 1).eval()
    spread(draft.layers)
    return model, draft


def spread(model: Any) -> Any:
    """The model in eval mode with random weights, norms and router biases far from each other."""
    for name, parameter in [*model.named_parameters(), *model.named_buffers()]:
        parameter.requires_grad_(False)
        noise = torch.randn_like(parameter)
        if "e_score" in name:
            parameter.copy_(0.1 * noise)
        elif isinstance(parameter, nn.Parameter):
            parameter.copy_(noise * 0.15 if parameter.ndim > 1 else 1 + 0.1 * noise)
    return model.eval()


def arrays(model: Any, draft: Any = None) -> dict[str, np.ndarray]:
    """A model's state as NumPy arrays; a draft model's layers behind it, their names beginning with "mtp."."""
    state = dict(model.state_dict())
    if draft is not None:
        state |= {f"mtp.{n}": v for n, v in draft.state_dict().items() if n.startswith("layers.")}
    return {name: value.float().numpy() for name, value in state.items()}


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
