"""tile-graph: stages of graph operations become tile stages on channels."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import Any, ClassVar

from tileir.dialect.attributes import name_of, put
from tileir.errors import TileirError
from tileir.mlir import func, ir
from tileir.passes.base import Pass
from tileir.passes.dataflow import DECLARATIONS, decided, operations, producer, step_function
from tileir.passes.declarations import Declarations
from tileir.passes.tile_attention import emit_attend
from tileir.passes.tile_contracts import emit_contract, emit_index_scores
from tileir.passes.tile_maps import emit_embedding, emit_rows, emit_sum
from tileir.passes.tile_selects import emit_select
from tileir.passes.tile_step import Step
from tileir.target import find_target

MAX_TOKENS = 8  # columns of an mma
# What emits a stage of a kind with an operation, "" being any: the first that fits.
_EMITTERS: dict[tuple[str, str], Callable[[Step, list[Any]], Any]] = {
    ("contract", "graph.index_scores"): emit_index_scores,
    ("contract", ""): emit_contract,
    ("attend", ""): emit_attend,
    ("map", "graph.embedding"): emit_embedding,
    ("map", "graph.weighted_sum"): emit_sum,
    ("map", ""): emit_rows,
    ("select", ""): emit_select,
}


@dataclass(frozen=True)
class TileGraphPass(Pass):
    """Turn stages into contract, attend, map and select on channels.

    Before: graph level, every compute op with `stage`, `stage_kind` and `devices`. After: tile
    level, one op a stage (attend with its combine), for at most `tokens` tokens a step of at most
    `sequences` sequences. With `page` > 0 states are `pages` pages of so many rows (0: enough for all
    sequences at full length). A linear's rows are tiles whose halves hold what the epilogue needs together: rope's
    pairs, gate and up. q, k and v lie one behind the other in a channel. Channels, buffers and states are bf16,
    scores, partial results and rope tables f32. On a target's SMs a linear that only adds has K in two parts, one in
    each half of its tiles, if that leaves the SM that has most with less. Candidates have one record, attention one
    split and a group for each kv head: specialize-block says how many there are.

        %g = "graph.linear"(%h, %wg)   {stage = 4, …}
        %u = "graph.linear"(%h, %wu)   {stage = 4, …}
        %m = "graph.glu"(%g, %u)       {stage = 4, …}
        →
        %m = "tile.contract"(%x) ({ ^bb0(%v: f32): %n = "tile.rms_norm"(%v, %w) … }, {
          "tile.segment"() ({ ^bb0(%lo: f32, %hi: f32):
            %y = "tile.glu"(%lo, %hi) …
            "tile.publish"(%y) {bases = [0]}
          }) {tiles = 192, inner = 192, step = 8, outer = 0, sources = [0, 0, 1, 0]}
        }) {weights = ["gate", "up"], k = 576, tile_base = 0, tiles = 192, …}
    """

    name: ClassVar[str] = "tile-graph"
    before: ClassVar[str] = "graph"
    after: ClassVar[str] = "tile"

    tokens: int = 1
    sequences: int = 1
    page: int = 0
    pages: int = 0
    target: str = ""

    def run(self, module: Any) -> None:
        """Replace the function. Raises TileirError for what has no tile form."""
        if not 1 <= self.tokens <= MAX_TOKENS:
            raise TileirError(
                f"{self.tokens} tokens a step", hint=f"a step carries 1 … {MAX_TOKENS}"
            )
        if self.sequences < 1 or (self.sequences > 1 and not self.page):
            raise TileirError(
                f"{self.sequences} sequences with pages of {self.page} rows",
                hint="one sequence, or several with KV in pages: page=64",
            )
        function = step_function(module)
        *body, end = operations(function)
        members = sorted((op for op in body if name_of(op) not in DECLARATIONS), key=_stage)
        context, vocabulary = (
            decided(module, f"tileir.{n}", "the importer") for n in ("context", "vocabulary")
        )
        pages = self.pages or self.sequences * -(-context // max(1, self.page))
        if self.page and pages * self.page < context:
            raise TileirError(
                f"{pages} pages of {self.page} rows for a context of {context}",
                hint=f"one sequence may need them all: pages={-(-context // self.page)} or more",
            )
        declared = Declarations(context, self.page, pages)
        target = find_target(self.target) if self.target else None
        step = Step(self.tokens, vocabulary, declared, target)
        count = len(list(end.operands))
        with ir.InsertionPoint(module.body), function.location:
            row = function.regions[0].blocks[0].arguments[0].type
            block = func.FuncOp("step", ([row, row], [row] * count)).add_entry_block()
        with ir.InsertionPoint(block):
            made = {n: _emit(step, list(group)) for n, group in groupby(members, key=_stage)}
            with function.location:
                func.ReturnOp([made[_stage(producer(value))] for value in end.operands])
        function.operation.erase()
        facts = {"tokens": self.tokens, "sequences": self.sequences, "page": self.page}
        put(
            module.operation,
            **{"tileir.level": "tile"},
            **{f"tileir.{n}": v for n, v in facts.items()},
        )


def _stage(op: Any) -> int:
    return int(decided(op, "stage", "graph-fuse"))


def _emit(step: Step, members: list[Any]) -> Any:
    """Emit a stage; what it makes."""
    kind = decided(members[0], "stage_kind", "graph-fuse")
    names = {"", *map(name_of, members)}
    fitting = (emit for (k, name), emit in _EMITTERS.items() if k == kind and name in names)
    emit = next(fitting, None)
    assert emit is not None, f"no stage of kind {kind}"
    with members[0].location:
        return emit(step, members)
