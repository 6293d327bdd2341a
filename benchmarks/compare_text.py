"""Is the GPU's greedy text the reference device's, in the kernel's rounding?

    python -m benchmarks.compare_text benchmarks/results/gate-smollm2-h100.json --package P --model HF_FOLDER

For every prompt the reference-bf16 device is forced along the GPU's tokens. Where its best token
differs, the gap between its two best logits must be smaller than the bf16 error that the gate measured.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from tileir.package import load_package


def main() -> int:
    """Exit status 1 if a token differs by more than rounding."""
    parser = argparse.ArgumentParser()
    parser.add_argument("gate", type=Path)
    parser.add_argument("--package", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    args = parser.parse_args()
    report = json.loads(args.gate.read_text())
    bound = report["gate"]["ours"]["p999"]
    session = load_package(args.package).load(args.model, "reference-bf16")
    found, status = {}, 0
    for prompt, case in report["text"].items():
        ids, tokens = case["prompt"], case["tokens"]
        logits = session.logits([*ids, *tokens[:-1]])[len(ids) - 1 :]
        best = logits.argmax(1)
        differ = [i for i, (b, t) in enumerate(zip(best, tokens, strict=True)) if b != t]
        gaps = [float(np.diff(np.sort(logits[i])[-2:])[0]) for i in differ]
        found[prompt] = {"tokens": len(tokens), "differ_at": differ, "gaps": gaps}
        status |= any(gap > bound for gap in gaps)
        print(prompt, found[prompt], flush=True)
    report["reference_bf16"] = {"bound": bound, "prompts": found}
    args.gate.write_text(json.dumps(report, indent=1))
    return status


if __name__ == "__main__":
    sys.exit(main())
