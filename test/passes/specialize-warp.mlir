// RUN: tileir-opt %s --pass-pipeline='builtin.module(specialize-warp{target=h100})' | filecheck %s
// RUN: tileir-opt %s --pass-pipeline='builtin.module(specialize-warp{target=virtual})' | filecheck %s --check-prefix=VIRTUAL

// CHECK: tileir.roles = {consumer = 16 : i64, loader_registers = 64 : i64, registers = 104 : i64, state = 1 : i64, tape = 1 : i64}
// VIRTUAL: tileir.roles = {consumer = 4 : i64, loader_registers = 64 : i64, registers = 104 : i64, state = 1 : i64, tape = 1 : i64}
module attributes {tileir.level = "tile"} {
}
