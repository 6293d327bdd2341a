"""The persistent kernel: set-up, roles, the step loop and the dispatch over the phase table.

One block per SM. Warps 0 … W-1 are consumers, warp W loads the tape, warp W+1 loads states, warp W+2 watches. A launch
runs `steps` steps at most; a block that begins no row for `limit` clocks gives up, and all others with it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from tileir.codegen import builder as b
from tileir.codegen.layout import (
    ARGUMENTS,
    CONSTANTS,
    DEAD,
    FINISHED,
    FULL,
    HEART,
    LATE,
    LOADED,
    MARKS,
    NOTED,
    RECORD,
    RECORD_DATA,
    RECORD_EMPTY,
    RECORD_FULL,
    ROW_MARKS,
    SLEEP_NS,
    STEP_MARKS,
    Control,
)
from tileir.codegen.plan import HEADER_WORDS, UNIT, Body, Plan, Ring, swizzle_mask
from tileir.dialect.attributes import place_of
from tileir.mlir import llvm, nvvm

Value = Any


@dataclass(frozen=True)
class Outlet:
    """Where a row writes a channel: its first copy, and bytes from there to the second, 0 if there is none."""

    pointer: Value
    replica_bytes: int


class Kernel:
    """What all emitters share: arguments, places in memory, waits.

    `epoch` and `row` describe where the role being emitted is, for packets and for the report of a hang.
    """

    def __init__(self, plan: Plan, arguments: Sequence[Value]) -> None:
        self.plan, self.control = plan, Control(plan)
        self.arg = dict(zip(ARGUMENTS, arguments, strict=True))
        # Held in a register: the symbol's address would be computed wherever it is used, from the block's rank.
        self.smem = b.here(llvm.mlir_addressof(b.type_of("!llvm.ptr<3>"), "smem"))
        self.tid = nvvm.read_ptx_sreg_tid_x()
        self.sm = nvvm.read_ptx_sreg_ctaid_x()
        self.warp, self.lane = self.tid >> 5, self.tid & 31
        self.scratch = b.at(self.smem, None, plan.scratch_offset)
        self.epoch: Value = None
        self.row: Value = None
        self.half: Value = None
        self.words: list[Value] = []
        self.position: Value = None
        self.token: Value = None
        self.step: Value = None

    # ---- where things are

    def operand(self, body: Body, value: Value) -> Value:
        """The address of a row's operand, by the body's argument that stands for it; of a channel, the copy to read."""
        pointer, copy_bytes = self._place(body, value)
        if copy_bytes:
            copy = self.sm & (self.constant("replicas") - 1)
            pointer = b.at(pointer, b.i64(copy) * copy_bytes)
        return pointer

    def constant(self, name: str) -> Value:
        """One of CONSTANTS."""
        return b.assembled(name, CONSTANTS[name])

    def outlet(self, body: Body, value: Value) -> "Outlet":
        """Where a row writes a channel."""
        return Outlet(*self._place(body, value))

    def _place(self, body: Body, value: Value) -> tuple[Value, int]:
        """A row's operand, in a channel the copy of this epoch; bytes from there to its replica, 0 if it has none."""
        memory = {"channel": "exchange", "buffer": "constants", "state": "states"}
        argument = body.argument(value)
        offset = b.i64(self.words[HEADER_WORDS + argument]) * UNIT
        copies = self.plan.copies(body, argument)
        if copies.depth > 1:
            offset = offset + b.i64(self.epoch % copies.depth) * copies.bytes
        replica = copies.depth * copies.bytes if copies.replicas > 1 else 0
        return b.at(self.arg[memory[place_of(value)]], offset), replica

    def runs(self, body: Body) -> Value:
        """Whether the row is one of this body's."""
        return b.eq(self.words[0] & 0xFFFF, body.index)

    @property
    def tile_base(self) -> Value:
        """The first tile of the row's range."""
        return self.words[1]

    def share(self, tasks: int) -> tuple[Value, Value]:
        """This SM's first of the row's `tasks` and how many (docs/ir.md, assignment)."""
        rotation = self.words[0] >> 16
        quotient, rest = divmod(tasks, self.plan.sms)
        v = self.sm + rotation
        v = b.select(b.uge(v, self.plan.sms), v - self.plan.sms, v)
        first = v * quotient + b.umin(v, rest)
        return first, b.i32(b.ult(v, rest)) + quotient

    def swizzled(self, pair: Value, size: int) -> Value:
        """Where a pair of values lies in the step's own row of a state, of `size` values (plan.swizzle_mask)."""
        mask = swizzle_mask(size)
        return pair ^ ((self.position & mask) * 4) if mask else pair

    def consumers_meet(self) -> None:
        """Barrier of the block's consumer warps."""
        b.named_barrier(1, self.plan.threads)

    # ---- the trace

    def mark(self, name: str) -> None:
        """Thread 0's clock, as this of ROW_MARKS."""
        if self.plan.trace_bytes:
            self._first(lambda: b.store(b.clock_low(), self._noted(name), 4))

    def mark_met(self, word: Value | None) -> None:
        """As `mark`, behind `consumers_meet`: a warp goes on after a barrier until it needs what lies behind it.

        word: of shared memory, read there; None if nothing is read at once.
        """

        def met() -> None:
            read = word or b.load("i32", b.at(self.scratch, None, HEART), 4, volatile_=True)
            b.store(b.clock_behind(read), self._noted("met"), 4)

        if self.plan.trace_bytes:
            self._first(met)

    def note_row(self) -> None:
        """The traced step: what thread 0 has marked of the row goes where the host finds it."""

        def write() -> None:
            for name in ROW_MARKS:
                self._note(MARKS.index(name), b.load("i32", self._noted(name), 4))
            self._forget()

        self._first_if_traced(write)

    def begin_step(self) -> None:
        """The traced step: its first clocks, and marks of steps that nobody noted are forgotten."""

        def write() -> None:
            self._note_clocks("begin")
            self._forget()

        self._first_if_traced(write)

    def end_step(self) -> None:
        """The traced step: its last clocks."""
        self._first_if_traced(lambda: self._note_clocks("end"))

    def loader_clock(self) -> Value:
        """A loader: the low word of the clock at its row's begin, for `note_loader`; None if nothing is traced."""
        return b.clock_low() if self.plan.trace_bytes else None

    def note_loader(self, ring: str, began: Value) -> None:
        """A loader of this ring, the traced step: when it began its row, and that it ends it now."""

        def write() -> None:
            self._note(MARKS.index(f"{ring}_begin"), began)
            self._note(MARKS.index(f"{ring}_end"), b.clock_low())

        if self.plan.trace_bytes:
            b.if_(self._is_traced, write)

    def _first(self, then: Callable[[], None]) -> None:
        b.if_(b.eq(self.tid, 0), then)

    def _first_if_traced(self, then: Callable[[], None]) -> None:
        if self.plan.trace_bytes:
            b.if_(b.both(b.eq(self.tid, 0), self._is_traced), then)

    @property
    def _is_traced(self) -> Value:
        return b.eq(self.epoch, self.arg["traced_epoch"])

    def _noted(self, name: str) -> Value:
        return b.at(self.scratch, None, NOTED + 4 * ROW_MARKS.index(name))

    def _forget(self) -> None:
        for name in ROW_MARKS:
            b.store(b.const(0), self._noted(name), 4)

    def _note_clocks(self, name: str) -> None:
        self._note(STEP_MARKS.index(name), b.clock())
        self._note(STEP_MARKS.index(f"{name}_timer"), b.global_timer())

    def _note(self, number: int, value: Value) -> None:
        row = b.here(self.sm) * (self.arg["rows"] + 1) + self.row
        to = b.at(self.arg["trace"], b.i64(row) * (8 * len(MARKS)), 8 * number)
        b.store(value, to, 4 if value.type == b.type_of("i32") else 8)

    def wait_full(self, ring: Ring, slot: Value, parity: Value) -> None:
        """A consumer: until a slot holds data. A kernel that traces counts the clocks of waits, not of looks."""
        barrier = self.full(ring, slot)
        wait = partial(self.wait, barrier, parity, FULL, slot)
        if not self.plan.trace_bytes:
            wait()
            return

        def counted() -> None:
            self._first(lambda: add(b.const(0) - b.clock_low()))
            wait()
            self._first(lambda: add(b.clock_low()))

        def add(clock: Value) -> None:
            b.add_to(self._noted("waited"), clock)

        full = nvvm.mbarrier_test_wait(barrier, parity, results=[b.type_of("i1")])
        b.if_(b.negate(full), counted)

    # ---- waits

    def spin(
        self,
        attempt: Callable[..., tuple[Value, list[Value]]],
        types: Sequence[str],
        report: Callable[[], Value],
        every: int = 64,
        agree: Callable[[Value], Value] = lambda go: go,
        pause: Callable[[], None] = lambda: None,
        before: Sequence[Value] = (),
    ) -> list[Value]:
        """Repeat attempt() -> (ready, values) until ready, or until the block is dead (watchdog).

        before: if there are any, attempts get these, then the values of the attempt before. Only each `every`-th
        failure looks. report: makes what is said of the wait if it is late, by `report` below.
        agree: makes a warp give up as one. pause: what follows a failure. There are many spins: what is not the attempt
        is kept short, for the instruction caches.
        """

        def body(count: Value, go: Value, *before: Value) -> tuple[Value, list[Value]]:
            ready, values = attempt(*before)
            return b.both(b.negate(ready), go), [count, ready, *values]

        def again(count: Value, _ready: Value, *values: Value) -> list[Value]:
            pause()
            due = b.eq((count + 1) & (every - 1), 0)
            alive = b.const(True, "i1")
            (go,) = b.if_(due, lambda: [self._alive(report, agree)], lambda: [alive], ["i1"])
            return [count + 1, go, *(values if before else ())]

        start = [b.const(0), b.const(True, "i1"), *before]
        return b.do_while(start, ["i32", "i1", *types], body, again)[2:]

    def _alive(self, report: Callable[[], Value], agree: Callable[[Value], Value]) -> Value:
        """Whether the block is not late; if it is, the warp says what it waits for until the watchdog lets it go."""
        late = b.load("i32", b.at(self.scratch, None, LATE), 4, volatile_=True)
        alive = agree(b.eq(late, 0))
        where = (self.sm * (self.plan.warps + 2) + self.warp) * self.control.report_bytes
        mine = b.at(self.arg["control"], b.i64(where), self.control.reports)

        def say() -> list[Value]:
            b.store(report(), mine, 16)
            b.nanosleep(SLEEP_NS)
            return []

        b.if_(b.negate(alive), lambda: b.while_([], lambda: b.negate(dead(self)), say))
        return alive

    def report(self, code: int, detail: Value, parity: Value | None = None) -> Value:
        """A report's words. parity: of an mbarrier's phase."""
        word = b.const(code) if parity is None else ((parity + 1) << 8) | code
        return b.vec(word, self.row, self.epoch, detail)

    def wait(
        self, barrier: Value, parity: Value, code: int, detail: Value, every: int = 64
    ) -> None:
        """Until the mbarrier has completed its phase of this parity."""

        def attempt() -> tuple[Value, list[Value]]:
            return nvvm.mbarrier_try_wait(barrier, parity, results=[b.type_of("i1")]), []

        self.spin(attempt, [], lambda: self.report(code, detail, parity), every)

    def windows(self, ring: Ring) -> tuple[Value, Value]:
        """Copies of a ring that may be on their way at once; and while it is fed."""
        if ring.name == "tape":
            return self.arg["tape_window"], self.arg["fed_window"]
        return b.const(ring.window), b.const(ring.fed_window)

    def full(self, ring: Ring, slot: Value) -> Value:
        """The mbarrier that says that a slot holds data."""
        return b.at(self.smem, slot * 8, ring.full)

    def empty(self, ring: Ring, slot: Value) -> Value:
        """The mbarrier that says that a slot is free."""
        return b.at(self.smem, slot * 8, ring.empty)

    @staticmethod
    def advance(ring: Ring, slot: Value, parity: Value, by: Value | int = 1) -> tuple[Value, Value]:
        """The slot `by` slots on, no more than there are, and its parity."""
        ahead = slot + by
        wrap = b.uge(ahead, ring.slots)
        return b.select(wrap, ahead - ring.slots, ahead), parity ^ b.i32(wrap)

    def release(self, ring: Ring, *slots: Value) -> None:
        """This warp is done with slots."""
        b.warp_sync()
        results = [b.type_of("i64")]

        def arrive() -> None:
            for slot in slots:
                _arrive(self.empty(ring, slot), results)

        b.if_(b.eq(self.lane, 0), arrive)

    def release_some(self, ring: Ring, slot: Value, parity: Value, count: Value) -> None:
        """This warp is done with `count` slots, 32 at most: a lane waits for each, which the warp may not have read."""
        b.warp_sync()

        def arrive() -> None:
            one, one_parity = self.advance(ring, slot, parity, self.lane)
            self.wait_full(ring, one, one_parity)
            _arrive(self.empty(ring, one), [b.type_of("i64")])

        b.if_(b.ult(self.lane, count), arrive)

    def initialise(self) -> None:
        """Thread 0 sets up every mbarrier and flag; then the block meets."""

        def setup() -> None:
            for ring in self.plan.rings.values():
                for slot in range(ring.slots):
                    nvvm.mbarrier_init(b.at(self.smem, None, ring.full + 8 * slot), b.const(1))
                    empty = b.at(self.smem, None, ring.empty + 8 * slot)
                    nvvm.mbarrier_init(empty, b.const(self.plan.warps))
            for offset in (RECORD_FULL, RECORD_EMPTY):
                nvvm.mbarrier_init(b.at(self.scratch, None, offset), b.const(1))
            for offset in (DEAD, FINISHED, HEART, LOADED, LATE):
                b.store(b.const(0), b.at(self.scratch, None, offset), 4)
            # Of two loaders; one that there is not has ended.
            second = 0 if "state" in self.plan.rings else 1
            b.store(b.const(second), b.at(self.scratch, None, LOADED + 4), 4)
            nvvm.fence_mbarrier_init()

        b.if_(b.eq(self.tid, 0), setup)
        nvvm.barrier()

    # ---- the step record, from the consumers to the state loader

    def send_record(self, position: Value, stop: Value, parity: Value) -> None:
        """One consumer thread: the next step's position, and whether there is none."""
        self.wait(b.at(self.scratch, None, RECORD_EMPTY), parity ^ 1, RECORD, position)
        b.store(b.vec(position, stop), b.at(self.scratch, None, RECORD_DATA), 8)
        _arrive(b.at(self.scratch, None, RECORD_FULL), [b.type_of("i64")])

    def receive_record(self, parity: Value) -> tuple[Value, Value]:
        """The state loader: (position, stop), after the order that old rows need."""
        self.wait(b.at(self.scratch, None, RECORD_FULL), parity, RECORD, parity)
        record = b.load("vector<2xi32>", b.at(self.scratch, None, RECORD_DATA), 8)
        position, stop = b.elements(record, 2)
        _arrive(b.at(self.scratch, None, RECORD_EMPTY), [b.type_of("i64")])
        b.fence_proxy_async()
        return position, stop

    def row_words(self, index: Value) -> list[Value]:
        """The words of a table row."""
        size = self.plan.row_words
        return b.load_words(b.at(self.arg["table"], b.i64(index) * (4 * size)), size)

    @contextmanager
    def thread_here(self) -> Iterator[None]:
        """What is made of the thread's number within is not moved further out, to hold registers there."""
        before = self.tid, self.warp, self.lane
        self.tid = b.here(self.tid)
        self.warp, self.lane = self.tid >> 5, self.tid & 31
        yield
        self.tid, self.warp, self.lane = before

    @contextmanager
    def words_again(self) -> Iterator[None]:
        """The row's words, read once more: what lies before needs no registers for them."""
        before = self.words
        self.words = self.row_words(b.here(self.row))
        yield
        self.words = before


def _arrive(barrier: Value, results: Sequence[Any]) -> None:
    nvvm.mbarrier_arrive(barrier, results=list(results))


def dead(kernel: Kernel) -> Value:
    """Whether this block has given up."""
    flag = b.load("i32", b.at(kernel.scratch, None, DEAD), 4, volatile_=True)
    return b.ne(flag, 0)
