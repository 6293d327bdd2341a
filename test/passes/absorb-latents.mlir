// RUN: tileir-opt %s --split-input-file --pass-pipeline='builtin.module(absorb-latents)' | filecheck %s

// Two heads of 8 + 16 values expand from latents of 32, by a matrix [2 · (8 + 16), 32]: its key half goes to the queries,
// transposed, its value half to what attention makes.

!p = tensor<?xi32>
!s = tensor<1x64x40xf32>
// CHECK-LABEL: func.func @step
// CHECK-NOT: mla_attention
module attributes {tileir.level = "graph"} {
  func.func @step(%q: tensor<?x16xf32>, %q_rope: tensor<?x16xf32>, %latents: !s, %positions: !p) -> tensor<?x32xf32> {
    // CHECK: [[K:%.*]] = "graph.weight"() {strides = array<i64: 768, 1, 32>, sym_name = "kv_b"} : () -> tensor<2x32x8xf32>
    // CHECK: [[Q:%.*]] = "graph.grouped_linear"(%arg0, [[K]]) : {{.*}} -> tensor<?x64xf32>
    // CHECK: [[S:%.*]] = "graph.latent_attention"([[Q]], %arg1, %arg2, %arg3) {heads = 2 : i64, latent_size = 32 : i64, rope_size = 8 : i64, scale = 2.500000e-01 : f64}
    // CHECK: [[V:%.*]] = "graph.weight"() {offset = 256 : i64, strides = array<i64: 768, 32, 1>, sym_name = "kv_b"} : () -> tensor<2x16x32xf32>
    // CHECK: [[A:%.*]] = "graph.grouped_linear"([[S]], [[V]]) : {{.*}} -> tensor<?x32xf32>
    // CHECK: return [[A]]
    %w = "graph.weight"() {sym_name = "kv_b", strides = array<i64: 768, 32, 1>} : () -> tensor<2x24x32xf32>
    %a = "graph.mla_attention"(%q, %q_rope, %latents, %w, %positions) {heads = 2 : i64, nope_size = 8 : i64,
      rope_size = 8 : i64, value_size = 16 : i64, latent_size = 32 : i64, scale = 0.25 : f64}
      : (tensor<?x16xf32>, tensor<?x16xf32>, !s, tensor<2x24x32xf32>, !p) -> tensor<?x32xf32>
    return %a : tensor<?x32xf32>
  }
}

// -----

// Chosen positions stay an operand; a matrix that is whole and read elsewhere stays too.

!p = tensor<?xi32>
!s = tensor<1x64x40xf32>
!w = tensor<2x24x32xf32>
// CHECK-LABEL: func.func @step
module attributes {tileir.level = "graph"} {
  func.func @step(%q: tensor<?x16xf32>, %q_rope: tensor<?x16xf32>, %latents: !s, %positions: !p, %indices: tensor<?x4xi32>)
      -> (tensor<?x32xf32>, !w) {
    // CHECK: [[W:%.*]] = "graph.weight"() {sym_name = "kv_b"} : () -> tensor<2x24x32xf32>
    // CHECK: strides = array<i64: 768, 1, 32>
    // CHECK: "graph.latent_attention"({{.*}}, %arg1, %arg2, %arg3, %arg4)
    // CHECK: offset = 256 : i64, strides = array<i64: 768, 32, 1>
    // CHECK: return {{.*}}, [[W]]
    %w = "graph.weight"() {sym_name = "kv_b"} : () -> !w
    %a = "graph.mla_attention"(%q, %q_rope, %latents, %w, %positions, %indices) {heads = 2 : i64, nope_size = 8 : i64,
      rope_size = 8 : i64, value_size = 16 : i64, latent_size = 32 : i64, scale = 0.25 : f64}
      : (tensor<?x16xf32>, tensor<?x16xf32>, !s, !w, !p, tensor<?x4xi32>) -> tensor<?x32xf32>
    return %a, %w : tensor<?x32xf32>, !w
  }
}
