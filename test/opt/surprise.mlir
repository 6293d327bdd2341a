// --verify-diagnostics fails for what was not expected, what was not said, and what was said elsewhere.

// RUN: not tileir-opt %s --split-input-file --verify-diagnostics 2>&1 | filecheck %s
// CHECK: surprise.mlir:11: unexpected error: use of undeclared SSA value name
// CHECK-NEXT: surprise.mlir:18: expected error 'never said' was not said
// CHECK-NEXT: surprise.mlir:26: unexpected error: use of undeclared SSA value name
// CHECK-NEXT: surprise.mlir:25: expected error 'undeclared' was not said
// CHECK-NOT: surprise.mlir

func.func @unexpected() -> i32 {
  return %y : i32
}

// -----

func.func @silent() {
  // expected-error @below {{never said}}
  return
}

// -----

func.func @elsewhere() -> i32 {

  // expected-error {{undeclared}}
  return %y : i32
}
