"""A sample of the seeded defects is caught as docs/mutations.md says."""

import re

import pytest

from test.mutation_table import PATH, line
from test.mutations import MODULE, compiled, judge, names, verified
from test.protocol_defects import PROTOCOL

# Every fourth, without those that no schedule shows: they take all schedules.
LINES = [text for text in PATH.read_text().split("\n") if text.startswith("| ")]
QUICK = [
    n for n in names() if any(t.startswith(f"| {n} |") and not t.endswith("| – |") for t in LINES)
]


def test_the_table_has_every_defect() -> None:
    found = [text.split(" | ")[0].removeprefix("| ") for text in LINES]
    assert [n for n in found if n != "defect"] == names()
    assert not MODULE.keys() & PROTOCOL.keys()


@pytest.mark.parametrize("name", QUICK[::4])
def test_a_sample_of_the_table(name: str) -> None:
    verdict = judge(name)
    assert verdict.caught
    assert line(verdict) in LINES


# One operation is at fault with the target, or with what an address must be.
ALONE = ("a packet across words", "more blocks than SMs")


@pytest.mark.parametrize("name", MODULE)
def test_the_verifier_rejects(name: str) -> None:
    """Each message has a place in the IR, an example, the missing edge, and both offenders with their places."""
    base, edit = MODULE[name]
    proof, message = verified(base, edit(compiled(base)[0].engine_text))
    assert proof
    assert re.match(
        r"-:\d+:\d+: .*; for example (row \d+ .*, )?SM \d+, step \d+\n  missing: ", message
    )
    offenders = re.findall(r"\n  (.+) is at -:\d+:\d+", message)
    assert len(offenders) >= 2 or name in ALONE
