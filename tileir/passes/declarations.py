"""What tile stages address: packed constants, rope tables, states.

Each is declared once, where it is first needed.
"""

from typing import Any

from tileir.dialect.attributes import build, get, located, name_of, shape_of, static_shape, tensor
from tileir.errors import TileirError
from tileir.passes.dataflow import producer


class Declarations:
    """Builds tile.buffer and tile.state at the current insertion point.

    context: most positions of a sequence. page: rows of a KV page, of which states have `pages`; 0 for none.
    """

    def __init__(self, context: int, page: int = 0, pages: int = 0) -> None:
        self._context, self._page, self._pages = context, page, pages
        self._declared: dict[Any, Any] = {}
        self._tables = 0

    def buffer(self, value: Any) -> Any:
        """The packed constant of a graph.weight that is addressed, bf16."""
        owner = producer(value)
        if owner is None or name_of(owner) != "graph.weight":
            raise TileirError(
                "an embedding, norm weight or bias that is no weight",
                location="" if owner is None else located(owner),
                hint="constants are packed from the checkpoint: use a graph.weight",
            )
        kind = tensor(shape_of(value), "bf16", "buffer")
        name, facts = get(owner, "sym_name"), {}
        if get(owner, "strides"):
            facts["view"] = [get(owner, "offset", 0), *static_shape(value), *get(owner, "strides")]
        key = ("tensor", name, str(facts))
        return self._declare(key, kind, "tile.buffer", sym_name=name, kind="tensor", **facts)

    def rope_table(self, rope: Any) -> Any:
        """The table of a rope's angles, one for all ropes of the same frequencies and scale, f32."""
        owner, scale = producer(rope.operands[2]), get(rope, "scale")
        if owner is None or name_of(owner) != "graph.constant":
            raise TileirError(
                "rope of frequencies that are no constant",
                location=located(rope),
                hint="inv_freq is a graph.constant, of which a table is made when weights are packed",
            )
        frequencies = get(owner, "value")
        key = ("rope", frequencies.tobytes(), scale)
        if key not in self._declared:
            self._tables += 1
        facts = {"sym_name": f"rope_{self._tables - 1}", "inv_freq": frequencies, "scale": scale}
        kind = tensor([self._context, len(frequencies), 2], "f32", "buffer")
        return self._declare(key, kind, "tile.buffer", kind="rope", **facts)

    def state(self, append: Any) -> Any:
        """The state that a graph.append writes, bf16."""
        owner, shape = producer(append.operands[0]), static_shape(append.results[0])
        while owner is not None and name_of(owner) == "graph.append":
            owner = producer(owner.operands[0])
        assert owner is not None
        if shape[1] < self._context:
            raise TileirError(
                f"a state of {shape[1]} positions for a context of {self._context}",
                location=located(owner),
                hint="states hold every position of the context",
            )
        name = get(owner, "sym_name")
        facts = {}
        if self._page:
            shape[1], facts = self._pages * self._page, {"page": self._page}
        kind = tensor(shape, "bf16", "state")
        return self._declare(("state", name), kind, "tile.state", sym_name=name, **facts)

    def _declare(self, key: Any, result: Any, name: str, **facts: Any) -> Any:
        if key not in self._declared:
            self._declared[key] = build(name, [], [result], **facts).results[0]
        return self._declared[key]
