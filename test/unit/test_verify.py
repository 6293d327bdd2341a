"""Every rule of the proofs catches a seeded defect and names the offenders, at full size too."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from test.schedules import engine_text, parse, ranged_text
from tileir.frontends.torch_export import export_decode, fake_hf
from tileir.scheduling.problem import Body, Places, Problem, Region, Row, ScheduleError
from tileir.scheduling.verify import verify


@pytest.fixture(scope="module")
def good() -> Problem:
    return parse(ranged_text())


def deeper(problem: Problem, layers: int) -> Problem:
    """The problem of two layers with the second one repeated, up to `layers`."""
    first, second = (row.number for row in problem.rows if row.body.kind == "attend")
    height = second - first
    start = next(row.number for row in problem.rows if row.body.appends)
    layer = problem.rows[start + height : start + 2 * height]
    tail = problem.rows[start + 2 * height :]
    rows, memories = list(problem.rows[: start + 2 * height]), dict(problem.memories)
    channels, states, regions = dict(problem.channels), dict(problem.states), list(problem.regions)
    places = {region.name: region for region in problem.regions}
    inherits = problem.rows[start + height - 1].written
    leaves = layer[-1].written
    assert inherits is not None
    assert leaves is not None
    own = {row.written for row in layer} | {n for row in layer for n in row.names if n in states}
    names: dict[str, str] = {}
    for i in range(2, layers):
        names = {inherits: names.get(leaves, leaves)} | {n: f"{n}, layer {i}" for n in own if n}
        for old, new in list(names.items())[1:]:
            kind, place = (channels, places[old]) if old in channels else (states, places[old])
            kind[new] = replace(kind[old], name=new)
            at = memories[place.memory]
            regions.append(replace(place, name=new, first=at, last=at + place.last - place.first))
            memories[place.memory] = at + -(-(place.last - place.first) // 256) * 256
        rows += [replace(r, names=tuple(names.get(n, n) for n in r.names)) for r in layer]
    rows += [
        replace(r, names=tuple(names.get(n, n) if n == leaves else n for n in r.names))
        for r in tail
    ]
    numbered = tuple(replace(row, number=i) for i, row in enumerate(rows))
    return replace(
        problem, rows=numbered, channels=channels, states=states, regions=tuple(regions), memories=memories
    )  # fmt: skip


def test_full_size() -> None:
    """126 layers of 8192 values on an H100, in seconds; and a defect in the last layer is found."""
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=128256, hidden_size=8192, intermediate_size=28672, num_hidden_layers=2, num_attention_heads=64,
        num_key_value_heads=8, head_dim=128, max_position_embeddings=131072,
    )  # fmt: skip
    problem = parse(engine_text(export_decode(fake_hf(config), 8192), "h100"), "h100")
    deep = deeper(problem, 126)
    assert sum(row.body.kind == "attend" for row in deep.rows) == 126
    begin = time.perf_counter()
    verify(deep)
    assert time.perf_counter() - begin < 10
    last = next(row for row in reversed(deep.rows) if row.body.kind == "attend")
    with pytest.raises(
        ScheduleError,
        match=r"channel partial_1, layer 125, which row \d+ \(attend_0\) writes later",
    ):
        verify(move(deep, last.number, last.number + 1))


def move(problem: Problem, number: int, to: int) -> Problem:
    rows = list(problem.rows)
    rows.insert(to, rows.pop(number))
    return replace(problem, rows=tuple(replace(r, number=i) for i, r in enumerate(rows)))


def change(problem: Problem, pick: Callable[[Row], bool], **body: Any) -> Problem:
    """The first row that `pick` accepts with a changed body; values may be functions of the old body."""
    rows = list(problem.rows)
    at = next(row.number for row in rows if pick(row))
    old: Body = rows[at].body
    facts = {k: v(old) if callable(v) else v for k, v in body.items()}
    rows[at] = replace(rows[at], body=replace(old, name=f"{old.name}_broken", **facts))
    return replace(problem, rows=tuple(rows))


def ring(problem: Problem, name: str, **changes: Any) -> Problem:
    return replace(problem, rings=problem.rings | {name: replace(problem.rings[name], **changes)})


def two_rings(problem: Problem, rows: Callable[[Row], bool] | None = None) -> Problem:
    """The same with a ring and a loader of their own for old rows; rows: of which rows, of all if it does not say."""
    wanted = rows or is_attend

    def apart(row: Any) -> Any:
        if not wanted(row):
            return row
        fills, drains = (
            tuple(replace(s, ring="state", alone=0, **role) for s in streams)
            for streams, role in ((row.body.fills, {"role": "state"}), (row.body.drains, {}))
        )
        return replace(row, body=replace(row.body, fills=fills, drains=drains))

    tape = problem.rings["tape"]
    rings = problem.rings | {"state": replace(tape, name="state", slots=3, window=2)}
    return replace(problem, rings=rings, rows=tuple(map(apart, problem.rows)))


def one_apart(problem: Problem) -> Problem:
    """A loader of its own for the first layer's old rows only."""
    first = next(row for row in problem.rows if is_attend(row))
    return two_rings(problem, lambda row: row is first)


def channel(problem: Problem, name: str, **changes: Any) -> Problem:
    made = replace(problem.channels[name], **changes)
    return replace(problem, channels=problem.channels | {name: made})


def appends_late(problem: Problem) -> Problem:
    """The first layer's append in a row behind the last record."""
    writer = next(row for row in problem.rows if row.body.appends)
    late = Body("late", "map", 8, 8, appends=writer.body.appends, released=writer.body.released)
    changed = change(problem, lambda r: bool(r.body.appends), appends=())
    row = Row(len(problem.rows), late, writer.names)
    return replace(changed, rows=(*changed.rows, row))


def reads_late(problem: Problem) -> Problem:
    """A row behind the records that polls a channel of one copy."""
    reader = next(row for row in problem.rows if row.body.kind == "attend")
    late = Body("late", "map", reader.body.tasks, reader.body.space, reads=reader.body.reads)
    return replace(problem, rows=(*problem.rows, Row(len(problem.rows), late, reader.names)))


def publishes_records(problem: Problem) -> Problem:
    """Candidates that some SMs publish as values, instead of each SM a record."""

    def published(body: Body) -> Body:
        assert body.out is not None
        values = (Places(body.out, 0, 4, 4, 2, 0, (0,), 2),)
        return replace(
            body,
            name=f"{body.name}_broken",
            records=False,
            space=4,
            tiles=4,
            sums=4,
            tasks=4,
            writes=values,
            offers=(),
        )

    rows = [
        replace(r, body=published(r.body), tile_base=0) if r.body.records else r
        for r in problem.rows
    ]
    return replace(problem, rows=tuple(rows))


def fewer_appended(body: Body) -> Any:
    return tuple(replace(a, places=replace(a.places, tasks=1)) for a in body.appends)


def window(size: int) -> Callable[[Body], Any]:
    return lambda body: tuple(replace(s, window=size) for s in body.fills)


def is_attend(row: Row) -> bool:
    return row.body.kind == "attend"


PROBLEM_DEFECTS: dict[str, tuple[Callable[[Problem], Problem], str]] = {
    "numbers that do not grow": (
        lambda p: replace(p, rows=(p.rows[1], p.rows[0], *p.rows[2:])),
        r"row 0 \(lookup_0\) follows row 1",
    ),
    "too many tiles for an SM": (
        lambda p: change(p, lambda r: bool(r.body.appends), tasks=68, space=68),
        "gives an SM 17 tiles",
    ),
    "heads not appended": (
        lambda p: change(p, lambda r: bool(r.body.appends), appends=fewer_appended),
        r"a row of state k_cache_0, 32 values, only 0 … 15 are appended, by row 1",
    ),
    "a row that reads what comes later": (
        lambda p: move(p, 4, 2),
        "which row 4 .* writes later in the same step",
    ),
    "a ring of one slot": (lambda p: ring(p, "tape", slots=1), "tape has 1 slots"),
    "a window beyond the ring": (
        lambda p: ring(p, "tape", window=13),
        "12 slots and a window of 13",
    ),
    "a slot too small for a position": (
        lambda p: ring(two_rings(p), "state", slot_bytes=32),
        "a slot of ring state has 32 bytes",
    ),
    "a fill that nobody multiplies": (
        lambda p: change(
            p,
            lambda r: bool(r.body.appends),
            drains=(),
            program=lambda b: tuple(o for o in b.program if o != "multiply"),
        ),
        "emit takes partial sums that nobody leaves: receive, barrier, barrier, emit",
    ),
    "activations received while others multiply": (
        lambda p: change(
            p,
            lambda r: bool(r.body.appends),
            program=lambda b: (*b.program[:3], "receive", *b.program[3:]),
        ),
        r"in row 1 .* receive overwrites activations that multiply takes for other warps.*"
        "missing: a barrier from multiply to receive",
    ),
    "a row that does not await the barrier of the row before": (
        lambda p: change(
            p,
            lambda r: r.body.kind == "contract" and r.number == 6,
            program=lambda b: ("receive", "barrier", "multiply", "barrier", "receive", "emit"),
        ),
        r"in row 7 .* receive overwrites activations that receive of row 6 .* leaves for other warps.*"
        r"row 7 \(\w+\) is at -:\d+:5\n  receive of row 6 .* is at -:\d+:9\n  receive of row 7 .* is at -:\d+:9",
    ),
    "a slot of more bytes than an mbarrier counts": (
        lambda p: ring(p, "tape", slot_bytes=1 << 20),
        "a slot of ring tape has 1048576 bytes.*at most 1048575 bytes",
    ),
    "more named barriers than there are": (
        lambda p: replace(p, needs=p.needs | {"barriers": 17}),
        "17 named barriers are used by a block; there are 16",
    ),
    "two loaders of what a step's record decides": (
        one_apart,
        r"the step's record is awaited by role state in row 2 .* and by role tape in row \d+ ",
    ),
    "a stream that nobody drains": (
        lambda p: change(p, is_attend, drains=()),
        "fill ring tape and the consumers drain nothing",
    ),
    "a window whose slots differ": (
        lambda p: change(ring(two_rings(p), "state", slot_bytes=64), is_attend, fills=window(5)),
        r"at position 8 role state fills 4 slots of ring state and the consumers drain 8; for example .*, step 9",
    ),
    "no records": (
        publishes_records,
        r"no row leaves records that row \d+ \(select_0\) awaits",
    ),
    "an append behind the records": (appends_late, "appends to state k_cache_0 behind row"),
    "a read behind the records": (
        reads_late,
        r"channel qkv_0 has 1 copy: row \d+ \(late\) on a slow SM .* when row 1 \(contract_0\) on a fast",
    ),
    "an odd value": (
        lambda p: channel(p, "qkv_0", values=129),
        "qkv_0 has 129 values in pairs",
    ),
    "exchange shared with an intruder": (
        lambda p: replace(p, regions=(*p.regions, Region("exchange", "intruder", 0, 8))),
        "intruder and embedding_0 overlap",
    ),
}


@pytest.mark.parametrize("name", PROBLEM_DEFECTS)
def test_defect_of_the_problem(name: str, good: Problem) -> None:
    defect, message = PROBLEM_DEFECTS[name]
    with pytest.raises(ScheduleError, match=f"(?s){message}") as error:
        verify(defect(good))
    assert "\n  missing: " in str(error.value)


def test_the_cases_raise_no_alarm_unbroken(good: Problem) -> None:
    verify(good)
    verify(ring(two_rings(good), "state", slot_bytes=64))
