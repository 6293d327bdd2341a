// RUN: tileir-opt %s --pass-pipeline='builtin.module(select-sync)' | filecheck %s

// Each channel gets its payload by element, the cheaper protocol by size, and its copies; states get their edges.

!x = tensor<1x64xbf16, "channel">
!kv = tensor<1x64x32xbf16, "state">
!table = tensor<128x64xbf16, "buffer">
!partial = tensor<1x2x4x34xf32, "channel">
!best = tensor<1x4x2xi32, "channel">
!many = tensor<64x14336xbf16, "channel">
!wide = tensor<128x14336xbf16, "buffer">

// CHECK-LABEL: func.func @step
// CHECK: tile.map
// CHECK: depth = 1 : i64, level = "gpu", payload = "bf16x2", protocol = "packet", replicas = 1 : i64
// CHECK: tile.contract
// CHECK: tile.append
// CHECK: depth = 1 : i64,
// CHECK-SAME: level = "gpu", payload = "bf16x2", protocol = "packet", release = ["k", "v"]
// CHECK: tile.attend
// CHECK: {acquire = ["k", "v"], depth = 1 : i64
// CHECK-SAME: payload = "f32", protocol = "packet"
// CHECK: tile.candidate
// CHECK: depth = 2 : i64,
// CHECK-SAME: payload = "record", protocol = "packet"
// CHECK: tile.select
// CHECK-NOT: protocol
// CHECK-SAME: kind = "argmax"

// 64 tokens of 14336 values: packets would take 49 µs a round, blocks 17.
// CHECK-LABEL: func.func @many_tokens
// CHECK: payload = "bf16x2", protocol = "block"
module attributes {tileir.level = "tile"} {
  func.func @step() -> tensor<1xi32> {
    %table = "tile.buffer"() {sym_name = "embed", kind = "tensor"} : () -> !table
    %k = "tile.state"() {sym_name = "k"} : () -> !kv
    %v = "tile.state"() {sym_name = "v"} : () -> !kv
    %x = "tile.map"() ({
      %value = "tile.lookup"(%table) {scale = 1.0 : f64} : (!table) -> f32
      "tile.yield"(%value) : (f32) -> ()
    }) {rows = 32 : i64} : () -> !x
    %qkv = "tile.contract"(%x) ({
    ^bb0(%value: f32):
      "tile.yield"(%value) : (f32) -> ()
    }, {
      "tile.segment"() ({
      ^bb0(%lo: f32, %hi: f32):
        "tile.append"(%lo, %hi, %k) {bases = array<i64: 0, 8>} : (f32, f32, !kv) -> ()
        "tile.append"(%lo, %hi, %v) {bases = array<i64: 0, 8>} : (f32, f32, !kv) -> ()
        "tile.publish"(%lo, %hi) {bases = array<i64: 0, 8>} : (f32, f32) -> ()
        "tile.yield"() : () -> ()
      }) {tiles = 4 : i64, inner = 4 : i64, step = 16 : i64, outer = 0 : i64, sources = array<i64: 0, 0, 0, 8>} : () -> ()
      "tile.yield"() : () -> ()
    }) {weights = ["w"], k = 64 : i64, groups = 1 : i64, k_parts = 1 : i64, tile_base = 0 : i64, tiles = 4 : i64} : (!x) -> !x
    %partial = "tile.attend"(%k, %v) ({
      "tile.query"(%qkv) {offset = 0 : i64, stride = 32 : i64, size = 32 : i64} : (!x) -> ()
      "tile.key"(%qkv) {offset = 0 : i64, stride = 32 : i64, size = 32 : i64} : (!x) -> ()
      "tile.value"(%qkv) {offset = 32 : i64, stride = 32 : i64, size = 32 : i64} : (!x) -> ()
      "tile.yield"() : () -> ()
    }) {heads = 2 : i64, kv_heads = 1 : i64, head_size = 32 : i64, scale = 1.0 : f64, window = 0 : i64, softcap = 0.0 : f64, splits = 4 : i64, groups = 1 : i64, value_size = 32 : i64} : (!kv, !kv) -> !partial
    %best = "tile.contract"(%x) ({
    ^bb0(%value: f32):
      "tile.yield"(%value) : (f32) -> ()
    }, {
      "tile.segment"() ({
      ^bb0(%lo: f32, %hi: f32):
        "tile.candidate"(%lo, %hi) {bases = array<i64: 0, 8>} : (f32, f32) -> ()
        "tile.yield"() : () -> ()
      }) {tiles = 8 : i64, inner = 8 : i64, step = 16 : i64, outer = 0 : i64, sources = array<i64: 0, 0, 0, 8>} : () -> ()
      "tile.yield"() : () -> ()
    }) {weights = ["w"], k = 64 : i64, groups = 1 : i64, k_parts = 1 : i64, tile_base = 0 : i64, tiles = 8 : i64} : (!x) -> !best
    %token = "tile.select"(%best) {kind = "argmax"} : (!best) -> tensor<1xi32>
    return %token : tensor<1xi32>
  }
  func.func @many_tokens() -> !many {
    %table = "tile.buffer"() {sym_name = "embed", kind = "tensor"} : () -> !wide
    %x = "tile.map"() ({
      %value = "tile.lookup"(%table) {scale = 1.0 : f64} : (!wide) -> f32
      "tile.yield"(%value) : (f32) -> ()
    }) {rows = 7168 : i64} : () -> !many
    return %x : !many
  }
}
