// RUN: not tileir-opt %s --pass-pipeline='builtin.module(specialize-block{target=h10})' 2>&1 | filecheck %s --check-prefix=TARGET
// RUN: not tileir-opt %s --pass-pipeline='builtin.module(specialize-block)' 2>&1 | filecheck %s --check-prefix=CONTEXT

// TARGET: unknown target 'h10'
// TARGET: did you mean 'h100'?
// CONTEXT: builtin.module has no 'tileir.context'
// CONTEXT: the importer puts it: run it first

!table = tensor<128x64xbf16, "buffer">
!x = tensor<1x64xbf16, "channel">
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
