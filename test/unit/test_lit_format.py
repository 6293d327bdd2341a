"""The lit format: a test that must fail does fail, whatever runs it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
FINE = "func.func @f() {\n  return\n}\n"
WRONG = "func.func @f() {\n  retrun\n}\n"

# name → (passes, RUN lines and what follows them)
CASES = {
    "match": (True, "// RUN: tileir-opt %s | filecheck %s\n// CHECK: @f\n" + FINE),
    "mismatch": (False, "// RUN: tileir-opt %s | filecheck %s\n// CHECK: @g\n" + FINE),
    "error": (False, "// RUN: tileir-opt %s\n" + WRONG),
    "error-in-a-pipe": (False, "// RUN: tileir-opt %s 2>&1 | filecheck %s\n// CHECK: error\n" + WRONG),
    "not": (True, "// RUN: not tileir-opt %s 2>&1 | filecheck %s\n// CHECK: error\n" + WRONG),
    "not-without-error": (False, "// RUN: not tileir-opt %s\n" + FINE),
    "not-filecheck": (True, "// RUN: tileir-opt %s | not filecheck %s\n// CHECK: @g\n" + FINE),
    "stderr-is-no-output": (
        False, "// RUN: not tileir-opt %s | filecheck %s\n// CHECK: error\n" + WRONG,
    ),
    "second-run": (False, "// RUN: tileir-opt %s\n// RUN: not tileir-opt %s\n" + FINE),
    "between": (
        True,
        "// RUN: tileir-opt %s | sed 's/@f|x/@h/' | sed s/@f/@h/ | tileir-opt - | filecheck %s\n"
        "// CHECK: @h\n" + FINE,
    ),
    "between-fails": (False, "// RUN: tileir-opt %s | false | cat\n" + FINE),
    "temporary": (
        True,
        "// RUN: tileir-opt %s -o %t.mlir\n// RUN: filecheck %s --input-file %t.mlir\n"
        "// CHECK: @f\n" + FINE,
    ),
    "shell": (True, "// RUN: tileir-opt %s > %t && filecheck %s < %t\n// CHECK: @f\n" + FINE),
    "shell-fails": (False, "// RUN: tileir-opt %s > %t && filecheck %s < %t\n// CHECK: @g\n" + FINE),
    "wrong-arguments": (False, "// RUN: tileir-opt %s %s\n" + FINE),
    "no-run": (False, FINE),
}  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Test name → lit's code, of one run of all cases."""
    folder = tmp_path_factory.mktemp("suite")
    for name, (_, text) in CASES.items():
        (folder / f"{name}.mlir").write_text(text)
    (folder / "lit.cfg.py").write_text(
        f"lit_config.load_config(config, {str(ROOT / 'lit.cfg.py')!r})\n"
        f"config.test_source_root = {str(folder)!r}\n"
        f"config.test_exec_root = {str(folder / 'out')!r}\n"
    )
    report = folder / "report.json"
    lit = Path(sys.executable).with_name("lit")
    subprocess.run(
        [str(lit), "-q", "--output", str(report), str(folder)], capture_output=True, check=False
    )
    tests = json.loads(report.read_text())["tests"]
    return {t["name"].rsplit(" ")[-1].removesuffix(".mlir"): t["code"] for t in tests}


@pytest.mark.parametrize("name", CASES)
def test_results(name: str, results: dict[str, str]) -> None:
    found = results[name]
    wanted = CASES[name][0]
    assert (found == "PASS") == wanted, found
