"""One token a step at batch 1: ours, the streaming-read ceiling and torch.compile, in one run on one GPU.

    python -m benchmarks.decode --make FOLDER [--target h200]     # where there is MLIR
    python -m benchmarks.decode --packages FOLDER --commit HASH   # on the GPU
    python -m benchmarks.decode --plot FILE.png                   # ms against context, from the records

Correctness comes first: a model that fails the numerics gate is not timed. Records go into one list a GPU, where a new
one replaces that of the same GPU, model, dtype and context. They are written when a model is timed, and again with each
of torch.compile's times, which come last, so that a run that is cut off keeps what it has. The ceiling is read before
and after each model's rows, and all records of a run stand beside the best: a share is of what that GPU gave at any
time.

--models, --contexts, --peer-contexts and --pinned-contexts choose parts; of an option without values, none:
`--peer-contexts` alone leaves torch.compile out, `--peer-contexts 32 llama-3.2-1b:1` runs it for every model at 32 and
for one at 1. A row for which it does not run keeps the time that stands in the list, and the commit of its run.
"""

import argparse
import datetime
import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch

from benchmarks import families
from benchmarks.compiled import compiled_ms
from benchmarks.records import GPUS, merge, plot, results_path, row_text, share
from benchmarks.shapes import TorchWeights, config_of, random_model
from benchmarks.stream_read import ceiling_tbps
from test.gpu.gate import distance, verdict
from tileir.errors import TileirError
from tileir.package import Package, load_package
from tileir.runtime.session import CudaSession

MODELS = ("smollm2-135m", "llama-3.2-1b", "llama-3.1-8b", "qwen3-0.6b", "qwen3-4b")
PACKAGE_CONTEXTS = {"smollm2-135m": 16384, "llama-3.2-1b": 131072, "llama-3.1-8b": 131072}
CONTEXTS = (1, 32, 128, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
PEER_ROWS = [(None, context) for context in (32, 1024, 8192, 32768)]
PINNED_CONTEXTS, PINNED_STEPS = (1024,), 10_000
NOISE_BYTES = 64 << 20


def step_bytes(config: Any, context: int) -> int:
    """Bytes, bf16, that a step which sees `context` positions, its own included, has to read.

    All weights but the embedding table, of which it is one row and, where it is tied, the head; keys and values of the
    positions before.
    """
    c, size = config, config.head_dim
    heads, kv = c.num_attention_heads * size, c.num_key_value_heads * size
    layer = c.hidden_size * (2 * heads + 2 * kv + 3 * c.intermediate_size + 2)
    if c.model_type == "qwen3":
        layer += 2 * size
    weights = c.num_hidden_layers * layer + c.hidden_size * (c.vocab_size + 2)
    return 2 * (weights + c.num_hidden_layers * 2 * kv * (context - 1))


def gate(session: CudaSession, model: Any) -> dict[str, Any]:
    """The gate at families.POSITIONS, teacher-forced on random tokens; the model is fp32 afterwards."""
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, families.CONTEXT).tolist()
    positions = families.POSITIONS
    peer = families.logits_at(model, ids, positions)
    ours = session.logits(ids)[positions]
    exact = families.logits_at(model.float(), ids, positions)
    found = verdict(distance(ours, exact), distance(peer, exact))
    found["max_logit_error"] = float(np.abs(ours - exact).max())
    return found


def our_ms(session: CudaSession, context: int) -> float:
    """Median milliseconds of a step that sees `context` positions: of launches of 64 steps that end there.

    Of fewer positions than that, of one launch whose steps stay there: a short launch would be timed with its start.
    """
    if context < 64:
        return float(np.median(session.step_times(256, context - 1)))
    return sorted(session.time_steps(64, context - 64) for _ in range(7))[3]


class Run:
    """The records of a run, which all stand beside the best ceiling that it has read."""

    def __init__(self, out: Path) -> None:
        self.out, self.ceiling, self.records = out, 0.0, list[dict[str, Any]]()

    def read_ceiling(self) -> None:
        """Once more: what is free, and how warm the GPU is, differs from moment to moment."""
        self.ceiling = max(self.ceiling, ceiling_tbps())
        clean()

    def write(self) -> None:
        """All records, earlier models' too."""
        for record in self.records:
            record |= {"ceiling_tbps": self.ceiling, "share": share(record, self.ceiling)}
        merge(self.out, self.records)


def measure(
    name: str, package: Package, args: argparse.Namespace, facts: dict[str, Any], run: Run
) -> bool:
    """Write a record for every context; False, and none, if the gate fails."""
    clean()
    config = config_of(name)
    model = random_model(config)
    session = CudaSession(package, TorchWeights(model))
    fill_states(session)
    found = gate(session, model)
    print(name, json.dumps(found), flush=True)
    if not found["passed"]:
        session.close()
        return False
    del model
    clean()
    same = {"model": name, "dtype": "bf16", "max_logit_error": found["max_logit_error"]} | facts
    run.read_ceiling()
    records = [record | same for record in timed(session, config, args)]
    run.read_ceiling()
    session.close()
    run.records += records
    run.write()
    print(*map(row_text, records), sep="\n", flush=True)
    return True


def compare(run: Run, rows: list[tuple[str | None, int]]) -> None:
    """torch.compile's time of the rows that have records: after all of ours, for each takes half a minute and more."""
    for record in run.records:
        name, context = record["model"], record["context"]
        if {(None, context), (name, context)} & set(rows):
            clean()
            record["torch_compile_ms"] = compiled_ms(random_model(config_of(name)), context)
            record["torch_compile_commit"] = record["commit"]
            torch._dynamo.reset()
            run.write()
            print(row_text(record), flush=True)


def fill_states(session: CudaSession) -> None:
    """Values of unit scale in all of KV: rows that no step has written are timed too, and zeros cost less power."""
    d, size = session._device, session.manifest["memory"]["states"]
    noise = d.pinned(min(size, NOISE_BYTES))
    values = noise.view(ml_dtypes.bfloat16)
    values[:] = np.random.default_rng(0).standard_normal(len(values), np.float32)
    for at in range(0, size, len(noise)):
        d.begin_upload(noise[: size - at], session._states + at)
    d.synchronize()
    d.unpin(noise)


def timed(session: CudaSession, config: Any, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The figures of every context that the package holds."""
    for context in (c for c in args.contexts if c <= session.manifest["context"]):
        ms, p999 = our_ms(session, context), None
        if context in args.pinned_contexts:
            times = session.step_times(PINNED_STEPS, context - 1)
            p999 = float(np.quantile(times, 0.999))
        yield {
            "context": context,
            "ms": ms,
            "p999_ms": p999,
            "bytes": step_bytes(config, context),
            "torch_compile_ms": None,
            "torch_compile_commit": None,
        }


def clean() -> None:
    """Give torch's memory back to the driver."""
    gc.collect()
    torch.cuda.empty_cache()


def make(folder: Path, names: list[str], target: str) -> None:
    """Compile the packages."""
    import tileir
    from tileir.frontends.torch_export import export_decode, fake_hf

    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        program = export_decode(fake_hf(config_of(name)), PACKAGE_CONTEXTS.get(name, 40960))
        tileir.compile(program, target=target).save(folder / f"{name}.tileir")
        print(name, flush=True)


def load_packages(folder: Path, names: list[str]) -> dict[str, Package]:
    """Every package, before device time is spent.

    Raises PackageError, and TileirError for a context that is too small for the gate.
    """
    packages = {name: load_package(folder / f"{name}.tileir") for name in names}
    for name, package in packages.items():
        held = package.manifest["context"]
        if held < families.CONTEXT:
            raise TileirError(
                f"{name}.tileir holds a context of {held}",
                hint=f"the gate needs {families.CONTEXT}: python -m benchmarks.decode --make FOLDER",
            )
    return packages


def peer_row(text: str) -> tuple[str | None, int]:
    """A row of --peer-contexts: (model, or None for every one; context). Raises ValueError."""
    model, _, context = text.rpartition(":")
    if model and model not in MODELS:
        raise ValueError(model)
    return model or None, int(context)


def main() -> int:
    """Exit status 1 if a model fails the gate."""
    parser = argparse.ArgumentParser()
    task = parser.add_mutually_exclusive_group(required=True)
    for name in ("make", "packages", "plot"):
        task.add_argument(f"--{name}", type=Path)
    parser.add_argument("--target", choices=GPUS, default="h100")
    parser.add_argument("--out", type=Path, help="the records; default: those of the GPU")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--contexts", nargs="+", type=int, default=list(CONTEXTS))
    parser.add_argument("--peer-contexts", nargs="*", type=peer_row, default=PEER_ROWS)
    parser.add_argument("--pinned-contexts", nargs="*", type=int, default=list(PINNED_CONTEXTS))
    parser.add_argument("--commit", default="")
    args = parser.parse_args()
    if args.make:
        make(args.make, args.models, args.target)
        return 0
    if args.plot:
        records = json.loads((args.out or results_path(args.target)).read_text())
        print(*map(row_text, records), sep="\n")
        plot(records, args.plot)
        return 0
    if not torch.cuda.is_available():
        parser.error("--packages needs a GPU that torch can use")
    torch.backends.cuda.matmul.allow_tf32 = False
    gpu = torch.cuda.get_device_name()
    args.out = args.out or results_path(gpu)
    date = datetime.date.today().isoformat()
    facts = {"gpu": gpu, "devices": 1, "commit": args.commit, "date": date}
    packages = load_packages(args.packages, args.models)
    run = Run(args.out)
    passed = all([measure(name, p, args, facts, run) for name, p in packages.items()])
    compare(run, args.peer_contexts)
    return 0 if passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
