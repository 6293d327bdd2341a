"""What a numerics check has found: figures, a table of them, JSON."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from tileir.errors import TileirError
from tileir.stages import CHOICES, Stage
from tileir.tools.bounds import Bounds


@dataclass(frozen=True)
class StageError:
    """A stage's errors over positions, of the largest magnitude in its channel in the step.

    position: of the largest error. Of choices, max and mean are shares of those that differ.
    """

    stage: Stage
    max: float
    mean: float
    position: int


@dataclass(frozen=True)
class LogitError:
    """Errors of logits, of the position's largest, and KL(exact ‖ checked) in nats.

    differ: positions whose best token differs; unexplained: those of them where rounding does not explain it.
    """

    positions: int
    max: float
    mean: float
    kl: float
    largest_kl: float
    differ: int
    unexplained: int


@dataclass(frozen=True)
class Rise:
    """Where the mean error, over positions, grows most: `times` that of all rows before, of rounding at least."""

    stage: Stage
    times: float


@dataclass(frozen=True)
class Report:
    """positions: at which stages were compared. logits, rise: None if there are none to judge.

    parting: the first place where a select chose otherwise, if one did; what lies behind has other inputs: it is not in
    any figure but `stages` of choices. failures: none if the check has passed.
    """

    device: str
    positions: list[int]
    stages: list[StageError]
    logits: LogitError | None
    rise: Rise | None
    parting: tuple[int, Stage] | None
    bounds: Bounds
    failures: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether all is within bounds."""
        return not self.failures

    def refuse(self) -> None:
        """Raises TileirError, with all failures, if there are any."""
        if self.failures:
            raise TileirError(
                "; ".join(self.failures),
                hint="errors compound: look at the first stage named and at where they rise; --all lists every row",
            )

    def json(self) -> dict[str, Any]:
        """All of it, ready for JSON; what is no number is None."""
        return dict(_finite(asdict(self) | {"passed": self.passed}))

    def table(self, *, every: bool = False) -> str:
        """Stages that share a body in a line, or every row in one; then logits."""
        where = ", ".join(map(str, self.positions))
        lines = [
            f"{self.device} against fp32; stages at positions {where}, bound {self.bounds.stage:g}"
        ]
        lines.append(f"{'stage':34}{'rows':>5}{'max':>11}{'mean':>11}  worst")
        groups: dict[Any, list[StageError]] = {}
        for error in self.stages:
            key = error.stage if every else (error.stage.body, error.stage.kind)
            groups.setdefault(key, []).append(error)
        lines += [_line(found) for found in groups.values()]
        if self.logits is not None:
            lines += _logit_lines(self.logits, self.bounds)
        if self.rise is not None:
            r = self.rise
            lines.append(
                f"errors rise most at {r.stage}: {r.times:.1f} times, bound {self.bounds.rise:g}"
            )
        if self.parting is not None:
            position, stage = self.parting
            lines.append(
                f"choices part at {stage}, position {position}; behind it nothing is judged"
            )
        return "\n".join([*lines, "passed" if self.passed else "failed"])


def _line(found: Sequence[StageError]) -> str:
    """Rows as one: the largest error, the mean of means, the row of the largest."""
    worst = max(found, key=lambda e: np.nan_to_num(e.max, nan=np.inf))
    s, first = worst.stage, found[0].stage
    what = f"{first.body} {first.channel}{' …' * (len(found) > 1)}"
    what += ", differ" if s.kind == CHOICES else ""
    mean = float(np.mean([e.mean for e in found]))
    return f"{what:34}{len(found):5}{worst.max:11.2e}{mean:11.2e}  {s}, position {worst.position}"


def _logit_lines(found: LogitError, bounds: Bounds) -> list[str]:
    agree = found.positions - found.differ
    return [
        f"{'logits':34}{found.positions:5}{found.max:11.2e}{found.mean:11.2e}  bound {bounds.logit:g}",
        f"KL(exact ‖ checked) {found.kl:.2e} nats, bound {bounds.kl:g}; largest {found.largest_kl:.2e}",
        f"top-1 agrees at {agree} of {found.positions} positions; {found.unexplained} of the others "
        f"not by rounding, bound {bounds.top1}",
    ]


def _finite(found: Any) -> Any:
    """With None instead of what JSON has no number for."""
    if isinstance(found, dict):
        return {name: _finite(value) for name, value in found.items()}
    if isinstance(found, list | tuple):
        return [_finite(value) for value in found]
    return None if isinstance(found, float) and not np.isfinite(found) else found
