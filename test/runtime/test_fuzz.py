"""Parsers under damaged input: a clear error or what was meant, never a crash, a hang or another file touched."""

import contextlib
import hashlib
import json
import signal
import tracemalloc
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tileir
from test.edited import edited
from test.families import family
from test.models import arrays, tiny_llama, tiny_moe
from test.packing_device import PackingDevice
from tileir.errors import PackageError, PipelineError
from tileir.frontends.torch_export import export_decode
from tileir.package import PACKING, Package
from tileir.packing import constant, pack_row, pack_store
from tileir.passes.pipeline import parse_pipeline
from tileir.runtime.weights_check import check_weights

# Of a test; `--hypothesis-profile=full` has ten times as many (test/conftest.py).
EXAMPLES = settings().max_examples
SAME_FOLDER = settings(
    max_examples=2 * EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
PIPELINE = 'builtin.module(graph-fuse,specialize-gpu{devices=2 target=h100 placement="a b"},cse)'


@pytest.fixture(scope="module")
def package() -> Package:
    return tileir.compile(export_decode(tiny_llama(num_hidden_layers=1), 64), target="virtual")


@pytest.fixture(scope="module")
def saved(package: Package, tmp_path_factory: Any) -> bytes:
    return package.save(tmp_path_factory.mktemp("whole") / "m.tileir").read_bytes()


def same_or_refused(path: Path, package: Package) -> None:
    """What is read is what was saved, or refused as no package; nothing else is there afterwards."""
    before = sorted(p for p in path.parent.rglob("*"))
    try:
        found = tileir.load_package(path)
    except PackageError:
        pass
    else:
        assert found.files == package.files
        assert found.manifest == json.loads(json.dumps(package.manifest))
    assert sorted(p for p in path.parent.rglob("*")) == before


@given(data=st.data())
@SAME_FOLDER
def test_flipped_and_cut_zip_files(
    package: Package, saved: bytes, tmp_path: Path, data: st.DataObject
) -> None:
    changed = bytearray(saved)
    for _ in range(data.draw(st.integers(0, 3))):
        changed[data.draw(st.integers(0, len(saved) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path / "m.tileir"
    path.write_bytes(
        changed[: data.draw(st.integers(0, len(saved)))] if data.draw(st.booleans()) else changed
    )
    same_or_refused(path, package)


@given(data=st.data())
@SAME_FOLDER
def test_flipped_and_cut_files_of_a_folder(
    package: Package, saved: bytes, tmp_path: Path, data: st.DataObject
) -> None:
    """No checksum of zip's helps here."""
    folder = tmp_path / "folder"
    whole = tmp_path / "whole.zip"
    whole.write_bytes(saved)
    with zipfile.ZipFile(whole) as archive:
        archive.extractall(folder)
    victim = data.draw(st.sampled_from(sorted(folder.iterdir())))
    content = bytearray(victim.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    victim.write_bytes(
        content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    )
    same_or_refused(folder, package)


@given(data=st.data())
@SAME_FOLDER
def test_edited_manifests(package: Package, tmp_path: Path, data: st.DataObject) -> None:
    """A value that somebody has changed by hand is not believed."""
    folder = tmp_path / "folder"
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(package.save(tmp_path / "m.tileir")) as archive:
        archive.extractall(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    name = data.draw(st.sampled_from(sorted(manifest)))
    others = (
        st.none()
        | st.integers()
        | st.text()
        | st.lists(st.integers())
        | st.dictionaries(st.text(), st.text())
    )
    manifest[name] = data.draw(others.filter(lambda v: v != manifest[name]))
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(PackageError):
        tileir.load_package(folder)


@pytest.mark.parametrize("name", ["../outside", "/outside", "a/../../outside", "engine.mlir/x"])
def test_names_that_lead_elsewhere(package: Package, tmp_path: Path, name: str) -> None:
    """Entries of other names are not read, and nothing is ever unpacked."""
    inner = tmp_path / "inner"
    inner.mkdir()
    path = package.save(inner / "m.tileir")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, "x")
    same_or_refused(path, package)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["inner", "m.tileir"]


def test_entries_that_are_links(package: Package, tmp_path: Path) -> None:
    """A link's text is not what the manifest's hash says, whatever it points to."""
    (tmp_path / "secret").write_text("secret")
    path = package.save(tmp_path / "m.tileir")
    changed = tmp_path / "links.tileir"
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(changed, "w") as out:
        out.writestr("manifest.json", archive.read("manifest.json"))
        for name in package.files:
            link = zipfile.ZipInfo(name)
            link.external_attr = 0o120777 << 16
            out.writestr(link, str(tmp_path / "secret"))
    with pytest.raises(PackageError, match="damaged"):
        tileir.load_package(changed)


def test_twice_the_same_name(package: Package, tmp_path: Path) -> None:
    path = package.save(tmp_path / "m.tileir")
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("engine.mlir", "module {}")
    with pytest.raises(PackageError, match="damaged"):
        tileir.load_package(path)


SECONDS, SPARE_BYTES = 5, 1 << 18


@dataclass(frozen=True)
class Held:
    """A package and its weights, which no message repeats."""

    package: Package = field(repr=False)
    weights: dict[str, np.ndarray] = field(repr=False)


@pytest.fixture(scope="module")
def held(package: Package) -> list[Held]:
    """Whole weights; parts of weights; experts on two GPUs."""
    found = [Held(package, arrays(tiny_llama(num_hidden_layers=1)))]
    parts = family("phi3", num_hidden_layers=1)
    experts = tiny_moe(num_hidden_layers=1, hidden_size=32, vocab_size=64)
    for model, devices in ((parts, 1), (experts, 2)):
        made = tileir.compile(export_decode(model, 64), target="virtual", devices=devices)
        found.append(Held(made, arrays(model)))
    for case in found:
        assert loads(case, case.package.files[PACKING].decode())
    return found


@given(data=st.data())
@settings(max_examples=EXAMPLES, deadline=None)
def test_edited_recipes(held: list[Held], data: st.DataObject) -> None:
    """Past the hash: refused, or a load that runs."""
    case = held[data.draw(st.integers(0, len(held) - 1))]
    loads(case, edited(case.package.packing, lambda n: data.draw(st.integers(0, n - 1))))


def loads(case: Held, recipe: str) -> bool:
    """Whether a package is taken with this recipe. What the checks let pass can be packed, and runs."""
    data, old = recipe.encode(), case.package
    hashes = old.manifest["hashes"] | {PACKING: hashlib.sha256(data).hexdigest()}
    made = Package(old.manifest | {"hashes": hashes}, old.files | {PACKING: data})
    try:
        with little_time():
            packs(made, case.weights)
            logits = made.load(case.weights, "reference").logits([1, 2])
    except PackageError:
        return False
    assert logits.shape == (2, old.manifest["vocabulary"])
    assert np.isfinite(logits).all()
    return True


def packs(package: Package, weights: dict[str, np.ndarray]) -> None:
    """Packers fill what the manifest says, in little memory; the packing kernel stays inside, and does the same."""
    sms, memory, dtype = package.manifest["sms"], package.manifest["memory"], ml_dtypes.bfloat16
    with little_memory(3 * sum(a.nbytes for a in weights.values())):
        first, *others = package.packing
        check_weights([first, *others], weights)
        for recipe in (*others, first):
            tape = [block for e in recipe["tape"] for block in pack_row(e, sms, weights, dtype)]
            store = [pack_store(e, weights, dtype) for e in recipe["store"]]
            for e in recipe["constants"]:
                assert list(constant(e, weights).shape) == e["shape"]
    assert sum(b.nbytes for b in tape) == memory["tape"]
    assert sum(b.nbytes for b in store) == memory["store"]
    blocks = PackingDevice(package.manifest, first, weights).blocks()
    assert all((a == b).all() for a, b in zip(blocks, tape, strict=True))


@contextlib.contextmanager
def little_memory(most: int) -> Iterator[None]:
    """Raises AssertionError if more bytes are there at once."""
    tracemalloc.start()
    try:
        yield
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < most + SPARE_BYTES


@contextlib.contextmanager
def little_time() -> Iterator[None]:
    """Raises AssertionError, also in what hangs."""

    def late(*_: Any) -> None:
        raise AssertionError(f"it takes more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("value", ["\nb", "a\tb", "a\u00a0b", "a'b", "", "a(b"])
def test_values_of_any_characters_are_quoted(value: str) -> None:
    parsed_or_refused(f'specialize-gpu{{placement="{value}"}}')
    assert parse_pipeline(f'specialize-gpu{{placement="{value}"}}')[0].placement == value  # type: ignore[union-attr]


@given(st.text(max_size=200))
@settings(max_examples=3 * EXAMPLES, deadline=None)
def test_any_text_as_a_pipeline(text: str) -> None:
    parsed_or_refused(text)


@given(st.integers(0, len(PIPELINE)), st.integers(0, 8), st.text("(){}=, \"'\\-ax1\n", max_size=6))
@settings(max_examples=5 * EXAMPLES, deadline=None)
def test_pipelines_with_a_part_replaced(at: int, length: int, text: str) -> None:
    parsed_or_refused(PIPELINE[:at] + text + PIPELINE[at + length :])


def parsed_or_refused(text: str) -> None:
    """What is understood is understood alike when it is printed."""
    with contextlib.suppress(PipelineError):
        texts = [item.text() for item in parse_pipeline(text)]
        again = f"builtin.module({','.join(texts)})"
        assert [item.text() for item in parse_pipeline(again)] == texts
