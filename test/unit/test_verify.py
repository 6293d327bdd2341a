"""Every rule of the verifier catches a seeded defect, and correct schedules raise no alarm."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from test.models import tiny_llama
from tileir.compiler import PIPELINE
from tileir.dialect.attributes import walk
from tileir.frontends.torch_export import export_decode, import_program
from tileir.mlir import ir, new_context
from tileir.passes.pipeline import run_pipeline
from tileir.passes.verify_schedule import problem_of
from tileir.scheduling.problem import Problem, Region, Span, Stream
from tileir.scheduling.verify import ScheduleError, verify
from tileir.target import find_target


def make(target: str, **changes: Any) -> Problem:
    """The problem of a compiled tiny model."""
    context = new_context()
    with context, ir.Location.unknown():
        module = import_program(export_decode(tiny_llama(**changes), 64), context)
        run_pipeline(module, PIPELINE.format(target=target, tokens=1))
        (device,) = walk(module, "engine.device")
        return problem_of(device, find_target(target))


@pytest.fixture(scope="module")
def good() -> Problem:
    return make("virtual")


@pytest.mark.parametrize("target", ["virtual", "h100", "h200"])
@pytest.mark.parametrize("layers", [1, 5])
def test_no_false_alarm(target: str, layers: int) -> None:
    verify(make(target, num_hidden_layers=layers))


def change_row(problem: Problem, pick: Callable[[Any], bool], **changes: Any) -> Problem:
    """The problem with the first row that `pick` accepts changed; values may be functions of the row."""
    rows = list(problem.rows)
    at = next(i for i, row in enumerate(rows) if pick(row))
    values = {k: v(rows[at]) if callable(v) else v for k, v in changes.items()}
    rows[at] = replace(rows[at], **values)
    return replace(problem, rows=tuple(rows))


def change_channel(problem: Problem, name: str, **changes: Any) -> Problem:
    channel = replace(problem.channels[name], **changes)
    return replace(problem, channels={**problem.channels, name: channel})


def records(problem: Problem) -> str:
    return next(row.records for row in problem.rows if row.records)


def drop_last_tile(row: Any) -> Any:
    span = row.writes[-1]
    return (*row.writes[:-1], replace(span, last=span.last - 8))


def twice(row: Any) -> Any:
    return (*row.writes, Span(row.writes[0].channel, 0, 8))


def fewer(row: Any) -> Any:
    return tuple(
        Stream(s.ring, (s.numbers[0], s.numbers[1] - 1, *s.numbers[2:])) for s in row.drains
    )


def late_read(row: Any) -> Any:
    return (*row.reads, Span("qkv_0", 0, 8))


DEFECTS: dict[str, tuple[Callable[[Problem], Problem], str]] = {
    "a tile never written": (lambda p: change_row(p, lambda r: r.writes, writes=drop_last_tile), "waits for values"),
    "a tile written twice": (lambda p: change_row(p, lambda r: r.writes, writes=twice), "are written by"),
    "a slot too few drained": (lambda p: change_row(p, lambda r: r.drains, drains=fewer), "consumers drain"),
    "a ring of one slot": (
        lambda p: replace(p, rings={**p.rings, "tape": replace(p.rings["tape"], slots=1)}), "has 1 slots",
    ),
    "a window beyond the ring": (
        lambda p: replace(p, rings={**p.rings, "tape": replace(p.rings["tape"], window=99)}), "window of 99",
    ),
    "rows out of order": (
        lambda p: replace(
            p,
            rows=tuple(
                replace(r, number=i)
                for i, r in enumerate((p.rows[1], p.rows[0], *p.rows[2:]))
            ),
        ),
        "later in the same step",
    ),
    "records of one copy": (lambda p: change_channel(p, records(p), depth=1), "has 1 copy"),
    "nobody awaits the records": (
        lambda p: change_row(p, lambda r: r.chooses, chooses=()), "await the records",
    ),
    "a read behind the last record": (
        lambda p: change_row(p, lambda r: r.chooses, reads=late_read), "after the last record",
    ),
    "no release": (lambda p: change_row(p, lambda r: r.released, released=()), "no release"),
    "no acquire": (lambda p: change_row(p, lambda r: r.acquired, acquired=()), "no acquire"),
    "the own row missing": (
        lambda p: change_row(
            p, lambda r: r.streams, reads=(Span("embedding_0", 0, 8),)
        ),
        "own row would be missing",
    ),
    "two writers of a state": (
        lambda p: change_row(
            p, lambda r: r.records, appends=lambda r: (next(x.appends[0] for x in p.rows if x.appends),)
        ),
        "append to state",
    ),
    "shared memory overlaps": (
        lambda p: replace(
            p, regions=(*p.regions, Region("shared", "intruder", 64, 128))
        ),
        "overlap in shared",
    ),
    "exchange overlaps": (
        lambda p: replace(p, regions=(*p.regions, Region("exchange", "intruder", 0, 8))), "overlap in exchange",
    ),
    "too much shared memory": (lambda p: replace(p, smem_bytes=1 << 30), "shared memory"),
    "more blocks than SMs": (lambda p: replace(p, sms=p.max_sms + 1), "blocks wait for each other"),
    "a payload of the wrong kind": (lambda p: change_channel(p, "qkv_0", payload="f32"), "payload"),
    "a scope too small": (lambda p: change_channel(p, "qkv_0", level="sm"), "level 'sm'"),
}  # fmt: skip


@pytest.mark.parametrize("name", DEFECTS)
def test_defect_is_caught(name: str, good: Problem) -> None:
    defect, message = DEFECTS[name]
    with pytest.raises(ScheduleError, match=message):
        verify(defect(good))
