// RUN: not tileir-opt %s --pass-pipeline='builtin.module(tile-graph)' 2>&1 | filecheck %s --check-prefix=STAGE
// RUN: not tileir-opt %s --pass-pipeline='builtin.module(graph-fuse,tile-graph)' 2>&1 | filecheck %s --check-prefix=DEVICES
// RUN: not tileir-opt %s --pass-pipeline='builtin.module(graph-fuse,specialize-gpu,tile-graph{tokens=0})' 2>&1 | filecheck %s --check-prefix=TOKENS
// RUN: not tileir-opt %s --pass-pipeline='builtin.module(graph-fuse,specialize-gpu,tile-graph{tokens=9})' 2>&1 | filecheck %s --check-prefix=MANY
// RUN: not tileir-opt %s --pass-pipeline='builtin.module(graph-fuse,specialize-gpu,tile-graph{page=4 pages=3})' 2>&1 | filecheck %s --check-prefix=PAGES

// STAGE: tile-graph-order-errors.mlir:{{[0-9]+}}:{{[0-9]+}}: error: graph.embedding has no 'stage'
// STAGE: graph-fuse puts it: run it first
// DEVICES: graph.embedding has no 'devices'
// DEVICES: specialize-gpu puts it: run it first
// TOKENS: 0 tokens a step
// MANY: 9 tokens a step
// MANY: a step carries 1 … 8
// PAGES: 3 pages of 4 rows for a context of 16
// PAGES: pages=4 or more

!p = tensor<?xi32>
!x = tensor<?x32xbf16>
!w = tensor<32x32xbf16>
module attributes {tileir.level = "graph", tileir.context = 16 : i64, tileir.vocabulary = 32 : i64} {
  func.func @step(%tokens: !p, %positions: !p) -> !p {
    %w = "graph.weight"() {sym_name = "w"} : () -> !w
    %x = "graph.embedding"(%w, %tokens) {scale = 1.0 : f64} : (!w, !p) -> !x
    %l = "graph.linear"(%x, %w) : (!x, !w) -> !x
    %t = "graph.sample"(%l) {kind = "argmax"} : (!x) -> !p
    return %t : !p
  }
}
