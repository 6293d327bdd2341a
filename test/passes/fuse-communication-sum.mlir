// RUN: tileir-opt %s --pass-pipeline='builtin.module(graph-fuse,specialize-gpu{devices=3 placement=tensor-parallel})' | filecheck %s --check-prefix=PLACED
// RUN: tileir-opt %s --pass-pipeline='builtin.module(graph-fuse,specialize-gpu{devices=3 placement=tensor-parallel print-candidates=true})' 2>&1 >/dev/null | filecheck %s --check-prefix=PRICE
// RUN: tileir-opt %s --pass-pipeline='builtin.module(graph-fuse,specialize-gpu{devices=3 placement=tensor-parallel},tile-graph)' | filecheck %s --check-prefix=BEFORE
// RUN: tileir-opt %s --pass-pipeline='builtin.module(graph-fuse,specialize-gpu{devices=3 placement=tensor-parallel},tile-graph,fuse-communication)' | filecheck %s --check-prefix=AFTER
// RUN: tileir-opt %s --pass-pipeline='builtin.module(graph-fuse,specialize-gpu{devices=3 placement=tensor-parallel},tile-graph,fuse-communication,specialize-block{target=virtual},select-sync,specialize-warp{target=virtual},schedule-pipeline{target=virtual},outline-stages{target=virtual},allocate-memory{target=virtual},verify-schedule{target=virtual})' | filecheck %s --check-prefix=ENGINE

// Tensor parallel on three GPUs with four heads: two, one and one. Heads, columns and the vocabulary are shared out, and the
// projections behind them become sums over parts in rank order: an all-reduce made of channels.

// PRICE: tensor-parallel: {{[0-9.]+}} us a step ({{.*}}columns sum {{[0-9.]+}}, heads {{[0-9.]+}}, heads sum
// PRICE: replicated-attention:

// PLACED: "graph.embedding"({{.*}}) {devices = array<i64: 0, 1, 2>, {{.*}}share = "all"
// PLACED: "graph.linear"({{.*}}) {devices = array<i64: 0, 1, 2>, parts = array<i64: 0, 2, 3, 4>, share = "rows", {{.*}}units = 4 : i64}
// PLACED: "graph.attention"({{.*}}parts = array<i64: 0, 2, 3, 4>, {{.*}}share = "rows"
// PLACED: "graph.linear"({{.*}}) {devices = array<i64: 0, 1, 2>, parts = array<i64: 0, 2, 3, 4>, share = "sum", {{.*}}units = 4 : i64}
// PLACED: "graph.linear"({{.*}}) {devices = array<i64: 0, 1, 2>, parts = array<i64: 0, 4, 8, 12>, share = "rows", {{.*}}units = 12 : i64}

// BEFORE: "tile.combine"
// BEFORE: %[[Y:.*]] = "tile.contract"(%{{.*}}) ({
// BEFORE: "tile.residual"
// BEFORE: share = "sum", {{.*}}views = [array<i64: 0, 64, 64, 64, 1>], weights = ["o"]} : {{.*}} -> tensor<1x64xbf16, "channel">

// AFTER: %[[X:.*]] = "tile.map"
// AFTER: "tile.combine"
// AFTER: %[[P:.*]] = "tile.contract"(%{{.*}}) ({
// AFTER-NOT: tile.residual
// AFTER: level = "peer", {{.*}}share = "sum", {{.*}}weights = ["o"]} : {{.*}} -> tensor<1x3x64xf32, "channel">
// AFTER: %[[Y:.*]] = "tile.map"() ({
// AFTER-NEXT: %[[S:.*]] = "tile.sum"(%[[P]]) {size = 2 : i64}
// AFTER-NEXT: %[[R:.*]] = "tile.load"(%[[X]]) {offset = 0 : i64, size = 2 : i64}
// AFTER-NEXT: %[[A:.*]] = "tile.plus"(%[[S]], %[[R]])
// AFTER-NEXT: "tile.yield"(%[[A]])
// AFTER: devices = array<i64: 0, 1, 2>, rows = 32 : i64, share = "all"
// AFTER: "tile.contract"(%[[Y]])
// AFTER: tile.candidate
// AFTER: level = "peer"

// GPU 1 has the third head: values 32 … 47 of K, part 1 of the sums, and one of the embedding's channels by itself.
// ENGINE: index = 0 : i64
// ENGINE: depth = 1 : i64, level = "peer", {{.*}}payload = "f32", {{.*}}sym_name = "linear_0"
// ENGINE: "engine.receive"(%{{.*}}) ({
// ENGINE: "tile.publish"(%{{.*}}, %{{.*}}) {bases = array<i64: 64, 72>}
// ENGINE: views = [array<i64: 32, 64, 16, 64, 1>], weights = ["o"]
// ENGINE: index = 1 : i64

!p = tensor<?xi32>
!x = tensor<?x64xf32>
!g = tensor<?x96xf32>
!w = tensor<64x64xf32>
!u = tensor<96x64xf32>
!s = tensor<4x64x16xf32>
module attributes {tileir.level = "graph", tileir.context = 64 : i64, tileir.vocabulary = 96 : i64} {
  func.func @step(%tokens: !p, %positions: !p) -> !p {
    %e = "graph.weight"() {sym_name = "embed"} : () -> !u
    %wq = "graph.weight"() {sym_name = "q"} : () -> !w
    %wk = "graph.weight"() {sym_name = "k"} : () -> !w
    %wv = "graph.weight"() {sym_name = "v"} : () -> !w
    %wo = "graph.weight"() {sym_name = "o"} : () -> !w
    %wg = "graph.weight"() {sym_name = "gate"} : () -> !u
    %wu = "graph.weight"() {sym_name = "up"} : () -> !u
    %wd = "graph.weight"() {sym_name = "down"} : () -> tensor<64x96xf32>
    %ks = "graph.state"() {sym_name = "k_0"} : () -> !s
    %vs = "graph.state"() {sym_name = "v_0"} : () -> !s
    %x = "graph.embedding"(%e, %tokens) {scale = 1.0 : f64} : (!u, !p) -> !x
    %q = "graph.linear"(%x, %wq) : (!x, !w) -> !x
    %k = "graph.linear"(%x, %wk) : (!x, !w) -> !x
    %v = "graph.linear"(%x, %wv) : (!x, !w) -> !x
    %ka = "graph.append"(%ks, %k, %positions) : (!s, !x, !p) -> !s
    %va = "graph.append"(%vs, %v, %positions) : (!s, !x, !p) -> !s
    %a = "graph.attention"(%q, %ka, %va, %positions) {heads = 4 : i64, kv_heads = 4 : i64, head_size = 16 : i64,
      scale = 0.25 : f64, window = 0 : i64, softcap = 0.0 : f64} : (!x, !s, !s, !p) -> !x
    %o = "graph.linear"(%a, %wo) : (!x, !w) -> !x
    %y = "graph.add"(%x, %o) : (!x, !x) -> !x
    %gate = "graph.linear"(%y, %wg) : (!x, !u) -> !g
    %up = "graph.linear"(%y, %wu) : (!x, !u) -> !g
    %m = "graph.glu"(%gate, %up) {activation = "silu"} : (!g, !g) -> !g
    %d = "graph.linear"(%m, %wd) : (!g, tensor<64x96xf32>) -> !x
    %z = "graph.add"(%y, %d) : (!x, !x) -> !x
    %l = "graph.linear"(%z, %e) : (!x, !u) -> !g
    %t = "graph.sample"(%l) {kind = "argmax"} : (!g) -> !p
    return %t : !p
  }
}
