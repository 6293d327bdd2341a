"""Maps: values of a channel, row by row."""

from typing import TYPE_CHECKING, Any

import numpy as np

from tileir.dialect.attributes import get, name_of
from tileir.reference.arithmetic import Array, channels_of, is_alone, run_map, splits_at
from tileir.reference.memory import RowPlan
from tileir.reference.scheduler import Role
from tileir.reference.sinks import RowSink

if TYPE_CHECKING:
    from tileir.reference.consumers import Consumers


def run(consumers: "Consumers", row: RowPlan) -> Role:
    """This SM's rows of a map."""
    op = row.ops["map"]
    out, block = row.operand(op.operands[0]), op.regions[0].blocks[0]
    rows = consumers.mine(row, get(op, "rows")) + row.tile_base
    if not len(rows):
        return
    for splits, live in _alike(consumers, block):
        sink = RowSink(consumers, row, out, live, splits)
        for inner in block:
            for value, index in channels_of(inner, rows, splits):
                yield from consumers.await_(row.operand(value), index, live)
        size = out.values // _map_rows(row)
        made = run_map(block, rows, size, sink)
        consumers.publish(out, live, rows[:, None] * size + np.arange(size), made)


def _alike(consumers: "Consumers", block: Any) -> list[tuple[int | None, Array]]:
    """The step's tokens; of a combine, by how many splits take part, those that no split has finished alone."""
    combine_ = next((inner for inner in block if name_of(inner) == "tile.combine"), None)
    if combine_ is None:
        return [(None, consumers.live)]
    by_splits: dict[int, list[int]] = {}
    for t in consumers.live:
        base = consumers.record.bases[consumers.record.sequences[t]]
        if not is_alone(base, combine_):
            by_splits.setdefault(splits_at(base, combine_), []).append(int(t))
    return [(splits, np.array(tokens)) for splits, tokens in by_splits.items()]


def _map_rows(row: RowPlan) -> int:
    """Rows of the whole stage, on all GPUs."""
    return int(get(row.ops["map"], "space", 0) or get(row.ops["map"], "rows"))
