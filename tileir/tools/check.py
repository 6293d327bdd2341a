"""The numerics gate: how far a compiled package's values lie from those of its fp32 execution, stage by stage.

The exact side is the package's engine module on the reference device, in fp32. The checked side is the same module with
the kernel's rounding, or the kernel on a GPU. Errors compound from stage to stage; the report shows where they jump.
"""

from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any

import numpy as np

from tileir.errors import DeviceError
from tileir.package import Package
from tileir.runtime.driver import Device
from tileir.stages import CANDIDATES, CHOICES, VALUES, Stage, scales
from tileir.tools.bounds import Bounds
from tileir.tools.check_report import LogitError, Report, Rise, StageError
from tileir.tools.exact import Exact, Weights
from tileir.tools.measure import Measured, measure

# Two logits may change places if they are nearer than so many root mean squares of the position's errors.
SWAP = 6.0
# A mean error below that of rounding to bf16 is no beginning of a rise.
FLOOR = 2.0**-9
Place = tuple[int, Stage]
Errors = Mapping[Place, tuple[float, float]]


def check_device(package: Package, device: str) -> None:
    """Raises DeviceError or PackageError, before minutes of work, for a device that cannot be checked."""
    if device == "reference-bf16":
        return
    kind, _, number = device.partition(":")
    if kind != "cuda" or not (number or "0").isdecimal():
        raise DeviceError(
            f"device {device!r} cannot be checked", hint="devices: reference-bf16, cuda:N"
        )
    _ = package.ptx
    Device(int(number or 0)).close()


def check_package(
    package: Package, weights: Weights, device: str, exact: Exact, bounds: Bounds
) -> Report:
    """Run a package's exact ids on a device, "reference-bf16" or "cuda:N", and compare.

    Raises PackageError for weights that do not fit or a package without kernel, DeviceError, DeviceHang.
    """
    with closing(package.load(weights, device)) as session:
        name = session.device
        checked = measure(session, exact.ids, exact.found.parts)
    return compare(exact.found, checked, bounds, name)


def compare(exact: Measured, checked: Measured, bounds: Bounds, device: str) -> Report:
    """What two sides of the same ids differ in, and whether it is within bounds."""
    every = _errors(exact, checked)
    parting = next((p for p, (error, _) in every.items() if p[1].kind == CHOICES and error), None)
    values = {place: e for place, e in every.items() if place[1].kind != CHOICES}
    judged = {place: e for place, e in values.items() if _before(place, parting)}
    until = len(exact.logits) if parting is None else parting[0]
    logits = _logit_error(exact.logits[:until], checked.logits[:until]) if until else None
    stages = _of_all_positions(judged)
    rise = _rise(stages)
    choices = {place: e for place, e in every.items() if place[1].kind == CHOICES}
    failures = [
        *_not_numbers(exact, "the exact side"),
        *_not_numbers(checked, device),
        *_stale(checked),
        *_steep(rise, bounds),
        *_beyond(judged, bounds),
        *_bad_logits(logits, bounds),
        *_bad_choices(choices, bounds),
        *_bad_tokens(checked),
    ]
    return Report(
        device=device,
        positions=sorted({p for p, s in exact.parts if s.kind == VALUES}),
        stages=sorted([*stages, *_of_all_positions(choices)], key=lambda e: e.stage),
        logits=logits,
        rise=rise,
        parting=parting,
        bounds=bounds,
        failures=failures,
    )


# ---- stages


def _errors(exact: Measured, checked: Measured) -> dict[Place, tuple[float, float]]:
    """(max, mean) of every part but candidates and stale ones, in the order in which they were computed."""
    largest, found = scales(exact.parts), {}
    for (position, stage), part in exact.parts.items():
        if stage.kind == CANDIDATES or (position, stage) in checked.stale:
            continue
        other = checked.parts[position, stage]
        assert np.array_equal(part.index, other.index), f"{stage} at {position}: other values"
        if stage.kind == CHOICES:
            differ = np.isin(part.values, other.values, invert=True).astype(np.float64)
        else:
            scale = largest[position, stage.gpu, stage.channel] or 1.0
            with np.errstate(invalid="ignore"):
                differ = np.abs(other.values.astype(np.float64) - part.values) / scale
        found[position, stage] = float(differ.max()), float(differ.mean())
    return found


def _before(place: Place, parting: Place | None) -> bool:
    """Whether a part was computed before choices parted: GPUs run the rows of a step side by side."""
    if parting is None or place[0] < parting[0]:
        return True
    return place[0] == parting[0] and place[1].row < parting[1].row


def _of_all_positions(errors: Errors) -> list[StageError]:
    """In the order of the table."""
    by_stage: dict[Stage, dict[int, tuple[float, float]]] = {}
    for (position, stage), error in errors.items():
        by_stage.setdefault(stage, {})[position] = error
    found = []
    for stage in sorted(by_stage):
        mine = by_stage[stage]
        worst = max(mine, key=lambda p: np.nan_to_num(mine[p][0], nan=np.inf))
        mean = float(np.mean([m for _, m in mine.values()]))
        found.append(StageError(stage, mine[worst][0], mean, worst))
    return found


def _rise(stages: list[StageError]) -> Rise | None:
    """Rows in order; what is no number is an endless rise. Scores count by what is chosen from them."""
    found: Rise | None = None
    most = FLOOR
    for error in sorted(stages, key=lambda e: (e.stage.row, e.stage.gpu)):
        if error.stage.kind != VALUES:
            continue
        mean = error.mean if np.isfinite(error.mean) else np.inf
        if found is None or mean / most > found.times:
            found = Rise(error.stage, mean / most)
        if mean == np.inf:
            break
        most = max(most, mean)
    return found


# ---- logits


def _logit_error(exact: np.ndarray, checked: np.ndarray) -> LogitError:
    """A position at a time: vocabularies are large."""
    largest, means, kls, differ, unexplained = [], [], [], 0, 0
    for true, ours in zip(exact.astype(np.float64), checked.astype(np.float64), strict=True):
        with np.errstate(all="ignore"):
            error, scale = np.abs(ours - true), np.abs(true).max() or 1.0
            p, q = _log_softmax(true), _log_softmax(ours)
            kls.append(float(np.sum(np.exp(p) * (p - q))))
        largest.append(error.max() / scale)
        means.append(error.mean() / scale)
        best, chosen = int(true.argmax()), int(ours.argmax())
        gap = true[best] - true[chosen]
        differ += best != chosen
        unexplained += best != chosen and not gap <= SWAP * np.sqrt(np.mean(error**2))
    return LogitError(
        positions=len(exact),
        max=float(np.max(largest)),
        mean=float(np.mean(means)),
        kl=float(np.mean(kls)),
        largest_kl=float(np.max(kls)),
        differ=differ,
        unexplained=unexplained,
    )


def _log_softmax(row: np.ndarray) -> Any:
    row = row - row.max()
    return row - np.log(np.exp(row).sum())


# ---- what fails


def _not_numbers(side: Measured, name: str) -> Iterator[str]:
    """The first stage that publishes NaN or infinity, or the first position whose logits have some."""
    for (position, stage), part in side.parts.items():
        bad = np.count_nonzero(~np.isfinite(part.values))
        if bad:
            yield (
                f"{name}: {stage} is the first stage with NaN or infinity, {bad} of {len(part.values)} values "
                f"at position {position}"
            )
            return
    (rows,) = np.nonzero(~np.isfinite(side.logits).all(1))
    if len(rows):
        yield f"{name}: logits at position {rows[0]} are NaN or infinite"


def _stale(checked: Measured) -> Iterator[str]:
    for (position, stage), what in list(checked.stale.items())[:1]:
        more = f"; so are {len(checked.stale) - 1} more" if len(checked.stale) > 1 else ""
        yield f"{stage} has not published all of position {position}: {what}{more}"


def _beyond(errors: Errors, bounds: Bounds) -> Iterator[str]:
    for (position, stage), (error, _) in errors.items():
        if stage.kind == VALUES and not error <= bounds.stage:
            yield (
                f"{stage} is the first stage beyond its bound, at position {position}: error {error:.2e}, "
                f"bound {bounds.stage:g}"
            )
            return


def _steep(rise: Rise | None, bounds: Bounds) -> Iterator[str]:
    if rise is not None and not rise.times <= bounds.rise:
        yield (
            f"errors rise {rise.times:.3g} times at {rise.stage}, beside all rows before, bound {bounds.rise:g}"
        )


def _bad_logits(found: LogitError | None, bounds: Bounds) -> Iterator[str]:
    if found is None:
        yield "choices part at position 0: no logits can be judged"
        return
    if not found.max <= bounds.logit:
        yield f"logits: error {found.max:.2e}, bound {bounds.logit:g}"
    if not found.kl <= bounds.kl:
        yield f"KL {found.kl:.2e} nats, bound {bounds.kl:g}"
    if found.unexplained > bounds.top1:
        yield f"top-1 differs at {found.unexplained} positions not by rounding, bound {bounds.top1}"


def _bad_choices(choices: Errors, bounds: Bounds) -> Iterator[str]:
    share = float(np.mean([mean for _, mean in choices.values()])) if choices else 0.0
    if share > bounds.choices:
        yield f"{share:.0%} of what selects choose differs, bound {bounds.choices:.0%}"


def _bad_tokens(checked: Measured) -> Iterator[str]:
    """What all SMs offer as the best token is what the logits say."""
    offers: dict[int, list[list[int]]] = {}
    for (position, stage), part in checked.parts.items():
        if stage.kind == CANDIDATES:
            words = part.values.astype(np.int64).reshape(-1, 2).tolist()
            offers.setdefault(position, []).extend(words)
    for position, pairs in offers.items():
        token = min(pairs, key=lambda one: (-one[0], one[1]))[1]
        best = int(checked.logits[position].argmax())
        if token != best:
            yield f"token {token} is chosen at position {position}, the largest logit is {best}'s"
            return
