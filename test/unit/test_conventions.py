"""One name, four places; nothing of this machine in the repository."""

import re
import subprocess
from pathlib import Path

import pytest

from tileir.passes.registry import NAMES, find_pass

ROOT = Path(__file__).parent.parent.parent


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


def test_no_machine_path_is_committed() -> None:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    pattern = re.compile(r"(^|[^a-z.])/(work|root|home)/[a-z]")
    for name in listed.stdout.split():
        path = ROOT / name
        if path.suffix in (".py", ".md", ".toml", ".mlir", ".json", "") and path.is_file():
            assert not pattern.search(path.read_text(errors="ignore")), name
