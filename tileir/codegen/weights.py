"""Weight tiles through the tensor cores: what consumer warps do with a ring's blocks.

Weights are the A operand of mma.m16n8k16 (16 rows), the token's activations the B operand, repeated in all 8
columns. A 1 KB block is 16 rows × 32 k, row-major: lane g·4+c reads rows g and g+8 at k = 8c … 8c+7, which feed two
mma steps; B's k order is permuted alike, so both are plain 16-byte loads.
"""

from functools import partial
from typing import Any

from tileir.codegen import builder as b
from tileir.codegen.kernel import Kernel
from tileir.dialect.attributes import get
from tileir.dialect.tile import TILE_ROWS, padded
from tileir.scheduling.rings import BLOCK_BYTES

Value = Any
TURNS = 2  # blocks of a tile that a warp asks for at once
POLLED = 16  # packets that a thread asks for at once: more would not fit the registers
BLOCK_WORDS, PACKET_WORDS = 8, 2  # registers of a thread for its part of a block, and for a packet


def part(k: Kernel, tile: Value, warp: Any, static: int = 0) -> Value:
    """Partial sums of a tile by a warp: 16 f32."""
    warps = k.plan.warps
    if isinstance(warp, int):
        return b.at(k.smem, tile * (warps * 64), k.plan.part_offset + warp * 64 + static)
    return b.at(k.smem, (tile * warps + warp) * 64, k.plan.part_offset + static)


def early_turns(words: int, packets: int, turns: int, slots: int) -> int:
    """How many blocks a warp asks for before x is there, of the `turns` that every warp has in the first tile.

    Of `words` registers a thread some take what comes of x, `packets`. While blocks wait there, the ring of `slots`
    takes as many slots more of the stages behind; one has to be left.
    """
    left = words - PACKET_WORDS * min(packets, POLLED)
    return min(max(TURNS, left // BLOCK_WORDS), turns, slots - 1)


class Weights:
    """The tape's blocks, as a warp takes them: block w of every slot is warp w's."""

    def __init__(self, k: Kernel, op: Any, count: Value) -> None:
        self.k, self.count = k, count
        self.ring, self.warps = k.plan.rings[get(op, "ring")], k.plan.warps
        size, parts = get(op, "k"), get(op, "k_parts", 1)
        self.blocks = padded(size) // 32
        # Bytes from what half lo of a tile meets of x to what half hi does; 0 if they meet the same.
        self.apart = size * 2 * (parts - 1)
        self.mine = k.warp * BLOCK_BYTES + k.lane * 16
        self.fragment = b.at(k.smem, (k.lane & 3) * 16, k.plan.x_offset)
        packets, turns = -(-size * parts // (2 * k.plan.threads)), self.blocks // self.warps
        self.early = early_turns(k.plan.early_words, packets, turns, self.ring.slots)
        # The first word of x that was read.
        self.read: Value | None = None

    def ask_early(self, slot: Value, parity: Value) -> list[Value]:
        """The first tile's first blocks, if there is a tile: slot and parity behind them, then their words."""

        def ask() -> list[Value]:
            loads, slot_, parity_ = self._ask(self.early, slot, parity)
            return [slot_, parity_, *(word for load in loads for word in load)]

        none = [slot, parity, *[b.const(0)] * (BLOCK_WORDS * self.early)]
        return b.if_(b.ne(self.count, 0), ask, lambda: none, ["i32"] * len(none))

    def _ask(
        self, turns: int, slot: Value, parity: Value
    ) -> tuple[list[list[Value]], Value, Value]:
        """The words of `turns` blocks, each of a slot: all are on their way before the first is used."""
        k, slots, loads = self.k, [], []
        for _ in range(turns):
            k.wait_full(self.ring, slot, parity)
            at = b.at(k.smem, slot * self.ring.slot_bytes + self.mine, self.ring.smem_offset)
            halves = [b.load("vector<4xi32>", b.at(at, None, h * 512), 16) for h in (0, 1)]
            loads.append([word for half in halves for word in b.elements(half, 4)])
            slots.append(slot)
            slot, parity = k.advance(self.ring, slot, parity)
        k.release(self.ring, *slots)
        return loads, slot, parity

    def _add(self, sums: list[Value], loads: list[list[Value]], j: Value) -> list[Value]:
        """The sums with blocks j, j + warps, … of a tile by x.

        A block is two steps of k. Where halves meet parts of x, both meet both, and a half's sums of the other's part
        are for nothing.
        """
        first, second = sums[:4], sums[4:]
        for n, words in enumerate(loads):
            at = b.at(self.fragment, j * 64, n * self.warps * 64)
            x, high, low = b.elements(b.load("vector<4xi32>", at, 16), 4), words[:4], words[4:]
            self.read = self.read or x[0]
            steps = [[high[i], low[i], high[i + 1], low[i + 1]] for i in (0, 2)]
            if not self.apart:
                first, second = b.mma(first, steps[0], x[:2]), b.mma(second, steps[1], x[2:])
                continue
            at = b.at(self.fragment, j * 64, n * self.warps * 64 + self.apart)
            y = b.elements(b.load("vector<4xi32>", at, 16), 4)
            for step, of in zip(steps, (slice(2), slice(2, 4)), strict=True):
                first, second = b.mma(first, step, x[of]), b.mma(second, step, y[of])
        return [*first, *second]

    def multiply(self, slot: Value, parity: Value, *words: Value) -> list[Value]:
        """All tiles by x, given what ask_early did; every warp flushes its sums at the end of each tile."""
        k, warps, blocks = self.k, self.warps, self.blocks
        zero = [b.const(0.0, "f32")] * 8
        starts = range(0, BLOCK_WORDS * self.early, BLOCK_WORDS)
        early = [list(words[at : at + BLOCK_WORDS]) for at in starts]
        sums = self._add(zero, early, k.warp)
        k.mark_met(self.read)

        def tile(t: Value, j: Value, slot: Value, parity: Value, *sums: Value) -> list[Value]:
            start = t * blocks
            end = start + blocks

            def some(turns: int, j: Value, slot: Value, parity: Value, *sums: Value) -> list[Value]:
                loads, slot, parity = self._ask(turns, slot, parity)
                return [j + turns * warps, slot, parity, *self._add(list(sums), loads, j - start)]

            def more(j: Value, *_: Value) -> Value:
                return b.ult(j + (TURNS - 1) * warps, end)

            carried = [j, slot, parity, *sums]
            if blocks > (TURNS - 1) * warps:
                carried = b.while_(carried, more, partial(some, TURNS))
            carried = b.while_(carried, lambda j, *_: b.ult(j, end), partial(some, 1))
            j, slot, parity, *made = carried
            # All four lanes of a row hold the same sums: storing all keeps the mma out of a branch.
            for half, e, own in ((0, 0, 0), (32, 2, 6)):
                value = made[own] if self.apart else made[e] + made[e + 4]
                b.store(value, b.at(part(k, t, k.warp, half), (k.lane >> 2) * 4), 4)
            return [j, slot, parity, *zero]

        begin = [k.warp + self.early * warps, slot, parity, *sums]
        _, slot, parity, *_ = b.for_(b.const(0), self.count, begin, tile)
        # A short last slot holds nothing for the upper warps; they release it all the same.
        last = self.count * blocks
        short = b.both(b.ne(last % warps, 0), b.uge(k.warp, last % warps))

        def skip() -> list[Value]:
            k.release(self.ring, slot)
            return list(k.advance(self.ring, slot, parity))

        return b.if_(short, skip, lambda: [slot, parity], ["i32", "i32"])


assert TILE_ROWS * 32 * 2 == BLOCK_BYTES
