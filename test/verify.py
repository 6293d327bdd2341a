"""Seeded defects, many schedules, random decoders, damaged files: `make verify`, or `python -m test.verify --sample`.

Closes with what it counted. Exit status 1 if a defect escapes, a schedule differs, a correct schedule is rejected, a
model is further off than the tolerance, fewer of any were run than wanted, or a parser does other than it should.
"""

import argparse
import subprocess
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
from test.decoders import decoders
from test.false_alarms import accept, cases
from test.fuzz import fuzz
from test.hunt import Hunt, hunt
from tileir.reference.explore import Exploration, explore
from tileir.target import TARGETS


@dataclass(frozen=True)
class Sizes:
    """How much is run: every so-manieth defect, schedules of the smallest base module and of each of the others, and
    models in each of two hunts. least: as many models of a hunt must not have been refused; profile: hypothesis's, for
    the tests of parsers.
    """

    every: int
    many: int
    schedules: int
    alarms: int
    models: int
    least: int
    profile: str


FULL = Sizes(1, 1000, 40, 125, 115, 200, "full")
SAMPLE = Sizes(16, 40, 4, 10, 10, 18, "default")
# Of the two processes' hunts.
SEEDS = (1000, 2000)
PARSERS = "test/runtime/test_fuzz.py"
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
        explored = list(ran("base modules", partial(_explore, sizes), mutations.BASES))
        failures += [f"schedules of {base!r}: {e.failure}" for base, e in explored if e.failure]
        alarms = _joined(ran("hunts for false alarms", partial(_alarms, sizes.alarms), SEEDS))
        models = _joined(ran("hunts for wrong models", partial(_models, sizes.models), SEEDS))
        parsers = [said for _, said in ran("tests of parsers", _parsers, [sizes.profile])]
        failures += [f"parsers: {said}" for said in parsers if said]
    failures += [*alarms.failures, *models.failures]
    for what, hunted in (("decoders to verify", alarms), ("models to fuzz", models)):
        print(f"refused with a clear error: {hunted.refused} of {hunted.ran} {what}")
        if hunted.refused > SHARE * hunted.ran:
            failures.append(f"{hunted.refused} of {hunted.ran} {what} are refused")
        if hunted.ran - hunted.refused < sizes.least:
            failures.append(f"{hunted.ran - hunted.refused} {what}, {sizes.least} are wanted")
    print("\n".join(failures))
    print(
        f"mutations caught {sum(v.caught for v in verdicts)}/{len(names)}, "
        f"schedules explored {sum(e.schedules for _, e in explored)}, "
        f"false alarms {len(alarms.failures)}/{alarms.ran - alarms.refused}, "
        f"fuzzed models {models.ran - models.refused}"
    )
    return 1 if failures else 0


def _explore(sizes: Sizes, base: str) -> Exploration:
    package, weights = mutations.compiled(base)
    requests = mutations.BASES[base].requests
    schedules = sizes.many if base == "small" else sizes.schedules
    return explore(package.engine_text, package.packing, weights, requests, schedules)


@dataclass(frozen=True)
class Joined:
    """Hunts together: different cases that ran without failure, those of them that were refused, and what failed."""

    ran: int
    refused: int
    failures: list[str]


def _joined(hunts: Iterator[tuple[int, Hunt]]) -> Joined:
    every = [hunted for _, hunted in hunts]
    refused = {case: why for hunted in every for case, why in hunted.outcomes.items()}
    return Joined(
        len(refused), sum(map(bool, refused.values())), [h.failure for h in every if h.failure]
    )


def _parsers(profile: str) -> str:
    """What pytest says if a test fails."""
    command = [sys.executable, "-m", "pytest", "-q", f"--hypothesis-profile={profile}", PARSERS]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout if done.returncode else ""


def _alarms(count: int, seed: int) -> Hunt:
    """outcomes: why a model was refused, or ""."""
    return hunt(cases(), accept, count, seed)


def _models(count: int, seed: int) -> Hunt:
    """Likewise."""
    return hunt(decoders(), lambda facts: fuzz(facts, TARGETS["h100"]).refused, count, seed)


if __name__ == "__main__":
    sys.exit(main())
