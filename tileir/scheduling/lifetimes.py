"""Proof of what an SM's consumer warps share: rows use the same places of shared memory one after the other.

Between two barriers of the consumers any warp may be ahead of any other, across rows and steps too.
"""

from collections import defaultdict
from typing import NamedTuple

from tileir.scheduling.problem import Problem, Row, fault

# How the consumers' operations use the places (docs/ir.md, shared memory), in order; MEET: a barrier of all of them.
# What a single operation does to a place in between two barriers is shared out over warps.
MEET, LEAVES, TAKES = "meet", "leaves", "takes"
ACTIVATIONS, SUMS, WORDS = "activations", "partial sums", "words of"
Use = tuple[str, str]
USES: dict[str, tuple[Use, ...]] = {
    "barrier": ((MEET, ""),),
    "receive": ((LEAVES, ACTIVATIONS),),
    "multiply": ((TAKES, WORDS), (TAKES, ACTIVATIONS), (LEAVES, SUMS)),
    "emit": ((TAKES, WORDS), (TAKES, SUMS)),
    "attend": (
        *((LEAVES, ACTIVATIONS), (MEET, ""), (TAKES, ACTIVATIONS), (LEAVES, SUMS), (MEET, "")),
        *((TAKES, SUMS), (MEET, "")),
    ),
    "map": ((MEET, ""), (LEAVES, SUMS), (MEET, ""), (TAKES, SUMS)),
    "choose": (
        (LEAVES, ACTIVATIONS),
        (MEET, ""),
        (TAKES, ACTIVATIONS),
        (LEAVES, WORDS),
        (MEET, ""),
    ),
    "select": ((MEET, ""),),
}


class User(NamedTuple):
    """An operation of a row, and what it does to a place."""

    operation: str
    row: Row
    does: str

    def __str__(self) -> str:
        return f"{self.operation} of {self.row}"

    @property
    def location(self) -> str:
        """Where it stands in the row's body."""
        return self.row.body.places.get(self.operation, "")


Since = dict[str, list[User]]


def check_lifetimes(problem: Problem) -> None:
    """What one warp leaves for others is not taken before a barrier, nor overwritten while it is taken. Raises
    ScheduleError.
    """
    since: Since = defaultdict(list)
    for step in (1, 2):
        for row in problem.rows:
            _check_row(problem, row, since, step)


def _check_row(problem: Problem, row: Row, since: Since, step: int) -> None:
    """since: by place, what was done to it after the last barrier."""
    # An SM without a task of the row does nothing, and meets nobody.
    skipped = {} if row.body.kind == "contract" else {p: list(u) for p, u in since.items()}
    left = set()
    for operation in row.body.program:
        for does, what in USES[operation]:
            if does == MEET:
                since.clear()
                continue
            for place in _places(problem, row, what):
                if does == TAKES and what != WORDS and place not in left:
                    raise fault(
                        f"in {row} {operation} takes {place} that nobody leaves: {', '.join(row.body.program)}",
                        f"an operation before {operation} that leaves {place}",
                        row,
                        row.body,
                    )
                user = User(operation, row, does)
                _check_use(user, place, since[place], step)
                since[place].append(user)
                if does == LEAVES:
                    left.add(place)
    for place, used in skipped.items():
        since[place] = used + [use for use in since[place] if use not in used]


def _places(problem: Problem, row: Row, what: str) -> list[str]:
    """The places of that kind that the row uses: of words, channels of level "sm"."""
    if what != WORDS:
        return [what]
    body = row.body
    named = {body.out, body.routing} if body.kind == "contract" else {body.out}
    names = [row.names[a] for a in sorted(a for a in named if a is not None)]
    return [f"channel {n}" for n in names if problem.channels[n].level == "sm"]


def _check_use(user: User, place: str, since: list[User], step: int) -> None:
    """Two uses without a barrier in between are both takes, or one operation's."""
    row, operation = user.row, user.operation
    for by in since:
        if (by.operation, by.row) == (operation, row) or (by.does, user.does) == (TAKES, TAKES):
            continue
        before = by.operation if by.row is row else str(by)
        what = f"in {row} {before} leaves {place} that {operation} takes from other warps"
        if user.does == LEAVES:
            what = (
                f"in {row} {operation} overwrites {place} that {before} {by.does} for other warps"
            )
        raise fault(
            f"{what}: {', '.join(row.body.program)}",
            f"a barrier from {before} to {operation}",
            row,
            by,
            user,
            step=step,
        )
