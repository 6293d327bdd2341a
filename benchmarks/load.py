"""How fast weights get onto the GPU: a folder of safetensors in memory (as from the page cache), packed.

python -m benchmarks.load --package FOLDER/llama-3.1-8b.tileir --family llama-3.1-8b --out results.json
"""

import argparse
import datetime
import gc
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def load(package: Path, folder: Path) -> dict[str, Any]:
    """Seconds of two loads, of which the first warms up the driver, and the largest resident size of this process."""
    from tileir.package import load_package

    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        session = load_package(package).load(folder, device="cuda:0")
        seconds.append(time.perf_counter() - start)
        session.close()
    # Not ru_maxrss: a child inherits that of the process that starts it.
    (line,) = [s for s in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in s]
    return {"seconds": seconds, "peak_host_bytes": int(line.split()[1]) * 1024}


def main() -> None:
    """Write the weights, and load them in a process of its own."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--package", type=Path, required=True)
    parser.add_argument("--family", default="")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--commit", default="")
    parser.add_argument("--weights", type=Path, help="only load from here, and print")
    args = parser.parse_args()
    if args.weights is not None:
        print(json.dumps(load(args.package, args.weights)))
        return
    import torch

    from benchmarks.shapes import config_of, random_model

    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        model = random_model(config_of(args.family))
        model.save_pretrained(name, max_shard_size="2GB")
        size = sum(p.stat().st_size for p in Path(name).glob("*.safetensors"))
        largest = max(p.numel() * p.element_size() for p in model.parameters())
        del model
        gc.collect()
        torch.cuda.empty_cache()
        words = ["-m", "benchmarks.load", "--package", str(args.package), "--weights", name]
        done = subprocess.run([sys.executable, *words], check=True, capture_output=True, text=True)
    record = {
        "family": args.family,
        "gpu": torch.cuda.get_device_name(),
        "commit": args.commit,
        "date": datetime.date.today().isoformat(),
        "bytes": size,
        "largest_tensor_bytes": largest,
        **json.loads(done.stdout),
    }
    record["gb_per_s"] = size / 1e9 / min(record["seconds"])
    args.out.write_text(json.dumps(record, indent=1))
    print(json.dumps(record))


if __name__ == "__main__":
    main()
