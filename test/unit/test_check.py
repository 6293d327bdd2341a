"""The numerics gate: what passes, what does not, and the stage that is named."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tileir
from test.families import family
from test.imports import loaded_by
from test.mistakes import Mistake, each_mistake, package, tensors, write_model
from test.models import arrays, tiny_moe, tiny_v32
from test.unit.test_cli import command
from tileir.errors import TileirError
from tileir.frontends.torch_export import export_decode
from tileir.package import Package
from tileir.tools.bounds import Bounds
from tileir.tools.check import check_package, compare
from tileir.tools.check_report import Report
from tileir.tools.exact import Exact, exact_of, ids_of, load_exact
from tileir.tools.measure import measure, stops

IDS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]


@cache
def exact() -> Exact:
    return exact_of(package(), tensors(), IDS)


def checked(held: Package, weights: dict[str, np.ndarray], **bounds: Any) -> Report:
    """A device that runs this package, against what the right one computes."""
    session = held.load(weights, "reference-bf16")
    found = measure(session, IDS, exact().found.parts)
    return compare(exact().found, found, Bounds(**bounds), session.device)


def with_weight(name: str, change: Callable[[np.ndarray], np.ndarray]) -> dict[str, np.ndarray]:
    return tensors() | {name: change(tensors()[name])}


def test_a_correct_package_passes() -> None:
    report = check_package(package(), tensors(), "reference-bf16", exact(), Bounds())
    assert report.passed, report.failures
    assert report.positions == [0, 2, 5, 11]
    # Every row of the table but the select, which publishes nothing, the combines, which have no work so early, and
    # the head's, whose values are the logits.
    m = package().manifest
    silent = [b for b in m["row_bodies"] if b.startswith(("select", "combine"))]
    assert len(report.stages) == len(m["row_bodies"]) - len(silent) - 1
    assert report.logits is not None
    # Rounding is there, and small.
    assert 1e-4 < report.logits.mean < 1e-2
    assert report.rise is not None
    assert 1 < report.rise.times < 2.5


@pytest.mark.parametrize("name", ["gemma2", "phi3 partial", "qwen3", "stablelm parallel"])
def test_families_pass(name: str) -> None:
    model = family(name)
    held = tileir.compile(export_decode(model, 24), target="virtual")
    found = exact_of(held, arrays(model), IDS)
    report = check_package(held, arrays(model), "reference-bf16", found, Bounds())
    assert report.passed, report.failures


def test_gpus_and_steps_of_several_tokens_pass() -> None:
    from test.mistakes import program

    held = tileir.compile(program(), target="virtual", devices=2, tokens=4)
    found = exact_of(held, tensors(), IDS)
    assert {stage.gpu for _, stage in found.found.parts} == {0, 1}
    report = check_package(held, tensors(), "reference-bf16", found, Bounds())
    assert report.passed, report.failures


LAYER = "model.layers.1."
DEFECTS = [
    ("post_attention_layernorm.weight", lambda a: np.ones_like(a) * 2, "contract_2 gated_1"),
    ("self_attn.v_proj.weight", lambda a: np.roll(a, 16, 0), "contract_0 qkv_1"),
    ("mlp.down_proj.weight", lambda a: np.roll(a, 1, 1), "contract_3 residual_3"),
    ("self_attn.o_proj.weight", lambda a: a * (np.arange(64) != 5)[:, None] * 1, "contract_1 residual_2"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change", "stage"), DEFECTS, ids=[d[0] for d in DEFECTS])
def test_the_first_stage_that_is_wrong_is_named(
    name: str, change: Callable[[np.ndarray], np.ndarray], stage: str
) -> None:
    report = checked(package(), with_weight(LAYER + name, change))
    beyond = next(f for f in report.failures if "is the first stage beyond its bound" in f)
    assert beyond.startswith(f"{stage} (row "), report.failures
    # The mean hardly feels one row of 64.
    steep = name != "self_attn.o_proj.weight"
    assert report.failures[0].startswith("errors rise ") is steep
    assert f" times at {stage} (row " in report.failures[0] or not steep


@pytest.mark.parametrize(
    ("right", "wrong", "stage"),
    [
        ("scale = 2.500000e-01", "scale = 2.750000e-01", "attend_0 attention_0"),
        ("eps = 9.9999999999999995E-7", "eps = 1.000000e-02", "contract_0 qkv_0"),
    ],
)
def test_a_wrong_fact_of_the_engine_module_is_found(right: str, wrong: str, stage: str) -> None:
    """Errors that are within bounds, or get beyond them only later, rise where they begin."""
    text = package().engine_text
    assert right in text
    damaged = text.replace(right, wrong).encode()
    files = package().files | {"engine.mlir": damaged}
    report = checked(replace(package(), files=files), tensors())
    assert report.failures[0].startswith("errors rise ")
    assert f" times at {stage} (row " in report.failures[0]


def test_no_number_is_told_with_its_first_stage() -> None:
    def burst(array: np.ndarray) -> np.ndarray:
        return np.full_like(array, 3e38)

    wrong = with_weight(LAYER + "mlp.gate_proj.weight", burst)
    report = checked(package(), wrong)
    said = next(f for f in report.failures if "NaN" in f)
    assert said.startswith("reference-bf16: contract_2 gated_1 (row ")
    assert "at position 0" in said
    found = json.dumps(report.json(), allow_nan=False)
    assert json.loads(found)["passed"] is False
    assert report.table().endswith("failed")
    twice = exact_of(package(), wrong, IDS[:2])
    both = check_package(package(), wrong, "reference-bf16", twice, Bounds())
    assert both.failures[0].startswith("the exact side: contract_2 gated_1 (row ")


def passing(model: Any) -> tuple[Package, Exact, Report]:
    """The model's package, its fp32 side at 24 positions, and a check, which passes."""
    held = tileir.compile(export_decode(model, 24), target="virtual")
    ids = np.random.default_rng(0).integers(0, 128, 24).tolist()
    found = exact_of(held, arrays(model), ids)
    report = check_package(held, arrays(model), "reference-bf16", found, Bounds())
    assert report.passed, report.failures
    return held, found, report


def test_behind_a_choice_that_differs_nothing_is_judged() -> None:
    model = tiny_moe()
    held, found, report = passing(model)
    assert report.parting is not None
    assert report.logits is not None
    assert report.parting[0] == report.logits.positions < 24
    assert "behind it nothing is judged" in report.table()
    router = "model.layers.0.mlp.gate.weight"
    assert router in arrays(model)
    wrong = arrays(model) | {router: -arrays(model)[router]}
    refused = check_package(held, wrong, "reference-bf16", found, Bounds())
    assert any("of what selects choose differs" in f for f in refused.failures)


def test_scores_count_by_what_is_chosen() -> None:
    *_, report = passing(tiny_v32())
    scores = [e for e in report.stages if e.stage.kind == "scores"]
    assert scores
    assert max(e.mean for e in scores) > 0.01


def test_top_1_counts_where_rounding_does_not_explain_it() -> None:
    logits = exact().found.logits
    parts: dict[Any, Any] = {}
    side = replace(exact().found, parts=parts)
    noise = np.random.default_rng(0).normal(size=logits.shape).astype(np.float32)
    near, far = logits + 1e-4 * noise, logits + 1e-4 * noise
    second = np.argsort(logits[3])[-2]
    far[3, second] += 1.1 * (logits[3].max() - logits[3, second])
    loose = Bounds(logit=10, kl=10)
    assert compare(side, replace(side, logits=near), loose, "x").passed
    report = compare(side, replace(side, logits=far), loose, "x")
    assert report.failures == ["top-1 differs at 1 positions not by rounding, bound 0"]


def test_a_token_that_is_not_the_best_is_found() -> None:
    """The logits are right and what SMs offer is not."""
    found = measure(package().load(tensors(), "reference"), IDS, {})
    parts = {
        key: replace(part, values=part.values * 0) if key[1].kind == "candidates" else part
        for key, part in found.parts.items()
    }
    report = compare(exact().found, replace(found, parts=parts), Bounds(), "x")
    (failure,) = report.failures
    assert failure.startswith("token 0 is chosen at position 0")


def test_positions_of_stages() -> None:
    assert stops(1) == [0]
    assert stops(2) == [0, 1]
    assert stops(24) == [0, 2, 5, 11, 23]


def test_exact_values_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "exact.npz"
    exact().save(path)
    found = load_exact(path, package(), tensors())
    assert (found.ids, found.package, found.weights) == (IDS, exact().package, exact().weights)
    assert np.array_equal(found.found.logits, exact().found.logits)
    assert list(found.found.parts) == list(exact().found.parts)
    ours = check_package(package(), tensors(), "reference-bf16", exact(), Bounds())
    assert check_package(package(), tensors(), "reference-bf16", found, Bounds()) == ours
    whole = path.read_bytes()
    for damaged in (whole[:1000], whole[:-1000], b"", whole[:200] + b"x" * 50 + whole[250:]):
        path.write_bytes(damaged)
        with pytest.raises(TileirError, match="holds no exact values"):
            load_exact(path, package(), tensors())
    path.write_bytes(whole)
    with pytest.raises(TileirError, match="exact values of other weights"):
        load_exact(path, package(), with_weight("model.norm.weight", lambda a: a * 1.01))


def test_ids_of_a_text(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    (tmp_path / "text").write_text("né, and more", encoding="utf-8")
    assert ids_of(package(), "né", folder, None) == ids_of(
        package(), str(tmp_path / "text"), folder, 3
    )
    assert len(ids_of(package(), None, folder, None)) == 24
    with pytest.raises(TileirError, match="2 tokens, not 5"):
        ids_of(package(), "ab", folder, 5)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(package().save(tmp_path / "m.tileir"))
    model, file = str(write_model(tmp_path / "model")), str(tmp_path / "exact.npz")
    call = ["check", path, "--weights", model]
    assert command(*call, "--positions", "4", "--save-exact", file) == 0
    assert capsys.readouterr().out == f"wrote {file}\n"
    assert command(*call, "--exact", file, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["passed"], found["logits"]["positions"]) == (True, 4)
    assert command(*call, "--exact", file, "--all", "--max-kl", "1e-9") == 1
    out, err = capsys.readouterr()
    assert "contract_2 gated_1 (row " in out
    assert out.endswith("failed\n")
    assert "error: KL " in err
    assert "bound 1e-09" in err


def test_neither_mlir_nor_typer_is_needed_with_a_file() -> None:
    loaded = loaded_by("tileir.tools.check")
    assert not loaded.intersection(("tileir.mlir", "tileir.compiler", "typer", "torch", "rich"))


CHECK = ["tileir", "check", "m.tileir", "--weights", "model"]


def of_another(folder: Path) -> list[str]:
    exact().save(folder / "exact.npz")
    facts = package().manifest
    other = facts | {"hashes": facts["hashes"] | {"engine.mlir": "0"}}
    with pytest.raises(TileirError, match="another package"):
        load_exact(folder / "exact.npz", replace(package(), manifest=other), tensors())
    np.savez(folder / "exact.npz", logits=np.zeros(3))
    return [*CHECK, "--exact", "exact.npz"]


test_mistakes = each_mistake(
    [
        Mistake("unknown device", lambda _: [*CHECK, "--device", "tpu"], ("'tpu'", "reference-bf16, cuda:N")),
        Mistake("no kernel", lambda _: [*CHECK, "--device", "cuda:0"], ("holds no kernel", "h100")),
        Mistake("too many positions", lambda _: [*CHECK, "--positions", "33"], ("33 tokens", "context of 32")),
        Mistake("too long a text", lambda _: [*CHECK, "--text", "a" * 300], ("300 tokens", "context of 32")),
        Mistake("no weights", lambda _: [*CHECK[:-1], "nowhere"], ("no weights at nowhere", "model.safetensors")),
        Mistake("no exact file", lambda _: [*CHECK, "--exact", "no.npz"], ("no.npz", "--save-exact")),
        Mistake("no exact values", of_another, ("exact.npz holds no exact values", "--save-exact")),
        Mistake("exact and ids", lambda _: [*CHECK, "--exact", "x", "--positions", "3"], ("ids of its own",), status=2),
    ]
)  # fmt: skip
