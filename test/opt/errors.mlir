// A mistake in the pipeline is shown where it stands, with what is near.

// RUN: not tileir-opt %s --pass-pipeline='builtin.module(tile-grap)' 2>&1 | filecheck %s --check-prefix=PASS
// PASS: error: pipeline:1:16: unknown pass 'tile-grap'
// PASS-NEXT: builtin.module(tile-grap)
// PASS-NEXT: {{^ {17}\^$}}
// PASS-NEXT: did you mean 'tile-graph'?

// RUN: not tileir-opt %s --canonicalise 2>&1 | filecheck %s --check-prefix=UPSTREAM
// UPSTREAM: did you mean 'canonicalize'?

// RUN: not tileir-opt %s --pass-pipeline='builtin.module(func.func(cse,csee))' 2>&1 | filecheck %s --check-prefix=NEST
// NEST: error: pipeline:1:30: unknown pass 'csee'

// RUN: not tileir-opt %s --pass-pipeline='func.func(graph-fuse)' 2>&1 | filecheck %s --check-prefix=OURS
// OURS: error: pipeline:1:11: pass 'graph-fuse' cannot stand inside func.func(…)

// RUN: not tileir-opt %s --pass-pipeline='canonicalize{depth=1}' 2>&1 | filecheck %s --check-prefix=THEIRS
// THEIRS: error: pipeline:1:1: upstream refuses it: no such option depth

// RUN: not tileir-opt %s --pass-pipeline='builtin.module(tile-graph{tokns=2})' 2>&1 | filecheck %s --check-prefix=OPTION
// OPTION: error: pipeline:1:27: pass 'tile-graph' has no option 'tokns'
// OPTION: did you mean 'tokens'?

// RUN: not tileir-opt %s --pass-pipeline='builtin.module(tile-graph{tokens=two})' 2>&1 | filecheck %s --check-prefix=VALUE
// VALUE: option 'tokens' is 'two'
// VALUE: a value of type int

// RUN: not tileir-opt %s --pass-pipeline='builtin.module(cse,,cse)' 2>&1 | filecheck %s --check-prefix=TEXT
// TEXT: error: pipeline:1:20: expected a name, not ','
// TEXT-NEXT: builtin.module(cse,,cse)
// TEXT-NEXT: {{^ {21}\^$}}

// RUN: not tileir-opt %s --pass-pipeline=cse --canonicalize 2>&1 | filecheck %s --check-prefix=BOTH
// BOTH: error: --pass-pipeline and --canonicalize

// RUN: not tileir-opt %s --cse --print-ir-after=canonicalize 2>&1 | filecheck %s --check-prefix=AFTER
// AFTER: error: --print-ir-after=canonicalize: the pipeline has no such pass

// RUN: not tileir-opt %s --verify-diagnostic 2>&1 | filecheck %s --check-prefix=FLAG
// FLAG: did you mean '--verify-diagnostics'?

// RUN: not tileir-opt %s.gone 2>&1 | filecheck %s --check-prefix=GONE
// GONE: error: cannot read {{.*}}errors.mlir.gone: No such file

// RUN: not tileir-opt %s -o %S/gone/out.mlir 2>&1 | filecheck %s --check-prefix=OUT
// OUT: error: cannot write {{.*}}out.mlir: No such file

// RUN: not tileir-opt %s --graph-fuse 2>&1 | filecheck %s --check-prefix=LEVEL
// LEVEL: the module's level is ''
// LEVEL: reproduce: tileir-opt
module {
}
