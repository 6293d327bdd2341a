"""What graph-fuse grows: stages, and the order in which they run."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import networkx as nx

from tileir.dialect.attributes import get, name_of, put, shape_of
from tileir.passes.chains import NORMS, feeds, origin, refuse, through
from tileir.passes.dataflow import DECLARATIONS, producer, readers


@dataclass
class Stage:
    """Operations that run together; `first` is the place of the first in the program.

    linears: one, or a gate and its up. value: the last result, which other stages may read.
    """

    kind: str
    first: int
    ops: list[Any]
    value: Any
    linears: list[Any] = field(default_factory=list)

    @property
    def gated(self) -> bool:
        """Whether it ends in a glu, behind which nothing goes."""
        return len(self.linears) == 2

    @property
    def names(self) -> set[str]:
        """What it is made of."""
        return {name_of(op) for op in self.ops}

    @property
    def group(self) -> Any:
        """What linears have in common that become one stage: the values that they read, and what for."""
        read_by = {name_of(op) for op in readers(self.value)}
        alone = (
            self.gated or "graph.add" in self.names or read_by & {"graph.router", "graph.sample"}
        )
        if alone or [name_of(op) for op in self.linears] != ["graph.linear"]:
            return (False, self.value)
        return (self.linears[0].operands[0], feeds(self.value) == {"graph.index_scores"})


def norm_of_heads(stage: Stage, rope: Any) -> bool:
    """Whether a stage is a norm over the heads that a rope turns: a map's row is one of them."""
    norm, size = stage.ops[0], get(rope, "head_size")
    return name_of(norm) in NORMS and shape_of(norm.operands[1]) == [size]


def ordered(ends: dict[Any, Stage]) -> list[list[Stage]]:
    """Stages in an order in which each reads only earlier ones; linears on the same values together."""
    groups: dict[Any, list[Stage]] = {}
    for stage in sorted(_distinct(ends.values()), key=lambda stage: stage.first):
        groups.setdefault(stage.group, []).append(stage)
    members = list(groups.values())
    number = {id(s): n for n, group in enumerate(members) for s in group}
    graph = nx.DiGraph()
    graph.add_nodes_from(range(len(members)))
    for n, stage in ((n, stage) for n, group in enumerate(members) for stage in group):
        for op in stage.ops:
            graph.add_edges_from((number[id(ends[v])], n) for v in _read(op, stage, ends))
    order = nx.lexicographical_topological_sort(graph, key=lambda n: members[n][0].first)
    return [members[n] for n in order]


def _read(op: Any, stage: Stage, ends: dict[Any, Stage]) -> list[Any]:
    """The values that an operation of a stage reads from stages' ends."""
    found = []
    inside = [o.results[0] for o in stage.ops]
    for value in (v for operand in op.operands for v in through(operand, op)):
        owner = producer(value)
        if owner is None or name_of(owner) in DECLARATIONS or value in inside:
            continue
        if value not in ends:
            raise refuse(op, f"{name_of(op)} reads inside a stage: {origin(value)}")
        found.append(value)
    return found


def _distinct(stages: Iterable[Stage]) -> list[Stage]:
    """Each stage once."""
    return list({id(stage): stage for stage in stages}.values())


def put_numbers(stages: list[list[Stage]]) -> dict[Any, int]:
    """Put the attributes; the stage of every result."""
    numbers = {}
    for number, group in enumerate(stages):
        for op in (op for stage in group for op in stage.ops):
            numbers[op.results[0]] = number
            put(op, stage=number, stage_kind=group[0].kind)
    return numbers
