// RUN: tileir-opt %s --pass-pipeline='builtin.module(graph-fuse,specialize-gpu,tile-graph{tokens=8 sequences=2 page=16 pages=10})' | filecheck %s
// RUN: tileir-opt %s --pass-pipeline='builtin.module(graph-fuse,specialize-gpu,tile-graph,fuse-communication,specialize-block{target=virtual},select-sync,specialize-warp{target=virtual},schedule-pipeline{target=virtual},outline-stages{target=virtual},allocate-memory{target=virtual},verify-schedule{target=virtual})' | filecheck %s --check-prefix=ENGINE
// RUN: tileir-opt %s --pass-pipeline='builtin.module(graph-fuse,specialize-gpu{devices=3 placement=indexer-apart},tile-graph,fuse-communication)' | filecheck %s --check-prefix=APART

// A sparse indexer: scores are a contraction with the rows of a state, the best positions a select, and both attentions
// gather what it lists. With 8 tokens of 2 sequences a step and KV in pages.

!p = tensor<?xi32>
!i = tensor<?x8xi32>
!x = tensor<?x64xf32>
!w = tensor<64x64xf32>
!e = tensor<96x64xf32>
!s = tensor<2x64x32xf32>
!ks = tensor<1x64x16xf32>
!k = tensor<?x16xf32>
module attributes {tileir.level = "graph", tileir.context = 64 : i64, tileir.vocabulary = 96 : i64} {
  func.func @step(%tokens: !p, %positions: !p) -> !p {
    %e = "graph.weight"() {sym_name = "embed"} : () -> !e
    %w = "graph.weight"() {sym_name = "w"} : () -> !w
    %wi = "graph.weight"() {sym_name = "index_k"} : () -> tensor<16x64xf32>
    %ww = "graph.weight"() {sym_name = "index_w"} : () -> tensor<4x64xf32>
    %g = "graph.weight"() {sym_name = "g"} : () -> tensor<16xf32>
    %h = "graph.weight"() {sym_name = "h"} : () -> tensor<16xf32>
    %k0 = "graph.state"() {sym_name = "k_0"} : () -> !s
    %v0 = "graph.state"() {sym_name = "v_0"} : () -> !s
    %k1 = "graph.state"() {sym_name = "k_1"} : () -> !s
    %v1 = "graph.state"() {sym_name = "v_1"} : () -> !s
    %index = "graph.state"() {sym_name = "index"} : () -> !ks
    %x = "graph.embedding"(%e, %tokens) {scale = 1.0 : f64} : (!e, !p) -> !x
    // CHECK: tileir.page = 16 : i64, tileir.sequences = 2 : i64, tileir.tokens = 8 : i64
    // CHECK: %[[INDEX:.*]] = "tile.state"() {page = 16 : i64, sym_name = "index"} : () -> tensor<1x160x16xbf16, "state">
    // CHECK: %[[OWN:.*]] = "tile.map"
    // CHECK: tile.layer_norm
    // CHECK: "tile.store"(%{{.*}}, %[[INDEX]]) {offset = 0 : i64}
    // CHECK: -> tensor<8x16xbf16, "channel">
    %q = "graph.linear"(%x, %w) : (!x, !w) -> !x
    %l = "graph.linear"(%x, %wi) : (!x, tensor<16x64xf32>) -> !k
    %n = "graph.layer_norm"(%l, %g, %h) {eps = 1.0e-6 : f64} : (!k, tensor<16xf32>, tensor<16xf32>) -> !k
    %keys = "graph.append"(%index, %n, %positions) : (!ks, !k, !p) -> !ks
    %iw = "graph.linear"(%x, %ww) : (!x, tensor<4x64xf32>) -> tensor<?x4xf32>
    // Four heads of 16 meet every row; the sum over heads is published, f32, a score a position.
    // CHECK: %[[SCORES:.*]] = "tile.contract"(%[[LINEAR:.*]]) ({
    // CHECK: "tile.rows"(%[[INDEX]], %[[OWN]]) {offset = 0 : i64}
    // CHECK: "tile.relu_sum"(%{{.*}}, %{{.*}}, %[[LINEAR]]) {offset = 80 : i64, scale = 2.500000e-01 : f64}
    // CHECK: groups = 4 : i64, k = 16 : i64, {{.*}}splits = 1 : i64, {{.*}}x = array<i64: 0, 16>} : {{.*}} -> tensor<8x64xf32, "channel">
    %scores = "graph.index_scores"(%q, %iw, %keys, %positions) {heads = 4 : i64, head_size = 16 : i64, scale = 0.25 : f64} : (!x, tensor<?x4xf32>, !ks, !p) -> !x
    // CHECK: %[[LIST:.*]] = "tile.select"(%[[SCORES]]) {devices = array<i64: 0>, k = 8 : i64, kind = "top_k"} : {{.*}} -> tensor<8x8xi32, "channel">
    %list = "graph.top_k"(%scores, %positions) {k = 8 : i64} : (!x, !p) -> !i
    // CHECK: "tile.attend"
    // CHECK: "tile.gather"(%[[LIST]])
    %q0 = "graph.linear"(%x, %w) : (!x, !w) -> !x
    %a0 = "graph.linear"(%x, %w) : (!x, !w) -> !x
    %b0 = "graph.linear"(%x, %w) : (!x, !w) -> !x
    %ka = "graph.append"(%k0, %a0, %positions) : (!s, !x, !p) -> !s
    %va = "graph.append"(%v0, %b0, %positions) : (!s, !x, !p) -> !s
    %y = "graph.attention"(%q0, %ka, %va, %positions, %list) {heads = 2 : i64, kv_heads = 2 : i64, head_size = 32 : i64, scale = 0.2 : f64, window = 0 : i64, softcap = 0.0 : f64} : (!x, !s, !s, !p, !i) -> !x
    // The second layer goes by the same list.
    // CHECK: "tile.attend"
    // CHECK: "tile.gather"(%[[LIST]])
    %q1 = "graph.linear"(%y, %w) : (!x, !w) -> !x
    %a1 = "graph.linear"(%y, %w) : (!x, !w) -> !x
    %b1 = "graph.linear"(%y, %w) : (!x, !w) -> !x
    %kb = "graph.append"(%k1, %a1, %positions) : (!s, !x, !p) -> !s
    %vb = "graph.append"(%v1, %b1, %positions) : (!s, !x, !p) -> !s
    %z = "graph.attention"(%q1, %kb, %vb, %positions, %list) {heads = 2 : i64, kv_heads = 2 : i64, head_size = 32 : i64, scale = 0.2 : f64, window = 0 : i64, softcap = 0.0 : f64} : (!x, !s, !s, !p, !i) -> !x
    %o = "graph.linear"(%z, %e) : (!x, !e) -> tensor<?x96xf32>
    %t = "graph.sample"(%o) {kind = "argmax"} : (tensor<?x96xf32>) -> !p
    return %t : !p
  }
}

// The list has three copies: a loader that finds nothing to stream may lag. Keys stream through the ring of states.
// ENGINE: depth = 3 : i64, level = "gpu", {{.*}}sym_name = "indices_0"
// ENGINE: "engine.fill_rows"(%[[KEYS:.*]]) {{.*}}head_size = 16 : i64
// ENGINE: "tile.rows"(%[[KEYS]], %[[OWN:.*]]) {offset = 0 : i64}
// ENGINE: "engine.multiply"(%[[OWN]]) {{.*}}source = "rows"
// ENGINE: acquire = array<i64: 2>, kind = "contract"
// ENGINE: "engine.choose"(%{{.*}}, %{{.*}}) {k = 8 : i64, kind = "top_k"}
// ENGINE: "engine.fill_gathered"(%[[K:.*]], %[[I:.*]], %[[V:.*]])
// ENGINE: "tile.gather"(%[[I]])

// The indexer stays on GPU 0, attention is on GPUs 1 and 2, a kv head each; the list crosses.
// APART: tile.relu_sum
// APART: devices = array<i64: 0>, groups = 4 : i64
// APART: tile.select
// APART-SAME: devices = array<i64: 0>, k = 8 : i64, kind = "top_k", level = "peer", share = "all"
// APART: tile.attend
// APART: devices = array<i64: 1, 2>
// APART-SAME: parts = array<i64: 0, 1, 2>
// APART-SAME: share = "rows", {{.*}}units = 2 : i64
