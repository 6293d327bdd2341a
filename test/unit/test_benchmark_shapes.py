"""The benchmarks' models and their torch.compile baseline, where there is no GPU."""

from typing import Any

import pytest
import torch

import tileir
from benchmarks.compiled import Step
from benchmarks.decode import step_bytes
from benchmarks.shapes import SHAPES, config_of, random_model
from tileir.frontends.torch_export import export_decode, fake_hf, import_program
from tileir.mlir import new_context

SMALL = {
    "num_hidden_layers": 2,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 211,
}
# Llama's frequencies are scaled, Qwen3 normalises q and k and its heads are no part of the hidden size.
BASELINES = ("llama-3.1-8b", "qwen3-4b")


def small(name: str) -> Any:
    return random_model(config_of(name, **SMALL), device="cpu")


def test_qwen3_4b_at_two_layers() -> None:
    config = config_of("qwen3-4b", num_hidden_layers=2)
    program = export_decode(fake_hf(config), 40960)
    text = str(import_program(program, new_context()))
    for shape in ("4096x2560", "1024x2560", "2560x4096", "9728x2560", "2560x9728", "151936x2560"):
        assert f"tensor<{shape}xbf16>" in text
    assert text.count("tensor<8x40960x128xbf16>") >= 4
    assert "tensor<128xbf16>" in text
    (recipe,) = tileir.compile(program, target="virtual").packing
    streamed = sum(2 * 16 * row["tiles"] * row["k"] for row in recipe["tape"])
    norms = 2 * (2 * 2560 + 2 * 128) + 2560
    # Nothing of this shape is padded: the tape and the norms are what a step reads, beside the token's row.
    assert step_bytes(config, 1) == streamed + 2 * (norms + 2560)


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_has_the_config_that_it_says(name: str) -> None:
    config, facts = config_of(name), dict(SHAPES[name])
    assert config.model_type == facts.pop("kind")
    rope = facts.pop("rope_parameters", {})
    assert {key: getattr(config, key) for key in facts} == facts
    assert rope.items() <= (config.rope_parameters or {}).items()


@pytest.mark.parametrize("name", BASELINES)
def test_frequencies_are_fp32_of_the_right_size(name: str) -> None:
    model = small(name)
    rotary = model.model.rotary_emb
    assert rotary.inv_freq.dtype == torch.float32
    rope, size = model.config.rope_parameters, model.config.head_dim
    slowest = rope["rope_theta"] ** (2 / size - 1) / rope.get("factor", 1.0)
    assert len(rotary.inv_freq) == size // 2
    assert rotary.inv_freq[0].item() == 1.0
    assert rotary.inv_freq[-1].item() == pytest.approx(slowest, rel=1e-6)


@pytest.mark.parametrize("name", BASELINES)
def test_baseline_is_the_model(name: str) -> None:
    model = small(name).float()
    ids = torch.randint(0, 211, (1, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = model(ids, use_cache=False).logits.argmax(-1)[0]
        step = Step(model, context=16)
        found = [step(ids[:, i : i + 1], torch.tensor([i])).item() for i in range(12)]
    assert found == wanted.tolist()
