// RUN: not tileir-opt %s --pass-pipeline='builtin.module(specialize-warp{target=h10})' 2>&1 | filecheck %s

// A target that exceeds the register file: test/unit/test_scheduling_pipeline.py.

// CHECK: unknown target 'h10'
// CHECK: did you mean 'h100'? targets: h100, h200, virtual
module attributes {tileir.level = "tile"} {
}
