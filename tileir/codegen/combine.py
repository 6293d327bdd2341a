"""The split-KV combine: heads over SMs, splits over groups of threads."""

from typing import Any

from tileir.codegen import builder as b
from tileir.codegen.attend import LOWEST
from tileir.codegen.exchange import PACKET_BYTES, poll_many, publish_pair
from tileir.codegen.kernel import Kernel
from tileir.codegen.loaders import is_alone, splits_at
from tileir.codegen.plan import Body
from tileir.dialect.attributes import get, static_shape

Value = Any
BATCH, MOST = 4, 6  # splits that a thread asks for at once, of many; and of so many all


def combine(k: Kernel, body: Body) -> None:
    """A combine body's consumer role."""
    op = body.find("engine.map")
    region = list(op.operation.regions[0].blocks[0])[0]
    partials = list(region.operation.operands)[0]
    _, heads, splits, row = static_shape(partials)
    size, threads = row - 2, k.plan.threads
    source, channel = k.operand(body, partials), k.outlet(body, op.operation.operands[0])
    first, count = k.share(heads)
    # Where one split has all rows, attention has filled the channel.
    window = get(region, "window")
    count = b.select(is_alone(k, size, splits, window), 0, count)
    used = splits_at(k, size, splits, window)
    sets = threads // size
    assert sets, f"{threads} threads for head size {size}"
    lane, group = k.tid % size, k.tid // size
    own = b.at(k.smem, k.tid * 12, k.plan.part_offset)

    # Many splits take rounds: what is asked for at once has to fit the registers, addresses too.
    each = -(-splits // sets)
    batch = each if each <= MOST else BATCH
    most = sets * batch
    rounds = b.const(1) if most >= splits else (used + (most - 1)) // most
    start = [b.const(v, "f32") for v in (LOWEST, 0.0, 0.0)]

    def a_round(head: Value, n: Value, state: Any) -> list[Value]:
        first_split = group + n * most
        base = b.at(source, b.i64((head * splits + first_split) * row) * PACKET_BYTES)
        own_at = b.at(base, lane * PACKET_BYTES)
        inside = [b.ult(first_split + i * sets, used) for i in range(batch)]
        pointers = []
        for ahead in range(0, most * row, sets * row):
            pointers += [b.at(base, None, (ahead + size + e) * PACKET_BYTES) for e in (0, 1)]
            pointers.append(b.at(own_at, None, ahead * PACKET_BYTES))
        detail = (head * splits + first_split) * row + size
        wanted = [w for w in inside for _ in range(3)]
        words = [b.bits_to_f32(w) for w in poll_many(k, pointers, detail, wanted)]
        states = [list(state)]
        for i, there in enumerate(inside):
            found = zip(words[3 * i : 3 * i + 3], (LOWEST, 0.0, 0.0), strict=True)
            states.append([b.select(there, value, none) for value, none in found])
        return b.tree(states, _join)

    def a_head(i: Value) -> list[Value]:
        head = first + i
        k.consumers_meet()
        mine = b.for_(b.const(0), rounds, start, lambda n, *state: a_round(head, n, state))
        for e, value in enumerate(mine):
            b.store(value, b.at(own, None, 4 * e), 4)
        k.consumers_meet()

        def value_of(index: Value) -> Value:
            found = []
            for s in range(min(sets, splits)):
                from_ = b.at(k.smem, (index + s * size) * 12, k.plan.part_offset)
                found.append([b.load("f32", b.at(from_, None, 4 * e), 4) for e in range(3)])
            _, weight, sum_ = b.tree(found, _join)
            return sum_ * b.reciprocal(weight)

        def publish() -> None:
            pair = b.pack(value_of(k.tid * 2), value_of(k.tid * 2 + 1))
            publish_pair(k, channel, head * (size // 2) + k.tid, pair)

        b.if_(b.ult(k.tid, size // 2), publish)
        return []

    b.for_(b.const(0), count, [], a_head)


def _join(a: list[Value], c: list[Value]) -> list[Value]:
    """Two softmax states as one."""
    top = b.fmax(a[0], c[0])
    left, right = b.exp2(a[0] - top), b.exp2(c[0] - top)
    return [top, *(x * left + y * right for x, y in zip(a[1:], c[1:], strict=True))]
