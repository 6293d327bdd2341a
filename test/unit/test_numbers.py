"""Numbers in IR: whatever an attribute holds, a module is verified or refused."""

import re
from pathlib import Path

import pytest

from tileir.errors import TileirError
from tileir.mlir import ir, new_context

ROOT = Path(__file__).parents[1]
FILES = sorted(
    p for d in ("dialect", "passes") for p in (ROOT / d).glob("*.mlir") if "errors" not in p.name
)


@pytest.mark.parametrize("path", FILES, ids=[p.stem for p in FILES])
def test_no_number_is_an_error_of_pythons(path: Path) -> None:
    for text in path.read_text().split("// -----"):
        found = {m[1]: m for m in re.finditer(r"(\w+) = -?\d+ : i64", text)}
        for name, at in found.items():
            for number in (0, -1):
                with new_context(), ir.Location.unknown():
                    try:
                        ir.Module.parse(
                            f"{text[: at.start()]}{name} = {number} : i64{text[at.end() :]}"
                        )
                    except (ir.MLIRError, TileirError):
                        pass
