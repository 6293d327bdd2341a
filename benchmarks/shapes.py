"""The models that benchmarks run: real shapes with random weights."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

SCORE_DEVIATION = 3.0

SHAPES: dict[str, dict[str, Any]] = {
    "smollm2-135m": dict(kind="llama", hidden_size=576, num_hidden_layers=30, num_attention_heads=9,
                         num_key_value_heads=3, intermediate_size=1536, vocab_size=49152, head_dim=64,
                         rms_norm_eps=1e-5, max_position_embeddings=131072, tie_word_embeddings=True,
                         rope_parameters={"rope_type": "default", "rope_theta": 100000.0}),
    "llama-3.2-1b": dict(kind="llama", hidden_size=2048, num_hidden_layers=16, num_attention_heads=32,
                         num_key_value_heads=8, intermediate_size=8192, vocab_size=128256, head_dim=64,
                         rms_norm_eps=1e-5, max_position_embeddings=131072, tie_word_embeddings=True,
                         rope_parameters={"rope_type": "default", "rope_theta": 500000.0}),
    "llama-3.1-8b": dict(kind="llama", hidden_size=4096, num_hidden_layers=32, num_attention_heads=32,
                         num_key_value_heads=8, intermediate_size=14336, vocab_size=128256, head_dim=128,
                         rms_norm_eps=1e-5, max_position_embeddings=131072, tie_word_embeddings=False,
                         rope_parameters={"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0,
                                          "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                          "original_max_position_embeddings": 8192}),
    "qwen2.5-0.5b": dict(kind="qwen2", hidden_size=896, num_hidden_layers=24, num_attention_heads=14,
                         num_key_value_heads=2, intermediate_size=4864, vocab_size=151936,
                         max_position_embeddings=32768, tie_word_embeddings=True,
                         rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}),
    "qwen3-0.6b": dict(kind="qwen3", hidden_size=1024, num_hidden_layers=28, num_attention_heads=16,
                       num_key_value_heads=8, intermediate_size=3072, vocab_size=151936, head_dim=128,
                       max_position_embeddings=40960, tie_word_embeddings=True,
                       rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}),
    "qwen3-4b": dict(kind="qwen3", hidden_size=2560, num_hidden_layers=36, num_attention_heads=32,
                     num_key_value_heads=8, intermediate_size=9728, vocab_size=151936, head_dim=128,
                     max_position_embeddings=40960, tie_word_embeddings=True,
                     rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}),
    "qwen3-8b": dict(kind="qwen3", hidden_size=4096, num_hidden_layers=36, num_attention_heads=32,
                     num_key_value_heads=8, intermediate_size=12288, vocab_size=151936, head_dim=128,
                     max_position_embeddings=40960, tie_word_embeddings=False,
                     rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}),
    "gemma3-1b": dict(kind="gemma3_text", hidden_size=1152, num_hidden_layers=26, num_attention_heads=4,
                      num_key_value_heads=1, intermediate_size=6912, vocab_size=262144, head_dim=256,
                      max_position_embeddings=32768, sliding_window=512, query_pre_attn_scalar=256),
    "phi-3-mini": dict(kind="phi3", hidden_size=3072, num_hidden_layers=32, num_attention_heads=32,
                       num_key_value_heads=32, intermediate_size=8192, vocab_size=32064, sliding_window=2047,
                       max_position_embeddings=4096, pad_token_id=0, tie_word_embeddings=False),
    "mistral-7b": dict(kind="mistral", hidden_size=4096, num_hidden_layers=32, num_attention_heads=32,
                       num_key_value_heads=8, intermediate_size=14336, vocab_size=32768, sliding_window=None,
                       max_position_embeddings=32768, tie_word_embeddings=False,
                       rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}),
    # The ends of the range of sizes: a layer of Llama-3.1-405B, 126 narrow layers, sizes that divide nothing.
    "wide": dict(kind="llama", hidden_size=16384, num_hidden_layers=1, num_attention_heads=128,
                 num_key_value_heads=8, intermediate_size=53248, vocab_size=128256, head_dim=128,
                 max_position_embeddings=8192, tie_word_embeddings=False),
    "deep": dict(kind="qwen3", hidden_size=480, num_hidden_layers=126, num_attention_heads=6,
                 num_key_value_heads=1, intermediate_size=1000, vocab_size=50257, head_dim=80,
                 max_position_embeddings=8192, tie_word_embeddings=True),
    "odd": dict(kind="qwen2", hidden_size=1000, num_hidden_layers=3, num_attention_heads=10,
                num_key_value_heads=5, intermediate_size=2730, vocab_size=50001, head_dim=112,
                max_position_embeddings=8192, tie_word_embeddings=False),
}  # fmt: skip


def config_of(name: str, **changes: Any) -> Any:
    """The transformers config of a shape, with some of its facts changed."""
    from transformers import AutoConfig

    facts = SHAPES[name] | changes
    return AutoConfig.for_model(facts.pop("kind"), **facts)


def random_model(config: Any, seed: int = 0, device: str = "cuda") -> Any:
    """A bf16 model of a config; weights such that attention's scores deviate by SCORE_DEVIATION.

    Frequencies of rope are fp32, as where transformers loads a model.
    """
    from transformers import AutoModelForCausalLM

    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model = model.eval().requires_grad_(False)
    generator = torch.Generator(device).manual_seed(seed)
    for key, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, device=device, generator=generator)
        if parameter.ndim == 1:
            parameter.copy_(_norm_or_bias(key, parameter.float(), noise))
        else:
            parameter.copy_(noise / math.sqrt(parameter.shape[1]))
            _sharpen(key, parameter, config)
    return model


def _norm_or_bias(key: str, start: Any, noise: Any) -> Any:
    """Around what the module starts with; q's and k's norms, whose scale counts, so as to sharpen scores."""
    value = start + 0.1 * noise
    if "q_norm" not in key and "k_norm" not in key:
        return value
    unit = 1 - start  # what is added to the weight: Gemma stores 1 less
    return (value + unit) * math.sqrt(SCORE_DEVIATION) - unit


def _sharpen(key: str, parameter: Any, config: Any) -> None:
    """Rows that make q and k, scaled so that q·k / sqrt(d) deviates by SCORE_DEVIATION."""
    rows = slice(0, 0)
    if "q_proj" in key or "k_proj" in key:
        rows = slice(None)
    elif "qkv_proj" in key:
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        rows = slice((config.num_attention_heads + config.num_key_value_heads) * size)
    parameter[rows] *= math.sqrt(SCORE_DEVIATION)


class TorchWeights(Mapping[str, Any]):
    """A model's parameters as bf16 NumPy arrays, by checkpoint name."""

    def __init__(self, model: Any) -> None:
        self._state = model.state_dict()

    def __getitem__(self, name: str) -> np.ndarray:
        import ml_dtypes

        value = self._state[name].to(torch.bfloat16).contiguous().cpu()
        return np.asarray(value.view(torch.int16).numpy().view(ml_dtypes.bfloat16))

    def __iter__(self) -> Iterator[str]:
        return iter(self._state)

    def __len__(self) -> int:
        return len(self._state)
