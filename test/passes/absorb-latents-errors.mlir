// RUN: tileir-opt %s --split-input-file --verify-diagnostics --pass-pipeline='builtin.module(absorb-latents)'

!p = tensor<?xi32>
!s = tensor<1x64x40xf32>
!w = tensor<2x24x32xf32>
module attributes {tileir.level = "graph"} {
  func.func @step(%q: tensor<?x16xf32>, %q_rope: tensor<?x16xf32>, %latents: !s, %w: !w, %positions: !p) -> tensor<?x32xf32> {
    // expected-error @below {{latents are expanded by something else than a weight}}
    %a = "graph.mla_attention"(%q, %q_rope, %latents, %w, %positions) {heads = 2 : i64, nope_size = 8 : i64, rope_size = 8 : i64, value_size = 16 : i64, latent_size = 32 : i64, scale = 0.25 : f64} : (tensor<?x16xf32>, tensor<?x16xf32>, !s, !w, !p) -> tensor<?x32xf32>
    return %a : tensor<?x32xf32>
  }
}
