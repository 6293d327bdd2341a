// Every operation of the tile dialect survives a round trip.

// RUN: tileir-opt %s | filecheck %s
// RUN: tileir-opt %s -o %t.first.mlir
// RUN: tileir-opt %t.first.mlir | cmp - %t.first.mlir

!x = tensor<1x64xbf16, "channel">
!state = tensor<1x16x32xbf16, "state">
!best = tensor<1x4x2xi32, "channel">
!partial = tensor<1x2x2x34xf32, "channel">
!table = tensor<128x64xbf16, "buffer">
!vector = tensor<64xbf16, "buffer">
!angles = tensor<16x16x2xf32, "buffer">

// CHECK: tileir.level = "tile"
module attributes {tileir.level = "tile"} {
  // CHECK-LABEL: func.func @step
  func.func @step(%tokens: tensor<?xi32>, %positions: tensor<?xi32>) -> tensor<?xi32> {
    // CHECK: %[[TABLE:.*]] = "tile.buffer"() {kind = "tensor", sym_name = "embed"} : () -> tensor<128x64xbf16, "buffer">
    %table = "tile.buffer"() {sym_name = "embed", kind = "tensor"} : () -> !table
    %norm = "tile.buffer"() {sym_name = "norm", kind = "tensor"} : () -> !vector
    // CHECK: "tile.buffer"() {inv_freq = dense<5.000000e-01> : tensor<16xf32>, kind = "rope", scale = 1.000000e+00 : f64, sym_name = "rope"}
    %angles = "tile.buffer"() {sym_name = "rope", kind = "rope", inv_freq = dense<0.5> : tensor<16xf32>, scale = 1.0 : f64} : () -> !angles
    // CHECK: "tile.state"() {sym_name = "k"} : () -> tensor<1x16x32xbf16, "state">
    %k = "tile.state"() {sym_name = "k"} : () -> !state
    %v = "tile.state"() {sym_name = "v"} : () -> !state
    // CHECK: %[[X:.*]] = "tile.map"() ({
    %x = "tile.map"() ({
      // CHECK-NEXT: %[[ROW:.*]] = "tile.lookup"(%[[TABLE]]) {scale = 2.000000e+00 : f64}
      %row = "tile.lookup"(%table) {scale = 2.0 : f64} : (!table) -> f32
      // CHECK-NEXT: "tile.yield"(%[[ROW]]) : (f32) -> ()
      "tile.yield"(%row) : (f32) -> ()
    // CHECK-NEXT: }) {rows = 32 : i64}
    }) {rows = 32 : i64} : () -> !x
    // CHECK: %[[PART:.*]] = "tile.contract"(%[[X]]) ({
    %part = "tile.contract"(%x) ({
    ^bb0(%value: f32):
      // CHECK: "tile.rms_norm"(%{{.*}}, %{{.*}}) {eps = 1.000000e-05 : f64, unit_offset = true}
      %scaled = "tile.rms_norm"(%value, %norm) {eps = 1.0e-5 : f64, unit_offset = true} : (f32, !vector) -> f32
      "tile.yield"(%scaled) : (f32) -> ()
    }, {
      "tile.segment"() ({
      ^bb0(%lo: f32, %hi: f32):
        // CHECK: "tile.bias"(%{{.*}}, %{{.*}}, %{{.*}}) {bases = array<i64: 0, 16>}
        %a, %b = "tile.bias"(%lo, %hi, %norm) {bases = array<i64: 0, 16>} : (f32, f32, !vector) -> (f32, f32)
        // CHECK: "tile.bias"(%{{.*}}, %{{.*}}) {bases = array<i64: 8>} : (f32, {{.*}}) -> f32
        %a0 = "tile.bias"(%a, %norm) {bases = array<i64: 8>} : (f32, !vector) -> f32
        // CHECK: "tile.activate"(%{{.*}}, %{{.*}}) {activation = "relu"}
        %a1, %b1 = "tile.activate"(%a0, %b) {activation = "relu"} : (f32, f32) -> (f32, f32)
        // CHECK: "tile.scale"(%{{.*}}, %{{.*}}) {factor = 5.000000e-01 : f64}
        %a2, %b2 = "tile.scale"(%a1, %b1) {factor = 0.5 : f64} : (f32, f32) -> (f32, f32)
        // CHECK: "tile.softcap"(%{{.*}}, %{{.*}}) {cap = 3.000000e+01 : f64}
        %a3, %b3 = "tile.softcap"(%a2, %b2) {cap = 30.0 : f64} : (f32, f32) -> (f32, f32)
        // CHECK: "tile.rope"(%{{.*}}, %{{.*}}, %{{.*}}) {head_size = 32 : i64, style = "half"}
        %c, %d = "tile.rope"(%a3, %b3, %angles) {head_size = 32 : i64, style = "half"} : (f32, f32, !angles) -> (f32, f32)
        // CHECK: "tile.append"(%{{.*}}, %{{.*}}, %{{.*}}) {bases = array<i64: 0, 16>}
        "tile.append"(%c, %d, %k) {bases = array<i64: 0, 16>} : (f32, f32, !state) -> ()
        // CHECK: "tile.publish"(%{{.*}}, %{{.*}}) {bases = array<i64: 0, 16>}
        "tile.publish"(%c, %d) {bases = array<i64: 0, 16>} : (f32, f32) -> ()
        // CHECK: "tile.yield"() : () -> ()
        "tile.yield"() : () -> ()
      // CHECK: }) {inner = 2 : i64, outer = 32 : i64, sources = array<i64: 0, 0, 0, 16>, step = 8 : i64, tiles = 2 : i64}
      }) {tiles = 2 : i64, inner = 2 : i64, step = 8 : i64, outer = 32 : i64, sources = array<i64: 0, 0, 0, 16>} : () -> ()
      "tile.segment"() ({
      ^bb0(%lo: f32, %hi: f32):
        // CHECK: "tile.glu"(%{{.*}}, %{{.*}}) {activation = "gelu_tanh"}
        %one = "tile.glu"(%lo, %hi) {activation = "gelu_tanh"} : (f32, f32) -> f32
        // CHECK: "tile.publish"(%{{.*}}) {bases = array<i64: 32>}
        "tile.publish"(%one) {bases = array<i64: 32>} : (f32) -> ()
        "tile.yield"() : () -> ()
      }) {tiles = 4 : i64, inner = 4 : i64, step = 8 : i64, outer = 0 : i64, sources = array<i64: 1, 0, 2, 0>} : () -> ()
      "tile.yield"() : () -> ()
    // CHECK: }) {groups = 1 : i64, k = 64 : i64, k_parts = 1 : i64, tile_base = 0 : i64, tiles = 4 : i64, weights = ["w", "gate", "up"]} : (tensor<1x64xbf16, "channel">) ->
    }) {weights = ["w", "gate", "up"], k = 64 : i64, groups = 1 : i64, k_parts = 1 : i64, tile_base = 0 : i64, tiles = 4 : i64} : (!x) -> !x
    // A range that goes on filling the channel of the one before.
    // CHECK: "tile.contract"(%[[X]], %[[PART]]) ({
    %whole = "tile.contract"(%x, %part) ({
    ^bb0(%value: f32):
      "tile.yield"(%value) : (f32) -> ()
    }, {
      "tile.segment"() ({
      ^bb0(%lo: f32, %hi: f32):
        // CHECK: "tile.residual"(%{{.*}}, %{{.*}}, %[[X]]) {bases = array<i64: 0, 8>}
        %a, %b = "tile.residual"(%lo, %hi, %x) {bases = array<i64: 0, 8>} : (f32, f32, !x) -> (f32, f32)
        "tile.publish"(%a, %b) {bases = array<i64: 0, 8>} : (f32, f32) -> ()
        "tile.yield"() : () -> ()
      }) {tiles = 6 : i64, inner = 6 : i64, step = 16 : i64, outer = 0 : i64, sources = array<i64: 0, 0, 0, 8>} : () -> ()
      "tile.yield"() : () -> ()
    // CHECK: tile_base = 4 : i64, tiles = 2 : i64
    }) {weights = ["w"], k = 64 : i64, groups = 1 : i64, k_parts = 1 : i64, tile_base = 4 : i64, tiles = 2 : i64} : (!x, !x) -> !x
    // CHECK: %[[PARTIAL:.*]] = "tile.attend"(%{{.*}}, %{{.*}}) ({
    // CHECK-NEXT: "tile.query"(%{{.*}}) {offset = 0 : i64, size = 32 : i64, stride = 32 : i64}
    // CHECK: }) {groups = 1 : i64, head_size = 32 : i64, heads = 2 : i64, kv_heads = 1 : i64, scale = 2.500000e-01 : f64, softcap = 0.000000e+00 : f64, splits = 2 : i64, value_size = 32 : i64, window = 8 : i64}
    %partial = "tile.attend"(%k, %v) ({
      "tile.query"(%whole) {offset = 0 : i64, stride = 32 : i64, size = 32 : i64} : (!x) -> ()
      "tile.key"(%whole) {offset = 0 : i64, stride = 32 : i64, size = 32 : i64} : (!x) -> ()
      "tile.value"(%whole) {offset = 32 : i64, stride = 32 : i64, size = 32 : i64} : (!x) -> ()
      "tile.yield"() : () -> ()
    }) {heads = 2 : i64, kv_heads = 1 : i64, head_size = 32 : i64, scale = 0.25 : f64, window = 8 : i64, softcap = 0.0 : f64, splits = 2 : i64, groups = 1 : i64, value_size = 32 : i64} : (!state, !state) -> !partial
    %combined = "tile.map"() ({
      // CHECK: "tile.combine"(%[[PARTIAL]]) : (tensor<1x2x2x34xf32, "channel">) -> f32
      %one = "tile.combine"(%partial) : (!partial) -> f32
      "tile.yield"(%one) : (f32) -> ()
    }) {rows = 2 : i64} : () -> !x
    %best = "tile.contract"(%combined) ({
    ^bb0(%value: f32):
      "tile.yield"(%value) : (f32) -> ()
    }, {
      "tile.segment"() ({
      ^bb0(%lo: f32, %hi: f32):
        // CHECK: "tile.logits"(%{{.*}}, %{{.*}}) {bases = array<i64: 0, 8>}
        "tile.logits"(%lo, %hi) {bases = array<i64: 0, 8>} : (f32, f32) -> ()
        // CHECK: "tile.candidate"(%{{.*}}, %{{.*}}) {bases = array<i64: 0, 8>}
        "tile.candidate"(%lo, %hi) {bases = array<i64: 0, 8>} : (f32, f32) -> ()
        "tile.yield"() : () -> ()
      }) {tiles = 8 : i64, inner = 8 : i64, step = 16 : i64, outer = 0 : i64, sources = array<i64: 0, 0, 0, 8>} : () -> ()
      "tile.yield"() : () -> ()
    }) {weights = ["head"], k = 64 : i64, groups = 1 : i64, k_parts = 1 : i64, tile_base = 0 : i64, tiles = 8 : i64} : (!x) -> !best
    // CHECK: "tile.select"(%{{.*}}, %{{.*}}) {kind = "argmax"} : (tensor<1x4x2xi32, "channel">, tensor<1x4x2xi32, "channel">) -> tensor<?xi32>
    %token = "tile.select"(%best, %best) {kind = "argmax"} : (!best, !best) -> tensor<?xi32>
    return %token : tensor<?xi32>
  }
}
