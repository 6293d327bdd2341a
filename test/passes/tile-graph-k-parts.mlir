// RUN: tileir-opt %s --pass-pipeline='builtin.module(graph-fuse,specialize-gpu{target=virtual},tile-graph{target=virtual})' | filecheck %s
// RUN: tileir-opt %s --pass-pipeline='builtin.module(graph-fuse,specialize-gpu{target=virtual},tile-graph)' | filecheck %s --check-prefix=NONE

// Five tiles of rows on four SMs are two for one of them. With K in two parts they are ten halves, three for two of them.
// In a tile's half lo are rows with the first part, in half hi the same rows with the second.

// NONE-NOT: "tile.join"
// NONE: sources = array<i64: 0, 0, 0, 8>
// NONE: k = 512 : i64, k_parts = 1 : i64, tile_base = 0 : i64, tiles = 5 : i64, weights = ["down"]

!p = tensor<?xi32>
!x = tensor<?x80xbf16>
!h = tensor<?x512xbf16>
!e = tensor<64x80xbf16>
!u = tensor<512x80xbf16>
!d = tensor<80x512xbf16>
module attributes {tileir.level = "graph", tileir.context = 16 : i64, tileir.vocabulary = 64 : i64} {
  func.func @step(%tokens: !p, %positions: !p) -> !p {
    %e = "graph.weight"() {sym_name = "embed"} : () -> !e
    %wu = "graph.weight"() {sym_name = "up"} : () -> !u
    %wd = "graph.weight"() {sym_name = "down"} : () -> !d
    %x = "graph.embedding"(%e, %tokens) {scale = 1.0 : f64} : (!e, !p) -> !x
    // The rows of a linear with an activation are whole: 32 tiles are even.
    // CHECK: "tile.activate"
    // CHECK: k = 80 : i64, k_parts = 1 : i64, tile_base = 0 : i64, tiles = 32 : i64, weights = ["up"]
    %u = "graph.linear"(%x, %wu) : (!x, !u) -> !h
    %a = "graph.activate"(%u) {activation = "silu"} : (!h) -> !h
    // CHECK: ^bb0(%[[LO:.*]]: f32, %[[HI:.*]]: f32):
    // CHECK-NEXT: %[[SUM:.*]] = "tile.join"(%[[LO]], %[[HI]]) : (f32, f32) -> f32
    // CHECK-NEXT: %[[NEW:.*]] = "tile.residual"(%[[SUM]], %{{.*}}) {bases = array<i64: 0>}
    // CHECK-NEXT: "tile.publish"(%[[NEW]]) {bases = array<i64: 0>}
    // CHECK: inner = 10 : i64, outer = 0 : i64, sources = array<i64: 0, 0, 1, 0>, step = 8 : i64, tiles = 10 : i64
    // CHECK: k = 256 : i64, k_parts = 2 : i64, tile_base = 0 : i64, tiles = 10 : i64
    // CHECK-SAME: views = {{.*}}0, 80, 256, 512, 1{{.*}}256, 80, 256, 512, 1{{.*}}weights = ["down", "down"]
    %l = "graph.linear"(%a, %wd) : (!h, !d) -> !x
    %r = "graph.add"(%x, %l) : (!x, !x) -> !x
    // CHECK: "tile.candidate"
    // CHECK: k_parts = 1
    %o = "graph.linear"(%r, %e) : (!x, !e) -> tensor<?x64xbf16>
    %t = "graph.sample"(%o) {kind = "argmax"} : (tensor<?x64xbf16>) -> !p
    return %t : !p
  }
}
