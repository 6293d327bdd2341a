// RUN: tileir-opt %s --split-input-file --verify-diagnostics --pass-pipeline='builtin.module(graph-fuse)'

!p = tensor<?xi32>
!x = tensor<?x64xbf16>
!n = tensor<64xbf16>
!w = tensor<64x64xbf16>
!f = tensor<8xf32>
!s = tensor<4x64x16xbf16>
module attributes {tileir.level = "graph"} {
  func.func @step(%tokens: !p, %positions: !p) -> !p {
    %w = "graph.weight"() {sym_name = "w"} : () -> !w
    %x = "graph.embedding"(%w, %tokens) {scale = 1.0 : f64} : (!w, !p) -> !x
    // expected-error @+1 {{graph.add follows no linear of its own: it reads a graph.embedding and it reads a graph.embedding}}
    %y = "graph.add"(%x, %x) : (!x, !x) -> !x
    %t = "graph.sample"(%y) {kind = "argmax"} : (!x) -> !p
    return %t : !p
  }
}

// -----

!p = tensor<?xi32>
!x = tensor<?x64xbf16>
!n = tensor<64xbf16>
!w = tensor<64x64xbf16>
!f = tensor<8xf32>
!s = tensor<4x64x16xbf16>
module attributes {tileir.level = "graph"} {
  func.func @step(%tokens: !p, %positions: !p) -> !p {
    %w = "graph.weight"() {sym_name = "w"} : () -> !w
    %x = "graph.embedding"(%w, %tokens) {scale = 1.0 : f64} : (!w, !p) -> !x
    %l = "graph.linear"(%x, %w) : (!x, !w) -> !x
    // expected-error @+1 {{graph.add follows no linear of its own}}
    %y = "graph.add"(%l, %l) : (!x, !x) -> !x
    %t = "graph.sample"(%y) {kind = "argmax"} : (!x) -> !p
    return %t : !p
  }
}

// -----

// Both summands are read by others too.
!p = tensor<?xi32>
!x = tensor<?x64xbf16>
!n = tensor<64xbf16>
!w = tensor<64x64xbf16>
!f = tensor<8xf32>
!s = tensor<4x64x16xbf16>
module attributes {tileir.level = "graph"} {
  func.func @step(%tokens: !p, %positions: !p) -> !p {
    %w = "graph.weight"() {sym_name = "w"} : () -> !w
    %x = "graph.embedding"(%w, %tokens) {scale = 1.0 : f64} : (!w, !p) -> !x
    %a = "graph.linear"(%x, %w) : (!x, !w) -> !x
    %b = "graph.linear"(%x, %w) : (!x, !w) -> !x
    %c = "graph.linear"(%a, %w) : (!x, !w) -> !x
    %d = "graph.linear"(%b, %w) : (!x, !w) -> !x
    // expected-error @+1 {{graph.add follows no linear of its own}}
    %y = "graph.add"(%a, %b) : (!x, !x) -> !x
    %t = "graph.sample"(%y) {kind = "argmax"} : (!x) -> !p
    return %t : !p
  }
}

// -----

!p = tensor<?xi32>
!x = tensor<?x64xbf16>
!n = tensor<64xbf16>
!w = tensor<64x64xbf16>
!f = tensor<8xf32>
!s = tensor<4x64x16xbf16>
module attributes {tileir.level = "graph"} {
  func.func @step(%tokens: !p, %positions: !p) -> !p {
    %w = "graph.weight"() {sym_name = "w"} : () -> !w
    %x = "graph.embedding"(%w, %tokens) {scale = 1.0 : f64} : (!w, !p) -> !x
    %f = "graph.constant"() {sym_name = "f", value = dense<1.0> : !f} : () -> !f
    %r = "graph.rope"(%x, %positions, %f) {head_size = 16 : i64, scale = 1.0 : f64, style = "half"} : (!x, !p, !f) -> !x
    // expected-error @+1 {{graph.sample follows no linear: it reads a graph.rope}}
    %t = "graph.sample"(%r) {kind = "argmax"} : (!x) -> !p
    return %t : !p
  }
}

// -----

!p = tensor<?xi32>
!x = tensor<?x64xbf16>
!n = tensor<64xbf16>
!w = tensor<64x64xbf16>
!f = tensor<8xf32>
!s = tensor<4x64x16xbf16>
module attributes {tileir.level = "graph"} {
  func.func @step(%tokens: !p, %positions: !p) -> !p {
    %w = "graph.weight"() {sym_name = "w"} : () -> !w
    %x = "graph.embedding"(%w, %tokens) {scale = 1.0 : f64} : (!w, !p) -> !x
    %f = "graph.constant"() {sym_name = "f", value = dense<1.0> : !f} : () -> !f
    %l = "graph.linear"(%x, %w) : (!x, !w) -> !x
    // expected-error @+1 {{what graph.rope reads, graph.add reads too}}
    %r = "graph.rope"(%l, %positions, %f) {head_size = 16 : i64, scale = 1.0 : f64, style = "half"} : (!x, !p, !f) -> !x
    %y = "graph.add"(%r, %l) : (!x, !x) -> !x
    %t = "graph.sample"(%y) {kind = "argmax"} : (!x) -> !p
    return %t : !p
  }
}

// -----

!p = tensor<?xi32>
!x = tensor<?x64xbf16>
!n = tensor<64xbf16>
!w = tensor<64x64xbf16>
!f = tensor<8xf32>
!s = tensor<4x64x16xbf16>
module attributes {tileir.level = "graph"} {
  func.func @step(%tokens: !p, %positions: !p) -> !p {
    %w = "graph.weight"() {sym_name = "w"} : () -> !w
    %x = "graph.embedding"(%w, %tokens) {scale = 1.0 : f64} : (!w, !p) -> !x
    %n = "graph.weight"() {sym_name = "n"} : () -> !n
    %h = "graph.rms_norm"(%x, %n) {eps = 1.0e-5 : f64, unit_offset = false} : (!x, !n) -> !x
    %a = "graph.linear"(%x, %w) : (!x, !w) -> !x
    %b = "graph.linear"(%h, %w) : (!x, !w) -> !x
    // expected-error @+1 {{gate and up read different values}}
    %m = "graph.glu"(%a, %b) {activation = "silu"} : (!x, !x) -> !x
    %t = "graph.sample"(%m) {kind = "argmax"} : (!x) -> !p
    return %t : !p
  }
}

// -----

!p = tensor<?xi32>
!x = tensor<?x64xbf16>
!n = tensor<64xbf16>
!w = tensor<64x64xbf16>
!f = tensor<8xf32>
!s = tensor<4x64x16xbf16>
module attributes {tileir.level = "graph"} {
  func.func @step(%tokens: !p, %positions: !p) -> !p {
    %w = "graph.weight"() {sym_name = "w"} : () -> !w
    %x = "graph.embedding"(%w, %tokens) {scale = 1.0 : f64} : (!w, !p) -> !x
    %a = "graph.linear"(%x, %w) : (!x, !w) -> !x
    // expected-error @+1 {{gate and up are no two linears}}
    %m = "graph.glu"(%a, %a) {activation = "silu"} : (!x, !x) -> !x
    %t = "graph.sample"(%m) {kind = "argmax"} : (!x) -> !p
    return %t : !p
  }
}

// -----

!p = tensor<?xi32>
!x = tensor<?x64xbf16>
!n = tensor<64xbf16>
!w = tensor<64x64xbf16>
!f = tensor<8xf32>
!s = tensor<4x64x16xbf16>
module attributes {tileir.level = "graph"} {
  func.func @step(%tokens: !p, %positions: !p) -> !p {
    %w = "graph.weight"() {sym_name = "w"} : () -> !w
    %x = "graph.embedding"(%w, %tokens) {scale = 1.0 : f64} : (!w, !p) -> !x
    %a = "graph.linear"(%x, %w) : (!x, !w) -> !x
    %b = "graph.linear"(%x, %w) : (!x, !w) -> !x
    %c = "graph.linear"(%x, %w) : (!x, !w) -> !x
    %d = "graph.add"(%c, %x) : (!x, !x) -> !x
    // expected-error @+1 {{gate and up are no two linears}}
    %m = "graph.glu"(%d, %b) {activation = "silu"} : (!x, !x) -> !x
    %t = "graph.sample"(%m) {kind = "argmax"} : (!x) -> !p
    return %t : !p
  }
}

// -----

!p = tensor<?xi32>
!x = tensor<?x64xbf16>
!n = tensor<64xbf16>
!w = tensor<64x64xbf16>
!f = tensor<8xf32>
!s = tensor<4x64x16xbf16>
module attributes {tileir.level = "graph"} {
  func.func @step(%tokens: !p, %positions: !p) -> !p {
    %w = "graph.weight"() {sym_name = "w"} : () -> !w
    %x = "graph.embedding"(%w, %tokens) {scale = 1.0 : f64} : (!w, !p) -> !x
    %a = "graph.linear"(%x, %w) : (!x, !w) -> !x
    %b = "graph.linear"(%x, %w) : (!x, !w) -> !x
    %m = "graph.glu"(%a, %b) {activation = "silu"} : (!x, !x) -> !x
    // expected-error @+1 {{graph.add follows no linear of its own: it reads a graph.glu and it reads a graph.embedding}}
    %y = "graph.add"(%m, %x) : (!x, !x) -> !x
    %t = "graph.sample"(%y) {kind = "argmax"} : (!x) -> !p
    return %t : !p
  }
}

// -----

!p = tensor<?xi32>
!x = tensor<?x64xbf16>
!n = tensor<64xbf16>
!w = tensor<64x64xbf16>
!f = tensor<8xf32>
!s = tensor<4x64x16xbf16>
module attributes {tileir.level = "graph"} {
  func.func @step(%tokens: !p, %positions: !p) -> !p {
    %w = "graph.weight"() {sym_name = "w"} : () -> !w
    %x = "graph.embedding"(%w, %tokens) {scale = 1.0 : f64} : (!w, !p) -> !x
    %ks = "graph.state"() {sym_name = "k"} : () -> !s
    %vs = "graph.state"() {sym_name = "v"} : () -> !s
    // expected-error @+1 {{graph.append follows no linear: it reads a graph.embedding}}
    %ka = "graph.append"(%ks, %x, %positions) : (!s, !x, !p) -> !s
    %l = "graph.linear"(%x, %w) : (!x, !w) -> !x
    %t = "graph.sample"(%l) {kind = "argmax"} : (!x) -> !p
    return %t : !p
  }
}

// -----

// A state's row is written once a step.
!p = tensor<?xi32>
!x = tensor<?x64xbf16>
!n = tensor<64xbf16>
!w = tensor<64x64xbf16>
!f = tensor<8xf32>
!s = tensor<4x64x16xbf16>
module attributes {tileir.level = "graph"} {
  func.func @step(%tokens: !p, %positions: !p) -> !p {
    %w = "graph.weight"() {sym_name = "w"} : () -> !w
    %x = "graph.embedding"(%w, %tokens) {scale = 1.0 : f64} : (!w, !p) -> !x
    %ks = "graph.state"() {sym_name = "k"} : () -> !s
    %vs = "graph.state"() {sym_name = "v"} : () -> !s
    %k = "graph.linear"(%x, %w) : (!x, !w) -> !x
    %a = "graph.append"(%ks, %k, %positions) : (!s, !x, !p) -> !s
    // expected-error @+1 {{values 0 … 15 of a state's row are appended twice}}
    %b = "graph.append"(%a, %k, %positions) : (!s, !x, !p) -> !s
    %l = "graph.linear"(%x, %w) : (!x, !w) -> !x
    %t = "graph.sample"(%l) {kind = "argmax"} : (!x) -> !p
    return %t : !p
  }
}

// -----

!p = tensor<?xi32>
!x = tensor<?x64xbf16>
!n = tensor<64xbf16>
!w = tensor<64x64xbf16>
!f = tensor<8xf32>
!s = tensor<4x64x16xbf16>
module attributes {tileir.level = "graph"} {
  func.func @step(%tokens: !p, %positions: !p) -> !p {
    %w = "graph.weight"() {sym_name = "w"} : () -> !w
    %x = "graph.embedding"(%w, %tokens) {scale = 1.0 : f64} : (!w, !p) -> !x
    %ks = "graph.state"() {sym_name = "k"} : () -> !s
    %vs = "graph.state"() {sym_name = "v"} : () -> !s
    %k = "graph.linear"(%x, %w) : (!x, !w) -> !x
    // expected-error @+1 {{a state with several readers}}
    %a = "graph.append"(%ks, %k, %positions) : (!s, !x, !p) -> !s
    %v = "graph.linear"(%x, %w) : (!x, !w) -> !x
    %b = "graph.append"(%ks, %v, %positions) : (!s, !x, !p) -> !s
    %l = "graph.linear"(%x, %w) : (!x, !w) -> !x
    %t = "graph.sample"(%l) {kind = "argmax"} : (!x) -> !p
    return %t : !p
  }
}

// -----

!p = tensor<?xi32>
!x = tensor<?x64xbf16>
!n = tensor<64xbf16>
!w = tensor<64x64xbf16>
!f = tensor<8xf32>
!s = tensor<4x64x16xbf16>
module attributes {tileir.level = "graph"} {
  func.func @step(%tokens: !p, %positions: !p) -> !p {
    %w = "graph.weight"() {sym_name = "w"} : () -> !w
    %x = "graph.embedding"(%w, %tokens) {scale = 1.0 : f64} : (!w, !p) -> !x
    %ks = "graph.state"() {sym_name = "k"} : () -> !s
    %vs = "graph.state"() {sym_name = "v"} : () -> !s
    %q = "graph.linear"(%x, %w) : (!x, !w) -> !x
    %v = "graph.linear"(%x, %w) : (!x, !w) -> !x
    %va = "graph.append"(%vs, %v, %positions) : (!s, !x, !p) -> !s
    // expected-error @+1 {{attention over a state without the step's row}}
    %a = "graph.attention"(%q, %ks, %va, %positions) {heads = 4 : i64, kv_heads = 4 : i64, head_size = 16 : i64,
      scale = 0.25 : f64, window = 0 : i64, softcap = 0.0 : f64} : (!x, !s, !s, !p) -> !x
    %l = "graph.linear"(%a, %w) : (!x, !w) -> !x
    %t = "graph.sample"(%l) {kind = "argmax"} : (!x) -> !p
    return %t : !p
  }
}

// -----

// The step's own key comes through the channel, so nothing is added to what is appended.
!p = tensor<?xi32>
!x = tensor<?x64xbf16>
!n = tensor<64xbf16>
!w = tensor<64x64xbf16>
!f = tensor<8xf32>
!s = tensor<4x64x16xbf16>
module attributes {tileir.level = "graph"} {
  func.func @step(%tokens: !p, %positions: !p) -> !p {
    %w = "graph.weight"() {sym_name = "w"} : () -> !w
    %x = "graph.embedding"(%w, %tokens) {scale = 1.0 : f64} : (!w, !p) -> !x
    %ks = "graph.state"() {sym_name = "k"} : () -> !s
    %vs = "graph.state"() {sym_name = "v"} : () -> !s
    %q = "graph.linear"(%x, %w) : (!x, !w) -> !x
    %k = "graph.linear"(%x, %w) : (!x, !w) -> !x
    %v = "graph.linear"(%x, %w) : (!x, !w) -> !x
    %ka = "graph.append"(%ks, %k, %positions) : (!s, !x, !p) -> !s
    %va = "graph.append"(%vs, %v, %positions) : (!s, !x, !p) -> !s
    // expected-error @+1 {{graph.add follows no linear of its own}}
    %k2 = "graph.add"(%k, %x) : (!x, !x) -> !x
    %a = "graph.attention"(%q, %ka, %va, %positions) {heads = 4 : i64, kv_heads = 4 : i64, head_size = 16 : i64,
      scale = 0.25 : f64, window = 0 : i64, softcap = 0.0 : f64} : (!x, !s, !s, !p) -> !x
    %b = "graph.linear"(%k2, %w) : (!x, !w) -> !x
    %c = "graph.linear"(%a, %w) : (!x, !w) -> !x
    %l = "graph.add"(%b, %c) : (!x, !x) -> !x
    %t = "graph.sample"(%l) {kind = "argmax"} : (!x) -> !p
    return %t : !p
  }
}

// -----

!p = tensor<?xi32>
!x = tensor<?x64xbf16>
!n = tensor<64xbf16>
!w = tensor<64x64xbf16>
!f = tensor<8xf32>
!s = tensor<4x64x16xbf16>
module attributes {tileir.level = "graph"} {
  func.func @step(%tokens: !p, %positions: !p) -> !p {
    %w = "graph.weight"() {sym_name = "w"} : () -> !w
    %x = "graph.embedding"(%w, %tokens) {scale = 1.0 : f64} : (!w, !p) -> !x
    %l = "graph.linear"(%x, %w) : (!x, !w) -> !x
    %t = "graph.sample"(%l) {kind = "argmax"} : (!x) -> !p
    // expected-error @+1 {{an embedding of other tokens than the step's}}
    %y = "graph.embedding"(%w, %positions) {scale = 1.0 : f64} : (!w, !p) -> !x
    %m = "graph.linear"(%y, %w) : (!x, !w) -> !x
    %u = "graph.sample"(%m) {kind = "argmax"} : (!x) -> !p
    return %u : !p
  }
}

// -----

!p = tensor<?xi32>
!x = tensor<?x64xbf16>
!n = tensor<64xbf16>
!w = tensor<64x64xbf16>
!f = tensor<8xf32>
!s = tensor<4x64x16xbf16>
module attributes {tileir.level = "graph"} {
  func.func @step(%tokens: !p, %positions: !p) -> !p {
    %w = "graph.weight"() {sym_name = "w"} : () -> !w
    %x = "graph.embedding"(%w, %tokens) {scale = 1.0 : f64} : (!w, !p) -> !x
    %f = "graph.constant"() {sym_name = "f", value = dense<1.0> : !f} : () -> !f
    %l = "graph.linear"(%x, %w) : (!x, !w) -> !x
    // expected-error @+1 {{graph.rope at other positions than the step's}}
    %r = "graph.rope"(%l, %tokens, %f) {head_size = 16 : i64, scale = 1.0 : f64, style = "half"} : (!x, !p, !f) -> !x
    %t = "graph.sample"(%r) {kind = "argmax"} : (!x) -> !p
    return %t : !p
  }
}

// -----

!p = tensor<?xi32>
!x = tensor<?x64xbf16>
!n = tensor<64xbf16>
!w = tensor<64x64xbf16>
!f = tensor<8xf32>
!s = tensor<4x64x16xbf16>
module attributes {tileir.level = "graph"} {
  func.func @step(%tokens: !p, %positions: !p) -> !p {
    %w = "graph.weight"() {sym_name = "w"} : () -> !w
    %x = "graph.embedding"(%w, %tokens) {scale = 1.0 : f64} : (!w, !p) -> !x
    // expected-error @+1 {{the function returns something else than a token}}
    return %tokens : !p
  }
}

// -----

!p = tensor<?xi32>
!x = tensor<?x32xbf16>
!w = tensor<32x32xbf16>
module attributes {tileir.level = "graph"} {
  func.func @step(%tokens: !p, %positions: !p) -> !p {
    %w = "graph.weight"() {sym_name = "w"} : () -> !w
    %x = "graph.embedding"(%w, %tokens) {scale = 1.0 : f64} : (!w, !p) -> !x
    // expected-error @+1 {{graph.activate follows no linear: it reads a graph.embedding}}
    %y = "graph.activate"(%x) {activation = "relu"} : (!x) -> !x
    %l = "graph.linear"(%y, %w) : (!x, !w) -> !x
    %t = "graph.sample"(%l) {kind = "argmax"} : (!x) -> !p
    return %t : !p
  }
}
