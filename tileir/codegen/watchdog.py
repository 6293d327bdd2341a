"""The watchdog role: one thread that ends a block which has stopped, and with it the launch.

It looks at the heart that consumers move at each row, and at the launch's abort word, which other blocks and the host
set. Every wait of the block looks at the dead flag that it raises.
"""

from typing import Any

from tileir.codegen import builder as b
from tileir.codegen.kernel import DEAD, FINISHED, HEART, LOADED, Kernel

Value = Any
SLEEP_NS = 2000


def watchdog(k: Kernel) -> None:
    """Until consumers and loaders have ended, or the block is dead."""

    def word(offset: int) -> Value:
        return b.load("i32", b.at(k.scratch, None, offset), 4, volatile_=True)

    def more(_heart: Value, _since: Value, go: Value) -> Value:
        return go

    def look(heart: Value, since: Value, _go: Value) -> list[Value]:
        b.nanosleep(SLEEP_NS)
        seen, now = word(HEART), b.clock()
        since = b.select(b.eq(seen, heart), since, now)
        late = b.uge(now - since, k.arg["limit"])
        abort = k.arg["control"]
        b.if_(late, lambda: b.store(b.const(1), abort, 4, **b.RELAXED))
        stop = late | b.ne(b.load("i32", abort, 4, **b.RELAXED), 0)
        flag = b.at(k.scratch, None, DEAD)
        b.if_(stop, lambda: b.store(b.const(1), flag, 4, volatile_=True))
        ended = b.ne(word(FINISHED) & word(LOADED) & word(LOADED + 4), 0)
        return [seen, since, b.negate(stop | ended)]

    b.while_([word(HEART), b.clock(), b.const(True, "i1")], more, look)
