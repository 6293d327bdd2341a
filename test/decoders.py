"""Random decoders: sizes, heads, norms, biases, tied or not, spellings of their parts, wiring of residuals."""

import functools
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import nn

from test import own_modules as own
from test.random_weights import random_weights

# Of residuals; the first is the usual one, which a failure shrinks to, as for all choices below.
WIRINGS = ("before", "behind", "beside", "both", "skip")
HEADS = (16, 32, 48, 64, 80, 96, 112, 128, 192, 256)
NORMS = {
    "rms": own.Rms,
    "rms by hand": functools.partial(own.Rms, by=own.rms_by_hand),
    "rms by power": functools.partial(own.Rms, by=own.rms_by_power),
    "layer": nn.LayerNorm,
}
ACTIVATIONS = {"silu": F.silu, "gelu": F.gelu, "relu": F.relu}
PARTS = {"split": own.by_split, "slices": own.by_slices, "narrow": own.by_narrow}
ATTENTIONS = {
    "called": own.attend_called,
    "scaled before": own.attend_scaled_before,
    "by hand": own.attend_by_hand,
    "capped": own.attend_capped,
}
ROPES: dict[str, dict[str, Any]] = {
    "mul": {},
    "matmul": {"angles": own.angles_by_matmul},
    "einsum": {"angles": own.angles_by_einsum, "rotate": own.rotate_whole},
    "table": {"lookup": own.rows_by_index},
    "whole table": {"lookup": own.rows_by_index_select, "rotate": own.rotate_whole},
    "pairs": {"rotate": own.rotate_pairs},
    "table of pairs": {"lookup": own.rows_by_index, "rotate": own.rotate_pairs},
}


@dataclass(frozen=True)
class Facts:
    """A decoder. wirings: of each layer; shared: query heads a kv head; head, hidden, inner: values; seed: of weights.

    bias: of attention; final: a norm before the head; half_turned: rope leaves half of a head as it is; put: caches are
    written by index; heads_last: caches are [1, positions, heads, size]; masked: masks are rows of a table.
    """

    wirings: tuple[str, ...]
    hidden: int
    inner: int
    kv: int
    shared: int
    head: int
    vocabulary: int
    context: int
    norm: str
    activation: str
    gated: bool
    parts: str
    attention: str
    bias: bool
    mlp_bias: bool
    head_bias: bool
    final: bool
    tied: bool
    half_turned: bool
    seed: int
    rope: str = "mul"
    put: bool = False
    heads_last: bool = False
    masked: bool = False


def decoders() -> st.SearchStrategy[Facts]:
    """Decoders that the compiler should take; small ones are simpler."""
    return st.builds(
        Facts,
        wirings=st.lists(st.sampled_from(WIRINGS), min_size=1, max_size=4).map(tuple),
        hidden=st.integers(16, 96).map(lambda n: 2 * n),
        inner=st.integers(8, 80).map(lambda n: 2 * n),
        kv=st.integers(1, 3),
        shared=st.sampled_from([1, 2, 3, 4, 5, 8]),
        head=st.sampled_from(HEADS),
        vocabulary=st.integers(17, 300),
        context=st.integers(8, 160),
        norm=st.sampled_from(sorted(NORMS, key="layer".__eq__)),
        activation=st.sampled_from(list(ACTIVATIONS)),
        gated=st.booleans(),
        parts=st.sampled_from(list(PARTS)),
        attention=st.sampled_from(list(ATTENTIONS)),
        bias=st.booleans(),
        mlp_bias=st.booleans(),
        head_bias=st.booleans(),
        final=st.booleans(),
        tied=st.booleans(),
        half_turned=st.booleans(),
        rope=st.sampled_from(list(ROPES)),
        put=st.booleans(),
        heads_last=st.booleans(),
        masked=st.booleans(),
        seed=st.integers(0, 99),
    )


def decoder(facts: Facts) -> "Decoder":
    """The module, in eval mode with random weights."""
    return Decoder(facts).eval().requires_grad_(False)


class Layer(own.Layer):
    """A layer whose residuals go as `wiring` says."""

    def __init__(self, o: dict[str, Any], wiring: str) -> None:
        super().__init__(o)
        self.wiring = wiring

    def forward(self, x: Any, at: Any, turn: own.Part, mask: Any) -> Any:
        first, second = self.first, self.second
        match self.wiring:
            case "behind":
                x = x + first(self.attention(x, at, turn, mask))
                return x + second(self.mlp(x))
            case "beside":
                n = first(x)
                return x + self.attention(n, at, turn, mask) + self.mlp(n)
            case "both":
                y = x + self.attention(first(x), at, turn, mask)
                return y + self.mlp(second(y)) + x
            case "skip":
                y = self.attention(first(x), at, turn, mask)
                return x + self.mlp(second(y))
        x = x + self.attention(first(x), at, turn, mask)
        return x + self.mlp(second(x))


class Decoder(own.Decoder):
    """A decoder of wired layers, its head tied to its table or not."""

    def __init__(self, facts: Facts) -> None:
        o = {
            "hidden": facts.hidden,
            "heads": facts.kv * facts.shared,
            "kv": facts.kv,
            "head": facts.head,
            "layers": 0,
            "vocabulary": facts.vocabulary,
            "context": facts.context,
            "norm": NORMS[facts.norm],
            "bias": facts.bias,
            "parts": PARTS[facts.parts],
            "attend": ATTENTIONS[facts.attention],
            "post": False,
            "final": facts.final,
            "turned": 0.5 if facts.half_turned else 1.0,
            "mlp": functools.partial(_mlp, facts),
            **ROPES[facts.rope],
            "put": facts.put,
            "heads_last": facts.heads_last,
            "mask": own.mask_of_table if facts.masked else own.mask_by_compare,
        }
        super().__init__(**o)
        self.layers = nn.ModuleList(Layer(o, wiring) for wiring in facts.wirings)
        self.head = nn.Linear(facts.hidden, facts.vocabulary, bias=facts.head_bias)
        shapes = {name: tuple(p.shape) for name, p in self.named_parameters()}
        drawn = random_weights(shapes, facts.seed)
        self.load_state_dict({name: torch.from_numpy(array) for name, array in drawn.items()})
        if facts.tied:
            self.head.weight = self.embed.weight


def _mlp(facts: Facts, size: int) -> nn.Module:
    act = ACTIVATIONS[facts.activation]
    if facts.gated:
        return own.Gated(size, facts.inner, act=act, bias=facts.mlp_bias)
    return own.Plain(size, facts.inner, act, facts.mlp_bias)
