"""Packets: a 32-bit payload and the 32-bit epoch it belongs to, one 8-byte access each.

The writer stores payload and epoch at once; the reader polls until the epoch matches. No fence, no counter, no
reset (hopper-facts: tagged exchange).
"""

from collections.abc import Sequence
from functools import partial, reduce
from typing import Any

from tileir.codegen import builder as b
from tileir.codegen.kernel import Kernel, Outlet
from tileir.codegen.layout import PACKET
from tileir.mlir import arith

Value = Any
PACKET_BYTES = 8


def publish_pair(k: Kernel, channel: Outlet, packet: Value, payload: Value) -> None:
    """Store a payload (i32) as packet number `packet` of a channel, in each copy, for this step's epoch."""
    word = (b.i64(k.epoch) << 32) | b.i64(payload)
    to = b.at(channel.pointer, b.i64(packet) * PACKET_BYTES)
    b.store(word, to, 8, **b.RELAXED)
    if channel.replica_bytes:
        again = b.at(to, None, channel.replica_bytes)
        b.if_(b.ne(k.constant("replicas"), 1), lambda: b.store(word, again, 8, **b.RELAXED))


def publish_float(k: Kernel, channel: Outlet, packet: Value, value: Value) -> None:
    """Store an f32 as a packet."""
    publish_pair(k, channel, packet, b.f32_to_bits(value))


def poll_pair(
    k: Kernel, channel: Value, packets: list[Value], *, together: bool = False
) -> list[Value]:
    """The payloads (i32) of packets of this step; all loads go out before any is checked.

    together: the whole warp goes on as one; needs all lanes to take part.
    """
    return poll_at(k, [(channel, p) for p in packets], together=together)


def poll_at(k: Kernel, places: list[tuple[Value, Value]], *, together: bool = False) -> list[Value]:
    """As poll_pair, for (channel, packet) places in several channels."""
    pointers = [b.at(channel, b.i64(p) * PACKET_BYTES) for channel, p in places]
    return poll(k, pointers, places[0][1], together=together)


def poll(k: Kernel, pointers: list[Value], detail: Value, *, together: bool = False) -> list[Value]:
    """As poll_pair, of packets by address; detail: what a report of a hang says of the first."""

    def attempt() -> tuple[Value, list[Value]]:
        words = _ask(pointers)
        ready = _all_came(k, words)
        return (b.vote_all(ready) if together else ready), words

    agree = b.vote_all if together else lambda go: go
    report = partial(k.report, PACKET, detail)
    types = ["i64"] * len(pointers)
    words = k.spin(attempt, types, report, agree=agree, pause=partial(_pause, k))
    return [b.i32(w) for w in words]


def poll_many(
    k: Kernel, pointers: list[Value], detail: Value, wanted: Sequence[Value] = ()
) -> list[Value]:
    """As poll, together, but who waits asks again for what has not come alone.

    Every SM asks for all values of a wide stage: asking for all of them again and again would take a part of L2's
    bandwidth from the weights. wanted: whether a pointer's packet is asked for at all, else it is 0.
    """

    def attempt(*words: Value) -> tuple[Value, list[Value]]:
        late = [b.negate(_came(k, word)) for word in words]
        words = tuple(map(b.load_if, late, pointers, words))
        return b.vote_all(_all_came(k, words)), list(words)

    def wait() -> list[Value]:
        report = partial(k.report, PACKET, detail)
        pause = partial(_pause, k)
        return k.spin(attempt, types, report, agree=b.vote_all, pause=pause, before=first)

    types = ["i64"] * len(pointers)
    if wanted:
        there = b.i64(k.epoch) << 32
        nothing = [b.select(w, b.const(0, "i64"), there) for w in wanted]
        first = list(map(b.load_if, wanted, pointers, nothing))
    else:
        first = _ask(pointers)
    words = b.if_(b.vote_all(_all_came(k, first)), lambda: first, wait, types)
    return [b.i32(w) for w in words]


def _ask(pointers: list[Value]) -> list[Value]:
    return [b.load("i64", p, 8, **b.RELAXED) for p in pointers]


def _came(k: Kernel, word: Value) -> Value:
    return b.eq(b.i32(word >> 32), k.epoch)


def _all_came(k: Kernel, words: Sequence[Value]) -> Value:
    return reduce(arith.andi, [_came(k, word) for word in words])


def _pause(k: Kernel) -> None:
    nap = k.constant("poll_sleep_ns")
    b.if_(b.ne(nap, 0), lambda: b.nanosleep(nap))
