"""GGUF files: names, quantisations, the order of rows, damage."""

import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest

import tileir
from test.families import family
from test.models import arrays
from tileir.errors import PackageError
from tileir.frontends.torch_export import export_decode
from tileir.runtime.weights import open_weights

KINDS = gguf.GGMLQuantizationType
ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "gemma3": gguf.MODEL_ARCH.GEMMA3,
    "phi3": gguf.MODEL_ARCH.PHI3,
}


def permuted(array: np.ndarray, heads: int) -> np.ndarray:
    """As llama.cpp's converter stores q and k: the two values of a rotated pair side by side."""
    rows = array.reshape(heads, 2, len(array) // heads // 2, *array.shape[1:])
    return np.ascontiguousarray(rows.swapaxes(1, 2)).reshape(array.shape)


def write(path: Path, name: str, model: Any, kind: Any = KINDS.F32) -> dict[str, np.ndarray]:
    """A GGUF file of a model as llama.cpp's converter would write it; returns the model's tensors."""
    config, tensors = model.config, arrays(model)
    writer = gguf.GGUFWriter(path, name)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    names = gguf.get_tensor_name_map(ARCHITECTURES[name], config.num_hidden_layers)
    for key, value in tensors.items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        stem, _, suffix = key.rpartition(".")
        if name == "llama" and ("q_proj" in key or "k_proj" in key):
            kv = "k_proj" in key
            heads = config.num_key_value_heads if kv else config.num_attention_heads
            value = permuted(value, heads)
        if name == "gemma3" and "norm" in key:
            value = value + 1
        quantised = kind if value.ndim > 1 and value.shape[-1] % 32 == 0 else KINDS.F32
        data = gguf.quants.quantize(np.ascontiguousarray(value, np.float32), quantised)
        writer.add_tensor(f"{names.get_name(stem)}.{suffix}", data, raw_dtype=quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_names_and_rows(name: str, tmp_path: Path) -> None:
    """Every tensor of the exported program, in the order of rows that it has."""
    model = family(name)
    exact = write(tmp_path / "m.gguf", name, model)
    found = open_weights(tmp_path / "m.gguf")
    for key, value in exact.items():
        assert np.allclose(np.asarray(found[key], np.float32), value, atol=1e-6), key
    package = tileir.compile(export_decode(model, 16), target="virtual")
    ids = [1, 2, 3, 4]
    wanted = package.load(exact, "reference").logits(ids)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = package.load(tmp_path / "m.gguf", "reference").logits(ids)
    assert np.abs(ours - wanted).max() < 1e-4 * np.abs(wanted).max()


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16", "BF16"])
def test_quantisations(kind: str, tmp_path: Path) -> None:
    """Rounded to bf16, each value is what gguf says."""
    model = family("llama", hidden_size=96)
    write(tmp_path / "m.gguf", "llama", model, KINDS[kind])
    found = open_weights(tmp_path / "m.gguf")
    (tensor,) = [t for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors if "1.ffn_up" in t.name]
    exact = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    ours = found["model.layers.1.mlp.up_proj.weight"]
    assert ours.dtype == ml_dtypes.bfloat16
    assert np.array_equal(ours, exact.astype(ml_dtypes.bfloat16))


@pytest.mark.parametrize("kind", ["Q4_K", "Q5_K", "Q6_K"])
def test_quantisations_in_blocks_of_256(kind: str, tmp_path: Path) -> None:
    """gguf reads these and does not write them: any bytes are values of some tensor."""
    _, size = gguf.GGML_QUANT_SIZES[KINDS[kind]]
    data = np.random.default_rng(0).integers(0, 60, (24, 2 * size), np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_block_count(1)
    writer.add_tensor("blk.0.ffn_up.weight", data, raw_dtype=KINDS[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ours = open_weights(tmp_path / "m.gguf")["model.layers.0.mlp.up_proj.weight"]
    exact = gguf.quants.dequantize(data, KINDS[kind]).astype(ml_dtypes.bfloat16)
    assert ours.shape == (24, 512)
    assert np.array_equal(ours, exact)


def test_damage(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write(path, "llama", family("llama"))
    data = path.read_bytes()
    for damaged in (data[:-100], data[: len(data) // 2], data[:30], b"GGUF" + b"\xff" * 200):
        path.write_bytes(damaged)
        with pytest.raises(PackageError, match=r"truncated|damaged"):
            open_weights(path)


def test_other_architectures(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "mamba")
    writer.add_block_count(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(PackageError, match=r"(?s)'mamba' model.*llama, qwen2"):
        open_weights(tmp_path / "m.gguf")


@pytest.mark.parametrize("seed", range(60))
def test_flipped_bits(seed: int, tmp_path: Path, small: bytes) -> None:
    """A clear refusal or a load, whatever bit of the header or of the list of tensors is wrong."""
    path, random = tmp_path / "m.gguf", np.random.default_rng(seed)
    data = bytearray(small)
    data[int(random.integers(0, 2500))] ^= 1 << int(random.integers(0, 8))
    path.write_bytes(bytes(data))
    with suppress(PackageError), np.errstate(all="ignore"):
        tensors = open_weights(path)
        for name in tensors:
            with suppress(KeyError):
                assert tensors[name].shape == tensors.shape(name)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    write(path, "llama", family("llama"), KINDS.Q8_0)
    return path.read_bytes()
