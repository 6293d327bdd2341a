// RUN: tileir-opt --help | filecheck %s

// CHECK: --split-input-file
// CHECK: passes, each also a flag
// CHECK-NEXT: absorb-latents
// CHECK: graph-fuse
// CHECK: tile-graph
// CHECK-NEXT: tokens=int (default 1)
// CHECK: verify-schedule
// CHECK-NEXT: target=str (default h100)
// CHECK-NEXT: print-paths=bool (default false)
// CHECK-NEXT: Upstream's passes too
