"""Mistakes with weights: tensors that do not fit the package, and files that are damaged."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np

import tileir
from test.mistakes import Act, Mistake, each_mistake, tensors, write_model
from test.models import tiny_llama
from test.runtime.test_gguf import write as write_gguf

NORM, Q = "model.norm.weight", "model.layers.1.self_attn.q_proj.weight"
RUN = ["tileir", "run", "m.tileir", "--weights", "model", "--prompt", "ab"]
RUN += ["--device", "reference", "--max-new-tokens", "2"]


def tensor(
    name: str, array: np.ndarray | None, **others: np.ndarray | None
) -> Callable[[Path], Act]:
    """Another tensor in the file, or none."""

    def prepare(folder: Path) -> Act:
        write_model(folder / "model", **{name: array}, **others)
        return lambda: tileir.load_package(folder / "m.tileir").load(folder / "model", "reference")

    return prepare


def file(change: Callable[[bytes], bytes]) -> Callable[[Path], Act]:
    """The safetensors file changed."""

    def prepare(folder: Path) -> Act:
        path = folder / "model" / "model.safetensors"
        path.write_bytes(change(path.read_bytes()))
        return RUN

    return prepare


def header(change: Callable[[dict[str, dict[str, object]]], object]) -> Callable[[Path], Act]:
    """The file's header changed, its length with it."""

    def rewrite(data: bytes) -> bytes:
        (length,) = struct.unpack("<Q", data[:8])
        entries = json.loads(data[8 : 8 + length])
        change(entries)
        text = json.dumps(entries).encode()
        return struct.pack("<Q", len(text)) + text + data[8 + length :]

    return file(rewrite)


def index(text: str) -> Callable[[Path], Act]:
    """An index beside the file."""

    def prepare(folder: Path) -> Act:
        (folder / "model" / "model.safetensors.index.json").write_text(text)
        return RUN

    return prepare


def gone(folder: Path) -> Act:
    (folder / "model" / "model.safetensors").unlink()
    return RUN


def extra(folder: Path) -> Act:
    """A tensor that nothing uses: told, and no error."""
    write_model(folder / "model", **{"model.layers.9.norm.weight": np.ones(2, np.float32)})
    return RUN


def gguf(change: Callable[[bytes], bytes]) -> Callable[[Path], Act]:
    """The weights as a GGUF file, changed."""

    def prepare(folder: Path) -> Act:
        write_gguf(folder / "m.gguf", "llama", tiny_llama())
        data = (folder / "m.gguf").read_bytes()
        (folder / "m.gguf").write_bytes(change(data))
        return [*RUN, "--tokenizer", "model", "--weights", "m.gguf"]

    return prepare


def renamed() -> Callable[[Path], Act]:
    return tensor(Q, None, **{Q.replace("q_proj", "q_pro"): tensors()[Q]})


def wrong(array: np.ndarray, dtype: str) -> np.ndarray:
    return (array * 100).astype(dtype)


ROWS = [
    Mistake("missing tensor", renamed(), (Q, "q_pro.weight", "near")),
    Mistake("whole numbers", tensor(Q, wrong(tensors()[Q], "int8")), (Q, "I8", "supported", "BF16")),
    Mistake("truncated file", file(lambda d: d[:-7]), ("model.safetensors", "truncated", "again")),
    Mistake("header cut short", file(lambda d: d[:20]), ("model.safetensors", "safetensors", "again")),
    Mistake("length of the header flipped", file(lambda d: d[:5] + b"\x10" + d[6:]), ("model.safetensors", "again")),
    Mistake("brace of the header flipped", file(lambda d: d[:8] + b"[" + d[9:]), ("model.safetensors", "again")),
    Mistake("empty file", file(lambda d: b""), ("model.safetensors", "again")),
    Mistake("a page of a web site", file(lambda d: b"<!DOCTYPE html>" * 40), ("model.safetensors", "again")),
    Mistake("size of a tensor changed", header(lambda e: e[NORM].update(data_offsets=[0, 8])),
            ("model.safetensors", "overlap", "again")),
    Mistake("wrong shape of a norm", tensor(NORM, np.ones(63, np.float32)), (NORM, "[63]", "64", "exported")),
    Mistake("wrong shape of a matrix", tensor(Q, np.ones((64, 32), np.float32)), (Q, "[64, 32]", "64", "exported")),
    Mistake("several missing tensors", tensor(Q, None, **{NORM: None}), (Q, NORM, "lack 2 tensors", "exported")),
    Mistake("not a number", tensor(Q, np.full((64, 64), np.nan, np.float32)), (Q, "NaN")),
    Mistake("missing shard", index(json.dumps({"weight_map": {NORM: "a-1-of-2.safetensors"}})),
            ("model", "a-1-of-2.safetensors", "copy")),
    Mistake("index that is no JSON", index("<html>"), ("index.json", "index", "again")),
    Mistake("index without a map", index("{}"), ("index.json", "index", "again")),
    Mistake("extra tensor", extra, ("warning", "1 tensor is not used", "model.layers.9.norm.weight"), 0),
    Mistake("truncated GGUF", gguf(lambda d: d[:-4000]), ("m.gguf", "damaged", "again")),
    Mistake("GGUF cut in its header", gguf(lambda d: d[:60]), ("m.gguf", "GGUF", "again")),
    Mistake("GGUF of another kind of model", gguf(lambda d: d.replace(b"llama", b"mamba")),
            ("m.gguf", "mamba", "llama")),
    Mistake("folder without weights", gone, ("model", "model.safetensors")),
]  # fmt: skip


test_mistake = each_mistake(ROWS)
