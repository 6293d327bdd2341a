"""Fitting to the GPU at hand: a package's launch parameters, and a target's measured figures. No compiler is needed."""

from collections.abc import Hashable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tileir.errors import DeviceError, PackageError, TileirError
from tileir.package import Package
from tileir.scheduling.assign import used_splits
from tileir.target import Target, target_text
from tileir.tools.drawn import named_or_drawn
from tileir.tools.search import STEPS, Found, Space, Timed, search

CHECKED = 128  # forced tokens
# By which a position's logits may differ: root mean square over that of logits. Sums in another order round otherwise,
# which a deep model of drawn weights makes much of; what has nothing to do with them differs by 1.4.
TOLERANCE = 0.5


class Tunable(Timed, Protocol):
    """A session that is timed, and says logits."""

    def logits(self, ids: Any) -> np.ndarray:
        """Logits of every position, [len(ids), vocabulary] f32."""


@dataclass(frozen=True)
class Tuned:
    """A package with the best launch parameters that were found, and how."""

    package: Package
    found: Found
    seconds: float

    def table(self) -> str:
        """Every value that was timed, and what has become of the step."""
        f = self.found
        lines = [f"{'parameter':14}{'value':>9}{'ms':>10}{'gain, µs':>11}{'noise, µs':>11}"]
        for t in f.trials:
            kept = "  kept" if t.kept else ""
            lines.append(
                f"{t.name:14}{t.value:9}{t.ms:10.4f}{t.gain * 1e3:11.2f}{t.noise * 1e3:11.2f}{kept}"
            )
        launch = ", ".join(f"{name} {value}" for name, value in f.launch.items())
        lines.append(f"{f.first_ms:.4f} → {f.ms:.4f} ms a step with {launch}")
        if not f.finished:
            lines.append(f"{self.seconds:g} seconds did not suffice for all: --seconds gives more")
        return "\n".join(lines)


def tune_package(
    package: Package, weights: Path | None, device: str, seconds: float, position: int
) -> Tuned:
    """The package with the launch parameters that are best for one GPU, at a position.

    weights: None for drawn ones. seconds: of the search, after loading. Raises PackageError for a package without
    kernel or launch parameters, DeviceError, and TileirError for a position that the context does not hold, too little
    time, or parameters that change what the model says.
    """
    m = package.manifest
    _ = package.ptx
    if not m.get("launch") or not m.get("launch_limits"):
        raise PackageError(
            "the package has no launch parameters", hint="compile it again with this version"
        )
    if position + STEPS > m["context"]:
        last = m["context"] - STEPS
        hint = f"name a --position of 0 … {last}" if last >= 0 else "compile with more"
        raise TileirError(
            f"{STEPS} steps from position {position} pass the context of {m['context']}", hint=hint
        )
    index = gpu_index(device)
    held = named_or_drawn(package, weights)
    with closing(package.load(held, f"cuda:{index}")) as session:
        return tune_session(package, session, seconds, position)  # type: ignore[arg-type]  # a CudaSession


def tune_session(package: Package, session: Tunable, seconds: float, position: int) -> Tuned:
    """As tune_package, on a session of the package that is loaded."""
    m = package.manifest
    # Ids without a pattern, the same ones each time.
    ids = np.random.default_rng(0).integers(m["vocabulary"], size=min(CHECKED, m["context"]))
    before = session.logits(ids.tolist())
    found = search(session, launch_space(package, position), seconds, position)
    after = session.logits(ids.tolist())
    _check_same(before, after, found.launch)
    return Tuned(replace(package, manifest=m | {"launch": found.launch}), found, seconds)


def launch_space(package: Package, position: int) -> Space:
    """The launches of a package that differ in STEPS steps from a position on.

    Attention's parameters do nothing where a split takes all old rows alone, whatever the parameter, and of both
    windows the narrower one counts while a ring is fed (loaders.py).
    """
    m = package.manifest
    caches = [row["cache"] for row in m["row_reads"][0] if "cache" in row]
    split = sorted({(c["bytes"], c["most"], c["splits"]) for c in caches if c["splits"] > 1})

    def acts(launch: dict[str, int]) -> Hashable:
        others = {
            n: v for n, v in launch.items() if n not in ("alone_bytes", "split_bytes", "splits")
        }
        others["fed_window"] = min(others["fed_window"], others["tape_window"])
        found = []
        for size, most, splits in split:
            old = [min(at, most) for at in range(position, position + STEPS)]
            alone = sum(rows * size <= launch["alone_bytes"] for rows in old)
            limits = min(launch["splits"], splits), 0, launch["split_bytes"]
            used = tuple(used_splits(rows * size, *limits) for rows in old)
            found.append((alone, used if alone < STEPS else ()))
        return *others.items(), *found

    return Space(m["launch_limits"], m["launch_constants"], acts)


def measure_target(path: Path, base: Target, device: str) -> str:
    """The text of a target's file for a GPU, `base` saying what is not measured.

    Raises TileirError for a path that no target's file can have, and as tileir.runtime.probes.measure does.
    """
    if path.suffix != ".json":
        raise TileirError(f"{path} is no name of a target's file", hint="name it *.json")
    index = gpu_index(device)
    from tileir.runtime.probes import measure

    return target_text(measure(base, index))


def gpu_index(device: str) -> int:
    """N of "cuda:N". Raises DeviceError for another device."""
    kind, _, number = device.partition(":")
    if kind != "cuda" or not (number or "0").isdecimal():
        raise DeviceError(f"device {device!r} cannot be timed", hint="a GPU can: cuda:N")
    return int(number or 0)


def _check_same(before: np.ndarray, after: np.ndarray, launch: dict[str, int]) -> None:
    """Raises TileirError unless logits are the same within TOLERANCE at every position, and numbers."""
    change, size = (np.square(a, dtype=np.float64).mean(-1) for a in (after - before, before))
    error = float(np.sqrt(change / size).max())
    if not error <= TOLERANCE:
        found = ", ".join(f"{name} {value}" for name, value in launch.items())
        raise TileirError(
            f"with {found} logits differ by {error:.2g} of their size; nothing is saved",
            hint="these parameters must not change what a model says: please report it with the package's model",
        )
