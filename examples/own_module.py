# %% [markdown]
"""A decoder of your own: write the step, export it, compile it, compare it with eager PyTorch.

    python examples/own_module.py

The compiler wants `forward(input_ids [1, 1], positions [1]) -> logits [1, 1, vocabulary]`, KV caches as buffers that
`index_copy_` writes at the position, and a mask made from the positions. All else is ordinary PyTorch.
"""

# %%
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import tileir

VOCABULARY, HIDDEN, HEADS, KV_HEADS, INNER, CONTEXT = 100, 96, 6, 2, 160, 64
SIZE = HIDDEN // HEADS


# %% One layer. The caches are buffers: the compiler keeps them on the device as states.
class Layer(nn.Module):
    """Attention with grouped queries and rotary positions, then a gated unit."""

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(HIDDEN, HEADS * SIZE, bias=False)
        self.k = nn.Linear(HIDDEN, KV_HEADS * SIZE, bias=False)
        self.v = nn.Linear(HIDDEN, KV_HEADS * SIZE, bias=False)
        self.out = nn.Linear(HEADS * SIZE, HIDDEN, bias=False)
        self.gate = nn.Linear(HIDDEN, INNER, bias=False)
        self.up = nn.Linear(HIDDEN, INNER, bias=False)
        self.down = nn.Linear(INNER, HIDDEN, bias=False)
        self.attention_norm, self.mlp_norm = nn.RMSNorm(HIDDEN, 1e-5), nn.RMSNorm(HIDDEN, 1e-5)
        cache = torch.zeros(1, KV_HEADS, CONTEXT, SIZE)
        self.register_buffer("keys", cache.clone(), persistent=False)
        self.register_buffer("values", cache.clone(), persistent=False)

    def forward(self, x: Any, positions: Any, cos: Any, sin: Any, mask: Any) -> Any:
        def heads(y: Any) -> Any:
            return y.view(1, x.shape[1], -1, SIZE).transpose(1, 2)

        def rope(y: Any) -> Any:
            a, b = y.chunk(2, -1)
            return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

        h = self.attention_norm(x)
        q, k, v = rope(heads(self.q(h))), rope(heads(self.k(h))), heads(self.v(h))
        self.keys.index_copy_(2, positions, k)
        self.values.index_copy_(2, positions, v)
        y = F.scaled_dot_product_attention(
            q, self.keys, self.values, attn_mask=mask, enable_gqa=True
        )
        x = x + self.out(y.transpose(1, 2).reshape(1, x.shape[1], -1))
        h = self.mlp_norm(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


# %% The step: a token and its position in, logits out.
class Decoder(nn.Module):
    """Embedding, layers, norm, head."""

    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, HIDDEN)
        self.layers = nn.ModuleList(Layer() for _ in range(layers))
        self.norm = nn.RMSNorm(HIDDEN, 1e-5)
        self.head = nn.Linear(HIDDEN, VOCABULARY, bias=False)
        turns = 10000.0 ** -(torch.arange(0, SIZE, 2).float() / SIZE)
        self.register_buffer("turns", turns, persistent=False)

    def forward(self, input_ids: Any, positions: Any) -> Any:
        angle = positions[:, None].float() * self.turns
        mask = torch.arange(CONTEXT)[None, :] <= positions[:, None]
        x = self.embed(input_ids)
        for layer in self.layers:
            x = layer(x, positions, angle.cos(), angle.sin(), mask)
        return self.head(self.norm(x))


# %% Export: ordinary torch.export; `run_decompositions({})` turns the caches' writes into functions.
torch.manual_seed(0)
model = Decoder().eval().requires_grad_(False)
example = (torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, dtype=torch.long))
program = torch.export.export(model, example, strict=False).run_decompositions({})

# %% Compile. `virtual` is a small device without PTX; "h100" makes a kernel from the same program, also without a GPU.
package = tileir.compile(program, target="virtual")
print(package.summary())

# %% Load it with the weights, by the names that the state dict has, and force five tokens through it.
weights = {name: value.numpy() for name, value in model.state_dict().items()}
session = package.load(weights, device="reference")
ids = [3, 14, 15, 92, 65]
ours = torch.from_numpy(session.logits(ids))
eager = [model(torch.tensor([[t]]), torch.tensor([i]))[0, 0] for i, t in enumerate(ids)]
difference = (ours - torch.stack(eager)).abs().max().item()
print(f"largest difference from eager PyTorch in a logit: {difference:.1e}")
assert difference < 1e-4

# %% Generate, and let eager PyTorch choose the same number of tokens on its own.
tokens = list(session.generate(ids, max_new_tokens=10))
wanted = [int(eager[-1].argmax())]
while len(wanted) < 10:
    position = torch.tensor([len(ids) + len(wanted) - 1])
    wanted.append(int(model(torch.tensor([[wanted[-1]]]), position)[0, 0].argmax()))
print("prompt", ids, "goes on with", tokens)
assert tokens == wanted, f"eager PyTorch says {wanted}"
