// RUN: tileir-opt %s --split-input-file --verify-diagnostics

func.func @linear(%x: tensor<?x32xbf16>, %w: tensor<8x16xbf16>) {
  // expected-error @below {{x of [None, 32] against weight of [8, 16]}}
  %y = "graph.linear"(%x, %w) : (tensor<?x32xbf16>, tensor<8x16xbf16>) -> tensor<?x8xbf16>
  return
}

// -----

func.func @norm(%x: tensor<?x32xbf16>, %w: tensor<24xbf16>) {
  // expected-error @below {{weight of [24] for rows of 32}}
  %y = "graph.rms_norm"(%x, %w) {eps = 1.0e-5 : f64, unit_offset = false} : (tensor<?x32xbf16>, tensor<24xbf16>) -> tensor<?x32xbf16>
  return
}

// -----

func.func @rope(%x: tensor<?x32xbf16>, %p: tensor<?xi32>, %f: tensor<8xf32>) {
  // expected-error @below {{style is half, interleaved or split}}
  %y = "graph.rope"(%x, %p, %f) {head_size = 16 : i64, scale = 1.0 : f64, style = "whole"} : (tensor<?x32xbf16>, tensor<?xi32>, tensor<8xf32>) -> tensor<?x32xbf16>
  return
}

// -----

func.func @attention(%q: tensor<?x48xbf16>, %k: tensor<2x16x16xbf16>, %p: tensor<?xi32>) {
  // expected-error @below {{3 heads cannot share 2 kv heads}}
  %y = "graph.attention"(%q, %k, %k, %p) {heads = 3 : i64, kv_heads = 2 : i64, head_size = 16 : i64, scale = 0.25 : f64, window = 0 : i64, softcap = 0.0 : f64} : (tensor<?x48xbf16>, tensor<2x16x16xbf16>, tensor<2x16x16xbf16>, tensor<?xi32>) -> tensor<?x48xbf16>
  return
}

// -----

func.func @state() {
  // expected-error @below {{a state is heads × context × size}}
  %k = "graph.state"() {sym_name = "k"} : () -> tensor<16x16xbf16>
  return
}

// -----

func.func @view() {
  // expected-error @below {{strides of [32, 1] for [2, 8, 32]}}
  %w = "graph.weight"() {sym_name = "w", strides = array<i64: 32, 1>} : () -> tensor<2x8x32xbf16>
  return
}

// -----

func.func @offset() {
  // expected-error @below {{an offset without strides}}
  %w = "graph.weight"() {sym_name = "w", offset = 32 : i64} : () -> tensor<8x32xbf16>
  return
}

// -----

func.func @layer_norm(%x: tensor<?x32xbf16>, %w: tensor<16xbf16>) {
  // expected-error @below {{weight of [16], bias of [16] for 32}}
  %y = "graph.layer_norm"(%x, %w, %w) {eps = 1.0e-6 : f64} : (tensor<?x32xbf16>, tensor<16xbf16>, tensor<16xbf16>) -> tensor<?x32xbf16>
  return
}

// -----

func.func @groups(%x: tensor<?x32xbf16>, %w: tensor<4x8x16xbf16>) {
  // expected-error @below {{x of [None, 32] against weight of [4, 8, 16]}}
  %y = "graph.grouped_linear"(%x, %w) : (tensor<?x32xbf16>, tensor<4x8x16xbf16>) -> tensor<?x32xbf16>
  return
}

// -----

func.func @part(%x: tensor<?x32xbf16>, %p: tensor<?xi32>, %f: tensor<8xf32>) {
  // expected-error @below {{[8] frequencies from 8 on for head size 16}}
  %y = "graph.rope"(%x, %p, %f) {head_size = 16 : i64, offset = 8 : i64, scale = 1.0 : f64, style = "half"} : (tensor<?x32xbf16>, tensor<?xi32>, tensor<8xf32>) -> tensor<?x32xbf16>
  return
}

// -----

func.func @append(%s: tensor<1x16x48xbf16>, %x: tensor<?x32xbf16>, %p: tensor<?xi32>) {
  // expected-error @below {{x of [None, 32] at 32 for a state of [1, 16, 48]}}
  %y = "graph.append"(%s, %x, %p) {offset = 32 : i64} : (tensor<1x16x48xbf16>, tensor<?x32xbf16>, tensor<?xi32>) -> tensor<1x16x48xbf16>
  return
}

// -----

func.func @latents(%q: tensor<?x32xbf16>, %s: tensor<1x16x48xbf16>, %w: tensor<2x32x16xbf16>, %p: tensor<?xi32>) {
  // expected-error @below {{weight of [2, 32, 16] is not 2 × (16 + 16) × 32}}
  %y = "graph.mla_attention"(%q, %q, %s, %w, %p) {heads = 2 : i64, nope_size = 16 : i64, rope_size = 16 : i64, value_size = 16 : i64, latent_size = 32 : i64, scale = 0.25 : f64} : (tensor<?x32xbf16>, tensor<?x32xbf16>, tensor<1x16x48xbf16>, tensor<2x32x16xbf16>, tensor<?xi32>) -> tensor<?x32xbf16>
  return
}

// -----

func.func @rows(%q: tensor<?x64xbf16>, %r: tensor<?x32xbf16>, %s: tensor<2x16x24xbf16>, %p: tensor<?xi32>) {
  // expected-error @below {{state of [2, 16, 24] is not one head of 32 + 16}}
  %y = "graph.latent_attention"(%q, %r, %s, %p) {heads = 2 : i64, latent_size = 32 : i64, rope_size = 16 : i64, scale = 0.25 : f64} : (tensor<?x64xbf16>, tensor<?x32xbf16>, tensor<2x16x24xbf16>, tensor<?xi32>) -> tensor<?x64xbf16>
  return
}

// -----

func.func @scores(%q: tensor<?x32xbf16>, %w: tensor<?x2xbf16>, %s: tensor<1x16x16xbf16>, %p: tensor<?xi32>) {
  // expected-error @below {{result of tensor<?x16xbf16> is no f32 score of 16 positions}}
  %y = "graph.index_scores"(%q, %w, %s, %p) {heads = 2 : i64, head_size = 16 : i64, scale = 0.25 : f64} : (tensor<?x32xbf16>, tensor<?x2xbf16>, tensor<1x16x16xbf16>, tensor<?xi32>) -> tensor<?x16xbf16>
  return
}

// -----

func.func @top_k(%s: tensor<?x16xf32>, %p: tensor<?xi32>) {
  // expected-error @below {{k of 32 for 16 positions}}
  %y = "graph.top_k"(%s, %p) {k = 32 : i64} : (tensor<?x16xf32>, tensor<?xi32>) -> tensor<?x32xi32>
  return
}

// -----

func.func @groups_of_experts(%l: tensor<?x8xf32>) {
  // expected-error @below {{1 of 3 groups of 8 experts}}
  %i, %w = "graph.router"(%l) {kind = "sigmoid", k = 2 : i64, groups = 3 : i64, top_groups = 1 : i64, normalize = true, scale = 1.0 : f64} : (tensor<?x8xf32>) -> (tensor<?x2xi32>, tensor<?x2xf32>)
  return
}

// -----

func.func @kind(%l: tensor<?x8xf32>) {
  // expected-error @below {{groups are for sigmoid}}
  %i, %w = "graph.router"(%l) {kind = "softmax", k = 2 : i64, groups = 2 : i64, top_groups = 1 : i64, normalize = true, scale = 1.0 : f64} : (tensor<?x8xf32>) -> (tensor<?x2xi32>, tensor<?x2xf32>)
  return
}

// -----

func.func @experts(%x: tensor<?x48xbf16>, %i: tensor<?x2xi32>, %w: tensor<8x16x32xbf16>) {
  // expected-error @below {{x of [None, 48] against weight of [8, 16, 32]}}
  %y = "graph.expert_linear"(%x, %i, %w) : (tensor<?x48xbf16>, tensor<?x2xi32>, tensor<8x16x32xbf16>) -> tensor<?x32xbf16>
  return
}

// -----

func.func @sum(%x: tensor<?x48xbf16>, %w: tensor<?x2xf32>) {
  // expected-error @below {{[None, 2] weights of [None, 48] for a result of [None, 32]}}
  %y = "graph.weighted_sum"(%x, %w) : (tensor<?x48xbf16>, tensor<?x2xf32>) -> tensor<?x32xbf16>
  return
}

// -----

func.func @activation(%x: tensor<?x48xbf16>) {
  // expected-error @below {{activation is silu, gelu_tanh, gelu, relu}}
  %y = "graph.activate"(%x) {activation = "sigmoid"} : (tensor<?x48xbf16>) -> tensor<?x48xbf16>
  return
}

// -----

func.func @scale(%x: tensor<?x48xbf16>) {
  // expected-error @below {{result's shape is not x's}}
  %y = "graph.scale"(%x) {factor = 2.0 : f64} : (tensor<?x48xbf16>) -> tensor<?x32xbf16>
  return
}

// -----

func.func @cap(%x: tensor<?x48xbf16>) {
  // expected-error @below {{cap is not positive}}
  %y = "graph.softcap"(%x) {cap = 0.0 : f64} : (tensor<?x48xbf16>) -> tensor<?x48xbf16>
  return
}
