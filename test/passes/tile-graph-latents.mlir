// RUN: tileir-opt %s --pass-pipeline='builtin.module(absorb-latents,graph-fuse,specialize-gpu,tile-graph)' | filecheck %s
// RUN: not tileir-opt %s --pass-pipeline='builtin.module(absorb-latents{enable=false},graph-fuse)' 2>&1 | filecheck %s --check-prefix=OFF

// Latents: one state for keys and values. Its rows are made by two stages, the latent by a norm of its own, the rotated
// key by the contract's epilogue; queries are absorbed head by head, in contracts of groups.

// OFF: no stage takes graph.mla_attention
// OFF: run absorb-latents first

!p = tensor<?xi32>
!x = tensor<?x64xf32>
!e = tensor<96x64xf32>
!s = tensor<1x64x48xf32>
!c = tensor<?x32xf32>
!r = tensor<?x16xf32>
!q = tensor<?x64xf32>
module attributes {tileir.level = "graph", tileir.context = 64 : i64, tileir.vocabulary = 96 : i64} {
  func.func @step(%tokens: !p, %positions: !p) -> !p {
    %e = "graph.weight"() {sym_name = "embed"} : () -> !e
    %n = "graph.weight"() {sym_name = "latent_norm"} : () -> tensor<32xf32>
    // The first 32 rows of kv_a are latents, the last 16 a key to be rotated: two views.
    %wc = "graph.weight"() {sym_name = "kv_a", offset = 0 : i64, strides = array<i64: 64, 1>} : () -> tensor<32x64xf32>
    %wr = "graph.weight"() {sym_name = "kv_a", offset = 2048 : i64, strides = array<i64: 64, 1>} : () -> tensor<16x64xf32>
    %wq = "graph.weight"() {sym_name = "q", offset = 0 : i64, strides = array<i64: 2048, 64, 1>} : () -> tensor<4x16x64xf32>
    %wqr = "graph.weight"() {sym_name = "q", offset = 1024 : i64, strides = array<i64: 2048, 64, 1>} : () -> tensor<4x16x64xf32>
    %b = "graph.weight"() {sym_name = "kv_b"} : () -> tensor<4x32x32xf32>
    %o = "graph.weight"() {sym_name = "o"} : () -> tensor<64x64xf32>
    %f = "graph.constant"() {sym_name = "f", value = dense<0.5> : tensor<8xf32>} : () -> tensor<8xf32>
    %state = "graph.state"() {sym_name = "latents"} : () -> !s
    %x = "graph.embedding"(%e, %tokens) {scale = 1.0 : f64} : (!e, !p) -> !x
    // CHECK: %[[X:.*]] = "tile.map"()
    // CHECK: %[[STATE:.*]] = "tile.state"() {sym_name = "latents"} : () -> tensor<1x64x48xbf16, "state">
    // CHECK: %[[ALL:.*]] = "tile.contract"(%[[X]])
    // CHECK: tile.rope
    // CHECK: "tile.append"(%{{.*}}, %{{.*}}, %[[STATE]]) {bases = array<i64: 32, 40>}
    // CHECK: weights = ["kv_a", "kv_a", "q", "q"]
    %c = "graph.linear"(%x, %wc) : (!x, tensor<32x64xf32>) -> !c
    %cn = "graph.rms_norm"(%c, %n) {eps = 1.0e-6 : f64, unit_offset = false} : (!c, tensor<32xf32>) -> !c
    %k = "graph.linear"(%x, %wr) : (!x, tensor<16x64xf32>) -> !r
    %kr = "graph.rope"(%k, %positions, %f) {head_size = 16 : i64, scale = 1.0 : f64, style = "half"} : (!r, !p, tensor<8xf32>) -> !r
    %s0 = "graph.append"(%state, %cn, %positions) {offset = 0 : i64} : (!s, !c, !p) -> !s
    %s1 = "graph.append"(%s0, %kr, %positions) {offset = 32 : i64} : (!s, !r, !p) -> !s
    %q = "graph.linear"(%x, %wq) : (!x, tensor<4x16x64xf32>) -> !q
    %ql = "graph.linear"(%x, %wqr) : (!x, tensor<4x16x64xf32>) -> !q
    %qr = "graph.rope"(%ql, %positions, %f) {head_size = 16 : i64, scale = 1.0 : f64, style = "half"} : (!q, !p, tensor<8xf32>) -> !q
    // CHECK: %[[OWN:.*]] = "tile.map"() ({
    // CHECK-NEXT: %[[V:.*]] = "tile.load"(%[[ALL]]) {offset = 0 : i64, size = 32 : i64}
    // CHECK-NEXT: %[[N:.*]] = "tile.rms_norm"(%[[V]], %{{.*}})
    // CHECK-NEXT: "tile.store"(%[[N]], %[[STATE]]) {offset = 0 : i64}
    // CHECK-NEXT: "tile.yield"(%[[N]])
    // Head h meets values 48 + 16·h … of the first contract's channel, and rows of kv_b transposed.
    // CHECK: %[[Q:.*]] = "tile.contract"(%[[ALL]])
    // CHECK: groups = 4 : i64, k = 16 : i64, {{.*}}views = [array<i64: 0, 4, 32, 16, 1024, 1, 32>], weights = ["kv_b"], x = array<i64: 48, 16>} : {{.*}} -> tensor<1x128xbf16, "channel">
    // CHECK: %[[P:.*]] = "tile.attend"(%[[STATE]]) ({
    // CHECK-NEXT: "tile.query"(%[[Q]]) {offset = 0 : i64, size = 32 : i64, stride = 32 : i64}
    // CHECK-NEXT: "tile.query"(%[[ALL]]) {offset = 112 : i64, size = 16 : i64, stride = 16 : i64}
    // CHECK-NEXT: "tile.key"(%[[OWN]]) {offset = 0 : i64, size = 32 : i64, stride = 32 : i64}
    // CHECK-NEXT: "tile.key"(%[[ALL]]) {offset = 32 : i64, size = 16 : i64, stride = 16 : i64}
    // CHECK: head_size = 48 : i64, heads = 4 : i64, kv_heads = 1 : i64, {{.*}}value_size = 32 : i64
    // CHECK: "tile.combine"(%[[P]])
    // CHECK: groups = 4 : i64, k = 32 : i64, {{.*}}views = [array<i64: 512, 4, 16, 32, 1024, 32, 1>], weights = ["kv_b"], x = array<i64: 0, 32>}
    %a = "graph.mla_attention"(%q, %qr, %s1, %b, %positions) {heads = 4 : i64, nope_size = 16 : i64, rope_size = 16 : i64, value_size = 16 : i64, latent_size = 32 : i64, scale = 0.2 : f64} : (!q, !q, !s, tensor<4x32x32xf32>, !p) -> !q
    %y = "graph.linear"(%a, %o) : (!q, tensor<64x64xf32>) -> !x
    %z = "graph.add"(%x, %y) : (!x, !x) -> !x
    %l = "graph.linear"(%z, %e) : (!x, !e) -> tensor<?x96xf32>
    %t = "graph.sample"(%l) {kind = "argmax"} : (tensor<?x96xf32>) -> !p
    return %t : !p
  }
}
