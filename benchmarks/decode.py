"""One token a step at batch 1: ours, the streaming-read ceiling and torch.compile, in one run on one GPU.

    python -m benchmarks.decode --packages FOLDER --out benchmarks/results/decode-GPU.json [--commit HASH]

Correctness comes first: before a row is timed, its logits at some positions pass the numerics gate.
"""

import argparse
import datetime
import gc
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.llama import TorchWeights, compiled_ms, logits_at, random_model
from benchmarks.stream_read import ceiling_tbps
from test.gpu.gate import distance, verdict
from tileir.package import Package, load_package
from tileir.runtime.session import CudaSession

POSITIONS = (0, 1, 63, 64, 1000, 4095)
CONTEXTS = (32, 1024, 4000)


def step_bytes(package: Package, context: int) -> int:
    """Bytes of weights and KV that a step at this context must read."""
    m = package.manifest
    kv = m["memory"]["states"] * context // m["context"]
    return int(m["memory"]["tape"] + kv)


def gate_row(session: CudaSession, name: str, context: int) -> dict[str, Any]:
    """The gate at POSITIONS inside the context, teacher-forced on random tokens."""
    positions = [p for p in POSITIONS if p < context]
    vocabulary = session.manifest["vocabulary"]
    ids = np.random.default_rng(0).integers(0, vocabulary, positions[-1] + 1).tolist()
    ours = session.logits(ids)[positions]
    exact = logits_at(random_model(name, torch.float32), ids, positions)
    peer = logits_at(random_model(name, torch.bfloat16), ids, positions)
    found = verdict(distance(ours, exact), distance(peer, exact))
    found["positions"] = positions
    found["max_logit_error"] = float(np.abs(ours - exact).max())
    return found


def rows_of(
    name: str, package: Package, ceiling: float, facts: dict[str, Any]
) -> list[dict[str, Any]]:
    """A record for every context that the package holds."""
    model = random_model(name, torch.bfloat16)
    session = CudaSession(package, TorchWeights(model))
    del model
    clean()
    gate = gate_row(session, name, package.manifest["context"])
    print(name, json.dumps(gate), flush=True)
    records = []
    for context in [c for c in CONTEXTS if c + 8 < package.manifest["context"]]:
        times = sorted(session.time_steps(64, max(context - 32, 0)) for _ in range(9))
        size = step_bytes(package, context)
        records.append(
            {
                **facts,
                "model": name,
                "dtype": "bf16",
                "context": context,
                "ms": times[4],
                "ceiling_tbps": ceiling,
                "bytes": size,
                "share": size / (times[4] * 1e-3) / (ceiling * 1e12),
                "max_logit_error": gate["max_logit_error"],
                "gate": gate,
            }
        )
    session.close()
    clean()
    for record in records:
        record["torch_compile_ms"] = compiled_ms(name, record["context"])
        torch._dynamo.reset()
        clean()
        print(name, record["context"], f"{record['ms']:.4f} ms, share {record['share']:.3f},",
              f"torch.compile {record['torch_compile_ms']:.4f} ms", flush=True)  # fmt: skip
    return records


def clean() -> None:
    """Give torch's memory back to the driver."""
    gc.collect()
    torch.cuda.empty_cache()


def main() -> None:
    """Write the records."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--packages", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=["smollm2-135m", "llama-3.2-1b"])
    parser.add_argument("--commit", default="")
    args = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    ceiling = ceiling_tbps()
    print(f"streaming read {ceiling:.3f} TB/s", flush=True)
    clean()
    facts = {
        "gpu": torch.cuda.get_device_name(),
        "devices": 1,
        "commit": args.commit,
        "date": datetime.date.today().isoformat(),
    }
    records: list[dict[str, Any]] = []
    for name in args.models:
        package = load_package(args.packages / f"{name}.tileir")
        records += rows_of(name, package, ceiling, facts)
        args.out.write_text(json.dumps(records, indent=1))


if __name__ == "__main__":
    main()
