"""The kernel language: one text that runs on NumPy arrays in plain Python and, traced once, becomes machine code.

A kernel is a Python function over pointers, integers and vectors. Python's own loops and lists unroll while it is traced;
what is to happen at run time is said with a few words:

=============================  ===============================================================================
``for k in loop(n): ...``      a run-time loop, k = 0 .. n - 1, empty when n <= 0
``acc = Variable(value)``      a value that a run-time loop changes: ``acc.set(fma(a, b, acc.get()))``
``p[i]``, ``p[i] = value``     one element; ``p.at(i)`` is the pointer moved by i elements
``p.vec(i, lanes)``            neighbouring elements as a vector; ``p.put(i, vector)`` writes one. With ``count`` only the
                               first lanes are touched (the others read as ``fill``), with ``start`` only later ones
``p.gather``, ``p.scatter``    the same with a stride between the elements; ``p.alternate`` reads every other one, ``p.both``
                               those and the others, ``p.weave`` writes two vectors' lanes in turns: of bfloat16 cheapest
``p.zero p.full whole``        vectors of one number
``p.prefetch(i)``              asks for the cache line of an element
``p.stream(i, vector)``        ``put`` past the caches, where a vector's lines begin; ``fence`` after the last
``fma splat shuffle``          vector instructions;  ``+ - *`` work on vectors and integers
``transpose interleave``       other orders of several vectors' lanes; ``deinterleave`` undoes the latter
``pair(low, high)``            two vectors of bfloat16 numbers as one of pairs, in integers of 32 bits; ``p.pairs`` reads such
``dot(a, b, c)``               the products of two vectors of pairs, added to c; ``p.as_`` sees other elements in memory
``pinned(vector)``             the vector; pinned ones are computed in the order in which they are written
``beats equal select``         comparisons lane by lane, and a choice between two vectors;  ``/`` divides vectors of floats
``minimum maximum // %``       index arithmetic (``//`` and ``%`` for numbers that are not negative)
``has_nan``                    1 where a lane is NaN, else 0
``within pick bits``           1 or 0; a choice between two integers or pointers without a branch; a mask of lanes as an integer
=============================  ===============================================================================

Called with :class:`ArrayPointer` and Python integers the same function runs in plain Python: for tests, for debugging,
for a reader. Called by :mod:`konv.engine.compile` the words leave LLVM IR behind. No source text is ever generated.
Elements are stored as float32, float64, float16, bfloat16, int64, int32 or uint8; the half types are widened to float32
when read and rounded to nearest even when written, uint8 is int32 in vectors. What is known at run time only has no truth:
``if`` and ``and`` on a traced value are refused.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from llvmlite import ir

from konv.engine.machine import machine


class _BFloat16(ir.Type):
    """LLVM's type of that name: :func:`dot` has operands of it. Elsewhere bfloat16 is its 16 bits."""

    def __str__(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat16)

    def __hash__(self) -> int:
        return hash(_BFloat16)


BOOL, INT8, INT32, INT64 = ir.IntType(1), ir.IntType(8), ir.IntType(32), ir.IntType(64)
FLOAT, DOUBLE, HALF, BITS16 = ir.FloatType(), ir.DoubleType(), ir.HalfType(), ir.IntType(16)
STORED = {
    "float32": FLOAT, "float64": DOUBLE, "float16": HALF, "bfloat16": BITS16, "int64": INT64, "int32": INT32, "uint8": INT8,
}  # fmt: skip
ITEMSIZE = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "uint8": 1}
BFLOAT16 = _BFloat16()
FAST = ("contract", "nsz")  # a * b + c may be one instruction, the sign of zero is free; NaN and infinity are kept

_builder: Any = None  # where traced words leave their IR; None while kernels run on NumPy


@contextlib.contextmanager
def trace_into(builder: ir.IRBuilder) -> Iterator[None]:
    """Trace: inside this context the words of the language emit IR through ``builder``."""
    global _builder
    outer, _builder = _builder, builder
    try:
        yield
    finally:
        _builder = outer


class Value:
    """A traced integer, float or vector."""

    __array_ufunc__ = None  # NumPy scalars on the left leave the operation to us

    def __init__(self, value: ir.Value):
        self.ir = value

    @property
    def lanes(self) -> int:
        """Number of lanes; 0 for a scalar."""
        return self.ir.type.count if isinstance(self.ir.type, ir.VectorType) else 0

    def __add__(self, other):
        return self if _is_number(other, 0) else _binary("add", self, other)

    def __radd__(self, other):
        return self if _is_number(other, 0) else _binary("add", other, self)

    def __sub__(self, other):
        return self if _is_number(other, 0) else _binary("sub", self, other)

    def __rsub__(self, other):
        return _binary("sub", other, self)

    def __mul__(self, other):
        return self if _is_number(other, 1) else _binary("mul", self, other)

    __rmul__ = __mul__

    def __truediv__(self, other):
        return Value(_builder.fdiv(self.ir, _like(other, self).ir))

    def __bool__(self):
        raise TypeError(
            "a traced value has no truth: it is known when the kernel runs, not while its text is read; use loop(n) with n = 0 "
            "or 1, or select(), instead of if, and, or, not, min() and max()"
        )

    def __eq__(self, other):
        raise TypeError(
            "a traced value equals nothing before the kernel runs: use within(), equal() or select() instead of =="
        )

    __hash__ = object.__hash__

    def __index__(self):
        raise TypeError("a traced value is no Python integer: use loop(n) instead of range(n)")

    def __neg__(self):
        return Value(_builder.neg(self.ir) if _whole(self) else _builder.fneg(self.ir))

    def __rshift__(self, other):
        return self if _is_number(other, 0) else Value(_builder.lshr(self.ir, _like(other, self).ir))

    def __and__(self, other):
        return Value(_builder.and_(self.ir, _like(other, self).ir))

    def __floordiv__(self, other):
        return self if _is_number(other, 1) else Value(_builder.sdiv(self.ir, _like(other, self).ir))

    def __mod__(self, other):
        return Value(_builder.srem(self.ir, _like(other, self).ir))


class Variable:
    """A value that run-time loops change."""

    def __init__(self, value: Any):
        if _builder is not None and isinstance(value, int):
            value = Value(INT64(value))
        self._traced = isinstance(value, Value)
        if self._traced:
            with _builder.goto_entry_block():
                self._slot = _builder.alloca(value.ir.type)  # LLVM keeps it in a register
        self.set(value)

    def get(self) -> Any:
        """The value now."""
        return Value(_builder.load(self._slot)) if self._traced else self._value

    def set(self, value: Any) -> None:
        """Change the value."""
        if self._traced:
            _builder.store(value.ir if isinstance(value, Value) else INT64(value), self._slot)
        else:
            self._value = value


def loop(n: Any) -> Iterator[Any]:
    """``for k in loop(n)``: k = 0 .. n - 1 at run time. The body is traced once; it cannot ``break``."""
    if _builder is None:
        yield from range(n)
        return
    before, head, body, done = _builder.block, *(_builder.append_basic_block(name) for name in ("head", "body", "done"))
    _builder.branch(head)
    _builder.position_at_end(head)
    k = _builder.phi(INT64)
    k.add_incoming(INT64(0), before)
    _builder.cbranch(_builder.icmp_signed("<", k, _integer(n)), body, done)
    _builder.position_at_end(body)
    yield Value(k)
    k.add_incoming(_builder.add(k, INT64(1)), _builder.block)
    _builder.branch(head)
    _builder.position_at_end(done)


def minimum(a: Any, b: Any) -> Any:
    """The smaller of two integers."""
    return _select("<", a, b) if _traced(a, b) else min(a, b)


def maximum(a: Any, b: Any) -> Any:
    """The larger of two integers."""
    return _select(">", a, b) if _traced(a, b) else max(a, b)


def within(i: Any, n: Any) -> Any:
    """1 where 0 <= i < n, else 0: a factor for counts, which needs no branch."""
    if not _traced(i, n):
        return int(0 <= i < n)
    return Value(_builder.zext(_builder.icmp_unsigned("<", _integer(i), _integer(maximum(n, 0))), INT64))


def bits(start: Any, count: Any) -> Any:
    """The integer whose bits start .. count - 1 are set, of bits 0 .. 62: which lanes of some vectors are inside.

    ``bits(start, count) >> n`` says it for vectors n cells further on.
    """
    start, count = (minimum(maximum(n, 0), 63) for n in (start, count))
    if not _traced(start, count):
        return ((1 << count) - 1) & ~((1 << start) - 1)
    below, before = (_builder.sub(_builder.shl(INT64(1), _integer(n)), INT64(1)) for n in (count, start))
    return Value(_builder.and_(below, _builder.not_(before)))


def pick(n: Any, a: Any, b: Any) -> Any:
    """a where the integer n is 1, b where it is 0: two pointers, or two integers."""
    if not _traced(n):
        return a if n else b
    chosen = _builder.icmp_signed("!=", n.ir, INT64(0))
    if isinstance(a, Pointer):
        return Pointer(_builder.select(chosen, a.address, b.address), a.stored)
    return Value(_builder.select(chosen, _integer(a), _integer(b)))


def has_nan(vector: Any) -> Any:
    """1 where some lane of ``vector`` is NaN, else 0."""
    if not _traced(vector):
        return int(np.isnan(vector).any())
    bits = ir.IntType(vector.lanes)
    lanes = _builder.bitcast(_builder.fcmp_unordered("uno", vector.ir, vector.ir), bits)
    return Value(_builder.zext(_builder.icmp_unsigned("!=", lanes, bits(0)), INT64))


def fma(a: Any, b: Any, c: Any) -> Any:
    """``a * b + c`` on vectors, rounded once when traced."""
    if not _traced(c):
        return a * b + c
    return Value(_call(f"llvm.fma.{_mangled(c.ir.type)}", c.ir.type, a.ir, b.ir, c.ir))


def pair(low: Any, high: Any) -> Any:
    """Two float32 vectors of bfloat16 numbers as one of their pairs: integers of 32 bits, ``low`` in the lower half.

    What does not fit bfloat16 is cut off.
    """
    if not _traced(low):
        bits = (np.ascontiguousarray(v, np.float32).view(np.uint32) for v in (low, high))
        return (next(bits) >> 16 | next(bits) & 0xFFFF0000).view(np.int32)
    a, b = (Value(_builder.bitcast(v.ir, ir.VectorType(INT32, v.lanes))) for v in (low, high))
    return Value(_builder.or_((a >> 16).ir, (b & -65536).ir))


def dot(a: Any, b: Any, c: Any) -> Any:
    """``c + a.high * b.high``, and to that ``a.low * b.low``: pairs (see :func:`pair`) times pairs, summed in float32 lanes.

    An instruction of CPUs with AVX512_BF16 (:attr:`Machine.dots`), which multiplies at twice the rate of :func:`fma`.
    Products are exact, sums are rounded to nearest even, and what is smaller than a normal number (2**-126) counts as
    zero: in a and b, in c, and where a sum becomes it.
    """
    if not _traced(c):
        total = _normal(c)
        for half in ("high", "low"):
            x, y = (_normal(_half_of_pairs(v, half)) for v in (a, b))
            with np.errstate(all="ignore"):  # exact in float64, so rounded once
                total = _normal((x.astype(np.float64) * y + total).astype(np.float32))
        return total
    lanes = c.lanes
    pairs = [_builder.bitcast(v.ir, ir.VectorType(BFLOAT16, 2 * lanes)) for v in (a, b)]
    return Value(_call(f"llvm.x86.avx512bf16.dpbf16ps.{32 * lanes}", c.ir.type, c.ir, *pairs))


def _half_of_pairs(pairs: np.ndarray, half: str) -> np.ndarray:
    bits = np.ascontiguousarray(pairs).view(np.uint32)
    return (bits & 0xFFFF0000 if half == "high" else bits << 16).view(np.float32)


def _normal(vector: np.ndarray) -> np.ndarray:
    """Zero where a number is smaller than a normal one."""
    return np.where(np.abs(vector) < 2.0**-126, np.copysign(np.float32(0), vector), vector)


def beats(a: Any, b: Any) -> Any:
    """Lane by lane of floats whether a > b, or a is NaN and b is not: so the first of equal numbers stays, and the first NaN."""
    if not _traced(a):
        return (a > b) | (np.isnan(a) & ~np.isnan(b))
    larger, number = _builder.fcmp_unordered(">", a.ir, b.ir), _builder.fcmp_ordered("ord", b.ir, b.ir)
    return Value(_builder.and_(larger, number))


def equal(a: Any, i: Any) -> Any:
    """Lane by lane of 32-bit integers whether a is the integer i."""
    if not _traced(a):
        return a == i
    return Value(_builder.icmp_signed("==", a.ir, whole(i, a.lanes).ir))


def select(condition: Any, a: Any, b: Any) -> Any:
    """Lane by lane a where the condition holds, else b."""
    return Value(_builder.select(condition.ir, a.ir, b.ir)) if _traced(condition) else np.where(condition, a, b)


def whole(i: Any, lanes: int) -> Any:
    """The integer i as 32 bits in every lane."""
    if _builder is None:
        return np.full(lanes, i, np.int32)
    return splat(Value(_builder.trunc(_integer(i), INT32)), lanes)


def splat(scalar: Any, lanes: int) -> Any:
    """A vector with ``scalar`` in every lane."""
    if not _traced(scalar):
        return np.full(lanes, scalar)
    vector = ir.VectorType(scalar.ir.type, lanes)
    first = _builder.insert_element(ir.Constant(vector, ir.Undefined), scalar.ir, INT32(0))
    return Value(_builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), _lane_constants([0] * lanes)))


def pinned(vector: Any) -> Any:
    """The vector itself, computed at this place: no instruction, but the compiler's scheduler keeps the order of pinned ones.

    In a loop that needs nearly all registers the scheduler would else read ahead, and keep sums on the stack to do so.
    """
    size = vector.lanes * (8 if vector.ir.type.element == DOUBLE else 4) if _traced(vector) else 0
    if not 16 <= size <= machine().vector_bytes:
        return vector  # one that takes several registers, or half of one, has no name in assembly
    kind = ir.FunctionType(vector.ir.type, [vector.ir.type])
    register = "w" if _builder.module.triple.startswith(("aarch64", "arm")) else "v"  # any vector register
    return Value(_builder.asm(kind, "", f"={register},0", [vector.ir], True))


def fence() -> None:
    """What was streamed before is seen by every thread that sees what is written after."""
    if _builder is not None:
        _builder.fence("seq_cst")


def shuffle(a: Any, b: Any, order: Sequence[int]) -> Any:
    """The lanes ``order`` of a and b laid end to end."""
    if not _traced(a):
        return np.concatenate([a, b])[list(order)]
    return Value(_builder.shuffle_vector(a.ir, b.ir, _lane_constants(order)))


def transpose(rows: Sequence[Any], unit: int = 1) -> list[Any]:
    """n vectors of n lanes (or of n units of several) -> their transpose, in log2(n) rounds: row i with row i + n / 2."""
    return interleave(rows, len(rows) * unit, unit)


def interleave(vectors: Sequence[Any], lanes: int, unit: int = 1) -> list[Any]:
    """s = 2**m vectors -> the same numbers lane by lane: number ``l * s + t`` of the result is lane l of vector t.

    A round interleaves vector i with vector i + s / 2: in the numbers' binary place, the first digit becomes the last.
    With ``unit`` so many lanes at a time.
    """
    s, vectors = len(vectors), list(vectors)
    low = [i // (2 * unit) * unit + i % unit + (lanes if i // unit % 2 else 0) for i in range(lanes)]
    high = [lanes // 2 + i for i in low]
    for _ in range(s.bit_length() - 1):
        pairs = [(vectors[i], vectors[i + s // 2]) for i in range(s // 2)]
        vectors = [shuffle(a, b, order) for a, b in pairs for order in (low, high)]
    return vectors


def deinterleave(vectors: Sequence[Any], lanes: int) -> list[Any]:
    """The inverse of :func:`interleave`: vector t of the result has every s-th number, from number t on."""
    s, vectors = len(vectors), list(vectors)
    for _ in range(s.bit_length() - 1):
        pairs = [(vectors[i], vectors[i + 1]) for i in range(0, s, 2)]
        vectors = [shuffle(a, b, range(odd, 2 * lanes, 2)) for odd in (0, 1) for a, b in pairs]
    return vectors


class Pointer:
    """A traced pointer to elements stored as ``stored``."""

    def __init__(self, address: ir.Value, stored: str, aligned: int | None = None):
        self.address, self.stored, self.aligned = address, stored, aligned or ITEMSIZE[stored]

    def at(self, i: Any) -> Pointer:
        """The pointer i elements further on."""
        address = _builder.gep(self.address, [_integer(i)], source_etype=STORED[self.stored])
        return Pointer(address, self.stored, self.aligned)

    def as_(self, stored: str) -> Pointer:
        """The same memory as elements of another type, which may lie across the boundaries of such."""
        return Pointer(self.address, stored, min(self.aligned, ITEMSIZE[stored]))

    def __getitem__(self, i: Any) -> Value:
        stored = _builder.load(self.at(i).address, typ=STORED[self.stored], align=self.aligned)
        element = _widened(stored, self.stored)
        return Value(_builder.sext(element, INT64) if element.type == INT32 else element)

    def __setitem__(self, i: Any, value: Any) -> None:
        scalar = value.ir if isinstance(value, Value) else _computed(self.stored)(value)
        if _computed(self.stored) == INT32 and scalar.type == INT64:
            scalar = _builder.trunc(scalar, INT32)
        _builder.store(_narrowed(scalar, self.stored), self.at(i).address)

    def vec(self, i: Any, lanes: int, count: Any = None, start: Any = None, bits: Any = None, fill: float = 0) -> Value:
        """Elements i .. i + lanes - 1; lanes outside start .. count - 1 are ``fill``, their memory is not touched.

        ``bits``: instead of count and start, an integer whose lowest bits tell the lanes (see :func:`bits`).
        """
        vector, address, size = ir.VectorType(STORED[self.stored], lanes), self.at(i).address, ITEMSIZE[self.stored]
        if count is None and start is None and bits is None:
            loaded = _builder.load(address, typ=vector, align=size)
        else:
            mask = _mask(lanes, lanes if count is None else count, start) if bits is None else _bit_mask(lanes, bits)
            name = f"llvm.masked.load.{_mangled(vector)}.p0"
            return self._filled(_call(name, vector, address, INT32(size), mask, _zeros(vector)), mask, fill)
        return Value(_widened(loaded, self.stored))

    def pairs(self, i: Any, lanes: int, count: Any = None) -> Value:
        """bfloat16 elements i .. i + 2 * lanes - 1 as pairs (see :func:`pair`); from ``count`` on zeros, and not touched."""
        vector, address, size = ir.VectorType(BITS16, 2 * lanes), self.at(i).address, ITEMSIZE[self.stored]
        if count is None:
            loaded = _builder.load(address, typ=vector, align=size)
        else:
            name, mask = f"llvm.masked.load.{_mangled(vector)}.p0", _mask(2 * lanes, count, None)
            loaded = _call(name, vector, address, INT32(size), mask, _zeros(vector))
        return Value(_builder.bitcast(loaded, ir.VectorType(INT32, lanes)))

    def put(self, i: Any, vector: Value, count: Any = None, start: Any = None, bits: Any = None) -> None:
        """Write a vector to i, i + 1, ...; the memory of lanes outside start .. count - 1 (or ``bits``) is not touched."""
        value, address, size = _narrowed(vector.ir, self.stored), self.at(i).address, ITEMSIZE[self.stored]
        if count is None and start is None and bits is None:
            _builder.store(value, address, align=size)
        else:
            lanes = value.type.count
            name = f"llvm.masked.store.{_mangled(value.type)}.p0"
            mask = _mask(lanes, lanes if count is None else count, start) if bits is None else _bit_mask(lanes, bits)
            _call(name, ir.VoidType(), value, address, INT32(size), mask)

    def stream(self, i: Any, vector: Value) -> None:
        """Write a vector past the caches, for what nobody reads soon. Its address is a multiple of its size in bytes."""
        value = _narrowed(vector.ir, self.stored)
        written = _builder.store(value, self.at(i).address, align=ITEMSIZE[self.stored] * value.type.count)
        written.set_metadata("nontemporal", _builder.module.add_metadata([INT32(1)]))

    def gather(self, i: Any, stride: Any, lanes: int, count: Any, start: Any = None, fill: float = 0) -> Value:
        """Elements i, i + stride, ... of the lanes start .. count - 1; the others are ``fill``."""
        vector = ir.VectorType(STORED[self.stored], lanes)
        name = f"llvm.masked.gather.{_mangled(vector)}.v{lanes}p0"
        addresses, mask = self._strided(i, stride, lanes), _mask(lanes, count, start)
        loaded = _call(name, vector, addresses, INT32(ITEMSIZE[self.stored]), mask, _zeros(vector))
        return self._filled(loaded, mask, fill)

    def scatter(self, i: Any, stride: Any, vector: Value, count: Any) -> None:
        """Write the lanes < count to i, i + stride, ..."""
        value, lanes = _narrowed(vector.ir, self.stored), vector.lanes
        name = f"llvm.masked.scatter.{_mangled(value.type)}.v{lanes}p0"
        addresses, mask = self._strided(i, stride, lanes), _mask(lanes, count, None)
        _call(name, ir.VoidType(), value, addresses, INT32(ITEMSIZE[self.stored]), mask)

    def alternate(self, i: Any, lanes: int, bits: Any = None) -> Value:
        """Elements i, i + 2, ...: every other one of the 2 * ``lanes`` that ``bits`` may tell (see :meth:`vec`).

        Of bfloat16 one instruction, on CPUs that mask halves: what is left out of the line from i - 1 on is zero, so each element
        is the upper half of a float32. Half the time of reading neighbours and widening them.
        """
        if self.stored == "bfloat16" and machine().dots:
            vector, upper = ir.VectorType(BITS16, 2 * lanes), sum(2 << i for i in range(0, 2 * lanes, 2))
            mask = _bit_mask(2 * lanes, upper if bits is None else (bits * 2) & upper)
            name = f"llvm.masked.load.{_mangled(vector)}.p0"
            loaded = _call(name, vector, self.at(i - 1).address, INT32(2), mask, _zeros(vector))
            return Value(_builder.bitcast(loaded, ir.VectorType(FLOAT, lanes)))
        low, high = (self.vec(i + at, lanes, bits=None if bits is None else bits >> at) for at in (0, lanes))
        return shuffle(low, high, range(0, 2 * lanes, 2))

    def both(self, i: Any, lanes: int, bits: Any = None) -> tuple[Value, Value]:
        """Elements i, i + 2, ... and i + 1, i + 3, ...: as two :meth:`alternate`, of one read."""
        if not (self.stored == "bfloat16" and machine().dots):
            low, high = (self.vec(i + at, lanes, bits=None if bits is None else bits >> at) for at in (0, lanes))
            return shuffle(low, high, range(0, 2 * lanes, 2)), shuffle(low, high, range(1, 2 * lanes, 2))
        vector = ir.VectorType(BITS16, 2 * lanes)
        if bits is None:
            loaded = _builder.load(self.at(i).address, typ=vector, align=2)
        else:
            name = f"llvm.masked.load.{_mangled(vector)}.p0"
            loaded = _call(name, vector, self.at(i).address, INT32(2), _bit_mask(2 * lanes, bits), _zeros(vector))
        pairs = Value(_builder.bitcast(loaded, ir.VectorType(INT32, lanes)))
        halves = _builder.shl(pairs.ir, _filled(INT32, 16, pairs.ir)), (pairs & -65536).ir
        even, odd = (Value(_builder.bitcast(half, ir.VectorType(FLOAT, lanes))) for half in halves)
        return even, odd

    def weave(self, i: Any, even: Value, odd: Value, count: Any = None) -> None:
        """Write two vectors' lanes in turns: even[0] to i, odd[0] to i + 1, even[1] to i + 2, ...; ``count`` of all of them."""
        lanes = even.lanes
        if self.stored == "bfloat16" and machine().dots:
            # NaN of bfloat16 numbers has no bits that rounding could carry upwards
            low, high = (Value(_bfloat16_rounded(v.ir)) for v in (even, odd))
            cells = _builder.bitcast(_builder.or_((low >> 16).ir, (high & -65536).ir), ir.VectorType(BITS16, 2 * lanes))
            address = self.at(i).address
            if count is None:
                _builder.store(cells, address, align=2)
            else:
                name = f"llvm.masked.store.{_mangled(cells.type)}.p0"
                _call(name, ir.VoidType(), cells, address, INT32(2), _mask(2 * lanes, count, None))
            return
        for k, vector in enumerate(interleave([even, odd], lanes)):
            self.put(i + k * lanes, vector, count=None if count is None else count - k * lanes)

    def zero(self, lanes: int) -> Value:
        """A vector of zeros of the type that elements are computed in."""
        return Value(_zeros(ir.VectorType(_computed(self.stored), lanes)))

    def full(self, lanes: int, number: float) -> Value:
        """A vector of one number, of the type that elements are computed in."""
        return Value(ir.Constant(ir.VectorType(_computed(self.stored), lanes), [number] * lanes))

    def prefetch(self, i: Any, write: bool = False, later: bool = False) -> None:
        """Ask for the cache line of element i, to read it or to ``write`` to it; ``later``: the nearest cache is left alone."""
        near = INT32(2 if later else 3)
        _call("llvm.prefetch.p0", ir.VoidType(), self.at(i).address, INT32(int(write)), near, INT32(1))

    def _filled(self, loaded: ir.Value, mask: ir.Value, fill: float) -> Value:
        value = Value(_widened(loaded, self.stored))
        return select(Value(mask), value, self.full(value.lanes, fill)) if fill else value

    def _strided(self, i: Any, stride: Any, lanes: int) -> ir.Value:
        size = ITEMSIZE[self.stored]
        lane = ir.Constant(ir.VectorType(INT64, lanes), [k * size for k in range(lanes)])
        first = Value(_builder.ptrtoint(self.at(i).address, INT64))
        cells = _builder.add(splat(first, lanes).ir, _builder.mul(splat(Value(_integer(stride)), lanes).ir, lane))
        return _builder.inttoptr(cells, ir.VectorType(ir.PointerType(), lanes))


class ArrayPointer:
    """The twin of :class:`Pointer` on a one-dimensional NumPy array: bounds are checked, nothing is compiled."""

    def __init__(self, array: np.ndarray, base: int = 0):
        self.array, self.base = array, base

    def at(self, i: int) -> ArrayPointer:
        """As :meth:`Pointer.at`."""
        return ArrayPointer(self.array, self.base + i)

    def as_(self, stored: str) -> ArrayPointer:
        """As :meth:`Pointer.as_`."""
        size, first = np.dtype(stored).itemsize, self.base * self.array.itemsize
        cells = self.array.view(np.uint8)[first % size :]
        return ArrayPointer(cells[: len(cells) // size * size].view(stored), first // size)

    def __getitem__(self, i: int) -> Any:
        element = self._read(self._cells(np.array([i])) - self.base, np.array([0]), 1, 0)[0]
        return int(element) if isinstance(element, np.integer) else element

    def __setitem__(self, i: int, value: Any) -> None:
        self.array[self._cells(np.array([i]))] = value

    def vec(
        self, i: int, lanes: int, count: int | None = None, start: int | None = None, bits: int | None = None,
        fill: float = 0,
    ) -> np.ndarray:  # fmt: skip
        """As :meth:`Pointer.vec`."""
        used = _used(lanes, count, start, bits)
        return self._read(i + used, used, lanes, fill)

    def pairs(self, i: int, lanes: int, count: int | None = None) -> np.ndarray:
        """As :meth:`Pointer.pairs`."""
        return pair(*self.vec(i, 2 * lanes, count).reshape(lanes, 2).T)

    def put(
        self, i: int, vector: np.ndarray, count: int | None = None, start: int | None = None, bits: int | None = None
    ) -> None:
        """As :meth:`Pointer.put`."""
        used = _used(len(vector), count, start, bits)
        self.array[self._cells(i + used)] = vector[used]

    def stream(self, i: int, vector: np.ndarray) -> None:
        """As :meth:`Pointer.stream`."""
        self.put(i, vector)

    def gather(
        self, i: int, stride: int, lanes: int, count: int, start: int | None = None, fill: float = 0
    ) -> np.ndarray:
        """As :meth:`Pointer.gather`."""
        used = _used(lanes, count, start)
        return self._read(i + stride * used, used, lanes, fill)

    def scatter(self, i: int, stride: int, vector: np.ndarray, count: int) -> None:
        """As :meth:`Pointer.scatter`."""
        used = _used(len(vector), count, None)
        self.array[self._cells(i + stride * used)] = vector[used]

    def alternate(self, i: int, lanes: int, bits: int | None = None) -> np.ndarray:
        """As :meth:`Pointer.alternate`."""
        used = _used(2 * lanes, None, None, bits)
        used = used[used % 2 == 0]
        return self._read(i + used, used // 2, lanes, 0)

    def both(self, i: int, lanes: int, bits: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """As :meth:`Pointer.both`."""
        cells = self.vec(i, 2 * lanes, bits=bits)
        return cells[::2], cells[1::2]

    def weave(self, i: int, even: np.ndarray, odd: np.ndarray, count: int | None = None) -> None:
        """As :meth:`Pointer.weave`."""
        self.put(i, np.stack([even, odd], axis=1).reshape(-1), count)

    def zero(self, lanes: int) -> np.ndarray:
        """As :meth:`Pointer.zero`."""
        return np.zeros(lanes, self._wide)

    def full(self, lanes: int, number: float) -> np.ndarray:
        """As :meth:`Pointer.full`."""
        return np.full(lanes, number, self._wide)

    def prefetch(self, i: int, write: bool = False, later: bool = False) -> None:
        """As :meth:`Pointer.prefetch`: nothing."""

    @property
    def _wide(self) -> np.dtype:
        if self.array.dtype == np.uint8:
            return np.dtype(np.int32)
        return self.array.dtype if self.array.dtype.itemsize >= 4 else np.dtype(np.float32)

    def _read(self, cells: np.ndarray, used: np.ndarray, lanes: int, fill: float) -> np.ndarray:
        vector = np.full(lanes, fill, self._wide)
        vector[used] = self.array[self._cells(cells)]
        return vector

    def _cells(self, cells: np.ndarray) -> np.ndarray:
        cells = self.base + cells
        if cells.size and (cells.min() < 0 or cells.max() >= self.array.size):
            raise IndexError(
                f"a kernel touches elements {cells.min()} .. {cells.max()} of an array of {self.array.size}"
            )
        return cells


def _used(lanes: int, count: int | None, start: int | None, bits: int | None = None) -> np.ndarray:
    """The lanes start .. count - 1, or those of ``bits``."""
    lane = np.arange(lanes)
    if bits is not None:
        return lane[[bool(bits >> i & 1) for i in range(lanes)]]
    return lane[(lane < (lanes if count is None else count)) & (lane >= (0 if start is None else start))]


def _computed(stored: str) -> ir.Type:
    """The type that elements are computed in: float32 for the half types, int32 for bytes."""
    return {"float16": FLOAT, "bfloat16": FLOAT, "uint8": INT32}.get(stored, STORED[stored])


def _traced(*values: Any) -> bool:
    return any(isinstance(value, Value) for value in values)


def _is_number(value: Any, number: int) -> bool:
    return isinstance(value, (int, float)) and value == number


def _integer(i: Any) -> ir.Value:
    return i.ir if isinstance(i, Value) else INT64(int(i))


def _like(value: Any, other: Value) -> Value:
    """``value`` as a Value of the type of ``other``: constants are converted, scalars spread over the lanes."""
    kind = other.ir.type
    if isinstance(value, Value):
        return splat(value, other.lanes) if other.lanes and not value.lanes else value
    if not isinstance(kind, ir.VectorType):
        return Value(ir.Constant(kind, value))
    lane = value if isinstance(kind.element, ir.IntType) else float(value)
    return Value(ir.Constant(kind, [lane] * kind.count))


def _binary(name: str, a: Any, b: Any) -> Value:
    if isinstance(a, Value) and (not isinstance(b, Value) or a.lanes):
        b = _like(b, a)
    else:
        a = _like(a, b)
    if _whole(a):
        return Value(getattr(_builder, name)(a.ir, b.ir))
    return Value(getattr(_builder, "f" + name)(a.ir, b.ir, flags=FAST))


def _whole(value: Value) -> bool:
    """Whether its lanes are integers."""
    kind = value.ir.type
    return isinstance(kind.element if isinstance(kind, ir.VectorType) else kind, ir.IntType)


def _select(comparison: str, a: Any, b: Any) -> Value:
    x, y = _integer(a), _integer(b)
    return Value(_builder.select(_builder.icmp_signed(comparison, x, y), x, y))


def _call(name: str, result: ir.Type, *arguments: ir.Value) -> ir.Value:
    module = _builder.module
    if name not in module.globals:
        ir.Function(module, ir.FunctionType(result, [a.type for a in arguments]), name)
    return _builder.call(module.globals[name], arguments)


def _mangled(kind: ir.Type) -> str:
    """LLVM's name of a type in the names of its intrinsics."""
    if isinstance(kind, ir.VectorType):
        return f"v{kind.count}{_mangled(kind.element)}"
    return f"i{kind.width}" if isinstance(kind, ir.IntType) else {FLOAT: "f32", DOUBLE: "f64", HALF: "f16"}[kind]


def _lane_constants(numbers: Sequence[int]) -> ir.Constant:
    return ir.Constant(ir.VectorType(INT32, len(numbers)), list(numbers))


def _zeros(vector: ir.VectorType) -> ir.Constant:
    return ir.Constant(vector, None)


def _mask(lanes: int, count: Any, start: Any) -> ir.Value:
    """One bit per lane: start <= lane < count."""
    lane = _lane_constants(range(lanes))

    def limit(n: Any) -> ir.Value:
        clamped = minimum(maximum(Value(_integer(n)), 0), lanes)  # before it is cut to 32 bits
        return splat(Value(_builder.trunc(clamped.ir, INT32)), lanes).ir

    below = _builder.icmp_signed("<", lane, limit(count))
    return below if start is None else _builder.and_(below, _builder.icmp_signed(">=", lane, limit(start)))


def _bit_mask(lanes: int, bits: Any) -> ir.Value:
    """One bit per lane: the lowest of an integer."""
    cut = _builder.trunc(_integer(bits), ir.IntType(lanes))
    return _builder.bitcast(cut, ir.VectorType(BOOL, lanes))


def _widened(value: ir.Value, stored: str) -> ir.Value:
    if stored == "uint8":
        return _builder.zext(value, _shaped(INT32, value))
    if stored == "float16":
        return _builder.fpext(value, _shaped(FLOAT, value)) if machine().halves else _half_widened(value)
    if stored == "bfloat16":  # the upper half of a float32
        bits = _builder.zext(value, _shaped(INT32, value))
        return _builder.bitcast(_builder.shl(bits, _filled(INT32, 16, value)), _shaped(FLOAT, value))
    return value


def _narrowed(value: ir.Value, stored: str) -> ir.Value:
    if stored == "uint8":
        return _builder.trunc(value, _shaped(INT8, value))
    if stored == "float16":
        return _builder.fptrunc(value, _shaped(HALF, value)) if machine().halves else _half_narrowed(value)
    if stored == "bfloat16":  # NaN stays NaN
        rounded = _builder.select(
            _builder.fcmp_unordered("uno", value, value), _filled(INT32, 0x7FC00000, value), _bfloat16_rounded(value)
        )
        return _builder.trunc(_builder.lshr(rounded, _filled(INT32, 16, value)), _shaped(BITS16, value))
    return value


def _bfloat16_rounded(value: ir.Value) -> ir.Value:
    """Bits whose upper half is the nearest bfloat16: half a unit is added, or just under it where the last kept bit is even."""
    bits = _builder.bitcast(value, _shaped(INT32, value))
    odd = _builder.and_(bits, _filled(INT32, 0x10000, value))
    odd = _builder.icmp_signed("!=", odd, _filled(INT32, 0, value))
    under = _builder.add(bits, _filled(INT32, 0x7FFF, value))
    return _builder.select(odd, _builder.add(under, _filled(INT32, 1, value)), under)


def _number(value: ir.Value, n: int) -> ir.Constant:
    return _filled(INT32, n, value)


def _half_widened(value: ir.Value) -> ir.Value:
    """float16 to float32 by integers, where LLVM would call functions that nobody has."""
    b, number = _builder, functools.partial(_number, value)
    bits = b.zext(b.bitcast(value, _shaped(BITS16, value)), _shaped(INT32, value))
    size = b.shl(b.and_(bits, number(0x7FFF)), number(13))  # a float32 with an exponent 112 too small
    scaled = b.fmul(b.bitcast(size, _shaped(FLOAT, value)), _filled(FLOAT, 2.0**112, value))
    infinite = b.icmp_unsigned(">=", size, number(0x7C00 << 13))  # or NaN
    size = b.select(infinite, b.or_(size, number(0x7F800000)), b.bitcast(scaled, _shaped(INT32, value)))
    sign = b.shl(b.and_(bits, number(0x8000)), number(16))
    return b.bitcast(b.or_(size, sign), _shaped(FLOAT, value))


def _half_narrowed(value: ir.Value) -> ir.Value:
    """float32 to the nearest float16, in a tie the even one, by integers."""
    b, number = _builder, functools.partial(_number, value)
    bits = b.bitcast(value, _shaped(INT32, value))
    size = b.and_(bits, number(0x7FFFFFFF))
    odd = b.and_(b.lshr(size, number(13)), number(1))
    normal = b.lshr(b.add(b.add(size, number(0xFFF - (112 << 23))), odd), number(13))
    # Below 2 ** -14 the steps are 2 ** -24, as those of numbers near a half: the addition rounds.
    small = b.fadd(b.bitcast(size, _shaped(FLOAT, value)), _filled(FLOAT, 0.5, value))
    small = b.sub(b.bitcast(small, _shaped(INT32, value)), number(0x3F000000))
    half = b.select(b.icmp_unsigned("<", size, number(113 << 23)), small, normal)
    half = b.select(b.icmp_unsigned(">=", size, number(143 << 23)), number(0x7C00), half)
    half = b.select(b.icmp_unsigned(">", size, number(0x7F800000)), number(0x7E00), half)
    half = b.or_(half, b.lshr(b.and_(bits, number(0x80000000)), number(16)))
    return b.bitcast(b.trunc(half, _shaped(BITS16, value)), _shaped(HALF, value))


def _shaped(kind: ir.Type, value: ir.Value) -> ir.Type:
    """``kind`` with as many lanes as ``value``."""
    return ir.VectorType(kind, value.type.count) if isinstance(value.type, ir.VectorType) else kind


def _filled(kind: ir.Type, number: float, value: ir.Value) -> ir.Constant:
    return ir.Constant(
        _shaped(kind, value), [number] * value.type.count if isinstance(value.type, ir.VectorType) else number
    )
