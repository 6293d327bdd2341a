"""Experts, latents, selected positions, drafts, pages and several GPUs: seeded defects, and no false alarm."""

import re
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from test.hard_schedules import Sizes, hard_text, parse_all
from test.unit.test_verify import change, channel, move
from test.unit.test_verify_schedule import sub
from tileir.scheduling.problem import Body, Problem, Row, ScheduleError
from tileir.scheduling.verify import verify

FACTS = {"tokens": 3, "sequences": 2, "page": 16, "devices": 2}


@pytest.fixture(scope="module")
def text() -> str:
    return hard_text(**FACTS)


@pytest.fixture(scope="module")
def good(text: str) -> list[Problem]:
    return parse_all(text)


@pytest.mark.parametrize(
    "facts",
    [
        {"tokens": 1},
        {"tokens": 5, "sequences": 3, "page": 64},
        {"tokens": 2, "devices": 2},
        {"tokens": 2, "devices": 3, "sizes": Sizes(layers=3, groups=4)},
        FACTS,
    ],
)
def test_no_false_alarm(facts: dict[str, Any]) -> None:
    verify(*parse_all(hard_text(**facts)))


def test_full_size() -> None:
    """61 layers of the sizes of DeepSeek-V3, with an indexer, on an H100: in seconds."""
    sizes = Sizes(
        layers=61, hidden=7168, heads=128, nope=128, rope=64, latent=512, lora=1536, inner=2048, experts=256,
        chosen=8, index_heads=64, index_size=128, top=2048, groups=32, context=4096, vocabulary=129280,
    )  # fmt: skip
    problems = parse_all(hard_text(1, sizes=sizes, target="h100"), "h100")
    begin = time.perf_counter()
    verify(*problems)
    assert time.perf_counter() - begin < 10
    assert len(problems[0].rows) > 1000


def test_paths_of_loaders(good: list[Problem]) -> None:
    """What orders a loader before the next writer of what it reads: two records, or the barrier that it frees."""
    edge, chooser = r"row 24 \(contract_13\)", r"row 25 \(select_3\)"
    lines = [path.line.replace(" of GPU 0", "") for path in verify(*good)]
    for wanted in (
        r"channel indices_0, 3 copies: role state of row 9 \(attend_0\) reads step 1's → record of step 2 → "
        rf"record of {edge} in step 3 → {chooser} → row 8 \(select_0\) writes step 4's",
        r"channel routing_0, 1 copy: role state of row 16 .* → empty mbarrier → row 14 .* writes step 2's",
        r"channel routing_0, 1 copy: row 16 .* → barrier of the SM → row 14 .* writes step 2's",
    ):
        assert any(re.fullmatch(wanted, line) for line in lines), wanted
    polled = {(n, row.number, role) for row in good[0].rows for n, role in row.polls}
    assert len([p for p in verify(*good) if p.reader.device == 0]) == len(polled)


def on(device: int, defect: Callable[[str], str]) -> Callable[[str], str]:
    """The defect on one GPU of two."""

    def apply(text: str) -> str:
        at = [m.start() for m in re.finditer('"engine.device"', text)]
        parts = [text[: at[1]], text[at[1] :]]
        parts[device] = defect(parts[device])
        return "".join(parts)

    return apply


OTHER_SPLITS = r"(fill_rows.*)splits = 2 : i64, tasks = 2"

MODULE_DEFECTS: dict[str, tuple[Callable[[str], str], str]] = {
    # experts
    "an expert that two GPUs have": (
        on(1, sub("experts = array<i64: 6, 16>", "experts = array<i64: 5, 16>")),
        r"channel weighted_0 are written by row \d+ \(.*\) of GPU 0 and by row \d+ .* of GPU 1 when expert 5 is chosen",
    ),
    "an expert that no GPU has": (
        on(1, sub("experts = array<i64: 6, 16>", "experts = array<i64: 7, 16>")),
        "channel weighted_0, of which none are written when expert 6 is chosen",
    ),
    "an expert that there is not": (
        on(1, sub("experts = array<i64: 6, 16>", "experts = array<i64: 6, 17>")),
        r"has experts 6 … 16, .*\(select_1\) of GPU 1 chooses among 16",
    ),
    "consumers of fewer experts than the loader": (
        on(0, sub(r"(engine.multiply.*experts = array<i64: 0, )6", r"\g<1>5")),
        r"channel weighted_0, of which none are written when expert 5 is chosen",
    ),
    "fewer tiles of an expert": (
        on(0, sub(r'(engine.fill".*array<i64: 0, 6>.*)tiles = 4', r"\g<1>tiles = 3")),
        "slots of ring state with .* drain .* blocks when 1 experts are active",
    ),
    "a shorter k of an expert": (
        on(0, sub(r'(engine.fill".*array<i64: 0, 6>.*)k = 64', r"\g<1>k = 32")),
        "drain .* blocks when 1 experts are active",
    ),
    "the tape's loader awaits the routing": (
        on(
            0,
            sub(
                r'(array<i64: 0, 6>, k = 64.*ring = ")state(".*\n.*sym_name = ")state',
                r"\g<1>tape\g<2>tape",
                1,
            ),
        ),
        "routing_0 of its SM is free, and state and tape frees it",
    ),
    "a routing of fewer experts": (
        sub(r'(engine.choose.*\bk = )2(.*"route")', r"\g<1>1\g<2>"),
        "chooses 1 of 16 into the 4 words of channel routing_0",
    ),
    "scores of fewer experts": (
        sub(r"(engine.choose.*experts = )16", r"\g<1>32"),
        "chooses among 32, channel linear_4 has 32 values for 64 scores",
    ),
    "slots from other slots": (
        sub(
            "groups = 2 : i64, k = 32 : i64, offset = 0 : i64, stride = 32",
            "groups = 2 : i64, k = 32 : i64, offset = 0 : i64, stride = 16",
        ),
        "takes slot 1 from values 16 … 47 of channel gated_1, where .* writes it at 32 … 63",
    ),
    "a token's slot written twice": (
        sub(r"(tile.weigh.*\n.*bases = array<i64: )0, 8", r"\g<1>0, 0"),
        r"of channel weighted_0 is written by tasks 0 and 0 of row .* when expert 0",
    ),
    "experts that nobody chooses": (
        sub(r"(multiply\"\(\)[^\n]*source = )\"tape\"", r'\1"experts"', 1),
        "body contract_0 multiplies by experts, of which engine.fill fills the ring",
    ),
    "rows as weights that no loader fills": (
        sub(r".*engine.fill_rows.*\n", ""),
        "body contract_4 multiplies by rows, of which nothing fills the ring",
    ),
    "scores that are not published": (
        sub(r'(.*tile.relu_sum.*\n).*"tile.publish".*\n', r"\1"),
        r"waits for values 0 … 63 of channel scores_0, of which row 5 \(contract_4\) of GPU 0 writes none",
    ),
    "no choice": (
        sub(r'.*"engine.choose".*"route".*\n', ""),
        "body select_1 of kind 'select' has the operations none",
    ),
    "a sum of too few slots": (
        sub(r'"tile.sum"\(%arg1\) \{size = 2', '"tile.sum"(%arg1) {size = 4'),
        "waits for values",
    ),
    # latents
    "own keys at another place": (
        sub(r'(tile.key".*offset = )64', r"\g<1>48"),
        r"the step's own row of state kv at 48 of channel qkv_0, and row 1 \(contract_0\) of GPU 0 publishes .* at 64",
    ),
    "own keys in another order": (
        sub(r'(.*tile.key".*\n)(.*tile.key".*\n)', r"\2\1"),
        "takes the step's own row of state kv at 64 of channel qkv_0, and .* at 0 of channel rows_0",
    ),
    "a latent over the turned part": (
        sub(r'(tile.store".*offset = )0', r"\g<1>16"),
        r"values 32 … 47 of a row of state kv are written by row 6 \(rows_1\) of GPU 0 and by row 1 \(contract_0\)",
    ),
    "a latent kept before its norm": (
        sub(r'tile.store"\(%\w+, %arg3\)', 'tile.store"(%29, %arg3)'),
        r"takes the step's own row of state kv at 0 of channel rows_0, and row \d+ \(rows_1\).* nowhere",
    ),
    "a turned part that is not kept": (
        sub(r".*tile.append.*1x128x48x.*\n", ""),
        "of a row of state kv, 48 values, only 0 … 31 are appended",
    ),
    "a map without release": (
        sub(r'kind = "map", release = array<i64: 3>', 'kind = "map"'),
        r"\(rows_1\) of GPU 0 appends to state kv with no release",
    ),
    "groups that part no space": (
        sub("groups = 4 : i64, k = 16", "groups = 3 : i64, k = 16"),
        "3 groups in a space of 8 tiles",
    ),
    "groups beyond x": (
        sub(
            "groups = 4 : i64, k = 16 : i64, offset = 0 : i64, stride = 32",
            "groups = 4 : i64, k = 16 : i64, offset = 0 : i64, stride = 48",
        ),
        "waits for values .* of channel linear_1",
    ),
    "fewer groups than the loader": (
        on(0, sub(r"(fill_gathered.*)groups = 2", r"\g<1>groups = 1")),
        r"role state fills ring state by \(tasks, splits, groups",
    ),
    "the groups of another GPU": (
        on(1, sub(r'(body = "attend_0".*tile_base = )2', r"\g<1>0")),
        "waits for values .* of channel partial_0, of which .* and row .* of GPU 0 writes another copy",
    ),
    "values longer than keys": (
        sub(r"(fill_gathered.*head_size = )48", r"\g<1>32"),
        "bytes for heads of 32 in .* rows of .48. values",
    ),
    # selected positions
    "scores of too few positions": (
        lambda t: sub(r'(source = "rows".*tiles = )4', r"\g<1>3")(
            sub(
                r"tiles = 4(.*\n.*\n.*)space = 4 : i64, tiles = 4( : i64}.*3x64xf32)",
                r"tiles = 3\1space = 3 : i64, tiles = 3\2",
            )(t)
        ),
        "writes the values of positions",
    ),
    "scores of fewer values of a query than of a key": (
        sub(r"(\{groups = 2 : i64, k = )16( : i64, offset = 0 : i64, stride = 16)", r"\g<1>8\2"),
        r"in row 5 \(contract_4\) of GPU 0 .* the consumers multiply k = 16 by 8 values of x",
    ),
    "scores at other positions": (
        sub(r"(tile.relu_sum.*\n.*bases = array<i64: )0, 8", r"\g<1>8, 16"),
        "writes the values of positions .* of channel scores_0",
    ),
    "an own key at another place": (
        sub(r"(multiply.*own = )0", r"\g<1>16"),
        "takes the step's own row of state keys at 16 of channel qkv_1, and .* publishes what it appends at 0",
    ),
    "other splits of scores": (
        sub(OTHER_SPLITS, r"\g<1>splits = 1 : i64, tasks = 1"),
        "role state fills",
    ),
    "fewer positions chosen": (
        sub(r"(engine.choose.*)k = 16", r"\g<1>k = 8"),
        "chooses 8 of 64 into the 16 words of channel indices_0",
    ),
    "indices of two copies": (
        sub("depth = 3", "depth = 2"),
        r"indices_0 has 2 copies: role state of row \d+ \(attend_0\) of GPU 0 on a slow SM .*step 3's",
    ),
    "scores of keys without acquire": (
        sub(r'acquire = array<i64: 2>, kind = "contract"', 'kind = "contract"'),
        r"streams state keys with no acquire.*what row \d+ \(contract_2\)",
    ),
    # tokens and drafts
    "two choices of the token": (
        sub('makes = "draft"', 'makes = "token"'),
        "await the records of all SMs, which one has to, to make the token",
    ),
    # pages
    "sequences without pages": (
        sub(", page = 16 : i64, sym", ", page = 0 : i64, sym"),
        "state kv is one piece for 2 sequences",
    ),
    "pages of another size": (
        sub(r'page = 16 : i64, (sym_name = "keys")', r"page = 8 : i64, \1"),
        "state keys has 128 rows in pages of 8, the step's table names pages of 16",
    ),
    # several GPUs
    "heads that do not cross": (
        sub(r'level = "peer"(.*"attention_0")', r'level = "gpu"\1'),
        r"waits for values .* of channel attention_0, .* and row \d+ \(combine_0\) of GPU \d writes another copy",
    ),
    "a crossing that all write": (
        sub(r'level = "gpu"(.*"linear_0")', r'level = "peer"\1'),
        r"channel linear_0 are written by row (\d+) .* of GPU 0 and by row \1 .* of GPU 1",
    ),
    "partial sums in one part": (
        on(1, sub(r"bases = array<i64: 64, 72>", "bases = array<i64: 0, 8>")),
        r"channel linear_5 are written by row \d+ .* of GPU 0 and by row \d+ .* of GPU 1",
    ),
    "a part that nobody sums": (
        on(1, sub(r'.*engine.row.*"linear_5"\].*\n', "", 1)),
        r"waits for values .* of channel linear_5, of which row \d+ .* of GPU 0 writes 0 … 63",
    ),
    "values that only one GPU sends": (
        on(1, sub(r'level = "gpu"(.*"embedding_0")', r'level = "peer"\1')),
        "channel embedding_0 is of level 'gpu' on GPU 0 and of level 'peer' on GPU 1",
    ),
    "records of one GPU": (sub("x8x2xi32", "x4x2xi32"), "8 values .* for the records of 8 SMs"),
    "records that do not cross": (
        sub(r'level = "peer"(.*"candidates_1")', r'level = "gpu"\1'),
        "channel candidates_1",
    ),
    "tokens that no GPU has": (
        on(1, sub(r'(tile.candidate".*bases = array<i64: )48, 56', r"\g<1>64, 72")),
        "chooses among tokens 0 … 47, 64 … 143 of a vocabulary of 128",
    ),
    "a GPU without a draft": (
        on(1, sub(r'.*body = "select_3".*\n', "")),
        "leaves records that .* of GPU 1 awaits",
    ),
    "a channel at another place": (
        on(
            1,
            lambda t: sub(r'offset = \d+( : i64, .*"linear_5")', r"offset = 60928\1")(
                sub(r"exchange_bytes = (\d+)", "exchange_bytes = 65536")(t)
            ),
        ),
        "channel linear_5 crosses GPUs, where its .* at one place",
    ),
    "a routing of another scale on a GPU": (
        on(1, sub(r"(engine.choose.*\bscale = )1\.", r"\g<1>2.")),
        r"row 14 \(select_1\) of GPU 0 and row 14 \(select_1\) of GPU 1 make values 0 … 3 of channel routing_0, each "
        "for its own GPU, by different operations.*missing: the same work on all GPUs",
    ),
    "scores of other weights on a GPU": (
        on(1, sub(r'("residual_0", "linear_4".*weights = \["w", )"w"', r'\1"u"')),
        "of channel linear_4, each for its own GPU, by different weights",
    ),
    "scores of another operand on a GPU": (
        on(1, sub(r'"residual_0", "linear_4"', '"embedding_0", "linear_4"')),
        "of channel linear_4, each for its own GPU, by different operands",
    ),
    "a GPU that adds in another order": (
        on(1, sub(r'"tile.plus"\(%29, %30\)', '"tile.plus"(%30, %29)')),
        "of channel residual_1, each for its own GPU, by different operations.*order of sums",
    ),
    "another context on a GPU": (
        on(1, sub(r"\bcontext = 64", "context = 48")),
        "GPUs have context of|positions of a context of 48",
    ),
}


@pytest.mark.parametrize("name", MODULE_DEFECTS)
def test_defect_of_the_module(name: str, text: str) -> None:
    defect, message = MODULE_DEFECTS[name]
    with pytest.raises(ScheduleError, match=f"(?s){message}") as error:
        verify(*parse_all(defect(text)))
    assert "\n  missing: " in str(error.value)


def first(kind: Callable[[Row], bool], **body: Any) -> Callable[[Problem], Problem]:
    return lambda problem: change(problem, kind, **body)


def experts(row: Row) -> bool:
    return row.body.experts is not None


def attends(row: Row) -> bool:
    return row.body.kind == "attend"


def chooses(row: Row) -> bool:
    return row.body.choice is not None


def unawaited(body: Body) -> Any:
    return tuple(w for w in body.waits if w.role == "consumer")


def gathered(**changes: Any) -> Callable[[Body], Any]:
    return lambda body: tuple(replace(s, **changes) for s in body.fills)


def streams_late(problem: Problem) -> Problem:
    """Attention behind the last record, into a channel of its own."""
    row = next(r for r in problem.rows if attends(r))
    late = replace(row.body, name="late", out=None, writes=(), reads=(), waits=row.body.waits)
    number = problem.rows[-1].number + 1
    indices = channel(problem, "indices_0", depth=3)
    return replace(indices, rows=(*problem.rows, replace(row, number=number, body=late)))


def state(name: str, **changes: Any) -> Callable[[Problem], Problem]:
    return lambda p: replace(p, states=p.states | {name: replace(p.states[name], **changes)})


def row_of(problem: Problem, kind: Callable[[Row], bool]) -> int:
    return next(i for i, row in enumerate(problem.rows) if kind(row))


def drafts(row: Row) -> bool:
    return row.body.chosen


def awaits_parts(row: Row) -> bool:
    return "linear_5" in row.awaited


# Of GPU 0; the other one stays as it is.
PROBLEM_DEFECTS: dict[str, tuple[Callable[[Problem], Problem], str]] = {
    "a loader that does not await the routing": (
        first(experts, waits=unawaited),
        "role state goes by what routing_0 chose and does not await it",
    ),
    "a routing that no loader reads": (
        lambda p: replace(
            p,
            rows=tuple(
                replace(r, body=replace(r.body, waits=unawaited(r.body))) if experts(r) else r
                for r in p.rows
            ),
        ),
        r"waits until channel routing_0 of its SM is free, and no loader frees it.* step 2",
    ),
    "a routing for all SMs of one copy": (
        lambda p: channel(p, "routing_0", level="gpu"),
        r"routing_0 has 1 copy: role state of row \d+ .* which takes 3 copies",
    ),
    "one SM's values for its warps only": (
        lambda p: channel(p, "scores_0", level="sm"),
        "scores_0 joins the SMs of a GPU by protocol 'packet' of level 'sm'",
    ),
    "more slots than chosen": (
        first(experts, slots=3),
        r"3 slots for a token's experts, of which row \d+ \(select_1\) of GPU 0 chooses 2",
    ),
    "experts by another routing": (
        first(experts, fills=gathered(of=0)),
        "by what residual_0 chose and the consumers drain it by routing_0",
    ),
    "positions that nobody chose": (
        first(chooses, choice=None),
        "goes by what indices_0 chose, and no row makes a choice there",
    ),
    "a gather before its choice": (
        lambda p: move(p, row_of(p, attends), row_of(p, chooses)),
        r"\(attend_0\).* waits for channel indices_0, which .* writes later",
    ),
    "a gather that does not await its choice": (
        first(attends, waits=unawaited),
        "role state goes by what indices_0 chose and does not await it",
    ),
    "gathered by one, whole by the other": (
        first(attends, fills=gathered(of=None)),
        "by what nothing chose and the consumers drain it by indices_0",
    ),
    "the tape's loader awaits an activation": (
        first(
            lambda r: r.body.kind == "contract",
            waits=lambda b: (*b.waits, replace(b.waits[0], role="tape")),
        ),
        r"role tape waits for channel embedding_0 in row 1 .* fills the tape in row",
    ),
    "a loader of other experts than the consumers": (
        first(experts, fills=gathered(experts=(0, 5))),
        "tiles of experts 0 … 4 and the consumers drain it for experts 0 … 5: they part when expert 5 is chosen",
    ),
    "a draft's token before it is chosen": (
        lambda p: move(p, row_of(p, drafts), row_of(p, lambda r: bool(r.body.chooses))),
        r"\(lookup_1\)?.* of GPU 0 needs the token that .*\(select_2\) of GPU 0 chooses later in the step|steps part",
    ),
    "a token too few in a channel": (
        lambda p: channel(p, "rows_0", tokens=2),
        "rows_0 holds 2 tokens, a step has 3",
    ),
    "rows streamed behind the records": (
        streams_late,
        "streams state kv behind row .* a rejected row or a freed page may be written again by row",
    ),
    "no whole pages": (
        state("keys", positions=120),
        "state keys has 120 rows in pages of 16",
    ),
    "fewer pages than a context": (
        state("kv", positions=48),
        "state kv, of 48 positions for a context of 64",
    ),
    "fewer pages than the table": (
        state("keys", positions=64),
        "one table of pages for all states names 8 of state kv and 4 of state keys",
    ),
    "a table of more pages on a GPU": (
        lambda p: state("kv", positions=256)(state("keys", positions=256)(p)),
        "one table of pages for all GPUs names 16 of state k.* of GPU 0 and 8 of state k.* of GPU 1",
    ),
    "a routing of two copies": (
        lambda p: channel(p, "routing_0", depth=2),
        "routing_0 of level 'sm' has 2 copies",
    ),
    "a crossing against the order": (
        lambda p: move(p, row_of(p, lambda r: r.written == "linear_5"), row_of(p, awaits_parts)),
        r"\(sum_0\) of GPU 0 waits for channel .*, which row .* of GPU \d writes later",
    ),
}


@pytest.mark.parametrize("name", PROBLEM_DEFECTS)
def test_defect_of_the_problem(name: str, good: list[Problem]) -> None:
    defect, message = PROBLEM_DEFECTS[name]
    with pytest.raises(ScheduleError, match=f"(?s){message}") as error:
        verify(defect(good[0]), *good[1:])
    assert "\n  missing: " in str(error.value)


def test_a_channel_of_one_gpu_crosses_nothing() -> None:
    text = sub(r'level = "gpu"(.*"linear_0")', r'level = "peer"\1')(hard_text())
    with pytest.raises(ScheduleError, match="linear_0 joins GPUs by protocol 'packet'"):
        verify(*parse_all(text))
