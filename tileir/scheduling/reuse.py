"""Proof of reuse: a copy of a channel is rewritten only after its last reader, by a path of dependences."""

from collections.abc import Iterator
from typing import NamedTuple

from tileir.scheduling.problem import Channel, Problem, Row, Writers, fault


class Path(NamedTuple):
    """What orders a channel's reader in step 1 before its next writer in step 1 + copies.

    through: who stands in between, each after the one before it.
    """

    channel: Channel
    reader: Row
    role: str
    through: tuple[str, ...]
    writer: Row
    copies: int

    def __str__(self) -> str:
        return " → ".join((self.who, *self.through, str(self.writer)))

    @property
    def who(self) -> str:
        """The reader."""
        return str(self.reader) if self.role == "consumer" else f"role {self.role} of {self.reader}"

    @property
    def line(self) -> str:
        """The path in words."""
        through = " → ".join(self.through)
        return (
            f"{self.channel}, {_copies(self.channel.depth)}: {self.who} reads step 1's → {through} → {self.writer} "
            f"writes step {1 + self.copies}'s"
        )


def check_reuse(problem: Problem, edge: Row, chooser: Row, writers: Writers) -> list[Path]:
    """A path for every channel and reader, which no writer can overtake with the channel's copies.

    Consumers: reader → (program order) its SM's record → the row that awaits all records → (next step) writer. Who
    reads behind its SM's record, as the awaiting row itself does, is ordered by the next step's record: that needs a
    copy more. A loader may have nothing to load, so that its SM's consumers do not wait for it: it is ordered when it
    has taken the next step's record, before its SM leaves the one after; that needs another. Of a channel of level
    "sm" the SM's consumers meet before they write again, and the loader frees it. Raises ScheduleError.
    """
    paths = list(_paths(problem, edge, chooser, writers))
    for path in paths:
        if path.channel.depth >= path.copies:
            continue
        depth = path.channel.depth
        raise fault(
            f"{path.channel} has {_copies(depth)}: {path.who} on a slow SM may still read step 1's when {path.writer} "
            f"on a fast SM writes step {1 + depth}'s",
            f"the path {path}, which takes {path.copies} copies by epoch",
            path.reader,
            path.writer,
            path.channel,
            step=1 + depth,
        )
    return paths


def _paths(problem: Problem, edge: Row, chooser: Row, writers: Writers) -> Iterator[Path]:
    """By channel and reader, the shortest path from it to the next writer, and the copies that it needs."""
    for row in problem.rows:
        for name, role in dict.fromkeys(row.polls):
            channel = problem.channels[name]
            writer = writers.into(problem, name)[0]
            copies = 3 if role != "consumer" else 1 if row.number <= edge.number else 2
            record = f"record of {edge}" + (f" in step {copies}" if copies > 1 else "")
            through: tuple[str, ...] = (record, str(chooser))
            if role != "consumer":
                through = ("record of step 2", *through)
            if channel.level == "sm":
                copies = 1
                through = ("barrier of the SM" if role == "consumer" else "empty mbarrier",)
            yield Path(channel, row, role, through, writer, copies)


def _copies(count: int) -> str:
    return "1 copy" if count == 1 else f"{count} copies"
