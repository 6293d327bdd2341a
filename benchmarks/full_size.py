"""Real model shapes without weights: seconds and memory to import and to compile to the engine level, and table sizes.

    python -m benchmarks.full_size [NAME …] [--target h100] [--out results.json]

Each shape runs in a process of its own, so that its peak memory is its own.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

CONTEXT = 4096
LLAMA_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 40,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 4096,
}


def llama() -> Any:
    """Llama-3.3-70B."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=128256, hidden_size=8192, intermediate_size=28672, num_hidden_layers=80,
        num_attention_heads=64, num_key_value_heads=8, max_position_embeddings=131072,
        rms_norm_eps=1e-5, rope_parameters=LLAMA_ROPE,
    )  # fmt: skip


def qwen3_moe() -> Any:
    """Qwen3-30B-A3B."""
    from transformers import Qwen3MoeConfig

    return Qwen3MoeConfig(
        vocab_size=151936, hidden_size=2048, intermediate_size=6144, num_hidden_layers=48,
        num_attention_heads=32, num_key_value_heads=4, head_dim=128, num_experts=128,
        num_experts_per_tok=8, moe_intermediate_size=768, norm_topk_prob=True,
    )  # fmt: skip


def deepseek_v3() -> Any:
    """DeepSeek-V3, 671B."""
    from transformers import DeepseekV3Config

    return DeepseekV3Config(rope_parameters=YARN_ROPE)


def glm_5() -> Any:
    """GLM-5, 744B."""
    from transformers import GlmMoeDsaConfig

    return GlmMoeDsaConfig()


SHAPES: dict[str, Callable[[], Any]] = {
    "qwen3-30b-a3b": qwen3_moe,
    "deepseek-v3": deepseek_v3,
    "glm-5": glm_5,
    "llama-3.3-70b": llama,
}


def measure(name: str, target: str) -> dict[str, Any]:
    """Seconds of each part, peak memory in GB, and the sizes of what came out, for one shape."""
    from tileir.compiler import Options
    from tileir.dialect.attributes import get, walk
    from tileir.frontends.torch_export import export_decode, fake_hf, import_program
    from tileir.mlir import ir, new_context
    from tileir.passes.pipeline import run_pipeline

    start = time.perf_counter()
    program = export_decode(fake_hf(SHAPES[name](), torch.bfloat16), CONTEXT)
    exported = time.perf_counter()
    context = new_context()
    with context, ir.Location.unknown():
        module = import_program(program, context)
        imported = time.perf_counter()
        operations = sum(1 for _ in walk(module))
        seconds: dict[str, float] = {}
        run_pipeline(module, Options(target).pipeline, on_pass=seconds.__setitem__)
        done = time.perf_counter()
        (device,) = walk(module, "engine.device")
        rows = list(walk(device, "engine.row"))
        words = sum(2 + len(get(row, "names")) for row in rows)
        return {
            "model": name,
            "target": target,
            "export_s": round(exported - start, 1),
            "import_s": round(imported - exported, 1),
            "compile_s": round(done - imported, 1),
            "verify_s": round(seconds["verify-schedule"], 1),
            "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
            "graph_operations": operations,
            "rows": len(rows),
            "bodies": len(list(walk(device, "engine.body"))),
            "table_bytes": 4 * words,
            **{n: get(device, n) for n in ("smem_bytes", "exchange_bytes", "constant_bytes")},
            "state_bytes": get(device, "state_bytes"),
        }


def main() -> None:
    """Measure the shapes, one after the other."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=list(SHAPES))
    parser.add_argument("--target", default="h100")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--alone", action="store_true", help="measure in this process")
    args = parser.parse_args()
    if args.alone:
        print(json.dumps(measure(args.names[0], args.target)))
        return
    records = []
    for name in args.names:
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.full_size", name, "--alone"]
        done = subprocess.run(
            [*command, "--target", args.target], stdout=subprocess.PIPE, text=True, check=True
        )
        records.append(json.loads(done.stdout.splitlines()[-1]))
        print(json.dumps(records[-1]), flush=True)
    if args.out is not None:
        args.out.write_text(json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
    main()
