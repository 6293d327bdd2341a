// RUN: tileir-opt %s --split-input-file --verify-diagnostics

// Lines count from the file's beginning in every piece.
func.func @twice(%a: i32) {
  // expected-note @below {{previously defined here}}
  %x = arith.addi %a, %a : i32
  // expected-error @below {{redefinition of SSA value '%x'}}
  %x = arith.addi %a, %a : i32
  return
}

// -----

func.func @fine() {
  return
}

// -----

func.func @undefined() -> i32 {
  return %y : i32 // expected-error {{use of undeclared SSA value}}
}
