"""specialize-block: split a GPU's SMs into tile ranges and attention splits."""

from dataclasses import dataclass
from typing import Any, ClassVar

from tileir.dialect.attributes import build, get, put, shape_of, tensor, walk
from tileir.dialect.tile import source_of
from tileir.mlir import ir
from tileir.passes.base import Pass
from tileir.passes.dataflow import decided, readers
from tileir.passes.parts import bounds_of
from tileir.scheduling.assign import ranges
from tileir.scheduling.cost import choose_splits, usual_rows
from tileir.target import Target, find_target

# Queries of a task, bf16, in shared memory beside rings and partial sums.
QUERY_BYTES = 40 * 1024


@dataclass(frozen=True)
class SpecializeBlockPass(Pass):
    """Fit tile spaces to the target's SMs.

    Before: tile level. After: no contract gives an SM more than 16 tiles: a longer one has become
    ranges of its tile space, as equal as possible. Each takes the channel of the one before as
    `into` and goes on filling it; ranges that make candidates have a channel each, and select reads
    all. Attention has groups whose queries fit an SM, and as many splits as the cost model finds cheapest at half
    the context; so have scores of a state's rows. Up to `alone` old rows are one split's, which then needs no combine;
    of more, only as many splits take some as get `least` rows each. Attention and its combine both know these numbers.
    Candidates are one record an SM of every GPU. The module knows its
    `tileir.target`.

        %g = "tile.contract"(%x) … {tile_base = 0, tiles = 3072} : (!x) -> !g
        "tile.contract"(%g) …
        →
        %a = "tile.contract"(%x) … {tile_base = 0, tiles = 1536} : (!x) -> !g
        %b = "tile.contract"(%x, %a) … {tile_base = 1536, tiles = 1536} : (!x, !g) -> !g
        "tile.contract"(%b) …
    """

    name: ClassVar[str] = "specialize-block"
    before: ClassVar[str] = "tile"
    after: ClassVar[str] = "tile"

    target: str = "h100"

    def run(self, module: Any) -> None:
        """Rewrite contracts, attends and select. Raises TileirError for an unknown target."""
        target = find_target(self.target)
        put(module.operation, **{"tileir.target": target.name})
        context = decided(module, "tileir.context", "the importer")
        for op in walk(module, "tile.attend"):
            _split_attention(op, target, context)
        used = {d for op in walk(module, "tile.contract") for d in get(op, "devices", [0])}
        for op in walk(module, "tile.contract"):
            _split_tiles(op, target, context, len(used))


def _split_attention(op: Any, target: Target, context: int) -> None:
    heads, kv_heads, size, value, window = (
        get(op, n) for n in ("heads", "kv_heads", "head_size", "value_size", "window")
    )
    tokens = shape_of(op.results[0])[0] or 1
    # Latents meet all queries through shared memory, kv heads through registers.
    latent = len(op.operands) == 1
    most = QUERY_BYTES // (2 * tokens * size) if latent else target.queries
    groups = next(
        g
        for g in range(get(op, "groups"), heads + 1)
        if heads % g == 0
        and g % kv_heads == 0
        and g % get(op, "units", 1) == 0
        and (heads // g <= most or g == heads)
    )
    rows, results = usual_rows(context, window), heads * (value + 2)
    splits = choose_splits(target, groups, size // 2 if latent else size, rows, results)
    # Lists of positions differ by token: whether a split takes them alone is not known from the position.
    listed = next(walk(op, "tile.gather"), None) is not None
    alone, least = (
        0 if listed else max(1, of // (2 * size * len(op.operands)))
        for of in (target.alone_bytes, target.split_bytes)
    )
    put(op, groups=groups, splits=splits, alone=alone, least=least)
    for combine in (c for reader in readers(op.results[0]) for c in walk(reader, "tile.combine")):
        put(combine, alone=alone, window=window, splits=splits, least=least)
    op.results[0].set_type(tensor([tokens, heads, splits, value + 2], "f32", "channel"))


def _split_tiles(op: Any, target: Target, context: int, devices: int) -> None:
    if source_of(op) == "rows":
        put(op, splits=choose_splits(target, 1, get(op, "k"), usual_rows(context, 0)))
    if source_of(op) != "tape":
        return
    candidates = next(walk(op, "tile.candidate"), None) is not None
    whole = op.results[0]
    if candidates:
        records = [shape_of(whole)[0], devices * target.sms, 2]
        whole.set_type(tensor(records, "i32", "channel"))
    read_by = readers(whole)
    made = [op]
    if get(op, "share", "all") == "rows":
        _slices(made, target, candidates)
    else:
        (_, first), *rest = ranges(get(op, "tiles"), target.sms)
        base = get(op, "tile_base")
        put(op, tiles=first)
        for start, count in rest:
            made.append(_range(made[-1], candidates, tile_base=base + start, tiles=count))
    if len(made) == 1:
        return
    for reader in read_by:
        if candidates:
            _read_all(reader, whole, [part.results[0] for part in made])
        else:
            reader.replace_uses_of_with(whole, made[-1].results[0])


def _slices(made: list[Any], target: Target, candidates: bool) -> None:
    """Ranges of what each GPU has, the same number on all."""
    bounds = [bounds_of(made[0], get(o, "tiles")) for o in walk(made[0], "tile.segment")]
    most = max(sum(b[d + 1] - b[d] for b in bounds) for d in range(len(bounds[0]) - 1))
    count = len(ranges(most, target.sms))
    for number in range(1, count):
        made.append(_range(made[-1], candidates, slice=[number, count]))
    if count > 1:
        put(made[0], slice=[0, count])


def _range(before: Any, candidates: bool, **changes: Any) -> Any:
    """The contract's next range, behind the one before it."""
    x, channel = before.operands[0], before.results[0]
    copy = before.operation.clone()
    facts = dict(before.operation.attributes.items()) | changes
    operands = [x] if candidates else [x, channel]
    with ir.InsertionPoint(before), before.location:
        made = build("tile.contract", operands, [channel.type], 2, **facts)
    made.operation.move_after(before.operation)
    for source, region in zip(copy.regions, made.regions, strict=True):
        source.blocks[0].append_to(region)
    copy.erase()
    return made


def _read_all(select: Any, old: Any, made: list[Any]) -> None:
    """A select of the candidates of all ranges instead of one's."""
    operands = [v for value in select.operands for v in (made if value == old else [value])]
    facts = dict(select.attributes.items())
    with ir.InsertionPoint(select), select.location:
        new = build("tile.select", operands, [select.results[0].type], **facts)
    select.results[0].replace_all_uses_with(new.results[0])
    select.erase()
