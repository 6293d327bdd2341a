"""The numerics gate: how far a compiled package's values lie from those of its fp32 execution, stage by stage.

The exact side is the package's engine module on the reference device, in fp32. The checked side is the same module with
the kernel's rounding, or the kernel on a GPU. Errors compound from stage to stage; the table shows where they jump.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from tileir.package import Package
from tileir.stages import CANDIDATES, CHOICES, Stage, scales
from tileir.tools.exact import Exact, Weights
from tileir.tools.measure import Measured, measure

# Two logits may change places if they are nearer than so many root mean squares of the position's errors.
SWAP = 6.0


@dataclass(frozen=True)
class Bounds:
    """What passes. stage, logit: the largest error, of the largest magnitude beside it. kl: mean over positions, nats.

    top1: positions whose top token differs although rounding does not explain it.
    """

    stage: float = 0.1
    logit: float = 0.1
    kl: float = 0.01
    top1: int = 0


@dataclass(frozen=True)
class StageError:
    """A stage's errors over all positions that were looked at, of the largest magnitude in its channel in the step.

    position: of the largest. Of choices, max and mean are shares of those that differ.
    """

    stage: Stage
    max: float
    mean: float
    position: int


@dataclass(frozen=True)
class LogitError:
    """Errors of logits, of the position's largest: max and mean; KL(exact ‖ checked) in nats, mean and largest.

    differ: positions whose top token differs; unexplained: those where rounding does not explain it.
    """

    positions: int
    max: float
    mean: float
    kl: float
    largest_kl: float
    differ: int
    unexplained: int


@dataclass(frozen=True)
class Report:
    """What a check has found. positions: at which stages were compared. failures: none if it has passed."""

    device: str
    positions: list[int]
    stages: list[StageError]
    logits: LogitError
    bounds: Bounds
    failures: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether all is within bounds."""
        return not self.failures

    def json(self) -> dict[str, Any]:
        """All of it, ready for JSON; what is no number is None."""
        found = asdict(self) | {"passed": self.passed}
        return dict(_finite(found))

    def table(self, *, every: bool = False) -> str:
        """Stages that share a body in a line, or every row in one; then logits, and what has failed."""
        where = ", ".join(map(str, self.positions))
        lines = [f"{self.device} against fp32; stages at positions {where}"]
        lines.append(f"{'stage':34}{'rows':>5}{'max':>11}{'mean':>11}  worst")
        groups: dict[str, list[StageError]] = {}
        for e in self.stages:
            key = str(e.stage) if every else f"{e.stage.body} {e.stage.kind}"
            groups.setdefault(key, []).append(e)
        lines += [_line(found) for found in groups.values()]
        g, b = self.logits, self.bounds
        lines += [
            f"{'logits':34}{g.positions:5}{g.max:11.2e}{g.mean:11.2e}  bound {b.logit:g}; stages' {b.stage:g}",
            f"KL(exact ‖ checked) {g.kl:.2e} nats, largest {g.largest_kl:.2e}; bound {b.kl:g}",
            f"top-1 agrees at {g.positions - g.differ} of {g.positions} positions; "
            f"{g.unexplained} of the others not by rounding, bound {b.top1}",
            *(f"FAILED: {failure}" for failure in self.failures),
            *(["passed"] if self.passed else []),
        ]
        return "\n".join(lines)


def check_package(
    package: Package, weights: Weights, device: str, exact: Exact, bounds: Bounds
) -> Report:
    """Run a package's exact ids on a device, "reference-bf16" or "cuda:N", and compare.

    Raises PackageError for weights that do not fit or a package without a kernel for the GPU, DeviceError, DeviceHang.
    """
    with closing(package.load(weights, device)) as session:
        name = session.device
        checked = measure(session, exact.ids, exact.found.parts)
    return compare(exact.found, checked, bounds, name)


def compare(exact: Measured, checked: Measured, bounds: Bounds, device: str) -> Report:
    """What two sides of the same ids differ in, and whether it is within bounds."""
    errors = _stage_errors(exact, checked)
    logits = _logit_error(exact.logits, checked.logits)
    failures = [
        *_not_numbers(exact, "the exact side"),
        *_not_numbers(checked, device),
        *_stale(checked),
        *_beyond(errors, bounds),
        *_bad_logits(logits, bounds),
        *_bad_choices(checked),
    ]
    return Report(
        device,
        sorted({p for p, _ in exact.parts}),
        _of_all_positions(errors),
        logits,
        bounds,
        failures,
    )


# ---- stages


Errors = Mapping[tuple[int, Stage], tuple[float, float]]


def _stage_errors(exact: Measured, checked: Measured) -> Errors:
    """(max, mean) of every part, but candidates and stale ones."""
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
            differ = np.abs(other.values.astype(np.float64) - part.values) / scale
        found[position, stage] = float(differ.max()), float(differ.mean())
    return found


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
                f"{name}: {stage} publishes {bad} of {len(part.values)} values that are NaN or infinite at "
                f"position {position}, the first stage that does"
            )
            return
    (rows,) = np.nonzero(~np.isfinite(side.logits).all(1))
    if len(rows):
        yield f"{name}: logits at position {rows[0]} are NaN or infinite"


def _stale(checked: Measured) -> Iterator[str]:
    for (position, stage), what in list(checked.stale.items())[:1]:
        more = f"; {len(checked.stale) - 1} more" if len(checked.stale) > 1 else ""
        yield f"{stage} has not published all of position {position}: {what}{more}"


def _beyond(errors: Errors, bounds: Bounds) -> Iterator[str]:
    """The first stage whose error is too large."""
    for (position, stage), (error, _) in errors.items():
        if stage.kind != CHOICES and not error <= bounds.stage:
            yield (
                f"{stage} is the first stage beyond the bound, at position {position}: error {error:.2e}, "
                f"bound {bounds.stage:g}"
            )
            return


def _bad_logits(found: LogitError, bounds: Bounds) -> Iterator[str]:
    if not found.max <= bounds.logit:
        yield f"logits: error {found.max:.2e}, bound {bounds.logit:g}"
    if not found.kl <= bounds.kl:
        yield f"KL {found.kl:.2e} nats, bound {bounds.kl:g}"
    if found.unexplained > bounds.top1:
        yield f"top-1 differs at {found.unexplained} positions not by rounding, bound {bounds.top1}"


def _bad_choices(checked: Measured) -> Iterator[str]:
    """The token that SMs agree on from their candidates is that of the largest logit."""
    for position in sorted({p for p, s in checked.parts if s.kind == CANDIDATES}):
        offers = [
            part.values.astype(np.int64).reshape(-1, 2)
            for (p, s), part in checked.parts.items()
            if p == position and s.kind == CANDIDATES
        ]
        key, token = min(np.concatenate(offers).tolist(), key=lambda one: (-one[0], one[1]))
        best = int(checked.logits[position].argmax())
        if token != best:
            yield f"position {position}: SMs choose token {token} (key {key}), the largest logit is {best}'s"
            return


# ---- text


def _line(found: Sequence[StageError]) -> str:
    """Rows as one: the largest error, the mean of means, the row of the largest."""
    worst = max(found, key=lambda e: np.nan_to_num(e.max, nan=np.inf))
    s = worst.stage
    what = f"{s.body} {found[0].stage.channel}" + ("" if s.kind != CHOICES else ", choices")
    if len(found) > 1:
        what += " …"
    mean = float(np.mean([e.mean for e in found]))
    gpu = f" of GPU {s.gpu}" if s.gpu else ""
    return (
        f"{what:34}{len(found):5}{worst.max:11.2e}{mean:11.2e}  row {s.row}{gpu} ({s.channel}), "
        f"position {worst.position}"
    )


def _finite(found: Any) -> Any:
    """With None instead of what JSON has no number for."""
    if isinstance(found, dict):
        return {name: _finite(value) for name, value in found.items()}
    if isinstance(found, list):
        return [_finite(value) for value in found]
    return None if isinstance(found, float) and not np.isfinite(found) else found
