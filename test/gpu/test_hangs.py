"""Kernels with seeded defects end in time and say why. The text is read without a GPU, the kernels need one.

`python -m benchmarks.hangs` runs the same where there is no MLIR.
"""

from pathlib import Path

import pytest

from benchmarks import hangs
from benchmarks.make_hangs import broken, make
from benchmarks.make_packages import tiny
from test.gpu.hang_defects import DEFECTS
from tileir import compile as compile_
from tileir.frontends.torch_export import export_decode
from tileir.package import Package
from tileir.runtime.driver import device_count

TARGET = "h100"
gpu = [pytest.mark.gpu, pytest.mark.skipif(device_count() == 0, reason="no GPU")]


@pytest.fixture(scope="module")
def correct() -> Package:
    return compile_(export_decode(tiny(), 128), target=TARGET)


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_is_in_the_kernel(name: str, correct: Package) -> None:
    """Of its table, its code or its launch: what runs is not the correct package."""
    defect = DEFECTS[name]
    found = broken(correct.engine_text, defect, TARGET)
    assert (found.ptx, found.manifest["table"]) != (correct.ptx, correct.manifest["table"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hangs")
    make(path, TARGET)
    return path


@pytest.mark.parametrize("name", [pytest.param(n, marks=gpu) for n in (hangs.INJECTED, *DEFECTS)])
def test_it_ends_and_says_why(name: str, folder: Path, tmp_path: Path) -> None:
    assert hangs.run_all(folder, tmp_path / "hangs.json", [name.replace(" ", "-")])
