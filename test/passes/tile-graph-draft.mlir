// RUN: tileir-opt %s --pass-pipeline='builtin.module(graph-fuse,specialize-gpu,tile-graph{tokens=4})' | filecheck %s
// RUN: tileir-opt %s --pass-pipeline='builtin.module(graph-fuse,specialize-gpu,tile-graph{tokens=4},fuse-communication,specialize-block{target=virtual},select-sync,specialize-warp{target=virtual},schedule-pipeline{target=virtual},outline-stages{target=virtual},allocate-memory{target=virtual},verify-schedule{target=virtual})' | filecheck %s --check-prefix=ENGINE

// A draft layer behind the choice, for up to four tokens a step: it looks up the token just chosen, mixes it with the
// hidden values that led to the choice (two linears over halves of one weight), and chooses the token behind.

!p = tensor<?xi32>
!x = tensor<?x64xf32>
!w = tensor<64x64xf32>
!e = tensor<96x64xf32>
!l = tensor<?x96xf32>
module attributes {tileir.level = "graph", tileir.context = 64 : i64, tileir.vocabulary = 96 : i64} {
  // CHECK: func.func @step({{.*}}) -> (tensor<?xi32>, tensor<?xi32>) {
  func.func @step(%tokens: !p, %positions: !p) -> (!p, !p) {
    %e = "graph.weight"() {sym_name = "embed"} : () -> !e
    %h = "graph.weight"() {sym_name = "head"} : () -> !e
    %wa = "graph.weight"() {sym_name = "mix", offset = 0 : i64, strides = array<i64: 128, 1>} : () -> !w
    %wb = "graph.weight"() {sym_name = "mix", offset = 64 : i64, strides = array<i64: 128, 1>} : () -> !w
    // CHECK: %[[X:.*]] = "tile.map"()
    // CHECK: "tile.lookup"(%[[TABLE:.*]]) {scale = 1.000000e+00 : f64}
    // CHECK: -> tensor<4x64xbf16, "channel">
    %x = "graph.embedding"(%e, %tokens) {scale = 1.0 : f64} : (!e, !p) -> !x
    %l = "graph.linear"(%x, %h) : (!x, !e) -> !l
    // CHECK: %[[T:.*]] = "tile.select"
    %t = "graph.sample"(%l) {kind = "argmax"} : (!l) -> !p
    // CHECK: %[[Y:.*]] = "tile.map"()
    // CHECK: "tile.lookup"(%[[TABLE]]) {of = "choice", scale = 1.000000e+00 : f64}
    %y = "graph.embedding"(%e, %t) {scale = 1.0 : f64} : (!e, !p) -> !x
    // CHECK: %[[A:.*]] = "tile.contract"(%[[Y]])
    // CHECK: views = {{\[}}array<i64: 0, 64, 64, 128, 1>]
    %a = "graph.linear"(%y, %wa) : (!x, !w) -> !x
    // CHECK: "tile.contract"(%[[X]])
    // CHECK: "tile.residual"(%{{.*}}, %{{.*}}, %[[A]])
    // CHECK: views = {{\[}}array<i64: 64, 64, 64, 128, 1>]
    %b = "graph.linear"(%x, %wb) : (!x, !w) -> !x
    %m = "graph.add"(%a, %b) : (!x, !x) -> !x
    %d = "graph.linear"(%m, %h) : (!x, !e) -> !l
    // CHECK: %[[D:.*]] = "tile.select"
    %u = "graph.sample"(%d) {kind = "argmax"} : (!l) -> !p
    // CHECK: return %[[T]], %[[D]]
    return %t, %u : !p, !p
  }
}

// ENGINE: "engine.select"({{.*}}) {kind = "argmax", makes = "token"}
// ENGINE: "engine.select"({{.*}}) {kind = "argmax", makes = "draft"}
