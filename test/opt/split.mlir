// RUN: tileir-opt %s --split-input-file --canonicalize | filecheck %s

// CHECK: func.func @first
// CHECK: // -----
// CHECK: func.func @second
func.func @first() {
  return
}

// -----

func.func @second() {
  return
}
