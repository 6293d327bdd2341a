"""The numerics gate on a GPU, and a first speed figure.

    python -m benchmarks.gate smollm2 --packages FOLDER --model HF_FOLDER --out results.json

FOLDER holds `smollm2.tileir` and the mutants `mutant-….tileir`, made by
benchmarks/make_packages.py, which needs no GPU.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from test.gpu.gate import distance, verdict
from tileir.package import load_package
from tileir.runtime.session import CudaSession

PROMPTS = (
    "Once upon a time, there was a little",
    "The capital of France is",
    "Water boils at",
    "def fibonacci(n):",
    "The best way to learn a language is",
)


def hf_logits(folder: Path, ids: list[int], dtype: torch.dtype) -> np.ndarray:
    """Hugging Face's logits at every position, [len(ids), vocabulary] f32."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
    model = model.cuda().eval()
    with torch.no_grad():
        logits = model(torch.tensor([ids], device="cuda")).logits[0].float().cpu().numpy()
    del model
    torch.cuda.empty_cache()
    return np.asarray(logits)


def run(folder: Path, model: Path, text: str, positions: int) -> dict[str, Any]:
    """All measurements of the gate."""
    from transformers import AutoTokenizer

    from tileir.runtime.weights import Weights

    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    ids = tokenizer(text).input_ids[:positions]
    assert len(ids) == positions, f"the text has {len(ids)} tokens"
    exact = hf_logits(model, ids, torch.float32)
    peer = distance(hf_logits(model, ids, torch.bfloat16), exact)
    weights = Weights(model)
    report: dict[str, Any] = {"gpu": torch.cuda.get_device_name(), "mutants": {}}
    for path in [folder / "smollm2.tileir", *sorted(folder.glob("mutant-*.tileir"))]:
        session = CudaSession(load_package(path), weights)
        ours = session.logits(ids)
        found = verdict(distance(ours, exact), peer)
        if path.stem == "smollm2":
            report["gate"] = found
            report["bit_identical"] = bool(np.array_equal(ours, session.logits(ids)))
            report["text"] = {p: _generate(session, tokenizer, p) for p in PROMPTS}
            report["ms"] = {at: session.time_steps(200, at) for at in (0, 1000, 1800)}
        else:
            report["mutants"][path.stem.removeprefix("mutant-")] = found
        session.close()
        print(path.stem, json.dumps(found), flush=True)
    return report


def _generate(session: CudaSession, tokenizer: Any, prompt: str) -> dict[str, Any]:
    ids = tokenizer(prompt).input_ids
    tokens = list(session.generate(ids, 128))
    return {"prompt": ids, "tokens": tokens, "text": tokenizer.decode(tokens)}


def main() -> int:
    """Exit status 1 if the gate fails or lets a mutant through."""
    parser = argparse.ArgumentParser()
    for name in ("packages", "model", "text", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--positions", type=int, default=2048)
    args = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    report = run(args.packages, args.model, args.text.read_text(), args.positions)
    args.out.write_text(json.dumps(report, indent=1))
    missed = [name for name, found in report["mutants"].items() if found["passed"]]
    print("gate", report["gate"]["passed"], "ms", report["ms"])
    print(f"{len(report['mutants'])} mutants, not caught: {', '.join(missed) or 'none'}")
    return 0 if report["gate"]["passed"] and not missed and report["bit_identical"] else 1


if __name__ == "__main__":
    sys.exit(main())
