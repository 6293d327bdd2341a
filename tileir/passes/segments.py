"""The rows of linears as runs of tiles, one tile.segment each: what lies in a tile's two halves."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tileir.dialect.attributes import get, located, name_of, shape_of
from tileir.dialect.tile import HALF_ROWS, TILE_ROWS
from tileir.errors import TileirError
from tileir.passes.dataflow import producer, readers

K_MULTIPLE = 8


@dataclass(frozen=True)
class Run:
    """A run of tiles to be: the rows of a linear, or of a gate and its up, and what follows.

    linears: one, or gate and up. chain: the operations behind, in order. outputs: how many values
    it makes. Half lo of tile t begins at row (t / inner)·outer + (t % inner)·step, half hi `hi`
    rows further; of gate and up, halves are the same rows of either.
    """

    linears: list[Any]
    chain: list[Any]
    outputs: int
    tiles: int
    inner: int
    step: int = TILE_ROWS
    outer: int = 0
    hi: int = HALF_ROWS

    @property
    def gated(self) -> bool:
        """Whether a tile makes 8 values of gate and up instead of 16."""
        return len(self.linears) == 2

    @property
    def value(self) -> Any:
        """The graph value that it makes."""
        grown = [op for op in self.chain if name_of(op) != "graph.append"]
        return [*self.linears, *grown][-1].results[0]

    @property
    def sampled(self) -> bool:
        """Whether its values are logits."""
        return any(name_of(r) == "graph.sample" for r in readers(self.value))

    @property
    def biases(self) -> list[Any]:
        """The linears' biases."""
        return [bias for linear in self.linears for bias in list(linear.operands)[2:]]

    @property
    def bases(self) -> list[int]:
        """Where the values of lo and hi begin."""
        return [0] if self.gated else [0, self.hi]

    def sources(self, weight: int) -> list[int]:
        """[lo weight, lo row, hi weight, hi row], its first weight having that number."""
        return [weight, 0, weight + 1, 0] if self.gated else [weight, 0, weight, self.hi]


def runs_of(members: Sequence[Any], vocabulary: int) -> list[Run]:
    """The runs of a stage's operations, in program order. Raises TileirError for odd sizes."""
    gates = [op for op in members if name_of(op) == "graph.glu"]
    if gates:
        return [_gated(op) for op in gates]
    runs = [_plain(op, members) for op in members if name_of(op) == "graph.linear"]
    for run in runs:
        if run.sampled and run.outputs != vocabulary:
            raise TileirError(
                f"{run.outputs} logits for a vocabulary of {vocabulary}",
                location=located(run.linears[0]),
                hint="tileir.vocabulary is the number of logits",
            )
    return runs


def _gated(glu: Any) -> Run:
    linears = [producer(value) for value in glu.operands]
    rows = _rows(linears[0], HALF_ROWS)
    run = Run(linears, [glu], rows, rows // HALF_ROWS, rows // HALF_ROWS, HALF_ROWS)
    if run.biases:
        raise TileirError(
            "a bias inside a gated unit",
            location=located(glu),
            hint="gate and up projections without bias",
        )
    return run


def _plain(linear: Any, members: Sequence[Any]) -> Run:
    chain: list[Any] = []
    values = [linear.results[0]]
    for op in members:
        if name_of(op) not in ("graph.linear", "graph.rms_norm") and any(
            value in values for value in op.operands
        ):
            chain.append(op)
            values.append(op.results[0])
    rows = _rows(linear, 1)
    tiles = -(-rows // TILE_ROWS)
    run = Run([linear], chain, rows, tiles, tiles)
    # Logits past the vocabulary are no candidates: their last tile may be short.
    if not run.sampled or run.biases:
        _rows(linear, TILE_ROWS)
    for op in chain:
        if name_of(op) == "graph.rope":
            run = _by_heads(run, op)
    return run


def _rows(linear: Any, multiple: int) -> int:
    rows, k = shape_of(linear.operands[1])
    assert rows is not None
    assert k is not None
    if k % K_MULTIPLE:
        raise TileirError(
            f"a linear over {k} values",
            location=located(linear),
            hint=f"a linear's input has a multiple of {K_MULTIPLE} values",
        )
    if rows % multiple:
        raise TileirError(
            f"a linear of {rows} rows",
            location=located(linear),
            hint=f"here rows are multiples of {multiple}; only logits without bias may end anywhere",
        )
    return rows


def _by_heads(run: Run, rope: Any) -> Run:
    """The same rows, a tile's halves holding pairs that rotate together."""
    style, size = get(rope, "style"), get(rope, "head_size")
    if style != "half" or size % TILE_ROWS:
        raise TileirError(
            f"rope of style {style!r} on heads of {size}",
            location=located(rope),
            hint=f'style "half" on head sizes that are multiples of {TILE_ROWS}',
        )
    return replace(run, step=HALF_ROWS, inner=size // TILE_ROWS, outer=size, hi=size // 2)
