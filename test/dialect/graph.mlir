// RUN: tileir-opt %s --split-input-file | tileir-opt - --split-input-file | filecheck %s

// Every operation of the graph dialect survives a round trip.

// CHECK-LABEL: func.func @step
module attributes {tileir.level = "graph"} {
  func.func @step(%tokens: tensor<?xi32>, %positions: tensor<?xi32>) -> tensor<?xi32> {
    // CHECK: "graph.weight"() {sym_name = "embed"} : () -> tensor<64x32xbf16>
    %table = "graph.weight"() {sym_name = "embed"} : () -> tensor<64x32xbf16>
    %norm = "graph.weight"() {sym_name = "norm"} : () -> tensor<32xbf16>
    %square = "graph.weight"() {sym_name = "square"} : () -> tensor<32x32xbf16>
    // CHECK: "graph.constant"() {sym_name = "f", value = dense<1.000000e+00> : tensor<8xf32>}
    %f = "graph.constant"() {sym_name = "f", value = dense<1.0> : tensor<8xf32>} : () -> tensor<8xf32>
    // CHECK: "graph.state"() {sym_name = "k"} : () -> tensor<2x16x16xbf16>
    %k = "graph.state"() {sym_name = "k"} : () -> tensor<2x16x16xbf16>
    // CHECK: "graph.embedding"
    %x = "graph.embedding"(%table, %tokens) {scale = 1.0 : f64} : (tensor<64x32xbf16>, tensor<?xi32>) -> tensor<?x32xbf16>
    // CHECK: "graph.rms_norm"
    %h = "graph.rms_norm"(%x, %norm) {eps = 1.0e-5 : f64, unit_offset = false} : (tensor<?x32xbf16>, tensor<32xbf16>) -> tensor<?x32xbf16>
    // CHECK: "graph.linear"(%{{.*}}, %{{.*}}) :
    %q = "graph.linear"(%h, %square) : (tensor<?x32xbf16>, tensor<32x32xbf16>) -> tensor<?x32xbf16>
    // CHECK: "graph.linear"(%{{.*}}, %{{.*}}, %{{.*}}) :
    %b = "graph.linear"(%h, %square, %norm) : (tensor<?x32xbf16>, tensor<32x32xbf16>, tensor<32xbf16>) -> tensor<?x32xbf16>
    // CHECK: "graph.rope"
    %r = "graph.rope"(%q, %positions, %f) {head_size = 16 : i64, scale = 1.0 : f64, style = "half"} : (tensor<?x32xbf16>, tensor<?xi32>, tensor<8xf32>) -> tensor<?x32xbf16>
    // CHECK: "graph.append"
    %s = "graph.append"(%k, %r, %positions) : (tensor<2x16x16xbf16>, tensor<?x32xbf16>, tensor<?xi32>) -> tensor<2x16x16xbf16>
    // CHECK: "graph.attention"
    %a = "graph.attention"(%r, %s, %s, %positions) {heads = 2 : i64, kv_heads = 2 : i64, head_size = 16 : i64, scale = 0.25 : f64, window = 0 : i64, softcap = 0.0 : f64} : (tensor<?x32xbf16>, tensor<2x16x16xbf16>, tensor<2x16x16xbf16>, tensor<?xi32>) -> tensor<?x32xbf16>
    // CHECK: "graph.glu"
    %g = "graph.glu"(%a, %b) {activation = "silu"} : (tensor<?x32xbf16>, tensor<?x32xbf16>) -> tensor<?x32xbf16>
    // CHECK: "graph.add"
    %y = "graph.add"(%x, %g) : (tensor<?x32xbf16>, tensor<?x32xbf16>) -> tensor<?x32xbf16>
    // CHECK: "graph.sample"
    %t = "graph.sample"(%y) {kind = "argmax"} : (tensor<?x32xbf16>) -> tensor<?xi32>
    return %t : tensor<?xi32>
  }
}

// -----

// Views, experts, latents, chosen positions, and a draft layer's token beside the first.

!p = tensor<?xi32>
!x = tensor<?x32xf32>
!y = tensor<?x64xf32>
!n = tensor<32xf32>
!w = tensor<32x32xf32>
!s = tensor<1x16x48xf32>
// CHECK-LABEL: func.func @step
module attributes {tileir.level = "graph"} {
  func.func @step(%tokens: !p, %positions: !p) -> (!p, !p) {
    %table = "graph.weight"() {sym_name = "embed"} : () -> tensor<64x32xf32>
    %w = "graph.weight"() {sym_name = "w"} : () -> !w
    %n = "graph.weight"() {sym_name = "n"} : () -> !n
    // CHECK: "graph.weight"() {offset = 64 : i64, strides = array<i64: 128, 32, 64, 1>, sym_name = "part"} : () -> tensor<2x2x8x32xf32>
    %view = "graph.weight"() {sym_name = "part", offset = 64 : i64, strides = array<i64: 128, 32, 64, 1>} : () -> tensor<2x2x8x32xf32>
    %f = "graph.constant"() {sym_name = "f", value = dense<1.0> : tensor<4xf32>} : () -> tensor<4xf32>
    %x = "graph.embedding"(%table, %tokens) {scale = 1.0 : f64} : (tensor<64x32xf32>, !p) -> !x

    // A norm of heads of 16, a layer norm, a linear of a view.
    %head = "graph.weight"() {sym_name = "head"} : () -> tensor<16xf32>
    // CHECK: "graph.rms_norm"({{.*}} : (tensor<?x32xf32>, tensor<16xf32>) -> tensor<?x32xf32>
    %h = "graph.rms_norm"(%x, %head) {eps = 1.0e-6 : f64, unit_offset = false} : (!x, tensor<16xf32>) -> !x
    // CHECK: "graph.layer_norm"
    %l = "graph.layer_norm"(%h, %n, %n) {eps = 1.0e-6 : f64} : (!x, !n, !n) -> !x
    // CHECK: "graph.linear"({{.*}} : (tensor<?x32xf32>, tensor<2x2x8x32xf32>) -> tensor<?x32xf32>
    %q = "graph.linear"(%l, %view) : (!x, tensor<2x2x8x32xf32>) -> !x
    // CHECK: "graph.rope"({{.*}} {head_size = 16 : i64, offset = 8 : i64, scale = 1.000000e+00 : f64, style = "split"}
    %r = "graph.rope"(%q, %positions, %f) {head_size = 16 : i64, offset = 8 : i64, scale = 1.0 : f64, style = "split"} : (!x, !p, tensor<4xf32>) -> !x

    // An indexer: two heads of 16.
    %keys = "graph.state"() {sym_name = "keys"} : () -> tensor<1x16x16xf32>
    %k = "graph.weight"() {sym_name = "k"} : () -> tensor<16x32xf32>
    %ik = "graph.linear"(%x, %k) : (!x, tensor<16x32xf32>) -> tensor<?x16xf32>
    %ka = "graph.append"(%keys, %ik, %positions) : (tensor<1x16x16xf32>, tensor<?x16xf32>, !p) -> tensor<1x16x16xf32>
    %two = "graph.weight"() {sym_name = "two"} : () -> tensor<2x32xf32>
    %iw = "graph.linear"(%x, %two) : (!x, tensor<2x32xf32>) -> tensor<?x2xf32>
    // CHECK: [[SCORES:%.*]] = "graph.index_scores"
    %scores = "graph.index_scores"(%r, %iw, %ka, %positions) {heads = 2 : i64, head_size = 16 : i64, scale = 0.25 : f64} : (!x, tensor<?x2xf32>, tensor<1x16x16xf32>, !p) -> tensor<?x16xf32>
    // CHECK: [[LISTED:%.*]] = "graph.top_k"([[SCORES]], %arg1) {k = 4 : i64}
    %listed = "graph.top_k"(%scores, %positions) {k = 4 : i64} : (tensor<?x16xf32>, !p) -> tensor<?x4xi32>
    // CHECK: "graph.attention"({{.*}}, [[LISTED]])
    %chosen = "graph.attention"(%ik, %ka, %ka, %positions, %listed) {heads = 1 : i64, kv_heads = 1 : i64, head_size = 16 : i64, scale = 0.25 : f64, window = 0 : i64, softcap = 0.0 : f64} : (tensor<?x16xf32>, tensor<1x16x16xf32>, tensor<1x16x16xf32>, !p, tensor<?x4xi32>) -> tensor<?x16xf32>

    // Latents of 32 and a roped key of 16; two heads.
    %state = "graph.state"() {sym_name = "latents"} : () -> !s
    %a = "graph.append"(%state, %l, %positions) : (!s, !x, !p) -> !s
    // CHECK: "graph.append"({{.*}}) {offset = 32 : i64}
    %b = "graph.append"(%a, %ik, %positions) {offset = 32 : i64} : (!s, tensor<?x16xf32>, !p) -> !s
    %up = "graph.weight"() {sym_name = "up"} : () -> tensor<2x32x32xf32>
    // CHECK: "graph.mla_attention"({{.*}}, [[LISTED]])
    %m = "graph.mla_attention"(%q, %r, %b, %up, %positions, %listed) {heads = 2 : i64, nope_size = 16 : i64, rope_size = 16 : i64, value_size = 16 : i64, latent_size = 32 : i64, scale = 0.25 : f64} : (!x, !x, !s, tensor<2x32x32xf32>, !p, tensor<?x4xi32>) -> !x
    %uk = "graph.weight"() {sym_name = "up", strides = array<i64: 1024, 1, 32>} : () -> tensor<2x32x16xf32>
    // CHECK: "graph.grouped_linear"
    %g = "graph.grouped_linear"(%q, %uk) : (!x, tensor<2x32x16xf32>) -> !y
    // CHECK: "graph.latent_attention"
    %la = "graph.latent_attention"(%g, %r, %b, %positions) {heads = 2 : i64, latent_size = 32 : i64, rope_size = 16 : i64, scale = 0.25 : f64} : (!y, !x, !s, !p) -> !y

    // Two of eight experts.
    %gate = "graph.weight"() {sym_name = "gate"} : () -> tensor<8x32xf32>
    %bias = "graph.weight"() {sym_name = "bias"} : () -> tensor<8xf32>
    %logits = "graph.linear"(%m, %gate) : (!x, tensor<8x32xf32>) -> tensor<?x8xf32>
    // CHECK: %{{.*}}:2 = "graph.router"({{.*}}fill = 0xFFF0000000000000 : f64, groups = 2 : i64
    %experts, %weights = "graph.router"(%logits, %bias) {kind = "sigmoid", k = 2 : i64, groups = 2 : i64, top_groups = 1 : i64, normalize = true, scale = 2.5 : f64, fill = 0xFFF0000000000000 : f64} : (tensor<?x8xf32>, tensor<8xf32>) -> (tensor<?x2xi32>, tensor<?x2xf32>)
    %one, %rest = "graph.router"(%logits) {kind = "softmax", k = 2 : i64, groups = 1 : i64, top_groups = 1 : i64, normalize = false, scale = 1.0 : f64} : (tensor<?x8xf32>) -> (tensor<?x2xi32>, tensor<?x2xf32>)
    %in = "graph.weight"() {sym_name = "in"} : () -> tensor<8x32x32xf32>
    // CHECK: "graph.expert_linear"({{.*}} : (tensor<?x32xf32>
    %e = "graph.expert_linear"(%m, %experts, %in) : (!x, tensor<?x2xi32>, tensor<8x32x32xf32>) -> !y
    // CHECK: "graph.expert_linear"({{.*}} : (tensor<?x64xf32>
    %d = "graph.expert_linear"(%e, %experts, %in) : (!y, tensor<?x2xi32>, tensor<8x32x32xf32>) -> !y
    // CHECK: "graph.weighted_sum"
    %y = "graph.weighted_sum"(%d, %weights) : (!y, tensor<?x2xf32>) -> !x

    // CHECK: "graph.activate"({{.*}}) {activation = "gelu"}
    %act = "graph.activate"(%y) {activation = "gelu"} : (!x) -> !x
    // CHECK: "graph.scale"({{.*}}) {factor = 2.500000e-01 : f64}
    %less = "graph.scale"(%act) {factor = 0.25 : f64} : (!x) -> !x
    // CHECK: "graph.softcap"({{.*}}) {cap = 3.000000e+01 : f64}
    %capped = "graph.softcap"(%less) {cap = 30.0 : f64} : (!x) -> !x

    %t = "graph.sample"(%capped) {kind = "argmax"} : (!x) -> !p
    // CHECK: "graph.embedding"({{.*}}) {scale = 1.000000e+00 : f64}
    %next = "graph.embedding"(%table, %t) {scale = 1.0 : f64} : (tensor<64x32xf32>, !p) -> !x
    %draft = "graph.sample"(%next) {kind = "argmax"} : (!x) -> !p
    return %t, %draft : !p, !p
  }
}
