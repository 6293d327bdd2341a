// RUN: not tileir-opt %s --pass-pipeline='builtin.module(tile-grap)' 2>&1 | filecheck %s --check-prefix=PASS
// PASS: error: unknown pass 'tile-grap'
// PASS: did you mean 'tile-graph'?

// RUN: not tileir-opt %s --pass-pipeline='builtin.module(tile-graph{tokns=2})' 2>&1 | filecheck %s --check-prefix=OPTION
// OPTION: pass 'tile-graph' has no option 'tokns'
// OPTION: did you mean 'tokens'?

// RUN: not tileir-opt %s --pass-pipeline='builtin.module(tile-graph{tokens=two})' 2>&1 | filecheck %s --check-prefix=VALUE
// VALUE: option 'tokens' is 'two'
// VALUE: a value of type int

// RUN: not tileir-opt %s --pass-pipeline='builtin.module(cse,,cse)' 2>&1 | filecheck %s --check-prefix=TEXT
// TEXT: pipeline:1:20: cannot read it
// TEXT: builtin.module(cse,,cse)
// TEXT: ^

// RUN: not tileir-opt %s --graph-fuse 2>&1 | filecheck %s --check-prefix=LEVEL
// LEVEL: the module's level is ''
// LEVEL: reproduce: tileir-opt
module {
}
