// Passes from a file are flags, stand in pipelines and in the help, and their refusals can be repeated.

// RUN: tileir-opt %s --load-pass=%S/../../examples/my_passes.py --count-bytes | filecheck %s
// RUN: tileir-opt %s --load-pass %S/../../examples/my_passes.py --pass-pipeline='builtin.module(count-bytes{limit=9999},cse)' | filecheck %s
// CHECK: module attributes {example.tape_bytes = 4096 : i64
// CHECK: tape_bytes = 4096 : i64, tile_base

// RUN: tileir-opt --load-pass=%S/../../examples/my_passes.py --help | filecheck %s --check-prefix=HELP
// HELP: count-bytes          Write on every contract
// HELP-NEXT: limit=int (default 0)
// HELP-NEXT: set-window

// RUN: not tileir-opt %s --load-pass=%S/../../examples/my_passes.py --count-bytes=limit=4095 2>&1 | filecheck %s --check-prefix=LIMIT
// LIMIT: error: a contract streams 4096 bytes
// LIMIT: reproduce: tileir-opt {{.*}}before-count-bytes.mlir --load-pass={{.*}}my_passes.py --pass-pipeline=

// RUN: not tileir-opt %s --count-bytes 2>&1 | filecheck %s --check-prefix=UNKNOWN
// UNKNOWN: unknown pass 'count-bytes'

// RUN: not tileir-opt %s --load-pass=%S/no_such_file.py 2>&1 | filecheck %s --check-prefix=MISSING
// MISSING: tileir-opt: error: no Python file {{.*}}no_such_file.py

!x = tensor<1x40xbf16, "channel">
!y = tensor<1x24xf32, "channel">
!table = tensor<64x40xbf16, "buffer">

module attributes {tileir.level = "tile"} {
  func.func @step() -> !y {
    %table = "tile.buffer"() {sym_name = "embed", kind = "tensor"} : () -> !table
    %x = "tile.map"() ({
      %value = "tile.lookup"(%table) {scale = 1.0 : f64} : (!table) -> f32
      "tile.yield"(%value) : (f32) -> ()
    }) {rows = 20 : i64} : () -> !x
    %y = "tile.contract"(%x) ({
    ^bb0(%value: f32):
      "tile.yield"(%value) : (f32) -> ()
    }, {
      "tile.segment"() ({
      ^bb0(%lo: f32, %hi: f32):
        "tile.publish"(%lo, %hi) {bases = array<i64: 0, 8>} : (f32, f32) -> ()
        "tile.yield"() : () -> ()
      }) {tiles = 2 : i64, inner = 2 : i64, step = 16 : i64, outer = 0 : i64, sources = array<i64: 0, 0, 0, 8>} : () -> ()
      "tile.yield"() : () -> ()
    }) {weights = ["w"], k = 40 : i64, groups = 1 : i64, k_parts = 1 : i64, tile_base = 0 : i64, tiles = 2 : i64} : (!x) -> !y
    return %y : !y
  }
}
