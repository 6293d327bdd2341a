"""Generated kernels: assembled by ptxas, without spills, no longer for deeper models."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import tileir
from test.models import arrays, tiny_llama, tiny_mla, tiny_moe
from tileir.codegen.layout import CONSTANTS
from tileir.codegen.ptx import DECODE, assemble
from tileir.codegen.weights import early_turns
from tileir.errors import TileirError
from tileir.frontends.torch_export import export_decode
from tileir.package import Package
from tileir.packing import pack_row, tape_layout
from tileir.runtime.session import with_constants
from tileir.target import TARGETS, Target


def compiled(**changes: Any) -> Package:
    return tileir.compile(export_decode(tiny_llama(**changes), 64), target="h100")


@pytest.fixture(scope="module")
def package() -> Package:
    return compiled()


def test_kernel_assembles_without_spills(package: Package) -> None:
    facts = package.manifest["assembled"]
    assert facts["spill_bytes"] == 0
    assert 0 < facts["registers"] <= 128
    assert facts["barriers"] >= 2


def test_ptx_does_not_grow_with_layers(package: Package) -> None:
    """Layers are rows of the table: the code is the same."""
    deep = compiled(num_hidden_layers=7)
    assert len(deep.manifest["table"]) > len(package.manifest["table"])
    assert abs(len(deep.ptx) - len(package.ptx)) < 64


def test_ptx_uses_what_the_design_names(package: Package) -> None:
    ptx = package.ptx
    for text in (
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint",
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",
        "ld.relaxed.gpu.global.b64",
        "st.relaxed.gpu.global.b64",
        "mbarrier.try_wait",
        "fence.proxy.async",
        "setmaxnreg.inc.sync.aligned.u32",
        "st.release.sys",
    ):
        assert text in ptx, text


def test_the_second_window_is_there_where_it_is_narrower() -> None:
    """A ring that is never fed less is not looked at."""
    h100, h200 = (
        tileir.compile(export_decode(tiny_llama(), 64), target=t) for t in ("h100", "h200")
    )
    assert "mbarrier.test_wait" not in h100.ptx
    assert h100.manifest["launch_limits"]["fed_window"] == [3, 3]
    assert h200.ptx.count("mbarrier.test_wait") == 2  # of weights and of old rows
    assert h200.manifest["launch"]["fed_window"] < h200.manifest["launch"]["tape_window"]
    assert h200.manifest["launch_limits"]["fed_window"] == [1, 12]


@pytest.mark.parametrize(
    ("words", "packets", "turns", "slots", "found"),
    [
        (60, 4, 8, 11, 6),  # x of 4096 values by 512 threads
        (60, 14, 28, 11, 4),  # of 14336
        (60, 40, 40, 11, 3),  # of more than are polled at once
        (60, 2, 1, 12, 1),  # a tile gives a warp one block
        (60, 1, 0, 12, 0),
        (60, 4, 8, 3, 2),  # a ring of three slots
        (0, 4, 8, 11, 2),
    ],
)
def test_blocks_wait_for_x_in_registers_that_packets_leave(
    words: int, packets: int, turns: int, slots: int, found: int
) -> None:
    assert early_turns(words, packets, turns, slots) == found


def test_attention_takes_fewer_rows_at_once_where_registers_run_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A block of 16 rows turns two weights of rows; a target of half the warps has no room for two blocks."""
    program = export_decode(tiny_llama(head_dim=64), 64)
    assert tileir.compile(program, target="h100").ptx.count("movmatrix") == 4
    few = replace(TARGETS["h100"], consumer_warps=8, slot_bytes=8192)
    monkeypatch.setitem(TARGETS, "h100", few)
    package = tileir.compile(program, target="h100")
    assert package.ptx.count("movmatrix") == 2
    assert package.manifest["assembled"]["spill_bytes"] == 0


def test_slots_of_too_few_rows_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    few = replace(TARGETS["h100"], consumer_warps=8, slot_bytes=8192)
    monkeypatch.setitem(TARGETS, "h100", few)
    program = export_decode(tiny_llama(head_dim=256), 64)
    with pytest.raises(TileirError, match="slots of 8192 bytes hold 8 rows of heads of 256"):
        tileir.compile(program, target="h100")


def test_replicas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a second copy is measured as cheaper, what all SMs read has room for one; launches may use it."""
    cheap = replace(TARGETS["h100"], copied_us=0.1)
    monkeypatch.setitem(TARGETS, "h100", cheap)
    package = compiled()
    lines = [line for line in package.engine_text.splitlines() if "engine.channel" in line]
    twice = {
        line.split('sym_name = "')[1].split('"')[0] for line in lines if "replicas = 2" in line
    }
    assert {"embedding_0", "residual_0", "attention_0", "gated_0"} <= twice
    assert not twice & {"qkv_0", "candidates_0"}
    assert package.manifest["launch_limits"]["replicas"] == [1, 2]
    assert package.manifest["launch"]["replicas"] == 1


def test_constants_of_the_ptx_cost_nothing_unless_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TARGETS, "h100", replace(TARGETS["h100"], copied_us=0.1))
    ptx, sizes = compiled().ptx, []
    for replicas, sleep in ((1, 0), (2, 0), (1, 20)):
        text = with_constants(ptx, {"replicas": replicas, "poll_sleep_ns": sleep})
        cubin, facts = assemble(text, TARGETS["h100"])
        assert facts[DECODE].spill_bytes == 0
        sizes.append(len(cubin))
    assert with_constants(ptx, CONSTANTS) == ptx
    assert sizes[0] == min(sizes)
    assert sizes[0] < max(sizes)


def test_tape_holds_every_weight_once(package: Package) -> None:
    """The recipe's blocks are a permutation of the weights, padded."""
    weights = arrays(tiny_llama())
    tape = package.packing[0]["tape"]
    found = np.concatenate(
        [b.reshape(-1) for row in tape for b in pack_row(row, 132, weights, np.float32)]
    )
    names = {s[h]["tensor"] for row in tape for s in row["segments"] for h in ("lo", "hi")}
    wanted = np.concatenate([weights[n].reshape(-1) for n in sorted(names)])
    found, wanted = np.sort(found[found != 0]), np.sort(wanted[wanted != 0])
    assert np.array_equal(found, wanted)
    assert tape_layout(tape, 132).size == package.manifest["memory"]["tape"]


@pytest.mark.parametrize("size", [64, 80, 96, 112, 128, 192, 256])
def test_head_sizes(size: int) -> None:
    assert compiled(head_dim=size).manifest["assembled"]["spill_bytes"] == 0


def test_head_sizes_that_have_no_kernel() -> None:
    with pytest.raises(TileirError, match="heads of 272 values"):
        compiled(head_dim=272)


def test_queries_that_do_not_fit_a_product(monkeypatch: pytest.MonkeyPatch) -> None:
    greedy = replace(TARGETS["h100"], queries=16)
    monkeypatch.setitem(TARGETS, "h100", greedy)
    with pytest.raises(TileirError, match=r"(?s)16 queries a task .* kernels take 8"):
        compiled(num_attention_heads=16, num_key_value_heads=1)


def test_a_kernel_that_spills_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def tight(ptx: str, target: Target) -> Any:
        cubin, facts = assemble(ptx, target)
        return cubin, {n: replace(f, spill_bytes=4) for n, f in facts.items()}

    monkeypatch.setattr("tileir.compiler.assemble", tight)
    with pytest.raises(TileirError, match="spills 4 bytes of registers"):
        compiled()
    # One that traces may: clocks take registers, and what it says comes before what it costs.
    traced = tileir.compile(export_decode(tiny_llama(), 64), target="h100", trace=True)
    assert traced.manifest["assembled"]["spill_bytes"] == 4


@pytest.mark.parametrize("queries", [1, 7, 8, 16])
def test_any_number_of_queries_of_a_kv_head(queries: int) -> None:
    """Up to eight are one task; sixteen are two groups."""
    package = compiled(
        hidden_size=64 * queries, num_attention_heads=queries, num_key_value_heads=1, head_dim=128
    )
    assert package.manifest["assembled"]["spill_bytes"] == 0


REFUSED = {
    "tokens": (tiny_llama, {"tokens": 4}, "4 tokens"),
    "GPUs": (tiny_llama, {"devices": 2}, "2 GPUs"),
    "pages": (tiny_llama, {"page": 16}, "16 rows a page"),
    "experts": (tiny_moe, {}, "level 'sm'"),
    "latents": (tiny_mla, {}, "level 'sm'"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_kernels_are_not_generated_for(what: str) -> None:
    """Refused by name, and the way on is said; the reference device runs all of it."""
    model, options, said = REFUSED[what]
    with pytest.raises(TileirError, match=rf"(?s){said}.*the reference device runs it"):
        tileir.compile(export_decode(model(), 64), target="h100", **options)
