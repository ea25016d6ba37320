"""The words of the kernel language beside pointers: each does its work on NumPy arrays, or leaves it behind as LLVM IR."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from llvmlite import ir

from konv.engine.machine import machine
from konv.engine.simd.values import (
    BFLOAT16,
    DOUBLE,
    INT32,
    INT64,
    Value,
    call,
    emit,
    integer,
    is_traced,
    lane_constants,
    mangled,
    spread,
)


class Variable:
    """A value that run-time loops change."""

    def __init__(self, value: Any):
        if emit.tracing and isinstance(value, int):
            value = Value(INT64(value))
        self._traced = isinstance(value, Value)
        if self._traced:
            with emit.goto_entry_block():
                self._slot = emit.alloca(value.ir.type)  # LLVM keeps it in a register
        self.set(value)

    def get(self) -> Any:
        """The value now."""
        return Value(emit.load(self._slot)) if self._traced else self._value

    def set(self, value: Any) -> None:
        """Change the value."""
        if self._traced:
            emit.store(value.ir if isinstance(value, Value) else INT64(value), self._slot)
        else:
            self._value = value


def loop(n: Any) -> Iterator[Any]:
    """``for k in loop(n)``: k = 0 .. n - 1 at run time. The body is traced once; it cannot ``break``."""
    if not emit.tracing:
        yield from range(n)
        return
    before, head, body, done = emit.block, *(emit.append_basic_block(name) for name in ("head", "body", "done"))
    emit.branch(head)
    emit.position_at_end(head)
    k = emit.phi(INT64)
    k.add_incoming(INT64(0), before)
    emit.cbranch(emit.icmp_signed("<", k, integer(n)), body, done)
    emit.position_at_end(body)
    yield Value(k)
    k.add_incoming(emit.add(k, INT64(1)), emit.block)
    emit.branch(head)
    emit.position_at_end(done)


def minimum(a: Any, b: Any) -> Any:
    """The smaller of two integers."""
    return _select("<", a, b) if is_traced(a, b) else min(a, b)


def maximum(a: Any, b: Any) -> Any:
    """The larger of two integers."""
    return _select(">", a, b) if is_traced(a, b) else max(a, b)


def within(i: Any, n: Any) -> Any:
    """1 where 0 <= i < n, else 0: a factor for counts, which needs no branch."""
    if not is_traced(i, n):
        return int(0 <= i < n)
    return Value(emit.zext(emit.icmp_unsigned("<", integer(i), integer(maximum(n, 0))), INT64))


def bits(start: Any, count: Any) -> Any:
    """The integer whose bits start .. count - 1 are set, of bits 0 .. 62: which lanes of some vectors are inside.

    ``bits(start, count) >> n`` says it for vectors n cells further on.
    """
    start, count = (minimum(maximum(n, 0), 63) for n in (start, count))
    if not is_traced(start, count):
        return ((1 << count) - 1) & ~((1 << start) - 1)
    below, before = (emit.sub(emit.shl(INT64(1), integer(n)), INT64(1)) for n in (count, start))
    return Value(emit.and_(below, emit.not_(before)))


def pick(n: Any, a: Any, b: Any) -> Any:
    """a where the integer n is 1, b where it is 0: two pointers, or two integers."""
    if not is_traced(n):
        return a if n else b
    chosen = emit.icmp_signed("!=", n.ir, INT64(0))
    if hasattr(a, "address"):  # a pointer
        return type(a)(emit.select(chosen, a.address, b.address), a.stored)
    return Value(emit.select(chosen, integer(a), integer(b)))


def has_nan(vector: Any) -> Any:
    """1 where some lane of ``vector`` is NaN, else 0."""
    if not is_traced(vector):
        return int(np.isnan(vector).any())
    bits = ir.IntType(vector.lanes)
    lanes = emit.bitcast(emit.fcmp_unordered("uno", vector.ir, vector.ir), bits)
    return Value(emit.zext(emit.icmp_unsigned("!=", lanes, bits(0)), INT64))


def fma(a: Any, b: Any, c: Any) -> Any:
    """``a * b + c`` on vectors, rounded once when traced."""
    if not is_traced(c):
        return a * b + c
    return Value(call(f"llvm.fma.{mangled(c.ir.type)}", c.ir.type, a.ir, b.ir, c.ir))


def root(a: Any) -> Any:
    """The square root of a vector of floats."""
    if not is_traced(a):
        return np.sqrt(a)
    return Value(call(f"llvm.sqrt.{mangled(a.ir.type)}", a.ir.type, a.ir))


def pair(low: Any, high: Any) -> Any:
    """Two float32 vectors of bfloat16 numbers as one of their pairs: integers of 32 bits, ``low`` in the lower half.

    What does not fit bfloat16 is cut off.
    """
    if not is_traced(low):
        bits = (np.ascontiguousarray(v, np.float32).view(np.uint32) for v in (low, high))
        return (next(bits) >> 16 | next(bits) & 0xFFFF0000).view(np.int32)
    a, b = (Value(emit.bitcast(v.ir, ir.VectorType(INT32, v.lanes))) for v in (low, high))
    return Value(emit.or_((a >> 16).ir, (b & -65536).ir))


def dot(a: Any, b: Any, c: Any) -> Any:
    """``c + a.high * b.high``, and to that ``a.low * b.low``: pairs (see :func:`pair`) times pairs, summed in float32 lanes.

    An instruction of CPUs with AVX512_BF16 (:attr:`Machine.dots`), which multiplies at twice the rate of :func:`fma`.
    Products are exact, sums are rounded to nearest even, and what is smaller than a normal number (2**-126) counts as
    zero: in a and b, in c, and where a sum becomes it.
    """
    if not is_traced(c):
        total = _normal(c)
        for half in ("high", "low"):
            x, y = (_normal(_half_of_pairs(v, half)) for v in (a, b))
            with np.errstate(all="ignore"):  # exact in float64, so rounded once
                total = _normal((x.astype(np.float64) * y + total).astype(np.float32))
        return total
    lanes = c.lanes
    pairs = [emit.bitcast(v.ir, ir.VectorType(BFLOAT16, 2 * lanes)) for v in (a, b)]
    return Value(call(f"llvm.x86.avx512bf16.dpbf16ps.{32 * lanes}", c.ir.type, c.ir, *pairs))


def _half_of_pairs(pairs: np.ndarray, half: str) -> np.ndarray:
    bits = np.ascontiguousarray(pairs).view(np.uint32)
    return (bits & 0xFFFF0000 if half == "high" else bits << 16).view(np.float32)


def _normal(vector: np.ndarray) -> np.ndarray:
    """Zero where a number is smaller than a normal one."""
    return np.where(np.abs(vector) < 2.0**-126, np.copysign(np.float32(0), vector), vector)


def beats(a: Any, b: Any) -> Any:
    """Lane by lane of floats whether a > b, or a is NaN and b is not: so the first of equal numbers stays, and the first NaN."""
    if not is_traced(a):
        return (a > b) | (np.isnan(a) & ~np.isnan(b))
    larger, number = emit.fcmp_unordered(">", a.ir, b.ir), emit.fcmp_ordered("ord", b.ir, b.ir)
    return Value(emit.and_(larger, number))


def equal(a: Any, i: Any) -> Any:
    """Lane by lane of 32-bit integers whether a is the integer i."""
    if not is_traced(a):
        return a == i
    return Value(emit.icmp_signed("==", a.ir, whole(i, a.lanes).ir))


def select(condition: Any, a: Any, b: Any) -> Any:
    """Lane by lane a where the condition holds, else b."""
    return Value(emit.select(condition.ir, a.ir, b.ir)) if is_traced(condition) else np.where(condition, a, b)


def whole(i: Any, lanes: int) -> Any:
    """The integer i as 32 bits in every lane."""
    if not emit.tracing:
        return np.full(lanes, i, np.int32)
    return splat(Value(emit.trunc(integer(i), INT32)), lanes)


def splat(scalar: Any, lanes: int) -> Any:
    """A vector with ``scalar`` in every lane."""
    return spread(scalar, lanes) if is_traced(scalar) else np.full(lanes, scalar)


def pinned(vector: Any) -> Any:
    """The vector itself, computed at this place: no instruction, but the compiler's scheduler keeps the order of pinned ones.

    In a loop that needs nearly all registers the scheduler would else read ahead, and keep sums on the stack to do so.
    """
    size = vector.lanes * (8 if vector.ir.type.element == DOUBLE else 4) if is_traced(vector) else 0
    if not 16 <= size <= machine().vector_bytes:
        return vector  # one that takes several registers, or half of one, has no name in assembly
    kind = ir.FunctionType(vector.ir.type, [vector.ir.type])
    register = "w" if emit.module.triple.startswith(("aarch64", "arm")) else "v"  # any vector register
    return Value(emit.asm(kind, "", f"={register},0", [vector.ir], True))


def fence() -> None:
    """What was streamed before is seen by every thread that sees what is written after."""
    if emit.tracing:
        emit.fence("seq_cst")


def shuffle(a: Any, b: Any, order: Sequence[int]) -> Any:
    """The lanes ``order`` of a and b laid end to end."""
    if not is_traced(a):
        return np.concatenate([a, b])[list(order)]
    return Value(emit.shuffle_vector(a.ir, b.ir, lane_constants(order)))


def transpose(rows: Sequence[Any], unit: int = 1) -> list[Any]:
    """n vectors of n lanes (or of n units of several) -> their transpose.

    First within the 16 bytes of which every vector register consists, then these: on an AMD Zen 4 16 x 16 numbers, read and
    written, take 15 ns, in rounds that cross those borders 27.
    """
    n, lanes = len(rows), len(rows) * unit
    size = (8 if rows[0].ir.type.element == DOUBLE else 4) if is_traced(rows[0]) else rows[0].itemsize
    piece = max(1, min(n, 16 // (size * unit)))  # units of one
    low = [i // piece * piece + i % piece // 2 + n * (i % 2) for i in range(n)] if piece > 1 else []
    low = [i * unit + k for i in low for k in range(unit)]
    high = [i + piece // 2 * unit for i in low]
    found = [_rounds(rows[first : first + piece], low, high) for first in range(0, n, piece)]
    columns = [deinterleave([vectors[c] for vectors in found], lanes, piece * unit) for c in range(piece)]
    return [column[i] for i in range(n // piece) for column in columns]


def interleave(vectors: Sequence[Any], lanes: int, unit: int = 1) -> list[Any]:
    """s = 2**m vectors -> the same numbers lane by lane: number ``l * s + t`` of the result is lane l of vector t.

    A round interleaves vector i with vector i + s / 2: in the numbers' binary place, the first digit becomes the last.
    With ``unit`` so many lanes at a time.
    """
    low = [i // (2 * unit) * unit + i % unit + (lanes if i // unit % 2 else 0) for i in range(lanes)]
    return _rounds(vectors, low, [lanes // 2 + i for i in low])


def deinterleave(vectors: Sequence[Any], lanes: int, unit: int = 1) -> list[Any]:
    """The inverse of :func:`interleave`: vector t of the result has every s-th number, from number t on."""
    s, vectors = len(vectors), list(vectors)
    orders = [[i + k for i in range(odd * unit, 2 * lanes, 2 * unit) for k in range(unit)] for odd in (0, 1)]
    for _ in range(s.bit_length() - 1):
        pairs = [(vectors[i], vectors[i + 1]) for i in range(0, s, 2)]
        vectors = [shuffle(a, b, order) for order in orders for a, b in pairs]
    return vectors


def _rounds(vectors: Sequence[Any], low: Sequence[int], high: Sequence[int]) -> list[Any]:
    """Of s = 2**m vectors i and i + s / 2 are shuffled, m times."""
    s, vectors = len(vectors), list(vectors)
    for _ in range(s.bit_length() - 1):
        pairs = [(vectors[i], vectors[i + s // 2]) for i in range(s // 2)]
        vectors = [shuffle(a, b, order) for a, b in pairs for order in (low, high)]
    return vectors


def _select(comparison: str, a: Any, b: Any) -> Value:
    x, y = integer(a), integer(b)
    return Value(emit.select(emit.icmp_signed(comparison, x, y), x, y))
