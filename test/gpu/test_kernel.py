"""The kernel on a Hopper GPU against the reference device. Skipped without one.

docs/gpu-runs.md says when and where it last ran.
"""

from typing import Any

import numpy as np
import pytest

import tileir
from test.models import arrays, tiny_llama
from tileir.frontends.torch_export import export_decode
from tileir.runtime.driver import device_count

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(device_count() == 0, reason="no GPU")]
IDS = [3, 1, 4, 1, 5, 9, 2, 6]


@pytest.mark.parametrize(
    "changes", [{}, {"attention_bias": True}, {"num_key_value_heads": 1}, {"head_dim": 32}]
)
def test_kernel_is_the_reference(changes: dict[str, Any]) -> None:
    model = tiny_llama(**changes)
    package = tileir.compile(export_decode(model, 64), target="h100")
    cuda = package.load(arrays(model), "cuda:0")
    reference = package.load(arrays(model), "reference-bf16")
    ours, wanted = cuda.logits(IDS), reference.logits(IDS)
    assert np.abs(ours - wanted).max() < 0.02 * np.abs(wanted).max()
    assert np.array_equal(ours, cuda.logits(IDS))
    tokens = list(cuda.generate(IDS, 6))
    assert tokens[0] == int(ours[-1].argmax())
    assert (
        list(cuda.generate(IDS, 6, stop_ids=[tokens[2]])) == tokens[: tokens.index(tokens[2]) + 1]
    )
    cuda.close()
