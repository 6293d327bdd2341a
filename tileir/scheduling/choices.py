"""Proof of choices: one all-to-all edge a step, the same on all GPUs; experts and positions as many as are chosen."""

from collections.abc import Sequence

from tileir.scheduling.problem import Choice, Problem, Row, fault


def check_choices(problem: Problem, problems: Sequence[Problem]) -> None:
    """Who goes by a choice takes as many as are chosen, of what there is to choose from. Raises ScheduleError.

    A choice that crosses may be made on another of the GPUs.
    """
    made: dict[str | None, tuple[Row, Choice]] = {}
    for other in (*problems, problem):
        for row in other.rows:
            crosses = (
                row.written in problem.channels and problem.channels[row.written].level == "peer"
            )
            if row.body.choice and (other is problem or crosses):
                made[row.written] = row, row.body.choice
    for row in problem.rows:
        if row.body.choice:
            _check_choice(problem, row, row.body.choice)
    for row in problem.rows:
        for stream in row.body.drains:
            if stream.of is None:
                continue
            name = row.names[stream.of]
            kind = "route" if stream.experts is not None else "top_k"
            found = made.get(name)
            chooser, choice = found or (None, None)
            if chooser is None or choice is None or choice.kind != kind:
                raise fault(
                    f"{row} goes by what {name} chose, and {chooser or 'no row'} makes a choice there",
                    f"a choice of kind {kind!r} before {row}",
                    row,
                    chooser or problem.channels[name],
                )
            if kind == "top_k":
                continue
            if row.body.slots != choice.k:
                raise fault(
                    f"{row} has {row.body.slots} slots for a token's experts, of which {chooser} chooses {choice.k}",
                    "a slot for each chosen expert",
                    row,
                    chooser,
                )
            first, behind = stream.experts or (0, 0)
            if not 0 <= first < behind <= choice.among:
                raise fault(
                    f"{row} has experts {first} … {behind - 1}, {chooser} chooses among {choice.among}",
                    "a range of experts that there are",
                    row,
                    chooser,
                )


def _check_choice(problem: Problem, row: Row, choice: Choice) -> None:
    """The channels have the choice's scores and its k; positions are the context's."""
    scores = problem.channels[row.names[choice.argument]]
    out = problem.channels[row.names[row.body.out or 0]]
    words = choice.k * (2 if choice.kind == "route" else 1)
    if out.values != words or choice.k > choice.among:
        raise fault(
            f"{row} chooses {choice.k} of {choice.among} into the {out.values} words of channel {out.name}",
            f"{words} words, and no more than there are",
            row,
            out,
        )
    # Whole tiles are published: scores, and keys behind them, are padded to 16 each.
    lists = choice.scores // choice.among
    if scores.values not in (choice.scores, -(-choice.among // 16) * 16 * lists):
        raise fault(
            f"{row} chooses among {choice.among}, channel {scores.name} has {scores.values} values for {choice.scores} "
            f"scores",
            "a score for each",
            row,
            scores,
        )
    if choice.kind == "top_k" and choice.among != problem.context:
        raise fault(
            f"{row} chooses among {choice.among} positions of a context of {problem.context}",
            "a score for every position",
            row,
            problem,
        )


def exchange(problem: Problem) -> tuple[Row, Row]:
    """(the last row that leaves records, the row that awaits those of all SMs): a step's all-to-all edge.

    A step with drafts has an edge more before it. Raises ScheduleError if there is none.
    """
    choosers = [row for row in problem.rows if row.body.chooses]
    makes = [row.body.makes for row in choosers]
    if not choosers or len(set(makes)) < len(makes) or makes[0] != "token":
        who = ", ".join(map(str, choosers)) or "no row"
        raise fault(
            f"{who} of {len(problem.rows)} rows await the records of all SMs, which one has to, to make the token",
            "an all-to-all edge, from the record of every SM to one select",
            *(choosers or problem.rows[-1:]),
            problem,
        )
    chooser = choosers[-1]
    recorders = [row for row in problem.rows if row.body.records]
    awaited = {row.names[a] for row in choosers for a in row.body.chooses}
    last = [r for r in recorders if r.written in {chooser.names[a] for a in chooser.body.chooses}]
    unread = [row for row in recorders if row.written not in awaited]
    if unread or not last:
        who = f"{unread[0]} leaves" if unread else "no row leaves"
        raise fault(
            f"{who} records that {chooser} awaits",
            f"an edge from {unread[0] if unread else 'records'} to {chooser}",
            chooser,
            *unread[:1],
        )
    _check_chosen(problem, choosers)
    return last[-1], chooser


def _check_chosen(problem: Problem, choosers: list[Row]) -> None:
    """Who needs the token just chosen comes behind its choice."""
    for row in problem.rows:
        if row.body.chosen and row.number <= choosers[0].number:
            raise fault(
                f"{row} needs the token that {choosers[0]} chooses later in the step",
                f"{choosers[0]} before {row}",
                row,
                choosers[0],
            )


def check_same(problems: Sequence[Problem], edges: Sequence[tuple[Row, Row]]) -> None:
    """All GPUs make the same choices of the same records, in the same step. Raises ScheduleError."""
    indices = [problem.index for problem in problems]
    for problem in problems:
        if indices != list(range(problem.devices)):
            raise fault(
                f"{problem} is one of {problem.devices} GPUs, and the module has {', '.join(map(str, problems))}",
                "a kernel for every GPU that takes part",
                *problems,
            )
    for name in ("sms", "tokens", "sequences", "page", "context"):
        values = [getattr(problem, name) for problem in problems]
        if len(set(values)) > 1:
            raise fault(
                f"GPUs have {name} of {values}", "one and the same step on all GPUs", *problems
            )
    choices = [_choices(problem) for problem in problems]
    for (_, at), those in zip(edges, choices, strict=True):
        if those != choices[0]:
            raise fault(
                f"{at} chooses by {those[-1][2]}, {edges[0][1]} by {choices[0][-1][2]}: their steps part",
                "the same choices on all GPUs",
                at,
                edges[0][1],
            )
    for problem, (edge, chooser) in zip(problems, edges, strict=True):
        if len(problems) == 1:
            continue
        for name in (chooser.names[a] for a in chooser.body.chooses):
            if problem.channels[name].level != "peer":
                raise fault(
                    f"{chooser} awaits records of channel {name} of level {problem.channels[name].level!r}, and none "
                    f"of the other GPUs' SMs",
                    f'records of level "peer" from every SM of every GPU, as of {edge}',
                    chooser,
                    edge,
                )


def _choices(problem: Problem) -> list[tuple[int, str, list[str]]]:
    return [
        (row.number, row.body.makes, [row.names[a] for a in row.body.chooses])
        for row in problem.rows
        if row.body.chooses
    ]
