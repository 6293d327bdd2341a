// RUN: tileir-opt %s --pass-pipeline='builtin.module(verify-schedule{target=virtual})' | filecheck %s

// RUN: tileir-opt %s --verify-schedule='target=virtual print-paths' 2>&1 | filecheck %s --check-prefix=PATHS

// A whole decoder of one layer, for four SMs, proves: nothing is changed. `print-paths` shows what orders a channel's
// readers before its next writer.

// PATHS: channel qkv_0, 1 copy: row 2 (attend_0) reads step 1's → record of row 7 (contract_3) → row 8 (select_0) → row 1 (contract_0) writes step 2's
// PATHS: channel candidates_0, 2 copies: row 8 (select_0) reads step 1's → record of row 7 (contract_3) in step 2 → row 8 (select_0) → row 7 (contract_3) writes step 3's

// CHECK: tileir.level = "engine"
module attributes {tileir.context = 32 : i64, tileir.level = "engine", tileir.page = 0 : i64, tileir.rings = {fed_window = 3 : i64, slot_bytes = 65536 : i64, window = 3 : i64}, tileir.roles = {consumer = 4 : i64, loader_registers = 64 : i64, registers = 104 : i64, state = 1 : i64, tape = 1 : i64}, tileir.sequences = 1 : i64, tileir.target = "virtual", tileir.tokens = 1 : i64, tileir.vocabulary = 64 : i64} {
  "engine.device"() ({
    "engine.ring"() {barrier_offset = 986880 : i64, fed_window = 3 : i64, slot_bytes = 65536 : i64, slots = 12 : i64, smem_offset = 0 : i64, sym_name = "tape", window = 3 : i64} : () -> ()
    "engine.ring"() {barrier_offset = 987072 : i64, fed_window = 2 : i64, slot_bytes = 65536 : i64, slots = 3 : i64, smem_offset = 786432 : i64, sym_name = "state", window = 2 : i64} : () -> ()
    %0 = "engine.buffer"() {kind = "tensor", offset = 0 : i64, sym_name = "model.embed_tokens.weight"} : () -> tensor<64x32xbf16, "buffer">
    %1 = "engine.buffer"() {kind = "tensor", offset = 4096 : i64, sym_name = "model.layers.0.input_layernorm.weight"} : () -> tensor<32xbf16, "buffer">
    %2 = "engine.buffer"() {inv_freq = dense<[1.000000e+00, 0.316227764, 1.000000e-01, 0.0316227786, 0.00999999977, 0.00316227786, 1.000000e-03, 3.16227786E-4]> : tensor<8xf32>, kind = "rope", offset = 4352 : i64, scale = 1.000000e+00 : f64, sym_name = "rope_0"} : () -> tensor<32x8x2xf32, "buffer">
    %3 = "engine.state"() {offset = 0 : i64, sym_name = "k_cache_0"} : () -> tensor<1x32x16xbf16, "state">
    %4 = "engine.state"() {offset = 1024 : i64, sym_name = "v_cache_0"} : () -> tensor<1x32x16xbf16, "state">
    %5 = "engine.buffer"() {kind = "tensor", offset = 6400 : i64, sym_name = "model.layers.0.post_attention_layernorm.weight"} : () -> tensor<32xbf16, "buffer">
    %6 = "engine.buffer"() {kind = "tensor", offset = 6656 : i64, sym_name = "model.norm.weight"} : () -> tensor<32xbf16, "buffer">
    %7 = "engine.channel"() {depth = 1 : i64, level = "gpu", offset = 0 : i64, payload = "bf16x2", protocol = "packet", replicas = 1 : i64, sym_name = "embedding_0"} : () -> tensor<1x32xbf16, "channel">
    %8 = "engine.channel"() {depth = 1 : i64, level = "gpu", offset = 256 : i64, payload = "bf16x2", protocol = "packet", replicas = 1 : i64, sym_name = "qkv_0"} : () -> tensor<1x64xbf16, "channel">
    %9 = "engine.channel"() {depth = 1 : i64, level = "gpu", offset = 512 : i64, payload = "f32", protocol = "packet", replicas = 1 : i64, sym_name = "partial_0"} : () -> tensor<1x2x1x18xf32, "channel">
    %10 = "engine.channel"() {depth = 1 : i64, level = "gpu", offset = 1024 : i64, payload = "bf16x2", protocol = "packet", replicas = 1 : i64, sym_name = "attention_0"} : () -> tensor<1x32xbf16, "channel">
    %11 = "engine.channel"() {depth = 1 : i64, level = "gpu", offset = 1280 : i64, payload = "bf16x2", protocol = "packet", replicas = 1 : i64, sym_name = "residual_0"} : () -> tensor<1x32xbf16, "channel">
    %12 = "engine.channel"() {depth = 1 : i64, level = "gpu", offset = 1536 : i64, payload = "bf16x2", protocol = "packet", replicas = 1 : i64, sym_name = "gated_0"} : () -> tensor<1x32xbf16, "channel">
    %13 = "engine.channel"() {depth = 1 : i64, level = "gpu", offset = 1792 : i64, payload = "bf16x2", protocol = "packet", replicas = 1 : i64, sym_name = "residual_1"} : () -> tensor<1x32xbf16, "channel">
    %14 = "engine.channel"() {depth = 2 : i64, level = "gpu", offset = 2048 : i64, payload = "record", protocol = "packet", replicas = 1 : i64, sym_name = "candidates_0"} : () -> tensor<1x4x2xi32, "channel">
    "engine.body"() ({
    ^bb0(%arg0: tensor<1x32xbf16, "channel">, %arg1: tensor<64x32xbf16, "buffer">):
      "engine.role"() ({
        "engine.map"(%arg0) ({
          %15 = "tile.lookup"(%arg1) {scale = 1.000000e+00 : f64} : (tensor<64x32xbf16, "buffer">) -> f32
          "tile.yield"(%15) : (f32) -> ()
        }) {rows = 16 : i64, space = 16 : i64} : (tensor<1x32xbf16, "channel">) -> ()
      }) {sym_name = "consumer"} : () -> ()
    }) {kind = "map", sym_name = "lookup_0"} : () -> ()
    "engine.body"() ({
    ^bb0(%arg0: tensor<1x32xbf16, "channel">, %arg1: tensor<1x64xbf16, "channel">, %arg2: tensor<32xbf16, "buffer">, %arg3: tensor<32x8x2xf32, "buffer">, %arg4: tensor<1x32x16xbf16, "state">, %arg5: tensor<1x32x16xbf16, "state">):
      "engine.role"() ({
        "engine.fill"() {k = 32 : i64, ring = "tape", source = "tape", tiles = 4 : i64} : () -> ()
      }) {sym_name = "tape"} : () -> ()
      "engine.role"() ({
        "engine.receive"(%arg0) ({
        ^bb0(%arg6: f32):
          %15 = "tile.rms_norm"(%arg6, %arg2) {eps = 9.9999999999999995E-7 : f64, unit_offset = false} : (f32, tensor<32xbf16, "buffer">) -> f32
          "tile.yield"(%15) : (f32) -> ()
        }) {groups = 1 : i64, k = 32 : i64, offset = 0 : i64, stride = 0 : i64} : (tensor<1x32xbf16, "channel">) -> ()
        "engine.barrier"() : () -> ()
        "engine.multiply"() {k = 32 : i64, ring = "tape", source = "tape", tiles = 4 : i64} : () -> ()
        "engine.barrier"() : () -> ()
        "engine.emit"(%arg1) ({
          "tile.segment"() ({
          ^bb0(%arg6: f32, %arg7: f32):
            %15:2 = "tile.rope"(%arg6, %arg7, %arg3) {head_size = 16 : i64, style = "half"} : (f32, f32, tensor<32x8x2xf32, "buffer">) -> (f32, f32)
            "tile.publish"(%15#0, %15#1) {bases = array<i64: 0, 8>} : (f32, f32) -> ()
            "tile.yield"() : () -> ()
          }) {inner = 1 : i64, outer = 16 : i64, sources = array<i64: 0, 0, 0, 8>, step = 8 : i64, tiles = 2 : i64} : () -> ()
          "tile.segment"() ({
          ^bb0(%arg6: f32, %arg7: f32):
            %15:2 = "tile.rope"(%arg6, %arg7, %arg3) {head_size = 16 : i64, style = "half"} : (f32, f32, tensor<32x8x2xf32, "buffer">) -> (f32, f32)
            "tile.append"(%15#0, %15#1, %arg4) {bases = array<i64: 0, 8>} : (f32, f32, tensor<1x32x16xbf16, "state">) -> ()
            "tile.publish"(%15#0, %15#1) {bases = array<i64: 32, 40>} : (f32, f32) -> ()
            "tile.yield"() : () -> ()
          }) {inner = 1 : i64, outer = 16 : i64, sources = array<i64: 1, 0, 1, 8>, step = 8 : i64, tiles = 1 : i64} : () -> ()
          "tile.segment"() ({
          ^bb0(%arg6: f32, %arg7: f32):
            "tile.append"(%arg6, %arg7, %arg5) {bases = array<i64: 0, 8>} : (f32, f32, tensor<1x32x16xbf16, "state">) -> ()
            "tile.publish"(%arg6, %arg7) {bases = array<i64: 48, 56>} : (f32, f32) -> ()
            "tile.yield"() : () -> ()
          }) {inner = 1 : i64, outer = 0 : i64, sources = array<i64: 2, 0, 2, 8>, step = 16 : i64, tiles = 1 : i64} : () -> ()
          "tile.yield"() : () -> ()
        }) {space = 4 : i64, tiles = 4 : i64} : (tensor<1x64xbf16, "channel">) -> ()
      }) {sym_name = "consumer"} : () -> ()
    }) {kind = "contract", release = array<i64: 4, 5>, sym_name = "contract_0"} : () -> ()
    "engine.body"() ({
    ^bb0(%arg0: tensor<1x2x1x18xf32, "channel">, %arg1: tensor<1x32x16xbf16, "state">, %arg2: tensor<1x32x16xbf16, "state">, %arg3: tensor<1x64xbf16, "channel">):
      "engine.role"() ({
        "engine.fill_rows"(%arg1, %arg2) {groups = 1 : i64, head_size = 16 : i64, heads = 2 : i64, kv_heads = 1 : i64, ring = "state", splits = 1 : i64, tasks = 1 : i64, value_size = 16 : i64, window = 0 : i64} : (tensor<1x32x16xbf16, "state">, tensor<1x32x16xbf16, "state">) -> ()
      }) {sym_name = "state"} : () -> ()
      "engine.role"() ({
        "engine.attend"(%arg0, %arg1, %arg2) ({
          "tile.query"(%arg3) {offset = 0 : i64, size = 16 : i64, stride = 16 : i64} : (tensor<1x64xbf16, "channel">) -> ()
          "tile.key"(%arg3) {offset = 32 : i64, size = 16 : i64, stride = 16 : i64} : (tensor<1x64xbf16, "channel">) -> ()
          "tile.value"(%arg3) {offset = 48 : i64, size = 16 : i64, stride = 16 : i64} : (tensor<1x64xbf16, "channel">) -> ()
          "tile.yield"() : () -> ()
        }) {groups = 1 : i64, head_size = 16 : i64, heads = 2 : i64, kv_heads = 1 : i64, ring = "state", scale = 2.500000e-01 : f64, softcap = 0.000000e+00 : f64, splits = 1 : i64, tasks = 1 : i64, value_size = 16 : i64, window = 0 : i64} : (tensor<1x2x1x18xf32, "channel">, tensor<1x32x16xbf16, "state">, tensor<1x32x16xbf16, "state">) -> ()
      }) {sym_name = "consumer"} : () -> ()
    }) {acquire = array<i64: 1, 2>, kind = "attend", sym_name = "attend_0"} : () -> ()
    "engine.body"() ({
    ^bb0(%arg0: tensor<1x32xbf16, "channel">, %arg1: tensor<1x2x1x18xf32, "channel">):
      "engine.role"() ({
        "engine.map"(%arg0) ({
          %15 = "tile.combine"(%arg1) : (tensor<1x2x1x18xf32, "channel">) -> f32
          "tile.yield"(%15) : (f32) -> ()
        }) {rows = 2 : i64, space = 2 : i64} : (tensor<1x32xbf16, "channel">) -> ()
      }) {sym_name = "consumer"} : () -> ()
    }) {kind = "map", sym_name = "combine_0"} : () -> ()
    "engine.body"() ({
    ^bb0(%arg0: tensor<1x32xbf16, "channel">, %arg1: tensor<1x32xbf16, "channel">, %arg2: tensor<1x32xbf16, "channel">):
      "engine.role"() ({
        "engine.fill"() {k = 32 : i64, ring = "tape", source = "tape", tiles = 2 : i64} : () -> ()
      }) {sym_name = "tape"} : () -> ()
      "engine.role"() ({
        "engine.receive"(%arg0) ({
        ^bb0(%arg3: f32):
          "tile.yield"(%arg3) : (f32) -> ()
        }) {groups = 1 : i64, k = 32 : i64, offset = 0 : i64, stride = 0 : i64} : (tensor<1x32xbf16, "channel">) -> ()
        "engine.barrier"() : () -> ()
        "engine.multiply"() {k = 32 : i64, ring = "tape", source = "tape", tiles = 2 : i64} : () -> ()
        "engine.barrier"() : () -> ()
        "engine.emit"(%arg1) ({
          "tile.segment"() ({
          ^bb0(%arg3: f32, %arg4: f32):
            %15:2 = "tile.residual"(%arg3, %arg4, %arg2) {bases = array<i64: 0, 8>} : (f32, f32, tensor<1x32xbf16, "channel">) -> (f32, f32)
            "tile.publish"(%15#0, %15#1) {bases = array<i64: 0, 8>} : (f32, f32) -> ()
            "tile.yield"() : () -> ()
          }) {inner = 2 : i64, outer = 0 : i64, sources = array<i64: 0, 0, 0, 8>, step = 16 : i64, tiles = 2 : i64} : () -> ()
          "tile.yield"() : () -> ()
        }) {space = 2 : i64, tiles = 2 : i64} : (tensor<1x32xbf16, "channel">) -> ()
      }) {sym_name = "consumer"} : () -> ()
    }) {kind = "contract", sym_name = "contract_1"} : () -> ()
    "engine.body"() ({
    ^bb0(%arg0: tensor<1x32xbf16, "channel">, %arg1: tensor<1x32xbf16, "channel">, %arg2: tensor<32xbf16, "buffer">):
      "engine.role"() ({
        "engine.fill"() {k = 32 : i64, ring = "tape", source = "tape", tiles = 4 : i64} : () -> ()
      }) {sym_name = "tape"} : () -> ()
      "engine.role"() ({
        "engine.receive"(%arg0) ({
        ^bb0(%arg3: f32):
          %15 = "tile.rms_norm"(%arg3, %arg2) {eps = 9.9999999999999995E-7 : f64, unit_offset = false} : (f32, tensor<32xbf16, "buffer">) -> f32
          "tile.yield"(%15) : (f32) -> ()
        }) {groups = 1 : i64, k = 32 : i64, offset = 0 : i64, stride = 0 : i64} : (tensor<1x32xbf16, "channel">) -> ()
        "engine.barrier"() : () -> ()
        "engine.multiply"() {k = 32 : i64, ring = "tape", source = "tape", tiles = 4 : i64} : () -> ()
        "engine.barrier"() : () -> ()
        "engine.emit"(%arg1) ({
          "tile.segment"() ({
          ^bb0(%arg3: f32, %arg4: f32):
            %15 = "tile.glu"(%arg3, %arg4) {activation = "silu"} : (f32, f32) -> f32
            "tile.publish"(%15) {bases = array<i64: 0>} : (f32) -> ()
            "tile.yield"() : () -> ()
          }) {inner = 4 : i64, outer = 0 : i64, sources = array<i64: 0, 0, 1, 0>, step = 8 : i64, tiles = 4 : i64} : () -> ()
          "tile.yield"() : () -> ()
        }) {space = 4 : i64, tiles = 4 : i64} : (tensor<1x32xbf16, "channel">) -> ()
      }) {sym_name = "consumer"} : () -> ()
    }) {kind = "contract", sym_name = "contract_2"} : () -> ()
    "engine.body"() ({
    ^bb0(%arg0: tensor<1x32xbf16, "channel">, %arg1: tensor<1x4x2xi32, "channel">, %arg2: tensor<32xbf16, "buffer">):
      "engine.role"() ({
        "engine.fill"() {k = 32 : i64, ring = "tape", source = "tape", tiles = 4 : i64} : () -> ()
      }) {sym_name = "tape"} : () -> ()
      "engine.role"() ({
        "engine.receive"(%arg0) ({
        ^bb0(%arg3: f32):
          %15 = "tile.rms_norm"(%arg3, %arg2) {eps = 9.9999999999999995E-7 : f64, unit_offset = false} : (f32, tensor<32xbf16, "buffer">) -> f32
          "tile.yield"(%15) : (f32) -> ()
        }) {groups = 1 : i64, k = 32 : i64, offset = 0 : i64, stride = 0 : i64} : (tensor<1x32xbf16, "channel">) -> ()
        "engine.barrier"() : () -> ()
        "engine.multiply"() {k = 32 : i64, ring = "tape", source = "tape", tiles = 4 : i64} : () -> ()
        "engine.barrier"() : () -> ()
        "engine.emit"(%arg1) ({
          "tile.segment"() ({
          ^bb0(%arg3: f32, %arg4: f32):
            "tile.logits"(%arg3, %arg4) {bases = array<i64: 0, 8>} : (f32, f32) -> ()
            "tile.candidate"(%arg3, %arg4) {bases = array<i64: 0, 8>} : (f32, f32) -> ()
            "tile.yield"() : () -> ()
          }) {inner = 4 : i64, outer = 0 : i64, sources = array<i64: 0, 0, 0, 8>, step = 16 : i64, tiles = 4 : i64} : () -> ()
          "tile.yield"() : () -> ()
        }) {space = 4 : i64, tiles = 4 : i64} : (tensor<1x4x2xi32, "channel">) -> ()
      }) {sym_name = "consumer"} : () -> ()
    }) {kind = "contract", sym_name = "contract_3"} : () -> ()
    "engine.body"() ({
    ^bb0(%arg0: tensor<1x4x2xi32, "channel">):
      "engine.role"() ({
        "engine.select"(%arg0) {kind = "argmax", makes = "token"} : (tensor<1x4x2xi32, "channel">) -> ()
      }) {sym_name = "consumer"} : () -> ()
    }) {kind = "select", sym_name = "select_0"} : () -> ()
    "engine.row"() {body = "lookup_0", names = ["embedding_0", "model.embed_tokens.weight"], phase = 0 : i64, rotation = 0 : i64, stage = 0 : i64, tile_base = 0 : i64, weights = []} : () -> ()
    "engine.row"() {body = "contract_0", names = ["embedding_0", "qkv_0", "model.layers.0.input_layernorm.weight", "rope_0", "k_cache_0", "v_cache_0"], phase = 1 : i64, rotation = 0 : i64, stage = 1 : i64, tile_base = 0 : i64, weights = ["model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight", "model.layers.0.self_attn.v_proj.weight"]} : () -> ()
    "engine.row"() {body = "attend_0", names = ["partial_0", "k_cache_0", "v_cache_0", "qkv_0"], phase = 2 : i64, rotation = 0 : i64, stage = 2 : i64, tile_base = 0 : i64, weights = []} : () -> ()
    "engine.row"() {body = "combine_0", names = ["attention_0", "partial_0"], phase = 3 : i64, rotation = 0 : i64, stage = 3 : i64, tile_base = 0 : i64, weights = []} : () -> ()
    "engine.row"() {body = "contract_1", names = ["attention_0", "residual_0", "embedding_0"], phase = 4 : i64, rotation = 0 : i64, stage = 4 : i64, tile_base = 0 : i64, weights = ["model.layers.0.self_attn.o_proj.weight"]} : () -> ()
    "engine.row"() {body = "contract_2", names = ["residual_0", "gated_0", "model.layers.0.post_attention_layernorm.weight"], phase = 5 : i64, rotation = 2 : i64, stage = 5 : i64, tile_base = 0 : i64, weights = ["model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight"]} : () -> ()
    "engine.row"() {body = "contract_1", names = ["gated_0", "residual_1", "residual_0"], phase = 6 : i64, rotation = 2 : i64, stage = 6 : i64, tile_base = 0 : i64, weights = ["model.layers.0.mlp.down_proj.weight"]} : () -> ()
    "engine.row"() {body = "contract_3", names = ["residual_1", "candidates_0", "model.norm.weight"], phase = 7 : i64, rotation = 0 : i64, stage = 7 : i64, tile_base = 0 : i64, weights = ["lm_head.weight"]} : () -> ()
    "engine.row"() {body = "select_0", names = ["candidates_0"], phase = 8 : i64, rotation = 0 : i64, stage = 8 : i64, tile_base = 0 : i64, weights = []} : () -> ()
  }) {constant_bytes = 6912 : i64, consumer_warps = 4 : i64, context = 32 : i64, devices = 1 : i64, exchange_bytes = 2304 : i64, index = 0 : i64, page = 0 : i64, part_offset = 983296 : i64, scratch_offset = 984832 : i64, sequences = 1 : i64, smem_bytes = 987136 : i64, sms = 4 : i64, state_bytes = 2048 : i64, tokens = 1 : i64, vocabulary = 64 : i64, x_offset = 983040 : i64} : () -> ()
}

