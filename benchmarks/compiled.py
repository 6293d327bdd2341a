"""torch.compile's decode step over a transformers model, the baseline of benchmarks.decode."""

from typing import Any

import torch


def compiled_ms(model: Any, context: int, steps: int = 100) -> float:
    """torch.compile's milliseconds a token: max-autotune, CUDA graphs, a static cache of just `context` positions.

    model: Hugging Face's, of Llama or Qwen3, on the GPU; it is of no use afterwards.
    """
    run = torch.compile(Step(model, context), mode="max-autotune", fullgraph=True)
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


class Step(torch.nn.Module):
    """A plain decode step in the model's dtype: fused projections, static caches of unit scale.

    (token [1, 1], position [1], int64) → the next token [1, 1]. The model's projections move into fused ones.
    """

    def __init__(self, model: Any, context: int) -> None:
        super().__init__()
        c = model.config
        self.c, self.model = c, model
        like = {"device": model.device, "dtype": model.dtype}
        cache = (1, c.num_key_value_heads, context, c.head_dim)
        for i, layer in enumerate(model.model.layers):
            a, m = layer.self_attn, layer.mlp
            weights = {
                f"qkv{i}": torch.cat([a.q_proj.weight, a.k_proj.weight, a.v_proj.weight]),
                f"up{i}": torch.cat([m.gate_proj.weight, m.up_proj.weight]),
                f"k{i}": torch.randn(cache, **like),
                f"v{i}": torch.randn(cache, **like),
            }
            for key, value in weights.items():
                self.register_buffer(key, value)
            for p in (a.q_proj, a.k_proj, a.v_proj, m.gate_proj, m.up_proj):
                p.weight = None
        columns = torch.arange(context, device=model.device)
        angles = columns.float()[:, None] * model.model.rotary_emb.inv_freq
        angles = torch.cat([angles, angles], -1)
        self.register_buffer("cos", angles.cos().to(model.dtype))
        self.register_buffer("sin", angles.sin().to(model.dtype))
        self.register_buffer("columns", columns)

    def forward(self, token: Any, position: Any) -> Any:
        c, functional = self.c, torch.nn.functional
        x = self.model.model.embed_tokens(token)
        cos, sin = self.cos[position], self.sin[position]
        mask = (self.columns[None] <= position[:, None])[None, None]
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
