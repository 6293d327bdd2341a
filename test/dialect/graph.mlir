// RUN: tileir-opt %s | tileir-opt - | filecheck %s

// Every operation of the graph dialect survives a round trip.

// CHECK-LABEL: func.func @step
module attributes {tileir.level = "graph"} {
  func.func @step(%tokens: tensor<?xi32>, %positions: tensor<?xi32>) -> tensor<?xi32> {
    // CHECK: "graph.weight"() {sym_name = "embed"} : () -> tensor<64x32xbf16>
    %table = "graph.weight"() {sym_name = "embed"} : () -> tensor<64x32xbf16>
    %norm = "graph.weight"() {sym_name = "norm"} : () -> tensor<32xbf16>
    %square = "graph.weight"() {sym_name = "square"} : () -> tensor<32x32xbf16>
    // CHECK: "graph.constant"() {sym_name = "f", value = dense<1.000000e+00> : tensor<8xf32>}
    %f = "graph.constant"() {sym_name = "f", value = dense<1.0> : tensor<8xf32>} : () -> tensor<8xf32>
    // CHECK: "graph.state"() {sym_name = "k"} : () -> tensor<2x16x16xbf16>
    %k = "graph.state"() {sym_name = "k"} : () -> tensor<2x16x16xbf16>
    // CHECK: "graph.embedding"
    %x = "graph.embedding"(%table, %tokens) {scale = 1.0 : f64} : (tensor<64x32xbf16>, tensor<?xi32>) -> tensor<?x32xbf16>
    // CHECK: "graph.rms_norm"
    %h = "graph.rms_norm"(%x, %norm) {eps = 1.0e-5 : f64, unit_offset = false} : (tensor<?x32xbf16>, tensor<32xbf16>) -> tensor<?x32xbf16>
    // CHECK: "graph.linear"(%{{.*}}, %{{.*}}) :
    %q = "graph.linear"(%h, %square) : (tensor<?x32xbf16>, tensor<32x32xbf16>) -> tensor<?x32xbf16>
    // CHECK: "graph.linear"(%{{.*}}, %{{.*}}, %{{.*}}) :
    %b = "graph.linear"(%h, %square, %norm) : (tensor<?x32xbf16>, tensor<32x32xbf16>, tensor<32xbf16>) -> tensor<?x32xbf16>
    // CHECK: "graph.rope"
    %r = "graph.rope"(%q, %positions, %f) {head_size = 16 : i64, scale = 1.0 : f64, style = "half"} : (tensor<?x32xbf16>, tensor<?xi32>, tensor<8xf32>) -> tensor<?x32xbf16>
    // CHECK: "graph.append"
    %s = "graph.append"(%k, %r, %positions) : (tensor<2x16x16xbf16>, tensor<?x32xbf16>, tensor<?xi32>) -> tensor<2x16x16xbf16>
    // CHECK: "graph.attention"
    %a = "graph.attention"(%r, %s, %s, %positions) {heads = 2 : i64, kv_heads = 2 : i64, head_size = 16 : i64, scale = 0.25 : f64, window = 0 : i64, softcap = 0.0 : f64} : (tensor<?x32xbf16>, tensor<2x16x16xbf16>, tensor<2x16x16xbf16>, tensor<?xi32>) -> tensor<?x32xbf16>
    // CHECK: "graph.glu"
    %g = "graph.glu"(%a, %b) {activation = "silu"} : (tensor<?x32xbf16>, tensor<?x32xbf16>) -> tensor<?x32xbf16>
    // CHECK: "graph.add"
    %y = "graph.add"(%x, %g) : (tensor<?x32xbf16>, tensor<?x32xbf16>) -> tensor<?x32xbf16>
    // CHECK: "graph.sample"
    %t = "graph.sample"(%y) {kind = "argmax"} : (tensor<?x32xbf16>) -> tensor<?xi32>
    return %t : tensor<?xi32>
  }
}
