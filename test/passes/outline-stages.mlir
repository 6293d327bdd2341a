// RUN: tileir-opt %s --pass-pipeline='builtin.module(outline-stages{target=virtual})' | filecheck %s

// Two contracts that differ in weights, channels and rotation share a body, whose arguments stand for the row's names:
// x, result, norm weight, state. The one with other tiles has a body of its own. Names keep clear of the states'.

!x = tensor<1x64xbf16, "channel">
!w = tensor<64xbf16, "buffer">
!kv = tensor<1x64x64xbf16, "state">
!table = tensor<128x64xbf16, "buffer">

// CHECK: tileir.level = "engine"
// CHECK-NOT: func.func
// CHECK-LABEL: engine.device
// CHECK: engine.ring
// CHECK-SAME: sym_name = "tape"
// CHECK-NOT: engine.ring
// CHECK: engine.state
// CHECK-SAME: sym_name = "qkv_0"
// CHECK: engine.channel
// CHECK-SAME: depth = 1 : i64, level = "gpu", payload = "bf16x2", protocol = "packet", replicas = 1 : i64, sym_name = "embedding_0"
// CHECK: sym_name = "qkv_1"
// CHECK: sym_name = "qkv_2"
// CHECK: sym_name = "linear_0"

// CHECK: engine.map
// CHECK: {kind = "map", sym_name = "lookup_0"}

// CHECK: ^bb0(%[[X:.*]]: tensor<1x64xbf16, "channel">, %[[OUT:.*]]: tensor<1x64xbf16, "channel">, %[[W:.*]]: tensor<64xbf16, "buffer">, %[[KV:.*]]: tensor<1x64x64xbf16, "state">):
// CHECK: engine.fill
// CHECK-SAME: k = 64 : i64, ring = "tape", source = "tape", tiles = 4 : i64
// CHECK: {sym_name = "tape"}
// CHECK: "engine.receive"(%[[X]])
// CHECK: "tile.rms_norm"(%{{.*}}, %[[W]])
// CHECK: engine.barrier
// CHECK: engine.multiply
// CHECK: engine.barrier
// CHECK: "engine.emit"(%[[OUT]])
// CHECK: "tile.append"(%{{.*}}, %{{.*}}, %[[KV]])
// CHECK: {space = 4 : i64, tiles = 4 : i64}
// CHECK: {kind = "contract", release = array<i64: 3>, sym_name = "contract_0"}
// CHECK: {kind = "contract", sym_name = "contract_1"}
// CHECK-NOT: engine.body

// CHECK: "engine.row"() {body = "lookup_0", names = ["embedding_0", "embed"], phase = 0
// CHECK: "engine.row"() {body = "contract_0", names = ["embedding_0", "qkv_1", "n0", "qkv_0"], phase = 1 : i64, rotation = 0 : i64, stage = 1 : i64, tile_base = 0 : i64, weights = ["w0"]}
// CHECK: "engine.row"() {body = "contract_0", names = ["qkv_1", "qkv_2", "n1", "v"], phase = 2 : i64, rotation = 3 : i64, stage = 2 : i64, tile_base = 0 : i64, weights = ["w1"]}
// CHECK: "engine.row"() {body = "contract_1", names = ["qkv_2", "linear_0"], phase = 3
// CHECK: consumer_warps = 4 : i64, context = 64 : i64, devices = 1 : i64, index = 0 : i64, page = 0 : i64, sequences = 1 : i64, sms = 4 : i64, tokens = 1 : i64, vocabulary = 128 : i64
module attributes {tileir.level = "tile", tileir.context = 64 : i64, tileir.vocabulary = 128 : i64, tileir.roles = {consumer = 4 : i64}, tileir.rings = {fed_window = 3 : i64, slot_bytes = 65536 : i64, window = 3 : i64}} {
  func.func @step() -> !x {
    %table = "tile.buffer"() {sym_name = "embed", kind = "tensor"} : () -> !table
    %n0 = "tile.buffer"() {sym_name = "n0", kind = "tensor"} : () -> !w
    %n1 = "tile.buffer"() {sym_name = "n1", kind = "tensor"} : () -> !w
    %k = "tile.state"() {sym_name = "qkv_0"} : () -> !kv
    %v = "tile.state"() {sym_name = "v"} : () -> !kv
    %x = "tile.map"() ({
      %value = "tile.lookup"(%table) {scale = 1.0 : f64} : (!table) -> f32
      "tile.yield"(%value) : (f32) -> ()
    }) {devices = array<i64: 0>, rows = 32 : i64, payload = "bf16x2", protocol = "packet", level = "gpu", depth = 1 : i64, replicas = 1 : i64, phase = 0 : i64, rotation = 0 : i64} : () -> !x
    %y = "tile.contract"(%x) ({
    ^bb0(%value: f32):
      %n = "tile.rms_norm"(%value, %n0) {eps = 1.0e-05 : f64, unit_offset = false} : (f32, !w) -> f32
      "tile.yield"(%n) : (f32) -> ()
    }, {
      "tile.segment"() ({
      ^bb0(%lo: f32, %hi: f32):
        "tile.append"(%lo, %hi, %k) {bases = array<i64: 0, 8>} : (f32, f32, !kv) -> ()
        "tile.publish"(%lo, %hi) {bases = array<i64: 0, 8>} : (f32, f32) -> ()
        "tile.yield"() : () -> ()
      }) {tiles = 4 : i64, inner = 4 : i64, step = 16 : i64, outer = 0 : i64, sources = array<i64: 0, 0, 0, 8>} : () -> ()
      "tile.yield"() : () -> ()
    }) {devices = array<i64: 0>, weights = ["w0"], k = 64 : i64, groups = 1 : i64, k_parts = 1 : i64, tile_base = 0 : i64, tiles = 4 : i64, payload = "bf16x2", protocol = "packet", level = "gpu", depth = 1 : i64, replicas = 1 : i64, release = ["qkv_0"], phase = 1 : i64, rotation = 0 : i64} : (!x) -> !x
    %z = "tile.contract"(%y) ({
    ^bb0(%value: f32):
      %n = "tile.rms_norm"(%value, %n1) {eps = 1.0e-05 : f64, unit_offset = false} : (f32, !w) -> f32
      "tile.yield"(%n) : (f32) -> ()
    }, {
      "tile.segment"() ({
      ^bb0(%lo: f32, %hi: f32):
        "tile.append"(%lo, %hi, %v) {bases = array<i64: 0, 8>} : (f32, f32, !kv) -> ()
        "tile.publish"(%lo, %hi) {bases = array<i64: 0, 8>} : (f32, f32) -> ()
        "tile.yield"() : () -> ()
      }) {tiles = 4 : i64, inner = 4 : i64, step = 16 : i64, outer = 0 : i64, sources = array<i64: 0, 0, 0, 8>} : () -> ()
      "tile.yield"() : () -> ()
    }) {devices = array<i64: 0>, weights = ["w1"], k = 64 : i64, groups = 1 : i64, k_parts = 1 : i64, tile_base = 0 : i64, tiles = 4 : i64, payload = "bf16x2", protocol = "packet", level = "gpu", depth = 1 : i64, replicas = 1 : i64, release = ["v"], phase = 2 : i64, rotation = 3 : i64} : (!x) -> !x
    %last = "tile.contract"(%z) ({
    ^bb0(%value: f32):
      "tile.yield"(%value) : (f32) -> ()
    }, {
      "tile.segment"() ({
      ^bb0(%lo: f32, %hi: f32):
        "tile.publish"(%lo, %hi) {bases = array<i64: 0, 8>} : (f32, f32) -> ()
        "tile.yield"() : () -> ()
      }) {tiles = 4 : i64, inner = 4 : i64, step = 16 : i64, outer = 0 : i64, sources = array<i64: 0, 0, 0, 8>} : () -> ()
      "tile.yield"() : () -> ()
    }) {devices = array<i64: 0>, weights = ["w2"], k = 64 : i64, groups = 1 : i64, k_parts = 1 : i64, tile_base = 0 : i64, tiles = 4 : i64, payload = "bf16x2", protocol = "packet", level = "gpu", depth = 1 : i64, replicas = 1 : i64, phase = 3 : i64, rotation = 0 : i64} : (!x) -> !x
    return %last : !x
  }
}
