"""The demo: a real model from its wheel to text, on a GPU if there is one."""

import sys
import time
import warnings
from pathlib import Path

from rich.console import Console

import tileir
from tileir.errors import TileirError
from tileir.runtime.driver import Device, device_count
from tileir.tools.text import Streamer, load_tokenizer

PROMPT = "Once upon a time, there was a little"
CONTEXT, NEW_TOKENS = 2048, 48
CACHE = Path(".cache")


def pick_target() -> str:
    """The target of the first GPU if it is a Hopper one, else "virtual"."""
    if device_count() == 0:
        return "virtual"
    device = Device(0)
    try:
        if device.attribute("COMPUTE_CAPABILITY_MAJOR") != 9:
            return "virtual"
        return "h200" if "H200" in device.name else "h100"
    finally:
        device.close()


def main() -> int:
    """Exit status 0 if text came out."""
    console = Console(highlight=False, soft_wrap=True)
    warnings.simplefilter("ignore", FutureWarning)  # torch.export's, about itself
    try:
        return run(console)
    except TileirError as error:
        print(error, file=sys.stderr)
        return 1


def run(console: Console) -> int:
    """Export, compile, generate; prints as it goes."""
    from tileir.frontends.torch_export import export_decode, load_hf
    from tileir.frontends.torch_export.smollm2 import prepare_smollm2

    with console.status("preparing SmolLM2-135M-Instruct"):
        folder = prepare_smollm2(CACHE)
    with console.status("exporting with torch.export"):
        program = export_decode(load_hf(folder), CONTEXT)
    target = pick_target()
    start = time.perf_counter()
    package = tileir.compile(
        program, target=target, progress=lambda n, s: console.print(f"  {n:20} {s:6.2f} s")
    )
    console.print(f"compiled for {target} in {time.perf_counter() - start:.1f} s")
    path = package.save(CACHE / f"smollm2-{target}.tileir")
    console.print(package.summary())
    with console.status("loading weights"):
        session = package.load(folder, device="auto" if target != "virtual" else "reference")
    tokenizer = load_tokenizer(folder)
    ids = tokenizer.encode(PROMPT).ids
    print(f"\n{PROMPT}", end="", flush=True)
    streamer, count, start = Streamer(tokenizer), 0, time.perf_counter()
    for token in session.generate(ids, NEW_TOKENS):
        print(streamer.push(token), end="", flush=True)
        count += 1
    seconds = time.perf_counter() - start
    print(streamer.rest())
    rate = (len(ids) - 1 + count) / seconds
    console.print(
        f"\n{rate:.1f} tokens/s (prompt and new tokens), {count} new, on {session.device}; "
        f"package {path.stat().st_size / 1024:.0f} KB at {path}"
    )
    session.close()
    return 0 if count >= 40 else 1


if __name__ == "__main__":
    sys.exit(main())
