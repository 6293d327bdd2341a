// RUN: tileir-opt %s --pass-pipeline='builtin.module(specialize-block{target=virtual})' | filecheck %s

// Ranges of a larger device are split further from where they begin; select reads those that stayed, too. A window of 16
// rows is not worth a second split, however long the context.

!table = tensor<128x64xbf16, "buffer">
!x = tensor<1x64xbf16, "channel">
!c = tensor<1x132x2xi32, "channel">
!y = tensor<1x128xbf16, "channel">
!s = tensor<2x4096x16xbf16, "state">
!partial = tensor<1x4x9x18xf32, "channel">
module attributes {tileir.level = "tile", tileir.target = "h100", tileir.context = 4096 : i64} {
  func.func @step() -> tensor<?xi32> {
    %table = "tile.buffer"() {sym_name = "embed", kind = "tensor"} : () -> !table
    %x = "tile.map"() ({
      %value = "tile.lookup"(%table) {scale = 1.0 : f64} : (!table) -> f32
      "tile.yield"(%value) : (f32) -> ()
    }) {rows = 32 : i64} : () -> !x
    %k = "tile.state"() {sym_name = "k"} : () -> !s
    %v = "tile.state"() {sym_name = "v"} : () -> !s
    %y = "tile.contract"(%x) ({
    ^bb0(%value: f32):
      "tile.yield"(%value) : (f32) -> ()
    }, {
      "tile.segment"() ({
      ^bb0(%lo: f32, %hi: f32):
        "tile.publish"(%lo, %hi) {bases = array<i64: 0, 8>} : (f32, f32) -> ()
        "tile.yield"() : () -> ()
      }) {tiles = 8 : i64, inner = 8 : i64, step = 16 : i64, outer = 0 : i64, sources = array<i64: 0, 0, 0, 8>} : () -> ()
      "tile.yield"() : () -> ()
    }) {weights = ["w"], k = 64 : i64, groups = 1 : i64, k_parts = 1 : i64, tile_base = 0 : i64, tiles = 8 : i64} : (!x) -> !y
    // CHECK: tile.attend
    // CHECK: splits = 1 : i64, value_size = 16 : i64, window = 16 : i64
    // CHECK-SAME: -> tensor<1x4x1x18xf32, "channel">
    %p = "tile.attend"(%k, %v) ({
      "tile.query"(%y) {offset = 0 : i64, stride = 16 : i64, size = 16 : i64} : (!y) -> ()
      "tile.key"(%y) {offset = 64 : i64, stride = 16 : i64, size = 16 : i64} : (!y) -> ()
      "tile.value"(%y) {offset = 96 : i64, stride = 16 : i64, size = 16 : i64} : (!y) -> ()
      "tile.yield"() : () -> ()
    }) {heads = 4 : i64, kv_heads = 2 : i64, head_size = 16 : i64, scale = 0.25 : f64, window = 16 : i64, softcap = 0.0 : f64, splits = 9 : i64, groups = 2 : i64, value_size = 16 : i64} : (!s, !s) -> !partial
    // CHECK: %[[A:.*]] = "tile.contract"
    // CHECK: tile_base = 0 : i64, tiles = 40 : i64, {{.*}} -> tensor<1x4x2xi32, "channel">
    // CHECK: %[[B:.*]] = "tile.contract"
    // CHECK: tile_base = 40 : i64, tiles = 50 : i64, {{.*}} -> tensor<1x4x2xi32, "channel">
    // CHECK: %[[C:.*]] = "tile.contract"
    // CHECK: tile_base = 90 : i64, tiles = 50 : i64, {{.*}} -> tensor<1x4x2xi32, "channel">
    // CHECK: "tile.select"(%[[A]], %[[B]], %[[C]])
    %c = "tile.contract"(%x) ({
    ^bb0(%value: f32):
      "tile.yield"(%value) : (f32) -> ()
    }, {
      "tile.segment"() ({
      ^bb0(%lo: f32, %hi: f32):
        "tile.logits"(%lo, %hi) {bases = array<i64: 0, 8>} : (f32, f32) -> ()
        "tile.candidate"(%lo, %hi) {bases = array<i64: 0, 8>} : (f32, f32) -> ()
        "tile.yield"() : () -> ()
      }) {tiles = 140 : i64, inner = 140 : i64, step = 16 : i64, outer = 0 : i64, sources = array<i64: 0, 0, 0, 8>} : () -> ()
      "tile.yield"() : () -> ()
    }) {weights = ["head"], k = 64 : i64, groups = 1 : i64, k_parts = 1 : i64, tile_base = 0 : i64, tiles = 40 : i64} : (!x) -> !c
    %d = "tile.contract"(%x) ({
    ^bb0(%value: f32):
      "tile.yield"(%value) : (f32) -> ()
    }, {
      "tile.segment"() ({
      ^bb0(%lo: f32, %hi: f32):
        "tile.logits"(%lo, %hi) {bases = array<i64: 0, 8>} : (f32, f32) -> ()
        "tile.candidate"(%lo, %hi) {bases = array<i64: 0, 8>} : (f32, f32) -> ()
        "tile.yield"() : () -> ()
      }) {tiles = 140 : i64, inner = 140 : i64, step = 16 : i64, outer = 0 : i64, sources = array<i64: 0, 0, 0, 8>} : () -> ()
      "tile.yield"() : () -> ()
    }) {weights = ["head"], k = 64 : i64, groups = 1 : i64, k_parts = 1 : i64, tile_base = 40 : i64, tiles = 100 : i64} : (!x) -> !c
    %t = "tile.select"(%c, %d) {kind = "argmax"} : (!c, !c) -> tensor<?xi32>
    return %t : tensor<?xi32>
  }
}
