// RUN: tileir-opt %s --split-input-file --verify-diagnostics --pass-pipeline='builtin.module(graph-fuse,specialize-gpu,tile-graph)'

!p = tensor<?xi32>
!x = tensor<?x32xbf16>
!w = tensor<32x32xbf16>
!y = tensor<?x13xbf16>
!v = tensor<13x32xbf16>
module attributes {tileir.level = "graph", tileir.context = 16 : i64, tileir.vocabulary = 32 : i64} {
  func.func @step(%tokens: !p, %positions: !p) -> !p {
    %w = "graph.weight"() {sym_name = "w"} : () -> !w
    %x = "graph.embedding"(%w, %tokens) {scale = 1.0 : f64} : (!w, !p) -> !x
    %g = "graph.weight"() {sym_name = "g"} : () -> !v
    %d = "graph.weight"() {sym_name = "d"} : () -> tensor<32x13xbf16>
    %a = "graph.linear"(%x, %g) : (!x, !v) -> !y
    %b = "graph.linear"(%x, %g) : (!x, !v) -> !y
    %m = "graph.glu"(%a, %b) {activation = "silu"} : (!y, !y) -> !y
    // expected-error @+1 {{a linear over 13 values}}
    %l = "graph.linear"(%m, %d) : (!y, tensor<32x13xbf16>) -> !x
    %t = "graph.sample"(%l) {kind = "argmax"} : (!x) -> !p
    return %t : !p
  }
}

// -----

!p = tensor<?xi32>
!x = tensor<?x31xbf16>
!y = tensor<?x32xbf16>
!w = tensor<32x31xbf16>
module attributes {tileir.level = "graph", tileir.context = 16 : i64, tileir.vocabulary = 32 : i64} {
  func.func @step(%tokens: !p, %positions: !p) -> !p {
    %w = "graph.weight"() {sym_name = "w"} : () -> !w
    // expected-error @+1 {{an embedding of 31 values}}
    %x = "graph.embedding"(%w, %tokens) {scale = 1.0 : f64} : (!w, !p) -> !x
    %l = "graph.linear"(%x, %w) : (!x, !w) -> !y
    %t = "graph.sample"(%l) {kind = "argmax"} : (!y) -> !p
    return %t : !p
  }
}

// -----

!p = tensor<?xi32>
!x = tensor<?x13xbf16>
!y = tensor<?x32xbf16>
!w = tensor<32x13xbf16>
module attributes {tileir.level = "graph", tileir.context = 16 : i64, tileir.vocabulary = 32 : i64} {
  func.func @step(%tokens: !p, %positions: !p) -> !p {
    %w = "graph.weight"() {sym_name = "w"} : () -> !w
    // expected-error @+1 {{an embedding of 13 values}}
    %x = "graph.embedding"(%w, %tokens) {scale = 1.0 : f64} : (!w, !p) -> !x
    %l = "graph.linear"(%x, %w) : (!x, !w) -> !y
    %t = "graph.sample"(%l) {kind = "argmax"} : (!y) -> !p
    return %t : !p
  }
}

// -----

!p = tensor<?xi32>
!x = tensor<?x32xbf16>
!w = tensor<32x32xbf16>
module attributes {tileir.level = "graph", tileir.context = 16 : i64, tileir.vocabulary = 30 : i64} {
  func.func @step(%tokens: !p, %positions: !p) -> !p {
    %w = "graph.weight"() {sym_name = "w"} : () -> !w
    %x = "graph.embedding"(%w, %tokens) {scale = 1.0 : f64} : (!w, !p) -> !x
    // expected-error @+1 {{32 logits for a vocabulary of 30}}
    %l = "graph.linear"(%x, %w) : (!x, !w) -> !x
    %t = "graph.sample"(%l) {kind = "argmax"} : (!x) -> !p
    return %t : !p
  }
}

// -----

!p = tensor<?xi32>
!x = tensor<?x32xbf16>
!w = tensor<32x32xbf16>
!f = tensor<8xf32>
module attributes {tileir.level = "graph", tileir.context = 16 : i64, tileir.vocabulary = 32 : i64} {
  func.func @step(%tokens: !p, %positions: !p) -> !p {
    %w = "graph.weight"() {sym_name = "w"} : () -> !w
    %x = "graph.embedding"(%w, %tokens) {scale = 1.0 : f64} : (!w, !p) -> !x
    %f = "graph.weight"() {sym_name = "f"} : () -> !f
    %q = "graph.linear"(%x, %w) : (!x, !w) -> !x
    // expected-error @+1 {{rope of frequencies that are no constant}}
    %r = "graph.rope"(%q, %positions, %f) {head_size = 16 : i64, scale = 1.0 : f64, style = "half"} : (!x, !p, !f) -> !x
    %l = "graph.linear"(%r, %w) : (!x, !w) -> !x
    %t = "graph.sample"(%l) {kind = "argmax"} : (!x) -> !p
    return %t : !p
  }
}

// -----

!p = tensor<?xi32>
!x = tensor<?x32xbf16>
!w = tensor<32x32xbf16>
!s = tensor<2x8x16xbf16>
module attributes {tileir.level = "graph", tileir.context = 16 : i64, tileir.vocabulary = 32 : i64} {
  func.func @step(%tokens: !p, %positions: !p) -> !p {
    %w = "graph.weight"() {sym_name = "w"} : () -> !w
    %x = "graph.embedding"(%w, %tokens) {scale = 1.0 : f64} : (!w, !p) -> !x
    // expected-error @+1 {{a state of 8 positions for a context of 16}}
    %ks = "graph.state"() {sym_name = "k_0"} : () -> !s
    %vs = "graph.state"() {sym_name = "v_0"} : () -> !s
    %q = "graph.linear"(%x, %w) : (!x, !w) -> !x
    %k = "graph.linear"(%x, %w) : (!x, !w) -> !x
    %v = "graph.linear"(%x, %w) : (!x, !w) -> !x
    %ka = "graph.append"(%ks, %k, %positions) : (!s, !x, !p) -> !s
    %va = "graph.append"(%vs, %v, %positions) : (!s, !x, !p) -> !s
    %a = "graph.attention"(%q, %ka, %va, %positions) {heads = 2 : i64, kv_heads = 2 : i64, head_size = 16 : i64,
      scale = 0.25 : f64, window = 0 : i64, softcap = 0.0 : f64} : (!x, !s, !s, !p) -> !x
    %l = "graph.linear"(%a, %w) : (!x, !w) -> !x
    %t = "graph.sample"(%l) {kind = "argmax"} : (!x) -> !p
    return %t : !p
  }
}

// -----

!p = tensor<?xi32>
!x = tensor<?x32xbf16>
!w = tensor<32x32xbf16>
module attributes {tileir.level = "graph", tileir.context = 16 : i64, tileir.vocabulary = 32 : i64} {
  func.func @step(%tokens: !p, %positions: !p) -> !p {
    %w = "graph.weight"() {sym_name = "w"} : () -> !w
    %x = "graph.embedding"(%w, %tokens) {scale = 1.0 : f64} : (!w, !p) -> !x
    // expected-error @+1 {{an embedding, norm weight or bias that is no weight}}
    %n = "graph.constant"() {sym_name = "n", value = dense<1.0> : tensor<32xf32>} : () -> tensor<32xf32>
    %h = "graph.rms_norm"(%x, %n) {eps = 1.0e-5 : f64, unit_offset = false} : (!x, tensor<32xf32>) -> !x
    %l = "graph.linear"(%h, %w) : (!x, !w) -> !x
    %t = "graph.sample"(%l) {kind = "argmax"} : (!x) -> !p
    return %t : !p
  }
}

// -----

!p = tensor<?xi32>
!x = tensor<?x24xbf16>
!w = tensor<24x24xbf16>
module attributes {tileir.level = "graph", tileir.context = 16 : i64, tileir.vocabulary = 24 : i64} {
  func.func @step(%tokens: !p, %positions: !p) -> !p {
    %w = "graph.weight"() {sym_name = "w"} : () -> !w
    %x = "graph.embedding"(%w, %tokens) {scale = 1.0 : f64} : (!w, !p) -> !x
    %g = "graph.linear"(%x, %w) : (!x, !w) -> !x
    %u = "graph.linear"(%x, %w) : (!x, !w) -> !x
    %m = "graph.glu"(%g, %u) {activation = "silu"} : (!x, !x) -> !x
    %a = "graph.linear"(%m, %w) : (!x, !w) -> !x
    // expected-error @+1 {{a sum of 24 values}}
    %y = "graph.add"(%a, %m) : (!x, !x) -> !x
    %l = "graph.linear"(%y, %w) : (!x, !w) -> !x
    %t = "graph.sample"(%l) {kind = "argmax"} : (!x) -> !p
    return %t : !p
  }
}
