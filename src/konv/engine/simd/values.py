"""Traced values: integers, floats and vectors that are not known yet, whose operators leave LLVM IR behind."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from llvmlite import ir


class _BFloat16(ir.Type):
    """LLVM's type of that name: :func:`konv.engine.simd.dot` has operands of it. Elsewhere bfloat16 is its 16 bits."""

    def __str__(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat16)

    def __hash__(self) -> int:
        return hash(_BFloat16)


BOOL, INT8, INT32, INT64 = ir.IntType(1), ir.IntType(8), ir.IntType(32), ir.IntType(64)
FLOAT, DOUBLE, HALF, BITS16 = ir.FloatType(), ir.DoubleType(), ir.HalfType(), ir.IntType(16)
BFLOAT16 = _BFloat16()
FAST = ("contract", "nsz")  # a * b + c may be one instruction, the sign of zero is free; NaN and infinity are kept


class _Emit(threading.local):
    """LLVM's builder of the text that this thread traces: ``emit.fadd(a, b)`` is its instruction, appended."""

    builder: ir.IRBuilder | None = None

    @property
    def tracing(self) -> bool:
        """Whether a text is traced; if not, words work on NumPy."""
        return self.builder is not None

    def __getattr__(self, instruction: str) -> Any:
        return getattr(self.builder, instruction)


emit = _Emit()


@contextlib.contextmanager
def trace_into(builder: ir.IRBuilder) -> Iterator[None]:
    """Trace: inside this context the words of the language emit IR through ``builder``."""
    outer, emit.builder = emit.builder, builder
    try:
        yield
    finally:
        emit.builder = outer


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
        return Value(emit.fdiv(self.ir, _like(other, self).ir))

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
        return Value(emit.neg(self.ir) if _whole(self) else emit.fneg(self.ir))

    def __rshift__(self, other):
        return self if _is_number(other, 0) else Value(emit.lshr(self.ir, _like(other, self).ir))

    def __and__(self, other):
        return Value(emit.and_(self.ir, _like(other, self).ir))

    def __floordiv__(self, other):
        return self if _is_number(other, 1) else Value(emit.sdiv(self.ir, _like(other, self).ir))

    def __mod__(self, other):
        return Value(emit.srem(self.ir, _like(other, self).ir))


def is_traced(*values: Any) -> bool:
    """Whether one of them is a traced value."""
    return any(isinstance(value, Value) for value in values)


def integer(i: Any) -> ir.Value:
    """An index, Python's or traced, as LLVM's."""
    return i.ir if isinstance(i, Value) else INT64(int(i))


def _is_number(value: Any, number: int) -> bool:
    return isinstance(value, (int, float)) and value == number


def _like(value: Any, other: Value) -> Value:
    """``value`` as a Value of the type of ``other``: constants are converted, scalars spread over the lanes."""
    kind = other.ir.type
    if isinstance(value, Value):
        return spread(value, other.lanes) if other.lanes and not value.lanes else value
    if not isinstance(kind, ir.VectorType):
        return Value(ir.Constant(kind, value))
    lane = value if isinstance(kind.element, ir.IntType) else float(value)
    return Value(ir.Constant(kind, lane))


def _binary(name: str, a: Any, b: Any) -> Value:
    if isinstance(a, Value) and (not isinstance(b, Value) or a.lanes):
        b = _like(b, a)
    else:
        a = _like(a, b)
    if _whole(a):
        return Value(getattr(emit, name)(a.ir, b.ir))
    return Value(getattr(emit, "f" + name)(a.ir, b.ir, flags=FAST))


def _whole(value: Value) -> bool:
    """Whether its lanes are integers."""
    kind = value.ir.type
    return isinstance(kind.element if isinstance(kind, ir.VectorType) else kind, ir.IntType)


def spread(scalar: Value, lanes: int) -> Value:
    """A vector with ``scalar`` in every lane."""
    unknown = _undefined(scalar.ir.type, lanes)
    first = emit.insert_element(unknown, scalar.ir, INT32(0))
    return Value(emit.shuffle_vector(first, unknown, lane_constants([0] * lanes)))


def call(name: str, result: ir.Type, *arguments: ir.Value) -> ir.Value:
    """One of LLVM's intrinsics, by its name."""
    module = emit.module
    if name not in module.globals:
        ir.Function(module, ir.FunctionType(result, [a.type for a in arguments]), name)
    return emit.call(module.globals[name], arguments)


def mangled(kind: ir.Type) -> str:
    """LLVM's name of a type in the names of its intrinsics."""
    if isinstance(kind, ir.VectorType):
        return f"v{kind.count}{mangled(kind.element)}"
    return f"i{kind.width}" if isinstance(kind, ir.IntType) else {FLOAT: "f32", DOUBLE: "f64", HALF: "f16"}[kind]


def lane_constants(numbers: Sequence[int]) -> ir.Constant:
    """A vector of known integers of 32 bits."""
    return _constants(tuple(numbers))


# Constants know their text once it was asked for, so the same ones are used again: tracing takes half the time.
@functools.lru_cache(1024)
def _constants(numbers: tuple[int, ...]) -> ir.Constant:
    return ir.Constant(ir.VectorType(INT32, len(numbers)), list(numbers))


@functools.lru_cache(256)
def _undefined(kind: ir.Type, lanes: int) -> ir.Constant:
    return ir.Constant(ir.VectorType(kind, lanes), ir.Undefined)


def zeros(vector: ir.VectorType) -> ir.Constant:
    """The vector of that type whose lanes are all zero."""
    return ir.Constant(vector, None)


def shaped(kind: ir.Type, value: ir.Value) -> ir.Type:
    """``kind`` with as many lanes as ``value``."""
    return ir.VectorType(kind, value.type.count) if isinstance(value.type, ir.VectorType) else kind


def filled(kind: ir.Type, number: float, value: ir.Value) -> ir.Constant:
    """``number`` as ``kind``, in as many lanes as ``value``."""
    return ir.Constant(shaped(kind, value), number)
