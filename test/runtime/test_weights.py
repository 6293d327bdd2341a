"""Weights from disk: what is checked before loading, memory while it lasts, experts stored one by one."""

import json
import resource
import struct
import subprocess
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import tileir
from test.models import arrays, tiny_llama, tiny_moe
from tileir.errors import PackageError
from tileir.frontends.torch_export import export_decode
from tileir.package import Package
from tileir.runtime.weights import Weights, open_weights


@pytest.fixture(scope="module")
def package() -> Package:
    return tileir.compile(export_decode(tiny_llama(), 64), target="virtual")


@pytest.fixture
def weights() -> dict[str, np.ndarray]:
    return arrays(tiny_llama())


def refusal(package: Package, weights: Any) -> str:
    with pytest.raises(PackageError) as error:
        package.load(weights, "reference")
    return str(error.value)


def test_every_missing_name_is_listed(package: Package, weights: Any) -> None:
    gone = [n for n in weights if "mlp" in n]
    renamed = {n.replace("mlp.", "ffn.") if n in gone else n: a for n, a in weights.items()}
    said = refusal(package, renamed)
    assert f"lack {len(gone)} tensors" in said
    for name in gone:
        assert f"{name} (near: {name.replace('mlp.', 'ffn.')}" in said


def test_every_wrong_shape_is_listed(package: Package, weights: Any) -> None:
    names = ("model.norm.weight", "model.layers.0.mlp.down_proj.weight", "lm_head.weight")
    weights |= {names[0]: weights[names[0]][:-1], names[1]: weights[names[1]][:, :-2]}
    weights[names[2]] = weights[names[2]][:16]
    said = refusal(package, weights)
    assert "3 tensors have another shape" in said
    assert all(f"{n} is {list(weights[n].shape)}" in said for n in names)


def test_what_is_not_used_is_warned_of(package: Package, weights: Any) -> None:
    weights |= {"model.layers.9.extra": np.zeros(2, np.float32), "rotary.inv_freq": np.ones(2)}
    with pytest.warns(UserWarning, match=r"1 tensor is not used: model\.layers\.9\.extra$"):
        package.load(weights, "reference")


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.self_attn.o_proj.weight"])
def test_values_that_are_no_numbers(package: Package, weights: Any, name: str, value: Any) -> None:
    weights[name] = weights[name].copy()
    weights[name].reshape(-1)[[3, 5]] = value
    assert f"tensor '{name}' has 2 values that are NaN or infinite" in refusal(package, weights)


def test_progress_ends_with_all(package: Package, weights: Any) -> None:
    heard: list[tuple[int, int]] = []
    package.load(weights, "reference", progress=lambda done, all_: heard.append((done, all_)))
    assert heard[-1][0] == heard[-1][1] == sum(a.size for a in weights.values())
    assert [d for d, _ in heard] == sorted(d for d, _ in heard)


def header(path: Path, change: Any) -> Path:
    """A safetensors file of two tensors with a changed header."""
    save_file({"a": np.zeros((2, 3), np.float32), "b": np.ones(4, np.float32)}, path)
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    text = change(json.loads(data[8 : 8 + length]))
    text = (text if isinstance(text, str) else json.dumps(text)).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    return path


def moved(entries: Any) -> Any:
    entries["b"]["data_offsets"] = [8, 24]
    return entries


DAMAGE = {
    "overlap": (moved, "overlap"),
    "negative": (lambda e: e | {"a": e["a"] | {"shape": [-2, -3]}}, "negative"),
    "backwards": (lambda e: e | {"a": e["a"] | {"data_offsets": [24, 0]}}, "run back"),
    "twice": (lambda e: json.dumps(e)[:-1] + ', "a": {}}', "stands twice"),
    "no offsets": (lambda e: e | {"a": {"dtype": "F32", "shape": [2]}}, "no safetensors"),
    "beyond": (lambda e: e | {"b": e["b"] | {"data_offsets": [24, 4000]}}, "truncated"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damaged_headers(what: str, tmp_path: Path) -> None:
    change, said = DAMAGE[what]
    with pytest.raises(PackageError, match=said):
        open_weights(header(tmp_path / "model.safetensors", change))


def test_experts_of_a_folder(tmp_path: Path) -> None:
    """What save_pretrained stores one by one is there under the names of the exported program."""
    model = tiny_moe()
    model.save_pretrained(tmp_path)
    found, exact = Weights(tmp_path), arrays(model)
    fused = [n for n in exact if "experts." in n]
    assert fused
    assert not any(n in list(found) for n in fused)
    for name in fused:
        assert found.shape(name) == exact[name].shape
        assert np.array_equal(found[name], exact[name])
    package = tileir.compile(export_decode(model, 32), target="virtual")
    ids = [1, 2, 3, 4]
    wanted = package.load(exact, "reference").logits(ids)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(package.load(tmp_path, "reference").logits(ids), wanted)
    (tmp_path / "model.safetensors").unlink()


@pytest.mark.parametrize("shape", [(16, 9), (8, 16), (256,)])
def test_experts_that_do_not_stack(shape: tuple[int, ...], tmp_path: Path) -> None:
    """One expert's matrix has another shape than the first's."""
    name = "layers.0.mlp.experts.{}.down_proj.weight"
    tensors = {name.format(i): np.zeros((16, 8), np.float32) for i in range(3)}
    save_file(
        tensors | {name.format(2): np.zeros(shape, np.float32)}, tmp_path / "model.safetensors"
    )
    found = Weights(tmp_path)
    for look in (found.shape, found.__getitem__):
        with pytest.raises(
            PackageError, match=r"experts that do not stack: .*experts\.0\.down_proj.*experts\.2"
        ):
            look("layers.0.mlp.experts.down_proj")


MEMORY = """
import resource, sys
from pathlib import Path
import numpy as np
from tileir.runtime.upload import Uploader
from tileir.runtime.weights import open_weights

class Device:
    def pinned(self, size): return np.empty(size, np.uint8)
    def unpin(self, array): pass
    def synchronize(self): pass
    def reach(self, event): pass
    def event(self): return None
    def begin_upload(self, array, pointer): pass

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
tensors = open_weights(Path(sys.argv[1]))
with Uploader(Device()) as uploader:
    for name in tensors:
        uploader.upload(name, tensors[name], tensors[name].dtype, 0)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_while_weights_are_streamed(tmp_path: Path) -> None:
    """480 MB in shards go through pinned buffers of 96 MB: mapped pages do not pile up."""
    index = {}
    for shard in range(4):
        data = {f"t{shard}": np.zeros((15360, 4096), ml_dtypes.bfloat16)}
        save_file(data, tmp_path / f"{shard}.safetensors")
        index |= dict.fromkeys(data, f"{shard}.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    command = [sys.executable, "-c", MEMORY, str(tmp_path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert int(done.stdout) * 1024 < 250e6
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss > 0


@pytest.mark.parametrize("seed", range(60))
def test_flipped_bits(seed: int, tmp_path: Path) -> None:
    """A clear refusal or a load, whatever bit of a safetensors header is wrong."""
    path, random = tmp_path / "model.safetensors", np.random.default_rng(seed)
    save_file({f"t{i}": np.zeros((3, i + 1), np.float32) for i in range(6)}, path)
    data = bytearray(path.read_bytes())
    data[int(random.integers(0, len(data) - 200))] ^= 1 << int(random.integers(0, 8))
    path.write_bytes(bytes(data))
    with suppress(PackageError):
        tensors = open_weights(path)
        for name in tensors:
            assert tensors[name].shape == tensors.shape(name)
