// RUN: tileir-opt %s --pass-pipeline='builtin.module(canonicalize,func.func(cse))' | filecheck %s
// RUN: tileir-opt %s --cse --print-ir-after-all 2>&1 | filecheck %s --check-prefix=AFTER

// Upstream's passes stand in the same pipelines.

// CHECK-LABEL: func.func @twice
// CHECK: arith.addi
// CHECK-NOT: arith.addi
// AFTER: IR after cse
func.func @twice(%a: i32, %b: i32) -> (i32, i32) {
  %x = arith.addi %a, %b : i32
  %y = arith.addi %a, %b : i32
  return %x, %y : i32, i32
}
