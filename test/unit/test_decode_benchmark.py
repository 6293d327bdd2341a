"""The speed benchmark's own arithmetic, where there is no GPU."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import decode


def record(model: str, context: int, **changes: Any) -> dict[str, Any]:
    facts = {
        "gpu": "NVIDIA H100",
        "devices": 1,
        "model": model,
        "dtype": "bf16",
        "context": context,
    }
    figures = {"ms": 1.0, "p999_ms": None, "ceiling_tbps": 3.0, "bytes": 2_000_000_000}
    return facts | figures | {"torch_compile_ms": None} | changes


def test_bytes_of_llama_1b() -> None:
    # 1,235,814,400 parameters, the tied table once, and one row of it again; 2 · 8 · 64 values a layer and position.
    c = decode.config_of("llama-3.2-1b")
    assert decode.step_bytes(c, 1) == 2 * (1_235_814_400 + 2048)
    assert decode.step_bytes(c, 33) - decode.step_bytes(c, 1) == 2 * 16 * 2 * 512 * 32


@pytest.mark.parametrize("name", decode.MODELS)
def test_bytes_are_those_of_the_weights(name: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    config = decode.config_of(name)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    table = model.get_input_embeddings().weight
    count = sum(p.numel() for p in model.parameters())
    if not config.tie_word_embeddings:
        count -= table.numel()
    assert decode.step_bytes(config, 1) == 2 * (count + config.hidden_size)


def test_new_records_replace_those_of_the_same_row(tmp_path: Path) -> None:
    path = tmp_path / "results" / "decode.json"
    decode.merge(path, [record("a", 32), record("a", 1024), record("b", 32)])
    decode.merge(path, [record("a", 1024, ms=0.5)])
    held = {(r["model"], r["context"]): r["ms"] for r in json.loads(path.read_text())}
    assert held == {("a", 32): 1.0, ("a", 1024): 0.5, ("b", 32): 1.0}


def test_committed_records_have_the_same_parts() -> None:
    records = json.loads(decode.results_path("H100").read_text())
    wanted = {*record("a", 1), "share", "max_logit_error", "commit", "date"}
    assert all(set(r) == wanted for r in records)
    for r in records:
        assert r["bytes"] == decode.step_bytes(decode.config_of(r["model"]), r["context"])
        share = r["bytes"] / (r["ms"] * 1e-3) / (r["ceiling_tbps"] * 1e12)
        assert r["share"] == pytest.approx(share)


def test_plot(tmp_path: Path) -> None:
    path = tmp_path / "decode.png"
    decode.plot([record("a", c, torch_compile_ms=2.0) for c in (1, 32, 1024)], path)
    assert path.read_bytes().startswith(b"\x89PNG")
