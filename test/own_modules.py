"""A decoder of a user's own in many spellings, for tests: each part by a function or a module of its own."""

import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

Part = Callable[..., Any]


def rms_by_hand(x: Any, w: Any) -> Any:
    return w * (x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-5))


def rms_by_root(x: Any, w: Any) -> Any:
    return x / torch.sqrt(1e-5 + x.square().mean(-1, keepdim=True)) * w


def rms_by_power(x: Any, w: Any) -> Any:
    return (x.pow(2).mean(-1, keepdim=True) + 1e-5).pow(-0.5) * x * (1 + w)


def rms_called(x: Any, w: Any) -> Any:
    return F.rms_norm(x, (x.shape[-1],), w, 1e-5)


class Rms(nn.Module):
    """A norm by one of the functions above."""

    def __init__(self, size: int, by: Part = rms_called) -> None:
        super().__init__()
        self.by, self.weight = by, nn.Parameter(torch.ones(size))

    def forward(self, x: Any) -> Any:
        return self.by(x, self.weight)


def by_split(y: Any, sizes: list[int]) -> Any:
    return y.split(sizes, -1)


def by_slices(y: Any, sizes: list[int]) -> Any:
    ends = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    return [y[..., a:b] for a, b in itertools.pairwise(ends)]


def by_narrow(y: Any, sizes: list[int]) -> Any:
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [y.narrow(-1, a, n) for a, n in zip(starts, sizes, strict=True)]


def by_chunk(y: Any, sizes: list[int]) -> Any:
    return y.chunk(len(sizes), -1)


def by_unbind(y: Any, sizes: list[int]) -> Any:
    return y.view(*y.shape[:-1], len(sizes), sizes[0]).unbind(-2)


def attend_called(q: Any, k: Any, v: Any, mask: Any) -> Any:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)


def attend_scaled_before(q: Any, k: Any, v: Any, mask: Any) -> Any:
    mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, float("-inf"))
    q, copies = q * 0.2, q.shape[1] // k.shape[1]
    k, v = (t.repeat_interleave(copies, 1) for t in (k, v))
    return F.scaled_dot_product_attention(q, k, v, mask, scale=1.0)


def attend_by_hand(q: Any, k: Any, v: Any, mask: Any) -> Any:
    heads, copies = q.shape[1], q.shape[1] // k.shape[1]
    k, v = (t[:, :, None].expand(-1, -1, copies, -1, -1).reshape(1, heads, *t.shape[2:]) for t in (k, v))  # fmt: skip
    scores = (q @ k.transpose(-1, -2)) / 4.5
    return scores.masked_fill(mask.logical_not(), float("-inf")).softmax(-1) @ v


def attend_adding(q: Any, k: Any, v: Any, mask: Any) -> Any:
    k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for t in (k, v))
    return (q @ k.transpose(2, 3) * 0.25 + mask).softmax(-1) @ v


def attend_capped(q: Any, k: Any, v: Any, mask: Any) -> Any:
    k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for t in (k, v))
    scores = 3.0 * torch.tanh(torch.matmul(q, k.mT) * 0.3 / 3.0)
    return torch.where(mask, scores, -torch.inf).softmax(dim=-1) @ v


class Gated(nn.Module):
    """up · act(gate), from one projection in parts, or from two."""

    def __init__(self, size: int, inner: int, parts: Part | None = None, **facts: Any) -> None:
        super().__init__()
        self.parts, self.inner, self.act = parts, inner, facts.get("act", F.silu)
        self.gate_last, bias = facts.get("gate_last", False), facts.get("bias", False)
        self.both = nn.Linear(size, 2 * inner, bias=bias)
        self.up = None if parts else nn.Linear(size, inner, bias=bias)
        self.gate = None if parts else nn.Linear(size, inner, bias=bias)
        self.down = nn.Linear(inner, size, bias=bias)

    def forward(self, x: Any) -> Any:
        if self.parts is not None:
            gate, up = self.parts(self.both(x), [self.inner] * 2)
        else:
            gate, up = self.gate(x), self.up(x)
        gate = self.act(gate)
        return self.down(up * gate if self.gate_last else gate * up)


class Plain(nn.Module):
    """An MLP without gate."""

    def __init__(self, size: int, inner: int, act: Part = F.gelu, bias: bool = True) -> None:
        super().__init__()
        self.act, self.up = act, nn.Linear(size, inner, bias=bias)
        self.down = nn.Linear(inner, size, bias=bias)

    def forward(self, x: Any) -> Any:
        return self.down(self.act(self.up(x)))


def angles_by_mul(positions: Any, frequencies: Any) -> Any:
    return positions[:, None] * frequencies


def angles_by_outer(positions: Any, frequencies: Any) -> Any:
    return torch.outer(positions.float(), frequencies)


def angles_by_einsum(positions: Any, frequencies: Any) -> Any:
    return torch.einsum("i,j->ij", positions.float(), frequencies)


def angles_by_matmul(positions: Any, frequencies: Any) -> Any:
    return (frequencies[None, :, None] @ positions[None, None, :].float()).transpose(1, 2)[0]


def rows_by_index(table: Any, positions: Any) -> Any:
    return table[positions]


def rows_by_index_select(table: Any, positions: Any) -> Any:
    return table.index_select(0, positions)


def rows_by_embedding(table: Any, positions: Any) -> Any:
    return F.embedding(positions, table)


def rotate_halves(t: Any, cos: Any, sin: Any) -> Any:
    a, b = t.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def rotate_whole(t: Any, cos: Any, sin: Any) -> Any:
    a, b = t.chunk(2, -1)
    return t * cos + torch.cat([-b, a], -1) * sin


def rotate_pairs(t: Any, cos: Any, sin: Any) -> Any:
    pairs = t.float().reshape(*t.shape[:-1], -1, 2)
    a, b = pairs[..., 0], pairs[..., 1]
    return torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2).type_as(t)


def rotate_every_other(t: Any, cos: Any, sin: Any) -> Any:
    a, b = t[..., 0::2], t[..., 1::2]
    return torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)


def mask_by_compare(model: Any, positions: Any) -> Any:
    columns = torch.arange(model.context)[None, :]
    return columns <= positions[:, None]


def mask_of_table(model: Any, positions: Any) -> Any:
    return model.seen[None, None, positions]


def mask_added(model: Any, positions: Any) -> Any:
    return model.added[positions]


class Layer(nn.Module):
    """Attention and an MLP, with norms before, or behind."""

    def __init__(self, o: dict[str, Any]) -> None:
        super().__init__()
        self.size, self.heads, self.kv = o["head"], o["heads"], o["kv"]
        hidden, norm, bias = o["hidden"], o["norm"], o["bias"]
        self.parts, self.attend, self.post = o["parts"], o["attend"], o["post"]
        self.sizes = [n * self.size for n in (self.heads, self.kv, self.kv)]
        self.put, self.heads_last = o["put"], o["heads_last"]
        self.qkv = nn.Linear(hidden, sum(self.sizes), bias=bias)
        self.out = nn.Linear(self.sizes[0], hidden, bias=bias)
        self.first, self.second, self.mlp = norm(hidden), norm(hidden), o["mlp"](hidden)
        for name in ("keys", "values"):
            zeros = torch.zeros(1, self.kv, o["context"], self.size)
            zeros = zeros.transpose(1, 2).contiguous() if o["heads_last"] else zeros
            self.register_buffer(name, zeros, persistent=False)

    def forward(self, x: Any, at: Any, turn: Part, mask: Any) -> Any:
        if self.post:
            x = x + self.first(self.attention(x, at, turn, mask))
            return self.second(self.mlp(x)) + x
        x = self.attention(self.first(x), at, turn, mask) + x
        return x + self.mlp(self.second(x))

    def attention(self, x: Any, at: Any, turn: Part, mask: Any) -> Any:
        parts = self.parts(self.qkv(x), self.sizes)
        q, k, v = (p.reshape(1, 1, -1, self.size).transpose(1, 2) for p in parts)
        if self.heads_last:
            return self.out(self.attended(turn(q), turn(k), v, at, mask))
        if self.put:
            self.keys[:, :, at], self.values[:, :, at] = turn(k), v
        else:
            self.keys.index_copy_(2, at, turn(k))
            self.values.index_copy_(2, at, v)
        made = self.attend(turn(q), self.keys, self.values, mask)
        return self.out(made.transpose(1, 2).reshape(1, 1, -1))

    def attended(self, q: Any, k: Any, v: Any, at: Any, mask: Any) -> Any:
        """Over caches whose positions come before heads; heads are repeated before or behind the transposition."""
        if self.put:
            self.keys[:, at], self.values[:, at] = k.transpose(1, 2), v.transpose(1, 2)
            k, v = self.keys.transpose(1, 2), self.values.transpose(1, 2)
        else:
            self.keys.index_copy_(1, at, k.transpose(1, 2))
            self.values.index_copy_(1, at, v.transpose(1, 2))
            copies = self.heads // self.kv
            k, v = (
                t.repeat_interleave(copies, 2).permute(0, 2, 1, 3) for t in (self.keys, self.values)
            )
        return self.attend(q, k, v, mask).transpose(1, 2).reshape(1, 1, -1)


class Decoder(nn.Module):
    """The whole: options as keywords, see the defaults."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(1)
        o = {"hidden": 64, "heads": 4, "kv": 2, "head": 16, "layers": 2, "vocabulary": 96, "context": 24,
             "norm": Rms, "bias": False, "parts": by_split, "attend": attend_called, "post": False,
             "mlp": lambda size: Gated(size, 96), "final": True, "turned": 1.0,
             "angles": angles_by_mul, "lookup": None, "rotate": rotate_halves,
             "mask": mask_by_compare, "window": 0, "put": False, "heads_last": False,
             "kept": False} | options  # fmt: skip
        self.context, self.size = o["context"], o["head"]
        self.embed = nn.Embedding(o["vocabulary"], o["hidden"])
        self.layers = nn.ModuleList(Layer(o) for _ in range(o["layers"]))
        self.norm = o["norm"](o["hidden"]) if o["final"] else nn.Identity()
        self.head = nn.Linear(o["hidden"], o["vocabulary"], bias=o["bias"])
        self.turned, self.angles = int(o["turned"] * self.size), o["angles"]
        frequencies = 1 / 10000 ** (torch.arange(0, self.turned, 2) / self.turned)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.lookup, self.rotate, self.mask = o["lookup"], o["rotate"], o["mask"]
        tables = {}
        if self.lookup is not None:
            angle = torch.outer(torch.arange(self.context).float(), frequencies)
            angle = torch.cat([angle, angle], -1) if self.rotate is rotate_whole else angle
            tables["turns"] = 1.25 * torch.stack([angle.cos(), angle.sin()], -1)
            tables |= {
                n: tables["turns"][..., i].clone() for i, n in enumerate(("cosines", "sines"))
            }
        seen = torch.ones(self.context, self.context, dtype=torch.bool).tril()
        seen &= ~seen.tril(-o["window"]) if o["window"] else True
        tables |= {"seen": seen, "added": torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)}
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=o["kept"])
        for name, parameter in self.named_parameters():
            noise = torch.randn_like(parameter) * 0.15
            with torch.no_grad():
                parameter.copy_(noise if parameter.ndim > 1 or "bias" in name else 1 + noise)

    def forward(self, ids: Any, positions: Any) -> Any:
        x = self.embed(ids)
        if self.lookup is not None and self.rotate is rotate_pairs:
            cos, sin = self.lookup(self.turns, positions).unbind(-1)
        elif self.lookup is not None:
            cos, sin = (self.lookup(t, positions) for t in (self.cosines, self.sines))
        else:
            angle = self.angles(positions, self.frequencies)
            angle = torch.cat([angle, angle], -1) if self.rotate is rotate_whole else angle
            cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)

        def turn(t: Any) -> Any:
            t, rest = t[..., : self.turned], t[..., self.turned :]
            turned = self.rotate(t, cos, sin)
            return turned if self.turned == self.size else torch.cat([turned, rest], -1)

        mask = self.mask(self, positions)
        for layer in self.layers:
            x = layer(x, positions, turn, mask)
        return self.head(self.norm(x))
