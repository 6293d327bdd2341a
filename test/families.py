"""Small configurations of decoder families, for tests: (config class, changes to the common sizes)."""

from typing import Any

import torch

from test.models import spread

CONTEXT = 24
_COMMON = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_ALTERNATING = ["sliding_attention", "full_attention"]
_GEMMA = {"query_pre_attn_scalar": 24, "sliding_window": 6, "layer_types": _ALTERNATING}


def _rope(kind: str, **facts: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0} | facts}


def _long(original: int) -> dict[str, Any]:
    short = [1.0 + 0.1 * i for i in range(8)]
    factors = {"short_factor": short, "long_factor": [2.0 * f for f in short]}
    length = {"original_max_position_embeddings": original}
    return _rope("longrope", **factors, **length) | length


_YARN = {"factor": 4.0, "original_max_position_embeddings": 64}
_LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_CAPS = {"attn_logit_softcapping": 4.0, "final_logit_softcapping": 3.0}
_MULTIPLIERS = {
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.4,
    "attention_multiplier": 0.2,
    "logits_scaling": 4.0,
}
_WINDOW = {"sliding_window": 6}
# Heads of 64, of which a quarter turns.
_WIDE = {"hidden_size": 256, "head_dim": None, "partial_rotary_factor": 0.25}
_TIED = {"tie_word_embeddings": True}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "llama tied": ("LlamaConfig", _TIED),
    "llama biases": ("LlamaConfig", {"attention_bias": True, "mlp_bias": True}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {}),
    "mistral": ("MistralConfig", {"sliding_window": None}),
    "mistral window": ("MistralConfig", {"sliding_window": 6}),
    "gemma2": ("Gemma2Config", _GEMMA | _CAPS | _TIED),
    "gemma3": ("Gemma3TextConfig", _GEMMA | _TIED),
    "phi3": ("Phi3Config", {}),
    "phi3 partial": ("Phi3Config", {"head_dim": 32, "partial_rotary_factor": 0.5}),
    "smollm3": ("SmolLM3Config", {"no_rope_layers": [1, 0]}),
    "olmo2": ("Olmo2Config", {}),
    "granite": ("GraniteConfig", _MULTIPLIERS),
    "qwen2 window": ("Qwen2Config", _WINDOW | {"use_sliding_window": True, "max_window_layers": 1}),
    "gemma": ("GemmaConfig", {}),
    "olmo3": ("Olmo3Config", _WINDOW | {"layer_types": _ALTERNATING}),
    "exaone4": ("Exaone4Config", _WINDOW | {"layer_types": _ALTERNATING}),
    "ministral": ("MinistralConfig", _WINDOW),
    "vaultgemma": ("VaultGemmaConfig", _GEMMA),
    "seed-oss": ("SeedOssConfig", {}),
    "hunyuan": ("HunYuanDenseV1Config", {}),
    "starcoder2": ("Starcoder2Config", {}),
    "stablelm": ("StableLmConfig", _WIDE | {"use_qkv_bias": True}),
    "stablelm parallel": ("StableLmConfig", _WIDE | {"use_parallel_residual": True}),
    "gpt-neox": ("GPTNeoXConfig", _WIDE | {"num_key_value_heads": 4}),
    "phi": ("PhiConfig", _WIDE),
    "glm4": ("Glm4Config", {}),
    "ernie4.5": ("Ernie4_5Config", {}),
    "helium": ("HeliumConfig", {}),
    "rope linear": ("LlamaConfig", _rope("linear", factor=2.0)),
    "rope dynamic": ("LlamaConfig", _rope("dynamic", factor=2.0)),
    "rope dynamic, long": (
        "LlamaConfig",
        _rope("dynamic", factor=2.0) | {"max_position_embeddings": 16},
    ),
    "rope llama3": ("LlamaConfig", _rope("llama3", **_LLAMA3)),
    "rope yarn": ("LlamaConfig", _rope("yarn", **_YARN)),
    "rope longrope": ("Phi3Config", _long(64)),
    "rope longrope, long": ("Phi3Config", _long(16)),
}


def family(name: str, **changes: Any) -> Any:
    """A model of a family's small configuration, random weights and norms, fp32, in eval mode."""
    import transformers

    kind, facts = FAMILIES[name]
    given = {n: v for n, v in (_COMMON | facts | changes).items() if n != "head_dim" or v}
    config = getattr(transformers, kind)(**given)
    torch.manual_seed(0)
    return spread(transformers.AutoModelForCausalLM.from_config(config))
