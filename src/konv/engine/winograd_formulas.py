"""Winograd's minimal filtering F(4x4, 3x3) and F(3x3, 4x4): the transforms as formulas.

A tile of 4 x 4 outputs of a 3 x 3 correlation with stride 1 reads 6 x 6 inputs::

    y = A^T [ sum over channels of (G w G^T) * (B^T x B) ] A        (* elementwise)

36 products for each channel instead of 144 (S. Winograd, 1980; A. Lavin and S. Gray, *Fast algorithms for convolutional
neural networks*, arXiv:1509.09308). The weight gradient of the tile is a correlation too, of its 6 x 6 inputs with 4 x 4
upstream gradients, and gives 3 x 3 taps: the same B^T, and matrices E and D in the places of G and A::

    dw = D^T [ sum over tiles of (E dy E^T) * (B^T x B) ] D

The matrices follow from six points at which polynomials are evaluated. Ours are 0, +-sqrt(1/2), +-sqrt(2) and infinity:
beside the usual 0, +-1, +-2 the numbers stay closer together, the error is a quarter.

Every product that is added is an explicit ``fma``, so a sum has the same bits in whatever kernel its formula stands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from konv.engine.simd import fma

OUTPUTS, TAPS = 4, 3
SPAN = OUTPUTS + TAPS - 1  # inputs that a tile reads, and points, along an axis
POINTS = SPAN * SPAN

Number = Callable[..., Any]  # number(a, r) is the constant a + r * sqrt(2)


def input_column(column: Sequence[Any], number: Number) -> list[Any]:
    """``B^T d`` of one column: 6 inputs to 6 points."""
    d0, d1, d2, d3, d4, d5 = column
    even, odd = fma(number(-2), d2, d4), fma(number(-2), d1, d3)
    even_, odd_ = fma(number(Fraction(-1, 2)), d2, d4), fma(number(Fraction(-1, 2)), d1, d3)
    return [
        d0 + fma(number(Fraction(-5, 2)), d2, d4),
        fma(number(0, Fraction(1, 2)), odd, even),
        fma(number(0, Fraction(-1, 2)), odd, even),
        fma(number(0, 1), odd_, even_),
        fma(number(0, -1), odd_, even_),
        d1 + fma(number(Fraction(-5, 2)), d3, d5),
    ]


def filter_column(column: Sequence[Any], number: Number) -> list[Any]:
    """``G w`` of one column: 3 taps to 6 points."""
    w0, w1, w2 = column
    even, even_ = fma(number(Fraction(1, 2)), w2, w0), fma(number(2), w2, w0)
    return [
        w0,
        fma(number(0, Fraction(1, 2)), w1, even) * number(Fraction(-2, 3)),
        fma(number(0, Fraction(-1, 2)), w1, even) * number(Fraction(-2, 3)),
        fma(number(0, 1), w1, even_) * number(Fraction(1, 6)),
        fma(number(0, -1), w1, even_) * number(Fraction(1, 6)),
        w2,
    ]


def output_column(column: Sequence[Any], number: Number) -> list[Any]:
    """``A^T m`` of one column: 6 points to 4 outputs."""
    m0, m1, m2, m3, m4, m5 = column
    even, odd, even_, odd_ = m1 + m2, m1 - m2, m3 + m4, m3 - m4
    return [
        m0 + (even + even_),
        fma(number(0, Fraction(1, 2)), odd, odd_ * number(0, 1)),
        fma(number(Fraction(1, 2)), even, even_ * number(2)),
        fma(number(0, Fraction(1, 4)), odd, fma(number(0, 2), odd_, m5)),
    ]


def upstream_column(column: Sequence[Any], number: Number) -> list[Any]:
    """``E dy`` of one column: 4 upstream gradients to 6 points."""
    y0, y1, y2, y3 = column
    even, odd = fma(number(Fraction(1, 2)), y2, y0), fma(number(Fraction(1, 2)), y3, y1)
    even_, odd_ = fma(number(2), y2, y0), fma(number(2), y3, y1)
    return [
        y0,
        fma(number(0, Fraction(1, 2)), odd, even),
        fma(number(0, Fraction(-1, 2)), odd, even),
        fma(number(0, 1), odd_, even_),
        fma(number(0, -1), odd_, even_),
        y3,
    ]


def weight_column(column: Sequence[Any], number: Number) -> list[Any]:
    """``D^T m`` of one column: 6 points to 3 taps. The factors that G has stand here: they are met once, not in each tile."""
    m0, m1, m2, m3, m4, m5 = column
    even, odd, even_, odd_ = m1 + m2, m1 - m2, m3 + m4, m3 - m4
    return [
        fma(number(Fraction(-2, 3)), even, fma(number(Fraction(1, 6)), even_, m0)),
        fma(number(0, Fraction(-1, 3)), odd, odd_ * number(0, Fraction(1, 6))),
        fma(number(Fraction(-1, 3)), even, fma(number(Fraction(1, 3)), even_, m5)),
    ]


def both_axes(formula: Callable[..., list[Any]], rows: Sequence[Sequence[Any]], number: Number) -> list[list[Any]]:
    """``F rows F^T``: the formula F down the columns, then along the rows."""
    columns = [formula(column, number) for column in zip(*rows)]
    return [formula(row, number) for row in zip(*columns)]
