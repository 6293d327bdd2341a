// RUN: tileir-opt %s --split-input-file --pass-pipeline='builtin.module(schedule-pipeline{target=h200})' | filecheck %s
// RUN: tileir-opt %s --split-input-file --pass-pipeline='builtin.module(schedule-pipeline{target=h100})' | filecheck %s --check-prefix=H100

// Two phases. Half a ring of each of 132 SMs holds 12.4 MiB: 24 MiB of weights are no more than that for each phase,
// 32 MiB are. An H200 then waits for memory, and has a wider window while its rings are fed.

!x = tensor<1x4096xbf16, "channel">
!table = tensor<128x4096xbf16, "buffer">

// CHECK: tileir.rings = {fed_window = 1 : i64, slot_bytes = 16384 : i64, window = 3 : i64}
// H100: tileir.rings = {fed_window = 3 : i64, slot_bytes = 16384 : i64, window = 3 : i64}
module attributes {tileir.level = "tile"} {
  func.func @short() -> !x {
    %table = "tile.buffer"() {sym_name = "embed", kind = "tensor"} : () -> !table
    %x = "tile.map"() ({
      %value = "tile.lookup"(%table) {scale = 1.0 : f64} : (!table) -> f32
      "tile.yield"(%value) : (f32) -> ()
    }) {rows = 2048 : i64} : () -> !x
    %y = "tile.contract"(%x) ({
    ^bb0(%value: f32):
      "tile.yield"(%value) : (f32) -> ()
    }, {
      "tile.segment"() ({
      ^bb0(%lo: f32, %hi: f32):
        "tile.publish"(%lo, %hi) {bases = array<i64: 0, 8>} : (f32, f32) -> ()
        "tile.yield"() : () -> ()
      }) {tiles = 192 : i64, inner = 192 : i64, step = 16 : i64, outer = 0 : i64, sources = array<i64: 0, 0, 0, 8>} : () -> ()
      "tile.yield"() : () -> ()
    }) {weights = ["w"], k = 4096 : i64, groups = 1 : i64, k_parts = 1 : i64, tile_base = 0 : i64, tiles = 192 : i64} : (!x) -> !x
    return %y : !x
  }
}

// -----

!x = tensor<1x4096xbf16, "channel">
!table = tensor<128x4096xbf16, "buffer">

// CHECK: tileir.rings = {fed_window = 2 : i64, slot_bytes = 16384 : i64, window = 4 : i64}
// H100: tileir.rings = {fed_window = 3 : i64, slot_bytes = 16384 : i64, window = 3 : i64}
module attributes {tileir.level = "tile"} {
  func.func @long() -> !x {
    %table = "tile.buffer"() {sym_name = "embed", kind = "tensor"} : () -> !table
    %x = "tile.map"() ({
      %value = "tile.lookup"(%table) {scale = 1.0 : f64} : (!table) -> f32
      "tile.yield"(%value) : (f32) -> ()
    }) {rows = 2048 : i64} : () -> !x
    %y = "tile.contract"(%x) ({
    ^bb0(%value: f32):
      "tile.yield"(%value) : (f32) -> ()
    }, {
      "tile.segment"() ({
      ^bb0(%lo: f32, %hi: f32):
        "tile.publish"(%lo, %hi) {bases = array<i64: 0, 8>} : (f32, f32) -> ()
        "tile.yield"() : () -> ()
      }) {tiles = 256 : i64, inner = 256 : i64, step = 16 : i64, outer = 0 : i64, sources = array<i64: 0, 0, 0, 8>} : () -> ()
      "tile.yield"() : () -> ()
    }) {weights = ["w"], k = 4096 : i64, groups = 1 : i64, k_parts = 1 : i64, tile_base = 0 : i64, tiles = 256 : i64} : (!x) -> !x
    return %y : !x
  }
}

// -----

// A step of no stages waits for nothing.

// CHECK: tileir.rings = {fed_window = 1 : i64, slot_bytes = 16384 : i64, window = 3 : i64}
// H100: tileir.rings = {fed_window = 3 : i64, slot_bytes = 16384 : i64, window = 3 : i64}
module attributes {tileir.level = "tile"} {
  func.func @empty() {
    return
  }
}
