"""graph-fuse: group graph operations into stages."""

from dataclasses import dataclass
from typing import Any, ClassVar

from tileir.dialect.attributes import located, name_of, put, walk
from tileir.errors import TileirError
from tileir.passes.base import Pass

_DECLARATIONS = ("graph.weight", "graph.constant", "graph.state")
_ROOTS = {"graph.embedding": "map", "graph.attention": "attend", "graph.sample": "select"}


@dataclass(frozen=True)
class GraphFusePass(Pass):
    """Group operations into stages: contractions with what they can take into prologue and epilogue.

    Before: graph level. After: every compute op has `stage`, numbered in program order, and `stage_kind`
    ("contract", "attend", "map" or "select"). Linears that read the same value for the same purpose (attention, a
    gated unit) share a stage; rope, append, glu and the residual add follow their linear, rms_norm its reader.

        %h = "graph.rms_norm"(%x, %w)       {stage = 1, stage_kind = "contract"}
        %q = "graph.linear"(%h, %wq)        {stage = 1, stage_kind = "contract"}
        %r = "graph.rope"(%q, …)            {stage = 1, stage_kind = "contract"}
    """

    name: ClassVar[str] = "graph-fuse"
    before: ClassVar[str] = "graph"
    after: ClassVar[str] = "graph"

    def run(self, module: Any) -> None:
        """Put the attributes. Raises TileirError for an op that no stage takes."""
        (function,) = walk(module, "func.func")
        ops = [o for o in function.regions[0].blocks[0] if name_of(o).startswith("graph.")]
        leaders: dict[Any, Any] = {}
        leader_of: dict[Any, Any] = {}
        for op in ops:
            name = name_of(op)
            if name in _DECLARATIONS or name == "graph.rms_norm":
                continue
            if name == "graph.linear":
                key = (op.operands[0], _purpose(op))
                leader = leaders.setdefault(key, op) if key[1] != "plain" else op
            elif name in _ROOTS:
                leader = op
            else:
                leader = _linear_behind(op, leader_of)
            leader_of[op.results[0]] = leader
        self._number(ops, leader_of)

    def _number(self, ops: list[Any], leader_of: dict[Any, Any]) -> None:
        numbers: dict[Any, int] = {}
        for op in ops:
            leader = leader_of.get(op.results[0])
            if leader is not None:
                number = numbers.setdefault(leader.results[0], len(numbers))
                put(op, stage=number, stage_kind=_ROOTS.get(name_of(leader), "contract"))
        for op in ops:
            if name_of(op) != "graph.rms_norm":
                continue
            readers = [use.owner for use in op.results[0].uses]
            if not readers or any(name_of(r) != "graph.linear" for r in readers):
                names = ", ".join(sorted({name_of(r) for r in readers})) or "nothing"
                raise TileirError(
                    f"rms_norm is read by {names}",
                    location=located(op),
                    hint="norms are fused into the linears that read them, and only those may",
                )
            first = min(numbers[leader_of[r.results[0]].results[0]] for r in readers)
            put(op, stage=first, stage_kind="contract")


def _purpose(linear: Any) -> str:
    """What a linear's result is for: "attention", "glu" or "plain"."""
    users = [name_of(use.owner) for use in linear.results[0].uses]
    if any(u in ("graph.rope", "graph.append", "graph.attention") for u in users):
        return "attention"
    return "glu" if "graph.glu" in users else "plain"


def _linear_behind(op: Any, leader_of: dict[Any, Any]) -> Any:
    """The leader of the stage of the linear that an elementwise op follows."""
    for value in reversed(list(op.operands)):
        leader = leader_of.get(value)
        if leader is not None and name_of(leader) == "graph.linear":
            return leader
    raise TileirError(
        f"{name_of(op)} follows no linear",
        location=located(op),
        hint="elementwise operations are fused behind the linear that makes their operand",
    )
