"""Angles of rotary positions: cosines and sines of positions times frequencies, computed, or read from a table.

| pattern | becomes |
|---|---|
| cos(positions · frequencies), the product in any spelling | frequencies of a buffer |
| table[positions], the table a buffer | the frequencies that all its rows agree with |
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch.fx import Node

from tileir.frontends.torch_export.lookups import match_lookup
from tileir.frontends.torch_export.nodes import Constants, behind, op_name, shape
from tileir.frontends.torch_export.patterns import split_mul

# A table's distance from what its frequencies give; bf16, or products in fp32 at position 100,000, are within 0.008.
TABLE_ERROR = 0.02


@dataclass(frozen=True)
class Angle:
    """positions · frequencies, times `scale` after the function. pairs: each one twice, else all and again all.

    frequencies: [n] f32, None of tables that none give.
    """

    positions: Node
    frequencies: np.ndarray | None
    scale: float
    pairs: bool = False

    def same(self, other: "Angle") -> bool:
        """Whether both are the same values."""
        return (
            self.positions is other.positions
            and (self.scale, self.pairs) == (other.scale, other.pairs)
            and np.array_equal(self.frequencies, other.frequencies)  # type: ignore[arg-type]
        )


@dataclass(frozen=True)
class Table:
    """The rows of `values`, [rows, frequencies] f64, at the positions, times `scale`. pairs: as of Angle.

    source: the node of the whole table, and which of each pair of its values.
    """

    positions: Node
    source: tuple[Node, int]
    values: np.ndarray
    scale: float = 1.0
    pairs: bool = False

    def folded(self) -> "Table | None":
        """Of a table as wide as a head, the half that it repeats; None if it repeats none."""
        half = self.values.shape[1] // 2
        if np.array_equal(self.values[:, :half], self.values[:, half:]):
            return replace(self, values=self.values[:, :half])
        if np.array_equal(self.values[:, 0::2], self.values[:, 1::2]):
            return replace(self, values=self.values[:, 0::2], pairs=True)
        return None


def match_angle(
    node: Any, function: str, constants: Constants, whole: bool
) -> Angle | Table | None:
    """The angle whose cos or sin a node is. whole: it has a value for all of a head, not for half of one."""
    node, scale, width = behind(node), 1.0, shape(node)[-1] if isinstance(node, Node) else 0
    pairs = _each_twice(node)
    node = node if pairs is None else behind(pairs)
    repeated = half(node, 0) if op_name(node) == "slice" else None
    node = node if repeated is None else behind(repeated)
    if op_name(node) == "mul" and isinstance(node.args[1], int | float):
        node, scale = behind(node.args[0]), float(node.args[1])
    table = _table(_once(node) or node, constants)
    if table is not None:
        table = replace(table, scale=scale, pairs=pairs is not None)
        wide = table.values.shape[1] == (width if repeated is None else 2 * width)
        return table.folded() if wide and (whole or repeated is not None) else table
    if op_name(node) != function:
        return None
    inner = behind(node.args[0])
    if repeated is not None and _once(inner) is None:
        return None
    inner = _once(inner) or inner
    pair = split_mul(inner) or _outer_product(inner)
    for positions, frequencies in (pair, pair[::-1]) if pair else ():
        value = constants.value(frequencies)
        at = behind(positions)
        if value is not None and isinstance(at, Node) and at.op == "placeholder":
            return Angle(at, value.detach().float().reshape(-1).numpy(), scale, pairs is not None)
    return None


def one_angle(
    cos: Angle | Table | None, sin: Angle | Table | None, constants: Constants
) -> Angle | None:
    """The angle that both are of; None if there is none."""
    if isinstance(cos, Angle) and isinstance(sin, Angle):
        return cos if cos.same(sin) else None
    if not (isinstance(cos, Table) and isinstance(sin, Table)):
        return None
    alike = cos.positions is sin.positions and (cos.scale, cos.pairs) == (sin.scale, sin.pairs)
    if not alike or cos.values.shape != sin.values.shape:
        return None
    key = (cos.source, sin.source, cos.values.shape)
    frequencies, scale = constants.once(key, lambda: frequencies_of(cos.values, sin.values))
    return Angle(cos.positions, frequencies, scale * cos.scale, cos.pairs)


def frequencies_of(cosines: np.ndarray, sines: np.ndarray) -> tuple[np.ndarray | None, float]:
    """(frequencies, scale) that give two tables, [rows, n] f64, to within TABLE_ERROR at every row; None if none do."""
    turns = cosines + 1j * sines
    scale = float(np.abs(turns[0]).max())
    if len(turns) < 2 or scale == 0:
        return None, 1.0
    # An angle is known but for whole turns, and to the table's rounding: of the rows at 1, 2, 4, … each tells the
    # frequency twice as exactly as the one before.
    frequencies = np.angle(turns[1])
    rows = 2 ** np.arange(1, int(np.log2(len(turns) - 1)) + 1)
    for row in rows:
        frequencies += np.angle(turns[row] * np.exp(-1j * row * frequencies)) / row
    exact = _nearest(frequencies.astype(np.float32), turns / scale)
    if np.abs(_turns(exact, np.arange(len(turns))) - turns / scale).max() > TABLE_ERROR:
        return None, 1.0
    return exact, scale


def _turns(frequencies: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """exp(i · row · frequency), the product in f32."""
    return np.exp(1j * (rows.astype(np.float32)[:, None] * frequencies).astype(np.float64))


def _nearest(frequencies: np.ndarray, turns: np.ndarray) -> np.ndarray:
    """Of each frequency and its neighbours in f32 the one that is nearest to the table's last rows."""
    around = [frequencies]
    for way in (-np.inf, np.inf):
        near = frequencies
        for _ in range(2):
            near = np.nextafter(near, np.float32(way))
            around.append(near)
    rows = np.arange(max(0, len(turns) - 64), len(turns))
    errors = [np.abs(_turns(f, rows) - turns[rows]).sum(0) for f in around]
    return np.choose(np.argmin(errors, axis=0), around)


def _table(node: Any, constants: Constants) -> Table | None:
    """Rows of a table, or of one of its two halves: the first or second of each pair of values."""
    pair = component(node)
    found = match_lookup(node if pair is None else behind(pair[0]), constants)
    if found is None or found.values.ndim < 2:
        return None
    values, which = (found.values, 0) if pair is None else (found.values[..., pair[1]], pair[1])
    source, flat = (found.table, which), values.reshape(len(values), -1)
    return Table(found.at, source, constants.once(source, lambda: flat.double().numpy()))


def component(node: Any) -> tuple[Any, int] | None:
    """(x, 0 or 1), if the node is the first or second values of the pairs in x's last dimension."""
    if op_name(node) == "select":
        x, dim, which = node.args
    elif op_name(node) == "getitem" and op_name(node.args[0]) == "unbind":
        x, dim = (*node.args[0].args, 0)[:2]
        which = node.args[1]
    else:
        return None
    last = dim % len(shape(x)) == len(shape(x)) - 1
    return (x, which % 2) if last and shape(x)[-1] == 2 else None


def _once(node: Any) -> Any:
    """x, if the node is x and again x in its last dimension."""
    if op_name(node) == "cat" and len(node.args[0]) == 2 and node.args[0][0] is node.args[0][1]:
        return behind(node.args[0][0])
    return None


def _outer_product(node: Any) -> tuple[Any, Any] | None:
    """The factors of products of each value with each: outer, einsum, or matrices that share one row and column.

    Of matrices the product's last two dimensions may be swapped.
    """
    if op_name(node) == "outer":
        return node.args[0], node.args[1]
    if op_name(node) == "einsum":
        inputs, _, output = node.args[0].replace(" ", "").partition("->")
        letters = inputs.replace("...", "").replace(",", "")
        alone = len(set(letters)) == len(letters) and set(letters) == set(output) - {"."}
        two = inputs.count(",") == 1 and inputs.count("...") <= 1
        return tuple(node.args[1]) if alone and two else None
    if op_name(node) in ("transpose", "permute"):
        node = behind(node.args[0])
    if op_name(node) not in ("matmul", "bmm") or shape(node.args[0])[-1] != 1:
        return None
    return node.args[0], node.args[1]


def _each_twice(node: Any) -> Any:
    """x, if the node is each value of x's last dimension twice."""
    if op_name(node) != "repeat_interleave" or node.args[1] != 2 or len(node.args) < 3:
        return None
    x, dim = node.args[0], node.args[2]
    return x if dim % len(shape(x)) == len(shape(x)) - 1 else None


def half(node: Any, which: int) -> Any:
    """x, if the node is the lower (0) or upper (1) half of x's last dimension."""
    if op_name(node) == "slice":
        x, dim, start, end = (*node.args, 0, 2**63)[:4] if len(node.args) < 4 else node.args[:4]
        size = shape(x)
        last, half = len(size) - 1, size[-1] // 2
        wanted = (0, half) if which == 0 else (half, size[-1])
        return x if dim % len(size) == last and (start, min(end, size[-1])) == wanted else None
    if op_name(node) == "getitem" and node.args[1] == which:
        split = node.args[0]
        x = split.args[0]
        size, dim = shape(x), (split.args[2] if len(split.args) > 2 else 0)
        sizes = split.args[1]
        even = (
            sizes == size[-1] // 2
            or list(sizes if isinstance(sizes, list | tuple) else []) == [size[-1] // 2] * 2
        )
        last = dim % len(size) == len(size) - 1
        return x if op_name(split).startswith("split") and last and even else None
    return None
