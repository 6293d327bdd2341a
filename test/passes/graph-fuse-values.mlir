// RUN: tileir-opt %s --pass-pipeline='builtin.module(graph-fuse)' | filecheck %s

// A norm of all of q is a map, and the rope of its heads the attention's; a norm behind a linear is a map that takes the add;
// scale, activation and softcap stay with their linear.

!p = tensor<?xi32>
!x = tensor<?x64xbf16>
!n = tensor<64xbf16>
!w = tensor<64x64xbf16>
!f = tensor<8xf32>
!s = tensor<4x16x16xbf16>
module attributes {tileir.level = "graph"} {
  func.func @step(%tokens: !p, %positions: !p) -> !p {
    %w = "graph.weight"() {sym_name = "w"} : () -> !w
    %n = "graph.weight"() {sym_name = "n"} : () -> !n
    %gb = "graph.weight"() {sym_name = "gate_bias"} : () -> !n
    %ub = "graph.weight"() {sym_name = "up_bias"} : () -> !n
    %f = "graph.constant"() {sym_name = "f", value = dense<1.0> : !f} : () -> !f
    %ks = "graph.state"() {sym_name = "k"} : () -> !s
    %vs = "graph.state"() {sym_name = "v"} : () -> !s
    // CHECK: "graph.embedding"
    %x = "graph.embedding"(%w, %tokens) {scale = 8.0 : f64} : (!w, !p) -> !x
    %lq = "graph.linear"(%x, %w) : (!x, !w) -> !x
    %lk = "graph.linear"(%x, %w) : (!x, !w) -> !x
    %lv = "graph.linear"(%x, %w) : (!x, !w) -> !x
    // CHECK-COUNT-3: "graph.linear"({{.*}}) {stage = 1 : i64, stage_kind = "contract"}
    // CHECK: "graph.rms_norm"({{.*}}stage = 2 : i64, stage_kind = "map"
    %nq = "graph.rms_norm"(%lq, %n) {eps = 1.0e-5 : f64, unit_offset = false} : (!x, !n) -> !x
    // CHECK: "graph.rope"({{.*}}stage = 3 : i64, stage_kind = "attend"
    %q = "graph.rope"(%nq, %positions, %f) {head_size = 16 : i64, scale = 1.0 : f64, style = "half"} : (!x, !p, !f) -> !x
    %ka = "graph.append"(%ks, %lk, %positions) : (!s, !x, !p) -> !s
    %va = "graph.append"(%vs, %lv, %positions) : (!s, !x, !p) -> !s
    %a = "graph.attention"(%q, %ka, %va, %positions) {heads = 4 : i64, kv_heads = 4 : i64, head_size = 16 : i64,
      scale = 0.25 : f64, window = 0 : i64, softcap = 0.0 : f64} : (!x, !s, !s, !p) -> !x
    %o = "graph.linear"(%a, %w) : (!x, !w) -> !x
    // CHECK: "graph.linear"({{.*}}) {stage = 4 : i64, stage_kind = "contract"}
    // CHECK: "graph.rms_norm"({{.*}}stage = 5 : i64, stage_kind = "map"
    // CHECK: "graph.add"({{.*}}) {stage = 5 : i64, stage_kind = "map"}
    %no = "graph.rms_norm"(%o, %n) {eps = 1.0e-5 : f64, unit_offset = true} : (!x, !n) -> !x
    %y = "graph.add"(%x, %no) : (!x, !x) -> !x
    %gate = "graph.linear"(%y, %w, %gb) : (!x, !w, !n) -> !x
    %up = "graph.linear"(%y, %w, %ub) : (!x, !w, !n) -> !x
    %m = "graph.glu"(%gate, %up) {activation = "gelu"} : (!x, !x) -> !x
    %down = "graph.linear"(%m, %w) : (!x, !w) -> !x
    // CHECK: "graph.scale"({{.*}}) {factor = {{.*}}, stage = 7 : i64, stage_kind = "contract"}
    // CHECK: "graph.add"({{.*}}) {stage = 7 : i64, stage_kind = "contract"}
    %less = "graph.scale"(%down) {factor = 0.5 : f64} : (!x) -> !x
    %z = "graph.add"(%less, %y) : (!x, !x) -> !x
    %one = "graph.linear"(%z, %w) : (!x, !w) -> !x
    // CHECK: "graph.activate"({{.*}}stage = 8 : i64, stage_kind = "contract"
    %act = "graph.activate"(%one) {activation = "relu"} : (!x) -> !x
    %l = "graph.linear"(%act, %w) : (!x, !w) -> !x
    // CHECK: "graph.softcap"({{.*}}stage = 9 : i64, stage_kind = "contract"
    %c = "graph.softcap"(%l) {cap = 30.0 : f64} : (!x) -> !x
    %t = "graph.sample"(%c) {kind = "argmax"} : (!x) -> !p
    return %t : !p
  }
}
