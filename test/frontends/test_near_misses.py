"""Decoders that are almost what the importer knows: each is refused, or compiled to what it says."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from test import own_modules as own
from test.models import arrays, export_own
from tileir import compile as compile_
from tileir.errors import TileirError

CONTEXT, INNER = 12, 96


def rotation(make: Callable[..., Any], whole: bool = False) -> dict[str, Any]:
    """Of halves a and b, or of a whole head t and its turned halves."""

    def rotate(t: Any, cos: Any, sin: Any) -> Any:
        a, b = t.chunk(2, -1)
        if whole:
            cos, sin = (torch.cat([x, x], -1) for x in (cos, sin))
            return make(t, torch.cat([-b, a], -1), cos, sin)
        return make(a, b, cos, sin)

    return {"rotate": rotate}


def halves(low: Any, high: Any) -> Any:
    return torch.cat([low, high], -1)


ROTATIONS = {
    "the other way": rotation(lambda a, b, c, s: halves(a * c + b * s, b * c - a * s)),
    "one sum too many": rotation(lambda a, b, c, s: halves(a * c + b * s, b * c + a * s)),
    "halves in another order": rotation(lambda a, b, c, s: halves(b * c + a * s, a * c - b * s)),
    "one half twice": rotation(lambda a, b, c, s: halves(a * c - a * s, a * c + a * s)),
    "cosines for sines": rotation(lambda a, b, c, s: halves(a * s - b * c, b * s + a * c)),
    "a difference, doubled": rotation(
        lambda a, b, c, s: halves(torch.sub(a * c, b * s, alpha=2), b * c + a * s)
    ),
    "a sum, doubled": rotation(
        lambda a, b, c, s: halves(a * c - b * s, torch.add(b * c, a * s, alpha=2))
    ),
    "turned back": rotation(lambda t, r, c, s: torch.add(t * c, r * s, alpha=-1), whole=True),
    "a turn less": rotation(lambda t, r, c, s: t * c - r * s, whole=True),
    "nothing straight": rotation(lambda t, r, c, s: r * c + r * s, whole=True),
    "neither turned": rotation(lambda t, r, c, s: t * c + t * s, whole=True),
    "stacked halves": rotation(
        lambda a, b, c, s: torch.stack([a * c - b * s, b * c + a * s], -1).flatten(-2)
    ),
    "stacked the other way": rotation(
        lambda a, b, c, s: torch.stack([a * c - b * s, b * c + a * s], -2).flatten(-2)
    ),
    "pairs, the second first": {
        "rotate": lambda t, c, s: torch.stack(
            [t[..., 1::2] * c - t[..., 0::2] * s, t[..., 0::2] * c + t[..., 1::2] * s], -1
        ).flatten(-2)
    },
    "squares": rotation(lambda a, b, c, s: halves(a * c * c - b * s, b * c + a * s)),
    "a later position": {"angles": lambda p, f: (p + 1)[:, None] * f},
    "a power of positions": {"angles": lambda p, f: (p * p)[:, None] * f},
    "angles and a phase": {"angles": lambda p, f: p[:, None] * f + 0.5},
    "a sum of products": {"angles": lambda p, f: torch.einsum("i,j->j", p.float(), f)[None]},
}

MASKS = {
    "the row after": lambda m, p: torch.arange(m.context)[None] <= p[:, None] + 1,
    "all that is to come": lambda m, p: torch.arange(m.context)[None] >= p[:, None],
    "every other": lambda m, p: own.mask_by_compare(m, p) & (torch.arange(m.context) % 2 == 0),
    "either": lambda m, p: own.mask_by_compare(m, p) | (torch.arange(m.context) == 7),
    "both ends of a window": lambda m, p: (
        own.mask_by_compare(m, p) & (torch.arange(m.context)[None] >= p[:, None] - 4)
    ),
    "a window of halves": lambda m, p: (
        own.mask_by_compare(m, p) & (torch.arange(m.context)[None] > p[:, None] // 2)
    ),
    "columns doubled": lambda m, p: 2 * torch.arange(m.context)[None] <= p[:, None],
    "all": lambda m, p: torch.ones(1, m.context, dtype=torch.bool),
}


def spread(t: Any, q: Any) -> Any:
    return t.repeat_interleave(q.shape[1] // t.shape[1], 1)


def scores(q: Any, k: Any) -> Any:
    return q @ spread(k, q).transpose(2, 3) * 0.25


def hidden(x: Any, mask: Any) -> Any:
    return x.masked_fill(~mask, -torch.inf)


ATTENTIONS = {
    "heads in turns": lambda q, k, v, m: F.scaled_dot_product_attention(
        q, *(t.repeat(1, q.shape[1] // t.shape[1], 1, 1) for t in (k, v)), m
    ),
    "values for keys": lambda q, k, v, m: F.scaled_dot_product_attention(
        q, v, k, m, enable_gqa=True
    ),
    "keys twice": lambda q, k, v, m: F.scaled_dot_product_attention(q, k, k, m, enable_gqa=True),
    "a negative scale": lambda q, k, v, m: F.scaled_dot_product_attention(
        q, k, v, m, scale=-0.5, enable_gqa=True
    ),
    "twice the weights": lambda q, k, v, m: 2 * hidden(scores(q, k), m).softmax(-1) @ spread(v, q),
    "a bias of columns": lambda q, k, v, m: (
        hidden(scores(q, k) + 0.1 * torch.arange(k.shape[2]), m).softmax(-1) @ spread(v, q)
    ),
    "a sink": lambda q, k, v, m: (
        torch.cat([hidden(scores(q, k), m), torch.zeros(1, q.shape[1], 1, 1)], -1)
        .softmax(-1)[..., :-1]
        .matmul(spread(v, q))
    ),
    "no softmax": lambda q, k, v, m: scores(q, k).masked_fill(~m, 0.0).relu() @ spread(v, q),
    "softmax of heads": lambda q, k, v, m: (
        scores(q, k).masked_fill(~m, -9.0).softmax(1) @ spread(v, q)
    ),
    "a shallow mask": lambda q, k, v, m: (
        scores(q, k).masked_fill(~m, -1.0).softmax(-1) @ spread(v, q)
    ),
    "a sharper cap": lambda q, k, v, m: (
        hidden(3.0 * torch.tanh(scores(q, k) / 2.0), m).softmax(-1) @ spread(v, q)
    ),
    "capped behind the mask": lambda q, k, v, m: (
        torch.tanh(scores(q, k).masked_fill(~m, -5.0)).softmax(-1) @ spread(v, q)
    ),
    "doubled values": lambda q, k, v, m: F.scaled_dot_product_attention(
        q, k, 2 * v, m, enable_gqa=True
    ),
    "a head less": lambda q, k, v, m: F.scaled_dot_product_attention(
        q, *(t[:, :1].expand(-1, k.shape[1], -1, -1) for t in (k, v)), m, enable_gqa=True
    ),
    "half of a context": lambda q, k, v, m: F.scaled_dot_product_attention(
        q, *(t[:, :, : CONTEXT // 2] for t in (k, v)), m[..., : CONTEXT // 2], enable_gqa=True
    ),
}


class Unit(nn.Module):
    """An MLP of a gate g and values u."""

    def __init__(self, size: int, make: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(size, INNER, bias=False), nn.Linear(size, INNER, bias=False)
        self.down, self.make = nn.Linear(INNER, size, bias=False), make

    def forward(self, x: Any) -> Any:
        return self.down(self.make(self.gate(x), self.up(x)))


UNITS = {
    "no activation": lambda g, u: g * u,
    "two activations": lambda g, u: F.silu(g) * F.silu(u),
    "activated behind": lambda g, u: F.silu(g * u),
    "a sum": lambda g, u: F.silu(g) + u,
    "a difference": lambda g, u: F.silu(g) - u,
    "squared": lambda g, u: F.silu(g) * F.silu(g),
    "relu squared": lambda g, u: F.relu(g) * F.relu(g),
    "a sigmoid of others": lambda g, u: g * torch.sigmoid(u),
    "a quick gelu": lambda g, u: g * torch.sigmoid(1.702 * g) * u,
    "a steeper silu": lambda g, u: g * torch.sigmoid(2 * g) * u,
    "leaky": lambda g, u: F.leaky_relu(g, 0.1) * u,
    "sixes": lambda g, u: F.relu6(g) * u,
    "clamped": lambda g, u: F.silu(g).clamp(max=0.5) * u,
    "gelu of half": lambda g, u: F.gelu(0.5 * g) * u,
    "one more than values": lambda g, u: F.silu(g) * (u + 1),
    "half a gate": lambda g, u: F.silu(g) * u[..., :1],
    "upside down": lambda g, u: F.silu(g.flip(-1)) * u,
}


class Norm(nn.Module):
    """make(x, weight)."""

    def __init__(self, size: int, make: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        self.weight, self.make = nn.Parameter(torch.ones(size)), make

    def forward(self, x: Any) -> Any:
        return self.make(x, self.weight)


def mean(x: Any) -> Any:
    return x.mean(-1, keepdim=True)


NORMS = {
    "of sums": lambda x, w: x * torch.rsqrt((x * x).sum(-1, keepdim=True) + 1e-5) * w,
    "of cubes": lambda x, w: x * torch.rsqrt(mean(x.abs() ** 3) + 1e-5) * w,
    "of magnitudes": lambda x, w: x * torch.rsqrt(mean(x.abs()) + 1e-5) * w,
    "of means": lambda x, w: (x - mean(x)) * torch.rsqrt(mean(x * x) + 1e-5) * w,
    "a large epsilon": lambda x, w: x * torch.rsqrt(mean(x * x) + 0.5) * w,
    "epsilon outside": lambda x, w: x / (mean(x * x).sqrt() + 0.1) * w,
    "two less weight": lambda x, w: x * torch.rsqrt(mean(x * x) + 1e-5) * (w - 2),
    "weight squared": lambda x, w: x * torch.rsqrt(mean(x * x) + 1e-5) * w * w,
    "no weight": lambda x, w: x * torch.rsqrt(mean(x * x) + 1e-5),
    "of half a row": lambda x, w: x * torch.rsqrt(mean(x[..., :32] ** 2) + 1e-5) * w,
    "of all": lambda x, w: x * torch.rsqrt((x * x).mean() + 1e-5) * w,
    "a root less": lambda x, w: x / (mean(x * x) + 1e-5) * w,
    "a reciprocal cube": lambda x, w: x * (mean(x * x) + 1e-5) ** -1.5 * w,
    "of heads": lambda x, w: F.rms_norm(x.view(1, 1, 4, 16), (16,), eps=1e-5).view(x.shape) * w,
}


class Wired(own.Layer):
    """A layer whose sums `make` makes."""

    def __init__(self, o: dict[str, Any], make: Callable[[Any, Any], Any]) -> None:
        super().__init__(o)
        self.make = make

    def forward(self, x: Any, at: Any, turn: Any, mask: Any) -> Any:
        x = self.make(x, self.attention(self.first(x), at, turn, mask))
        return self.make(x, self.mlp(self.second(x)))


SUMS = {
    "a difference": lambda x, y: x - y,
    "half a branch": lambda x, y: torch.add(x, y, alpha=0.5),
    "half a stream": lambda x, y: 0.5 * x + y,
    "a product": lambda x, y: x * y,
    "twice": lambda x, y: x + y + y,
    "only the branch": lambda x, y: y,
    "and one": lambda x, y: x + y + 1,
    "reversed": lambda x, y: x + y.flip(-1),
    "rolled": lambda x, y: x + y.roll(1, -1),
    "mean": lambda x, y: (x + y) / 2,
}


class Written(own.Layer):
    """A layer whose caches `how` writes; stale: which reads the keys that were there before."""

    how: Callable[[Any, Any, Any], Any]
    stale = False

    def attention(self, x: Any, at: Any, turn: Any, mask: Any) -> Any:
        parts = self.parts(self.qkv(x), self.sizes)
        q, k, v = (p.reshape(1, 1, -1, self.size).transpose(1, 2) for p in parts)
        old = self.keys.clone()
        self.how(self.keys, at, turn(k))
        self.how(self.values, at, v)
        keys = old if self.stale else self.keys
        return self.out(self.attend(turn(q), keys, self.values, mask).reshape(1, 1, -1))


WRITES: dict[str, Callable[..., Any]] = {
    "added": lambda cache, at, rows: cache.index_add_(2, at, rows),
    "added by index": lambda cache, at, rows: cache.index_put_(
        (torch.tensor([0]), torch.tensor([0]), at), rows[0, :1, 0], accumulate=True
    ),
    "a row before": lambda cache, at, rows: cache.index_copy_(2, (at - 1).clamp(min=0), rows),
    "doubled": lambda cache, at, rows: cache.index_copy_(2, at, 2 * rows),
    "everywhere": lambda cache, at, rows: cache.copy_(rows.expand_as(cache)),
    "one head": lambda cache, at, rows: cache[:, :1].index_copy_(2, at, rows[:, :1]),
    "shifted": lambda cache, at, rows: cache.copy_(torch.cat([cache[:, :, 1:], rows], 2)),
}

HEADS = {
    "half the logits": lambda x: 0.5 * x,
    "probabilities": lambda x: x.softmax(-1),
    "logarithms": lambda x: x.log_softmax(-1),
    "shifted": lambda x: x + torch.arange(x.shape[-1]),
    "negative": lambda x: -x,
    "the first half": lambda x: x[..., :48],
}
EMBEDDINGS = {
    "the next token": lambda m, i: m.embed(i + 1),
    "two tables": lambda m, i: m.embed(i) + m.head.weight[i],
    "a part": lambda m, i: F.pad(m.embed(i)[..., :32], (0, 32)),
    "a norm": lambda m, i: m.norm(m.embed(i)),
    "doubled": lambda m, i: 2 * m.embed(i),
}


def base(**options: Any) -> own.Decoder:
    given = {"context": CONTEXT, "layers": 1, "mlp": lambda size: own.Gated(size, INNER)} | options
    return own.Decoder(**given).eval()


def wired(make: Any) -> own.Decoder:
    model = base()
    state = model.state_dict()
    facts = {"hidden": 64, "heads": 4, "kv": 2, "head": 16, "context": CONTEXT, "norm": own.Rms}
    facts |= {"bias": False, "parts": own.by_split, "attend": own.attend_called, "post": False}
    facts |= {"put": False, "heads_last": False, "mlp": lambda size: own.Gated(size, INNER)}
    model.layers = nn.ModuleList(make(facts) for _ in range(1))
    model.load_state_dict(state)
    return model.eval()


def written(how: Any, **facts: Any) -> own.Decoder:
    return wired(type("Layer", (Written,), {"how": staticmethod(how)} | facts))


class Ended(nn.Module):
    """A decoder between another beginning and another end."""

    def __init__(self, model: own.Decoder, embed: Any = None, end: Any = None) -> None:
        super().__init__()
        self.model, self.context = model, model.context
        self.end = end or (lambda x: x)
        if embed is not None:
            table = model.embed
            model.embed = Embedded(table, embed, model)

    def forward(self, ids: Any, positions: Any) -> Any:
        return self.end(self.model(ids, positions))


class Embedded(nn.Module):
    """make(parts of the decoder, ids)."""

    def __init__(self, table: nn.Embedding, make: Any, model: own.Decoder) -> None:
        super().__init__()
        self.table, self.make = table, make
        # In a namespace, of which torch registers nothing a second time.
        self.of = SimpleNamespace(embed=table, norm=model.norm, head=model.head)

    def forward(self, ids: Any) -> Any:
        return self.make(self.of, ids)


def _of(kinds: dict[str, Any], make: Callable[[Any], Any]) -> dict[str, Callable[[], Any]]:
    return {name: lambda value=value: make(value) for name, value in kinds.items()}


CASES: dict[str, dict[str, Callable[[], Any]]] = {
    "rotation": _of(ROTATIONS, lambda options: base(**options)),
    "mask": _of(MASKS, lambda mask: base(mask=mask)),
    "attention": _of(ATTENTIONS, lambda attend: base(attend=attend)),
    "unit": _of(UNITS, lambda make: base(mlp=lambda size: Unit(size, make))),
    "norm": _of(NORMS, lambda make: base(norm=lambda size: Norm(size, make))),
    "sum": _of(SUMS, lambda make: wired(lambda facts: Wired(facts, make))),
    "write": _of(WRITES, written),
    "stale keys": {
        "index_copy": lambda: written(lambda c, at, r: c.index_copy_(2, at, r), stale=True)
    },
    "end": _of(HEADS, lambda end: Ended(base(), end=end)),
    "beginning": _of(EMBEDDINGS, lambda embed: Ended(base(), embed=embed)),
}


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, cases in CASES.items() for name in cases]
)
def test_it_is_refused_or_right(kind: str, name: str) -> None:
    model = CASES[kind][name]()
    program = export_own(model)
    ids = np.random.default_rng(5).integers(0, 48, CONTEXT).tolist()
    try:
        package = compile_(program, target="virtual")
    except TileirError:
        return
    with torch.no_grad():
        steps = [model(torch.tensor([[t]]), torch.tensor([i]))[0] for i, t in enumerate(ids)]
    exact = torch.cat(steps).numpy()
    found = package.load(arrays(model), "reference").logits(ids)
    assert np.abs(found - exact).max() < 1e-4 * np.abs(exact).max()
