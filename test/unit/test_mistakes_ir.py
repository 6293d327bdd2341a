"""Mistakes with `tileir-opt`: pipelines, IR that does not parse, levels that do not fit; test/opt has how they look."""

from collections.abc import Callable
from pathlib import Path

from test.mistakes import Act, Mistake, each_mistake

GRAPH = 'module attributes {tileir.level = "graph", tileir.context = 8 : i64, tileir.vocabulary = 64 : i64} {\n'
NORM = """  func.func @step(%t: tensor<?xi32>, %x: tensor<?x8xf32>, %w: tensor<8xf32>) {
    %y = "graph.rms_norm"(%x, %w) {eps = 1.0e-6 : f64, unit_offset = false}
      : (tensor<?x8xf32>, tensor<8xf32>) -> tensor<?x8xf32>
    return
  }
}
"""
FINE = GRAPH + NORM
SHORT = FINE.replace("8xf32>) {", "7xf32>) {").replace("8xf32>, tensor<8x", "8xf32>, tensor<7x")
ARITH = FINE.replace("    return", "    %c = arith.constant 1 : i32\n    return")
WEIGHT = """module attributes {tileir.level = "tile"} {
  %w = "graph.weight"() {sym_name = "w"} : () -> tensor<8xf32>
}
"""


def opt(text: str | bytes, *arguments: str) -> Callable[[Path], Act]:
    """`tileir-opt` on a file of this text."""

    def prepare(folder: Path) -> Act:
        data = text if isinstance(text, bytes) else text.encode()
        (folder / "in.mlir").write_bytes(data)
        return ["tileir-opt", "in.mlir", "-o", "out.mlir", *arguments]

    return prepare


def pipeline(text: str) -> Callable[[Path], Act]:
    return opt(FINE, f"--pass-pipeline=builtin.module({text})")


PIPELINES = [
    Mistake("unknown pass", pipeline("tile-grap"),
            ("pipeline:1:16", "'tile-grap'", "did you mean 'tile-graph'?", "--help")),
    Mistake("unknown pass as a flag", opt(FINE, "--tile-grap"), ("'tile-grap'", "did you mean 'tile-graph'?")),
    Mistake("unknown flag", opt(FINE, "--split-input-fil"),
            ("--split-input-fil", "did you mean '--split-input-file'?"), 2),
    Mistake("unknown option", pipeline("tile-graph{tokns=2}"), ("'tile-graph'", "'tokns'", "did you mean 'tokens'?")),
    Mistake("option of another type", pipeline("tile-graph{tokens=two}"), ("'tokens' is 'two'", "type int")),
    Mistake("option twice", pipeline("tile-graph{tokens=1 tokens=2}"), ("'tokens' is given twice", "keep one")),
    Mistake("unknown target", opt(FINE, "--specialize-gpu=target=h10"),
            ("'h10'", "did you mean 'h100'?")),
    Mistake("brace that does not close", pipeline("tile-graph{tokens=2"), ("pipeline:1:", "expected", "'}'")),
    Mistake("ours inside a function", pipeline("func.func(tile-graph)"),
            ("'tile-graph'", "cannot stand inside", "beside")),
    Mistake("pipeline and flag", opt(FINE, "--pass-pipeline=cse", "--canonicalize"),
            ("--canonicalize", "into the pipeline")),
    Mistake("a stop that is not there", opt(FINE, "--cse", "--print-ir-after=sccp"),
            ("--print-ir-after=sccp", "its passes: cse")),
    Mistake("no pass file", opt(FINE, "--load-pass=gone.py"), ("no Python file gone.py", "@register")),
    Mistake("two inputs", opt(FINE, "b.mlir", "c.mlir"), ("b.mlir",), 2),
]  # fmt: skip

MODULES = [
    Mistake("no file", lambda f: ["tileir-opt", "gone.mlir"], ("cannot read gone.mlir", "No such file")),
    Mistake("folder", lambda f: ["tileir-opt", "model"], ("cannot read model", "directory")),
    Mistake("bytes", opt(b"\xff\xfe\x00"), ("cannot read in.mlir", "byte 0", "UTF-8")),
    Mistake("output in no folder", lambda f: [*opt(FINE)(f)[:2], "-o", "gone/out.mlir"],
            ("cannot write gone/out.mlir",)),
    Mistake("text that does not parse", opt("func.func @f( {\n}\n"), ("in.mlir:1:", "error: expected", "^")),
    Mistake("unknown operation", opt(GRAPH + '  "graph.rms_nrm"() : () -> ()\n}\n'), ("in.mlir:2:3", "rms_nrm")),
    Mistake("value that is not there", opt("func.func @f() -> i32 {\n  return %y : i32\n}\n"),
            ("in.mlir:2:10", "undeclared")),
    Mistake("operand of a wrong size", opt(SHORT),
            ("in.mlir:3:10", "graph.rms_norm", "7")),
    Mistake("no level", opt("module {\n}\n", "--graph-fuse"),
            ("level is ''", 'tileir.level = "graph"', "reproduce: tileir-opt")),
    Mistake("unknown level", opt('module attributes {tileir.level = "til"} {\n}\n', "--graph-fuse"),
            ("level is 'til'", "levels: graph, tile, engine")),
    Mistake("another level", opt(FINE, "--select-sync"),
            ("graph level, not tile", "in their order", "reproduce: tileir-opt")),
    Mistake("operation of another level", opt(WEIGHT, "--select-sync"),
            ("in.mlir:2:8", "graph.weight does not belong to tile level", "allowed: ")),
    Mistake("operation of another dialect", opt(ARITH, "--graph-fuse"),
            ("in.mlir:5:10", "arith.constant does not belong to graph level", "allowed: ")),
]  # fmt: skip


test_mistake = each_mistake([*PIPELINES, *MODULES])
