// RUN: tileir-opt %s --pass-pipeline='builtin.module(graph-fuse,specialize-gpu{target=virtual},tile-graph)' | filecheck %s
// RUN: tileir-opt %s --pass-pipeline='builtin.module(graph-fuse)' | filecheck %s --check-prefix=FUSED

// Norms and ropes of heads belong to the attention that alone reads them, with the append of keys: no map, no exchange.

!p = tensor<?xi32>
!x = tensor<?x64xbf16>
!n = tensor<16xbf16>
!w = tensor<64x64xbf16>
!f = tensor<8xf32>
!s = tensor<4x16x16xbf16>
module attributes {tileir.level = "graph", tileir.context = 16 : i64, tileir.vocabulary = 64 : i64} {
  func.func @step(%tokens: !p, %positions: !p) -> !p {
    %w = "graph.weight"() {sym_name = "w"} : () -> !w
    %qw = "graph.weight"() {sym_name = "q_norm"} : () -> !n
    %kw = "graph.weight"() {sym_name = "k_norm"} : () -> !n
    %f = "graph.constant"() {sym_name = "f", value = dense<1.0> : !f} : () -> !f
    %ks = "graph.state"() {sym_name = "k"} : () -> !s
    %vs = "graph.state"() {sym_name = "v"} : () -> !s
    %x = "graph.embedding"(%w, %tokens) {scale = 1.0 : f64} : (!w, !p) -> !x
    // FUSED-COUNT-3: "graph.linear"({{.*}}stage = 1 : i64
    // CHECK: %[[QKV:.*]] = "tile.contract"
    %lq = "graph.linear"(%x, %w) : (!x, !w) -> !x
    %lk = "graph.linear"(%x, %w) : (!x, !w) -> !x
    %lv = "graph.linear"(%x, %w) : (!x, !w) -> !x
    // FUSED-COUNT-2: "graph.rms_norm"({{.*}}stage = 2 : i64, stage_kind = "attend"
    // FUSED-COUNT-2: "graph.rope"({{.*}}stage = 2 : i64, stage_kind = "attend"
    // FUSED: "graph.append"({{.*}}stage = 2 : i64, stage_kind = "attend"
    // FUSED: "graph.append"({{.*}}stage = 1 : i64, stage_kind = "contract"
    // FUSED: "graph.attention"({{.*}}stage = 2 : i64, stage_kind = "attend"
    // CHECK-NOT: "tile.load"
    // CHECK: "tile.attend"(%[[K:.*]], %{{.*}}) ({
    // CHECK-NEXT: %[[Q:.*]] = "tile.query"(%[[QKV]]) {offset = 0 : i64, size = 16 : i64, stride = 16 : i64}
    // CHECK-NEXT: %[[NQ:.*]] = "tile.rms_norm"(%[[Q]], %{{.*}})
    // CHECK-NEXT: "tile.rotate"(%[[NQ]], %{{.*}}) {first = 0 : i64, style = "half"}
    // CHECK-NEXT: %[[OWN:.*]] = "tile.key"(%[[QKV]]) {offset = 64 : i64, size = 16 : i64, stride = 16 : i64}
    // CHECK-NEXT: %[[NK:.*]] = "tile.rms_norm"(%[[OWN]], %{{.*}})
    // CHECK-NEXT: %[[RK:.*]] = "tile.rotate"(%[[NK]], %{{.*}}) {first = 0 : i64, style = "half"}
    // CHECK-NEXT: "tile.store"(%[[RK]], %[[K]]) {offset = 0 : i64}
    // CHECK-NEXT: "tile.value"(%[[QKV]]) {offset = 128 : i64, size = 16 : i64, stride = 16 : i64}
    %nq = "graph.rms_norm"(%lq, %qw) {eps = 1.0e-5 : f64, unit_offset = false} : (!x, !n) -> !x
    %nk = "graph.rms_norm"(%lk, %kw) {eps = 1.0e-5 : f64, unit_offset = false} : (!x, !n) -> !x
    %q = "graph.rope"(%nq, %positions, %f) {head_size = 16 : i64, scale = 1.0 : f64, style = "half"} : (!x, !p, !f) -> !x
    %k = "graph.rope"(%nk, %positions, %f) {head_size = 16 : i64, scale = 1.0 : f64, style = "half"} : (!x, !p, !f) -> !x
    %ka = "graph.append"(%ks, %k, %positions) : (!s, !x, !p) -> !s
    %va = "graph.append"(%vs, %lv, %positions) : (!s, !x, !p) -> !s
    %a = "graph.attention"(%q, %ka, %va, %positions) {heads = 4 : i64, kv_heads = 4 : i64, head_size = 16 : i64,
      scale = 0.25 : f64, window = 0 : i64, softcap = 0.0 : f64} : (!x, !s, !s, !p) -> !x
    %l = "graph.linear"(%a, %w) : (!x, !w) -> !x
    %t = "graph.sample"(%l) {kind = "argmax"} : (!x) -> !p
    return %t : !p
  }
}
