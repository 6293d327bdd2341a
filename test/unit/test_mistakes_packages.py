"""Mistakes with packages: files that are damaged, of another version or target, and places that cannot be written."""

import json
import resource
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from test.mistakes import Act, Mistake, each_mistake, package, tensors
from tileir.package import Package

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


test_mistake = each_mistake(ROWS)


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
