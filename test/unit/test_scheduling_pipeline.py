"""Rotations, phases and rings as plain data; and that more layers make no more bodies."""

import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tileir import target as targets
from tileir.dialect.attributes import get, walk
from tileir.errors import TileirError
from tileir.mlir import ir, new_context
from tileir.passes.pipeline import run_pipeline
from tileir.scheduling.assign import shares
from tileir.scheduling.pipeline import choose_rings, least_ring_bytes, phases, rotations

SMS = st.integers(1, 140)


@given(SMS, st.lists(st.integers(1, 5000), max_size=40))
def test_rotations_even_out_all_stages(sms: int, tiles: list[int]) -> None:
    total = np.zeros(sms, np.int64)
    for count, rotation in zip(tiles, rotations(tiles, sms), strict=True):
        assert 0 <= rotation < sms
        total += shares(count, rotation, sms)[1]
    assert total.sum() == sum(tiles)
    assert total.max() - total.min() <= 1


def test_stages_without_tiles_do_not_turn() -> None:
    assert rotations([3, 0, 0, 2], 8) == [0, 5, 5, 5]


@given(st.data())
def test_phases_are_as_late_as_delays_nobody(data: Any) -> None:
    stages = data.draw(st.integers(1, 12))
    pair = st.tuples(st.integers(0, stages - 1), st.integers(0, stages - 1))
    edges = [(min(e), max(e)) for e in data.draw(st.lists(pair)) if e[0] != e[1]]
    found = phases(stages, edges)
    longest = [0] * stages
    for a, b in sorted(edges, key=lambda edge: edge[1]):
        longest[b] = max(longest[b], longest[a] + 1)
    assert max(found) == max(longest)
    for stage in range(stages):
        behind = [found[b] for a, b in edges if a == stage]
        assert found[stage] == (min(behind) - 1 if behind else longest[stage])


@given(
    st.integers(0, 400_000), st.sampled_from([4096, 16384, 65536]), st.integers(1, 6), st.booleans()
)
def test_rings_fit(free: int, slot_bytes: int, window: int, state: bool) -> None:
    rings = choose_rings(free, slot_bytes, window, state=state)
    assert (rings is None) == (free < least_ring_bytes(slot_bytes, state=state))
    if rings is not None:
        slots = rings.tape_slots + rings.state_slots
        assert slots * slot_bytes <= free
        assert rings.tape_slots == 12 or (slots + 1) * slot_bytes > free
        assert 1 <= rings.tape_window <= min(window, rings.tape_slots)
        assert 1 <= rings.state_window < rings.state_slots if state else rings.state_slots == 0


def test_register_file_bounds_the_roles(monkeypatch: pytest.MonkeyPatch) -> None:
    greedy = replace(targets.TARGETS["h100"], name="greedy", registers=120)
    monkeypatch.setitem(targets.TARGETS, "greedy", greedy)
    with new_context(), ir.Location.unknown():
        module = ir.Module.parse('module attributes {tileir.level = "tile"} {}')
        with pytest.raises(TileirError, match=r"consumers of 120 .* need 69632"):
            run_pipeline(module, "specialize-warp{target=greedy}")


@pytest.fixture(scope="module")
def engines() -> dict[int, list[list[str]]]:
    """[bodies as text, rows' bodies] of models of 2, 5 and 126 layers."""
    found = {}
    for layers in (2, 5, 126):
        with new_context(), ir.Location.unknown():
            module = ir.Module.parse(_model(layers))
            start = time.perf_counter()
            run_pipeline(module, PIPELINE)
            assert time.perf_counter() - start < 10
            bodies = [_structure(o) for o in walk(module, "engine.body")]
            found[layers] = [bodies, [get(o, "body") for o in walk(module, "engine.row")]]
    return found


def test_bodies_do_not_grow_with_layers(engines: dict[int, list[list[str]]]) -> None:
    bodies, rows = engines[2]
    assert len(bodies) == len(set(rows)) == 5
    assert len(set(bodies)) == len(bodies)
    for layers in (5, 126):
        assert engines[layers][0] == bodies
        assert len(engines[layers][1]) == 1 + 4 * layers
        assert engines[layers][1][1:] == rows[1:5] * layers


PIPELINE = (
    "select-sync,specialize-warp{target=virtual},schedule-pipeline{target=virtual},"
    "outline-stages{target=virtual},allocate-memory{target=virtual}"
)


def _structure(body: Any) -> str:
    """A body's text by itself: elsewhere values are numbered after everything declared before."""
    alone = ir.Module.create()
    alone.body.append(body.operation.clone())
    return str(alone)


CONTRACT = """
    %{out} = "tile.contract"(%{x}) ({{
    ^bb0(%value: f32):
      "tile.yield"(%value) : (f32) -> ()
    }}, {{
      "tile.segment"() ({{
      ^bb0(%lo: f32, %hi: f32):
        {epilogue}
        "tile.yield"() : () -> ()
      }}) {{tiles = {tiles} : i64, inner = {tiles} : i64, step = 16 : i64, outer = 0 : i64,
           sources = array<i64: 0, 0, 0, 8>}} : () -> ()
      "tile.yield"() : () -> ()
    }}) {{weights = ["{out}.weight"], k = 64 : i64, groups = 1 : i64, k_parts = 1 : i64,
         tile_base = 0 : i64, tiles = {tiles} : i64, devices = array<i64: 0>}} : (!x) -> !x"""
LAYER = """
    %k{i} = "tile.state"() {{sym_name = "k_{i}"}} : () -> !kv
    %v{i} = "tile.state"() {{sym_name = "v_{i}"}} : () -> !kv{qkv}
    %p{i} = "tile.attend"(%k{i}, %v{i}) ({{
      "tile.query"(%q{i}) {{offset = 0 : i64, stride = 16 : i64, size = 16 : i64}} : (!x) -> ()
      "tile.key"(%q{i}) {{offset = 32 : i64, stride = 16 : i64, size = 16 : i64}} : (!x) -> ()
      "tile.value"(%q{i}) {{offset = 48 : i64, stride = 16 : i64, size = 16 : i64}} : (!x) -> ()
      "tile.yield"() : () -> ()
    }}) {{heads = 2 : i64, kv_heads = 1 : i64, groups = 1 : i64, head_size = 16 : i64,
      value_size = 16 : i64, scale = 0.25 : f64, window = 0 : i64, softcap = 0.0 : f64,
      splits = 2 : i64, devices = array<i64: 0>}} : (!kv, !kv) -> !partial
    %a{i} = "tile.map"() ({{
      %value = "tile.combine"(%p{i}) : (!partial) -> f32
      "tile.yield"(%value) : (f32) -> ()
    }}) {{rows = 4 : i64, devices = array<i64: 0>}} : () -> !x{out}"""
PUBLISH = '"tile.publish"(%{}, %{}) {{bases = array<i64: 0, 8>}} : (f32, f32) -> ()'


def _model(layers: int) -> str:
    """Tile level: a lookup, then layers of projection, attention, combine and residual."""
    text = ""
    for i in range(layers):
        appends = "".join(
            f'"tile.append"(%lo, %hi, %{state}{i}) {{bases = array<i64: 0, 8>}}'
            " : (f32, f32, !kv) -> ()\n"
            for state in "kv"
        )
        residual = (
            f'%a, %b = "tile.residual"(%lo, %hi, %x{i}) {{bases = array<i64: 0, 8>}}'
            " : (f32, f32, !x) -> (f32, f32)\n"
        )
        text += LAYER.format(
            i=i,
            qkv=CONTRACT.format(
                out=f"q{i}", x=f"x{i}", tiles=4, epilogue=appends + PUBLISH.format("lo", "hi")
            ),
            out=CONTRACT.format(
                out=f"x{i + 1}", x=f"a{i}", tiles=4, epilogue=residual + PUBLISH.format("a", "b")
            ),
        )
    return f"""
!x = tensor<1x64xbf16, "channel">
!kv = tensor<1x64x16xbf16, "state">
!partial = tensor<1x2x2x18xf32, "channel">
!table = tensor<128x64xbf16, "buffer">
module attributes {{tileir.level = "tile",
                    tileir.context = 64 : i64, tileir.vocabulary = 128 : i64}} {{
  func.func @step() -> !x {{
    %table = "tile.buffer"() {{sym_name = "embed", kind = "tensor"}} : () -> !table
    %x0 = "tile.map"() ({{
      %value = "tile.lookup"(%table) {{scale = 1.0 : f64}} : (!table) -> f32
      "tile.yield"(%value) : (f32) -> ()
    }}) {{rows = 32 : i64, devices = array<i64: 0>}} : () -> !x{text}
    return %x{layers} : !x
  }}
}}"""
