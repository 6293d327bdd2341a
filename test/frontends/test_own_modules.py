"""Decoders that users write and export themselves, in many spellings, down to the reference device."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn

from test import own_modules as own
from test.frontends.test_families import check
from test.models import arrays, export_own

_TANH = partial(F.gelu, approximate="tanh")


def _norm(by: Any) -> Any:
    return partial(own.Rms, by=by)


def _gated(*given: Any, **facts: Any) -> Any:
    return lambda size: own.Gated(size, 96, *given, **facts)


def _plain(act: Any) -> Any:
    return lambda size: own.Plain(size, 96, act)


SPELLINGS: dict[str, dict[str, Any]] = {
    "biases everywhere": {"bias": True, "mlp": _gated(bias=True)},
    "qkv by slices, gate and up by chunk": {"parts": own.by_slices, "mlp": _gated(own.by_chunk)},
    "qkv by narrow, gate and up by split": {"parts": own.by_narrow, "mlp": _gated(own.by_split)},
    "qkv by chunk, biased": {"parts": own.by_chunk, "kv": 4, "bias": True},
    "qkv by unbind, gate and up by unbind": {
        "parts": own.by_unbind,
        "kv": 4,
        "mlp": _gated(own.by_unbind, bias=True),
    },
    "gate on the right": {"mlp": _gated(own.by_slices, gate_last=True)},
    "gelu gates": {"mlp": _gated(act=F.gelu), "norm": _norm(own.rms_by_hand)},
    "gelu by tanh": {"mlp": _plain(_TANH), "norm": _norm(own.rms_by_root)},
    "gelu by erf": {"mlp": _plain(F.gelu), "norm": _norm(own.rms_by_power)},
    "relu": {"mlp": _plain(F.relu), "bias": True},
    "silu by hand": {"mlp": _plain(lambda x: x * torch.sigmoid(x))},
    "layer norm": {"norm": nn.LayerNorm, "mlp": _plain(F.gelu), "bias": True},
    "layer norm behind": {"norm": nn.LayerNorm, "post": True, "mlp": _plain(F.relu)},
    "norms behind": {"post": True},
    "no final norm": {"final": False},
    "scaled queries, added mask": {"attend": own.attend_scaled_before},
    "attention by hand": {"attend": own.attend_by_hand},
    "capped attention": {"attend": own.attend_capped},
    "partial rotation": {"turned": 0.5, "head": 32},
    "angles by outer": {"angles": own.angles_by_outer},
    "angles by einsum": {"angles": own.angles_by_einsum},
    "angles by matmul": {"angles": own.angles_by_matmul},
    "tables by index": {"lookup": own.rows_by_index},
    "tables by index_select": {"lookup": own.rows_by_index_select},
    "tables by embedding": {"lookup": own.rows_by_embedding, "turned": 0.5, "head": 32},
    "tables of whole heads": {"lookup": own.rows_by_index, "rotate": own.rotate_whole},
    "angles of whole heads": {"angles": own.angles_by_outer, "rotate": own.rotate_whole},
    "tables of pairs": {"lookup": own.rows_by_index, "rotate": own.rotate_pairs},
    "pairs, half of a head": {"rotate": own.rotate_pairs, "turned": 0.5, "head": 32},
    "even and odd": {"rotate": own.rotate_every_other},
    "caches by index": {"put": True},
    "caches of positions": {"heads_last": True},
    "caches of positions, by index": {"heads_last": True, "put": True},
    "caches of positions, by hand": {
        "heads_last": True,
        "put": True,
        "attend": own.attend_by_hand,
    },
    "masks of a table": {"mask": own.mask_of_table},
    "masks of a table, a window": {"mask": own.mask_of_table, "window": 5},
    "masks to add": {"mask": own.mask_added},
    "masks to add, a window, by hand": {
        "mask": own.mask_added,
        "window": 7,
        "attend": own.attend_adding,
    },
    "as small decoders have it, tables in checkpoints": {
        "kept": True,
        "lookup": own.rows_by_index,
        "rotate": own.rotate_pairs,
        "put": True,
        "mask": own.mask_of_table,
    },
}


def compare(**options: Any) -> None:
    """Eager fp32, the graph executor and the reference device agree."""
    model = own.Decoder(**options).eval()
    ids = np.random.default_rng(3).integers(0, model.head.out_features, model.context).tolist()
    program = export_own(model)
    with torch.no_grad():
        eager = [model(torch.tensor([[t]]), torch.tensor([i]))[0] for i, t in enumerate(ids)]
    check(program, arrays(model), ids, torch.cat(eager).numpy())


@pytest.mark.parametrize("name", SPELLINGS)
def test_spelling(name: str) -> None:
    compare(**SPELLINGS[name])


@settings(max_examples=8, deadline=None, derandomize=True, phases=[Phase.generate])
@given(
    hidden=st.integers(2, 35).map(lambda n: 16 * n),
    head=st.sampled_from([16, 48, 64, 80, 96, 112, 128, 192, 256]),
    kv=st.integers(1, 3),
    shared=st.integers(1, 3),
    inner=st.integers(1, 20).map(lambda n: 8 * n),
    vocabulary=st.integers(17, 300),
    bias=st.booleans(),
)
def test_sizes(
    hidden: int, head: int, kv: int, shared: int, inner: int, vocabulary: int, bias: bool
) -> None:
    """Any hidden size and head of whole sixteens, MLP of whole eights, any vocabulary."""
    compare(
        hidden=hidden, head=head, heads=kv * shared, kv=kv, vocabulary=vocabulary, bias=bias,
        mlp=lambda size: own.Gated(size, inner, bias=bias), layers=1, context=6,
    )  # fmt: skip
