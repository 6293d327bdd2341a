// RUN: tileir-opt %s --split-input-file --verify-diagnostics

func.func @buffer() {
  // expected-error @below {{result is not placed in "buffer"}}
  %b = "tile.buffer"() {sym_name = "b", kind = "tensor"} : () -> tensor<4xbf16, "state">
  return
}

// -----

func.func @rope_table() {
  // expected-error @below {{a rope table needs inv_freq and scale}}
  %b = "tile.buffer"() {sym_name = "b", kind = "rope"} : () -> tensor<4x8x2xf32, "buffer">
  return
}

// -----

func.func @attend(%c: tensor<1x64xbf16, "channel">, %k: tensor<1x8x16xbf16, "state">) {
  // expected-error @below {{partial of [2, 3, 18]}}
  %p = "tile.attend"(%c, %k, %k) {heads = 2 : i64, kv_heads = 1 : i64, head_size = 16 : i64, scale = 1.0 : f64, window = 0 : i64, softcap = 0.0 : f64, splits = 1 : i64, offsets = array<i64: 0, 32, 48>} : (tensor<1x64xbf16, "channel">, tensor<1x8x16xbf16, "state">, tensor<1x8x16xbf16, "state">) -> tensor<1x2x3x18xf32, "channel">
  return
}
