"""One name, four places; nothing of this machine in the repository."""

import re
from pathlib import Path

import pytest

from test.imports import loaded_by
from tileir.compiler import Options
from tileir.passes.pipeline import parse_pipeline
from tileir.passes.registry import NAMES, find_pass

ROOT = Path(__file__).parent.parent.parent
FOLDERS = (".ci", "benchmarks", "docs", "examples", "frontends", "runtime", "test", "tileir")
RUNTIME = sorted(p.stem for p in (ROOT / "runtime").glob("*.py") if p.stem != "__init__")
SUFFIXES = (".json", ".md", ".mlir", ".py", ".toml", ".txt")


@pytest.mark.parametrize("name", NAMES)
def test_flag_file_class_and_test_have_one_name(name: str) -> None:
    found = find_pass(name)
    stem = name.replace("-", "_")
    assert found.name == name
    assert found.__module__ == f"tileir.passes.{stem}"
    assert (ROOT / f"test/passes/{name}.mlir").is_file()
    assert (ROOT / f"test/passes/{name}-errors.mlir").is_file()
    docstring = found.__doc__ or ""
    assert "Before:" in docstring
    assert "After:" in docstring


def sources() -> list[Path]:
    """The repository's text files."""
    inside = [p for folder in FOLDERS for p in sorted((ROOT / folder).rglob("*"))]
    found = [p for p in [*sorted(ROOT.iterdir()), *inside] if p.is_file()]
    return [p for p in found if p.suffix in SUFFIXES or p.name in ("Makefile", "run")]


def test_no_machine_path_is_committed() -> None:
    pattern = re.compile(r"(^|[^\w.])/(work|root|home|tmp|opt|Users)/\w")
    assert pattern.search('open("' + "/".join(["", "root", "x"]) + '")')
    files = sources()
    assert len(files) > 100
    for path in files:
        found = pattern.search(path.read_text())
        assert found is None, f"{path.relative_to(ROOT)}: {found}"


def test_every_test_of_a_pass_has_its_pass() -> None:
    for path in (ROOT / "test/passes").glob("*.mlir"):
        assert any(f"{path.stem}-".startswith(f"{name}-") for name in NAMES), path.name


def test_every_pass_has_its_section_in_the_journey() -> None:
    """In the order of the pipeline."""
    text = (ROOT / "docs/journey.md").read_text()
    sections = re.findall(r"^### `([\w-]+)` — `tileir/passes/(\w+)\.py`$", text, re.MULTILINE)
    assert sections == [(name, name.replace("-", "_")) for name in NAMES]


def test_pipeline_runs_all_passes_in_the_registry_order() -> None:
    items = parse_pipeline(Options("virtual").pipeline)
    assert tuple(item.name for item in items) == NAMES


@pytest.mark.parametrize("module", RUNTIME)
def test_runtime_needs_neither_torch_nor_mlir(module: str) -> None:
    """Not even by way of what it imports."""
    loaded = loaded_by("tileir", "tileir.package", f"tileir.runtime.{module}")
    assert f"tileir.runtime.{module}" in loaded
    heavy = ("torch", "transformers", "numba_cuda_mlir", "tileir.mlir", "tileir.compiler")
    assert not loaded.intersection(heavy)
    assert not [m for m in loaded if m.startswith(("tileir.passes", "tileir.codegen"))]
