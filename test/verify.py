"""Every seeded defect, many schedules, and random decoders: `make verify`, or `python -m test.verify --sample`.

Closes with what it counted. Exit status 1 if a defect escapes, a schedule differs, a correct schedule is rejected, or
a model is further off than the tolerance.
"""

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from typing import Any

from test import mutations
from test.false_alarms import alarm
from test.fuzz import Outcome, fuzz
from tileir.reference.explore import Exploration, explore
from tileir.target import TARGETS


@dataclass(frozen=True)
class Sizes:
    """How much is run: every so-manieth defect, schedules of each base module, and models."""

    every: int
    schedules: int
    alarms: int
    models: int


FULL, SAMPLE = Sizes(1, 160, 240, 220), Sizes(16, 6, 20, 20)
# More models may not be refused.
SHARE = 0.1


def main() -> int:
    """Run it all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", action="store_true", help="some of each, in three minutes")
    sizes = SAMPLE if parser.parse_args().sample else FULL
    failures: list[str] = []
    # Processes that start afresh: MLIR and torch have threads of their own.
    with ProcessPoolExecutor(2, get_context("spawn"), warnings.simplefilter, ("ignore",)) as pool:

        def ran(what: str, function: Callable[[Any], Any], over: Any) -> Iterator[tuple[Any, Any]]:
            """Results as they come; one that raises is a failure."""
            begin, futures = time.perf_counter(), [(x, pool.submit(function, x)) for x in over]
            for x, future in futures:
                try:
                    yield x, future.result()
                except Exception as error:
                    failures.append(f"{what} {x}: {type(error).__name__}: {error}")
            print(f"{what}: {len(futures)} in {time.perf_counter() - begin:.0f} s", flush=True)

        names = mutations.names()[:: sizes.every]
        verdicts = [v for _, v in ran("defects", mutations.judge, names)]
        failures += [f"nobody catches {v.name!r}" for v in verdicts if not v.caught]
        explored = [
            (base, e)
            for base, e in ran("base modules", partial(_explore, sizes.schedules), mutations.BASES)
        ]
        failures += [f"schedules of {base!r}: {e.failure}" for base, e in explored if e.failure]
        judged = [a for _, a in ran("verified decoders", alarm, range(sizes.alarms))]
        alarms = [message for _, message in judged if message]
        made = [o for _, o in ran("fuzzed models", _fuzz, range(sizes.models))]
    failures += alarms
    accepted = [a for a in judged if not a[0]]
    models = [o for o in made if not o.refused]
    for what, count, of in (
        ("decoders to verify", len(judged) - len(accepted), len(judged)),
        ("models to fuzz", len(made) - len(models), len(made)),
    ):
        print(f"refused with a clear error: {count} of {of} {what}")
        if count > SHARE * of:
            failures.append(f"{count} of {of} {what} are refused")
    print("\n".join(failures))
    print(
        f"mutations caught {sum(v.caught for v in verdicts)}/{len(names)}, "
        f"schedules explored {sum(e.schedules for _, e in explored)}, "
        f"false alarms {len(alarms)}/{len(accepted)}, fuzzed models {len(models)}"
    )
    return 1 if failures else 0


def _explore(schedules: int, base: str) -> Exploration:
    package, weights = mutations.compiled(base)
    requests = mutations.BASES[base].requests
    return explore(package.engine_text, package.packing, weights, requests, schedules)


def _fuzz(seed: int) -> Outcome:
    return fuzz(seed, TARGETS["h100"])


if __name__ == "__main__":
    sys.exit(main())
