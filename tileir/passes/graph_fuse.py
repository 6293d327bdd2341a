"""graph-fuse: group graph operations into stages."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import networkx as nx

from tileir.dialect.attributes import located, name_of, put
from tileir.errors import TileirError
from tileir.passes.base import Pass
from tileir.passes.dataflow import DECLARATIONS, operations, producer, readers, step_function

_CHAIN = "rope, append and residual add follow a linear, glu a pair of linears on the same values"


@dataclass(frozen=True)
class GraphFusePass(Pass):
    """Group operations into stages: contractions with what they take into prologue and epilogue.

    Before: graph level. After: every compute op has `stage`, numbered so that a stage reads only
    earlier ones, and `stage_kind` ("contract", "attend", "map" or "select"). A linear takes the
    rope, appends and residual adds behind it, a pair of linears its glu. Linears that read the same
    values and feed attention share a stage. rms_norm belongs to the linears that read it: to the
    first stage by its attribute, repeated in the prologues of the others.

        %h = "graph.rms_norm"(%x, %w)
        %l = "graph.linear"(%h, %wq)
        %s = "graph.attention"(%l, …)
        →
        %h = "graph.rms_norm"(%x, %w)           {stage = 1, stage_kind = "contract"}
        %l = "graph.linear"(%h, %wq)            {stage = 1, stage_kind = "contract"}
        %s = "graph.attention"(%l, …)           {stage = 2, stage_kind = "attend"}
    """

    name: ClassVar[str] = "graph-fuse"
    before: ClassVar[str] = "graph"
    after: ClassVar[str] = "graph"

    def run(self, module: Any) -> None:
        """Put the attributes. Raises TileirError for an operation that no stage takes."""
        function = step_function(module)
        *body, end = operations(function)
        matcher = _Matcher(*function.regions[0].blocks[0].arguments)
        for index, op in enumerate(body):
            if name_of(op) not in DECLARATIONS:
                matcher.take(index, op)
        sampled = [producer(value) for value in end.operands]
        if [op and name_of(op) for op in sampled] != ["graph.sample"]:
            raise _refuse(end, "the function returns something else than a token", "sample it")
        numbers = _put_numbers(matcher.stages())
        for norm in (op for op in body if name_of(op) == "graph.rms_norm"):
            first = min(numbers[reader.results[0]] for reader in readers(norm.results[0]))
            put(norm, stage=first, stage_kind="contract")


def _refuse(op: Any, what: str, hint: str = _CHAIN) -> TileirError:
    return TileirError(what, location=located(op), hint=hint)


@dataclass
class _Stage:
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
    def group(self) -> Any:
        """What linears have in common that become one stage: the values that attention reads."""
        names = {name_of(op) for op in [*self.ops, *readers(self.value)]}
        fed = not names.isdisjoint(("graph.rope", "graph.append", "graph.attention"))
        return (True, self.linears[0].operands[0]) if self.linears and fed else (False, self.value)


class _Matcher:
    """Grows stages in program order. `ends`: stages by the value that they end in so far."""

    def __init__(self, tokens: Any, positions: Any) -> None:
        self.tokens, self.positions = tokens, positions
        self.ends: dict[Any, _Stage] = {}
        self.rules: dict[str, Callable[[int, Any], None]] = {
            "graph.embedding": self._embedding,
            "graph.rms_norm": self._norm,
            "graph.linear": self._linear,
            "graph.rope": self._rope,
            "graph.append": self._append,
            "graph.glu": self._glu,
            "graph.add": self._add,
            "graph.attention": self._attention,
            "graph.sample": self._sample,
        }

    def take(self, index: int, op: Any) -> None:
        """Put operation number `index` into a stage."""
        rule = self.rules.get(name_of(op))
        if rule is None:
            raise _refuse(
                op, f"no stage takes {name_of(op)}", f"supported: {', '.join(self.rules)}"
            )
        rule(index, op)

    def _embedding(self, index: int, op: Any) -> None:
        if op.operands[1] != self.tokens:
            raise _refuse(op, "an embedding of other tokens than the step's", "look up argument 0")
        self._alone("map", index, op)

    def _norm(self, _index: int, op: Any) -> None:
        names = sorted({name_of(reader) for reader in readers(op.results[0])})
        if names != ["graph.linear"]:
            hint = "a norm goes into the linears that read it, and only those may"
            raise _refuse(op, f"rms_norm is read by {', '.join(names) or 'nothing'}", hint)

    def _linear(self, index: int, op: Any) -> None:
        self.ends[op.results[0]] = _Stage("contract", index, [op], op.results[0], [op])

    def _rope(self, _index: int, op: Any) -> None:
        self._placed(op, 1)
        self._extend(self._before(op, op.operands[0]), op)

    def _append(self, _index: int, op: Any) -> None:
        self._placed(op, 2)
        state, x, _ = op.operands
        owner = producer(state)
        if owner is None or name_of(owner) != "graph.state" or len(readers(state)) != 1:
            raise _refuse(op, "a state with several readers", "append once to a state, then read")
        stage = self.ends.get(x)
        if stage is None or not stage.linears or stage.gated:
            raise _refuse(op, f"graph.append follows no linear: {_origin(x)}")
        stage.ops.append(op)

    def _glu(self, _index: int, op: Any) -> None:
        gate, up = (self._before(op, value) for value in op.operands)
        if gate is up or len(gate.ops + up.ops) != 2:
            raise _refuse(op, "gate and up are no two linears")
        if gate.linears[0].operands[0] != up.linears[0].operands[0]:
            raise _refuse(op, "gate and up read different values")
        gate.ops, gate.linears = gate.ops + up.ops, gate.linears + up.linears
        del self.ends[up.value]
        self._extend(gate, op)

    def _add(self, _index: int, op: Any) -> None:
        """The latest linear takes the sum, so that the other summand is there before."""
        ends = [self.ends[v] for v in op.operands if v in self.ends and _only(op, v)]
        hosts = [stage for stage in ends if stage.linears and not stage.gated]
        if not hosts or op.operands[0] == op.operands[1]:
            what = " and ".join(_origin(v) for v in op.operands)
            raise _refuse(op, f"graph.add follows no linear of its own: {what}")
        self._extend(max(hosts, key=lambda stage: stage.first), op)

    def _attention(self, index: int, op: Any) -> None:
        self._placed(op, 3)
        for state in list(op.operands)[1:3]:
            owner = producer(state)
            if owner is None or name_of(owner) != "graph.append":
                raise _refuse(op, "attention over a state without the step's row", "append first")
        self._alone("attend", index, op)

    def _sample(self, index: int, op: Any) -> None:
        self._before(op, op.operands[0])
        self._alone("select", index, op)

    def _alone(self, kind: str, index: int, op: Any) -> None:
        self.ends[op.results[0]] = _Stage(kind, index, [op], op.results[0])

    def _placed(self, op: Any, operand: int) -> None:
        if op.operands[operand] != self.positions:
            raise _refuse(op, f"{name_of(op)} at other positions than the step's", "use argument 1")

    def _before(self, op: Any, value: Any) -> _Stage:
        """The stage of linears that ends in a value which nobody but `op` takes further."""
        stage = self.ends.get(value)
        if stage is None or not stage.linears or stage.gated:
            raise _refuse(op, f"{name_of(op)} follows no linear: {_origin(value)}")
        if not _only(op, value):
            names = ", ".join(sorted(name_of(r) for r in readers(value) if r != op))
            raise _refuse(op, f"what {name_of(op)} reads, {names} reads too")
        return stage

    def _extend(self, stage: _Stage, op: Any) -> None:
        del self.ends[stage.value]
        stage.ops.append(op)
        stage.value = op.results[0]
        self.ends[stage.value] = stage

    def stages(self) -> list[list[_Stage]]:
        """Stages in an order in which each reads only earlier ones; linears for attention together."""
        groups: dict[Any, list[_Stage]] = {}
        for stage in sorted(self.ends.values(), key=lambda stage: stage.first):
            groups.setdefault(stage.group, []).append(stage)
        members = list(groups.values())
        number = {s.value: n for n, group in enumerate(members) for s in group}
        graph = nx.DiGraph()
        graph.add_nodes_from(range(len(members)))
        for n, stage in ((n, stage) for n, group in enumerate(members) for stage in group):
            for op in stage.ops:
                graph.add_edges_from((number[v], n) for v in self._read(op, stage))
        loop = next(nx.simple_cycles(graph), None)
        if loop:
            op = members[min(loop)][0].ops[0]
            hint = "linears on the same values that feed attention share a stage"
            raise _refuse(op, f"the stage of {name_of(op)} waits for what it makes itself", hint)
        order = nx.lexicographical_topological_sort(graph, key=lambda n: members[n][0].first)
        return [members[n] for n in order]

    def _read(self, op: Any, stage: _Stage) -> list[Any]:
        """The values that an operation of a stage reads from stages' ends."""
        found = []
        inside = [o.results[0] for o in stage.ops]
        for value in op.operands:
            owner = producer(value)
            if owner is None or name_of(owner) in DECLARATIONS or value in inside:
                continue
            if name_of(owner) == "graph.rms_norm":
                value = owner.operands[0]
            elif name_of(owner) == "graph.append":
                value = owner.operands[1]
            if value not in self.ends:
                raise _refuse(op, f"{name_of(op)} reads inside a stage: {_origin(value)}")
            found.append(value)
        return found


def _only(op: Any, value: Any) -> bool:
    """Whether nobody but `op` reads a value, appends aside."""
    return all(r == op or name_of(r) == "graph.append" for r in readers(value))


def _origin(value: Any) -> str:
    owner = producer(value)
    return "it reads an argument" if owner is None else f"it reads a {name_of(owner)}"


def _put_numbers(stages: list[list[_Stage]]) -> dict[Any, int]:
    """Put the attributes; the stage of every result."""
    numbers = {}
    for number, group in enumerate(stages):
        for op in (op for stage in group for op in stage.ops):
            numbers[op.results[0]] = number
            put(op, stage=number, stage_kind=group[0].kind)
    return numbers
