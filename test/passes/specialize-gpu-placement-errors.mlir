// RUN: not tileir-opt %s --pass-pipeline='builtin.module(graph-fuse,specialize-gpu{devices=2 placement=tensor-paralel})' 2>&1 | filecheck %s
// RUN: not tileir-opt %s --pass-pipeline='builtin.module(graph-fuse,specialize-gpu{devices=2 placement=indexer-apart})' 2>&1 | filecheck %s --check-prefix=INDEX
// RUN: not tileir-opt %s --pass-pipeline='builtin.module(graph-fuse,specialize-gpu{devices=3})' 2>&1 | filecheck %s --check-prefix=MANY

// MANY: 3 devices share a vocabulary of 2 tiles of 16
// MANY: devices=2 or fewer
// CHECK: no placement 'tensor-paralel' of this model on 2 GPUs
// CHECK: did you mean 'tensor-parallel'? candidates: tensor-parallel, replicated-attention

// A model without an indexer cannot set one apart.
// INDEX: no placement 'indexer-apart' of this model on 2 GPUs
// INDEX: candidates: tensor-parallel, replicated-attention

!p = tensor<?xi32>
!x = tensor<?x32xbf16>
!w = tensor<32x32xbf16>
module attributes {tileir.level = "graph", tileir.context = 64 : i64} {
  func.func @step(%tokens: !p, %positions: !p) -> !p {
    %w = "graph.weight"() {sym_name = "w"} : () -> !w
    %x = "graph.embedding"(%w, %tokens) {scale = 1.0 : f64} : (!w, !p) -> !x
    %l = "graph.linear"(%x, %w) : (!x, !w) -> !x
    %t = "graph.sample"(%l) {kind = "argmax"} : (!x) -> !p
    return %t : !p
  }
}
