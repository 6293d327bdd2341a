"""Passes of one's own: registered, loaded from a file, put into the pipeline; and what is said of wrong ones."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tileir.compiler import Options
from tileir.errors import PipelineError
from tileir.passes import registry
from tileir.passes.base import Pass
from tileir.passes.pipeline import parse_pipeline
from tileir.passes.registry import NAMES, find_pass, load_passes, pass_names, register

FILE = """
from dataclasses import dataclass
from typing import ClassVar
from tileir.passes.base import Pass
from tileir.passes.registry import register

@register
@dataclass(frozen=True)
class EmptyPass(Pass):
    "Does nothing."
    name: ClassVar[str] = "empty"
    before: ClassVar[str] = "any"
    after: ClassVar[str] = "any"
    count: int = 1
    def run(self, module): pass
"""


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_added", {})


def made(name: str, before: str = "tile", after: str = "tile", *, runs: bool = True) -> type[Pass]:
    """A pass of that name."""

    @dataclass(frozen=True)
    class Made(Pass):
        def run(self, module: Any) -> None:
            pass

    @dataclass(frozen=True)
    class Lazy(Pass):
        kept: ClassVar[int] = 0

    found = Made if runs else Lazy
    found.name, found.before, found.after = name, before, after
    return found


def test_a_registered_pass_is_one_of_the_pipelines() -> None:
    found = made("my-pass")
    assert register(found) is found
    assert pass_names() == (*NAMES, "my-pass")
    assert find_pass("my-pass") is found
    assert parse_pipeline("builtin.module(my-pass,cse)")[0] == found()


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (made("tile-graph"), "there is a pass 'tile-graph' already"),
        (made("My Pass"), "'My Pass' is no name"),
        (made(""), "'' is no name"),
        (made("my-pass", before="llvm"), "stands at level 'llvm'"),
        (made("my-pass", after=""), "stands at level ''"),
        (made("my-pass", runs=False), "has no `run`"),
    ],
)
def test_wrong_passes_are_refused(found: type[Pass], said: str) -> None:
    with pytest.raises(PipelineError, match=said):
        register(found)
    assert pass_names() == NAMES


def test_a_file_registers_its_passes_and_may_be_loaded_again(tmp_path: Path) -> None:
    path = tmp_path / "empty_pass.py"
    path.write_text(FILE)
    assert load_passes(path) == ["empty"]
    path.write_text(FILE.replace("count: int = 1", "count: int = 20"))
    assert load_passes(path) == ["empty"]
    assert find_pass("empty")().text() == "empty{count=20}"


def test_two_files_cannot_have_one_name(tmp_path: Path) -> None:
    for stem in ("one", "two"):
        (tmp_path / f"{stem}.py").write_text(FILE)
    load_passes(tmp_path / "one.py")
    with pytest.raises(PipelineError, match="there is a pass 'empty' already"):
        load_passes(tmp_path / "two.py")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "registers no pass"),
        ("1 / 0", "ends with ZeroDivisionError: division by zero"),
        ("def", "ends with SyntaxError"),
        ("raise SystemExit(3)", "ends with SystemExit: 3"),
    ],
)
def test_files_that_cannot_be_used(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.py"
    path.write_text(text)
    with pytest.raises(PipelineError, match=said):
        load_passes(path)


@pytest.mark.parametrize("name", ["missing.py", ".", "passes.txt"])
def test_paths_that_are_no_python_file(name: str, tmp_path: Path) -> None:
    (tmp_path / "passes.txt").write_text(FILE)
    with pytest.raises(PipelineError, match="no Python file"):
        load_passes(tmp_path / name)


def test_passes_are_inserted_behind_ours() -> None:
    register(made("my-pass"))
    usual = parse_pipeline(Options("virtual").pipeline)
    insert = {"tile-graph": "my-pass,cse", "verify-schedule": "cse"}
    items = parse_pipeline(Options("virtual", insert=insert).pipeline)
    names = [item.name for item in items]
    at = names.index("tile-graph")
    assert names[at : at + 4] == ["tile-graph", "my-pass", "cse", "fuse-communication"]
    assert names[-3:] == ["verify-schedule", "cse", "verify-schedule"]
    assert [item for item in items if item.name in NAMES] == [*usual, usual[-1]]


def test_a_pass_to_insert_behind_must_be_there() -> None:
    with pytest.raises(PipelineError, match="the pipeline has no pass 'tile-grap'"):
        _ = Options("virtual", insert={"tile-grap": "cse"}).pipeline
