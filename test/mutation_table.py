"""docs/mutations.md, from a run of all defects: `python -m test.mutation_table`."""

from collections.abc import Iterator
from pathlib import Path

from test.mutations import MODULE, SCHEDULES, Verdict, judge, names

PATH = Path(__file__).parent.parent / "docs" / "mutations.md"
HEAD = f"""# Seeded defects, and who catches them

Made by `python -m test.mutation_table`; the defects are in `test/mutations.py` and `test/protocol_defects.py`.

Verifier: the proof of `tileir/scheduling/verify.py` that rejects the module. Executor: the number of the first
schedule, of {SCHEDULES} at most, under which the reference device stops or gives other bits, the verifier being
skipped. An error without a number is Python's: the device cannot execute such a module, and has found nothing. "–" is
none of them: the reference device has no addresses that overlap, no registers and no warps that part, takes the tape's
blocks from the packing recipe, and may not have met the one schedule that shows the defect. A defect of the protocol
leaves the module as it is: there the verifier has nothing to say.
"""
COLUMNS = "| defect | module | what it does | verifier | executor |\n|---|---|---|---|---|\n"


def line(verdict: Verdict) -> str:
    """A row of the table. A bar would end a cell."""
    executor = verdict.reason.split("\n")[0].split(", which")[0] or "–"
    if verdict.schedule:
        executor = f"{verdict.schedule}: {executor}"
    proof = f"`{verdict.proof}`" if verdict.proof else "–"
    cells = (verdict.name, verdict.base, verdict.change, proof, executor)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def table(verdicts: list[Verdict]) -> str:
    """The file's text."""
    caught = sum(v.caught for v in verdicts)
    by = [sum(bool(v.proof) for v in verdicts), sum(bool(v.schedule) for v in verdicts)]
    parts = [HEAD]
    for title, inside in (("Of modules", True), ("Of the protocol", False)):
        rows = "\n".join(line(v) for v in verdicts if (v.name in MODULE) == inside)
        parts.append(f"## {title}\n\n{COLUMNS}{rows}\n")
    parts.append(
        f"{caught} of {len(verdicts)} are caught: {by[0]} by the verifier, {by[1]} by the executor.\n"
    )
    return "\n".join(parts)


def judged() -> Iterator[Verdict]:
    """All defects, each as soon as it is judged."""
    yield from map(judge, names())


if __name__ == "__main__":
    PATH.write_text(table(list(judged())))
