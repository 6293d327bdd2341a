"""Packages: what the compiler hands to the runtime. Neither MLIR nor torch is needed to read one.

A package is a folder or a zip file:

    manifest.json     schema, target, launch shape, memory sizes, the phase table, hashes of the other files
    engine.mlir       the engine module, which the reference device executes
    packing.json      for every GPU, where every byte of tape, tile store and constants comes from
    device_0.ptx      the kernels, if the target has any
"""

import hashlib
import json
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tileir.errors import DeviceError, PackageError
from tileir.runtime.recipe_check import read_recipes

SCHEMA = 8
MANIFEST = "manifest.json"
ENGINE, PACKING, PTX = "engine.mlir", "packing.json", "device_0.ptx"
_KNOWN = (ENGINE, PACKING, PTX)
# Parts of a manifest that every device reads.
_PARTS = (
    *("target", "stream_tbps", "devices", "sms", "context", "vocabulary", "memory", "table"),
    *("bodies", "row_bodies", "row_awaits", "row_writes", "row_tasks", "row_reads"),
    *("channels", "hashes"),
)
_AGAIN = "copy the package again, or compile it again"
_UNREADABLE = (
    *(OSError, KeyError, ValueError, RuntimeError, EOFError, OverflowError),
    *(zipfile.BadZipFile, zlib.error, struct.error),
)


class Session(Protocol):
    """A loaded model on a device, for one thread at a time.

    device: "reference", "reference-bf16", or "cuda:N" and the GPU's name.
    """

    device: str

    def generate(self, ids: Any, max_new_tokens: int, stop_ids: Any = ()) -> Any:
        """Up to `max_new_tokens` greedy token ids after the prompt `ids`, one by one, as the device makes them.

        ids, stop_ids: sequences of int; a stop id ends the tokens and is one of them. Raises TileirError for a prompt
        that is empty, has ids outside the vocabulary or does not fit the context with the new tokens.
        """

    def logits(self, ids: Any) -> Any:
        """Logits of every position, [len(ids), vocabulary] f32, the ids being forced. Raises as generate does."""

    def close(self) -> None:
        """Give the device's memory back."""


@dataclass(frozen=True)
class Package:
    """A compiled model, without its weights.

    manifest: what is in manifest.json: target, launch shape, `memory` (bytes), the phase table. files: the other files'
    bytes by name: "engine.mlir", "packing.json" and, if the target has kernels, "device_0.ptx".
    """

    manifest: dict[str, Any]
    files: dict[str, bytes] = field(repr=False)

    @property
    def engine_text(self) -> str:
        """The engine module as text."""
        return self.files[ENGINE].decode()

    @property
    def packing(self) -> list[dict[str, Any]]:
        """The packing recipe of every GPU: where each byte of tape, tile store and constants comes from.

        Raises PackageError for what packers could not follow.
        """
        return read_recipes(self.files[PACKING], self.manifest, PACKING)

    @property
    def ptx(self) -> str:
        """The kernels as PTX text. Raises PackageError if the target has none."""
        if PTX not in self.files:
            target = self.manifest["target"]
            raise PackageError(
                f"the package was compiled for {target!r} and holds no kernel",
                hint='compile with target="h100" or "h200", or load it on device="reference"',
            )
        return self.files[PTX].decode()

    def save(self, path: str | Path) -> Path:
        """Write a zip file, whole or not at all; returns its path.

        Raises PackageError for a path that is a folder or cannot be written.
        """
        path = Path(path)
        if path.is_dir():
            raise PackageError(f"{path} is a folder", hint="name a file, such as model.tileir")
        part = path.with_name(path.name + ".part")
        try:
            with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr(MANIFEST, _manifest_text(self.manifest))
                for name, data in self.files.items():
                    archive.writestr(name, data)
            part.replace(path)
        except OSError as error:
            raise PackageError(
                f"cannot write {path}: {error.strerror}",
                hint="name a folder that exists, may be written and has room",
            ) from None
        finally:
            # Ctrl-C comes here too.
            part.unlink(missing_ok=True)
        return path

    def summary(self) -> str:
        """A few lines for people: sizes, stages, launch shape."""
        m = self.manifest
        lines = [
            f"target {m['target']}: {m['sms']} SMs, {m['threads']} threads and "
            f"{m['smem_bytes'] / 1024:.0f} KB of shared memory each",
            f"{len(m['table'])} rows of {len(m['bodies'])} bodies: {', '.join(m['bodies'])}",
            f"context {m['context']}, vocabulary {m['vocabulary']}",
            f"tape {m['memory']['tape'] / 1e6:.1f} MB, constants {m['memory']['constants'] / 1e6:.1f} MB, "
            f"states {m['memory']['states'] / 1e6:.1f} MB, exchange {m['memory']['exchange'] / 1e6:.2f} MB",
        ]
        if m.get("assembled"):
            a = m["assembled"]
            lines.append(
                f"kernel {len(self.files[PTX]) / 1024:.0f} KB of PTX, {a['registers']} registers, "
                f"{a['spill_bytes']} bytes spilled"
            )
        return "\n".join(lines)

    def load(
        self,
        weights: str | Path | Mapping[str, Any],
        device: str = "auto",
        progress: Callable[[int, int], None] | None = None,
    ) -> Session:
        """A session on a device, with weights from disk or from a mapping of arrays.

        weights: a folder or a file of safetensors, a GGUF file, or arrays, by the names and of the shapes of the
        exported state dict; f32, bf16 or f16, rounded to bf16 where the kernel streams them. All names and shapes are
        checked before anything is loaded; unused tensors are warned of. device: "auto" (a GPU if there is one
        that fits, else "reference"), "cuda:N", "reference" (fp32 arithmetic), "reference-bf16" (the kernel's rounding).
        progress: called with the values read so far, and with those of all tensors. Raises PackageError for weights
        that do not fit or hold NaN and for a packing recipe that is not the module's, DeviceError for a device that is
        not there.
        """
        from tileir.runtime.reading import Reading
        from tileir.runtime.weights import open_weights
        from tileir.runtime.weights_check import check_weights

        if not isinstance(device, str):
            raise _unknown(device)
        if not isinstance(weights, str | Path | Mapping):
            raise PackageError(
                f"weights are of type {type(weights).__name__}",
                hint="a folder's or a file's path, or a mapping of names to arrays such as a state dict's",
            )
        tensors = weights if isinstance(weights, Mapping) else open_weights(Path(weights))
        recipes = self.packing
        shapes, unused = check_weights(recipes, tensors)
        if unused:
            what = "tensor is" if len(unused) == 1 else "tensors are"
            warnings.warn(f"{len(unused)} {what} not used: {', '.join(unused)}", stacklevel=2)
        if device == "auto":
            device = "cuda:0" if PTX in self.files and _has_gpu() else "reference"
        reading = Reading(tensors, shapes, progress, check=device.startswith("reference"))
        if device in ("reference", "reference-bf16"):
            from tileir.codegen.recipe import check_engine
            from tileir.reference.session import ReferenceSession

            rounding = device != "reference"
            check_engine(self.engine_text, recipes)
            return ReferenceSession(self.engine_text, recipes, reading, rounding=rounding)
        kind, _, number = device.partition(":")
        if kind != "cuda" or not (number or "0").isdigit():
            raise _unknown(device)
        from tileir.runtime.session import CudaSession

        return CudaSession(self, reading, int(number or 0))


def _unknown(device: Any) -> DeviceError:
    return DeviceError(
        f"unknown device {device!r}",
        hint='devices: "auto", "cuda:N", "reference", "reference-bf16"',
    )


def _has_gpu() -> bool:
    from tileir.runtime.driver import device_count

    return device_count() > 0


def make_package(
    manifest: dict[str, Any], engine: str, packing: list[dict[str, Any]], ptx: str | None
) -> Package:
    """A package of these parts; hashes are added to the manifest."""
    files = {ENGINE: engine.encode(), PACKING: json.dumps(packing).encode()}
    if ptx is not None:
        files[PTX] = ptx.encode()
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    return Package({"schema": SCHEMA, **manifest, "hashes": hashes}, files)


def load_package(path: str | Path) -> Package:
    """Read a package, a zip file or a folder of its files; neither torch nor MLIR is imported.

    Raises PackageError for what is missing, damaged or of another schema, and for a packing recipe that is none.
    """
    path = Path(path)
    if not path.exists():
        raise PackageError(f"no package at {path}", hint="tileir compile MODEL -o PATH writes one")
    try:
        found = _read_folder(path) if path.is_dir() else _read_zip(path)
        if MANIFEST not in found:
            raise ValueError(f"it holds no {MANIFEST}")
        manifest = json.loads(found.pop(MANIFEST))
    except _UNREADABLE as error:
        said = error.strerror if isinstance(error, OSError) else error
        raise PackageError(
            f"{path} is no package: {said}",
            hint="name what `tileir compile MODEL -o PATH` wrote; if it is damaged, copy it again or compile it again",
        ) from None
    _check_schema(path, manifest)
    own = manifest["hashes"].pop(MANIFEST, None)
    if own != _own_hash(manifest):
        raise PackageError(
            f"{path}: {MANIFEST} is damaged: it is not what its own hash says", hint=_AGAIN
        )
    for name in (ENGINE, PACKING, *manifest["hashes"], *found):
        if name not in found:
            raise PackageError(f"{path}: {name} is missing", hint=_AGAIN)
        if hashlib.sha256(found[name]).hexdigest() != manifest["hashes"].get(name):
            raise PackageError(
                f"{path}: {name} is damaged: it is not what the manifest's hash says",
                hint=_AGAIN,
            )
    read_recipes(found[PACKING], manifest, f"{path}: {PACKING}")
    return Package(manifest, found)


def _manifest_text(manifest: dict[str, Any]) -> str:
    """The manifest as its file has it, with a hash of all the rest of it."""
    hashes = {**manifest["hashes"], MANIFEST: _own_hash(manifest)}
    return json.dumps({**manifest, "hashes": hashes}, indent=1)


def _own_hash(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _check_schema(path: Path, manifest: Any) -> None:
    """Raises PackageError for a manifest of another schema, or with parts missing."""
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if isinstance(schema, int) and schema > SCHEMA:
        raise PackageError(
            f"{path} has schema {schema}: a newer tileir wrote it; this version reads schema {SCHEMA}",
            hint="update tileir, or compile the model again with this version",
        )
    if schema != SCHEMA:
        raise PackageError(
            f"{path} has schema {schema}; this version reads schema {SCHEMA}",
            hint="compile the model again",
        )
    lacking = [name for name in _PARTS if name not in manifest]
    if lacking or not isinstance(manifest["hashes"], dict):
        raise PackageError(
            f"{path}: {MANIFEST} lacks {', '.join(lacking) or 'hashes'}", hint=_AGAIN
        )


def _read_folder(path: Path) -> dict[str, bytes]:
    names = (MANIFEST, *_KNOWN)
    return {n: (path / n).read_bytes() for n in names if (path / n).is_file()}


def _read_zip(path: Path) -> dict[str, bytes]:
    # Only known names are read, into memory: no entry can reach another file.
    with zipfile.ZipFile(path) as archive:
        present = set(archive.namelist())
        return {n: _member(archive, n) for n in (MANIFEST, *_KNOWN) if n in present}


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    try:
        return archive.read(name)
    except zlib.error as error:
        raise ValueError(f"{name}: {error}") from None
