"""What models the compiler takes. No pass looks at this table: models are taken by structure, never by name."""

from dataclasses import dataclass

KERNEL, REFERENCE = "h100, h200", "reference"


@dataclass(frozen=True)
class Family:
    """Models of one transformers class. special: what they have that Llama has not. device: what runs them."""

    name: str
    transformers_class: str
    special: str
    device: str


FAMILIES = (
    Family("Llama", "LlamaForCausalLM", "", KERNEL),
    Family("Mistral", "MistralForCausalLM", "sliding window", KERNEL),
    Family("Qwen2", "Qwen2ForCausalLM", "biases of q, k and v", KERNEL),
    Family("Qwen3", "Qwen3ForCausalLM", "norms over the heads of q and k", KERNEL),
    Family(
        "Gemma2",
        "Gemma2ForCausalLM",
        "soft caps on scores and logits, norms behind attention and MLP, windows in every other layer",
        KERNEL,
    ),
    Family(
        "Gemma3",
        "Gemma3ForCausalLM",
        "norms over heads and behind attention and MLP, windows with rotary frequencies of their own",
        KERNEL,
    ),
    Family("Phi-3", "Phi3ForCausalLM", "fused q, k, v and gate, up; partial rotary", KERNEL),
    Family("SmolLM3", "SmolLM3ForCausalLM", "layers without rotary positions", KERNEL),
    Family("OLMo2", "Olmo2ForCausalLM", "norms over all of q and k, norms behind, none before", KERNEL),
    Family("Granite", "GraniteForCausalLM", "factors on embedding, scores, residual and logits", KERNEL),
    Family("Qwen3-MoE", "Qwen3MoeForCausalLM", "experts by softmax", REFERENCE),
    Family(
        "DeepSeek-V3",
        "DeepseekV3ForCausalLM",
        "latent attention, experts by sigmoid in groups, shared experts, a draft layer",
        REFERENCE,
    ),
    Family(
        "DeepSeek-V3.2",
        "DeepseekV32ForCausalLM",
        "as DeepSeek-V3, with sparse attention by an indexer",
        REFERENCE,
    ),
    Family(
        "GLM-5",
        "GlmMoeDsaForCausalLM",
        "as DeepSeek-V3.2, with indexers that layers share",
        REFERENCE,
    ),
)  # fmt: skip
