// RUN: tileir-opt %s --split-input-file --verify-diagnostics --pass-pipeline='builtin.module(fuse-communication)'


!table = tensor<128x64xbf16, "buffer">
!x = tensor<1x64xbf16, "channel">
module attributes {tileir.level = "tile"} {
  func.func @step() -> !x {
    %table = "tile.buffer"() {sym_name = "embed", kind = "tensor"} : () -> !table
    %x = "tile.map"() ({
      %value = "tile.lookup"(%table) {scale = 1.0 : f64} : (!table) -> f32
      "tile.yield"(%value) : (f32) -> ()
    }) {rows = 32 : i64, devices = array<i64: 0>} : () -> !x
    // expected-error @+1 {{tile.contract has no 'devices'}}
    %y = "tile.contract"(%x) ({
    ^bb0(%value: f32):
      "tile.yield"(%value) : (f32) -> ()
    }, {
      "tile.segment"() ({
      ^bb0(%lo: f32, %hi: f32):
        "tile.publish"(%lo, %hi) {bases = array<i64: 0, 8>} : (f32, f32) -> ()
        "tile.yield"() : () -> ()
      }) {tiles = 4 : i64, inner = 4 : i64, step = 16 : i64, outer = 0 : i64, sources = array<i64: 0, 0, 0, 8>} : () -> ()
      "tile.yield"() : () -> ()
    }) {weights = ["w"], k = 64 : i64, groups = 1 : i64, k_parts = 1 : i64, tile_base = 0 : i64, tiles = 4 : i64} : (!x) -> !x
    return %y : !x
  }
}
