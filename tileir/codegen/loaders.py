"""The loader roles: one thread each, copying into a ring of shared-memory slots with the bulk copy engine.

The tape loader never waits for an activation. Who loads old rows of states waits for each step's record: the tape
loader, when it comes to them, or the state loader.
"""

from collections.abc import Callable, Sequence
from typing import Any

from tileir.codegen import builder as b
from tileir.codegen.kernel import Kernel, dead
from tileir.codegen.layout import EMPTY, FINISHED, LOADED, WINDOW
from tileir.codegen.plan import Body, Ring
from tileir.dialect.attributes import get, name_of
from tileir.dialect.tile import padded
from tileir.mlir import llvm, nvvm
from tileir.scheduling.assign import fed_slots, rows_a_slot
from tileir.scheduling.rings import BLOCK_BYTES

Value = Any
# Carried from row to row: where the tape goes on, slot and parity, and the step's position once it is known.
CARRIED = ["!llvm.ptr<1>", "i32", "i32", "i32"]
NO_POSITION = -1


def tape_loader(k: Kernel) -> None:
    """Every step, every row: this SM's weight tiles, and old rows if they pass this ring, as they are consumed."""
    ring = k.plan.rings["tape"]
    start = b.at(
        k.arg["tape"], b.constant_load("i64", b.at(k.arg["tape_offsets"], b.i64(k.sm) * 8), 8)
    )

    weights = [body for body in k.plan.bodies if body.loads("tape", "engine.fill")]
    states = [body for body in k.plan.bodies if body.loads("tape", "engine.fill_rows")]

    def tiles(source: Value, slot: Value, parity: Value) -> list[Value]:
        def size(body: Body) -> list[Value]:
            op = body.role("tape")[0]
            _, count = k.share(get(op, "tiles"))
            return [count * (padded(get(op, "k")) // 32 * BLOCK_BYTES)]

        # Bodies differ in the size alone: one copy of the loop for all, for the instruction caches.
        (bytes_,) = _by_body(k, weights, size, lambda: [b.const(0)], ["i32"])
        return list(_fill(k, ring, source, bytes_, slot, parity))

    def old_rows(body: Body, parity_: Value, carried: Sequence[Value]) -> list[Value]:
        source, slot, parity, position = carried

        def receive() -> list[Value]:
            return [k.receive_record(parity_)[0]]

        first = b.eq(position, NO_POSITION)
        (k.position,) = b.if_(first, receive, lambda: [position], ["i32"])
        return [source, *_fill_states(k, ring, body, slot, parity), k.position]

    def a_step(step: Value, slot: Value, parity: Value) -> list[Value]:
        k.epoch = step + k.arg["epoch_base"] + 1

        def a_row(index: Value, *carried: Value) -> list[Value]:
            k.words, k.row = k.row_words(index), index
            began = k.loader_clock()
            found = _by_body(
                k,
                states,
                lambda body: old_rows(body, step & 1, carried),
                lambda: [*tiles(*carried[:3]), carried[3]],
                CARRIED,
            )
            k.note_loader("tape", began)
            return found

        carried = [start, slot, parity, b.const(NO_POSITION)]
        _, slot, parity, _ = b.for_(b.const(0), k.arg["rows"], carried, a_row)
        return [step + 1, slot, parity]

    def more(step: Value, _slot: Value, _parity: Value) -> Value:
        return b.both(b.ult(step, k.arg["steps"]), b.negate(_finished(k)))

    k.epoch = k.row = b.const(0)
    _, slot, parity = b.while_([b.const(0), b.const(0), b.const(1)], more, a_step)
    _drain(k, ring, slot, parity)
    b.store(b.const(1), b.at(k.scratch, None, LOADED), 4, volatile_=True)


def state_loader(k: Kernel) -> None:
    """Every step: the old rows of k and v of this SM's (kv head, split) tasks."""
    ring = k.plan.rings["state"]
    bodies = [body for body in k.plan.bodies if body.role("state")]

    def a_row(index: Value, slot: Value, parity: Value) -> list[Value]:
        k.words, k.row = k.row_words(index), index
        began = k.loader_clock()
        found = _by_body(
            k,
            bodies,
            lambda body: _fill_states(k, ring, body, slot, parity),
            lambda: [slot, parity],
            ["i32"] * 2,
        )
        k.note_loader("state", began)
        return found

    def a_step(step: Value, _stop: Value, slot: Value, parity: Value) -> list[Value]:
        k.epoch = step + k.arg["epoch_base"] + 1
        k.row = b.const(0)
        k.position, stop = k.receive_record(step & 1)
        last = b.ne(stop, 0)

        def rows() -> list[Value]:
            return b.for_(b.const(0), k.arg["rows"], [slot, parity], a_row)

        moved = b.if_(last, lambda: [slot, parity], rows, ["i32"] * 2)
        return [step + 1, stop, *moved]

    def more(_step: Value, stop: Value, _slot: Value, _parity: Value) -> Value:
        return b.both(b.eq(stop, 0), b.negate(dead(k)))

    k.epoch = k.row = b.const(0)
    zero = b.const(0)
    *_, slot, parity = b.while_([zero, zero, zero, b.const(1)], more, a_step)
    _drain(k, ring, slot, parity)
    b.store(b.const(1), b.at(k.scratch, None, LOADED + 4), 4, volatile_=True)


def split_rows(k: Kernel, op: Any, split: Value) -> tuple[Value, Value]:
    """First old row of a split at the step's position, and how many (docs/ir.md, state order)."""
    low = _first_seen(k, get(op, "window"))
    old, splits = k.position - low, used_splits(k, op)
    chunk = (old + (splits - 1)) // splits
    first = b.umin(low + split * chunk, k.position)
    last = b.umin(first + chunk, k.position)
    return first, last - first


def used_splits(k: Kernel, op: Any) -> Value:
    """How many splits an attend, or its fill, has at the step's position; the others do nothing."""
    return splits_at(k, *(get(op, n) for n in ("head_size", "splits", "window")))


def splits_at(k: Kernel, size: int, splits: int, window: int) -> Value:
    """As used_splits, of attention's own figures; it is 1 where one split is alone (docs/ir.md, attention)."""
    if splits == 1:
        return b.const(1)
    bytes_, least = (k.position - _first_seen(k, window)) * (4 * size), k.arg["split_bytes"]
    used = b.umin((bytes_ + (least - 1)) // least, b.umin(k.arg["splits"], splits))
    return b.select(is_alone(k, size, splits, window), b.const(1), used)


def alone(k: Kernel, op: Any) -> Value:
    """As is_alone, of an attend or its fill."""
    return is_alone(k, *(get(op, n) for n in ("head_size", "splits", "window")))


def is_alone(k: Kernel, size: int, splits: int, window: int) -> Value:
    """Whether one split takes all old rows at the step's position, and finishes (docs/ir.md, attention)."""
    if splits == 1:
        return b.const(True, "i1")
    old = k.position - _first_seen(k, window)
    return b.ule(old * (4 * size), k.arg["alone_bytes"])


def _first_seen(k: Kernel, window: int) -> Value:
    if not window:
        return b.const(0)
    reach = k.position + 1
    return b.select(b.ult(reach, window), 0, reach - b.umin(reach, window))


def _fill_states(k: Kernel, ring: Ring, body: Body, slot: Value, parity: Value) -> list[Value]:
    (op,) = (o for o in body.role(ring.name) if name_of(o) == "engine.fill_rows")
    splits, size = get(op, "splits"), get(op, "head_size")
    sharing = get(op, "groups") // get(op, "kv_heads")
    keys, values = (k.operand(body, v) for v in op.operation.operands)
    per_slot = rows_a_slot(ring.slot_bytes, 2, size)
    first, count = k.share(get(op, "tasks"))

    def a_task(i: Value, slot: Value, parity: Value) -> list[Value]:
        task = first + i
        row, rows = split_rows(k, op, task % splits)
        offset = (task // splits // sharing * k.plan.context + row) * (2 * size)

        def a_slot(n: Value, slot: Value, parity: Value) -> list[Value]:
            take = b.umin(rows - n * per_slot, per_slot) * (2 * size)
            from_ = b.i64(offset + n * (per_slot * 2 * size))
            parts = [(b.at(keys, from_), 0), (b.at(values, from_), ring.slot_bytes // 2)]
            return _copy(k, ring, slot, parity, parts, take)

        return b.for_(b.const(0), (rows + (per_slot - 1)) // per_slot, [slot, parity], a_slot)

    return b.for_(b.const(0), count, [slot, parity], a_task)


def _by_body(
    k: Kernel,
    bodies: list[Body],
    fill: Callable[[Body], list[Value]],
    otherwise: Callable[[], list[Value]],
    types: list[str],
) -> list[Value]:
    """fill(body) if the row's body is one of these, else otherwise()."""
    if not bodies:
        return otherwise()
    body, rest = bodies[0], bodies[1:]
    return b.if_(
        k.runs(body),
        lambda: fill(body),
        lambda: _by_body(k, rest, fill, otherwise, types),
        types,
    )


def _fill(
    k: Kernel, ring: Ring, source: Value, size: Value, slot: Value, parity: Value
) -> tuple[Value, Value, Value]:
    """`size` bytes from `source`, slot by slot, the last one maybe short."""

    def a_slot(i: Value, slot: Value, parity: Value) -> list[Value]:
        offset = i * ring.slot_bytes
        take = b.umin(size - offset, ring.slot_bytes)
        return _copy(k, ring, slot, parity, [(b.at(source, b.i64(offset)), 0)], take)

    slots = (size + (ring.slot_bytes - 1)) // ring.slot_bytes
    slot, parity = b.for_(b.const(0), slots, [slot, parity], a_slot)
    return b.at(source, b.i64(size)), slot, parity


def _copy(
    k: Kernel, ring: Ring, slot: Value, parity: Value, parts: list[tuple[Value, int]], size: Value
) -> list[Value]:
    """Wait for the slot and the window, then copy `size` bytes from each part to its place; the next slot.

    Nothing is copied, and the ring stays where it is, once the consumers take no more.
    """
    barrier = k.full(ring, slot)
    finished = _wait_unless_finished(k, k.empty(ring, slot), parity, slot)

    def go() -> list[Value]:
        _in_window(k, ring, slot, parity)
        nvvm.mbarrier_arrive_expect_tx(barrier, size * len(parts), results=[])
        for source, place in parts:
            to = b.at(k.smem, slot * ring.slot_bytes, ring.smem_offset + place)
            # An SM's own memory has the same addresses in its cluster's (PTX ISA 5.1.7); a cast would compute them.
            to = llvm.inttoptr(b.type_of("!llvm.ptr<7>"), b.pointer_bits(to))
            hint = b.const(b.EVICT_FIRST, "i64")
            nvvm.cp_async_bulk_shared_cluster_global(to, source, barrier, size, l2_cache_hint=hint)
        return list(k.advance(ring, slot, parity))

    return b.if_(finished, lambda: [slot, parity], go, ["i32", "i32"])


def _in_window(k: Kernel, ring: Ring, slot: Value, parity: Value) -> None:
    """Until the ring's window has room for one more copy: which window, says whether a quarter of the ring is free."""
    window, fed = k.windows(ring)
    if not ring.narrows:
        _landed(k, ring, slot, parity, window)
        return
    ahead = slot + fed_slots(ring.slots)
    wrap = b.i32(b.uge(ahead, ring.slots))
    hungry = nvvm.mbarrier_test_wait(
        k.empty(ring, ahead - wrap * ring.slots), parity ^ wrap, results=[b.type_of("i1")]
    )
    _landed(k, ring, slot, parity, b.select(hungry, window, b.umin(fed, window)))


def _landed(k: Kernel, ring: Ring, slot: Value, parity: Value, window: Value) -> None:
    """Until the copy of `window` slots ago has landed; before there was one, a fresh barrier says yes."""
    wrap = b.i32(b.ult(slot, window))
    behind = slot - window + wrap * ring.slots
    k.wait(k.full(ring, behind), parity ^ wrap ^ 1, WINDOW, slot)


def _drain(k: Kernel, ring: Ring, slot: Value, parity: Value) -> None:
    """The block must outlive the copies into it."""
    k.epoch = k.row = b.const(0)

    def a_slot(_n: Value, slot: Value, parity: Value) -> list[Value]:
        _landed(k, ring, slot, parity, b.const(ring.slots))
        return list(k.advance(ring, slot, parity))

    # All of a lap: windows change, and copies land in any order.
    b.for_(b.const(0), b.const(ring.slots), [slot, parity], a_slot)


def _finished(k: Kernel) -> Value:
    flags = b.load("vector<2xi32>", b.at(k.scratch, None, FINISHED - 4), 4, volatile_=True)
    stopped, gone = b.elements(flags, 2)
    return b.ne(stopped | gone, 0)


def _wait_unless_finished(k: Kernel, barrier: Value, parity: Value, slot: Value) -> Value:
    """For a free slot; the consumers may instead say that they will take no more: whether they do."""

    def attempt() -> tuple[Value, list[Value]]:
        ready = nvvm.mbarrier_try_wait(barrier, parity, results=[b.type_of("i1")])
        finished = _finished(k)
        return ready | finished, [finished]

    (finished,) = k.spin(attempt, ["i1"], lambda: k.report(EMPTY, slot, parity))
    return finished
