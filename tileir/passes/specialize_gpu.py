"""specialize-gpu: split the node into GPU roles."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from math import prod
from typing import Any, ClassVar

from tileir.dialect.attributes import get, name_of, put, shape_of, static_shape
from tileir.dialect.tile import HALF_ROWS, TILE_ROWS
from tileir.errors import TileirError
from tileir.passes.base import Pass
from tileir.passes.chains import ATTENDS, ELEMENTWISE, LINEARS
from tileir.passes.dataflow import (
    DECLARATIONS,
    decided,
    operations,
    producer,
    readers,
    row_size,
    step_function,
)
from tileir.passes.segments import weight_of
from tileir.scheduling.cost import ELEMENT_BYTES, usual_rows
from tileir.scheduling.placement import Work, candidates
from tileir.target import find_target

INDEX = ("graph.index_scores", "graph.top_k")
# What keeps the order of heads, so that a GPU's heads stay its heads.
BY_HEADS = ("graph.rms_norm", "graph.rope", "graph.append", "graph.grouped_linear")


@dataclass(frozen=True)
class SpecializeGpuPass(Pass):
    """Place every stage on GPUs.

    Before: graph level with stages. After: every op of a stage has `devices`, the GPUs that run it, and on several
    GPUs `share`, what each does of it: "all", or "rows" or "sum" with `parts`, the bounds of the GPUs' ranges in
    `units` (heads, experts, tiles). `placement` names a candidate, else the cheapest for `target` is taken:
    "tensor-parallel", "replicated-attention", "indexer-apart". `print-candidates` writes the priced candidates to
    stderr.

        "graph.linear"(…) {stage = 4, stage_kind = "contract"}
        →
        "graph.linear"(…) {stage = 4, stage_kind = "contract", devices = array<i64: 0, 1, 2>, share = "rows",
                           units = 4, parts = array<i64: 0, 2, 3, 4>}
    """

    name: ClassVar[str] = "specialize-gpu"
    before: ClassVar[str] = "graph"
    after: ClassVar[str] = "graph"

    devices: int = 1
    target: str = "h100"
    placement: str = ""
    print_candidates: bool = False

    def run(self, module: Any) -> None:
        """Put the attributes. Raises TileirError for a placement that is no candidate."""
        if self.devices < 1:
            raise TileirError(f"{self.devices} devices", hint="one GPU or more: devices=2")
        target = find_target(self.target)
        ops = [o for o in operations(step_function(module))[:-1] if name_of(o) not in DECLARATIONS]
        stages: dict[int, list[Any]] = {}
        for op in ops:
            stages.setdefault(decided(op, "stage", "graph-fuse"), []).append(op)
        context = decided(module, "tileir.context", "the importer")
        work = [_work(members, context, self.devices) for members in stages.values()]
        tiles = min((w.units for w in work if w.role == "vocabulary"), default=self.devices)
        if tiles < self.devices:
            raise TileirError(
                f"{self.devices} devices share a vocabulary of {tiles} tiles of {TILE_ROWS}",
                hint=f"each has a part of the head: devices={tiles} or fewer",
            )
        found = {c.name: c for c in candidates(work, self.devices, target)}
        if self.print_candidates:
            print(*found.values(), sep="\n", file=sys.stderr)
        best = min(found.values(), key=lambda c: c.us)
        if self.placement:
            best = found.get(self.placement) or self._unknown(list(found))
        for members, share in zip(stages.values(), best.shares, strict=True):
            facts: dict[str, Any] = {"devices": share.devices}
            if self.devices > 1:
                facts["share"] = share.how
            if share.parts:
                facts |= {"units": share.units, "parts": share.parts}
            for op in members:
                put(op, **facts)

    def _unknown(self, names: list[str]) -> Any:
        near = get_close_matches(self.placement, names, n=1)
        guess = f"did you mean {near[0]!r}? " if near else ""
        raise TileirError(
            f"no placement {self.placement!r} of this model on {self.devices} GPUs",
            hint=f"{guess}candidates: {', '.join(names)}",
        )


def _work(members: list[Any], context: int, devices: int) -> Work:
    """What a stage is, for placing it."""
    names = {name_of(op) for op in members}
    linears = [op for op in members if name_of(op) in LINEARS]
    size = ELEMENT_BYTES * sum(_weight_values(op) for op in linears)
    attends = [op for op in members if name_of(op) in ATTENDS]
    if attends:
        (op,) = attends
        rows = usual_rows(context, get(op, "window", 0))
        values = sum(prod(s[0::2]) for s in (static_shape(v) for v in op.operands if _is_state(v)))
        units = _units(op, devices)
        return Work("heads" if units > 1 else "all", units, ELEMENT_BYTES * rows * values, hops=2)
    if names & set(INDEX):
        rows = (
            usual_rows(context, 0) * static_shape(members[0].operands[2])[2]
            if "graph.index_scores" in names
            else 0
        )
        return Work("index", 1, ELEMENT_BYTES * rows)
    if "graph.expert_linear" in names:
        experts, *_ = static_shape(weight_of(linears[0]))
        slots = row_size(linears[0].operands[1])
        return Work("experts", experts, size / experts * slots)
    if linears and "graph.sample" in _next(members):
        return Work("vocabulary", -(-static_shape(weight_of(linears[0]))[0] // TILE_ROWS), size)
    role, units = _role(members, linears, devices)
    return Work(role, units, size)


def _weight_values(linear: Any) -> int:
    return prod(static_shape(weight_of(linear)))


def _is_state(value: Any) -> bool:
    return len(shape_of(value)) == 3


def _next(members: list[Any]) -> set[str]:
    """The operations that read what a stage makes."""
    return {name_of(r) for op in members for value in op.results for r in readers(value)}


def _units(attend: Any, devices: int) -> int:
    """Into how many equal units the heads of an attention can be shared out; 1: not at all."""
    if name_of(attend) == "graph.attention":
        return int(get(attend, "kv_heads"))
    heads = int(get(attend, "heads"))
    return devices if heads % devices == 0 else heads


def _role(members: list[Any], linears: list[Any], devices: int) -> tuple[str, int]:
    """The role of a stage that is no attention, no expert and no head."""
    ends = [op for op in members if any(r not in members for v in op.results for r in readers(v))]
    feeds = [attend for op in ends for attend in _attends_behind(op)]
    if ends and _only_index(ends):
        return "index", 1
    whole = not linears and any(not _by_heads(op) for op in members)
    if feeds and not whole and all(_headed(op, devices) for op in ends):
        return "heads", _units(feeds[0], devices)
    if linears and name_of(linears[0]) != "graph.expert_linear":
        before = _attend_before(linears[0].operands[0])
        raw = _is_raw(linears[0])
        if before is not None and _units(before, devices) > 1:
            if name_of(linears[0]) == "graph.grouped_linear":
                return "heads", _units(before, devices)
            if len(linears) == 1 and raw:
                return "heads sum", _units(before, devices)
        glu = next((op for op in members if name_of(op) == "graph.glu"), None)
        if glu is not None and name_of(linears[0]) == "graph.linear" and _summed(glu):
            return "columns", _columns(glu)
        source = producer(linears[0].operands[0])
        if source is not None and name_of(source) == "graph.glu" and _summed(source):
            return "columns sum", _columns(source)
    return "all", 1


def _columns(glu: Any) -> int:
    return row_size(glu.results[0]) // HALF_ROWS


def _summed(glu: Any) -> bool:
    """Whether a gated unit of whole tiles feeds one plain linear, whose sum can be cut with it."""
    after = readers(glu.results[0])
    rows = row_size(glu.results[0])
    plain = [r for r in after if name_of(r) == "graph.linear" and _is_raw(r)]
    return len(after) == len(plain) == 1 and rows % HALF_ROWS == 0


def _is_raw(linear: Any) -> bool:
    """Whether partial sums of a linear can be added later: sums may follow, no bias and nothing else."""
    follow = readers(linear.results[0])
    return len(list(linear.operands)) == 2 and all(name_of(r) not in ELEMENTWISE for r in follow)


def _attends_behind(op: Any) -> Iterator[Any]:
    """The attentions that a value reaches, by heads."""
    for value in op.results:
        for reader in readers(value):
            if name_of(reader) in ATTENDS:
                yield reader
            elif _by_heads(reader):
                yield from _attends_behind(reader)


def _by_heads(op: Any) -> bool:
    """Whether an operation keeps the order of heads and treats each by itself: a norm of whole rows does not."""
    if name_of(op) != "graph.rms_norm":
        return name_of(op) in BY_HEADS
    return shape_of(op.operands[1])[0] != row_size(op.results[0])


def _headed(op: Any, devices: int) -> bool:
    """Whether a value is read by heads only: as queries, or as keys and values of several kv heads."""
    for value in op.results:
        for reader in readers(value):
            name = name_of(reader)
            if name in ATTENDS:
                latent = name == "graph.latent_attention"
                queries = list(reader.operands)[: 2 if latent else 1]
                if value not in queries and (latent or get(reader, "kv_heads") == 1):
                    return False
                if _units(reader, devices) == 1:
                    return False
            elif not _by_heads(reader) or not _headed(reader, devices):
                return False
    return True


def _only_index(ends: list[Any]) -> bool:
    """Whether values reach indexers and nothing else."""
    for op in ends:
        for value in op.results:
            for reader in readers(value):
                if name_of(reader) in INDEX:
                    continue
                if name_of(reader) not in (*BY_HEADS, "graph.layer_norm") or not _only_index(
                    [reader]
                ):
                    return False
    return True


def _attend_before(value: Any) -> Any:
    """The attention whose output this is, as it is or head by head; None if it is none's."""
    owner = producer(value)
    if owner is not None and name_of(owner) == "graph.grouped_linear":
        owner = producer(owner.operands[0])
    return owner if owner is not None and name_of(owner) in ATTENDS else None
