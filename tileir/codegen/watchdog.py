"""The watchdog role: one thread that ends a block which has stopped, and with it the launch.

It looks at the heart that consumers move at each row, and at the launch's abort word, which other blocks and the host
set. Every wait of the block that lasts looks at what it raises.

A launch that hangs ends in three parts. First every wait that lasts reports itself, and stays. When all have had the
time to, the watchdogs of all blocks copy the exchange memory, so that the host sees which packets were there. Only then
do waits let go, and warps run on to the end of their step: what they publish is nobody's concern. A launch that the
host stops does the last part alone.
"""

from typing import Any

from tileir.codegen import builder as b
from tileir.codegen.kernel import Kernel
from tileir.codegen.layout import DEAD, FINISHED, HEART, HUNG, LATE, LOADED, SLEEP_NS
from tileir.dialect.attributes import get

Value = Any
# Of a wait's 64 attempts, between two of which it does not look; an mbarrier's may last some 20 µs each.
SETTLE_NS = 4_000_000
CHUNK_BYTES, PACKET_BYTES = 256, 8


def watchdog(k: Kernel) -> None:
    """Until consumers and loaders have ended."""
    abort, ends = _control(k, k.control.abort), _control(k, k.control.ends)
    mine = b.at(ends, b.i64(k.sm) * k.control.end_bytes)

    def more(_heart: Value, _since: Value, go: Value) -> Value:
        return go

    def look(heart: Value, since: Value, _go: Value) -> list[Value]:
        b.nanosleep(SLEEP_NS)
        seen, now = _word(k, HEART), b.clock()
        since = b.select(b.eq(seen, heart), since, now)
        late = b.uge(now - since, k.arg["limit"])

        def expire() -> None:
            b.store(b.global_timer(), mine, 8)
            b.store(b.const(HUNG), abort, 4, **b.RELAXED)

        b.if_(late, expire)
        stop = b.ne(b.load("i32", abort, 4, **b.RELAXED), 0)
        return [seen, since, b.negate(stop | _ended(k))]

    b.while_([_word(k, HEART), b.clock(), b.const(True, "i1")], more, look)
    why = b.load("i32", abort, 4, **b.RELAXED)
    b.if_(b.eq(why, HUNG), lambda: _hear_all(k))

    def give_up() -> None:
        _raise(k, DEAD)
        _raise(k, LATE)
        _sleep_until(lambda: _ended(k))
        b.store(b.global_timer(), b.at(mine, None, 8), 8)

    b.if_(b.ne(why, 0), give_up)


def _hear_all(k: Kernel) -> None:
    """Let every wait report itself, then copy the exchange memory, all blocks together."""
    _raise(k, LATE)
    begin = b.global_timer()
    _sleep_until(lambda: b.uge(b.global_timer() - begin, SETTLE_NS))
    size = get(k.plan.device, "exchange_bytes")
    chunks = -(-size // CHUNK_BYTES)
    taken, copied = _control(k, k.control.taken), _control(k, k.control.copied)
    snapshot = _control(k, k.control.snapshot)

    def copy(chunk: Value) -> list[Value]:
        first = chunk * CHUNK_BYTES
        count = b.umin(b.const(size) - first, CHUNK_BYTES) // PACKET_BYTES

        def packet(i: Value) -> list[Value]:
            at = b.i64(first + i * PACKET_BYTES)
            word = b.load("i64", b.at(k.arg["exchange"], at), 8, **b.RELAXED)
            b.store(word, b.at(snapshot, at), 8)
            return []

        b.for_(b.const(0), count, [], packet)
        b.fence_gpu()
        b.add_to(copied, 1)
        return [b.add_to(taken, 1)]

    b.while_([b.add_to(taken, 1)], lambda chunk: b.ult(chunk, chunks), copy)
    _sleep_until(lambda: b.uge(b.load("i32", copied, 4, **b.RELAXED), chunks))


def _sleep_until(done: Any) -> None:
    def sleep() -> list[Value]:
        b.nanosleep(SLEEP_NS)
        return []

    b.while_([], lambda: b.negate(done()), sleep)


def _control(k: Kernel, offset: int) -> Value:
    return b.at(k.arg["control"], None, offset)


def _word(k: Kernel, offset: int) -> Value:
    return b.load("i32", b.at(k.scratch, None, offset), 4, volatile_=True)


def _raise(k: Kernel, offset: int) -> None:
    b.store(b.const(1), b.at(k.scratch, None, offset), 4, volatile_=True)


def _ended(k: Kernel) -> Value:
    return b.ne(_word(k, FINISHED) & _word(k, LOADED) & _word(k, LOADED + 4), 0)
