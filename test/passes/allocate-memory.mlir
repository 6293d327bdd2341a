// RUN: tileir-opt %s --pass-pipeline='builtin.module(allocate-memory{target=h100})' | filecheck %s

// Rings, then activations (K of 600 padded to 608, bf16: 1216, up to 1280 bytes), then partial sums (9 tiles on 4 SMs are
// at most 3, of 16 warps × 16 f32: 3072 bytes), 2048 bytes of scratch, barriers. That leaves 10 + 3 slots of 16 KB.

!x = tensor<1x600xbf16, "channel">
!y = tensor<1x144xbf16, "channel">
!best = tensor<1x4x2xi32, "channel">

// CHECK-LABEL: engine.device
// CHECK: engine.ring
// CHECK-SAME: barrier_offset = 219392 : i64, fed_window = 3 : i64, slot_bytes = 16384 : i64, slots = 10 : i64, smem_offset = 0 : i64, sym_name = "tape", window = 3 : i64
// CHECK: engine.ring
// CHECK-SAME: barrier_offset = 219552 : i64, {{.*}}slots = 3 : i64, smem_offset = 163840 : i64, sym_name = "state", window = 2 : i64
// CHECK: offset = 0 : i64, sym_name = "norm"
// CHECK: offset = 1280 : i64, sym_name = "rope"
// CHECK: offset = 0 : i64, sym_name = "k"
// CHECK: offset = 4096 : i64, sym_name = "v"
// 300 packets of 8 bytes are 2400, up to the next 256; candidates have two copies.
// CHECK: offset = 0 : i64, {{.*}}sym_name = "x"
// CHECK: offset = 2560 : i64, {{.*}}sym_name = "y"
// CHECK: offset = 3328 : i64, {{.*}}sym_name = "best"
// CHECK: engine.body
// CHECK: constant_bytes = 5376 : i64, consumer_warps = 16 : i64, context = 64 : i64, devices = 1 : i64, exchange_bytes = 3584 : i64
// CHECK-SAME: part_offset = 214272 : i64, scratch_offset = 217344 : i64, sequences = 1 : i64, smem_bytes = 219648 : i64
// CHECK-SAME: state_bytes = 8192 : i64
// CHECK-SAME: x_offset = 212992 : i64
module attributes {tileir.level = "engine"} {
  "engine.device"() ({
    "engine.ring"() {sym_name = "tape", slots = 3 : i64, slot_bytes = 16384 : i64, window = 3 : i64, fed_window = 3 : i64} : () -> ()
    "engine.ring"() {sym_name = "state", slots = 3 : i64, slot_bytes = 16384 : i64, window = 3 : i64, fed_window = 3 : i64} : () -> ()
    %norm = "engine.buffer"() {sym_name = "norm", kind = "tensor"} : () -> tensor<600xbf16, "buffer">
    %rope = "engine.buffer"() {sym_name = "rope", kind = "rope"} : () -> tensor<64x8x2xf32, "buffer">
    %k = "engine.state"() {sym_name = "k"} : () -> tensor<2x64x16xbf16, "state">
    %v = "engine.state"() {sym_name = "v"} : () -> tensor<2x64x16xbf16, "state">
    %x = "engine.channel"() {sym_name = "x", payload = "bf16x2", protocol = "packet", replicas = 1 : i64, level = "gpu", depth = 1 : i64} : () -> !x
    %y = "engine.channel"() {sym_name = "y", payload = "bf16x2", protocol = "packet", replicas = 1 : i64, level = "gpu", depth = 1 : i64} : () -> !y
    %best = "engine.channel"() {sym_name = "best", payload = "record", protocol = "packet", replicas = 1 : i64, level = "gpu", depth = 2 : i64} : () -> !best
    "engine.body"() ({
    ^bb0(%in: !x, %out: !y):
      "engine.role"() ({
        "engine.fill"() {ring = "tape", source = "tape", k = 600 : i64, tiles = 9 : i64} : () -> ()
      }) {sym_name = "tape"} : () -> ()
      "engine.role"() ({
        "engine.receive"(%in) ({
        ^bb0(%value: f32):
          "tile.yield"(%value) : (f32) -> ()
        }) {k = 600 : i64, offset = 0 : i64, stride = 0 : i64, groups = 1 : i64} : (!x) -> ()
        "engine.multiply"() {source = "tape", ring = "tape", k = 600 : i64, tiles = 9 : i64} : () -> ()
        "engine.emit"(%out) ({
          "tile.yield"() : () -> ()
        }) {tiles = 9 : i64, space = 9 : i64} : (!y) -> ()
      }) {sym_name = "consumer"} : () -> ()
    }) {sym_name = "contract_0", kind = "contract"} : () -> ()
  }) {index = 0 : i64, devices = 1 : i64, sequences = 1 : i64, page = 0 : i64, sms = 4 : i64, consumer_warps = 16 : i64, tokens = 1 : i64, context = 64 : i64, vocabulary = 64 : i64} : () -> ()
}
