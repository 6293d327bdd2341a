"""What the kernel leaves in exchange memory, stage by stage, on a Hopper GPU. Skipped without one.

docs/gpu-runs.md says when and where it last ran.
"""

from contextlib import closing
from typing import Any

import numpy as np
import pytest

import tileir
from test.models import arrays, tiny_llama
from tileir.frontends.torch_export import export_decode
from tileir.runtime.driver import device_count
from tileir.tools.bounds import Bounds
from tileir.tools.check import check_package, compare
from tileir.tools.exact import exact_of
from tileir.tools.measure import measure

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(device_count() == 0, reason="no GPU")]


# 300 positions of heads of 128 are beyond what one split takes alone.
@pytest.mark.parametrize(
    ("changes", "count"), [({}, 24), ({"num_key_value_heads": 1}, 24), ({"head_dim": 128}, 300)]
)
def test_kernel_passes(changes: dict[str, Any], count: int) -> None:
    model = tiny_llama(max_position_embeddings=512, **changes)
    package = tileir.compile(export_decode(model, 512), target="h100")
    weights = arrays(model)
    ids = np.random.default_rng(0).integers(0, 128, count).tolist()
    exact = exact_of(package, weights, ids)
    report = check_package(package, weights, "cuda:0", exact, Bounds())
    assert report.passed, report.failures
    wrong = "model.layers.1.mlp.down_proj.weight"
    with closing(
        package.load(weights | {wrong: np.roll(weights[wrong], 1, 1)}, "cuda:0")
    ) as session:
        found = measure(session, ids, exact.found.parts)
    refused = compare(exact.found, found, Bounds(), "cuda:0")
    assert refused.failures[0].startswith("contract_3 residual_3 (row "), refused.failures
