// Upstream's passes stand in the same pipelines; a run of them is one pass manager, and yet each is told apart.

// RUN: tileir-opt %s --pass-pipeline='builtin.module(canonicalize,func.func(cse))' | filecheck %s
// RUN: tileir-opt %s --pass-pipeline='builtin.module(canonicalize{max-iterations=3 region-simplify=normal},cse)' | filecheck %s
// RUN: tileir-opt %s --cse --print-ir-after-all 2>&1 | filecheck %s --check-prefix=ALL
// RUN: tileir-opt %s --canonicalize --cse --symbol-dce --print-ir-after=cse 2>&1 | filecheck %s --check-prefix=ONE
// RUN: tileir-opt %s --canonicalize --cse --mlir-timing 2>&1 | filecheck %s --check-prefix=TIME
// RUN: tileir-opt - --cse < %s | filecheck %s

// CHECK-LABEL: func.func @twice
// CHECK: arith.addi
// CHECK-NOT: arith.addi
// ALL: IR after cse
// ONE-NOT: IR after canonicalize
// ONE: IR after cse
// ONE-NOT: IR after symbol-dce
// TIME: {{^ +[0-9.]+}} ms  canonicalize
// TIME-NEXT: {{^ +[0-9.]+}} ms  cse
func.func @twice(%a: i32, %b: i32) -> (i32, i32) {
  %x = arith.addi %a, %b : i32
  %y = arith.addi %a, %b : i32
  return %x, %y : i32, i32
}
