"""Short spellings for the upstream operations that kernels are made of.

Importing this module gives SSA values the arithmetic operators (`a + 1`, `a & b`, `a >> 5`), chosen by the left
operand's type; integers are unsigned. Structured control flow takes closures. Nothing here knows of tileir's dialects.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from tileir.mlir import arith, ir, llvm, nvvm, scf, vector

Value = Any
Types = Sequence[str]

# Cache hint that createpolicy.fractional.L2::evict_first returns (PTX ISA 9.7.9.22).
EVICT_FIRST = 0x12F0000000000000
_DYNAMIC = -(2**31)


def type_of(text: str) -> Any:
    """The type written as `text`."""
    return ir.Type.parse(text)


def const(value: int | float | bool, kind: Any = "i32") -> Value:
    """A constant of a type, given as text or as a type."""
    return arith.constant(type_of(kind) if isinstance(kind, str) else kind, value)


def _operator(on_ints: Any, on_floats: Any = None) -> Callable[[Value, Any], Value]:
    def apply(a: Value, b: Any) -> Value:
        b = b if isinstance(b, ir.Value) else const(b, a.type)
        return (on_ints if isinstance(a.type, ir.IntegerType) else on_floats)(a, b)

    return apply


_OPERATORS = {
    "add": (arith.addi, arith.addf),
    "mul": (arith.muli, arith.mulf),
    "sub": (arith.subi, arith.subf),
    "floordiv": (arith.divui, arith.divf),
    "mod": (arith.remui, None),
    "lshift": (arith.shli, None),
    "rshift": (arith.shrui, None),
    "xor": (arith.xori, None),
    "and": (arith.andi, None),
    "or": (arith.ori, None),
}
for _name, _ops in _OPERATORS.items():
    setattr(ir.Value, f"__{_name}__", _operator(*_ops))


def _compare(predicate: str) -> Callable[[Value, Any], Value]:
    return _operator(partial(arith.cmpi, getattr(arith.CmpIPredicate, predicate)))


eq, ne, ult, ule, uge = (_compare(p) for p in ("eq", "ne", "ult", "ule", "uge"))
eq_float = _operator(None, partial(arith.cmpf, arith.CmpFPredicate.OEQ))
umin = _operator(arith.minui)
umax = _operator(arith.maxui)
fmax = _operator(None, arith.maximumf)


def both(*conditions: Value) -> Value:
    """All of the conditions hold."""
    result = conditions[0]
    for condition in conditions[1:]:
        result = arith.andi(result, condition)
    return result


def negate(condition: Value) -> Value:
    """Not `condition`."""
    return condition ^ True


def select(condition: Value, yes: Any, no: Any) -> Value:
    """yes if condition else no; one of them may be a number."""
    kind = yes.type if isinstance(yes, ir.Value) else no.type
    values = [v if isinstance(v, ir.Value) else const(v, kind) for v in (yes, no)]
    return arith.select(condition, *values)


def i64(value: Value) -> Value:
    """Zero-extended."""
    return arith.extui(type_of("i64"), value)


def i32(value: Value) -> Value:
    """An i64 truncated, or an i1 extended."""
    to = arith.extui if value.type == type_of("i1") else arith.trunci
    return to(type_of("i32"), value)


def bits_to_f32(bits: Value) -> Value:
    """The f32 with these 32 bits."""
    return llvm.bitcast(type_of("f32"), bits)


def f32_to_bits(value: Value) -> Value:
    """The 32 bits of an f32."""
    return llvm.bitcast(type_of("i32"), value)


def unpack(pair: Value) -> list[Value]:
    """The two bf16 values of an i32 as f32, low half first."""
    return [bits_to_f32(pair << 16), bits_to_f32(pair & -65536)]


def pack(low: Value, high: Value) -> Value:
    """Two f32 rounded to nearest even bf16, as one i32."""
    rounded = arith.truncf(type_of("vector<2xbf16>"), vec(low, high))
    return llvm.bitcast(type_of("i32"), rounded)


def element(value: Value, index: int) -> Value:
    """Element of a vector."""
    return vector.extract(value, [], [index])


def elements(value: Value, count: int) -> list[Value]:
    """All elements of a vector of `count`."""
    return [element(value, i) for i in range(count)]


def extract(value: Value, index: int) -> Value:
    """Element of an f32 structure."""
    return llvm.extractvalue(type_of("f32"), value, [index])


def vec(*values: Value) -> Value:
    """A vector of the values."""
    return vector.from_elements(ir.VectorType.get([len(values)], values[0].type), values)


def intrinsic(name: str, result: Any, *args: Value) -> Value:
    """An nvvm intrinsic of LLVM that has no operation of its own."""
    return llvm.call_intrinsic(result, "llvm.nvvm." + name, args, [], [])


def exp2(value: Value) -> Value:
    """2 to the value, approximate (2 ulp)."""
    return nvvm.ex2(value, ftz=True)


def fabs(value: Value) -> Value:
    """Without its sign."""
    return bits_to_f32(f32_to_bits(value) & 0x7FFFFFFF)


def copysign(size: Value, sign: Value) -> Value:
    """A value that is not negative, with another's sign."""
    return bits_to_f32(f32_to_bits(size) | (f32_to_bits(sign) & -(2**31)))


def reciprocal(value: Value) -> Value:
    """1 / value, approximate (1 ulp)."""
    return nvvm.rcp_approx_ftz_f(value, results=[value.type])


def rsqrt(value: Value) -> Value:
    """1 / sqrt(value), approximate (2 ulp)."""
    return intrinsic("rsqrt.approx.ftz.f", value.type, value)


def tree(values: Sequence[Value], combine: Callable[[Value, Value], Value]) -> Value:
    """A balanced reduction: LLVM keeps the order of float sums, and depth is latency."""
    values = list(values)
    while len(values) > 1:
        joined = [combine(a, b) for a, b in zip(values[::2], values[1::2], strict=False)]
        values = joined + values[len(joined) * 2 :]
    return values[0]


def total(values: Sequence[Value]) -> Value:
    """The sum of the values."""
    return tree(values, lambda a, b: a + b)


# ---- memory

# ld/st.relaxed.gpu: single-copy atomic up to 8 bytes, never a stale line of L1 (PTX ISA 8.4, 8.10).
RELAXED: dict[str, Any] = {
    "ordering": llvm.AtomicOrdering.monotonic,
    "syncscope": "device",
}


def here(value: Value) -> Value:
    """The i32 or pointer, known only from here on: what is made of it is made behind this place, registers with it."""
    size, kind = ("u32", "r") if value.type == type_of("i32") else ("b64", "l")
    text = f"mov.{size} $0, $1;"
    return llvm.inline_asm(value.type, [value], text, f"={kind},{kind}", has_side_effects=True)


def assembled(name: str, value: int) -> Value:
    """A constant i32 that LLVM does not know: whoever assembles the PTX may write another value before its name."""
    text = f"mov.u32 $0, {value} /*{name}*/;"
    return llvm.inline_asm(type_of("i32"), [], text, "=r")


def pointer_bits(pointer: Value) -> Value:
    """A pointer as an i64."""
    return llvm.ptrtoint(type_of("i64"), pointer)


def at(base: Value, offset: Value | None, static: int = 0) -> Value:
    """base + offset + static bytes; two steps, so that the constant folds into the access."""
    if offset is not None:
        base = llvm.getelementptr(base.type, base, [offset], [_DYNAMIC], type_of("i8"), None)
    return llvm.getelementptr(base.type, base, [], [static], type_of("i8"), None)


def load(kind: str, pointer: Value, align: int, **how: Any) -> Value:
    """A value of type `kind`; `align` bytes decide the width of the access."""
    return llvm.load(type_of(kind), pointer, alignment=align, **how)


def load_if(condition: Value, pointer: Value, otherwise: Value) -> Value:
    """ld.relaxed.gpu of an i64 if the condition holds; without a branch, so that loads go out together."""
    text = "{ .reg .pred p; setp.ne.u32 p, $3, 0; @p ld.relaxed.gpu.global.b64 $0, [$2]; }"
    operands = [otherwise, pointer, i32(condition)]
    return llvm.inline_asm(otherwise.type, operands, text, "=l,0,l,r", has_side_effects=True)


def constant_load(kind: str, pointer: Value, align: int) -> Value:
    """A load from memory that nobody writes while the kernel runs."""
    return load(kind, pointer, align, invariant=True)


def store(value: Value, pointer: Value, align: int, **how: Any) -> None:
    """Store with `align` bytes of alignment."""
    llvm.store(value, pointer, alignment=align, **how)


def add_to(pointer: Value, value: int | Value) -> Value:
    """atom.add.relaxed.gpu of an i32: the word before."""
    add, order = llvm.AtomicBinOp.add, llvm.AtomicOrdering.monotonic
    value = value if isinstance(value, ir.Value) else const(value)
    return llvm.atomicrmw(add, pointer, value, order, syncscope="device", alignment=4)


def load_words(pointer: Value, count: int) -> list[Value]:
    """`count` i32 words from 16-byte aligned memory that nobody writes; count is a multiple of 4."""
    words = []
    for i in range(0, count, 4):
        words += elements(constant_load("vector<4xi32>", at(pointer, None, 4 * i), 16), 4)
    return words


# ---- control flow


def _fill(block: Any, body: Callable[..., Any], results: Sequence[Any]) -> None:
    with ir.InsertionPoint(block):
        values = body(*block.arguments)
        scf.yield_(list(values) if results else [])


def if_(
    condition: Value,
    then: Callable[[], Any],
    otherwise: Callable[[], Any] | None = None,
    types: Types = (),
) -> list[Value]:
    """then() if condition else otherwise(); each returns values of `types`."""
    op = scf.IfOp(condition, [type_of(t) for t in types], has_else=otherwise is not None)
    bodies = (then, otherwise) if otherwise else (then,)
    for region, body in zip(op.regions, bodies, strict=False):
        _fill(region.blocks[0], body, types)
    return list(op.results)


def for_(
    low: Value, high: Value, carried: Sequence[Value], body: Callable[..., Any]
) -> list[Value]:
    """for i in low … high: carried = body(i, *carried)."""
    op = scf.ForOp(low, high, const(1), list(carried))
    _fill(op.body, body, carried)
    return list(op.results)


def while_(
    carried: Sequence[Value],
    condition: Callable[..., Value],
    body: Callable[..., Any],
) -> list[Value]:
    """while condition(*carried): carried = body(*carried)."""
    types = [v.type for v in carried]
    op = scf.WhileOp(types, list(carried))
    before = op.regions[0].blocks.append(*types)
    with ir.InsertionPoint(before):
        scf.condition(condition(*before.arguments), list(before.arguments))
    _fill(op.regions[1].blocks.append(*types), body, carried)
    return list(op.results)


def do_while(
    carried: Sequence[Value], types: Types, attempt: Callable[..., Any], again: Callable[..., Any]
) -> list[Value]:
    """do (repeat, values) = attempt(*carried); while repeat: carried = again(*values). Returns values."""
    results = [type_of(t) for t in types]
    op = scf.WhileOp(results, list(carried))
    before = op.regions[0].blocks.append(*[v.type for v in carried])
    with ir.InsertionPoint(before):
        repeat, values = attempt(*before.arguments)
        scf.condition(repeat, list(values))
    _fill(op.regions[1].blocks.append(*results), again, carried)
    return list(op.results)


# ---- warps and blocks

ALL_LANES = -1


def shuffle_xor(value: Value, distance: int) -> Value:
    """The value of the lane whose number differs in `distance`."""
    args = const(ALL_LANES), value, const(distance), const(31), nvvm.ShflKind.bfly
    return nvvm.shfl_sync(*args, results=[value.type])


def mma(sums: Sequence[Value], a: Sequence[Value], x: Sequence[Value]) -> list[Value]:
    """mma.m16n8k16 of bf16: `a` 16 × 16 in 4 registers, `x` 16 × 8 in 2, sums 16 × 8 f32 in 4 (PTX ISA 9.7.14.5.8)."""
    made = nvvm.mma_sync(
        type_of("!llvm.struct<(f32, f32, f32, f32)>"),
        ir.Attribute.parse("#nvvm.shape<m = 16, n = 8, k = 16>"),
        nvvm.MMALayout.row,
        nvvm.MMALayout.col,
        list(a),
        list(x),
        list(sums),
        multiplicand_a_ptx_type=nvvm.MMATypes.bf16,
        multiplicand_b_ptx_type=nvvm.MMATypes.bf16,
    )
    return [extract(made, e) for e in range(4)]


def transpose_pairs(word: Value) -> Value:
    """An 8 × 8 matrix of 16-bit values, a pair a lane, transposed over the warp (PTX ISA 9.7.14.5.17)."""
    text = "movmatrix.sync.aligned.m8n8.trans.b16 $0, $1;"
    return llvm.inline_asm(word.type, [word], text, "=r,r", has_side_effects=True)


def bytes_of(low: Value, high: Value, picks: int) -> Value:
    """Four bytes of two words, by their numbers in `picks` (PTX ISA, prmt)."""
    return intrinsic("prmt", low.type, low, high, const(picks))


def vote_all(condition: Value) -> Value:
    """Whether the condition holds in all lanes of the warp."""
    return nvvm.vote_sync(
        const(ALL_LANES), condition, nvvm.VoteSyncKind.all, results=[condition.type]
    )


def warp_sync() -> None:
    """All lanes of the warp meet; orders their shared memory."""
    nvvm.bar_warp_sync(const(ALL_LANES))


def named_barrier(number: int, threads: int) -> None:
    """`threads` threads of the block meet at barrier `number`."""
    nvvm.barrier(barrier_id=const(number), number_of_threads=const(threads))


def nanosleep(duration: int | Value) -> None:
    """Leave the issue slots to others for up to twice so many ns."""
    duration = duration if isinstance(duration, ir.Value) else const(duration)
    llvm.call_intrinsic(None, "llvm.nvvm.nanosleep", [duration], [], [])


def clock() -> Value:
    """The SM's clock, i64."""
    return nvvm.read_ptx_sreg_clock64(results=[type_of("i64")])


def clock_low() -> Value:
    """The low word of the SM's clock, i32."""
    return nvvm.read_ptx_sreg_clock(results=[type_of("i32")])


def clock_behind(word: Value) -> Value:
    """As `clock_low`, once a word is there; 0 for a word whose bits are all set, a NaN."""
    text = "{ .reg .pred p; setp.ne.u32 p, $1, -1; mov.u32 $0, 0; @p mov.u32 $0, %clock; }"
    return llvm.inline_asm(word.type, [word], text, "=r,r", has_side_effects=True)


def global_timer() -> Value:
    """The GPU's clock in ns, i64, the same on all SMs; it moves in steps of up to 1 µs."""
    return nvvm.read_ptx_sreg_globaltimer(results=[type_of("i64")])


def fence_gpu() -> None:
    """fence.acq_rel.gpu."""
    llvm.fence(llvm.AtomicOrdering.acq_rel, syncscope="device")


def fence_proxy_async() -> None:
    """Orders this thread's generic accesses to global memory with the copy engine's (PTX ISA 8.6)."""
    nvvm.fence_proxy(nvvm.ProxyKind.async_global)


def set_max_registers(count: int, *, increase: bool) -> None:
    """setmaxnreg: this warpgroup's registers a thread from here on."""
    kind = "increase" if increase else "decrease"
    action = getattr(nvvm.SetMaxRegisterAction, kind)
    nvvm.setmaxregister(count, action)
