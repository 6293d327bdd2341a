// RUN: not tileir-opt %s --pass-pipeline='builtin.module(select-sync)' 2>&1 | filecheck %s

// CHECK: tile.map makes a channel of f16
// CHECK: channels carry bf16, f32, i32

!table = tensor<128x64xf16, "buffer">
!x = tensor<1x64xf16, "channel">
module attributes {tileir.level = "tile"} {
  func.func @step() -> !x {
    %table = "tile.buffer"() {sym_name = "embed", kind = "tensor"} : () -> !table
    %x = "tile.map"() ({
      %value = "tile.lookup"(%table) {scale = 1.0 : f64} : (!table) -> f32
      "tile.yield"(%value) : (f32) -> ()
    }) {rows = 32 : i64} : () -> !x
    return %x : !x
  }
}
