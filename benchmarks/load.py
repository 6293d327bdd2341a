"""How fast weights get onto the GPU: a folder of safetensors in memory (as from the page cache), packed.

python -m benchmarks.load --package FOLDER/llama-3.1-8b.tileir --family llama-3.1-8b --out results.json
"""

import argparse
import gc
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.families import random_model


def write(model: Any, folder: Path) -> int:
    """The model's weights in shards; returns their bytes."""
    model.save_pretrained(folder, max_shard_size="2GB")
    return sum(p.stat().st_size for p in folder.glob("*.safetensors"))


def main() -> None:
    """Load twice: the first time warms up the driver."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--package", type=Path, required=True)
    parser.add_argument("--family", required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    from tileir.package import load_package

    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        model = random_model(args.family)
        size = write(model, Path(name))
        del model
        gc.collect()
        torch.cuda.empty_cache()
        package = load_package(args.package)
        seconds = []
        for _ in range(2):
            start = time.perf_counter()
            session = package.load(name, device="cuda:0")
            seconds.append(time.perf_counter() - start)
            session.close()
    record = {
        "family": args.family,
        "gpu": torch.cuda.get_device_name(),
        "bytes": size,
        "seconds": seconds,
        "gb_per_s": size / 1e9 / min(seconds),
        "peak_host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    args.out.write_text(json.dumps(record, indent=1))
    print(json.dumps(record))


if __name__ == "__main__":
    main()
