"""benchmarks.fuzz without a GPU: made-up devices, right and wrong, and what becomes of the run when a process fails."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tileir
from benchmarks import fuzz
from benchmarks.make_fuzz import make_case
from test.decoders import Facts, decoder
from test.gpu.gate import distance
from test.models import export_own
from test.random_weights import random_weights
from tileir.package import load_package
from tileir.reference.arithmetic import partial_softmax, scores_of

FACTS = Facts(
    wirings=("both", "skip"), hidden=34, inner=18, kv=1, shared=2, head=16, vocabulary=40, context=12,
    norm="layer", activation="gelu", gated=True, parts="slices", attention="capped", bias=True, mlp_bias=False,
    head_bias=True, final=True, tied=True, half_turned=True, seed=3,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model, as --make writes it."""
    found = tmp_path_factory.mktemp("fuzz")
    case = make_case(found, "fuzz-000", FACTS, "h200")
    (found / "cases.json").write_text(json.dumps({"fuzz-000": case}))
    return found


@pytest.fixture(scope="module")
def case(folder: Path) -> fuzz.Case:
    return fuzz.read_case(folder, "fuzz-000")


class Made:
    """A device whose logits at a position are those of `table` for the tokens so far."""

    device = "made up"

    def __init__(self, case: fuzz.Case, table: np.ndarray) -> None:
        self.launch = {"alone_bytes": 1024, "split_bytes": 512}
        rows = zip(_prefixes(case.prompts), table, strict=True)
        self.table: dict[tuple[int, ...], np.ndarray] = dict(rows)
        self.other = np.zeros_like(table[0])

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        return np.stack([self.table.get(p, self.other) for p in _prefixes([ids])])

    def generate(self, ids: Sequence[int], new: int) -> Iterator[int]:
        known = list(ids)
        for _ in range(new):
            known.append(int(self.logits(known)[-1].argmax()))
            yield known[-1]


def _prefixes(prompts: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    return [tuple(ids[: i + 1]) for ids in prompts for i in range(len(ids))]


def test_what_is_close_passes(case: fuzz.Case) -> None:
    noise = np.random.default_rng(0).standard_normal(case.exact.shape).astype(np.float32)
    report = fuzz.judge(Made(case, case.exact + noise * 1e-4), case)
    assert report["failures"] == []
    assert report["passed"]
    assert report["positions"] == len(case.exact) >= 256


def test_what_is_written_is_the_model(folder: Path, case: fuzz.Case) -> None:
    """Its package has a kernel; with the weights drawn again it has, at first, the logits that are written."""
    package = load_package(folder / "fuzz-000.tileir")
    assert "tileir_decode" in package.ptx
    found = package.load(case.weights, "reference").logits(case.prompts[0][:4])
    exact = case.exact[: FACTS.context]
    assert np.abs(found - exact[:4]).max() < 1e-4 * np.abs(exact).max()
    assert 0 < np.abs(case.close - exact).max() < 0.05 * np.abs(exact).max()
    peer = distance(case.peer, case.exact)
    assert 0 < peer.kl < 0.05


DEFECTS: dict[str, tuple[Any, str]] = {
    "a step late": (lambda e: np.roll(e, 1, 0), "kl"),
    "rows swapped": (lambda e: e[:, [*range(8, 16), *range(8), *range(16, e.shape[1])]], "kl"),
    "rows lost": (lambda e: np.where(np.arange(e.shape[1]) < 16, 0, e), "kl"),
    "one logit off": (lambda e: e + 3 * (np.arange(e.shape[1]) == 7), "p999"),
    "the wrong token": (lambda e: _with_best(e, 20, 30), "top-1 differs"),
    "not a number": (lambda e: np.where(np.arange(len(e))[:, None] == 9, np.nan, e), "NaN"),
}


def _with_best(exact: np.ndarray, first: int, last: int) -> np.ndarray:
    """The least likely token of a few positions is the best."""
    found = exact.copy()
    for row in found[first:last]:
        row[row.argmin()] = row.max() + 0.01
    return found


@pytest.mark.parametrize("name", DEFECTS)
def test_what_is_off_fails(case: fuzz.Case, name: str) -> None:
    defect, says = DEFECTS[name]
    report = fuzz.judge(Made(case, defect(case.exact)), case)
    assert not report["passed"]
    assert says in " ".join(report["failures"])


def test_noise_beyond_that_of_bf16_fails(case: fuzz.Case) -> None:
    noise = np.random.default_rng(0).standard_normal(case.exact.shape).astype(np.float32)
    report = fuzz.judge(Made(case, case.exact + noise * distance(case.peer, case.exact).p999), case)
    assert [f.split()[0] for f in report["failures"][:2]] == ["kl", "p999"]


def test_one_bad_position_is_chance(case: fuzz.Case) -> None:
    """It has the largest errors, as one has of any rounding; those of four logits of all positions are no chance."""
    errors = 0.7 * (case.peer - case.exact)
    worst = np.square(errors).sum(1).argmax()
    one, wide = errors.copy(), errors.copy()
    one[worst] *= 4
    wide[:, :4] *= 3
    report = fuzz.judge(Made(case, case.exact + one), case)
    assert report["p999"][0] > 1.1 * report["p999"][1]
    assert report["failures"] == []
    assert 0.01 < report["p999_kept"] < 0.9
    one[worst] *= 4
    report = fuzz.judge(Made(case, case.exact + one), case)
    one[worst] *= 1.5
    assert report["p999_kept"] > 0.01
    report = fuzz.judge(Made(case, case.exact + wide), case)
    assert [f.split()[0] for f in report["failures"]] == ["p999", "all"]
    assert report["p999_kept"] == 0


def test_low_precision_is_no_chance(case: fuzz.Case, monkeypatch: Any) -> None:
    """The kernel's rounding passes, keys in another order; it does not with twice its errors, nor if a head has fp8."""
    eight = False

    def part(q: Any, k: Any, v: Any, op: Any) -> Any:
        out = partial_softmax(q, k[::-1], v[::-1], op)
        if eight and len(k):
            weights = torch.from_numpy(np.exp(scores_of(q, k, op)[0] - out[0, -2]))
            rounded = weights.to(torch.float8_e4m3fn).float().numpy()
            out[0, :-2], out[0, -1] = rounded @ v, rounded.sum()
        return out

    monkeypatch.setattr("tileir.reference.attention.partial_softmax", part)
    package = tileir.compile(export_own(decoder(FACTS)), target="virtual")
    session = package.load(case.weights, "reference-bf16")
    prompts = case.prompts[:4]
    some = slice(len(prompts) * FACTS.context)
    few = replace(case, prompts=prompts, exact=case.exact[some], peer=case.peer[some])
    found = np.concatenate([session.logits(ids) for ids in prompts])
    assert fuzz.judge(Made(few, found), few)["failures"] == []
    twice = fuzz.judge(Made(few, 2 * found - few.exact), few)
    assert [f.split()[0] for f in twice["failures"][:2]] == ["kl", "p999"]
    eight = True
    found = np.concatenate([session.logits(ids) for ids in prompts])
    assert not fuzz.judge(Made(few, found), few)["passed"]


def test_a_device_that_wavers_fails(case: fuzz.Case) -> None:
    """Other bits the second time; other logits when splits differ; other tokens than the largest logits."""

    class Drifts(Made):
        def logits(self, ids: Sequence[int]) -> np.ndarray:
            self.other = self.other + np.float32(1e-6)
            return super().logits(ids) + self.other

    class Splits(Made):
        def logits(self, ids: Sequence[int]) -> np.ndarray:
            return super().logits(ids)[:, :: 1 if self.launch["alone_bytes"] else -1]

    class Mutters(Made):
        def generate(self, ids: Sequence[int], new: int) -> Iterator[int]:
            yield from [5] * new

    for kind, says in ((Drifts, "other bits"), (Splits, "all splits: kl"), (Mutters, "logits say")):
        assert says in " ".join(fuzz.judge(kind(case, case.exact), case)["failures"])


def test_weights_of_another_draw_are_refused(folder: Path, monkeypatch: Any) -> None:
    def drawn(shapes: Any, seed: int) -> Any:
        return random_weights(shapes, seed + 1)

    monkeypatch.setattr(fuzz, "random_weights", drawn)
    with pytest.raises(AssertionError, match="drawn otherwise"):
        fuzz.read_case(folder, "fuzz-000")


PROCESS = """
import json, os, sys, time
for name in sys.argv[1:]:
    if name == "dies":
        print("out of luck", file=sys.stderr, flush=True)
        os.abort()
    found = {"passed": False, "failures": ["hangs"]} if name == "hangs" else {"device": "cuda:0 X", "passed": True}
    print(json.dumps({"model": name} | found), flush=True)
    if name == "hangs":
        break
"""


def test_models_behind_one_that_fails_go_on() -> None:
    """One is reported by its process, which ends; in one the process dies."""
    left, records = ["a", "hangs", "b", "dies", "c"], []
    while left:
        command = [sys.executable, "-c", PROCESS, *left]
        records += list(fuzz._of_one_process(command, dict(os.environ), left))
    assert [r["model"] for r in records] == ["a", "hangs", "b", "dies", "c"]
    assert [r["passed"] for r in records] == [True, False, True, False, True]
    assert "out of luck" in records[3]["failures"][0]


def test_without_a_gpu_every_model_fails_by_name(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "fuzz.json"
    assert not fuzz.run(folder, out, "abc", [])
    found = json.loads(out.read_text())
    (record,) = found["records"]
    assert record["model"] == "fuzz-000"
    assert record["facts"]["wirings"] == ["both", "skip"]
    assert "cuda:0" in record["failures"][0]
    assert (found["commit"], found["totals"]["models"], found["totals"]["models_passed"]) == (
        "abc",
        1,
        0,
    )


def test_misses_count_over_all_models() -> None:
    record = {"passed": True, "positions": 256, "misses": [5, 2]}
    assert fuzz.summary([record])["passed"]
    many = fuzz.summary([record] * 100)
    assert (many["misses"], many["positions"], many["passed"]) == ([500, 200], 25600, False)
    assert not fuzz.summary([])["passed"]
    assert not fuzz.summary([record, record | {"passed": False}])["passed"]
