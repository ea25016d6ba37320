"""Traced pointers: how a kernel reads and writes memory, one element or a vector at a time."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from konv.engine.machine import machine
from konv.engine.simd.elements import ITEMSIZE, STORED, bfloat16_rounded, computed, narrowed, widened
from konv.engine.simd.values import (
    BITS16,
    BOOL,
    FLOAT,
    INT32,
    INT64,
    Value,
    call,
    emit,
    filled,
    integer,
    lane_constants,
    mangled,
    spread,
    zeros,
)
from konv.engine.simd.words import interleave, maximum, minimum, select, shuffle


class Pointer:
    """A traced pointer to elements stored as ``stored``."""

    def __init__(self, address: ir.Value, stored: str, aligned: int | None = None):
        self.address, self.stored, self.aligned = address, stored, aligned or ITEMSIZE[stored]

    def at(self, i: Any) -> Pointer:
        """The pointer i elements further on."""
        address = emit.gep(self.address, [integer(i)], source_etype=STORED[self.stored])
        return Pointer(address, self.stored, self.aligned)

    def as_(self, stored: str) -> Pointer:
        """The same memory as elements of another type, which may lie across the boundaries of such."""
        return Pointer(self.address, stored, min(self.aligned, ITEMSIZE[stored]))

    def __getitem__(self, i: Any) -> Value:
        stored = emit.load(self.at(i).address, typ=STORED[self.stored], align=self.aligned)
        element = widened(stored, self.stored)
        return Value(emit.sext(element, INT64) if element.type == INT32 else element)

    def __setitem__(self, i: Any, value: Any) -> None:
        scalar = value.ir if isinstance(value, Value) else computed(self.stored)(value)
        if computed(self.stored) == INT32 and scalar.type == INT64:
            scalar = emit.trunc(scalar, INT32)
        emit.store(narrowed(scalar, self.stored), self.at(i).address)

    def vec(self, i: Any, lanes: int, count: Any = None, start: Any = None, bits: Any = None, fill: float = 0) -> Value:
        """Elements i .. i + lanes - 1; lanes outside start .. count - 1 are ``fill``, their memory is not touched.

        ``bits``: instead of count and start, an integer whose lowest bits tell the lanes (see :func:`bits`).
        """
        vector, address, size = ir.VectorType(STORED[self.stored], lanes), self.at(i).address, ITEMSIZE[self.stored]
        if count is None and start is None and bits is None:
            loaded = emit.load(address, typ=vector, align=size)
        else:
            mask = _mask(lanes, lanes if count is None else count, start) if bits is None else _bit_mask(lanes, bits)
            name = f"llvm.masked.load.{mangled(vector)}.p0"
            return self._filled(call(name, vector, address, INT32(size), mask, zeros(vector)), mask, fill)
        return Value(widened(loaded, self.stored))

    def pairs(self, i: Any, lanes: int, count: Any = None, bits: Any = None) -> Value:
        """bfloat16 elements i .. i + 2 * lanes - 1 as pairs (see :func:`pair`); from ``count`` on zeros, and not touched.

        Or those that ``bits`` tell (see :meth:`vec`).
        """
        vector, address, size = ir.VectorType(BITS16, 2 * lanes), self.at(i).address, ITEMSIZE[self.stored]
        if count is None and bits is None:
            loaded = emit.load(address, typ=vector, align=size)
        else:
            mask = _mask(2 * lanes, count, None) if bits is None else _bit_mask(2 * lanes, bits)
            loaded = call(f"llvm.masked.load.{mangled(vector)}.p0", vector, address, INT32(size), mask, zeros(vector))
        return Value(emit.bitcast(loaded, ir.VectorType(INT32, lanes)))

    def put(self, i: Any, vector: Value, count: Any = None, start: Any = None, bits: Any = None) -> None:
        """Write a vector to i, i + 1, ...; the memory of lanes outside start .. count - 1 (or ``bits``) is not touched."""
        value, address, size = narrowed(vector.ir, self.stored), self.at(i).address, ITEMSIZE[self.stored]
        if count is None and start is None and bits is None:
            emit.store(value, address, align=size)
        else:
            lanes = value.type.count
            name = f"llvm.masked.store.{mangled(value.type)}.p0"
            mask = _mask(lanes, lanes if count is None else count, start) if bits is None else _bit_mask(lanes, bits)
            call(name, ir.VoidType(), value, address, INT32(size), mask)

    def stream(self, i: Any, vector: Value) -> None:
        """Write a vector past the caches, for what nobody reads soon. Its address is a multiple of its size in bytes."""
        value = narrowed(vector.ir, self.stored)
        written = emit.store(value, self.at(i).address, align=ITEMSIZE[self.stored] * value.type.count)
        written.set_metadata("nontemporal", emit.module.add_metadata([INT32(1)]))

    def gather(self, i: Any, stride: Any, lanes: int, count: Any, start: Any = None, fill: float = 0) -> Value:
        """Elements i, i + stride, ... of the lanes start .. count - 1; the others are ``fill``."""
        vector = ir.VectorType(STORED[self.stored], lanes)
        name = f"llvm.masked.gather.{mangled(vector)}.v{lanes}p0"
        addresses, mask = self._strided(i, stride, lanes), _mask(lanes, count, start)
        loaded = call(name, vector, addresses, INT32(ITEMSIZE[self.stored]), mask, zeros(vector))
        return self._filled(loaded, mask, fill)

    def scatter(self, i: Any, stride: Any, vector: Value, count: Any) -> None:
        """Write the lanes < count to i, i + stride, ..."""
        value, lanes = narrowed(vector.ir, self.stored), vector.lanes
        name = f"llvm.masked.scatter.{mangled(value.type)}.v{lanes}p0"
        addresses, mask = self._strided(i, stride, lanes), _mask(lanes, count, None)
        call(name, ir.VoidType(), value, addresses, INT32(ITEMSIZE[self.stored]), mask)

    def alternate(self, i: Any, lanes: int, bits: Any = None) -> Value:
        """Elements i, i + 2, ...: every other one of the 2 * ``lanes`` that ``bits`` may tell (see :meth:`vec`).

        Of bfloat16 one instruction, on CPUs that mask halves: what is left out of the line from i - 1 on is zero, so each element
        is the upper half of a float32. Half the time of reading neighbours and widening them.
        """
        if self.stored == "bfloat16" and machine().dots:
            vector, upper = ir.VectorType(BITS16, 2 * lanes), sum(2 << i for i in range(0, 2 * lanes, 2))
            mask = _bit_mask(2 * lanes, upper if bits is None else (bits * 2) & upper)
            name = f"llvm.masked.load.{mangled(vector)}.p0"
            loaded = call(name, vector, self.at(i - 1).address, INT32(2), mask, zeros(vector))
            return Value(emit.bitcast(loaded, ir.VectorType(FLOAT, lanes)))
        low, high = (self.vec(i + at, lanes, bits=None if bits is None else bits >> at) for at in (0, lanes))
        return shuffle(low, high, range(0, 2 * lanes, 2))

    def both(self, i: Any, lanes: int, bits: Any = None) -> tuple[Value, Value]:
        """Elements i, i + 2, ... and i + 1, i + 3, ...: as two :meth:`alternate`, of one read."""
        if not (self.stored == "bfloat16" and machine().dots):
            low, high = (self.vec(i + at, lanes, bits=None if bits is None else bits >> at) for at in (0, lanes))
            return shuffle(low, high, range(0, 2 * lanes, 2)), shuffle(low, high, range(1, 2 * lanes, 2))
        vector = ir.VectorType(BITS16, 2 * lanes)
        if bits is None:
            loaded = emit.load(self.at(i).address, typ=vector, align=2)
        else:
            name = f"llvm.masked.load.{mangled(vector)}.p0"
            loaded = call(name, vector, self.at(i).address, INT32(2), _bit_mask(2 * lanes, bits), zeros(vector))
        pairs = Value(emit.bitcast(loaded, ir.VectorType(INT32, lanes)))
        halves = emit.shl(pairs.ir, filled(INT32, 16, pairs.ir)), (pairs & -65536).ir
        even, odd = (Value(emit.bitcast(half, ir.VectorType(FLOAT, lanes))) for half in halves)
        return even, odd

    def weave(self, i: Any, even: Value, odd: Value, count: Any = None) -> None:
        """Write two vectors' lanes in turns: even[0] to i, odd[0] to i + 1, even[1] to i + 2, ...; ``count`` of all of them."""
        lanes = even.lanes
        if self.stored == "bfloat16" and machine().dots:
            # NaN of bfloat16 numbers has no bits that rounding could carry upwards
            low, high = (Value(bfloat16_rounded(v.ir)) for v in (even, odd))
            cells = emit.bitcast(emit.or_((low >> 16).ir, (high & -65536).ir), ir.VectorType(BITS16, 2 * lanes))
            address = self.at(i).address
            if count is None:
                emit.store(cells, address, align=2)
            else:
                name = f"llvm.masked.store.{mangled(cells.type)}.p0"
                call(name, ir.VoidType(), cells, address, INT32(2), _mask(2 * lanes, count, None))
            return
        for k, vector in enumerate(interleave([even, odd], lanes)):
            self.put(i + k * lanes, vector, count=None if count is None else count - k * lanes)

    def zero(self, lanes: int) -> Value:
        """A vector of zeros of the type that elements are computed in."""
        return Value(zeros(ir.VectorType(computed(self.stored), lanes)))

    def full(self, lanes: int, number: float) -> Value:
        """A vector of one number, of the type that elements are computed in."""
        return Value(ir.Constant(ir.VectorType(computed(self.stored), lanes), number))

    def prefetch(self, i: Any, write: bool = False, later: bool = False) -> None:
        """Ask for the cache line of element i, to read it or to ``write`` to it; ``later``: the nearest cache is left alone."""
        near = INT32(2 if later else 3)
        call("llvm.prefetch.p0", ir.VoidType(), self.at(i).address, INT32(int(write)), near, INT32(1))

    def _filled(self, loaded: ir.Value, mask: ir.Value, fill: float) -> Value:
        value = Value(widened(loaded, self.stored))
        return select(Value(mask), value, self.full(value.lanes, fill)) if fill else value

    def _strided(self, i: Any, stride: Any, lanes: int) -> ir.Value:
        size = ITEMSIZE[self.stored]
        lane = ir.Constant(ir.VectorType(INT64, lanes), [k * size for k in range(lanes)])
        first = Value(emit.ptrtoint(self.at(i).address, INT64))
        cells = emit.add(spread(first, lanes).ir, emit.mul(spread(Value(integer(stride)), lanes).ir, lane))
        return emit.inttoptr(cells, ir.VectorType(ir.PointerType(), lanes))


def _mask(lanes: int, count: Any, start: Any) -> ir.Value:
    """One bit per lane: start <= lane < count."""
    lane = lane_constants(range(lanes))

    def limit(n: Any) -> ir.Value:
        clamped = minimum(maximum(Value(integer(n)), 0), lanes)  # before it is cut to 32 bits
        return spread(Value(emit.trunc(clamped.ir, INT32)), lanes).ir

    below = emit.icmp_signed("<", lane, limit(count))
    return below if start is None else emit.and_(below, emit.icmp_signed(">=", lane, limit(start)))


def _bit_mask(lanes: int, bits: Any) -> ir.Value:
    """One bit per lane: the lowest of an integer."""
    cut = emit.trunc(integer(bits), ir.IntType(lanes))
    return emit.bitcast(cut, ir.VectorType(BOOL, lanes))
