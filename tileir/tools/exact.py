"""What a package computes in fp32, to compare a device with; a file carries it to a GPU without MLIR beside it."""

import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from tileir.errors import TileirError
from tileir.package import ENGINE, PACKING, Package
from tileir.prompt import check_prompt
from tileir.runtime.weights import open_weights
from tileir.runtime.weights_check import check_weights
from tileir.stages import Part, Stage, fact_of
from tileir.tools.measure import Measured, measure
from tileir.tools.text import load_tokenizer

Weights = Path | Mapping[str, Any]
POSITIONS = 24
SAMPLED = 4096  # values of each tensor that its fingerprint has
_UNREADABLE = (
    *(OSError, ValueError, KeyError, IndexError, TypeError, EOFError, AttributeError),
    *(zipfile.BadZipFile, zlib.error),
)


@dataclass(frozen=True)
class Exact:
    """A package's fp32 side.

    package, weights: fingerprints of what it was computed with. ids: those that were forced.
    """

    package: str
    weights: str
    ids: list[int]
    found: Measured

    def save(self, path: Path) -> None:
        """As a NumPy archive: logits and values in f32, and facts as JSON."""
        parts = self.found.parts
        facts = {
            "package": self.package,
            "weights": self.weights,
            "ids": self.ids,
            "parts": [[p, len(parts[p, s].index), *fact_of(s)] for p, s in parts],
        }
        with path.open("wb") as stream:
            np.savez_compressed(
                stream,
                facts=np.array(json.dumps(facts)),
                logits=self.found.logits,
                index=np.concatenate([p.index.astype(np.int32) for p in parts.values()]),
                values=np.concatenate([p.values.astype(np.float32) for p in parts.values()]),
            )


def ids_of(package: Package, text: str | None, folder: Path, positions: int | None) -> list[int]:
    """The ids to force: of a text, or of the file that it names, with a folder's tokenizer; else without a pattern.

    Raises TileirError if they are more than the context, or the text has fewer than `positions`.
    """
    m = package.manifest
    if text is None:
        count = min(POSITIONS, m["context"]) if positions is None else positions
        # Ids without a pattern, the same ones each time.
        ids = np.random.default_rng(0).integers(m["vocabulary"], size=count).tolist()
        return check_prompt(ids, 0, m["vocabulary"], m["context"])
    if os.path.isfile(text):
        text = Path(text).read_text(encoding="utf-8")
    ids = load_tokenizer(folder).encode(text).ids
    if positions is not None and len(ids) < positions:
        raise TileirError(
            f"the text has {len(ids)} tokens, not {positions}",
            hint="name a longer --text or fewer --positions",
        )
    return check_prompt(ids[:positions], 0, m["vocabulary"], m["context"])


def exact_of(package: Package, weights: Weights, ids: Sequence[int]) -> Exact:
    """Run a package on the reference device in fp32. Raises as Package.load and Session.logits do."""
    with closing(package.load(weights, "reference")) as session:
        found = measure(session, ids, {})
    return Exact(_package_hash(package), _weights_hash(package, weights), list(ids), found)


def load_exact(path: Path, package: Package, weights: Weights) -> Exact:
    """What `Exact.save` has written. Raises TileirError if it is not that, or of another package or other weights."""
    hint = "tileir check PACKAGE --weights WEIGHTS --save-exact FILE writes one"
    try:
        with np.load(path) as held:
            facts = json.loads(str(held["facts"]))
            found = _found(facts["parts"], held["index"], held["values"], held["logits"])
        if len(found.logits) != len(facts["ids"]):
            raise ValueError(f"logits of {len(found.logits)} of {len(facts['ids'])} ids")
        exact = Exact(facts["package"], facts["weights"], facts["ids"], found)
    except _UNREADABLE as error:
        raise TileirError(f"{path} holds no exact values: {error}", hint=hint) from None
    if exact.package != _package_hash(package):
        raise TileirError(f"{path} holds the exact values of another package", hint=hint)
    if exact.weights != _weights_hash(package, weights):
        raise TileirError(f"{path} holds the exact values of other weights", hint=hint)
    return exact


def _found(keys: list[list[Any]], index: Any, values: Any, logits: Any) -> Measured:
    parts, at = {}, 0
    for position, length, *fact in keys:
        behind = at + length
        parts[position, Stage(*fact)] = Part(index[at:behind], values[at:behind])
        at = behind
    if len(index) != at or len(values) != at:
        raise ValueError(f"{len(values)} values instead of {at}")
    return Measured(logits, parts, {})


def _package_hash(package: Package) -> str:
    """Of what decides the values: the engine module and the packing recipe."""
    hashes = package.manifest["hashes"]
    return hashlib.sha256(f"{hashes[ENGINE]} {hashes[PACKING]}".encode()).hexdigest()


def _weights_hash(package: Package, weights: Weights) -> str:
    """Of every tensor that the package uses: its name, its size, and SAMPLED values from all over it."""
    tensors = weights if isinstance(weights, Mapping) else open_weights(weights)
    found = hashlib.sha256()
    for name, shape in sorted(check_weights(package.packing, tensors)[0].items()):
        size = prod(shape)
        places = np.linspace(0, size - 1, min(SAMPLED, size)).astype(np.int64)
        sample = np.asarray(np.asarray(tensors[name]).reshape(-1)[places], np.float32)
        found.update(f"{name} {size} ".encode() + sample.tobytes())
    return found.hexdigest()
