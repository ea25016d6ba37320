"""Elements as they are stored and as they are computed: the half types widened to float32 and rounded back, bytes as int32."""

from __future__ import annotations

import functools

from llvmlite import ir

from konv.engine.machine import machine
from konv.engine.simd.values import BITS16, DOUBLE, FLOAT, HALF, INT8, INT32, INT64, emit, filled, shaped

STORED = {
    "float32": FLOAT, "float64": DOUBLE, "float16": HALF, "bfloat16": BITS16, "int64": INT64, "int32": INT32, "uint8": INT8,
}  # fmt: skip
ITEMSIZE = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "uint8": 1}


def computed(stored: str) -> ir.Type:
    """The type that elements are computed in: float32 for the half types, int32 for bytes."""
    return {"float16": FLOAT, "bfloat16": FLOAT, "uint8": INT32}.get(stored, STORED[stored])


def widened(value: ir.Value, stored: str) -> ir.Value:
    """Stored elements in the type that they are computed in."""
    if stored == "uint8":
        return emit.zext(value, shaped(INT32, value))
    if stored == "float16":
        return emit.fpext(value, shaped(FLOAT, value)) if machine().halves else _half_widened(value)
    if stored == "bfloat16":  # the upper half of a float32
        bits = emit.zext(value, shaped(INT32, value))
        return emit.bitcast(emit.shl(bits, filled(INT32, 16, value)), shaped(FLOAT, value))
    return value


def narrowed(value: ir.Value, stored: str) -> ir.Value:
    """Computed numbers as they are stored: rounded to nearest even."""
    if stored == "uint8":
        return emit.trunc(value, shaped(INT8, value))
    if stored == "float16":
        return emit.fptrunc(value, shaped(HALF, value)) if machine().halves else _half_narrowed(value)
    if stored == "bfloat16":  # NaN stays NaN
        rounded = emit.select(
            emit.fcmp_unordered("uno", value, value), filled(INT32, 0x7FC00000, value), bfloat16_rounded(value)
        )
        return emit.trunc(emit.lshr(rounded, filled(INT32, 16, value)), shaped(BITS16, value))
    return value


def bfloat16_rounded(value: ir.Value) -> ir.Value:
    """Bits whose upper half is the nearest bfloat16: half a unit is added, or just under it where the last kept bit is even."""
    bits = emit.bitcast(value, shaped(INT32, value))
    odd = emit.and_(bits, filled(INT32, 0x10000, value))
    odd = emit.icmp_signed("!=", odd, filled(INT32, 0, value))
    under = emit.add(bits, filled(INT32, 0x7FFF, value))
    return emit.select(odd, emit.add(under, filled(INT32, 1, value)), under)


def _half_widened(value: ir.Value) -> ir.Value:
    """float16 to float32 by integers, where LLVM would call functions that nobody has."""
    b, number = emit, functools.partial(filled, INT32, value=value)
    bits = b.zext(b.bitcast(value, shaped(BITS16, value)), shaped(INT32, value))
    size = b.shl(b.and_(bits, number(0x7FFF)), number(13))  # a float32 with an exponent 112 too small
    scaled = b.fmul(b.bitcast(size, shaped(FLOAT, value)), filled(FLOAT, 2.0**112, value))
    infinite = b.icmp_unsigned(">=", size, number(0x7C00 << 13))  # or NaN
    size = b.select(infinite, b.or_(size, number(0x7F800000)), b.bitcast(scaled, shaped(INT32, value)))
    sign = b.shl(b.and_(bits, number(0x8000)), number(16))
    return b.bitcast(b.or_(size, sign), shaped(FLOAT, value))


def _half_narrowed(value: ir.Value) -> ir.Value:
    """float32 to the nearest float16, in a tie the even one, by integers."""
    b, number = emit, functools.partial(filled, INT32, value=value)
    bits = b.bitcast(value, shaped(INT32, value))
    size = b.and_(bits, number(0x7FFFFFFF))
    odd = b.and_(b.lshr(size, number(13)), number(1))
    normal = b.lshr(b.add(b.add(size, number(0xFFF - (112 << 23))), odd), number(13))
    # Below 2 ** -14 the steps are 2 ** -24, as those of numbers near a half: the addition rounds.
    small = b.fadd(b.bitcast(size, shaped(FLOAT, value)), filled(FLOAT, 0.5, value))
    small = b.sub(b.bitcast(small, shaped(INT32, value)), number(0x3F000000))
    half = b.select(b.icmp_unsigned("<", size, number(113 << 23)), small, normal)
    half = b.select(b.icmp_unsigned(">=", size, number(143 << 23)), number(0x7C00), half)
    half = b.select(b.icmp_unsigned(">", size, number(0x7F800000)), number(0x7E00), half)
    half = b.or_(half, b.lshr(b.and_(bits, number(0x80000000)), number(16)))
    return b.bitcast(b.trunc(half, shaped(BITS16, value)), shaped(HALF, value))
