// RUN: tileir-opt %s --split-input-file --pass-pipeline='builtin.module(graph-fuse,specialize-gpu,tile-graph{tokens=2})' | filecheck %s

// A layer: q, k and v in one channel, halves of q and k being halves of heads; gate and up in the halves of a tile; the
// head's weight is the embedding's table; the vocabulary ends inside the last tile.

!p = tensor<?xi32>
!x = tensor<?x64xf32>
!kv = tensor<?x32xf32>
!g = tensor<?x24xf32>
!l = tensor<?x40xf32>
!n = tensor<64xf32>
!w = tensor<64x64xf32>
!wk = tensor<32x64xf32>
!u = tensor<24x64xf32>
!e = tensor<40x64xf32>
!f = tensor<16xf32>
!s = tensor<1x128x32xf32>
// CHECK-LABEL: module
// CHECK-SAME: tileir.context = 128 : i64, tileir.level = "tile", tileir.page = 0 : i64, tileir.sequences = 1 : i64, tileir.tokens = 2 : i64, tileir.vocabulary = 40 : i64
module attributes {tileir.level = "graph", tileir.context = 128 : i64, tileir.vocabulary = 40 : i64} {
  // CHECK: func.func @step({{.*}} -> tensor<?xi32> {
  func.func @step(%tokens: !p, %positions: !p) -> !p {
    %e = "graph.weight"() {sym_name = "embed"} : () -> !e
    %n = "graph.weight"() {sym_name = "norm"} : () -> !n
    %wq = "graph.weight"() {sym_name = "q"} : () -> !w
    %bq = "graph.weight"() {sym_name = "q_bias"} : () -> !n
    %wk = "graph.weight"() {sym_name = "k"} : () -> !wk
    %wv = "graph.weight"() {sym_name = "v"} : () -> !wk
    %wo = "graph.weight"() {sym_name = "o"} : () -> !w
    %wg = "graph.weight"() {sym_name = "gate"} : () -> !u
    %wu = "graph.weight"() {sym_name = "up"} : () -> !u
    %wd = "graph.weight"() {sym_name = "down"} : () -> tensor<64x24xf32>
    %f = "graph.constant"() {sym_name = "f", value = dense<0.5> : !f} : () -> !f
    %ks = "graph.state"() {sym_name = "k_0"} : () -> !s
    %vs = "graph.state"() {sym_name = "v_0"} : () -> !s

    // CHECK: %[[TABLE:.*]] = "tile.buffer"() {kind = "tensor", sym_name = "embed"} : () -> tensor<40x64xbf16, "buffer">
    // CHECK: %[[X:.*]] = "tile.map"()
    // CHECK: "tile.lookup"(%[[TABLE]]) {scale = 8.000000e+00 : f64}
    // CHECK: {devices = array<i64: 0>, rows = 32 : i64} {{.*}} -> tensor<2x64xbf16, "channel">
    %x = "graph.embedding"(%e, %tokens) {scale = 8.0 : f64} : (!e, !p) -> !x

    // CHECK: %[[NORM:.*]] = "tile.buffer"() {kind = "tensor", sym_name = "norm"} : () -> tensor<64xbf16, "buffer">
    // CHECK: %[[BIAS:.*]] = "tile.buffer"() {kind = "tensor", sym_name = "q_bias"}
    // CHECK: %[[ROPE:.*]] = "tile.buffer"() {inv_freq = dense<5.000000e-01> : tensor<16xf32>, kind = "rope", scale = 1.000000e+00 : f64, sym_name = "rope_0"} : () -> tensor<128x16x2xf32, "buffer">
    // CHECK: %[[K:.*]] = "tile.state"() {sym_name = "k_0"} : () -> tensor<1x128x32xbf16, "state">
    // CHECK: %[[V:.*]] = "tile.state"() {sym_name = "v_0"}
    // CHECK: %[[QKV:.*]] = "tile.contract"(%[[X]])
    // CHECK: "tile.rms_norm"(%{{.*}}, %[[NORM]]) {eps = {{.*}}, unit_offset = true}
    // CHECK: %[[B:.*]]:2 = "tile.bias"(%{{.*}}, %{{.*}}, %[[BIAS]]) {bases = array<i64: 0, 16>}
    // CHECK: %[[R:.*]]:2 = "tile.rope"(%[[B]]#0, %[[B]]#1, %[[ROPE]]) {head_size = 32 : i64, style = "half"}
    // CHECK-NOT: tile.append
    // CHECK: "tile.publish"(%[[R]]#0, %[[R]]#1) {bases = array<i64: 0, 16>}
    // CHECK: {inner = 2 : i64, outer = 32 : i64, sources = array<i64: 0, 0, 0, 16>, step = 8 : i64, tiles = 4 : i64}
    // CHECK: %[[R:.*]]:2 = "tile.rope"(%{{.*}}, %{{.*}}, %[[ROPE]])
    // CHECK: "tile.append"(%[[R]]#0, %[[R]]#1, %[[K]]) {bases = array<i64: 0, 16>}
    // CHECK: "tile.publish"(%[[R]]#0, %[[R]]#1) {bases = array<i64: 64, 80>}
    // CHECK: {inner = 2 : i64, outer = 32 : i64, sources = array<i64: 1, 0, 1, 16>, step = 8 : i64, tiles = 2 : i64}
    // CHECK-NOT: tile.rope
    // CHECK: "tile.append"(%{{.*}}, %{{.*}}, %[[V]]) {bases = array<i64: 0, 8>}
    // CHECK: "tile.publish"{{.*}} {bases = array<i64: 96, 104>}
    // CHECK: {inner = 2 : i64, outer = 0 : i64, sources = array<i64: 2, 0, 2, 8>, step = 16 : i64, tiles = 2 : i64}
    // CHECK: k = 64 : i64, k_parts = 1 : i64, tile_base = 0 : i64, tiles = 8 : i64, weights = ["q", "k", "v"]} {{.*}} -> tensor<2x128xbf16, "channel">
    %h = "graph.rms_norm"(%x, %n) {eps = 1.0e-5 : f64, unit_offset = true} : (!x, !n) -> !x
    %lq = "graph.linear"(%h, %wq, %bq) : (!x, !w, !n) -> !x
    %lk = "graph.linear"(%h, %wk) : (!x, !wk) -> !kv
    %v = "graph.linear"(%h, %wv) : (!x, !wk) -> !kv
    %q = "graph.rope"(%lq, %positions, %f) {head_size = 32 : i64, scale = 1.0 : f64, style = "half"} : (!x, !p, !f) -> !x
    %k = "graph.rope"(%lk, %positions, %f) {head_size = 32 : i64, scale = 1.0 : f64, style = "half"} : (!kv, !p, !f) -> !kv
    %ka = "graph.append"(%ks, %k, %positions) : (!s, !kv, !p) -> !s
    %va = "graph.append"(%vs, %v, %positions) : (!s, !kv, !p) -> !s

    // CHECK: %[[P:.*]] = "tile.attend"(%[[K]], %[[V]]) ({
    // CHECK-NEXT: "tile.query"(%[[QKV]]) {offset = 0 : i64, size = 32 : i64, stride = 32 : i64}
    // CHECK-NEXT: "tile.key"(%[[QKV]]) {offset = 64 : i64
    // CHECK-NEXT: "tile.value"(%[[QKV]]) {offset = 96 : i64
    // CHECK: groups = 1 : i64
    // CHECK-SAME: softcap = 5.000000e+01 : f64, splits = 1 : i64, value_size = 32 : i64, window = 7 : i64
    // CHECK-SAME: -> tensor<2x2x1x34xf32, "channel">
    // CHECK: %[[A:.*]] = "tile.map"()
    // CHECK: "tile.combine"(%[[P]])
    // CHECK: rows = 2 : i64} {{.*}} -> tensor<2x64xbf16, "channel">
    %a = "graph.attention"(%q, %ka, %va, %positions) {heads = 2 : i64, kv_heads = 1 : i64, head_size = 32 : i64,
      scale = 0.25 : f64, window = 7 : i64, softcap = 50.0 : f64} : (!x, !s, !s, !p) -> !x

    // CHECK: %[[Y:.*]] = "tile.contract"(%[[A]])
    // CHECK-NOT: tile.rms_norm
    // CHECK: "tile.residual"(%{{.*}}, %{{.*}}, %[[X]]) {bases = array<i64: 0, 8>}
    // CHECK: {inner = 4 : i64, outer = 0 : i64, sources = array<i64: 0, 0, 0, 8>, step = 16 : i64, tiles = 4 : i64}
    %o = "graph.linear"(%a, %wo) : (!x, !w) -> !x
    %y = "graph.add"(%x, %o) : (!x, !x) -> !x

    // CHECK: %[[M:.*]] = "tile.contract"(%[[Y]])
    // CHECK: "tile.rms_norm"(%{{.*}}, %[[NORM]])
    // CHECK: %[[ACT:.*]] = "tile.glu"(%{{.*}}, %{{.*}}) {activation = "gelu_tanh"}
    // CHECK: "tile.publish"(%[[ACT]]) {bases = array<i64: 0>}
    // CHECK: {inner = 3 : i64, outer = 0 : i64, sources = array<i64: 0, 0, 1, 0>, step = 8 : i64, tiles = 3 : i64}
    // CHECK: tiles = 3 : i64, weights = ["gate", "up"]} {{.*}} -> tensor<2x24xbf16, "channel">
    %h2 = "graph.rms_norm"(%y, %n) {eps = 1.0e-5 : f64, unit_offset = false} : (!x, !n) -> !x
    %up = "graph.linear"(%h2, %wu) : (!x, !u) -> !g
    %gate = "graph.linear"(%h2, %wg) : (!x, !u) -> !g
    %m = "graph.glu"(%gate, %up) {activation = "gelu_tanh"} : (!g, !g) -> !g
    // CHECK: %[[Z:.*]] = "tile.contract"(%[[M]])
    // CHECK: "tile.residual"(%{{.*}}, %{{.*}}, %[[Y]])
    // CHECK: k = 24 : i64
    %d = "graph.linear"(%m, %wd) : (!g, tensor<64x24xf32>) -> !x
    %z = "graph.add"(%y, %d) : (!x, !x) -> !x

    // CHECK: %[[C:.*]] = "tile.contract"(%[[Z]])
    // CHECK: "tile.logits"(%[[LO:.*]], %[[HI:.*]]) {bases = array<i64: 0, 8>}
    // CHECK: "tile.candidate"(%[[LO]], %[[HI]]) {bases = array<i64: 0, 8>}
    // CHECK-NOT: tile.publish
    // CHECK: tiles = 3 : i64, weights = ["embed"]} {{.*}} -> tensor<2x1x2xi32, "channel">
    // CHECK: %[[T:.*]] = "tile.select"(%[[C]]) {devices = array<i64: 0>, kind = "argmax"}
    // CHECK: return %[[T]] : tensor<?xi32>
    %l = "graph.linear"(%z, %e) : (!x, !e) -> !l
    %t = "graph.sample"(%l) {kind = "argmax"} : (!l) -> !p
    return %t : !p
  }
}

// -----

// Two sums behind one linear; ropes of other frequencies have a table of their own, equal ones share; a norm that two
// stages read is in both prologues.

!p = tensor<?xi32>
!x = tensor<?x32xbf16>
!n = tensor<32xbf16>
!w = tensor<32x32xbf16>
!f = tensor<8xf32>
!s = tensor<2x16x16xbf16>
// CHECK-LABEL: // -----
module attributes {tileir.level = "graph", tileir.context = 16 : i64, tileir.vocabulary = 32 : i64} {
  func.func @step(%tokens: !p, %positions: !p) -> !p {
    %w = "graph.weight"() {sym_name = "w"} : () -> !w
    %n = "graph.weight"() {sym_name = "n"} : () -> !n
    %f = "graph.constant"() {sym_name = "f", value = dense<0.5> : !f} : () -> !f
    %g = "graph.constant"() {sym_name = "g", value = dense<0.5> : !f} : () -> !f
    %j = "graph.constant"() {sym_name = "j", value = dense<2.0> : !f} : () -> !f
    %ks = "graph.state"() {sym_name = "k_0"} : () -> !s
    %vs = "graph.state"() {sym_name = "v_0"} : () -> !s
    // CHECK: %[[X:.*]] = "tile.map"
    // CHECK: sym_name = "rope_0"
    // CHECK: sym_name = "rope_1"
    // CHECK-NOT: kind = "rope"
    // CHECK: "tile.contract"(%[[X]])
    // CHECK: tile.rms_norm
    %x = "graph.embedding"(%w, %tokens) {scale = 1.0 : f64} : (!w, !p) -> !x
    %h = "graph.rms_norm"(%x, %n) {eps = 1.0e-5 : f64, unit_offset = false} : (!x, !n) -> !x
    %lq = "graph.linear"(%h, %w) : (!x, !w) -> !x
    %lk = "graph.linear"(%h, %w) : (!x, !w) -> !x
    %lv = "graph.linear"(%h, %w) : (!x, !w) -> !x
    %q = "graph.rope"(%lq, %positions, %f) {head_size = 16 : i64, scale = 1.0 : f64, style = "half"} : (!x, !p, !f) -> !x
    %k = "graph.rope"(%lk, %positions, %g) {head_size = 16 : i64, scale = 1.0 : f64, style = "half"} : (!x, !p, !f) -> !x
    %v = "graph.rope"(%lv, %positions, %j) {head_size = 16 : i64, scale = 1.0 : f64, style = "half"} : (!x, !p, !f) -> !x
    %ka = "graph.append"(%ks, %k, %positions) : (!s, !x, !p) -> !s
    %va = "graph.append"(%vs, %v, %positions) : (!s, !x, !p) -> !s
    // CHECK: %[[A:.*]] = "tile.map"() ({
    // CHECK-NEXT: tile.combine
    %a = "graph.attention"(%q, %ka, %va, %positions) {heads = 2 : i64, kv_heads = 2 : i64, head_size = 16 : i64,
      scale = 0.25 : f64, window = 0 : i64, softcap = 0.0 : f64} : (!x, !s, !s, !p) -> !x
    // CHECK: "tile.contract"(%[[X]])
    // CHECK: tile.rms_norm
    // CHECK: %[[ONE:.*]]:2 = "tile.residual"(%{{.*}}, %{{.*}}, %[[A]])
    // CHECK: %[[TWO:.*]]:2 = "tile.residual"(%[[ONE]]#0, %[[ONE]]#1, %[[X]])
    // CHECK: "tile.publish"(%[[TWO]]#0, %[[TWO]]#1)
    %m = "graph.linear"(%h, %w) : (!x, !w) -> !x
    %b = "graph.add"(%a, %m) : (!x, !x) -> !x
    %y = "graph.add"(%b, %x) : (!x, !x) -> !x
    %l = "graph.linear"(%y, %w) : (!x, !w) -> !x
    %t = "graph.sample"(%l) {kind = "argmax"} : (!x) -> !p
    return %t : !p
  }
}
