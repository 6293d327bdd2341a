// RUN: tileir-opt %s --pass-pipeline='builtin.module(schedule-pipeline{target=virtual})' | filecheck %s

// 6 tiles on 4 SMs: the next stage's remainder begins 2 SMs on. Two ranges of one space share a phase, and so do
// stages that read the same channel; who reads both comes after both.

!x = tensor<1x64xbf16, "channel">
!h = tensor<1x192xbf16, "channel">
!table = tensor<128x64xbf16, "buffer">

// CHECK: tileir.rings = {fed_window = 3 : i64, slot_bytes = {{[0-9]+}} : i64, window = 3 : i64}
// CHECK-LABEL: func.func @step
// CHECK: tile.map
// CHECK: phase = 0 : i64, rotation = 0 : i64
// CHECK: %[[FIRST:[0-9]+]] = "tile.contract"
// CHECK: phase = 1 : i64, rotation = 0 : i64, tile_base = 0 : i64, tiles = 6 : i64
// CHECK: "tile.contract"(%{{[0-9]+}}, %[[FIRST]])
// CHECK: phase = 1 : i64, rotation = 2 : i64, tile_base = 6 : i64, tiles = 6 : i64
// CHECK: "tile.contract"
// CHECK: phase = 2 : i64, rotation = 0 : i64, tile_base = 0 : i64, tiles = 4 : i64
module attributes {tileir.level = "tile"} {
  func.func @step() -> !x {
    %table = "tile.buffer"() {sym_name = "embed", kind = "tensor"} : () -> !table
    %x = "tile.map"() ({
      %value = "tile.lookup"(%table) {scale = 1.0 : f64} : (!table) -> f32
      "tile.yield"(%value) : (f32) -> ()
    }) {rows = 32 : i64} : () -> !x
    %low = "tile.contract"(%x) ({
    ^bb0(%value: f32):
      "tile.yield"(%value) : (f32) -> ()
    }, {
      "tile.segment"() ({
      ^bb0(%lo: f32, %hi: f32):
        "tile.publish"(%lo, %hi) {bases = array<i64: 0, 8>} : (f32, f32) -> ()
        "tile.yield"() : () -> ()
      }) {tiles = 12 : i64, inner = 12 : i64, step = 16 : i64, outer = 0 : i64, sources = array<i64: 0, 0, 0, 8>} : () -> ()
      "tile.yield"() : () -> ()
    }) {weights = ["up"], k = 64 : i64, groups = 1 : i64, k_parts = 1 : i64, tile_base = 0 : i64, tiles = 6 : i64} : (!x) -> !h
    %high = "tile.contract"(%x, %low) ({
    ^bb0(%value: f32):
      "tile.yield"(%value) : (f32) -> ()
    }, {
      "tile.segment"() ({
      ^bb0(%lo: f32, %hi: f32):
        "tile.publish"(%lo, %hi) {bases = array<i64: 0, 8>} : (f32, f32) -> ()
        "tile.yield"() : () -> ()
      }) {tiles = 12 : i64, inner = 12 : i64, step = 16 : i64, outer = 0 : i64, sources = array<i64: 0, 0, 0, 8>} : () -> ()
      "tile.yield"() : () -> ()
    }) {weights = ["up"], k = 64 : i64, groups = 1 : i64, k_parts = 1 : i64, tile_base = 6 : i64, tiles = 6 : i64} : (!x, !h) -> !h
    %y = "tile.contract"(%high) ({
    ^bb0(%value: f32):
      "tile.yield"(%value) : (f32) -> ()
    }, {
      "tile.segment"() ({
      ^bb0(%lo: f32, %hi: f32):
        %a, %b = "tile.residual"(%lo, %hi, %x) {bases = array<i64: 0, 8>} : (f32, f32, !x) -> (f32, f32)
        "tile.publish"(%a, %b) {bases = array<i64: 0, 8>} : (f32, f32) -> ()
        "tile.yield"() : () -> ()
      }) {tiles = 4 : i64, inner = 4 : i64, step = 16 : i64, outer = 0 : i64, sources = array<i64: 0, 0, 0, 8>} : () -> ()
      "tile.yield"() : () -> ()
    }) {weights = ["down"], k = 192 : i64, groups = 1 : i64, k_parts = 1 : i64, tile_base = 0 : i64, tiles = 4 : i64} : (!h) -> !x
    return %y : !x
  }
}
