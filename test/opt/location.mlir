// What a pass refuses is shown with its source line.

// RUN: not tileir-opt %s --graph-fuse 2>&1 | filecheck %s
// CHECK: location.mlir:12:8: error: arith.addi does not belong to graph level
// CHECK-NEXT: {{^}}  %x = arith.addi %a, %a : i32
// CHECK-NEXT: {{^ {7}\^$}}
// CHECK-NEXT: allowed: builtin.module, func.func, func.return, graph.*
// CHECK-NEXT: reproduce: tileir-opt {{.*}}before-graph-fuse.mlir --pass-pipeline='builtin.module(graph-fuse)'

module attributes {tileir.level = "graph"} {
func.func @f(%a: i32) -> i32 {
  %x = arith.addi %a, %a : i32
  return %x : i32
}
}
