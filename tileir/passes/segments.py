"""The rows of linears as runs of tiles: what lies in a tile's two halves, and where its values go."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tileir.dialect.attributes import get, located, name_of, shape_of, static_shape
from tileir.dialect.tile import BLOCK_K, HALF_ROWS, TILE_ROWS
from tileir.errors import TileirError
from tileir.passes.chains import LINEARS
from tileir.passes.dataflow import producer, readers

K_MULTIPLE = 2


@dataclass(frozen=True)
class Piece:
    """A tile.segment to be: half lo of tile t is rows lo + at(0) … + 8, half hi rows hi + at(0) … + 8."""

    tiles: int
    inner: int
    step: int
    outer: int
    lo: int
    hi: int
    turned: bool = False


@dataclass(frozen=True)
class Run:
    """The rows of a linear, or of a gate and its up, and what follows.

    linears: one, or gate and up. chain: the operations behind, in order. rows: of a weight. outputs: how many values it
    makes, a whole number of tiles' (of experts: of one slot). Of gate and up, halves are the same rows of either; with
    two k_parts, of one.
    """

    linears: list[Any]
    chain: list[Any]
    rows: int
    outputs: int
    pieces: list[Piece]
    k_parts: int = 1

    @property
    def gated(self) -> bool:
        """Whether a tile makes 8 values of gate and up instead of 16."""
        return len(self.linears) == 2

    @property
    def tiles(self) -> int:
        """Of all pieces."""
        return sum(piece.tiles for piece in self.pieces)

    @property
    def value(self) -> Any:
        """The graph value that it makes."""
        grown = [op for op in self.chain if name_of(op) != "graph.append"]
        return [*self.linears, *grown][-1].results[0]

    @property
    def read_by(self) -> set[str]:
        """The operations that read what it makes."""
        return {name_of(r) for r in readers(self.value)}

    @property
    def sampled(self) -> bool:
        """Whether its values are logits."""
        return "graph.sample" in self.read_by

    @property
    def biases(self) -> list[Any]:
        """The linears' biases."""
        return [bias for linear in self.linears for bias in biases_of(linear)]

    def bases(self, piece: Piece) -> list[int]:
        """Where the values of lo and hi begin."""
        return [piece.lo] if self.paired else [piece.lo, piece.hi]

    def sources(self, piece: Piece, weight: int) -> list[int]:
        """[lo weight, lo row, hi weight, hi row], its first weight having that number."""
        other = weight + 1 if self.paired else weight
        return [weight, piece.lo, other, piece.lo if self.paired else piece.hi]

    @property
    def paired(self) -> bool:
        """Whether a tile's halves are the same rows of two weights, or of a weight's parts."""
        return self.gated or self.k_parts == 2

    def folded(self) -> "Run | None":
        """The run with half as much of K for each half of a tile, hence twice the tiles; None if that cannot be.

        The rows that are turned or gated together fill a tile's halves already.
        """
        (linear, *more), (piece, *others) = self.linears, self.pieces
        plain = name_of(linear) == "graph.linear" and not more and not others
        adds = all(name_of(op) == "graph.add" for op in self.chain)
        if not plain or not adds or self.read_by & {"graph.sample", "graph.router"}:
            return None
        if static_shape(weight_of(linear))[-1] % (2 * BLOCK_K):
            return None
        tiles = 2 * piece.tiles
        halves = Piece(tiles, tiles, HALF_ROWS, 0, 0, HALF_ROWS)
        return replace(self, pieces=[halves], k_parts=2)


def weight_of(linear: Any) -> Any:
    """The operand of a linear that is its weight."""
    return linear.operands[2 if name_of(linear) == "graph.expert_linear" else 1]


def biases_of(linear: Any) -> list[Any]:
    """A linear's bias, if it has one."""
    return list(linear.operands)[2:] if name_of(linear) == "graph.linear" else []


def runs_of(members: Sequence[Any], vocabulary: int) -> list[Run]:
    """The runs of a stage's operations, in program order. Raises TileirError for odd sizes."""
    gates = [op for op in members if name_of(op) == "graph.glu"]
    if gates:
        return [_gated(op) for op in gates]
    runs = [_plain(op, members) for op in members if name_of(op) in LINEARS]
    for run in runs:
        if run.sampled and run.rows != vocabulary:
            raise TileirError(
                f"{run.rows} logits for a vocabulary of {vocabulary}",
                location=located(run.linears[0]),
                hint="tileir.vocabulary is the number of logits",
            )
    return runs


def _gated(glu: Any) -> Run:
    linears = [producer(value) for value in glu.operands]
    rows = _rows(linears[0])
    tiles = -(-rows // HALF_ROWS)
    piece = Piece(tiles, tiles, HALF_ROWS, 0, 0, HALF_ROWS)
    return Run(linears, [glu], rows, tiles * HALF_ROWS, [piece])


def _plain(linear: Any, members: Sequence[Any]) -> Run:
    chain: list[Any] = []
    values = [linear.results[0]]
    for op in members:
        if name_of(op) not in (*LINEARS, "graph.rms_norm") and any(
            value in values for value in op.operands
        ):
            chain.append(op)
            values.append(op.results[0])
    rows = _rows(linear)
    tiles = -(-rows // TILE_ROWS)
    pieces = [Piece(tiles, tiles, TILE_ROWS, 0, 0, HALF_ROWS)]
    for op in chain:
        if name_of(op) == "graph.rope":
            pieces = _by_heads(rows, op)
    groups = static_shape(weight_of(linear))[0] if name_of(linear) == "graph.grouped_linear" else 1
    if rows // groups % TILE_ROWS and (
        groups > 1 or any(name_of(o) == "graph.append" for o in chain)
    ):
        raise TileirError(
            f"a linear of {rows // groups} rows",
            location=located(linear),
            hint=f"of groups, and of what goes into a state, rows are multiples of {TILE_ROWS}",
        )
    return Run([linear], chain, rows, tiles * TILE_ROWS, pieces)


def _rows(linear: Any) -> int:
    *rows, k = static_shape(weight_of(linear))
    if name_of(linear) == "graph.expert_linear":
        rows = rows[1:]
    if k % K_MULTIPLE:
        raise TileirError(
            f"a linear over {k} values",
            location=located(linear),
            hint=f"a linear's input has a multiple of {K_MULTIPLE} values",
        )
    total = 1
    for size in rows:
        total *= size
    return total


def _by_heads(rows: int, rope: Any) -> list[Piece]:
    """The same rows, a tile's halves holding pairs that rotate together, and the rest of the heads plain."""
    size, first = get(rope, "head_size"), get(rope, "offset", 0)
    turned = 2 * (shape_of(rope.operands[2])[0] or 0)
    heads = rows // size
    per = turned // TILE_ROWS
    pieces = [Piece(heads * per, per, HALF_ROWS, size, first, first + turned // 2, turned=True)]
    for start, stop in ((0, first), (first + turned, size)):
        if stop > start:
            per = (stop - start) // TILE_ROWS
            pieces.append(Piece(heads * per, per, TILE_ROWS, size, start, start + HALF_ROWS))
    return pieces
