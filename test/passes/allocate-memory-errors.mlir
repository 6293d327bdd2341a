// RUN: not tileir-opt %s --pass-pipeline='builtin.module(allocate-memory{target=h100})' 2>&1 | filecheck %s
// RUN: grep -v 'engine.ring' %s > %t && not tileir-opt %t --pass-pipeline='builtin.module(allocate-memory{target=h100})' 2>&1 | filecheck %s --check-prefix=RING

// RING: engine.device has no ring 'tape'
// RING: outline-stages puts it: run it first

// 8 tokens of 16384 activations do not fit beside the rings.

// CHECK: shared memory: 321792 bytes needed, 232448 available
// CHECK: activations take 262144, partial sums 8192, the least rings 49152: fewer tokens

!x = tensor<8x16384xbf16, "channel">
module attributes {tileir.level = "engine"} {
  "engine.device"() ({
    "engine.ring"() {sym_name = "tape", slots = 3 : i64, slot_bytes = 16384 : i64, window = 3 : i64, fed_window = 3 : i64} : () -> ()
    "engine.body"() ({
    ^bb0(%in: !x):
      "engine.role"() ({
        "engine.receive"(%in) ({
        ^bb0(%value: f32):
          "tile.yield"(%value) : (f32) -> ()
        }) {k = 16384 : i64, offset = 0 : i64, stride = 0 : i64, groups = 1 : i64} : (!x) -> ()
        "engine.multiply"() {source = "tape", ring = "tape", k = 16384 : i64, tiles = 1 : i64} : () -> ()
      }) {sym_name = "consumer"} : () -> ()
    }) {sym_name = "contract_0", kind = "contract"} : () -> ()
  }) {index = 0 : i64, devices = 1 : i64, sequences = 1 : i64, page = 0 : i64, sms = 132 : i64, consumer_warps = 16 : i64, tokens = 8 : i64, context = 64 : i64, vocabulary = 64 : i64} : () -> ()
}
