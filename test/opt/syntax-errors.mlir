// RUN: not tileir-opt %s 2>&1 | filecheck %s

// CHECK: syntax-errors.mlir:7:2: error: expected
// CHECK: {{^}}}
// CHECK: ^
func.func @broken(%a: i32 {
}
