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
  %p = "tile.attend"(%k) ({
    "tile.query"(%c) {offset = 0 : i64, stride = 16 : i64, size = 16 : i64} : (tensor<1x64xbf16, "channel">) -> ()
    "tile.key"(%c) {offset = 32 : i64, stride = 16 : i64, size = 16 : i64} : (tensor<1x64xbf16, "channel">) -> ()
    "tile.yield"() : () -> ()
  }) {heads = 2 : i64, kv_heads = 1 : i64, groups = 1 : i64, head_size = 16 : i64, value_size = 16 : i64, scale = 1.0 : f64, window = 0 : i64, softcap = 0.0 : f64, splits = 1 : i64} : (tensor<1x8x16xbf16, "state">) -> tensor<1x2x3x18xf32, "channel">
  return
}

// -----

func.func @pieces(%c: tensor<1x64xbf16, "channel">, %k: tensor<1x8x16xbf16, "state">) {
  // A query of 8 values does not meet keys of 16.
  // expected-error @below {{pieces of}}
  %p = "tile.attend"(%k) ({
    "tile.query"(%c) {offset = 0 : i64, stride = 16 : i64, size = 8 : i64} : (tensor<1x64xbf16, "channel">) -> ()
    "tile.key"(%c) {offset = 32 : i64, stride = 16 : i64, size = 16 : i64} : (tensor<1x64xbf16, "channel">) -> ()
    "tile.yield"() : () -> ()
  }) {heads = 2 : i64, kv_heads = 1 : i64, groups = 1 : i64, head_size = 16 : i64, value_size = 8 : i64, scale = 1.0 : f64, window = 0 : i64, softcap = 0.0 : f64, splits = 1 : i64} : (tensor<1x8x16xbf16, "state">) -> tensor<1x2x1x10xf32, "channel">
  return
}

// -----

func.func @statements(%c: tensor<1x64xbf16, "channel">, %k: tensor<1x8x16xbf16, "state">) {
  // expected-error @below {{tile.plus on a piece: tile.rms_norm, tile.rotate, tile.store are possible}}
  %p = "tile.attend"(%k) ({
    %q = "tile.query"(%c) {offset = 0 : i64, stride = 16 : i64, size = 16 : i64} : (tensor<1x64xbf16, "channel">) -> f32
    %d = "tile.plus"(%q, %q) : (f32, f32) -> f32
    "tile.key"(%c) {offset = 32 : i64, stride = 16 : i64, size = 16 : i64} : (tensor<1x64xbf16, "channel">) -> ()
    "tile.yield"() : () -> ()
  }) {heads = 2 : i64, kv_heads = 1 : i64, groups = 1 : i64, head_size = 16 : i64, value_size = 16 : i64, scale = 1.0 : f64, window = 0 : i64, softcap = 0.0 : f64, splits = 1 : i64} : (tensor<1x8x16xbf16, "state">) -> tensor<1x2x1x18xf32, "channel">
  return
}

// -----

func.func @pages() {
  // expected-error @below {{40 rows are no whole pages of 16}}
  %k = "tile.state"() {sym_name = "k", page = 16 : i64} : () -> tensor<1x40x16xbf16, "state">
  return
}

// -----

func.func @route(%c: tensor<1x8xf32, "channel">) {
  // expected-error @below {{route needs experts, groups}}
  %r = "tile.select"(%c) {kind = "route", k = 2 : i64} : (tensor<1x8xf32, "channel">) -> tensor<1x2x2xi32, "channel">
  return
}

// -----

func.func @biases(%b: tensor<16xbf16, "buffer">, %v: f32) {
  // expected-error @below {{2 bases for 1 values}}
  %r = "tile.bias"(%v, %b) {bases = array<i64: 0, 8>} : (f32, tensor<16xbf16, "buffer">) -> f32
  return
}

// -----

func.func @activations(%v: f32) {
  // expected-error @below {{activation is silu, gelu_tanh, gelu, relu}}
  %a, %b = "tile.activate"(%v, %v) {activation = "erf"} : (f32, f32) -> (f32, f32)
  return
}

// -----

func.func @caps(%v: f32) {
  // expected-error @below {{cap is not positive}}
  %a, %b = "tile.softcap"(%v, %v) {cap = -1.0 : f64} : (f32, f32) -> (f32, f32)
  return
}

// -----

!x = tensor<1x64xbf16, "channel">
func.func @parts_of_three(%x: !x) {
  // expected-error @below {{groups are ≥ 1, k_parts 1 or 2}}
  %y = "tile.contract"(%x) ({
    ^bb0(%v: f32):
      "tile.yield"(%v) : (f32) -> ()
    }, {
    ^bb0:
      "tile.segment"() ({
      ^bb0(%lo: f32, %hi: f32):
        "tile.publish"(%lo, %hi) {bases = array<i64: 0, 8>} : (f32, f32) -> ()
        "tile.yield"() : () -> ()
      }) {tiles = 4 : i64, inner = 4 : i64, step = 16 : i64, outer = 0 : i64, sources = array<i64: 0, 0, 0, 8>} : () -> ()
      "tile.yield"() : () -> ()
    }) {weights = ["w"], k = 64 : i64, groups = 1 : i64, k_parts = 3 : i64, tile_base = 0 : i64, tiles = 4 : i64} : (!x) -> !x
  return
}

// -----

!x = tensor<1x64xbf16, "channel">
func.func @parts_not_joined(%x: !x) {
  // expected-error @below {{two K parts are joined, and nothing else}}
  %y = "tile.contract"(%x) ({
    ^bb0(%v: f32):
      "tile.yield"(%v) : (f32) -> ()
    }, {
    ^bb0:
      "tile.segment"() ({
      ^bb0(%lo: f32, %hi: f32):
        "tile.publish"(%lo, %hi) {bases = array<i64: 0, 8>} : (f32, f32) -> ()
        "tile.yield"() : () -> ()
      }) {tiles = 4 : i64, inner = 4 : i64, step = 16 : i64, outer = 0 : i64, sources = array<i64: 0, 0, 1, 0>} : () -> ()
      "tile.yield"() : () -> ()
    }) {weights = ["w", "w"], k = 32 : i64, groups = 1 : i64, k_parts = 2 : i64, tile_base = 0 : i64, tiles = 4 : i64} : (!x) -> !x
  return
}
