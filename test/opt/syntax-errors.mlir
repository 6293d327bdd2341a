// RUN: not tileir-opt %s 2>&1 | filecheck %s

// CHECK: syntax-errors.mlir:6:26: error:
// CHECK: func.func @broken(%a: i3
// CHECK: ^
func.func @broken(%a: i32 {
}
