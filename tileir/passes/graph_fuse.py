"""graph-fuse: group graph operations into stages."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar

import networkx as nx

from tileir.dialect.attributes import get, located, name_of, put, shape_of
from tileir.dialect.tile import TILE_ROWS
from tileir.errors import TileirError
from tileir.passes.base import Pass
from tileir.passes.dataflow import DECLARATIONS, operations, producer, readers, step_function

_CHAIN = (
    "rope, append, activation, scale, softcap and residual add follow a linear, an add also a norm, "
    "glu a pair of linears on the same values"
)
LINEARS = ("graph.linear", "graph.grouped_linear", "graph.expert_linear")
NORMS = ("graph.rms_norm", "graph.layer_norm")
SELECTS = ("graph.sample", "graph.router", "graph.top_k")
ATTENDS = ("graph.attention", "graph.latent_attention")
# What an epilogue does to each value by itself.
ELEMENTWISE = ("graph.activate", "graph.scale", "graph.softcap")


@dataclass(frozen=True)
class GraphFusePass(Pass):
    """Group operations into stages: contractions with what they take into prologue and epilogue.

    Before: graph level. After: every compute op has `stage`, numbered so that a stage reads only
    earlier ones, and `stage_kind` ("contract", "attend", "map" or "select"). A linear takes the
    rope, appends, activation, scale, softcap and residual adds behind it, a pair of linears its glu. Linears that
    read the same values share a stage, those that feed only an indexer one of their own. An rms_norm of whole rows
    belongs to the linears that read it: to the first stage by its attribute, repeated in the prologues of the
    others. Another norm is a map, with the rope of the same heads, append or adds behind it; so is a weighted sum
    with its adds. A norm or rope of heads that only one attention reads, as queries or keys, belongs to that attention,
    with its append.
    Scores of a state's keys are a contract, top_k and router selects.

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
        if not sampled or any(op is None or name_of(op) != "graph.sample" for op in sampled):
            raise _refuse(end, "the function returns something else than a token", "sample it")
        numbers = _put_numbers(matcher.stages())
        for norm in matcher.prologues:
            first = min(numbers[reader.results[0]] for reader in readers(norm.results[0]))
            put(norm, stage=first, stage_kind="contract")


def in_prologue(norm: Any) -> bool:
    """Whether a norm belongs to the contracts that read it: rms_norm of whole rows, read by contracts only."""
    if (
        name_of(norm) != "graph.rms_norm"
        or shape_of(norm.operands[1]) != shape_of(norm.results[0])[1:]
    ):
        return False
    value = norm.results[0]
    found = readers(value)
    return bool(found) and all(name_of(r) in LINEARS and r.operands[0] == value for r in found)


def turns_in_tiles(rope: Any) -> bool:
    """Whether an epilogue can rotate: halves whose pairs fill tiles; otherwise a map does."""
    owner = producer(rope.operands[0])
    size, turned = get(rope, "head_size"), 2 * (shape_of(rope.operands[2])[0] or 0)
    return (
        get(rope, "style") == "half"
        and turned % TILE_ROWS == 0
        and (size - turned) % TILE_ROWS == 0
        and get(rope, "offset", 0) % TILE_ROWS == 0
        and owner is not None
        and name_of(owner) == "graph.linear"
    )


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
        return (self.linears[0].operands[0], _feeds(self.value) == {"graph.index_scores"})


def _feeds(value: Any) -> set[str]:
    """The operations behind a value that begin stages of their own, through norms, ropes and appends."""
    found: set[str] = set()
    for op in readers(value):
        name = name_of(op)
        if name in (*NORMS, "graph.rope", "graph.append"):
            found |= _feeds(op.results[0])
        else:
            found.add(name)
    return found


class _Matcher:
    """Grows stages in program order. `ends`: stages by the value that they end in so far."""

    def __init__(self, tokens: Any, positions: Any) -> None:
        self.tokens, self.positions = tokens, positions
        self.ends: dict[Any, _Stage] = {}
        self.prologues: list[Any] = []
        self.rules: dict[str, Callable[[int, Any], None]] = {
            "graph.embedding": self._embedding,
            **dict.fromkeys(NORMS, self._norm),
            **dict.fromkeys(LINEARS, self._linear),
            "graph.rope": self._rope,
            "graph.append": self._append,
            "graph.glu": self._glu,
            **dict.fromkeys(ELEMENTWISE, self._elementwise),
            "graph.add": self._add,
            "graph.weighted_sum": self._weighted_sum,
            **dict.fromkeys(ATTENDS, self._attention),
            "graph.index_scores": self._index_scores,
            **dict.fromkeys(SELECTS, self._select),
        }

    def take(self, index: int, op: Any) -> None:
        """Put operation number `index` into a stage."""
        rule = self.rules.get(name_of(op))
        if rule is None:
            hint = f"supported: {', '.join(self.rules)}"
            if name_of(op) == "graph.mla_attention":
                hint = "run absorb-latents first: old rows cannot be expanded in every step"
            raise _refuse(op, f"no stage takes {name_of(op)}", hint)
        rule(index, op)

    def _embedding(self, index: int, op: Any) -> None:
        owner = producer(op.operands[1])
        chosen = owner is not None and name_of(owner) == "graph.sample"
        if op.operands[1] != self.tokens and not chosen:
            raise _refuse(
                op,
                "an embedding of other tokens than the step's",
                "look up argument 0, or what graph.sample chose",
            )
        self._alone("map", index, op)

    def _norm(self, index: int, op: Any) -> None:
        if in_prologue(op):
            self.prologues.append(op)
        elif op.operands[0] in self.ends:
            self._alone("map", index, op)
        else:
            raise _refuse(op, f"{name_of(op)} reads inside a stage: {_origin(op.operands[0])}")

    def _linear(self, index: int, op: Any) -> None:
        self.ends[op.results[0]] = _Stage("contract", index, [op], op.results[0], [op])

    def _rope(self, index: int, op: Any) -> None:
        self._placed(op, 1)
        stage = self.ends.get(op.operands[0])
        if stage is not None and _norm_of_heads(stage, op) and _only(op, op.operands[0]):
            self._extend(stage, op)
        elif turns_in_tiles(op):
            self._extend(self._before(op, op.operands[0]), op)
        elif stage is not None:
            self._alone("map", index, op)
        else:
            raise _refuse(op, f"graph.rope follows no stage: {_origin(op.operands[0])}")

    def _append(self, _index: int, op: Any) -> None:
        self._placed(op, 2)
        state, x, _ = op.operands
        owner = producer(state)
        once = owner is not None and name_of(owner) in ("graph.state", "graph.append")
        if not once or len(readers(state)) != 1:
            raise _refuse(op, "a state with several readers", "append once to a state, then read")
        _check_once(op)
        stage = self.ends.get(x)
        mapped = stage is not None and stage.kind == "map" and "graph.embedding" not in stage.names
        if stage is None or stage.gated or not (stage.linears or mapped):
            raise _refuse(op, f"graph.append follows no linear: {_origin(x)}")
        stage.ops.append(op)

    def _glu(self, _index: int, op: Any) -> None:
        gate, up = (self._before(op, value) for value in op.operands)
        if gate is up or len(gate.ops + up.ops) != 2:
            raise _refuse(op, "gate and up are no two linears")
        one, other = gate.linears[0], up.linears[0]
        read = [list(one.operands)[:1] + list(one.operands)[2:] for one in (one, other)]
        if read[0][0] != read[1][0] or name_of(one) != name_of(other):
            raise _refuse(op, "gate and up read different values")
        gate.ops, gate.linears = gate.ops + up.ops, gate.linears + up.linears
        del self.ends[up.value]
        self._extend(gate, op)

    def _elementwise(self, _index: int, op: Any) -> None:
        self._extend(self._before(op, op.operands[0]), op)

    def _add(self, _index: int, op: Any) -> None:
        """A sum or a norm that is a map takes it, else the latest linear: the other summand is there before."""
        ends = [self.ends[v] for v in op.operands if v in self.ends and _only(op, v)]
        maps = [stage for stage in ends if stage.names & {"graph.weighted_sum", *NORMS}]
        linears = [
            s
            for s in ends
            if s.linears and not s.gated and s.names <= {"graph.linear", "graph.add", *ELEMENTWISE}
        ]
        hosts = maps or linears
        if not hosts or op.operands[0] == op.operands[1]:
            what = " and ".join(_origin(v) for v in op.operands)
            raise _refuse(op, f"graph.add follows no linear of its own: {what}")
        self._extend(max(hosts, key=lambda stage: stage.first), op)

    def _weighted_sum(self, index: int, op: Any) -> None:
        x, weights = op.operands
        stage, owner = self.ends.get(x), producer(weights)
        if stage is None or stage.names != {"graph.expert_linear"} or readers(x) != [op]:
            raise _refuse(
                op, f"a weighted sum of no experts' values: {_origin(x)}", "expert_linear"
            )
        routing = producer(stage.linears[0].operands[1])
        if owner is None or name_of(owner) != "graph.router" or routing != owner:
            raise _refuse(
                op, f"weights of another routing: {_origin(weights)}", "one router's results"
            )
        self._alone("map", index, op)

    def _attention(self, index: int, op: Any) -> None:
        self._placed(op, 3)
        for state in states_of(op):
            owner = producer(state)
            if owner is None or name_of(owner) != "graph.append":
                raise _refuse(op, "attention over a state without the step's row", "append first")
        heads = self._heads(op) if name_of(op) == "graph.attention" else []
        for stage in heads:
            del self.ends[stage.value]
        self._alone("attend", index, *(o for stage in heads for o in stage.ops), op)

    def _heads(self, attention: Any) -> list[_Stage]:
        """Maps of heads that only this attention reads, as queries or through an append as keys: it does their work."""
        size, (q, k, *_) = get(attention, "head_size"), attention.operands
        found = []
        for value, last in ((q, q), *((append.operands[1], k) for append in appends_of(k))):
            stage = self.ends.get(value)
            if stage is None or not stage.names <= {"graph.rms_norm", "graph.rope", "graph.append"}:
                continue
            inside = all(r == attention or r in stage.ops for r in readers(value))
            if inside and readers(last) == [attention] and _head_size(stage.ops[0]) == size:
                found.append(stage)
        return found

    def _index_scores(self, index: int, op: Any) -> None:
        self._placed(op, 3)
        owner = producer(op.operands[2])
        if owner is None or name_of(owner) != "graph.append":
            raise _refuse(op, "scores of a state without the step's row", "append first")
        self._alone("contract", index, op)

    def _select(self, index: int, op: Any) -> None:
        if name_of(op) != "graph.top_k":
            self._before(op, op.operands[0])
        self._alone("select", index, op)
        for value in list(op.results)[1:]:
            self.ends[value] = self.ends[op.results[0]]

    def _alone(self, kind: str, index: int, *ops: Any) -> None:
        value = ops[-1].results[0]
        self.ends[value] = _Stage(kind, index, list(ops), value)

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
        """Stages in an order in which each reads only earlier ones; linears on the same values together."""
        groups: dict[Any, list[_Stage]] = {}
        for stage in sorted(_distinct(self.ends.values()), key=lambda stage: stage.first):
            groups.setdefault(stage.group, []).append(stage)
        members = list(groups.values())
        number = {id(s): n for n, group in enumerate(members) for s in group}
        graph = nx.DiGraph()
        graph.add_nodes_from(range(len(members)))
        for n, stage in ((n, stage) for n, group in enumerate(members) for stage in group):
            for op in stage.ops:
                graph.add_edges_from((number[id(self.ends[v])], n) for v in self._read(op, stage))
        order = nx.lexicographical_topological_sort(graph, key=lambda n: members[n][0].first)
        return [members[n] for n in order]

    def _read(self, op: Any, stage: _Stage) -> list[Any]:
        """The values that an operation of a stage reads from stages' ends."""
        found = []
        inside = [o.results[0] for o in stage.ops]
        for value in (v for operand in op.operands for v in through(operand, op)):
            owner = producer(value)
            if owner is None or name_of(owner) in DECLARATIONS or value in inside:
                continue
            if value not in self.ends:
                raise _refuse(op, f"{name_of(op)} reads inside a stage: {_origin(value)}")
            found.append(value)
        return found


def _norm_of_heads(stage: _Stage, rope: Any) -> bool:
    """Whether a stage is a norm over the heads that a rope turns: a map's row is one of them."""
    norm, size = stage.ops[0], get(rope, "head_size")
    return name_of(norm) in NORMS and shape_of(norm.operands[1]) == [size]


def _head_size(op: Any) -> int:
    """Values of a row of a map that a norm or a rope begins."""
    return int(get(op, "head_size") or shape_of(op.operands[1])[0] or 0)


def _distinct(stages: Iterable[_Stage]) -> list[_Stage]:
    """Each stage once."""
    return list({id(stage): stage for stage in stages}.values())


def through(value: Any, reader: Any) -> list[Any]:
    """The values that a reader of `value` waits for: behind a prologue's norm, behind appends to a state."""
    owner = producer(value)
    if owner is not None and name_of(owner) in NORMS and in_prologue(owner):
        return [owner.operands[0]]
    if owner is not None and name_of(owner) == "graph.append":
        if name_of(reader) == "graph.append":
            return []
        return [append.operands[1] for append in appends_of(value)]
    return [value]


def appends_of(state: Any) -> list[Any]:
    """The appends that made a state's value, in the order of the values that they wrote."""
    found = []
    owner = producer(state)
    while owner is not None and name_of(owner) == "graph.append":
        found.append(owner)
        owner = producer(owner.operands[0])
    return sorted(found, key=lambda append: int(get(append, "offset", 0)))


def _check_once(append: Any) -> None:
    """Raises TileirError if an append writes values of a state's row that another has written in the step."""
    taken = []
    for op in appends_of(append.results[0]):
        first = get(op, "offset", 0)
        width = (shape_of(op.operands[1])[-1] or 0) // (shape_of(op.operands[0])[0] or 1)
        taken.append((first, first + width))
    for (_, behind), (first, last) in pairwise(taken):
        if first < behind:
            what = f"values {first} … {min(behind, last) - 1} of a state's row are appended twice"
            raise _refuse(append, what, "append each value of a row once")


def states_of(op: Any) -> list[Any]:
    """The states that an attention reads: k and v, or latents."""
    return [v for v in op.operands if len(shape_of(v)) == 3]


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
