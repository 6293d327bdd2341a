"""One check over many random cases, the same ones every time, and the smallest that fails."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

# Of one seed: what it draws later is much like what it drew before.
EXAMPLES = 8


@dataclass
class Hunt:
    """What ran. outcomes: what the check said of each case, all different; failure: the smallest that fails, or ""."""

    outcomes: dict[Any, Any] = field(default_factory=dict)
    failure: str = ""


def hunt(
    cases: SearchStrategy[Any], check: Callable[[Any], Any], count: int, first: int = 0
) -> Hunt:
    """Check `count` different cases, or up to the first for which it raises, which then is made as small as it goes.

    first: the seed. One seed gives EXAMPLES cases at most, so seeds go on until there are enough.
    """
    found = Hunt()
    start = first
    while len(found.outcomes) < count and not found.failure:
        assert start < first + count, f"{count} different cases are not there"
        _run(cases, check, count, start, found)
        start += 1
    return found


def _run(
    cases: SearchStrategy[Any], check: Callable[[Any], Any], count: int, start: int, found: Hunt
) -> None:
    failed: dict[Any, str] = {}

    @seed(start)
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        print_blob=False,
    )
    @given(cases)
    def one(case: Any) -> None:
        if case in found.outcomes or (len(found.outcomes) >= count and not failed):
            return
        try:
            found.outcomes[case] = check(case)
        except Exception as error:
            failed[case] = f"{case}: {type(error).__name__}: {error}"
            raise

    try:
        one()
    except Exception:
        # The last that failed is the smallest.
        assert failed
        found.failure = list(failed.values())[-1]
