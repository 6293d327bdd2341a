"""Packages, weights and sessions: what is read back, and every mistake's message."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import tileir
from test.models import arrays, tiny_llama
from tileir.errors import DeviceError, PackageError, TileirError
from tileir.frontends.torch_export import export_decode
from tileir.package import Package
from tileir.runtime.weights import Weights


@pytest.fixture(scope="module")
def package() -> Package:
    return tileir.compile(export_decode(tiny_llama(), 64), target="virtual")


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    return arrays(tiny_llama())


def test_saved_packages_are_the_same(package: Package, tmp_path: Path) -> None:
    path = package.save(tmp_path / "m.tileir")
    again = tileir.load_package(path)
    assert again.manifest == json.loads(json.dumps(package.manifest))
    assert again.files == package.files
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "folder")
    assert tileir.load_package(tmp_path / "folder").files == package.files


def test_weights_from_a_folder(package: Package, weights: Any, tmp_path: Path) -> None:
    save_file(weights, tmp_path / "model.safetensors")
    session = package.load(tmp_path, "reference")
    assert len(list(session.generate([1, 2], 3))) == 3


@pytest.mark.parametrize("cut", [10, 0.5, -3])
def test_damaged_packages(package: Package, tmp_path: Path, cut: float) -> None:
    path = package.save(tmp_path / "m.tileir")
    data = path.read_bytes()
    path.write_bytes(data[: int(cut * len(data)) if isinstance(cut, float) else cut])
    with pytest.raises(PackageError):
        tileir.load_package(path)


def test_flipped_bits(package: Package, tmp_path: Path) -> None:
    """A flipped bit is an error or changes nothing; never anything else."""
    path = package.save(tmp_path / "m.tileir")
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(data), 60):
        changed = bytearray(data)
        changed[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(changed))
        try:
            assert tileir.load_package(path).files == package.files
        except PackageError:
            pass


def test_other_schema(package: Package, tmp_path: Path) -> None:
    newer = Package({**package.manifest, "schema": 99}, package.files)
    with pytest.raises(PackageError, match="schema"):
        tileir.load_package(newer.save(tmp_path / "m.tileir"))


@pytest.mark.parametrize(
    ("ids", "new", "message"),
    [
        ([], 4, "prompt is empty"),
        ([1, 128], 4, "outside 0 … 127"),
        ([-1], 4, "outside"),
        ([1] * 60, 10, "context of 64"),
    ],
)
def test_prompts(package: Package, weights: Any, ids: list[int], new: int, message: str) -> None:
    with pytest.raises(TileirError, match=message):
        package.load(weights, "reference").generate(ids, new)


def test_missing_tensor_names_near_ones(package: Package, weights: Any, tmp_path: Path) -> None:
    renamed = {k.replace("q_proj", "q_pro"): v for k, v in weights.items()}
    save_file(renamed, tmp_path / "model.safetensors")
    with pytest.raises(PackageError, match=r"(?s)q_proj.*near: .*q_pro\.weight"):
        package.load(tmp_path, "reference")


def test_wrong_shape(package: Package, weights: Any) -> None:
    changed = {**weights, "model.norm.weight": np.ones(63, np.float32)}
    with pytest.raises(PackageError, match=r"model\.norm\.weight.*63"):
        package.load(changed, "reference")


def test_truncated_weights(weights: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(weights, path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(PackageError, match="truncated"):
        Weights(tmp_path)
    path.write_bytes(b"\xff" * 64)
    with pytest.raises(PackageError, match="no safetensors file"):
        Weights(tmp_path)
    with pytest.raises(PackageError, match="no weights"):
        Weights(tmp_path / "nothing")


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "tpu:0"])
def test_unknown_devices(package: Package, weights: Any, device: str) -> None:
    with pytest.raises(DeviceError, match="unknown device"):
        package.load(weights, device)


def test_virtual_packages_hold_no_kernel(package: Package, weights: Any) -> None:
    with pytest.raises(PackageError, match="holds no kernel"):
        package.load(weights, "cuda:0")


def test_unknown_target() -> None:
    with pytest.raises(TileirError, match=r"(?s)unknown target 'h10'.*did you mean 'h100'"):
        tileir.compile(export_decode(tiny_llama(), 64), target="h10")


def test_runtime_imports_neither_mlir_nor_torch() -> None:
    code = (
        "import sys, tileir.runtime.session, tileir.package\n"
        "bad = [m for m in sys.modules if m.split('.')[0] in ('torch', 'numba_cuda_mlir', 'transformers')]\n"
        "assert not bad and 'tileir.mlir' not in sys.modules, bad"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
