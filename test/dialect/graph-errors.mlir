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
