// RUN: tileir-opt %s --pass-pipeline='builtin.module(specialize-block{target=virtual},select-sync,specialize-warp{target=virtual},schedule-pipeline{target=virtual},outline-stages{target=virtual})' | filecheck %s

// Old rows pass the tape's ring. Attention knows its combine's channel, which it fills where one split has all rows:
// up to 16 of them, or 1 KB of keys and values. The combine knows the same facts.

!x = tensor<1x128xbf16, "channel">
!y = tensor<1x64xbf16, "channel">
!p = tensor<1x4x1x18xf32, "channel">
!kv = tensor<2x64x16xbf16, "state">
!table = tensor<128x128xbf16, "buffer">

// CHECK: engine.ring
// CHECK-SAME: sym_name = "tape"
// CHECK-NOT: engine.ring
// CHECK: "engine.role"
// CHECK: "engine.fill_rows"(%[[K:.*]], %[[V:.*]]) {alone = 16 : i64
// CHECK-SAME: ring = "tape"
// CHECK: {sym_name = "tape"}
// CHECK: "engine.attend"(%[[PART:[a-z0-9]+]], %[[K]], %[[V]])
// CHECK: "tile.query"(%[[X:[a-z0-9]+]])
// CHECK: "tile.finish"(%[[OUT:[a-z0-9]+]]) : (tensor<1x64xbf16, "channel">) -> ()
// CHECK: alone = 16 : i64
// CHECK-SAME: ring = "tape"
// CHECK-SAME: splits = 1 : i64
// CHECK: "tile.combine"(%{{.*}}) {alone = 16 : i64, least = 8 : i64, splits = 1 : i64, window = 0 : i64}
// CHECK: "engine.row"() {body = "attend_0", names = ["partial_0", "k", "v", "embedding_0", "attention_0"]
// CHECK: "engine.row"() {body = "combine_0", names = ["attention_0", "partial_0"]
module attributes {tileir.level = "tile", tileir.context = 64 : i64, tileir.vocabulary = 128 : i64} {
  func.func @step() -> !y {
    %table = "tile.buffer"() {sym_name = "embed", kind = "tensor"} : () -> !table
    %k = "tile.state"() {sym_name = "k"} : () -> !kv
    %v = "tile.state"() {sym_name = "v"} : () -> !kv
    %x = "tile.map"() ({
      %value = "tile.lookup"(%table) {scale = 1.0 : f64} : (!table) -> f32
      "tile.yield"(%value) : (f32) -> ()
    }) {rows = 64 : i64, devices = array<i64: 0>} : () -> !x
    %p = "tile.attend"(%k, %v) ({
      "tile.query"(%x) {offset = 0 : i64, stride = 16 : i64, size = 16 : i64} : (!x) -> ()
      "tile.key"(%x) {offset = 64 : i64, stride = 16 : i64, size = 16 : i64} : (!x) -> ()
      "tile.value"(%x) {offset = 96 : i64, stride = 16 : i64, size = 16 : i64} : (!x) -> ()
      "tile.yield"() : () -> ()
    }) {heads = 4 : i64, kv_heads = 2 : i64, groups = 2 : i64, head_size = 16 : i64, value_size = 16 : i64, scale = 0.25 : f64, window = 0 : i64, softcap = 0.0 : f64, splits = 1 : i64, devices = array<i64: 0>} : (!kv, !kv) -> !p
    %y = "tile.map"() ({
      %value = "tile.combine"(%p) : (!p) -> f32
      "tile.yield"(%value) : (f32) -> ()
    }) {rows = 4 : i64, devices = array<i64: 0>} : () -> !y
    return %y : !y
  }
}
