"""Every dense family on a GPU: its shape with random weights through the numerics gate.

    python -m benchmarks.families --packages FOLDER --out benchmarks/results/families-GPU.json [--commit HASH]

FOLDER holds `FAMILY.tileir`, which `python -m benchmarks.families --make FOLDER` writes where there is no GPU.
"""

import argparse
import datetime
import gc
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.llama import TorchWeights
from test.gpu.gate import distance, verdict

CONTEXT = 4096
NAMED = (0, 1, 63, 64, 1000, 4095)
# The gate's figures are means: beside the named positions it looks at every 64th.
POSITIONS = sorted({*NAMED, *range(32, CONTEXT, 64)})
SCORE_DEVIATION = 3.0

SHAPES: dict[str, dict[str, Any]] = {
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
    "qwen3-8b": dict(kind="qwen3", hidden_size=4096, num_hidden_layers=36, num_attention_heads=32,
                     num_key_value_heads=8, intermediate_size=12288, vocab_size=151936, head_dim=128,
                     max_position_embeddings=40960, tie_word_embeddings=False,
                     rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}),
    "qwen3-4b": dict(kind="qwen3", hidden_size=2560, intermediate_size=9728, num_hidden_layers=36,
                     num_attention_heads=32, num_key_value_heads=8, head_dim=128, vocab_size=151936,
                     max_position_embeddings=40960, tie_word_embeddings=True,
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


def config_of(name: str) -> Any:
    """The transformers config of a shape."""
    from transformers import AutoConfig

    facts = dict(SHAPES[name])
    return AutoConfig.for_model(facts.pop("kind"), **facts)


def random_model(name: str, seed: int = 0) -> Any:
    """A bf16 model on the GPU; weights such that attention's scores deviate by SCORE_DEVIATION."""
    from transformers import AutoModelForCausalLM

    config = config_of(name)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model = model.eval().requires_grad_(False)
    generator = torch.Generator("cuda").manual_seed(seed)
    for key, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, device="cuda", generator=generator)
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


def logits_at(model: Any, ids: list[int], positions: list[int]) -> np.ndarray:
    """Logits at some positions, [positions, vocabulary] f32, of one forward pass."""
    with torch.no_grad():
        found = model(
            torch.tensor([ids], device="cuda"),
            logits_to_keep=torch.tensor(positions, device="cuda"),
            use_cache=False,
        )
    return np.asarray(found.logits[0].float().cpu().numpy())


def gate(name: str, folder: Path) -> dict[str, Any]:
    """A family's record: the gate over POSITIONS, the largest error at NAMED ones, and milliseconds."""
    from tileir.package import load_package
    from tileir.runtime.session import CudaSession

    model = random_model(name)
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, CONTEXT).tolist()
    peer = logits_at(model, ids, POSITIONS)
    session = CudaSession(load_package(folder / f"{name}.tileir"), TorchWeights(model))
    ours = session.logits(ids)
    bits = bool(np.array_equal(session.logits(ids[:64]), ours[:64]))
    times = {at: sorted(session.time_steps(64, at - 32) for _ in range(5))[2] for at in (32, 4000)}
    session.close()
    exact = logits_at(model.float(), ids, POSITIONS)
    found = verdict(distance(ours[POSITIONS], exact), distance(peer, exact))
    places = [POSITIONS.index(p) for p in NAMED]
    return {
        "family": name,
        "passed": found["passed"] and bits,
        "bit_identical": bits,
        "gate": found,
        "max_logit_error": {p: float(np.abs(ours[p] - exact[i]).max()) for p, i in zip(NAMED, places, strict=True)},
        "hf_max_logit_error": {p: float(np.abs(peer[i] - exact[i]).max()) for p, i in zip(NAMED, places, strict=True)},
        "ms": times,
    }  # fmt: skip


def make(folder: Path, names: list[str]) -> None:
    """Compile the packages."""
    import tileir
    from tileir.frontends.torch_export import export_decode, fake_hf

    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        program = export_decode(fake_hf(config_of(name)), CONTEXT)
        package = tileir.compile(program, target="h100")
        package.save(folder / f"{name}.tileir")
        print(name, package.summary().replace("\n", "; "), flush=True)


def main() -> int:
    """Exit status 1 if a family fails."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--make", type=Path)
    parser.add_argument("--packages", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--families", nargs="+", default=list(SHAPES))
    parser.add_argument("--commit", default="")
    args = parser.parse_args()
    if args.make:
        make(args.make, args.families)
        return 0
    torch.backends.cuda.matmul.allow_tf32 = False
    facts = {
        "gpu": torch.cuda.get_device_name(),
        "commit": args.commit,
        "date": datetime.date.today().isoformat(),
    }
    records = []
    for name in args.families:
        record = gate(name, args.packages) | facts
        records.append(record)
        print(json.dumps(record), flush=True)
        args.out.write_text(json.dumps(records, indent=1))
        gc.collect()
        torch.cuda.empty_cache()
    return 0 if all(r["passed"] for r in records) else 1


if __name__ == "__main__":
    raise SystemExit(main())
