"""A sample of the seeded defects is caught as docs/mutations.md says."""

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


@pytest.mark.parametrize("name", MODULE)
def test_the_verifier_rejects(name: str) -> None:
    """Each names what is missing."""
    base, edit = MODULE[name]
    proof, message = verified(base, edit(compiled(base)[0].engine_text))
    assert proof
    assert "\n  missing: " in message
