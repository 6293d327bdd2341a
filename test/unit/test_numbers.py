"""Numbers in IR: whatever an attribute holds, a module is verified or refused, and so is what passes make of it."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tileir.errors import TileirError
from tileir.mlir import ir, new_context
from tileir.passes.pipeline import run_pipeline

ROOT = Path(__file__).parents[1]
FILES = sorted(
    p for d in ("dialect", "passes") for p in (ROOT / d).glob("*.mlir") if "errors" not in p.name
)


def changed(text: str, numbers: tuple[int, ...]) -> Iterator[str]:
    """The text with the last integer attribute of each name as each of the numbers."""
    for name, at in {m[1]: m for m in re.finditer(r"(\w+) = -?\d+ : i64", text)}.items():
        for number in numbers:
            yield f"{text[: at.start()]}{name} = {number} : i64{text[at.end() :]}"


def passes_of(text: str) -> str:
    """The pipeline of the file's first RUN line; none if it has another form."""
    found = re.search(r"RUN: tileir-opt %s --pass-pipeline='([^']*)' \|", text)
    return found[1] if found else ""


@pytest.mark.parametrize("path", FILES, ids=[p.stem for p in FILES])
def test_no_number_is_an_error_of_pythons(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A pass that fails leaves its input in a folder.
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    text = path.read_text()
    pipeline = passes_of(text)
    pieces = [text] if pipeline else text.split("// -----")
    ran = 0
    for piece in pieces:
        for other in changed(piece, (0,) if pipeline else (0, -1)):
            ran += 1
            with new_context(), ir.Location.unknown():
                try:
                    module = ir.Module.parse(other)
                    if pipeline:
                        run_pipeline(module, pipeline)
                except (ir.MLIRError, TileirError):
                    pass
    assert ran or "i64" not in text
