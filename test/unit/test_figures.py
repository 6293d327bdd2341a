"""Numbers that `tileir inspect` tells, against models whose sizes are known."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import transformers

import tileir
from test import families
from test.models import arrays, spread, tiny_dsa, tiny_llama, tiny_mla, tiny_moe, tiny_v32
from tileir.errors import TileirError
from tileir.frontends.torch_export import export_decode
from tileir.package import Package
from tileir.target import TARGETS
from tileir.tools.figures import figures, table_of
from tileir.tools.models import FAMILIES, KERNEL, REFERENCE


def compiled(model: Any, **options: Any) -> Package:
    return tileir.compile(export_decode(model, 64), **{"target": "virtual"} | options)


@pytest.fixture(scope="module")
def llama() -> Package:
    return compiled(tiny_llama())


def test_a_dense_token_reads_every_matrix_and_every_row(llama: Package) -> None:
    matrices = {n: a for n, a in arrays(tiny_llama()).items() if "proj" in n or "lm_head" in n}
    weights = 2 * sum(a.size for a in matrices.values())
    for context in (0, 1, 40, 64):
        token = figures(llama, context)["token"]
        cached = 2 * 2 * 2 * 16 * 2 * context  # layers, k and v, heads, size, bytes
        assert (token["weight_bytes"], token["kv_bytes"]) == (weights, cached)
        rate = TARGETS["virtual"].stream_tbps * 1e12
        assert token["predicted_ms"] == pytest.approx((weights + cached) / rate * 1e3)
    assert figures(llama)["token"]["context"] == 64


def test_a_window_bounds_the_cache() -> None:
    facts = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
    facts |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    kinds = ["sliding_attention", "full_attention"]
    config = transformers.Qwen3Config(
        **facts, use_sliding_window=True, sliding_window=6, layer_types=kinds
    )
    package = compiled(spread(transformers.Qwen3ForCausalLM(config)))
    row = 2 * 2 * 16 * 2  # k and v, heads, size, bytes
    found = [figures(package, n)["token"]["kv_bytes"] for n in (3, 5, 50)]
    assert found == [(3 + 3) * row, (5 + 5) * row, (5 + 50) * row]


def test_only_chosen_experts_are_read() -> None:
    package = compiled(tiny_moe())
    state = arrays(tiny_moe())
    dense = sum(2 * a.size for n, a in state.items() if "self_attn" in n and a.ndim > 1)
    experts = sum(2 * a.size for n, a in state.items() if "experts" in n)
    routers = 2 * 2 * 16 * 64  # eight experts fill half of a tile of 16 rows
    head = 2 * state["lm_head.weight"].size
    token = figures(package, 0)["token"]
    assert token["weight_bytes"] == dense + experts * 2 // 8 + routers + head


def test_listed_positions_bound_the_cache() -> None:
    package = compiled(tiny_dsa())
    few, many = (figures(package, n)["token"]["kv_bytes"] for n in (8, 58))
    assert many - few == 50 * 2 * 32 * 2  # two indexers look at all keys, attention at eight rows


def test_rows_say_what_they_read(llama: Package) -> None:
    """An entry a row; rows of attention read keys and values of two heads of 16."""
    (rows,) = llama.manifest["row_reads"]
    cache = {"heads": 2, "bytes": 2 * 16 * 2, "most": 64, "splits": 1}
    for body, row in zip(llama.manifest["row_bodies"], rows, strict=True):
        assert row.get("cache") == (cache if body.startswith("attend") else None)
        assert (row["weights"] > 0) == body.startswith("contract")


def test_rows_are_counted_by_kind(llama: Package) -> None:
    rows = figures(llama)["rows"]
    assert rows == {"lookup": 1, "contract": 9, "attend": 2, "combine": 2, "select": 1}
    assert Counter(rows).total() == len(llama.manifest["table"])


def test_two_gpus_share_a_token() -> None:
    one, two = (figures(compiled(tiny_llama(), devices=n))["token"] for n in (1, 2))
    assert one["weight_bytes"] / 2 <= two["weight_bytes"] < one["weight_bytes"]


@pytest.mark.parametrize("context", [-1, 65])
def test_a_context_that_is_not_there(llama: Package, context: int) -> None:
    with pytest.raises(TileirError, match="0 … 64"):
        figures(llama, context)


def test_people_read_the_same_numbers(llama: Package) -> None:
    text = dict(table_of(figures(llama, 40)))
    assert text["phases"].startswith("15 rows of 9 bodies: 1 lookup, 9 contract")
    assert "at context 40" in text["a token"]
    assert "163.84 KB" in text["a token"]


def test_models_name_classes_of_transformers() -> None:
    for family in FAMILIES:
        found = getattr(transformers, family.transformers_class)
        assert issubclass(found, transformers.PreTrainedModel)
    names = [family.name for family in FAMILIES]
    assert len(set(names)) == len(names)


def test_models_are_those_that_are_tested() -> None:
    """Dense ones in test/families.py, for which kernels are made; the others in test/models.py."""
    configs = {getattr(transformers, kind) for kind, _ in families.FAMILIES.values()}
    dense = {transformers.MODEL_FOR_CAUSAL_LM_MAPPING[config].__name__ for config in configs}
    others = {type(make()).__name__ for make in (tiny_moe, tiny_mla, tiny_v32, tiny_dsa)}
    listed: dict[str, set[str]] = {KERNEL: set(), REFERENCE: set()}
    for family in FAMILIES:
        listed[family.device].add(family.transformers_class)
    assert listed == {KERNEL: dense, REFERENCE: others}


def test_models_are_in_the_documentation() -> None:
    text = (Path(__file__).parent.parent.parent / "docs/models.md").read_text().lower()
    words = {re.split(r"[ \d,-]", family.name.lower())[0] for family in FAMILIES}
    assert {word for word in words if word not in text} == set()
