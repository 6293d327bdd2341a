"""The consumer role: the step loop, the dispatch over the phase table, and the smallest stages."""

from typing import Any

from tileir.codegen import builder as b
from tileir.codegen.attend import Attend
from tileir.codegen.combine import combine
from tileir.codegen.contract import contract, reduce_best
from tileir.codegen.exchange import poll_at, publish_pair
from tileir.codegen.kernel import Kernel, dead
from tileir.codegen.layout import CHOICE, FINISHED, HEART, MAILBOX_TOKENS
from tileir.codegen.plan import Body
from tileir.codegen.rows import rows
from tileir.dialect.attributes import get, name_of, shape_of
from tileir.mlir import llvm

Value = Any
# Carried from row to row: tape slot and parity, state slot and parity, next token.
CARRIED = ["i32"] * 5


def consumer(k: Kernel) -> None:
    """Steps until the launch's last, a stop id, or a wait that ran out."""
    zero = b.const(0)
    k.epoch = k.row = zero
    b.if_(b.eq(k.tid, 0), lambda: k.send_record(k.arg["position_base"], zero, zero))
    token = b.constant_load("i32", k.arg["prompt"], 4)

    def more(step: Value, go: Value, *_: Value) -> Value:
        return b.both(b.ult(step, k.arg["steps"]), go)

    def a_step(step: Value, _go: Value, *carried: Value) -> list[Value]:
        k.step, k.epoch = step, step + k.arg["epoch_base"] + 1
        k.position = step * k.arg["stride"] + k.arg["position_base"]
        k.token = carried[4]
        k.row = k.arg["rows"]
        k.begin_step()
        *state, _ = b.for_(zero, k.arg["rows"], [*carried, zero], a_row)
        k.row = k.arg["rows"]
        token, go = _finish_step(k, state[4])
        k.end_step()
        return [step + 1, go, *state[:4], token]

    def a_row(index: Value, *carried: Value) -> list[Value]:
        *state, half = carried
        # The table stays in L1: nobody else uses it, and its rows are read every step.
        k.row, k.words, k.half = index, k.row_words(index), half
        beat = b.at(k.scratch, None, HEART)
        b.if_(
            b.eq(k.tid, 0),
            lambda: b.store(k.epoch * k.arg["rows"] + index, beat, 4, volatile_=True),
        )
        k.mark("begin")
        state = _dispatch(k, k.plan.bodies, state)
        k.note_row()
        return [*state, half ^ 1]

    start = [zero, b.const(True, "i1"), zero, zero, zero, zero, token]
    b.while_(start, more, a_step)
    b.store(b.const(1), b.at(k.scratch, None, FINISHED), 4, volatile_=True)


def _dispatch(k: Kernel, bodies: list[Body], state: list[Value]) -> list[Value]:
    """A chain of branches to the bodies: an indirect call would cost the register budget."""
    body, rest = bodies[0], bodies[1:]

    def mine() -> list[Value]:
        return _run(k, body, state)

    if not rest:
        return mine()
    return b.if_(k.runs(body), mine, lambda: _dispatch(k, rest, state), CARRIED)


def _run(k: Kernel, body: Body, state: list[Value]) -> list[Value]:
    tape, states, choice = state[:2], state[2:4], state[4]
    with k.thread_here():
        match body.kind:
            case "contract":
                tape = contract(k, body, *tape)
            case "attend":
                attend = Attend(k, body)
                if attend.ring.name == "tape":
                    tape = attend.emit(*tape)
                else:
                    states = attend.emit(*states)
            case "map":
                region = list(body.find("engine.map").operation.regions[0].blocks[0])[0]
                MAPS.get(name_of(region), rows)(k, body)
            case "select":
                choice = choose(k, body)
    return [*tape, *states, choice]


def lookup(k: Kernel, body: Body) -> None:
    """The token's row of a table, a pair of values a thread."""
    op = body.find("engine.map")
    region = list(op.operation.regions[0].blocks[0])[0]
    table_value = list(region.operation.operands)[0]
    hidden = shape_of(table_value)[1]
    assert hidden is not None
    scale = get(region, "scale")
    packets = get(op, "rows")
    first, count = k.share(packets)
    channel, table = k.outlet(body, op.operation.operands[0]), k.operand(body, table_value)

    def pairs(i: Value) -> list[Value]:
        index = first + i * k.plan.threads + k.tid

        def send() -> None:
            inside = index if packets * 2 == hidden else b.umin(index, hidden // 2 - 1)
            place = b.i64(k.token) * hidden + b.i64(inside * 2)
            word = b.constant_load("i32", b.at(table, place * 2), 4)
            if packets * 2 > hidden:
                word = b.select(b.ult(index, hidden // 2), word, 0)
            if scale != 1.0:
                low, high = b.unpack(word)
                word = b.pack(low * float(scale), high * float(scale))
            publish_pair(k, channel, index, word)

        b.if_(b.ult(index, first + count), send)
        return []

    b.for_(b.const(0), (count + (k.plan.threads - 1)) // k.plan.threads, [], pairs)


MAPS = {"tile.lookup": lookup, "tile.combine": combine}


def choose(k: Kernel, body: Body) -> Value:
    """The token with the best of every SM's candidates, in every thread of every SM."""
    channels = [k.operand(body, v) for v in body.find("engine.select").operation.operands]
    sms = k.plan.sms
    best = b.const(0, "i64")
    for low in range(0, sms, k.plan.threads):
        best = _best_from(k, channels, low, best)
    # Readers' side of the state order: what the records' writers had appended may now be read.
    b.fence_gpu()
    return b.i32(reduce_best(k, best, CHOICE)) ^ -1


def _best_from(k: Kernel, channels: list[Value], low: int, best: Value) -> Value:
    """The best of `best` and the candidates of SM `low` + this thread's number, if there is one."""
    sm = b.umin(k.tid + low, k.plan.sms - 1)

    def ask() -> list[Value]:
        words = poll_at(k, [(c, sm * 2 + e) for c in channels for e in (0, 1)], together=True)
        pairs = zip(words[::2], words[1::2], strict=True)
        return [b.tree([best, *((b.i64(x) << 32) | b.i64(i ^ -1) for x, i in pairs)], b.umax)]

    # Warps without an SM ask for nothing, lest they all ask for the last one's line.
    return b.if_(b.ult(k.warp * 32, k.plan.sms - low), ask, lambda: [best], ["i64"])[0]


def _finish_step(k: Kernel, choice: Value) -> tuple[Value, Value]:
    """The next token and whether there is a next step; tells the state loader and the host."""
    following = k.step + 1
    forced = b.ult(following, k.arg["prompt_length"])
    prompt = b.at(k.arg["prompt"], b.i64(b.select(forced, following, 0)) * 4)
    token = b.select(forced, b.constant_load("i32", prompt, 4), choice)
    stop = b.both(b.negate(forced), _is_stop(k, choice))
    last = stop | b.negate(b.ult(following, k.arg["steps"])) | _given_up(k)

    def tell() -> None:
        b.fence_proxy_async()
        b.if_(b.both(b.eq(k.sm, 0), b.negate(forced)), lambda: _to_host(k, choice))
        stamps = k.arg["stamps"]
        wanted = b.both(b.eq(k.sm, 0), b.ne(b.pointer_bits(stamps), 0))
        b.if_(wanted, lambda: b.store(b.global_timer(), b.at(stamps, b.i64(k.step) * 8), 8))
        k.send_record(k.position + k.arg["stride"], b.i32(last), following & 1)

    b.if_(b.eq(k.tid, 0), tell)
    return token, b.negate(last)


def _given_up(k: Kernel) -> Value:
    """Whether the block is dead, agreed by all its consumers."""
    flag = dead(k)
    kind = flag.type
    name = "barrier.cta.red.or.aligned.count"
    return b.intrinsic(name, kind, b.const(1), b.const(k.plan.threads), flag)


def _is_stop(k: Kernel, token: Value) -> Value:
    def one(i: Value, found: Value) -> list[Value]:
        stop_id = b.constant_load("i32", b.at(k.arg["stop_ids"], b.i64(i) * 4), 4)
        return [found | b.eq(stop_id, token)]

    return b.for_(b.const(0), k.arg["stop_count"], [b.const(False, "i1")], one)[0]


def _to_host(k: Kernel, token: Value) -> None:
    """Append a token to the mailbox: the token first, then the count that covers it."""
    index = k.step + 1 - k.arg["prompt_length"]
    to = b.at(k.arg["mailbox"], b.i64(index) * 4, MAILBOX_TOKENS)
    b.store(token, to, 4, ordering=llvm.AtomicOrdering.monotonic)
    b.store(index + 1, k.arg["mailbox"], 4, ordering=llvm.AtomicOrdering.release)
