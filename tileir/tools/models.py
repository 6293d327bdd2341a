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
    Family("Mistral", "MistralForCausalLM", "window in every layer, or none", KERNEL),
    Family("Ministral", "MinistralForCausalLM", "window in every layer", KERNEL),
    Family("Qwen2", "Qwen2ForCausalLM", "biases of q, k and v; windows in some layers", KERNEL),
    Family("Qwen3", "Qwen3ForCausalLM", "norms of the heads of q and k", KERNEL),
    Family("Gemma", "GemmaForCausalLM", "embedding scale, 1 + w norms", KERNEL),
    Family("Gemma2", "Gemma2ForCausalLM", "as Gemma; four norms a layer, windows, soft caps", KERNEL),
    Family("Gemma3", "Gemma3ForCausalLM", "as Gemma2; norms of heads, two rotations, no caps", KERNEL),
    Family("VaultGemma", "VaultGemmaForCausalLM", "as Gemma2; two norms a layer, no caps", KERNEL),
    Family("Phi-1, Phi-2", "PhiForCausalLM", "layer norms, biases, GELU without a gate", KERNEL),
    Family("Phi-3", "Phi3ForCausalLM", "fused q, k, v and gate, up; partial rotation", KERNEL),
    Family("SmolLM3", "SmolLM3ForCausalLM", "layers without rotation", KERNEL),
    Family("OLMo2", "Olmo2ForCausalLM", "norms of all of q and k, norms behind, none before", KERNEL),
    Family("OLMo3", "Olmo3ForCausalLM", "as OLMo2; windows in some layers", KERNEL),
    Family("Granite", "GraniteForCausalLM", "factors of embedding, scores, residual, logits", KERNEL),
    Family("StarCoder2", "Starcoder2ForCausalLM", "layer norms, GELU without a gate", KERNEL),
    Family("StableLM", "StableLmForCausalLM", "layer norms, parallel attention and MLP", KERNEL),
    Family("GPT-NeoX", "GPTNeoXForCausalLM", "as StableLM; GELU without a gate", KERNEL),
    Family("GLM-4", "Glm4ForCausalLM", "rotation of pairs, of a part of each head", KERNEL),
    Family("ERNIE 4.5", "Ernie4_5ForCausalLM", "rotation of pairs", KERNEL),
    Family("Helium", "HeliumForCausalLM", "rotation of pairs", KERNEL),
    Family("Seed-OSS", "SeedOssForCausalLM", "biases", KERNEL),
    Family("Exaone4", "Exaone4ForCausalLM", "norms of heads, norms behind, windows", KERNEL),
    Family("HunYuan dense", "HunYuanDenseV1ForCausalLM", "norms of heads behind the rotation", KERNEL),
    Family("Qwen3-MoE", "Qwen3MoeForCausalLM", "experts by softmax", REFERENCE),
    Family("DeepSeek-V3", "DeepseekV3ForCausalLM", "latents, experts by sigmoid, draft layer", REFERENCE),
    Family("DeepSeek-V3.2", "DeepseekV32ForCausalLM", "as DeepSeek-V3; an indexer", REFERENCE),
    Family("GLM-5", "GlmMoeDsaForCausalLM", "as DeepSeek-V3.2; indexers that layers share", REFERENCE),
)  # fmt: skip
