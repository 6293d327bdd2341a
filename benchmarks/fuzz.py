"""Random decoders on a GPU, each through the numerics gate.

    python -m benchmarks.fuzz --make FOLDER --models 120 [--target h200]   # where there is MLIR
    python -m benchmarks.fuzz FOLDER --out FILE.json --commit HASH         # on the GPU; needs neither MLIR nor torch

FOLDER holds a package and a NAME.npz for each model, and cases.json. Weights are drawn on both sides. The driver first
assembles all kernels, in several processes that launch nothing; then one process runs model after model. If it fails,
or takes longer than SECONDS for a model, that model has failed and a new process goes on behind it. FILE is written
after each.

The gate's rules are for thousands of positions and large vocabularies. Here two of them are tests against chance.
Misses are counted over all models. The 99.9th percentile of a model's errors belongs to the logits of one or two
positions, which all move together: in a seventh of the pairs of equally exact roundings one's exceeds 1.1 times the
other's. So that rule is applied to resamples of the positions, and broken if hardly any of them keeps it (`share`), or
if one's is BEYOND times the other's.
"""

import argparse
import datetime
import faulthandler
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.device_check import all_splits
from test.gpu.gate import Distance, distance, verdict
from test.random_weights import random_weights
from tileir.package import load_package
from tileir.runtime.driver import Device
from tileir.runtime.session import CudaSession
from tileir.tools.bounds import Bounds
from tileir.tools.check import compare
from tileir.tools.measure import Measured

SECONDS, PROCESSES, NEW = 30, 12, 6
# Of the rule for the largest errors: the percentile, how far beyond the peer's, resamples, how many must keep it.
TAIL, WITHIN, RESAMPLES, KEEPING = 0.999, 1.1, 400, 0.01
# Beyond this they are no chance even in one position: of 312 pairs of equal roundings one was 2.0 times the other.
BEYOND = 3
# What bf16 does to a random decoder is known from its own run in bf16 only: of `tileir check` what is not absolute.
RELATIVE = Bounds(logit=float("inf"), kl=float("inf"))


@dataclass(frozen=True)
class Case:
    """A model. facts: as it was drawn; prompts: [prompts, length]; exact: the module's fp32 logits of all of them.

    peer: of the module itself in bf16, alike; close: the first prompt's logits by the reference device with the
    kernel's rounding.
    """

    facts: dict[str, Any]
    weights: dict[str, np.ndarray]
    prompts: list[list[int]]
    exact: np.ndarray
    peer: np.ndarray
    close: np.ndarray


def read_case(folder: Path, name: str) -> Case:
    """What `--make` has written. Raises AssertionError if weights are drawn otherwise here."""
    case = json.loads((folder / "cases.json").read_text())[name]
    weights = random_weights(case["shapes"], case["facts"]["seed"])
    assert digest(weights) == case["digest"], "weights are drawn otherwise on this machine"
    weights |= {alias: weights[n] for alias, n in case["aliases"].items()}
    with np.load(folder / f"{name}.npz") as held:
        prompts, logits = held["prompts"].tolist(), [held[n] for n in ("exact", "peer", "close")]
    return Case(case["facts"], weights, prompts, *logits)


def digest(weights: dict[str, np.ndarray]) -> str:
    """Of all values, in order."""
    found = hashlib.sha256()
    for array in weights.values():
        found.update(array.tobytes())
    return found.hexdigest()


def judge(session: Any, case: Case) -> dict[str, Any]:
    """A model's record: the gate with splits as they are launched and with all of them, bits, tokens.

    session: a CudaSession, or what does as it does. failures: what is wrong; the model has passed if there is none.
    """
    found = _logits(session, case.prompts)
    failures = [*_beyond(found, case, session.device)]
    if not np.array_equal(found, _logits(session, case.prompts)):
        failures.append("a second run gives other bits")
    with all_splits(session):
        parted = _logits(session, case.prompts)
    failures += [f"all splits: {f}" for f in _beyond(parted, case, session.device)]
    failures += _bad_tokens(session, case.prompts[0])
    ours, peer = distance(found, case.exact), distance(case.peer, case.exact)
    near = found[: len(case.close)]
    return {
        "passed": not failures,
        "failures": failures,
        "kl": [ours.kl, peer.kl],
        "p999": [ours.p999, peer.p999],
        "p999_kept": share(found, case.peer, case.exact),
        "misses": [ours.misses, peer.misses],
        "positions": ours.positions,
        "error_beside_reference": float(np.abs(near - case.close).max() / np.abs(case.close).max()),
    }


def _logits(session: Any, prompts: Sequence[list[int]]) -> np.ndarray:
    return np.concatenate([session.logits(prompt) for prompt in prompts])


def _beyond(found: np.ndarray, case: Case, device: str) -> Iterator[str]:
    """What the gate says. One model has too few misses to count them: each must be explained by rounding."""
    ours, peer = distance(found, case.exact), distance(case.peer, case.exact)
    if not ours.kl <= peer.kl:
        yield f"kl {ours.kl:.3g}, of the module in bf16 {peer.kl:.3g}"
    kept = share(found, case.peer, case.exact)
    if kept <= KEEPING or ours.p999 > BEYOND * peer.p999:
        beside = f"p999 {ours.p999:.3g}, of the module in bf16 {peer.p999:.3g}"
        yield f"{beside}; {kept:.1%} of the resamples keep to {WITHIN} times that"
    exact, checked = Measured(case.exact, {}, {}), Measured(found, {}, {})
    yield from compare(exact, checked, RELATIVE, device).failures


def share(found: np.ndarray, peer: np.ndarray, exact: np.ndarray) -> float:
    """Of resamples of the positions, those in which the largest errors are within the peer's.

    found, peer, exact: [positions, vocabulary] f32. Both sides have the same positions in a resample: one where any
    rounding errs much counts for both. A side that really errs more does so in nearly all resamples: of 312 pairs of
    random bf16 grids, in 26 decoders, 0.6 % have a share of at most KEEPING, and 96 % if one's errors are doubled.
    """
    n = len(exact)
    drawn = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), RESAMPLES)
    ours, theirs = (_largest(np.abs(logits - exact), drawn) for logits in (found, peer))
    return float(np.mean(ours <= WITHIN * theirs))


def _largest(errors: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """The percentile of each resample; errors: [positions, vocabulary], drawn: [resamples, positions] times."""
    rank = 1 + int(errors.size * (1 - TAIL))
    # So many that no resample lacks its own among them.
    order = np.argsort(errors, axis=None)[::-1][: errors.size // 16]
    behind = np.cumsum(drawn[:, order // errors.shape[1]], 1, dtype=np.int32)
    return errors.ravel()[order][(behind >= rank).argmax(1)]


def _bad_tokens(session: Any, prompt: list[int]) -> Iterator[str]:
    """Generated tokens are the largest of the logits that the same tokens have when they are forced; twice the same."""
    half = prompt[: len(prompt) // 2]
    new = min(NEW, len(prompt) - len(half))
    tokens = list(session.generate(half, new))
    if tokens != list(session.generate(half, new)):
        yield "a second generation gives other tokens"
    best = session.logits([*half, *tokens])[len(half) - 1 : -1].argmax(1).tolist()
    if tokens != best:
        yield f"tokens {tokens} are generated, logits say {best}"


# ---- processes on the GPU's machine


def run_cases(folder: Path, names: Sequence[str]) -> None:
    """Run models in this process, a line of JSON each, up to one that raises: the GPU may then be in any state."""
    for name in names:
        begin = time.perf_counter()
        # Whatever this thread is doing then, it ends the process.
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        try:
            case = read_case(folder, name)
            with closing(CudaSession(load_package(folder / f"{name}.tileir"), case.weights)) as s:
                found = {"device": s.device} | judge(s, case)
        except Exception as error:
            found = _failed(f"{type(error).__name__}: {error}")
        faulthandler.cancel_dump_traceback_later()
        seconds = {"seconds": round(time.perf_counter() - begin, 3)}
        print(json.dumps({"model": name} | found | seconds), flush=True)
        if "device" not in found:
            break


def assemble(folder: Path, names: Sequence[str]) -> None:
    """Let the driver assemble kernels, for its cache."""
    faulthandler.dump_traceback_later(SECONDS + len(names) * SECONDS // 10, exit=True)
    device = Device(0)
    for name in names:
        device.module(load_package(folder / f"{name}.tileir").ptx)
    device.close()


def results(folder: Path, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Every model's record, in order, whatever becomes of the processes."""
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, "-m", "benchmarks.fuzz", str(folder)]
        environment = os.environ | {"CUDA_CACHE_PATH": cache, "CUDA_CACHE_MAXSIZE": str(1 << 30)}
        parts = [part for i in range(PROCESSES) if (part := names[i::PROCESSES])]
        warming = [subprocess.Popen([*command, "--assemble", *p], env=environment) for p in parts]
        for process in warming:
            process.wait()
        left = list(names)
        while left:
            yield from _of_one_process([*command, "--run", *left], environment, left)


def _of_one_process(
    command: list[str], environment: dict[str, str], left: list[str]
) -> Iterator[dict[str, Any]]:
    """Records of a process, and of the model in which it ended without one; their names leave `left`."""
    with tempfile.TemporaryFile("w+") as errors:
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": errors}
        raised = False
        with subprocess.Popen(command, env=environment, text=True, **pipes) as process:
            assert process.stdout is not None
            for line in process.stdout:
                record = json.loads(line)
                assert record["model"] == left.pop(0)
                raised = "device" not in record
                yield record
        if left and not raised:
            errors.seek(0)
            said = f"its process ended with status {process.returncode}: {errors.read()[-2000:]}"
            yield {"model": left.pop(0)} | _failed(said)


def _failed(why: str) -> dict[str, Any]:
    return {"passed": False, "failures": [why]}


# ---- the record


def summary(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Totals of all models; the gate's rule for misses, which needs many positions, is applied to them together."""
    measured = [r for r in records if "positions" in r]
    positions = sum(r["positions"] for r in measured)
    ours, peer = (
        Distance(0.0, 0.0, sum(r["misses"][i] for r in measured), positions) for i in range(2)
    )
    few = verdict(ours, peer)["by"]["misses"]
    return {
        "models": len(records),
        "models_passed": sum(r["passed"] for r in records),
        "positions": positions,
        "misses": [ours.misses, peer.misses],
        "passed": bool(records) and all(r["passed"] for r in records) and few,
    }


def write(path: Path, records: list[dict[str, Any]], facts: dict[str, Any]) -> dict[str, Any]:
    """A line for each model; returns the totals."""
    totals = summary(records)
    head = json.dumps(facts | {"totals": totals}, indent=1).removesuffix("\n}")
    lines = ",\n  ".join(json.dumps(r) for r in records)
    path.write_text(f'{head},\n "records": [\n  {lines}\n ]\n}}\n')
    return totals


def run(folder: Path, out: Path, commit: str, only: list[str]) -> bool:
    """All models; whether all of them pass."""
    cases = json.loads((folder / "cases.json").read_text())
    begin, records, totals = time.perf_counter(), [], summary([])
    facts = {"gpu": "", "date": datetime.date.today().isoformat(), "commit": commit}
    for record in results(folder, only or list(cases)):
        facts["gpu"] = record.pop("device", "").partition(" ")[2] or facts["gpu"]
        records.append(record | {"facts": cases[record["model"]]["facts"]})
        totals = write(out, records, facts | {"seconds": round(time.perf_counter() - begin, 1)})
        if not record["passed"]:
            print("FAIL", json.dumps(records[-1], indent=1), flush=True)
    print(json.dumps(totals), f"{time.perf_counter() - begin:.0f} s", flush=True)
    return bool(totals["passed"])


def main() -> int:
    """Exit status 1 if a model fails, or there is none."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--make", type=Path)
    parser.add_argument("--models", type=int, default=120)
    parser.add_argument("--target", default="h200")
    parser.add_argument("--out", type=Path, default=Path("fuzz.json"))
    parser.add_argument("--commit", default="")
    parser.add_argument("--cases", nargs="*", default=[], help="only these")
    parser.add_argument("--assemble", nargs="+", help="of a process for the driver's cache")
    parser.add_argument("--run", nargs="+", help="of a process that runs these; records to stdout")
    args = parser.parse_args()
    if args.make:
        from benchmarks.make_fuzz import make

        return 0 if make(args.make, args.models, args.target) else 1
    if args.folder is None:
        parser.error("name the folder that --make has written")
    if args.assemble:
        assemble(args.folder, args.assemble)
    elif args.run:
        run_cases(args.folder, args.run)
    elif not run(args.folder, args.out, args.commit, args.cases):
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
