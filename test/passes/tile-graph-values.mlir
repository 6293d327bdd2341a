// RUN: tileir-opt %s --pass-pipeline='builtin.module(graph-fuse,specialize-gpu{target=virtual},tile-graph)' | filecheck %s

// Norms behind linears, of whole rows and of rows that later turn by heads; biases of gate and up; what an epilogue
// does to each value.

!p = tensor<?xi32>
!x = tensor<?x64xbf16>
!n = tensor<64xbf16>
!w = tensor<64x64xbf16>
!f = tensor<8xf32>
!s = tensor<4x16x16xbf16>
module attributes {tileir.level = "graph", tileir.context = 16 : i64, tileir.vocabulary = 64 : i64} {
  func.func @step(%tokens: !p, %positions: !p) -> !p {
    %w = "graph.weight"() {sym_name = "w"} : () -> !w
    %n = "graph.weight"() {sym_name = "n"} : () -> !n
    %gb = "graph.weight"() {sym_name = "gate_bias"} : () -> !n
    %ub = "graph.weight"() {sym_name = "up_bias"} : () -> !n
    %f = "graph.constant"() {sym_name = "f", value = dense<1.0> : !f} : () -> !f
    %ks = "graph.state"() {sym_name = "k"} : () -> !s
    %vs = "graph.state"() {sym_name = "v"} : () -> !s
    // CHECK: %[[X:.*]] = "tile.map"() ({
    // CHECK-NEXT: "tile.lookup"({{.*}}) {scale = 8.000000e+00 : f64}
    %x = "graph.embedding"(%w, %tokens) {scale = 8.0 : f64} : (!w, !p) -> !x
    %lq = "graph.linear"(%x, %w) : (!x, !w) -> !x
    %lk = "graph.linear"(%x, %w) : (!x, !w) -> !x
    %lv = "graph.linear"(%x, %w) : (!x, !w) -> !x
    // CHECK: %[[QKV:.*]] = "tile.contract"(%[[X]])
    // CHECK: %[[NQ:.*]] = "tile.map"() ({
    // CHECK-NEXT: "tile.load"(%[[QKV]]) {offset = 0 : i64, size = 64 : i64}
    // CHECK-NEXT: "tile.rms_norm"
    // CHECK: rows = 1 : i64
    %nq = "graph.rms_norm"(%lq, %n) {eps = 1.0e-5 : f64, unit_offset = false} : (!x, !n) -> !x
    // CHECK: "tile.attend"
    // CHECK-NEXT: %[[Q:.*]] = "tile.query"(%[[NQ]]) {offset = 0 : i64, size = 16 : i64, stride = 16 : i64}
    // CHECK-NEXT: "tile.rotate"(%[[Q]], %{{.*}})
    %q = "graph.rope"(%nq, %positions, %f) {head_size = 16 : i64, scale = 1.0 : f64, style = "half"} : (!x, !p, !f) -> !x
    %ka = "graph.append"(%ks, %lk, %positions) : (!s, !x, !p) -> !s
    %va = "graph.append"(%vs, %lv, %positions) : (!s, !x, !p) -> !s
    %a = "graph.attention"(%q, %ka, %va, %positions) {heads = 4 : i64, kv_heads = 4 : i64, head_size = 16 : i64,
      scale = 0.25 : f64, window = 0 : i64, softcap = 0.0 : f64} : (!x, !s, !s, !p) -> !x
    %o = "graph.linear"(%a, %w) : (!x, !w) -> !x
    // CHECK: %[[O:.*]] = "tile.contract"
    // CHECK: %[[Y:.*]] = "tile.map"() ({
    // CHECK-NEXT: %[[V:.*]] = "tile.load"(%[[O]])
    // CHECK-NEXT: %[[NV:.*]] = "tile.rms_norm"(%[[V]], %{{.*}}) {eps = {{.*}}, unit_offset = true}
    // CHECK-NEXT: %[[R:.*]] = "tile.load"(%[[X]]) {offset = 0 : i64, size = 64 : i64}
    // CHECK-NEXT: %[[S:.*]] = "tile.plus"(%[[NV]], %[[R]])
    // CHECK-NEXT: "tile.yield"(%[[S]])
    %no = "graph.rms_norm"(%o, %n) {eps = 1.0e-5 : f64, unit_offset = true} : (!x, !n) -> !x
    %y = "graph.add"(%x, %no) : (!x, !x) -> !x
    %gate = "graph.linear"(%y, %w, %gb) : (!x, !w, !n) -> !x
    %up = "graph.linear"(%y, %w, %ub) : (!x, !w, !n) -> !x
    // CHECK-DAG: %[[GB:.*]] = "tile.buffer"() {kind = "tensor", sym_name = "gate_bias"}
    // CHECK-DAG: %[[UB:.*]] = "tile.buffer"() {kind = "tensor", sym_name = "up_bias"}
    // CHECK: "tile.contract"(%[[Y]])
    // CHECK: ^bb0(%[[LO:.*]]: f32, %[[HI:.*]]: f32)
    // CHECK-NEXT: %[[G:.*]] = "tile.bias"(%[[LO]], %[[GB]]) {bases = array<i64: 0>}
    // CHECK-NEXT: %[[U:.*]] = "tile.bias"(%[[HI]], %[[UB]]) {bases = array<i64: 0>}
    // CHECK-NEXT: "tile.glu"(%[[G]], %[[U]]) {activation = "gelu"}
    %m = "graph.glu"(%gate, %up) {activation = "gelu"} : (!x, !x) -> !x
    %down = "graph.linear"(%m, %w) : (!x, !w) -> !x
    %less = "graph.scale"(%down) {factor = 0.5 : f64} : (!x) -> !x
    // CHECK: %[[L:.*]]:2 = "tile.scale"(%{{.*}}, %{{.*}}) {factor = 5.000000e-01 : f64}
    // CHECK-NEXT: "tile.residual"(%[[L]]#0, %[[L]]#1, %[[Y]])
    %z = "graph.add"(%less, %y) : (!x, !x) -> !x
    %one = "graph.linear"(%z, %w) : (!x, !w) -> !x
    // CHECK: %[[A:.*]]:2 = "tile.activate"(%{{.*}}, %{{.*}}) {activation = "relu"}
    // CHECK-NEXT: "tile.publish"(%[[A]]#0, %[[A]]#1)
    %act = "graph.activate"(%one) {activation = "relu"} : (!x) -> !x
    %l = "graph.linear"(%act, %w) : (!x, !w) -> !x
    // CHECK: %[[C:.*]]:2 = "tile.softcap"(%{{.*}}, %{{.*}}) {cap = 3.000000e+01 : f64}
    // CHECK-NEXT: "tile.logits"(%[[C]]#0, %[[C]]#1)
    // CHECK-NEXT: "tile.candidate"(%[[C]]#0, %[[C]]#1)
    %c = "graph.softcap"(%l) {cap = 30.0 : f64} : (!x) -> !x
    %t = "graph.sample"(%c) {kind = "argmax"} : (!x) -> !p
    return %t : !p
  }
}
