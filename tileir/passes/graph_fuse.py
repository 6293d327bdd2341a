"""graph-fuse: group graph operations into stages."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from tileir.dialect.attributes import get, name_of, put
from tileir.passes.base import Pass
from tileir.passes.chains import (
    ATTENDS,
    ELEMENTWISE,
    LINEARS,
    NORMS,
    appends_of,
    check_once,
    head_size,
    in_prologue,
    only_reader,
    origin,
    refuse,
    states_of,
    turns_in_tiles,
)
from tileir.passes.dataflow import DECLARATIONS, operations, producer, readers, step_function
from tileir.passes.fuse_stages import Stage, norm_of_heads, ordered, put_numbers

SELECTS = ("graph.sample", "graph.router", "graph.top_k")


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
            raise refuse(end, "the function returns something else than a token", "sample it")
        numbers = put_numbers(ordered(matcher.ends))
        for norm in matcher.prologues:
            first = min(numbers[reader.results[0]] for reader in readers(norm.results[0]))
            put(norm, stage=first, stage_kind="contract")


class _Matcher:
    """Grows stages in program order. `ends`: stages by the value that they end in so far."""

    def __init__(self, tokens: Any, positions: Any) -> None:
        self.tokens, self.positions = tokens, positions
        self.ends: dict[Any, Stage] = {}
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
            raise refuse(op, f"no stage takes {name_of(op)}", hint)
        rule(index, op)

    def _embedding(self, index: int, op: Any) -> None:
        owner = producer(op.operands[1])
        chosen = owner is not None and name_of(owner) == "graph.sample"
        if op.operands[1] != self.tokens and not chosen:
            raise refuse(
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
            raise refuse(op, f"{name_of(op)} reads inside a stage: {origin(op.operands[0])}")

    def _linear(self, index: int, op: Any) -> None:
        self.ends[op.results[0]] = Stage("contract", index, [op], op.results[0], [op])

    def _rope(self, index: int, op: Any) -> None:
        self._placed(op, 1)
        stage = self.ends.get(op.operands[0])
        if stage is not None and norm_of_heads(stage, op) and only_reader(op, op.operands[0]):
            self._extend(stage, op)
        elif turns_in_tiles(op):
            self._extend(self._before(op, op.operands[0]), op)
        elif stage is not None:
            self._alone("map", index, op)
        else:
            raise refuse(op, f"graph.rope follows no stage: {origin(op.operands[0])}")

    def _append(self, _index: int, op: Any) -> None:
        self._placed(op, 2)
        state, x, _ = op.operands
        owner = producer(state)
        once = owner is not None and name_of(owner) in ("graph.state", "graph.append")
        if not once or len(readers(state)) != 1:
            raise refuse(op, "a state with several readers", "append once to a state, then read")
        check_once(op)
        stage = self.ends.get(x)
        mapped = stage is not None and stage.kind == "map" and "graph.embedding" not in stage.names
        if stage is None or stage.gated or not (stage.linears or mapped):
            raise refuse(op, f"graph.append follows no linear: {origin(x)}")
        stage.ops.append(op)

    def _glu(self, _index: int, op: Any) -> None:
        gate, up = (self._before(op, value) for value in op.operands)
        if gate is up or len(gate.ops + up.ops) != 2:
            raise refuse(op, "gate and up are no two linears")
        one, other = gate.linears[0], up.linears[0]
        read = [list(one.operands)[:1] + list(one.operands)[2:] for one in (one, other)]
        if read[0][0] != read[1][0] or name_of(one) != name_of(other):
            raise refuse(op, "gate and up read different values")
        gate.ops, gate.linears = gate.ops + up.ops, gate.linears + up.linears
        del self.ends[up.value]
        self._extend(gate, op)

    def _elementwise(self, _index: int, op: Any) -> None:
        self._extend(self._before(op, op.operands[0]), op)

    def _add(self, _index: int, op: Any) -> None:
        """A sum or a norm that is a map takes it, else the latest linear: the other summand is there before."""
        ends = [self.ends[v] for v in op.operands if v in self.ends and only_reader(op, v)]
        maps = [stage for stage in ends if stage.names & {"graph.weighted_sum", *NORMS}]
        linears = [
            s
            for s in ends
            if s.linears and not s.gated and s.names <= {"graph.linear", "graph.add", *ELEMENTWISE}
        ]
        hosts = maps or linears
        if not hosts or op.operands[0] == op.operands[1]:
            what = " and ".join(origin(v) for v in op.operands)
            raise refuse(op, f"graph.add follows no linear of its own: {what}")
        self._extend(max(hosts, key=lambda stage: stage.first), op)

    def _weighted_sum(self, index: int, op: Any) -> None:
        x, weights = op.operands
        stage, owner = self.ends.get(x), producer(weights)
        if stage is None or stage.names != {"graph.expert_linear"} or readers(x) != [op]:
            raise refuse(op, f"a weighted sum of no experts' values: {origin(x)}", "expert_linear")
        routing = producer(stage.linears[0].operands[1])
        if owner is None or name_of(owner) != "graph.router" or routing != owner:
            raise refuse(
                op, f"weights of another routing: {origin(weights)}", "one router's results"
            )
        self._alone("map", index, op)

    def _attention(self, index: int, op: Any) -> None:
        self._placed(op, 3)
        for state in states_of(op):
            owner = producer(state)
            if owner is None or name_of(owner) != "graph.append":
                raise refuse(op, "attention over a state without the step's row", "append first")
        heads = self._heads(op) if name_of(op) == "graph.attention" else []
        for stage in heads:
            del self.ends[stage.value]
        self._alone("attend", index, *(o for stage in heads for o in stage.ops), op)

    def _heads(self, attention: Any) -> list[Stage]:
        """Maps of heads that only this attention reads, as queries or through an append as keys: it does their work."""
        size, (q, k, *_) = get(attention, "head_size"), attention.operands
        found = []
        for value, last in ((q, q), *((append.operands[1], k) for append in appends_of(k))):
            stage = self.ends.get(value)
            if stage is None or not stage.names <= {"graph.rms_norm", "graph.rope", "graph.append"}:
                continue
            inside = all(r == attention or r in stage.ops for r in readers(value))
            if inside and readers(last) == [attention] and head_size(stage.ops[0]) == size:
                found.append(stage)
        return found

    def _index_scores(self, index: int, op: Any) -> None:
        self._placed(op, 3)
        owner = producer(op.operands[2])
        if owner is None or name_of(owner) != "graph.append":
            raise refuse(op, "scores of a state without the step's row", "append first")
        self._alone("contract", index, op)

    def _select(self, index: int, op: Any) -> None:
        if name_of(op) != "graph.top_k":
            self._before(op, op.operands[0])
        self._alone("select", index, op)
        for value in list(op.results)[1:]:
            self.ends[value] = self.ends[op.results[0]]

    def _alone(self, kind: str, index: int, *ops: Any) -> None:
        value = ops[-1].results[0]
        self.ends[value] = Stage(kind, index, list(ops), value)

    def _placed(self, op: Any, operand: int) -> None:
        if op.operands[operand] != self.positions:
            raise refuse(op, f"{name_of(op)} at other positions than the step's", "use argument 1")

    def _before(self, op: Any, value: Any) -> Stage:
        """The stage of linears that ends in a value which nobody but `op` takes further."""
        stage = self.ends.get(value)
        if stage is None or not stage.linears or stage.gated:
            raise refuse(op, f"{name_of(op)} follows no linear: {origin(value)}")
        if not only_reader(op, value):
            names = ", ".join(sorted(name_of(r) for r in readers(value) if r != op))
            raise refuse(op, f"what {name_of(op)} reads, {names} reads too")
        return stage

    def _extend(self, stage: Stage, op: Any) -> None:
        del self.ends[stage.value]
        stage.ops.append(op)
        stage.value = op.results[0]
        self.ends[stage.value] = stage
