"""verify-schedule finds defects seeded into a module, and raises no alarm for correct ones."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest

import tileir
from test.families import family
from test.models import OwnModel, export_own, tiny_llama
from test.schedules import engine_text, parse, ranged_text
from tileir.dialect.attributes import put, walk
from tileir.errors import ContractError
from tileir.frontends.torch_export import export_decode
from tileir.passes import registry
from tileir.passes.base import Pass
from tileir.scheduling.problem import Problem, ScheduleError
from tileir.scheduling.verify import verify


@pytest.fixture(scope="module")
def text() -> str:
    return ranged_text()


@pytest.mark.parametrize("target", ["virtual", "h100", "h200"])
@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 1},
        {"attention_bias": True, "num_key_value_heads": 1},
        {"vocab_size": 35000, "intermediate_size": 17000, "hidden_size": 144},
    ],
)
def test_no_false_alarm(target: str, changes: dict[str, Any]) -> None:
    verify(parse(engine_text(export_decode(tiny_llama(**changes), 64), target), target))


def test_no_false_alarm_for_an_own_model() -> None:
    verify(parse(engine_text(export_own(OwnModel()), "virtual")))


def test_no_false_alarm_for_several_tokens() -> None:
    verify(parse(engine_text(export_decode(tiny_llama(), 64), "virtual", tokens=4)))


def sub(pattern: str, to: Any, count: int = 0) -> Callable[[str], str]:
    """Replaces text; a defect that changes nothing would prove nothing."""

    def apply(text: str) -> str:
        changed, times = re.subn(pattern, to, text, count=count)
        assert times, f"{pattern!r} is not there"
        assert changed != text, f"{pattern!r} becomes what it was"
        return changed

    return apply


def row(body: str, old: str, new: str) -> Callable[[str], str]:
    """Replaces an attribute's value in the first row of a body."""
    return sub(rf'(engine.row.*body = "{body}".*?){old}', rf"\g<1>{new}", 1)


def less(attribute: str, by: int) -> Callable[[str], str]:
    """Lowers an attribute's value."""
    return sub(rf"\b{attribute} = (\d+)", lambda m: f"{attribute} = {int(m[1]) - by}")


MODULE_DEFECTS: dict[str, tuple[Callable[[str], str], str]] = {
    # arrivals
    "a combine of too few heads": (
        sub("rows = 4 :", "rows = 3 :"),
        r"of channel attention_0 attention fills 0 … 63, its combine 0 … 47; for example row 2 \(attend_0\)",
    ),
    "a combine that stands idle at other positions": (
        sub(r"(tile.combine.*alone = )\d+", r"\g<1>1"),
        r"row 3 \(combine_0\) awaits channel partial_0, which row 2 \(attend_0\) leaves out|fills channel attention_0",
    ),
    "a combine of parts that nobody makes": (
        sub(r"(tile.combine.*least = )\d+", r"\g<1>1024"),
        r"row 3 \(combine_0\) awaits channel partial_0, which row 2 \(attend_0\) leaves out|fills channel attention_0",
    ),
    "attention that never finishes": (
        sub(r'"tile.finish".*\n', "\n"),
        "attention finishes exactly where its combine does nothing",
    ),
    "a lookup of too few pairs": (
        sub("rows = 32 :", "rows = 31 :"),
        "channel embedding_0, of which row 0",
    ),
    "a channel that no row writes": (
        row("contract_1", '"attention_0"', '"attention_1"'),
        "attention_1, which",
    ),
    "a tile published twice": (
        sub(r'(publish".*bases = array<i64: )64, 72', r"\g<1>64, 64"),
        r"tasks 4 and 4 of row 1 \(contract_0\).*SM 2",
    ),
    "two segments into one place": (
        sub(r'(publish".*bases = array<i64: )96, 104', r"\g<1>64, 72"),
        r"channel qkv_0 is written by tasks 4 and 6",
    ),
    "a range of tiles twice": (
        sub(r"tile_base = 43", "tile_base = 42"),
        r"values 336 … 343 of channel gated_0 are written by row 5 \(contract_2\) and by",
    ),
    "a range of tiles left out": (
        sub(r"tile_base = 86", "tile_base = 43"),
        "channel gated_0 are written by",
    ),
    "two rows into one channel": (
        sub('"gated_0", "residual_1", "residual_0"', '"gated_0", "residual_0", "residual_0"'),
        r"channel residual_0 are written by row 4 \(contract_1\) and by row 8",
    ),
    "a tile outside of the channel": (
        sub(r'(publish".*bases = array<i64: )96, 104', r"\g<1>4096, 4104"),
        "qkv_0, which has 128",
    ),
    "a value appended twice": (
        sub(r'(append".*bases = array<i64: )0, 8', r"\g<1>0, 0"),
        "a row of state k_cache_0 is written by tasks",
    ),
    "values not appended": (
        sub(r'"tile.append"\(%arg6.*\n', ""),
        "streams state v_cache_0, which no row appends to",
    ),
    "a combine of other splits": (
        sub(r"(tile.combine.*splits = )1", r"\g<1>2"),
        r"row 3 \(combine_0\) awaits channel partial_0, which row 2 .* leaves out where one split has all rows",
    ),
    # assignment
    "a lookup of more pairs than there are": (
        sub("rows = 32 :", "rows = 33 :"),
        r"row 0 \(lookup_0\) has tasks 0 … 32 of a space of 32",
    ),
    "tiles without a segment": (
        sub(r"\{space = 8 :", "{space = 9 :"),
        "has segments for 8 tiles of a space of 9",
    ),
    "sums of fewer tiles than are emitted": (
        sub(r'(engine.(?:fill|multiply)".*tiles = )8', r"\g<1>7"),
        "multiply leaves sums of 7 tiles, and emit takes those of 8",
    ),
    "a GPU that is not there": (
        sub(r"\bdevices = 1", "devices = 2"),
        "GPU 0 is one of 2 GPUs, and the module has GPU 0",
    ),
    "a rotation beyond the SMs": (
        row("contract_1", "rotation = 0", "rotation = 4"),
        "rotated by 4 of 4 SMs",
    ),
    "tiles beyond the space": (
        sub("tile_base = 34", "tile_base = 35"),
        "tasks 35 … 69 of a space of 69",
    ),
    # rings
    "a fill of fewer tiles": (
        sub(r'(engine.fill".*)tiles = 8', r"\g<1>tiles = 7"),
        r"in row 1 \(contract_0\) role tape fills 1 slots of ring tape with 2 blocks and the consumers "
        "drain 1 slots of 4",
    ),
    "a multiply over fewer k": (
        sub(r"(engine.multiply.*)k = 64", r"\g<1>k = 32"),
        "blocks and the consumers drain",
    ),
    "a second loader of the ring": (
        sub(r'(fill_rows[^}]*\}[^}]*\}\) \{sym_name = )"tape"', r'\g<1>"state"'),
        r"filled by role tape in row 1.*by role state in row 2",
    ),
    "a drain of another ring": (
        sub(r'ring = "tape", scale', 'ring = "state", scale'),
        "fill ring tape and the consumers drain ring state",
    ),
    "an unknown ring": (
        sub(r'ring = "tape"', 'ring = "third"'),
        "ring 'third', which is not there",
    ),
    "k and v exchanged": (
        sub(r'engine.fill_rows"\(%arg1, %arg2\)', 'engine.fill_rows"(%arg2, %arg1)'),
        "streams states v_cache_0 and k_cache_0 and the consumers take them for k_cache_0 and v_cache_0",
    ),
    "old rows of fewer heads": (
        sub(r"(fill_rows.*kv_heads = )2", r"\g<1>1"),
        "role tape's fill of ring tape goes over 1 kv heads of state k_cache_0, which has 2",
    ),
    "fewer values of x than are multiplied": (
        sub(r"k = 64( : i64, offset = 0)", r"k = 32\1", 1),
        "tiles of k = 64, and the consumers multiply k = 64 by 32 values of x",
    ),
    "another window": (
        sub(r'(engine.fill_rows".*)window = 0', r"\g<1>window = 5"),
        r"fills ring tape by \(tasks, splits, groups, head size, window, alone, least\)",
    ),
    "a consumer warp too few": (
        sub("{consumer = 4", "{consumer = 3"),
        "4 consumer warps, of which 3 run",
    ),
    "two loaders of states": (sub("state = 1 :", "state = 2 :"), "1 state warps, of which 2 run"),
    # shared memory
    "no multiply": (
        sub(r'"engine.multiply".*\n', "\n", 1),
        "body contract_0 of kind 'contract' has the operations receive, emit",
    ),
    "receive behind multiply": (
        sub(
            r'("engine.receive"(?:.*\n){4})(.*"engine.barrier".*\n)(.*"engine.multiply".*\n)',
            r"\3\2\1",
            1,
        ),
        "has the operations multiply, receive, emit",
    ),
    "no barrier behind receive": (
        sub(r'"engine.barrier"\(\) : \(\) -> \(\)\n(\s+"engine.multiply)', r"\1"),
        "receive leaves activations",
    ),
    "no barrier before emit": (
        sub(r'"engine.barrier"\(\) : \(\) -> \(\)\n(\s+"engine.emit)', r"\1"),
        "multiply leaves partial sums",
    ),
    # order
    "rows out of order": (
        row(
            "contract_1",
            '"attention_0", "residual_0", "embedding_0"',
            '"attention_0", "residual_0", "residual_1"',
        ),
        r"row 4 \(contract_1\) waits for channel residual_1, which row 8 \(contract_\d\) writes later",
    ),
    # reuse
    "records of one copy": (
        sub("depth = 2", "depth = 1"),
        r"candidates_0 has 1 copy: row \d+ \(select_0\).* step 2\n  missing: the path row",
    ),
    "records that nobody awaits": (
        sub(
            r'names = \["candidates_0", "candidates_1"\]',
            'names = ["candidates_0", "candidates_0"]',
        ),
        "leaves records that",
    ),
    "no select": (sub(r'.*body = "select_0".*\n', ""), "no row of .* await the records of all SMs"),
    "two selects": (
        sub(
            r'(.*body = "select_0".*stage = )(\d+)(.*\n)',
            lambda m: m[0] + f"{m[1]}{int(m[2]) + 1}{m[3]}",
        ),
        r"\(select_0\), row \d+ \(select_0\) of",
    ),
    # states
    "no release": (
        sub(r"release = array<i64: 4, 5>, ", ""),
        r"row 1 \(contract_0\) appends to state k_cache_0 with no release",
    ),
    "a release of one state": (
        sub(r"release = array<i64: 4, 5>", "release = array<i64: 4>"),
        "state v_cache_0 with no release",
    ),
    "no acquire": (
        sub(r"acquire = array<i64: 1, 2>, ", ""),
        r"row 2 \(attend_0\) streams state k_cache_0 with no acquire.*what row 1 \(contract_0\) appended.*step 2",
    ),
    "the own row at another place": (
        sub(r'(tile.key".*offset = )64', r"\g<1>96"),
        r"row 2 \(attend_0\) takes the step's own row of state k_cache_0 at 96 of channel qkv_0, and row 1 .* at 64",
    ),
    "values appended before they rotate": (
        sub(r'(append"\()%\d+#0, %\d+#1, %arg4', r"\g<1>%arg6, %arg7, %arg4"),
        "publishes what it appends nowhere",
    ),
    "a state too short": (
        sub(r'x64x16xbf16, "state"', 'x32x16xbf16, "state"'),
        "of 32 positions for a context of 64.*step 33",
    ),
    # capacity
    "more blocks than SMs": (
        lambda t: sub("1x4x2xi32", "1x5x2xi32")(sub(r"\bsms = 4", "sms = 5")(t)),
        "5 blocks wait for each other, one an SM; there are 4",
    ),
    "too many threads": (
        sub("{consumer = 4", "{consumer = 30"),
        "1088 threads make a block; there are 1024",
    ),
    "too many registers": (
        sub(r" registers = \d+ : i64, state", " registers = 600 : i64, state"),
        "registers are asked for by an SM's roles",
    ),
    "a consumer's thread of more registers than its budget": (
        sub(r" registers = \d+ : i64, state", " registers = 112 : i64, state"),
        "112 registers a consumer's thread; there are 104",
    ),
    "a loader's thread of more registers than its budget": (
        sub(r"loader_registers = \d+", "loader_registers = 72"),
        "72 registers a loader's thread; there are 64",
    ),
    "too much shared memory": (
        sub(r"smem_bytes = \d+", "smem_bytes = 9999999"),
        "bytes of shared memory",
    ),
    "rings that overlap": (
        sub("smem_offset = 0 ", "smem_offset = 65536 "),
        "ring tape and activations overlap in shared",
    ),
    "partial sums too small": (less("scratch_offset", 128), "partial sums and scratch overlap"),
    "activations too small": (less("part_offset", 128), "activations and partial sums overlap"),
    "scratch too small": (less("barrier_offset", 128), "scratch and barriers of ring tape overlap"),
    "shared memory too small": (less("smem_bytes", 128), "needs shared memory up to byte"),
    "exchange memory too small": (
        less("exchange_bytes", 256),
        "candidates_1 needs exchange memory up to byte",
    ),
    "channels that overlap": (
        sub(r'offset = \d+ : i64, (payload.*"qkv_0")', r"offset = 0 : i64, \1"),
        "(embedding_0 and qkv_0|qkv_0 and embedding_0) overlap",
    ),
    "a packet across words": (
        sub(r'offset = \d+ : i64, (payload.*"qkv_0")', r"offset = 260 : i64, \1"),
        "qkv_0 is at byte 260",
    ),
    # channels
    "a payload of another type": (
        sub(r'payload = "bf16x2"(.*"qkv_0")', r'payload = "f32"\1'),
        "channel qkv_0 of bf16 has payload 'f32'",
    ),
    "a scope too small": (
        sub(r'level = "gpu"(.*"qkv_0")', r'level = "sm"\1'),
        "qkv_0 joins the SMs of a GPU .* level 'sm'",
    ),
    "records of too few SMs": (
        sub("1x4x2xi32", "1x3x2xi32"),
        "6 values .* for the records of 4 SMs",
    ),
    "a token too few": (sub(r"\btokens = 1", "tokens = 2"), "holds 1 tokens, a step has 2"),
}


@pytest.mark.parametrize("name", MODULE_DEFECTS)
def test_defect_of_the_module(name: str, text: str) -> None:
    defect, message = MODULE_DEFECTS[name]
    with pytest.raises(ScheduleError, match=f"(?s){message}") as error:
        verify(parse(defect(text)))
    assert "\n  missing: " in str(error.value)


@pytest.mark.parametrize(
    "attribute", ["smem_bytes", "exchange_bytes", "part_offset", "tileir.roles"]
)
def test_an_earlier_pass_has_not_run(attribute: str, text: str) -> None:
    broken = sub(rf"{re.escape(attribute)} = (\{{.*?\}}|\d+ : i64), ", "")(text)
    with pytest.raises(ContractError, match=f"has no {attribute!r}"):
        parse(broken)


@pytest.fixture(scope="module")
def norms() -> Problem:
    """Attention that norms, rotates and appends its keys."""
    return parse(engine_text(export_decode(family("qwen3"), 64), "h100"), "h100")


def _attention(problem: Problem, **changes: Any) -> Problem:
    rows = (
        replace(r, body=replace(r.body, **changes)) if r.body.kind == "attend" else r
        for r in problem.rows
    )
    return replace(problem, rows=tuple(rows))


def test_attention_takes_what_it_appends(norms: Problem) -> None:
    verify(norms)
    body = next(row.body for row in norms.rows if row.body.kind == "attend")
    raw = tuple(replace(own, by=()) for own in body.own)
    with pytest.raises(
        ScheduleError, match=r"publishes what it appends at .* through tile.rms_norm"
    ):
        verify(_attention(norms, own=raw))


def test_only_one_task_of_a_kv_head_appends(norms: Problem) -> None:
    (append,) = next(row.body.appends for row in norms.rows if row.body.kind == "attend")
    assert append.places.every > 1
    all_tasks = replace(append, places=replace(append.places, every=1))
    with pytest.raises(ScheduleError, match="is written by tasks 0 and 1"):
        verify(_attention(norms, appends=(all_tasks,)))


def test_attention_that_appends_nothing(norms: Problem) -> None:
    with pytest.raises(ScheduleError, match="streams state k_cache_0, which no row appends to"):
        verify(_attention(norms, appends=()))


@pytest.mark.parametrize("behind", ["allocate-memory", "verify-schedule"])
def test_no_compile_skips_the_proof(behind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever passes are put in, also behind the proof, what is compiled is proved."""

    @dataclass(frozen=True)
    class OneCopy(Pass):
        name: ClassVar[str] = "one-copy"
        before: ClassVar[str] = "engine"
        after: ClassVar[str] = "engine"

        def run(self, module: Any) -> None:
            for channel in walk(module, "engine.channel"):
                put(channel, depth=1)

    monkeypatch.setattr(registry, "_added", {})
    registry.register(OneCopy)
    with pytest.raises(ScheduleError, match="channel candidates_0 has 1 copy"):
        tileir.compile(export_own(OwnModel()), target="virtual", insert={behind: "one-copy"})
