"""Targets in files: what is read, what is refused, and that every pass takes them by path."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

import tileir
from test.mistakes import package, program
from tileir.compiler import Options
from tileir.errors import TileirError
from tileir.package import load_package
from tileir.passes.pipeline import parse_pipeline
from tileir.target import TARGETS, Target, check_target, find_target, target_text
from tileir.tools.figures import figures
from tileir.tools.opt import main

MINE = replace(TARGETS["virtual"], name="mine", sms=3, stream_tbps=0.5)
FACTS = asdict(MINE)


def written(folder: Path, target: Target = MINE, name: str = "mine.json") -> Path:
    path = folder / name
    path.write_text(target_text(target))
    return path


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_built_in_could_stand_in_a_file(name: str, tmp_path: Path) -> None:
    check_target(asdict(TARGETS[name]), name)
    target = replace(TARGETS[name], name=f"my-{name}")
    assert find_target(written(tmp_path, target)) == target


@pytest.mark.parametrize(
    "name", ["mine.json", "it's mine.json", 'my "own".json', "a{b},c=(d).json"]
)
def test_pipelines_name_files(name: str, tmp_path: Path) -> None:
    path = written(tmp_path, name=name)
    items = parse_pipeline(Options(str(path)).pipeline)
    again = parse_pipeline(",".join(item.text() for item in items))
    assert again == items
    named = [item.target for item in items if hasattr(item, "target")]
    assert len(named) > 1
    assert set(named) == {str(path)}


def test_a_package_compiled_for_a_file(tmp_path: Path) -> None:
    path = written(tmp_path)
    made = tileir.compile(program(), target=path)
    assert (made.manifest["target"], made.manifest["sms"]) == ("mine", 3)
    path.unlink()
    # What is told of a package needs the file no longer.
    held = load_package(made.save(tmp_path / "m.tileir"))
    token = figures(held, 8)["token"]
    assert token["predicted_ms"] == pytest.approx(token["bytes"] / 0.5e9)
    assert figures(package(), 8)["token"]["stream_tbps"] == TARGETS["virtual"].stream_tbps


def test_opt_takes_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = Path(__file__).parent.parent / "passes/specialize-block.mlir"
    path = written(tmp_path, name="its own.json")
    texts = []
    for target in ("virtual", f'"{path}"'):
        pipeline = f"builtin.module(specialize-block{{target={target}}})"
        assert main([str(source), f"--pass-pipeline={pipeline}"]) == 0
        texts.append(capsys.readouterr().out)
    assert 'tileir.target = "virtual"' in texts[0]
    assert 'tileir.target = "mine"' in texts[1]


def without(name: str) -> dict[str, Any]:
    return {n: v for n, v in FACTS.items() if n != name}


BAD: dict[str, tuple[object, tuple[str, ...]]] = {
    "list": ([1], ("holds a list instead of an object", "JSON object")),
    "number": (3, ("holds a number", "JSON object")),
    "unknown field": (FACTS | {"sm": 3}, ("unknown field 'sm'", "did you mean 'sms'?", "hop_us")),
    "missing field": (without("hop_us"), ("missing: hop_us", "tileir tune --measure")),
    "text": (FACTS | {"sms": "132"}, ("'sms' is '132'", "a whole number, 1 … 1024")),
    "half": (FACTS | {"sms": 1.5}, ("'sms' is 1.5", "a whole number")),
    "truth": (FACTS | {"window": True}, ("'window' is True", "a whole number")),
    "null": (FACTS | {"hop_us": None}, ("'hop_us' is None", "a number above 0")),
    "negative": (FACTS | {"stream_tbps": -3.1}, ("'stream_tbps' is -3.1", "a number above 0")),
    "infinite": (FACTS | {"launch_us": float("inf")}, ("'launch_us' is inf", "a number above 0")),
    "not a number": (FACTS | {"mbarrier_us": float("nan")}, ("'mbarrier_us' is nan", "above 0")),
    "warps": (FACTS | {"consumer_warps": 6}, ("'consumer_warps' is 6", "4 … 28", "multiple of 4")),
    "registers": (FACTS | {"registers": 100}, ("'registers' is 100", "a multiple of 8")),
    "slots": (FACTS | {"slot_bytes": 3000}, ("'slot_bytes' is 3000", "a multiple of 1024")),
    "slot too large": (FACTS | {"smem_bytes": 4096}, ("does not fit 4096", "lower slot_bytes")),
    "chip": (FACTS | {"chip": "sm_80"}, ("'chip' is 'sm_80'", "'sm_90a'")),
    "ptx": (FACTS | {"chip": "sm_90a"}, ("'ptx' is 0", "80 or more")),
    "built-in name": (FACTS | {"name": "h100"}, ("'h100'", "built in", "otherwise")),
    "name": (FACTS | {"name": "a b"}, ("'name' is 'a b'", "letters, digits")),
    "list as a name": (FACTS | {"name": ["h100"]}, ("'name' is ['h100']", "letters, digits")),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_refused(case: str, tmp_path: Path) -> None:
    held, words = BAD[case]
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(held))
    with pytest.raises(TileirError) as raised:
        find_target(str(path))
    assert raised.value.location == str(path)
    assert [word for word in words if word not in str(raised.value)] == [], str(raised.value)


def test_text_that_is_no_target_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text('{"name": ')
    with pytest.raises(TileirError, match=r"bad.json: it is no JSON"):
        find_target(path)
    path.write_bytes(b"\xff\xfe{")
    with pytest.raises(TileirError, match=r"bad.json: it is no JSON"):
        find_target(path)
    with pytest.raises(TileirError, match=r"cannot read the target .*gone.json: No such file"):
        find_target(tmp_path / "gone.json")
    with pytest.raises(TileirError, match="both kinds of quotes"):
        find_target(tmp_path / "a'b\".json")


def test_values_that_no_device_has_are_not_written() -> None:
    with pytest.raises(TileirError, match="'sms' is 0"):
        target_text(replace(MINE, sms=0))
