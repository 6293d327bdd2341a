// RUN: tileir-opt %s --pass-pipeline='builtin.module(graph-fuse,specialize-gpu{devices=1 target=h100 print-candidates=true})' 2>&1 | filecheck %s

// Priced, and placed on one GPU.

!p = tensor<?xi32>
!x = tensor<?x2048xbf16>
!w = tensor<2048x2048xbf16>
!s = tensor<32x1024x64xbf16>
// Six matrices of 8.4 MB at 3.12 TB/s, and a hop of 1 us for each stage: q, k and v 9.1, the projection behind attention
// 3.7, the head 3.7. 512 old rows of 32 heads are 4.2 MB: 1.3, and two hops. Whoever looks up, projects once more or
// samples: 1, 3.7 and 1.
// CHECK: one GPU: 25.5 us a step (all 5.7, heads 12.4, heads sum 3.7, vocabulary 3.7)
// CHECK-COUNT-3: {sym_name = "{{[a-z]}}"}
// CHECK: "graph.embedding"({{.*}}) {devices = array<i64: 0>, scale
// CHECK-COUNT-3: "graph.linear"({{.*}}) {devices = array<i64: 0>, stage = 1
// CHECK-COUNT-2: "graph.append"({{.*}}) {devices = array<i64: 0>
// CHECK: "graph.attention"({{.*}}) {devices = array<i64: 0>
// CHECK-COUNT-3: "graph.linear"({{.*}}) {devices = array<i64: 0>
// CHECK: "graph.sample"({{.*}}) {devices = array<i64: 0>
module attributes {tileir.level = "graph", tileir.context = 1024 : i64} {
  func.func @step(%tokens: !p, %positions: !p) -> !p {
    %w = "graph.weight"() {sym_name = "w"} : () -> !w
    %ks = "graph.state"() {sym_name = "k"} : () -> !s
    %vs = "graph.state"() {sym_name = "v"} : () -> !s
    %x = "graph.embedding"(%w, %tokens) {scale = 1.0 : f64} : (!w, !p) -> !x
    %q = "graph.linear"(%x, %w) : (!x, !w) -> !x
    %k = "graph.linear"(%x, %w) : (!x, !w) -> !x
    %v = "graph.linear"(%x, %w) : (!x, !w) -> !x
    %ka = "graph.append"(%ks, %k, %positions) : (!s, !x, !p) -> !s
    %va = "graph.append"(%vs, %v, %positions) : (!s, !x, !p) -> !s
    %a = "graph.attention"(%q, %ka, %va, %positions) {heads = 32 : i64, kv_heads = 32 : i64, head_size = 64 : i64,
      scale = 0.125 : f64, window = 0 : i64, softcap = 0.0 : f64} : (!x, !s, !s, !p) -> !x
    %o = "graph.linear"(%a, %w) : (!x, !w) -> !x
    %d = "graph.linear"(%o, %w) : (!x, !w) -> !x
    %l = "graph.linear"(%d, %w) : (!x, !w) -> !x
    %t = "graph.sample"(%l) {kind = "argmax"} : (!x) -> !p
    return %t : !p
  }
}
