"""specialize-block: split a GPU's SMs into tile ranges and attention splits."""

from dataclasses import dataclass
from typing import Any, ClassVar

from tileir.dialect.attributes import build, get, put, shape_of, tensor, walk
from tileir.mlir import ir
from tileir.passes.base import Pass
from tileir.scheduling.assign import ranges
from tileir.scheduling.cost import choose_splits
from tileir.target import Target, find_target


@dataclass(frozen=True)
class SpecializeBlockPass(Pass):
    """Fit tile spaces to the target's SMs.

    Before: tile level. After: no contract gives an SM more than 16 tiles (a longer one becomes ranges that fill the
    same channel, or candidates of their own), attention has as many splits as the cost model wants, and candidates
    one record an SM. The module knows its `tileir.target`.

        "tile.contract"(%x) … {tiles = 3072}  →  … {tile_base = 0, tiles = 1536} and {tile_base = 1536, tiles = 1536}
    """

    name: ClassVar[str] = "specialize-block"
    before: ClassVar[str] = "tile"
    after: ClassVar[str] = "tile"

    target: str = "h100"

    def run(self, module: Any) -> None:
        """Rewrite contracts, attends and select. Raises TileirError for an unknown target."""
        target = find_target(self.target)
        put(module.operation, **{"tileir.target": target.name})
        for op in list(walk(module, "tile.attend")):
            _split_attention(op, target, get(module, "tileir.context", 0))
        for op in list(walk(module, "tile.contract")):
            _fit(op, target)


def _split_attention(op: Any, target: Target, context: int) -> None:
    heads, kv_heads, size = (get(op, n) for n in ("heads", "kv_heads", "head_size"))
    splits = choose_splits(target, kv_heads, size, context)
    put(op, splits=splits)
    tokens = shape_of(op.results[0])[0]
    op.results[0].set_type(tensor([tokens, heads, splits, size + 2], "f32", "channel"))


def _fit(op: Any, target: Target) -> None:
    candidates = bool(list(walk(op, "tile.candidate")))
    if candidates:
        tokens = shape_of(op.results[0])[0]
        op.results[0].set_type(tensor([tokens, target.sms, 2], "i32", "channel"))
    parts = ranges(get(op, "tiles"), target.sms)
    made = [op.results[0]]
    users = [use.owner for use in op.results[0].uses]
    for first, count in parts[1:]:
        with ir.InsertionPoint(op), op.location:
            made.append(_range(op, made[-1], first, count, candidates).results[0])
    put(op, tile_base=0, tiles=parts[0][1])
    _in_order(op, made)
    if len(made) > 1:
        for user in users:
            _read(user, op.results[0], made, candidates)


def _range(op: Any, into: Any, first: int, count: int, candidates: bool) -> Any:
    """A copy of the contract for another range of its tiles."""
    copy = op.operation.clone()
    operands = [op.operands[0]] if candidates else [op.operands[0], into]
    facts = {n: a for n, a in copy.attributes.items() if n not in ("tile_base", "tiles")}
    result = [op.results[0].type]
    made = build("tile.contract", operands, result, 2, tile_base=first, tiles=count, **facts)
    for i in (0, 1):
        copy.regions[i].blocks[0].append_to(made.regions[i])
    copy.erase()
    return made


def _in_order(op: Any, made: list[Any]) -> None:
    """The first range, which is the original, goes before the others."""
    if len(made) > 1:
        op.operation.move_before(made[1].owner)


def _read(user: Any, old: Any, made: list[Any], candidates: bool) -> None:
    """A reader of a split contract reads the last range, or the candidates of all."""
    if not candidates:
        user.operation.replace_uses_of_with(old, made[-1])
        return
    with ir.InsertionPoint(user), user.location:
        facts = dict(user.attributes.items())
        new = build("tile.select", made, [user.results[0].type], **facts)
    user.results[0].replace_all_uses_with(new.results[0])
    user.operation.erase()

