// RUN: tileir-opt %s --split-input-file --pass-pipeline='builtin.module(graph-fuse)' | filecheck %s

// A Llama layer: q, k, v are one stage with rope, appends and their norm; gate and up one with glu; o and down take
// the residual add; the head takes the last norm.

!p = tensor<?xi32>
!x = tensor<?x64xbf16>
!g = tensor<?x128xbf16>
!n = tensor<64xbf16>
!w = tensor<64x64xbf16>
!u = tensor<128x64xbf16>
!f = tensor<8xf32>
!s = tensor<4x64x16xbf16>
// CHECK-LABEL: func.func @step
module attributes {tileir.level = "graph"} {
  func.func @step(%tokens: !p, %positions: !p) -> !p {
    %n = "graph.weight"() {sym_name = "n"} : () -> !n
    %w = "graph.weight"() {sym_name = "w"} : () -> !w
    %u = "graph.weight"() {sym_name = "u"} : () -> !u
    %d = "graph.weight"() {sym_name = "d"} : () -> tensor<64x128xbf16>
    %f = "graph.constant"() {sym_name = "f", value = dense<1.0> : !f} : () -> !f
    %ks = "graph.state"() {sym_name = "k"} : () -> !s
    %vs = "graph.state"() {sym_name = "v"} : () -> !s
    // CHECK-COUNT-7: {sym_name = "{{[a-z]+}}"
    // CHECK: "graph.embedding"({{.*}}) {scale = 1.000000e+00 : f64, stage = 0 : i64, stage_kind = "map"}
    %x = "graph.embedding"(%u, %tokens) {scale = 1.0 : f64} : (!u, !p) -> !x
    // CHECK: "graph.rms_norm"({{.*}}) {eps = {{.*}}, stage = 1 : i64, stage_kind = "contract", unit_offset = false}
    // CHECK-COUNT-3: "graph.linear"({{.*}}) {stage = 1 : i64, stage_kind = "contract"}
    // CHECK-COUNT-2: "graph.rope"({{.*}}) {{{.*}}stage = 1 : i64, stage_kind = "contract"
    // CHECK-COUNT-2: "graph.append"({{.*}}) {stage = 1 : i64, stage_kind = "contract"}
    %h = "graph.rms_norm"(%x, %n) {eps = 1.0e-5 : f64, unit_offset = false} : (!x, !n) -> !x
    %lq = "graph.linear"(%h, %w) : (!x, !w) -> !x
    %lk = "graph.linear"(%h, %w) : (!x, !w) -> !x
    %lv = "graph.linear"(%h, %w) : (!x, !w) -> !x
    %q = "graph.rope"(%lq, %positions, %f) {head_size = 16 : i64, scale = 1.0 : f64, style = "half"} : (!x, !p, !f) -> !x
    %k = "graph.rope"(%lk, %positions, %f) {head_size = 16 : i64, scale = 1.0 : f64, style = "half"} : (!x, !p, !f) -> !x
    %ka = "graph.append"(%ks, %k, %positions) : (!s, !x, !p) -> !s
    %va = "graph.append"(%vs, %lv, %positions) : (!s, !x, !p) -> !s
    // CHECK: "graph.attention"({{.*}}stage = 2 : i64, stage_kind = "attend"
    %a = "graph.attention"(%q, %ka, %va, %positions) {heads = 4 : i64, kv_heads = 4 : i64, head_size = 16 : i64,
      scale = 0.25 : f64, window = 0 : i64, softcap = 0.0 : f64} : (!x, !s, !s, !p) -> !x
    // CHECK: "graph.linear"({{.*}}) {stage = 3 : i64
    // CHECK: "graph.add"({{.*}}) {stage = 3 : i64
    %o = "graph.linear"(%a, %w) : (!x, !w) -> !x
    %y = "graph.add"(%x, %o) : (!x, !x) -> !x
    // CHECK: "graph.rms_norm"({{.*}}stage = 4 : i64
    // CHECK-COUNT-2: "graph.linear"({{.*}}) {stage = 4 : i64
    // CHECK: "graph.glu"({{.*}}stage = 4 : i64
    %h2 = "graph.rms_norm"(%y, %n) {eps = 1.0e-5 : f64, unit_offset = false} : (!x, !n) -> !x
    %gate = "graph.linear"(%h2, %u) : (!x, !u) -> !g
    %up = "graph.linear"(%h2, %u) : (!x, !u) -> !g
    %m = "graph.glu"(%gate, %up) {activation = "silu"} : (!g, !g) -> !g
    // CHECK: "graph.linear"({{.*}}) {stage = 5 : i64
    // CHECK: "graph.add"({{.*}}) {stage = 5 : i64
    %down = "graph.linear"(%m, %d) : (!g, tensor<64x128xbf16>) -> !x
    %z = "graph.add"(%down, %y) : (!x, !x) -> !x
    // CHECK: "graph.rms_norm"({{.*}}stage = 6 : i64
    // CHECK: "graph.linear"({{.*}}) {stage = 6 : i64, stage_kind = "contract"}
    // CHECK: "graph.sample"({{.*}}) {kind = "argmax", stage = 7 : i64, stage_kind = "select"}
    %h3 = "graph.rms_norm"(%z, %n) {eps = 1.0e-5 : f64, unit_offset = false} : (!x, !n) -> !x
    %l = "graph.linear"(%h3, %u) : (!x, !u) -> !g
    %t = "graph.sample"(%l) {kind = "argmax"} : (!g) -> !p
    return %t : !p
  }
}

// -----

// Attention and a linear side by side: one norm serves both stages, and the last linear takes both adds. Nothing is
// normed before the head.

!p = tensor<?xi32>
!x = tensor<?x64xbf16>
!n = tensor<64xbf16>
!w = tensor<64x64xbf16>
!s = tensor<4x64x16xbf16>
// CHECK-LABEL: func.func @step
module attributes {tileir.level = "graph"} {
  func.func @step(%tokens: !p, %positions: !p) -> !p {
    %n = "graph.weight"() {sym_name = "n"} : () -> !n
    %w = "graph.weight"() {sym_name = "w"} : () -> !w
    %ks = "graph.state"() {sym_name = "k"} : () -> !s
    %vs = "graph.state"() {sym_name = "v"} : () -> !s
    %x = "graph.embedding"(%w, %tokens) {scale = 1.0 : f64} : (!w, !p) -> !x
    // CHECK: "graph.rms_norm"({{.*}}stage = 1 : i64
    %h = "graph.rms_norm"(%x, %n) {eps = 1.0e-5 : f64, unit_offset = false} : (!x, !n) -> !x
    // CHECK-COUNT-3: "graph.linear"({{.*}}stage = 1 : i64
    %q = "graph.linear"(%h, %w) : (!x, !w) -> !x
    %k = "graph.linear"(%h, %w) : (!x, !w) -> !x
    %v = "graph.linear"(%h, %w) : (!x, !w) -> !x
    %ka = "graph.append"(%ks, %k, %positions) : (!s, !x, !p) -> !s
    %va = "graph.append"(%vs, %v, %positions) : (!s, !x, !p) -> !s
    // CHECK: "graph.linear"({{.*}}) {stage = 3 : i64
    %m = "graph.linear"(%h, %w) : (!x, !w) -> !x
    // CHECK: "graph.attention"({{.*}}stage = 2 : i64
    %a = "graph.attention"(%q, %ka, %va, %positions) {heads = 4 : i64, kv_heads = 4 : i64, head_size = 16 : i64,
      scale = 0.25 : f64, window = 0 : i64, softcap = 0.0 : f64} : (!x, !s, !s, !p) -> !x
    // The sum waits for attention, so its stage comes after, though its linear stands before.
    // CHECK: "graph.add"({{.*}}) {stage = 3 : i64
    // CHECK: "graph.add"({{.*}}) {stage = 3 : i64
    %b = "graph.add"(%m, %a) : (!x, !x) -> !x
    %y = "graph.add"(%x, %b) : (!x, !x) -> !x
    // CHECK: "graph.linear"({{.*}}) {stage = 4 : i64
    // CHECK: "graph.sample"({{.*}}stage = 5 : i64
    %l = "graph.linear"(%y, %w) : (!x, !w) -> !x
    %t = "graph.sample"(%l) {kind = "argmax"} : (!x) -> !p
    return %t : !p
  }
}

// -----

// Without a norm, q, k and v read the embedding: its stage is still its own. Of two linears the later takes the sum.

!p = tensor<?xi32>
!x = tensor<?x64xbf16>
!w = tensor<64x64xbf16>
!s = tensor<4x64x16xbf16>
// CHECK-LABEL: func.func @step
module attributes {tileir.level = "graph"} {
  func.func @step(%tokens: !p, %positions: !p) -> !p {
    %w = "graph.weight"() {sym_name = "w"} : () -> !w
    %ks = "graph.state"() {sym_name = "k"} : () -> !s
    %vs = "graph.state"() {sym_name = "v"} : () -> !s
    // CHECK: "graph.embedding"({{.*}}stage = 0 : i64, stage_kind = "map"
    %x = "graph.embedding"(%w, %tokens) {scale = 1.0 : f64} : (!w, !p) -> !x
    // CHECK-COUNT-3: "graph.linear"({{.*}}stage = 1 : i64
    %q = "graph.linear"(%x, %w) : (!x, !w) -> !x
    %k = "graph.linear"(%x, %w) : (!x, !w) -> !x
    %v = "graph.linear"(%x, %w) : (!x, !w) -> !x
    %ka = "graph.append"(%ks, %k, %positions) : (!s, !x, !p) -> !s
    %va = "graph.append"(%vs, %v, %positions) : (!s, !x, !p) -> !s
    %a = "graph.attention"(%q, %ka, %va, %positions) {heads = 4 : i64, kv_heads = 4 : i64, head_size = 16 : i64,
      scale = 0.25 : f64, window = 0 : i64, softcap = 0.0 : f64} : (!x, !s, !s, !p) -> !x
    // CHECK: "graph.linear"({{.*}}) {stage = 3 : i64
    // CHECK: "graph.linear"({{.*}}) {stage = 4 : i64
    // CHECK: "graph.add"({{.*}}) {stage = 4 : i64
    %b = "graph.linear"(%a, %w) : (!x, !w) -> !x
    %c = "graph.linear"(%a, %w) : (!x, !w) -> !x
    %y = "graph.add"(%c, %b) : (!x, !x) -> !x
    %l = "graph.linear"(%y, %w) : (!x, !w) -> !x
    %t = "graph.sample"(%l) {kind = "argmax"} : (!x) -> !p
    return %t : !p
  }
}
