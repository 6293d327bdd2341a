// A location that names another file is kept: the line is not looked for in this one.

// RUN: not tileir-opt %s --graph-fuse 2>&1 | filecheck %s
// CHECK: model.py:2:5: error: arith.addi does not belong to graph level
// CHECK-NEXT: allowed

// RUN: tileir-opt %s --mlir-print-debuginfo | filecheck %s --check-prefix=DEBUG
// DEBUG-DAG: loc("model.py":2:5)
// DEBUG-DAG: location-elsewhere.mlir":14:3)
module attributes {tileir.level = "graph"} {
func.func @f(%a: i32) -> i32 {
  %x = arith.addi %a, %a : i32 loc("model.py":2:5)

  return %x : i32
}
}
