// RUN: tileir-opt %s --pass-pipeline='builtin.module(graph-fuse,specialize-gpu,tile-graph)' | filecheck %s
// RUN: tileir-opt %s --pass-pipeline='builtin.module(graph-fuse,specialize-gpu,tile-graph,fuse-communication,specialize-block{target=virtual},select-sync,schedule-pipeline{target=virtual})' | filecheck %s --check-prefix=ORDER

// Experts: the router's scores and keys, the choice, gate and up of the chosen experts, their outputs weighted, and a map
// that sums a token's slots, then the shared expert's, then the residual.

!p = tensor<?xi32>
!i = tensor<?x2xi32>
!k = tensor<?x2xf32>
!x = tensor<?x64xf32>
!n = tensor<64xf32>
!e = tensor<96x64xf32>
!r = tensor<16x64xf32>
!up = tensor<16x32x64xf32>
!down = tensor<16x64x32xf32>
!su = tensor<32x64xf32>
!sd = tensor<64x32xf32>
!one = tensor<?x32xf32>
!two = tensor<?x64xf32>
!out = tensor<?x128xf32>
module attributes {tileir.level = "graph", tileir.context = 64 : i64, tileir.vocabulary = 96 : i64} {
  func.func @step(%tokens: !p, %positions: !p) -> !p {
    %e = "graph.weight"() {sym_name = "embed"} : () -> !e
    %n = "graph.weight"() {sym_name = "norm"} : () -> !n
    %r = "graph.weight"() {sym_name = "router"} : () -> !r
    %b = "graph.weight"() {sym_name = "bias"} : () -> tensor<16xf32>
    %wg = "graph.weight"() {sym_name = "gate_up", offset = 0 : i64, strides = array<i64: 4096, 64, 1>} : () -> !up
    %wu = "graph.weight"() {sym_name = "gate_up", offset = 2048 : i64, strides = array<i64: 4096, 64, 1>} : () -> !up
    %wd = "graph.weight"() {sym_name = "down"} : () -> !down
    %sg = "graph.weight"() {sym_name = "shared_gate"} : () -> !su
    %su = "graph.weight"() {sym_name = "shared_up"} : () -> !su
    %sd = "graph.weight"() {sym_name = "shared_down"} : () -> !sd
    // CHECK: %[[X:.*]] = "tile.map"()
    // CHECK: tile.lookup
    %x = "graph.embedding"(%e, %tokens) {scale = 1.0 : f64} : (!e, !p) -> !x
    %h = "graph.rms_norm"(%x, %n) {eps = 1.0e-6 : f64, unit_offset = false} : (!x, !n) -> !x
    %l = "graph.linear"(%h, %r) : (!x, !r) -> tensor<?x16xf32>
    // Scores at 0, keys with the bias behind them, f32.
    // CHECK: %[[SCORES:.*]] = "tile.contract"(%[[X]])
    // CHECK: %[[S:.*]]:2 = "tile.sigmoid"
    // CHECK: %[[K:.*]]:2 = "tile.bias"(%[[S]]#0, %[[S]]#1, %{{.*}}) {bases = array<i64: 0, 8>}
    // CHECK: "tile.publish"(%[[K]]#0, %[[K]]#1) {bases = array<i64: 16, 24>}
    // CHECK: "tile.publish"(%[[S]]#0, %[[S]]#1) {bases = array<i64: 0, 8>}
    // CHECK: -> tensor<1x32xf32, "channel">
    // CHECK: %[[ROUTING:.*]] = "tile.select"(%[[SCORES]]) {devices = array<i64: 0>, experts = 16 : i64, fill = 0.000000e+00 : f64, groups = 4 : i64, k = 2 : i64, kind = "route", normalize = true, scale = 2.500000e+00 : f64, score = "sigmoid", top_groups = 2 : i64} : (tensor<1x32xf32, "channel">) -> tensor<1x2x2xi32, "channel">
    %c, %w = "graph.router"(%l, %b) {kind = "sigmoid", k = 2 : i64, groups = 4 : i64, top_groups = 2 : i64, normalize = true, scale = 2.5 : f64} : (tensor<?x16xf32>, tensor<16xf32>) -> (!i, !k)
    // Both slots of a token see all of x; views cut the fused tensor.
    // CHECK: %[[GATED:.*]] = "tile.contract"(%[[X]])
    // CHECK: "tile.experts"(%[[ROUTING]])
    // CHECK: tile.rms_norm
    // CHECK: tile.glu
    // CHECK: groups = 2 : i64, k = 64 : i64, {{.*}}views = [array<i64: 0, 16, 32, 64, 4096, 64, 1>, array<i64: 2048, 16, 32, 64, 4096, 64, 1>], weights = ["gate_up", "gate_up"]} : {{.*}} -> tensor<1x64xbf16, "channel">
    %g = "graph.expert_linear"(%h, %c, %wg) : (!x, !i, !up) -> !two
    %u = "graph.expert_linear"(%h, %c, %wu) : (!x, !i, !up) -> !two
    %m = "graph.glu"(%g, %u) {activation = "silu"} : (!two, !two) -> !two
    // Slot j takes its own part of x, and its output is weighted, f32.
    // CHECK: %[[PARTS:.*]] = "tile.contract"(%[[GATED]])
    // CHECK: "tile.experts"(%[[ROUTING]])
    // CHECK: %[[V:.*]]:2 = "tile.weigh"(%{{.*}}, %{{.*}}, %[[ROUTING]])
    // CHECK: "tile.publish"(%[[V]]#0, %[[V]]#1)
    // CHECK: weights = ["down"], x = array<i64: 0, 32>} : {{.*}} -> tensor<1x2x64xf32, "channel">
    %d = "graph.expert_linear"(%m, %c, %wd) : (!two, !i, !down) -> !out
    %y = "graph.weighted_sum"(%d, %w) : (!out, !k) -> !x
    %a = "graph.linear"(%h, %sg) : (!x, !su) -> !one
    %z = "graph.linear"(%h, %su) : (!x, !su) -> !one
    %q = "graph.glu"(%a, %z) {activation = "silu"} : (!one, !one) -> !one
    // CHECK: weights = ["shared_gate", "shared_up"]
    // CHECK: %[[SHARED:.*]] = "tile.contract"
    // CHECK: weights = ["shared_down"]
    %s = "graph.linear"(%q, %sd) : (!one, !sd) -> !x
    // CHECK: "tile.map"() ({
    // CHECK-NEXT: %[[SUM:.*]] = "tile.sum"(%[[PARTS]]) {size = 2 : i64}
    // CHECK-NEXT: %[[A:.*]] = "tile.load"(%[[SHARED]]) {offset = 0 : i64, size = 2 : i64}
    // CHECK-NEXT: %[[B:.*]] = "tile.plus"(%[[SUM]], %[[A]])
    // CHECK-NEXT: %[[C:.*]] = "tile.load"(%[[X]]) {offset = 0 : i64, size = 2 : i64}
    // CHECK-NEXT: %[[D:.*]] = "tile.plus"(%[[B]], %[[C]])
    // CHECK-NEXT: "tile.yield"(%[[D]])
    // CHECK: rows = 32 : i64
    %t0 = "graph.add"(%y, %s) : (!x, !x) -> !x
    %t1 = "graph.add"(%x, %t0) : (!x, !x) -> !x
    %o = "graph.linear"(%t1, %e) : (!x, !e) -> tensor<?x96xf32>
    %t = "graph.sample"(%o) {kind = "argmax"} : (tensor<?x96xf32>) -> !p
    return %t : !p
  }
}

// Every SM routes for itself. The shared expert stands in the phase of the routed ones, before them: it waits for no choice.
// ORDER: weights = ["router"]
// ORDER: kind = "route", level = "sm"
// ORDER-SAME: phase = 2 : i64
// ORDER: phase = 3 : i64, {{.*}}weights = ["shared_gate", "shared_up"]
// ORDER: phase = 3 : i64, {{.*}}weights = ["gate_up", "gate_up"]
// ORDER: phase = 4 : i64, {{.*}}weights = ["shared_down"]
// ORDER: phase = 4 : i64, {{.*}}weights = ["down"]
// ORDER: tile.sum
// ORDER: phase = 5 : i64
