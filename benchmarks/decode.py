"""One token a step at batch 1: ours, the streaming-read ceiling and torch.compile, in one run on one GPU.

    python -m benchmarks.decode --make FOLDER [--target h200]     # where there is MLIR
    python -m benchmarks.decode --packages FOLDER --commit HASH   # on the GPU
    python -m benchmarks.decode --plot FILE.png                   # ms against context, from the records

Correctness comes first: a model that fails the numerics gate is not timed. Records go into one list a GPU, where a new
one replaces that of the same model, dtype and context.
"""

import argparse
import datetime
import gc
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import families, llama
from benchmarks.stream_read import ceiling_tbps
from test.gpu.gate import distance, verdict
from tileir.package import load_package
from tileir.runtime.session import CudaSession

MODELS = ("smollm2-135m", "llama-3.2-1b", "llama-3.1-8b", "qwen3-0.6b", "qwen3-4b")
PACKAGE_CONTEXTS = {"smollm2-135m": 16384, "llama-3.2-1b": 131072, "llama-3.1-8b": 131072}
CONTEXTS = (1, 32, 128, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
PEER_CONTEXTS = (32, 1024, 8192, 32768)
PINNED, PINNED_STEPS = 1024, 10_000
RESULTS = Path("benchmarks/results")


def config_of(name: str) -> Any:
    """The transformers config of a model."""
    return llama.config_of(name) if name in llama.SHAPES else families.config_of(name)


def random_model(name: str) -> Any:
    """The model in bf16 on the GPU."""
    if name in llama.SHAPES:
        return llama.random_model(name, torch.bfloat16)
    return families.random_model(name)


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


def records_of(
    name: str, args: argparse.Namespace, facts: dict[str, Any]
) -> list[dict[str, Any]] | None:
    """A record for every context; None if the gate fails."""
    model = random_model(name)
    session = CudaSession(load_package(args.packages / f"{name}.tileir"), llama.TorchWeights(model))
    # What no step has written yet is timed too: it must be numbers.
    session._device.fill(session._states, session.manifest["memory"]["states"])
    found = gate(session, model)
    print(name, json.dumps(found), flush=True)
    if not found["passed"]:
        session.close()
        return None
    del model
    clean()
    # Clocks and memory differ from run to run: the ceiling is this model's.
    ceiling, records = ceiling_tbps(), []
    clean()
    for context in (c for c in args.contexts if c <= session.manifest["context"]):
        ms, p999 = our_ms(session, context), None
        if context == PINNED:
            times = session.step_times(PINNED_STEPS, context - 1)
            p999 = float(np.quantile(times, 0.999))
            print(
                f"{name} pinned: median {np.median(times):.4f} ms, 99.9 % {p999:.4f} ms", flush=True
            )
        size = step_bytes(config_of(name), context)
        measured = {"ms": ms, "p999_ms": p999, "ceiling_tbps": ceiling, "bytes": size}
        measured["share"] = size / (ms * 1e-3) / (ceiling * 1e12)
        measured |= {"torch_compile_ms": None, "max_logit_error": found["max_logit_error"]}
        records.append({"model": name, "dtype": "bf16", "context": context} | measured | facts)
    session.close()
    for record in records:
        if record["context"] in args.peer_contexts:
            clean()
            record["torch_compile_ms"] = llama.compiled_ms(random_model(name), record["context"])
            torch._dynamo.reset()
        print(row_text(record), flush=True)
    clean()
    return records


def row_text(record: dict[str, Any]) -> str:
    """A line of the table."""
    peer = record["torch_compile_ms"]
    beside = f", torch.compile {peer:.4f} ms ({peer / record['ms']:.2f} ×)" if peer else ""
    return (
        f"{record['model']:13} {record['context']:7} {record['ms']:.4f} ms, {record['share']:.1%} of "
        f"{record['ceiling_tbps']:.3f} TB/s{beside}"
    )


def merge(path: Path, new: list[dict[str, Any]]) -> None:
    """Put records into the list, in place of those of the same rows."""

    def key(record: dict[str, Any]) -> tuple[str, str, str, int]:
        return record["gpu"], record["model"], record["dtype"], record["context"]

    old = json.loads(path.read_text()) if path.exists() else []
    held = {key(r): r for r in old} | {key(r): r for r in new}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([held[k] for k in sorted(held)], indent=1) + "\n")


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


def plot(records: list[dict[str, Any]], path: Path) -> None:
    """Milliseconds against context: ours, the bytes over the ceiling, torch.compile where it was run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    axes = figure.subplots()
    for number, name in enumerate(dict.fromkeys(r["model"] for r in records)):
        mine, colour = [r for r in records if r["model"] == name], f"C{number}"
        contexts = [r["context"] for r in mine]
        floors = [r["bytes"] / r["ceiling_tbps"] / 1e9 for r in mine]
        axes.plot(contexts, [r["ms"] for r in mine], "o-", color=colour, label=name, markersize=3)
        axes.plot(contexts, floors, "--", color=colour, linewidth=0.8)
        peers = [r for r in mine if r["torch_compile_ms"]]
        axes.plot(
            [r["context"] for r in peers], [r["torch_compile_ms"] for r in peers], "x", color=colour
        )
    axes.set(xscale="log", yscale="log", xlabel="context", ylabel="ms a token, batch 1")
    gpu = records[0]["gpu"]
    axes.set_title(
        f"{gpu}, bf16: tileir (lines), bytes / streaming read (dashes), torch.compile (×)"
    )
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(path, dpi=110)


def results_path(gpu: str) -> Path:
    """Where a GPU's records are."""
    return RESULTS / f"decode-{'h200' if 'H200' in gpu else 'h100'}.json"


def main() -> int:
    """Exit status 1 if a model fails the gate."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--make", type=Path)
    parser.add_argument("--target", default="h100")
    parser.add_argument("--packages", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--contexts", nargs="+", type=int, default=list(CONTEXTS))
    parser.add_argument("--peer-contexts", nargs="*", type=int, default=list(PEER_CONTEXTS))
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--commit", default="")
    args = parser.parse_args()
    if args.make:
        make(args.make, args.models, args.target)
        return 0
    if args.plot:
        path = args.out or results_path(args.target.upper())
        plot(json.loads(path.read_text()), args.plot)
        return 0
    torch.backends.cuda.matmul.allow_tf32 = False
    gpu = torch.cuda.get_device_name()
    date = datetime.date.today().isoformat()
    facts = {"gpu": gpu, "devices": 1, "commit": args.commit, "date": date}
    status = 0
    for name in args.models:
        records = records_of(name, args, facts)
        if records is None:
            status = 1
        else:
            merge(args.out or results_path(gpu), records)
    return status


if __name__ == "__main__":
    raise SystemExit(main())
