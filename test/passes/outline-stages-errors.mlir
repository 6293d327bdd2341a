// RUN: not tileir-opt %s --pass-pipeline='builtin.module(outline-stages{target=virtual})' 2>&1 | filecheck %s --check-prefix=ROLES
// RUN: not tileir-opt %s --pass-pipeline='builtin.module(specialize-warp,outline-stages)' 2>&1 | filecheck %s --check-prefix=RINGS
// RUN: not tileir-opt %s --pass-pipeline='builtin.module(specialize-warp,schedule-pipeline,outline-stages)' 2>&1 | filecheck %s --check-prefix=SYNC

// ROLES: builtin.module has no 'tileir.roles'
// ROLES: specialize-warp puts it: run it first
// RINGS: builtin.module has no 'tileir.rings'
// RINGS: schedule-pipeline puts it: run it first
// SYNC: tile.map has no 'payload'
// SYNC: select-sync puts it: run it first

!table = tensor<128x64xbf16, "buffer">
!x = tensor<1x64xbf16, "channel">
module attributes {tileir.level = "tile", tileir.context = 64 : i64, tileir.vocabulary = 128 : i64} {
  func.func @step() -> !x {
    %table = "tile.buffer"() {sym_name = "embed", kind = "tensor"} : () -> !table
    %x = "tile.map"() ({
      %value = "tile.lookup"(%table) {scale = 1.0 : f64} : (!table) -> f32
      "tile.yield"(%value) : (f32) -> ()
    }) {rows = 32 : i64, devices = array<i64: 0>} : () -> !x
    return %x : !x
  }
}
