// Every operation of the engine dialect survives a round trip.

// RUN: tileir-opt %s | filecheck %s
// RUN: tileir-opt %s -o %t.first.mlir
// RUN: tileir-opt %t.first.mlir | cmp - %t.first.mlir

!x = tensor<1x64xbf16, "channel">
!state = tensor<1x16x32xbf16, "state">
!best = tensor<1x4x2xi32, "channel">
!partial = tensor<1x2x1x34xf32, "channel">
!table = tensor<128x64xbf16, "buffer">

// CHECK: tileir.level = "engine"
module attributes {tileir.level = "engine"} {
  // CHECK: "engine.device"() ({
  "engine.device"() ({
    // CHECK: "engine.ring"() {fed_window = 3 : i64, slot_bytes = 65536 : i64, slots = 4 : i64, smem_offset = 0 : i64, sym_name = "tape", window = 3 : i64}
    "engine.ring"() {sym_name = "tape", slots = 4 : i64, slot_bytes = 65536 : i64, window = 3 : i64, fed_window = 3 : i64, smem_offset = 0 : i64} : () -> ()
    "engine.ring"() {sym_name = "state", slots = 3 : i64, slot_bytes = 65536 : i64, window = 2 : i64, fed_window = 2 : i64, smem_offset = 262144 : i64} : () -> ()
    // CHECK: "engine.buffer"() {kind = "tensor", offset = 0 : i64, sym_name = "embed"} : () -> tensor<128x64xbf16, "buffer">
    %table = "engine.buffer"() {sym_name = "embed", kind = "tensor", offset = 0 : i64} : () -> !table
    // CHECK: "engine.state"() {offset = 0 : i64, sym_name = "k"} : () -> tensor<1x16x32xbf16, "state">
    %k = "engine.state"() {sym_name = "k", offset = 0 : i64} : () -> !state
    %v = "engine.state"() {sym_name = "v", offset = 1024 : i64} : () -> !state
    // CHECK: "engine.channel"() {depth = 1 : i64, level = "gpu", offset = 0 : i64, payload = "bf16x2", protocol = "packet", replicas = 1 : i64, sym_name = "x"}
    %x = "engine.channel"() {sym_name = "x", payload = "bf16x2", protocol = "packet", replicas = 1 : i64, level = "gpu", depth = 1 : i64, offset = 0 : i64} : () -> !x
    // CHECK: "engine.channel"() {depth = 1 : i64, level = "gpu", offset = 256 : i64, payload = "f32", protocol = "block", replicas = 1 : i64, sym_name = "partial"}
    %partial = "engine.channel"() {sym_name = "partial", payload = "f32", protocol = "block", replicas = 1 : i64, level = "gpu", depth = 1 : i64, offset = 256 : i64} : () -> !partial
    // CHECK: "engine.channel"() {depth = 2 : i64, level = "peer", offset = 1024 : i64, payload = "record", protocol = "packet", replicas = 1 : i64, sym_name = "best"}
    %best = "engine.channel"() {sym_name = "best", payload = "record", protocol = "packet", replicas = 1 : i64, level = "peer", depth = 2 : i64, offset = 1024 : i64} : () -> !best
    // CHECK: "engine.body"() ({
    // CHECK-NEXT: ^bb0(%[[X:.*]]: tensor<1x64xbf16, "channel">, %[[TABLE:.*]]: tensor<128x64xbf16, "buffer">):
    "engine.body"() ({
    ^bb0(%to: !x, %rows: !table):
      // CHECK-NEXT: "engine.role"() ({
      "engine.role"() ({
        // CHECK-NEXT: "engine.map"(%[[X]]) ({
        "engine.map"(%to) ({
          %row = "tile.lookup"(%rows) {scale = 1.0 : f64} : (!table) -> f32
          "tile.yield"(%row) : (f32) -> ()
        // CHECK: }) {rows = 32 : i64} : (tensor<1x64xbf16, "channel">) -> ()
        }) {rows = 32 : i64} : (!x) -> ()
      // CHECK-NEXT: }) {sym_name = "consumer"} : () -> ()
      }) {sym_name = "consumer"} : () -> ()
    // CHECK-NEXT: }) {kind = "map", sym_name = "lookup"} : () -> ()
    }) {sym_name = "lookup", kind = "map"} : () -> ()
    "engine.body"() ({
    ^bb0(%from: !x, %to: !best):
      "engine.role"() ({
        // CHECK: "engine.fill"() {k = 64 : i64, ring = "tape", source = "tape", tiles = 8 : i64} : () -> ()
        "engine.fill"() {ring = "tape", source = "tape", k = 64 : i64, tiles = 8 : i64} : () -> ()
      }) {sym_name = "tape"} : () -> ()
      "engine.role"() ({
        // CHECK: "engine.receive"(%[[FROM:.*]]) ({
        "engine.receive"(%from) ({
        ^bb0(%value: f32):
          "tile.yield"(%value) : (f32) -> ()
        // CHECK: }) {k = 64 : i64} : (tensor<1x64xbf16, "channel">) -> ()
        }) {k = 64 : i64} : (!x) -> ()
        // CHECK-NEXT: "engine.barrier"() : () -> ()
        "engine.barrier"() : () -> ()
        // CHECK-NEXT: "engine.multiply"() {k = 64 : i64, ring = "tape", source = "tape", tiles = 8 : i64} : () -> ()
        "engine.multiply"() {source = "tape", ring = "tape", k = 64 : i64, tiles = 8 : i64} : () -> ()
        "engine.barrier"() : () -> ()
        // CHECK: "engine.emit"(%{{.*}}) ({
        "engine.emit"(%to) ({
          "tile.segment"() ({
          ^bb0(%lo: f32, %hi: f32):
            "tile.candidate"(%lo, %hi) {bases = array<i64: 0, 8>} : (f32, f32) -> ()
            "tile.yield"() : () -> ()
          }) {tiles = 8 : i64, inner = 8 : i64, step = 16 : i64, outer = 0 : i64, sources = array<i64: 0, 0, 0, 8>} : () -> ()
          "tile.yield"() : () -> ()
        // CHECK: }) {space = 8 : i64, tiles = 8 : i64} : (tensor<1x4x2xi32, "channel">) -> ()
        }) {tiles = 8 : i64, space = 8 : i64} : (!best) -> ()
      }) {sym_name = "consumer"} : () -> ()
    }) {sym_name = "head", kind = "contract"} : () -> ()
    "engine.body"() ({
    ^bb0(%qkv: !x, %keys: !state, %values: !state, %to: !partial):
      "engine.role"() ({
        // CHECK: "engine.fill_rows"(%[[K:.*]], %[[V:.*]]) {head_size = 32 : i64, heads = 2 : i64, kv_heads = 1 : i64, ring = "state", splits = 1 : i64, window = 0 : i64}
        "engine.fill_rows"(%keys, %values) {ring = "state", heads = 2 : i64, kv_heads = 1 : i64, head_size = 32 : i64, splits = 1 : i64, window = 0 : i64} : (!state, !state) -> ()
      }) {sym_name = "state"} : () -> ()
      "engine.role"() ({
        // CHECK: "engine.attend"(%{{.*}}, %[[K]], %[[V]]) ({
        // CHECK: "tile.key"(%{{.*}}) {offset = 0 : i64, size = 32 : i64, stride = 32 : i64}
        // CHECK: }) {groups = 1 : i64, head_size = 32 : i64, heads = 2 : i64, kv_heads = 1 : i64, ring = "state", scale = 2.500000e-01 : f64, softcap = 0.000000e+00 : f64, splits = 1 : i64, value_size = 32 : i64, window = 0 : i64}
        "engine.attend"(%to, %keys, %values) ({
          "tile.query"(%qkv) {offset = 0 : i64, stride = 32 : i64, size = 32 : i64} : (!x) -> ()
          "tile.key"(%qkv) {offset = 0 : i64, stride = 32 : i64, size = 32 : i64} : (!x) -> ()
          "tile.value"(%qkv) {offset = 32 : i64, stride = 32 : i64, size = 32 : i64} : (!x) -> ()
          "tile.yield"() : () -> ()
        }) {ring = "state", heads = 2 : i64, kv_heads = 1 : i64, head_size = 32 : i64, scale = 0.25 : f64, softcap = 0.0 : f64, splits = 1 : i64, window = 0 : i64, groups = 1 : i64, value_size = 32 : i64} : (!partial, !state, !state) -> ()
      }) {sym_name = "consumer"} : () -> ()
    // CHECK: {acquire = array<i64: 1, 2>, kind = "attend", sym_name = "attend"}
    }) {sym_name = "attend", kind = "attend", acquire = array<i64: 1, 2>} : () -> ()
    "engine.body"() ({
    ^bb0(%from: !best):
      "engine.role"() ({
        // CHECK: "engine.select"(%{{.*}}) {kind = "argmax"} : (tensor<1x4x2xi32, "channel">) -> ()
        "engine.select"(%from) {kind = "argmax"} : (!best) -> ()
      }) {sym_name = "consumer"} : () -> ()
    }) {sym_name = "select", kind = "select"} : () -> ()
    // CHECK: "engine.row"() {body = "lookup", names = ["x", "embed"], phase = 0 : i64, rotation = 0 : i64, stage = 0 : i64, tile_base = 0 : i64, weights = []} : () -> ()
    "engine.row"() {body = "lookup", names = ["x", "embed"], phase = 0 : i64, rotation = 0 : i64, stage = 0 : i64, tile_base = 0 : i64, weights = []} : () -> ()
    "engine.row"() {body = "attend", names = ["x", "k", "v", "partial"], phase = 1 : i64, rotation = 3 : i64, stage = 0 : i64, tile_base = 0 : i64, weights = []} : () -> ()
    // CHECK: "engine.row"() {body = "head", names = ["x", "best"], phase = 1 : i64, rotation = 2 : i64, stage = 0 : i64, tile_base = 0 : i64, weights = ["head"]} : () -> ()
    "engine.row"() {body = "head", names = ["x", "best"], phase = 1 : i64, rotation = 2 : i64, stage = 0 : i64, tile_base = 0 : i64, weights = ["head"]} : () -> ()
    "engine.row"() {body = "select", names = ["best"], phase = 2 : i64, rotation = 0 : i64, stage = 0 : i64, tile_base = 0 : i64, weights = []} : () -> ()
  // CHECK: }) {consumer_warps = 4 : i64, context = 16 : i64, devices = 1 : i64, index = 0 : i64, page = 0 : i64, sequences = 1 : i64, sms = 4 : i64, tokens = 1 : i64, vocabulary = 128 : i64} : () -> ()
  }) {index = 0 : i64, devices = 1 : i64, sequences = 1 : i64, page = 0 : i64, sms = 4 : i64, consumer_warps = 4 : i64, tokens = 1 : i64, context = 16 : i64, vocabulary = 128 : i64} : () -> ()
}
