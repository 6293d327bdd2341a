// RUN: not tileir-opt %s --pass-pipeline='builtin.module(schedule-pipeline{target=gpu})' 2>&1 | filecheck %s
// RUN: not tileir-opt %s --pass-pipeline='builtin.module(schedule-pipeline{sms=4})' 2>&1 | filecheck %s --check-prefix=OPTION

// CHECK: unknown target 'gpu'
// CHECK: targets: h100, h200, virtual
// OPTION: pass 'schedule-pipeline' has no option 'sms'
// OPTION: options: target
module attributes {tileir.level = "tile"} {
}
