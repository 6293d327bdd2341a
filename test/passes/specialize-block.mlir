// RUN: tileir-opt %s --pass-pipeline='builtin.module(specialize-block{target=virtual})' | filecheck %s
// RUN: tileir-opt %s --pass-pipeline='builtin.module(specialize-block{target=virtual},specialize-block{target=virtual})' | filecheck %s
// RUN: tileir-opt %s --pass-pipeline='builtin.module(specialize-block{target=h100})' | filecheck %s --check-prefix=H100
// RUN: tileir-opt %s --pass-pipeline='builtin.module(specialize-block{target=h100},specialize-block{target=virtual})' | filecheck %s

// Four SMs take 64 tiles at once: 150 become three ranges that fill one channel, and who read it reads the last. 130
// with candidates become three with a channel each. Nothing changes the second time. An H100 takes all at once.

!table = tensor<128x64xbf16, "buffer">
!x = tensor<1x64xbf16, "channel">
!y = tensor<1x2400xbf16, "channel">
!s = tensor<2x4096x16xbf16, "state">
!partial = tensor<1x4x1x18xf32, "channel">
// CHECK: tileir.target = "virtual"
// H100: tileir.target = "h100"
module attributes {tileir.level = "tile", tileir.context = 4096 : i64, tileir.vocabulary = 2080 : i64} {
  func.func @step() -> tensor<?xi32> {
    %table = "tile.buffer"() {sym_name = "embed", kind = "tensor"} : () -> !table
    %x = "tile.map"() ({
      %value = "tile.lookup"(%table) {scale = 1.0 : f64} : (!table) -> f32
      "tile.yield"(%value) : (f32) -> ()
    }) {rows = 32 : i64, devices = array<i64: 0>} : () -> !x
    %k = "tile.state"() {sym_name = "k"} : () -> !s
    %v = "tile.state"() {sym_name = "v"} : () -> !s
    // CHECK: %[[X:.*]] = "tile.map"
    // CHECK: %[[A:.*]] = "tile.contract"(%[[X]]) ({
    // CHECK: tile.segment
    // CHECK: {inner = 150 : i64, {{.*}}tiles = 150 : i64}
    // CHECK: {devices = array<i64: 0>, groups = 1 : i64, k = 64 : i64, k_parts = 1 : i64, tile_base = 0 : i64, tiles = 50 : i64, weights = ["w"]}
    // CHECK: %[[B:.*]] = "tile.contract"(%[[X]], %[[A]]) ({
    // CHECK: tile.segment
    // CHECK: {inner = 150 : i64, {{.*}}tiles = 150 : i64}
    // CHECK: {devices = array<i64: 0>, {{.*}}tile_base = 50 : i64, tiles = 50 : i64, weights = ["w"]}
    // CHECK: %[[Y:.*]] = "tile.contract"(%[[X]], %[[B]]) ({
    // CHECK: tile_base = 100 : i64, tiles = 50 : i64
    // H100: tile_base = 0 : i64, tiles = 150 : i64
    %y = "tile.contract"(%x) ({
    ^bb0(%value: f32):
      "tile.yield"(%value) : (f32) -> ()
    }, {
      "tile.segment"() ({
      ^bb0(%lo: f32, %hi: f32):
        "tile.publish"(%lo, %hi) {bases = array<i64: 0, 8>} : (f32, f32) -> ()
        "tile.yield"() : () -> ()
      }) {tiles = 150 : i64, inner = 150 : i64, step = 16 : i64, outer = 0 : i64, sources = array<i64: 0, 0, 0, 8>} : () -> ()
      "tile.yield"() : () -> ()
    }) {weights = ["w"], k = 64 : i64, groups = 1 : i64, k_parts = 1 : i64, tile_base = 0 : i64, tiles = 150 : i64, devices = array<i64: 0>} : (!x) -> !y
    // Two kv heads over four SMs: two splits.
    // CHECK: %[[P:.*]] = "tile.attend"
    // CHECK: "tile.query"(%[[Y]])
    // CHECK: alone = 16 : i64
    // CHECK-SAME: least = 8 : i64
    // CHECK-SAME: splits = 2 : i64
    // CHECK-SAME: -> tensor<1x4x2x18xf32, "channel">
    // CHECK: "tile.combine"(%[[P]]) {alone = 16 : i64, least = 8 : i64, splits = 2 : i64, window = 0 : i64} : (tensor<1x4x2x18xf32, "channel">) -> f32
    // H100: splits = [[S:[0-9]+]] : i64
    // H100-SAME: -> tensor<1x4x[[S]]x18xf32, "channel">
    %p = "tile.attend"(%k, %v) ({
      "tile.query"(%y) {offset = 0 : i64, stride = 16 : i64, size = 16 : i64} : (!y) -> ()
      "tile.key"(%y) {offset = 64 : i64, stride = 16 : i64, size = 16 : i64} : (!y) -> ()
      "tile.value"(%y) {offset = 96 : i64, stride = 16 : i64, size = 16 : i64} : (!y) -> ()
      "tile.yield"() : () -> ()
    }) {heads = 4 : i64, kv_heads = 2 : i64, head_size = 16 : i64, scale = 0.25 : f64, window = 0 : i64, softcap = 0.0 : f64, splits = 1 : i64, devices = array<i64: 0>, groups = 2 : i64, value_size = 16 : i64} : (!s, !s) -> !partial
    %a = "tile.map"() ({
      %value = "tile.combine"(%p) : (!partial) -> f32
      "tile.yield"(%value) : (f32) -> ()
    }) {rows = 4 : i64, devices = array<i64: 0>} : () -> !x
    // CHECK: %[[Z:.*]] = "tile.contract"(%{{.*}}) ({
    // CHECK: "tile.residual"(%{{.*}}, %{{.*}}, %[[Y]])
    // CHECK: tile_base = 0 : i64, tiles = 4 : i64
    %z = "tile.contract"(%a) ({
    ^bb0(%value: f32):
      "tile.yield"(%value) : (f32) -> ()
    }, {
      "tile.segment"() ({
      ^bb0(%lo: f32, %hi: f32):
        %e, %f = "tile.residual"(%lo, %hi, %y) {bases = array<i64: 0, 8>} : (f32, f32, !y) -> (f32, f32)
        "tile.publish"(%e, %f) {bases = array<i64: 0, 8>} : (f32, f32) -> ()
        "tile.yield"() : () -> ()
      }) {tiles = 4 : i64, inner = 4 : i64, step = 16 : i64, outer = 0 : i64, sources = array<i64: 0, 0, 0, 8>} : () -> ()
      "tile.yield"() : () -> ()
    }) {weights = ["o"], k = 64 : i64, groups = 1 : i64, k_parts = 1 : i64, tile_base = 0 : i64, tiles = 4 : i64, devices = array<i64: 0>} : (!x) -> !x
    // CHECK: %[[C:.*]] = "tile.contract"(%[[Z]]) ({
    // CHECK: tile.candidate
    // CHECK: tile_base = 0 : i64, tiles = 43 : i64, weights = ["head"]} {{.*}} -> tensor<1x4x2xi32, "channel">
    // CHECK: %[[D:.*]] = "tile.contract"(%[[Z]]) ({
    // CHECK: tile_base = 43 : i64, tiles = 43 : i64
    // CHECK: %[[E:.*]] = "tile.contract"(%[[Z]]) ({
    // CHECK: tile_base = 86 : i64, tiles = 44 : i64
    // H100: tile_base = 0 : i64, tiles = 130 : i64, weights = ["head"]} {{.*}} -> tensor<1x132x2xi32, "channel">
    %c = "tile.contract"(%z) ({
    ^bb0(%value: f32):
      "tile.yield"(%value) : (f32) -> ()
    }, {
      "tile.segment"() ({
      ^bb0(%lo: f32, %hi: f32):
        "tile.logits"(%lo, %hi) {bases = array<i64: 0, 8>} : (f32, f32) -> ()
        "tile.candidate"(%lo, %hi) {bases = array<i64: 0, 8>} : (f32, f32) -> ()
        "tile.yield"() : () -> ()
      }) {tiles = 130 : i64, inner = 130 : i64, step = 16 : i64, outer = 0 : i64, sources = array<i64: 0, 0, 0, 8>} : () -> ()
      "tile.yield"() : () -> ()
    }) {weights = ["head"], k = 64 : i64, groups = 1 : i64, k_parts = 1 : i64, tile_base = 0 : i64, tiles = 130 : i64, devices = array<i64: 0>} : (!x) -> tensor<1x1x2xi32, "channel">
    // CHECK: %[[T:.*]] = "tile.select"(%[[C]], %[[D]], %[[E]]) {devices = array<i64: 0>, kind = "argmax"}
    // CHECK: return %[[T]]
    %t = "tile.select"(%c) {kind = "argmax", devices = array<i64: 0>} : (tensor<1x1x2xi32, "channel">) -> tensor<?xi32>
    return %t : tensor<?xi32>
  }
}
