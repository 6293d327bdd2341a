// RUN: not tileir-opt %s --pass-pipeline='builtin.module(graph-fuse,specialize-gpu{devices=0})' 2>&1 | filecheck %s --check-prefix=NONE
// RUN: not tileir-opt %s --pass-pipeline='builtin.module(graph-fuse,specialize-gpu{target=h1})' 2>&1 | filecheck %s --check-prefix=TARGET
// RUN: not tileir-opt %s --pass-pipeline='builtin.module(specialize-gpu)' 2>&1 | filecheck %s --check-prefix=STAGE
// RUN: not tileir-opt %s --pass-pipeline='builtin.module(graph-fuse,specialize-gpu)' 2>&1 | filecheck %s --check-prefix=CONTEXT

// NONE: 0 devices
// NONE: one GPU or more
// TARGET: unknown target 'h1'
// STAGE: specialize-gpu-errors.mlir:{{[0-9]+}}:{{[0-9]+}}: error: graph.embedding has no 'stage'
// STAGE: graph-fuse puts it: run it first
// CONTEXT: builtin.module has no 'tileir.context'

!p = tensor<?xi32>
!x = tensor<?x32xbf16>
!w = tensor<32x32xbf16>
module attributes {tileir.level = "graph"} {
  func.func @step(%tokens: !p, %positions: !p) -> !p {
    %w = "graph.weight"() {sym_name = "w"} : () -> !w
    %x = "graph.embedding"(%w, %tokens) {scale = 1.0 : f64} : (!w, !p) -> !x
    %l = "graph.linear"(%x, %w) : (!x, !w) -> !x
    %t = "graph.sample"(%l) {kind = "argmax"} : (!x) -> !p
    return %t : !p
  }
}
