"""Two passes of one's own, in a file of one's own; examples/add_pass.py uses them.

    tileir-opt --load-pass=examples/my_passes.py --help

An analysis at tile level, which writes down what it finds, and a change of a schedule at engine level.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from tileir.dialect.attributes import get, located, put, walk
from tileir.dialect.tile import TILE_ROWS, padded, source_of
from tileir.errors import TileirError
from tileir.passes.base import Pass
from tileir.passes.registry import register

BF16_BYTES = 2


@register
@dataclass(frozen=True)
class CountBytesPass(Pass):
    """Write on every contract how many bytes of weights it streams in a step.

    Before: tile level. After: each `tile.contract` of the tape has `tape_bytes`, and the module `example.tape_bytes`,
    their sum. Experts and rows of states are not counted: which of them are read depends on the token.

        "tile.contract"(%x) … {k = 96 : i64, tiles = 10 : i64, …}
        → {k = 96 : i64, tape_bytes = 30720 : i64, tiles = 10 : i64, …}

    limit: refuse a contract that streams more bytes than this; 0: none.
    """

    name: ClassVar[str] = "count-bytes"
    before: ClassVar[str] = "tile"
    after: ClassVar[str] = "tile"

    limit: int = 0

    def run(self, module: Any) -> None:
        """Put the attributes. Raises TileirError for a contract beyond `limit`."""
        total = 0
        for op in walk(module, "tile.contract"):
            if source_of(op) != "tape":
                continue
            count = get(op, "tiles") * TILE_ROWS * padded(get(op, "k")) * BF16_BYTES
            if self.limit and count > self.limit:
                raise TileirError(
                    f"a contract streams {count} bytes",
                    location=located(op),
                    hint=f"the limit is {self.limit}: count-bytes{{limit=…}}",
                )
            put(op, tape_bytes=count)
            total += count
        put(module.operation, **{"example.tape_bytes": total})


@register
@dataclass(frozen=True)
class SetWindowPass(Pass):
    """Let `slots` copies of every ring be on their way at once.

    Before: engine level, memory allocated. After: every `engine.ring` has this `window`; its depth stays. The
    results do not depend on it, the bandwidth does.

        "engine.ring"() {window = 3 : i64, …} → {window = 1 : i64, …}
    """

    name: ClassVar[str] = "set-window"
    before: ClassVar[str] = "engine"
    after: ClassVar[str] = "engine"

    slots: int = 1

    def run(self, module: Any) -> None:
        """Put the windows."""
        for ring in walk(module, "engine.ring"):
            put(ring, window=self.slots)
