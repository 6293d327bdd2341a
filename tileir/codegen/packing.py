"""The packing kernel: weights of a row of the phase table into every SM's tape.

One block of 64 threads per 1 KB fragment block (16 rows × 32 k, row-major), one 16-byte chunk a thread. Block
indices: x counts tiles of one segment, y counts blocks along k.
"""

from typing import Any

from tileir.codegen import builder as b
from tileir.mlir import nvvm

Value = Any
THREADS = 64

ARGUMENTS = {
    "tape": "!llvm.ptr<1>",
    "bases": "!llvm.ptr<1>",  # i64 per SM: where the row's blocks begin on it
    "lo": "!llvm.ptr<1>",  # bf16 [rows, k]
    "hi": "!llvm.ptr<1>",
    "lo_row": "i32",
    "hi_row": "i32",
    "lo_rows": "i32",  # rows that the tensors have
    "hi_rows": "i32",
    "inner": "i32",
    "step": "i32",
    "outer": "i32",
    "k": "i32",
    "segment_tile": "i32",  # the first tile of the segment to pack
    "row_tile": "i32",  # its number among the row's tiles
    "tiles": "i32",  # of the row
    "rotation": "i32",
    "sms": "i32",
}


def pack_kernel(arguments: list[Value]) -> None:
    """Emit the packing kernel's body."""
    a = dict(zip(ARGUMENTS, arguments, strict=True))
    thread, x = nvvm.read_ptx_sreg_tid_x(), nvvm.read_ptx_sreg_ctaid_x()
    y, blocks = nvvm.read_ptx_sreg_ctaid_y(), nvvm.read_ptx_sreg_nctaid_y()
    t = a["segment_tile"] + x
    row = t // a["inner"] * a["outer"] + t % a["inner"] * a["step"] + (thread >> 2 & 7)
    upper = b.ult(thread, 32)
    row = row + b.select(upper, a["lo_row"], a["hi_row"])
    rows = b.select(upper, a["lo_rows"], a["hi_rows"])
    source = b.select(upper, a["lo"], a["hi"])
    column = y * 32 + (thread & 3) * 8
    inside = b.both(b.ult(row, rows), b.ult(column, a["k"]))
    place = (b.i64(row) * b.i64(a["k"]) + b.i64(column)) * 2
    zero = b.const(0)

    def read() -> list[Value]:
        return [b.load("vector<4xi32>", b.at(source, place), 16)]

    (chunk,) = b.if_(inside, read, lambda: [b.vec(zero, zero, zero, zero)], ["vector<4xi32>"])
    sm, local = _owner(a["row_tile"] + x, a["tiles"], a["rotation"], a["sms"])
    base = b.load("i64", b.at(a["bases"], b.i64(sm) * 8), 8)
    block = b.i64(local) * b.i64(blocks) + b.i64(y)
    b.store(chunk, b.at(a["tape"], base + block * 1024 + b.i64(thread * 16)), 16)


def _owner(tile: Value, tiles: Value, rotation: Value, sms: Value) -> tuple[Value, Value]:
    """The SM that a tile of a row belongs to, and its number there: Kernel.share inverted."""
    quotient, rest = tiles // sms, tiles % sms
    long = rest * (quotient + 1)
    in_long = b.ult(tile, long)
    after = tile - long
    divisor = b.umax(quotient, 1)
    v = b.select(in_long, tile // (quotient + 1), rest + after // divisor)
    local = b.select(in_long, tile % (quotient + 1), after % divisor)
    return (v + sms - rotation) % sms, local
