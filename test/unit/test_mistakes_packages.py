"""Mistakes with packages: files that are damaged, of another version or target, and places that cannot be written."""

import hashlib
import json
import resource
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from test.mistakes import Act, Mistake, each_mistake, package, tensors
from tileir.package import PACKING, Package

INSPECT = ["tileir", "inspect", "m.tileir"]
VIRTUAL = ["tileir", "compile", "model", "--target", "virtual", "--max-context", "32"]
RUN = ["tileir", "run", "m.tileir", "--weights", "model", "--prompt", "ab", "--max-new-tokens", "4"]


def bytes_of(change: Callable[[bytes], bytes]) -> Callable[[Path], Act]:
    """The package's file changed."""

    def prepare(folder: Path) -> Act:
        path = folder / "m.tileir"
        path.write_bytes(change(path.read_bytes()))
        return INSPECT

    return prepare


def member(name: str, change: Callable[[bytes], bytes | None]) -> Callable[[Path], Act]:
    """A member of the zip file changed, or left out, with sums that fit."""

    def prepare(folder: Path) -> Act:
        path = folder / "m.tileir"
        with zipfile.ZipFile(path) as archive:
            held = {n: archive.read(n) for n in archive.namelist()}
        changed = held | {name: change(held[name])}
        with zipfile.ZipFile(path, "w") as archive:
            for n, data in changed.items():
                if data is not None:
                    archive.writestr(n, data)
        return INSPECT

    return prepare


def manifest(**changes: Any) -> Callable[[Path], Act]:
    """The manifest with other parts; None leaves one out."""

    def change(data: bytes) -> bytes:
        parts = json.loads(data) | changes
        return json.dumps({n: v for n, v in parts.items() if v is not None}).encode()

    return member("manifest.json", change)


def unpacked(folder: Path) -> Act:
    """A folder of the package's files, one of which is gone."""
    with zipfile.ZipFile(folder / "m.tileir") as archive:
        archive.extractall(folder / "p")
    (folder / "p" / "packing.json").unlink()
    return ["tileir", "inspect", "p"]


def output(*parts: str) -> Callable[[Path], Act]:
    """Compile to a path."""
    return lambda folder: [*VIRTUAL, "-o", str(folder.joinpath(*parts))]


def saves(folder: Path) -> Act:
    """Save to a folder's name by the API."""
    held = package()
    return lambda: held.save(folder / "model")


def flip(at: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]


def loads(target: str, device: Any) -> Callable[[Path], Act]:
    held: Package = package(target)
    return lambda folder: lambda: held.load(tensors(), device)


def recipe(value: Any, *path: Any, act: Act = INSPECT) -> Callable[[Path], Act]:
    """The first GPU's packing recipe with another value there, and a hash that fits."""

    def prepare(folder: Path) -> Act:
        recipes = package().packing
        at: Any = recipes[0]
        for name in path[:-1]:
            at = at[name]
        at[path[-1]] = value(at[path[-1]]) if callable(value) else value
        return rehashed(json.dumps(recipes), act)(folder)

    return prepare


def rehashed(text: str, act: Act = INSPECT) -> Callable[[Path], Act]:
    """The package with this packing recipe, and a hash that fits."""

    def prepare(folder: Path) -> Act:
        held, data = package(), text.encode()
        hashes = held.manifest["hashes"] | {PACKING: hashlib.sha256(data).hexdigest()}
        made = Package(held.manifest | {"hashes": hashes}, held.files | {PACKING: data})
        made.save(folder / "m.tileir")
        return act

    return prepare


ROWS = [
    Mistake("no package", lambda f: ["tileir", "inspect", "gone"], ("gone", "tileir compile MODEL -o PATH")),
    Mistake("truncated", bytes_of(lambda d: d[:-100]), ("m.tileir is no package", "zip", "compile it again")),
    Mistake("half of it", bytes_of(lambda d: d[: len(d) // 2]), ("m.tileir is no package", "zip", "copy it again")),
    Mistake("flipped bit", bytes_of(flip(200)), ("m.tileir is no package", "manifest.json", "copy it again")),
    Mistake("empty file", bytes_of(lambda d: b""), ("m.tileir is no package", "zip", "tileir compile")),
    Mistake("text", bytes_of(lambda d: b"hello"), ("m.tileir is no package", "zip", "tileir compile")),
    Mistake("a zip file of something else", lambda f: other_zip(f), ("m.tileir is no package", "no manifest.json")),
    Mistake("a model's folder", lambda f: ["tileir", "inspect", "model"],
            ("model is no package", "no manifest.json", "tileir compile")),
    Mistake("no manifest", member("manifest.json", lambda d: None), ("no manifest.json", "compile it again")),
    Mistake("manifest that is no JSON", member("manifest.json", lambda d: d[:-3]),
            ("m.tileir is no package", "compile it again")),
    Mistake("manifest that is a list", member("manifest.json", lambda d: b"[]"),
            ("schema None", "compile the model again")),
    Mistake("no engine", member("engine.mlir", lambda d: None), ("engine.mlir is missing", "compile it again")),
    Mistake("no recipe", member("packing.json", lambda d: None), ("packing.json is missing", "compile it again")),
    Mistake("changed engine", member("engine.mlir", flip(300)),
            ("engine.mlir is damaged", "hash", "compile it again")),
    Mistake("changed recipe", member("packing.json", flip(10)),
            ("packing.json is damaged", "hash", "compile it again")),
    Mistake("no hashes", manifest(hashes={}), ("manifest.json is damaged", "hash")),
    Mistake("folder with a file gone", unpacked, ("p: packing.json is missing", "copy the package again")),
    Mistake("newer schema", manifest(schema=99),
            ("schema 99", "newer tileir", "update tileir", "compile the model again")),
    Mistake("older schema", manifest(schema=1), ("schema 1;", "compile the model again")),
    Mistake("no vocabulary", manifest(vocabulary=None), ("manifest.json lacks vocabulary", "compile it again")),
    Mistake("no reads", manifest(row_reads=None), ("manifest.json lacks row_reads", "compile it again")),
    Mistake("other reads", manifest(row_reads=[[]]), ("manifest.json is damaged", "hash", "copy the package again")),
    Mistake("no kernel", lambda f: [*RUN, "--device", "cuda:0"],
            ("'virtual'", "no kernel", 'target="h100"', '"reference"')),
    Mistake("unknown device", lambda f: [*RUN, "--device", "tpu"], ("'tpu'", "cuda:N", "reference-bf16")),
    Mistake("device without a number", lambda f: [*RUN, "--device", "cuda:x"], ("'cuda:x'", "cuda:N")),
    Mistake("negative device", loads("virtual", "cuda:-1"), ("'cuda:-1'", "cuda:N")),
    Mistake("device that is a number", loads("virtual", 0), ("unknown device 0", "cuda:N")),
    Mistake("no weights", lambda f: lambda: package().load(None), ("NoneType", "file's path", "state dict")),
    Mistake("output in no folder", output("gone", "m.tileir"),
            ("no folder", "gone", "make it, or name another with -o")),
    Mistake("output is a folder", output("model"), ("model is a folder", "model.tileir")),
    Mistake("saved to a folder", saves, ("model is a folder", "model.tileir")),
    Mistake("output below a file", output("m.tileir", "x"), ("no folder", "m.tileir")),
]  # fmt: skip


def other_zip(folder: Path) -> Act:
    with zipfile.ZipFile(folder / "m.tileir", "w") as archive:
        archive.writestr("hello.txt", "hello")
    return INSPECT


_Q, _GATE = ("tape", 0, "segments", 0), ("tape", 2, "segments", 0)
_EMBEDDING, _NORM, _ROPE = (("constants", i) for i in range(3))
_VIEW = ("tape", 1, "segments", 0, "lo")
_O = "model.layers.0.self_attn.o_proj.weight"


def viewed(*view: Any) -> Callable[[Any], Any]:
    return lambda half: half | {"view": list(view)}


RECIPES = [
    Mistake("no JSON", rehashed("[" * 9999), ("m.tileir: packing.json: no JSON", "compile the model again")),
    Mistake("a key twice", rehashed('[{"tape": [], "tape": []}]'), ("no JSON", "stands twice")),
    Mistake("an object", rehashed("{}"), ("packing.json, recipes: {} is not a list",)),
    Mistake("two GPUs", rehashed("[{}, {}]"), ("recipes for 2 GPUs, not for 1",)),
    Mistake("no tape", rehashed("[{}]"), ("GPU 0: it lacks tape, store, constants; known are tape,",)),
    Mistake("an unknown key", recipe(lambda v: v | {"vew": []}, *_VIEW), ("segment 0, lo: it has ['vew']; known",)),
    Mistake("a row twice", recipe(1, "tape", 1, "row"), ("tape entry 1, row: 1 is not a whole number in 2 …",)),
    Mistake("a row that is not there", recipe(99, "tape", -1, "row"), ("row: 99 is not a whole number in",)),
    Mistake("true", recipe(True, "tape", 0, "tile_base"), ("tape entry 0, tile_base: True is not a whole",)),
    Mistake("a float", recipe(64.0, "tape", 0, "k"), ("tape entry 0, k: 64.0 is not a whole",)),
    Mistake("blocks", recipe(3, "tape", 0, "blocks"), ("tape entry 0, blocks: 3 is not 2",)),
    Mistake("no inner", recipe(0, *_Q, "inner"), ("tape entry 0, segment 0, inner: 0 is not a whole",)),
    Mistake("a negative step", recipe(-8, *_Q, "step"), ("segment 0, step: -8 is not a whole",)),
    Mistake("a gap", recipe(lambda n: n + 1, "tape", 0, "segments", 1, "first"), ("segment 1, first:", "is not")),
    Mistake("a negative first", recipe(-1, *_Q, "first"), ("segment 0, first: -1 is not 0",)),
    Mistake("tiles in one place", recipe(0, *_GATE, "step"), ("tape entry 2, segment 0:", "step 0, outer 0 overlap")),
    Mistake("runs in one place", recipe(0, *_Q, "outer"), ("segment 0:", "step 8, outer 0 overlap")),
    Mistake("more tiles", recipe(99, "tape", 0, "tiles"), ("tape entry 0: of 8 tiles it takes 0 … 98",)),
    Mistake("fewer tiles", recipe(7, "tape", 0, "tiles"), ("tape entry 0, tiles: 7, 8 by the manifest",)),
    Mistake("a rotation", recipe(3, "tape", 0, "rotation"), ("rotation: 3, 0 by the manifest",)),
    Mistake("a rotation beyond the SMs", recipe(4, "tape", 0, "rotation"), ("rotation: 4 is not a whole",)),
    Mistake("an entry less", recipe(lambda e: e[:-1], "tape"), ("GPU 0, tape: it takes", "by the manifest")),
    Mistake("a view of odd shape", recipe(viewed(0, 64, 64, 64), *_VIEW), (_O, "view: [0, 64, 64, 64] is no offset")),
    Mistake("a view of nothing", recipe(viewed(), *_VIEW), (_O, "view: [0] is no offset")),
    Mistake("a view that runs back", recipe(viewed(0, 64, 64, 64, -1), *_VIEW), ("view 4: -1 is not a whole",)),
    Mistake("a view at one place", recipe(viewed(0, 64, 64, 64, 0), *_VIEW), ("is no offset with sizes and strides",)),
    Mistake("a view from before", recipe(viewed(-64, 64, 64, 64, 1), *_VIEW), ("view 0: -64 is not a whole",)),
    Mistake("a view of other rows", recipe(viewed(0, 32, 32, 64, 1), *_VIEW), ("[32, 32] is not [rows, 64]",)),
    Mistake("a view of many sizes", recipe(viewed(*[1] * 99), *_VIEW), ("is not a list of up to 17",)),
    Mistake("a view beyond", recipe(viewed(1, 64, 64, 64, 1), *_VIEW, act=RUN), (_O, "reaches value 4096")),
    Mistake("a view of more", recipe(viewed(0, 99, 64, 1, 1), *_VIEW, act=RUN), (_O, "another shape")),
    Mistake("rows beyond", recipe(64, *_VIEW, "row", act=RUN), (_O, "more than 112 rows are wanted")),
    Mistake("upper rows beyond", recipe(24, "tape", 1, "segments", 0, "hi", "row", act=RUN), (_O, "more than 64 rows")),
    Mistake("another tensor", recipe("lm_head.weight", *_VIEW, "tensor", act=RUN),
            ("GPU 0, tape, 1, segments, 0, lo, tensor: 'lm_head.weight', 'model.la", "by engine.mlir")),
    Mistake("a name that is none", recipe(7, *_VIEW, "tensor"), ("lo, tensor: 7 is not a text",)),
    Mistake("a long name", recipe("x" * 9999, *_VIEW, "tensor"), ("lo, tensor: 'xxx", "up to 1000 characters")),
    Mistake("no such tensor", recipe("gone", *_VIEW, "tensor", act=RUN), ("the weights lack 1 tensor", "gone (near:")),
    Mistake("an offset", recipe(256, *_EMBEDDING, "offset"), ("constant 0 'model.embed_tokens.weight', offset: 256",)),
    Mistake("bytes", recipe(1 << 50, *_EMBEDDING, "bytes"), ("embed_tokens.weight', bytes:", "is not 16384")),
    Mistake("an empty shape", recipe([0, 64], *_EMBEDDING, "shape"), ("shape 0: 0 is not a whole",)),
    Mistake("a dtype", recipe("f64", *_EMBEDDING, "dtype"), ("dtype: 'f64' is not one of bf16, f32",)),
    Mistake("a kind", recipe("zeros", *_EMBEDDING, "kind"), ("kind: 'zeros' is not one of rope, tensor",)),
    Mistake("a source", recipe(lambda e: e | {"source": 3}, *_NORM), ("constant 1 ", "source: 3 is not a text")),
    Mistake("a constant's view", recipe(lambda e: e | {"view": [0, 8, 1]}, *_NORM), ("sizes are [8], not [64]",)),
    Mistake("a constant's view beyond", recipe(lambda e: e | {"view": [1, 64, 1]}, *_NORM, act=RUN),
            ("input_layernorm.weight is [64], not [64]",)),
    Mistake("two of a name", recipe(lambda e: [e[0], *e[:-1]], "constants"), ("a constant of this name is there",)),
    Mistake("a constant less", recipe(lambda e: e[:-1], "constants"), ("constants: it takes", "by the manifest")),
    Mistake("frequencies", recipe(float("nan"), *_ROPE, "inv_freq", 3), ("inv_freq 3: nan is not a number in",)),
    Mistake("a scale", recipe("1", *_ROPE, "scale"), ("'rope_0', scale: '1' is not a number",)),
    Mistake("fewer frequencies", recipe(lambda e: e[:-1], *_ROPE, "inv_freq"), ("shape:", "is not [32, 7, 2]")),
]  # fmt: skip


test_mistake = each_mistake(ROWS)
test_recipe = each_mistake(RECIPES)


@contextmanager
def small_files() -> Iterator[None]:
    """The kernel refuses files of more than 4 KB, as a full disk would: also pytest's own output, if it goes to one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_that_fails_keeps_the_old_package(tmp_path: Path) -> None:
    path, held = tmp_path / "m.tileir", package()
    path.write_bytes(b"old")
    said = r"cannot write .*m\.tileir: File too large\n  .*has room"
    with pytest.raises(Exception, match=said), small_files():
        held.save(path)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["m.tileir"]


def test_an_interrupted_write_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(zipfile.ZipFile, "writestr", interrupted)
    with pytest.raises(KeyboardInterrupt):
        package().save(tmp_path / "m.tileir")
    assert list(tmp_path.iterdir()) == []
