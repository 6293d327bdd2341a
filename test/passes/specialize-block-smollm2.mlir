// RUN: tileir-opt %s --pass-pipeline='builtin.module(graph-fuse,specialize-gpu,tile-graph,fuse-communication,specialize-block{target=h100})' | filecheck %s

// A layer and the head of SmolLM2-135M on an H100. Of the vocabulary's 3072 tiles an SM would get 24, so that there are
// two ranges; 25 splits for 3 kv heads.

// CHECK: tileir.target = "h100"
// CHECK: sym_name = "model.embed_tokens.weight"} : () -> tensor<49152x576xbf16, "buffer">
// CHECK: {devices = array<i64: 0>, rows = 288 : i64} {{.*}} -> tensor<1x576xbf16, "channel">
// CHECK: "tile.buffer"() {inv_freq = {{.*}} -> tensor<2048x32x2xf32, "buffer">
// CHECK: sym_name = "k_0"} : () -> tensor<3x2048x64xbf16, "state">
// CHECK: {inner = 4 : i64, outer = 64 : i64, sources = array<i64: 0, 0, 0, 32>, step = 8 : i64, tiles = 36 : i64}
// CHECK: {inner = 4 : i64, outer = 64 : i64, sources = array<i64: 1, 0, 1, 32>, step = 8 : i64, tiles = 12 : i64}
// CHECK: {inner = 12 : i64, outer = 0 : i64, sources = array<i64: 2, 0, 2, 8>, step = 16 : i64, tiles = 12 : i64}
// CHECK: k = 576 : i64, k_parts = 1 : i64, tile_base = 0 : i64, tiles = 60 : i64, weights = ["model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight", "model.layers.0.self_attn.v_proj.weight"]} {{.*}} -> tensor<1x960xbf16, "channel">
// CHECK: "tile.attend"
// CHECK: "tile.query"{{.*}} {offset = 0 : i64
// CHECK: "tile.key"{{.*}} {offset = 576 : i64
// CHECK: "tile.value"{{.*}} {offset = 768 : i64
// CHECK: splits = 21 : i64
// CHECK-SAME: -> tensor<1x9x21x66xf32, "channel">
// CHECK: rows = 9 : i64
// CHECK: tile_base = 0 : i64, tiles = 36 : i64, weights = ["model.layers.0.self_attn.o_proj.weight"]
// CHECK: tiles = 192 : i64, weights = ["model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight"]
// CHECK: k = 1536 : i64, k_parts = 1 : i64, tile_base = 0 : i64, tiles = 36 : i64, weights = ["model.layers.0.mlp.down_proj.weight"]
// CHECK: %[[FIRST:.*]] = "tile.contract"
// CHECK: tile_base = 0 : i64, tiles = 1536 : i64, weights = ["model.embed_tokens.weight"]} {{.*}} -> tensor<1x132x2xi32, "channel">
// CHECK: %[[SECOND:.*]] = "tile.contract"
// CHECK: tile_base = 1536 : i64, tiles = 1536 : i64, weights = ["model.embed_tokens.weight"]} {{.*}} -> tensor<1x132x2xi32, "channel">
// CHECK: "tile.select"(%[[FIRST]], %[[SECOND]])
module attributes {tileir.level = "graph", tileir.vocabulary = 49152 : i64, tileir.context = 2048 : i64} {
  func.func @step(%tokens: tensor<?xi32>, %positions: tensor<?xi32>) -> (tensor<?xi32>) {
    %1 = "graph.constant"() {sym_name = "inv_freq", value = dense<0.5> : tensor<32xf32>} : () -> tensor<32xf32>
    %2 = "graph.weight"() {sym_name = "model.embed_tokens.weight"} : () -> tensor<49152x576xbf16>
    %3 = "graph.embedding"(%2, %tokens) {scale = 1.0 : f64} : (tensor<49152x576xbf16>, tensor<?xi32>) -> tensor<?x576xbf16>
    %4 = "graph.weight"() {sym_name = "model.layers.0.input_layernorm.weight"} : () -> tensor<576xbf16>
    %5 = "graph.rms_norm"(%3, %4) {eps = 1.0e-5 : f64, unit_offset = false} : (tensor<?x576xbf16>, tensor<576xbf16>) -> tensor<?x576xbf16>
    %6 = "graph.weight"() {sym_name = "model.layers.0.self_attn.q_proj.weight"} : () -> tensor<576x576xbf16>
    %7 = "graph.linear"(%5, %6) : (tensor<?x576xbf16>, tensor<576x576xbf16>) -> tensor<?x576xbf16>
    %8 = "graph.rope"(%7, %positions, %1) {head_size = 64 : i64, scale = 1.0 : f64, style = "half"} : (tensor<?x576xbf16>, tensor<?xi32>, tensor<32xf32>) -> tensor<?x576xbf16>
    %9 = "graph.weight"() {sym_name = "model.layers.0.self_attn.k_proj.weight"} : () -> tensor<192x576xbf16>
    %10 = "graph.linear"(%5, %9) : (tensor<?x576xbf16>, tensor<192x576xbf16>) -> tensor<?x192xbf16>
    %11 = "graph.rope"(%10, %positions, %1) {head_size = 64 : i64, scale = 1.0 : f64, style = "half"} : (tensor<?x192xbf16>, tensor<?xi32>, tensor<32xf32>) -> tensor<?x192xbf16>
    %12 = "graph.weight"() {sym_name = "model.layers.0.self_attn.v_proj.weight"} : () -> tensor<192x576xbf16>
    %13 = "graph.linear"(%5, %12) : (tensor<?x576xbf16>, tensor<192x576xbf16>) -> tensor<?x192xbf16>
    %14 = "graph.state"() {sym_name = "k_0"} : () -> tensor<3x2048x64xbf16>
    %15 = "graph.append"(%14, %11, %positions) : (tensor<3x2048x64xbf16>, tensor<?x192xbf16>, tensor<?xi32>) -> tensor<3x2048x64xbf16>
    %16 = "graph.state"() {sym_name = "v_0"} : () -> tensor<3x2048x64xbf16>
    %17 = "graph.append"(%16, %13, %positions) : (tensor<3x2048x64xbf16>, tensor<?x192xbf16>, tensor<?xi32>) -> tensor<3x2048x64xbf16>
    %18 = "graph.attention"(%8, %15, %17, %positions) {heads = 9 : i64, kv_heads = 3 : i64, head_size = 64 : i64, scale = 1.250000000e-01 : f64, window = 0 : i64, softcap = 0.0 : f64} : (tensor<?x576xbf16>, tensor<3x2048x64xbf16>, tensor<3x2048x64xbf16>, tensor<?xi32>) -> tensor<?x576xbf16>
    %19 = "graph.weight"() {sym_name = "model.layers.0.self_attn.o_proj.weight"} : () -> tensor<576x576xbf16>
    %20 = "graph.linear"(%18, %19) : (tensor<?x576xbf16>, tensor<576x576xbf16>) -> tensor<?x576xbf16>
    %21 = "graph.add"(%3, %20) : (tensor<?x576xbf16>, tensor<?x576xbf16>) -> tensor<?x576xbf16>
    %22 = "graph.weight"() {sym_name = "model.layers.0.post_attention_layernorm.weight"} : () -> tensor<576xbf16>
    %23 = "graph.rms_norm"(%21, %22) {eps = 1.0e-5 : f64, unit_offset = false} : (tensor<?x576xbf16>, tensor<576xbf16>) -> tensor<?x576xbf16>
    %24 = "graph.weight"() {sym_name = "model.layers.0.mlp.gate_proj.weight"} : () -> tensor<1536x576xbf16>
    %25 = "graph.linear"(%23, %24) : (tensor<?x576xbf16>, tensor<1536x576xbf16>) -> tensor<?x1536xbf16>
    %26 = "graph.weight"() {sym_name = "model.layers.0.mlp.up_proj.weight"} : () -> tensor<1536x576xbf16>
    %27 = "graph.linear"(%23, %26) : (tensor<?x576xbf16>, tensor<1536x576xbf16>) -> tensor<?x1536xbf16>
    %28 = "graph.glu"(%25, %27) {activation = "silu"} : (tensor<?x1536xbf16>, tensor<?x1536xbf16>) -> tensor<?x1536xbf16>
    %29 = "graph.weight"() {sym_name = "model.layers.0.mlp.down_proj.weight"} : () -> tensor<576x1536xbf16>
    %30 = "graph.linear"(%28, %29) : (tensor<?x1536xbf16>, tensor<576x1536xbf16>) -> tensor<?x576xbf16>
    %31 = "graph.add"(%21, %30) : (tensor<?x576xbf16>, tensor<?x576xbf16>) -> tensor<?x576xbf16>
    %32 = "graph.weight"() {sym_name = "model.norm.weight"} : () -> tensor<576xbf16>
    %33 = "graph.rms_norm"(%31, %32) {eps = 1.0e-5 : f64, unit_offset = false} : (tensor<?x576xbf16>, tensor<576xbf16>) -> tensor<?x576xbf16>
    %34 = "graph.linear"(%33, %2) : (tensor<?x576xbf16>, tensor<49152x576xbf16>) -> tensor<?x49152xbf16>
    %35 = "graph.sample"(%34) {kind = "argmax"} : (tensor<?x49152xbf16>) -> tensor<?xi32>
    return %35 : tensor<?xi32>
  }
}
