// What upstream's pass says is shown at its place, and then how to repeat it.

// RUN: not tileir-opt %s --pass-pipeline='builtin.module(cse,gpu-module-to-binary)' 2>&1 | filecheck %s
// CHECK: upstream-errors.mlir:[[#LINE:]]:1: error: the module has no target attributes
// CHECK-NEXT: {{^}}gpu.module @m {
// CHECK-NEXT: {{^\^$}}
// CHECK-NEXT: note: gpu-module-to-binary failed
// CHECK-NEXT: reproduce: tileir-opt {{.*}}before-cse.mlir --pass-pipeline='builtin.module(cse,gpu-module-to-binary)'

// RUN: tileir-opt %s --gpu-module-to-binary --verify-diagnostics

// expected-error @below {{the module has no target attributes}}
gpu.module @m {
}
