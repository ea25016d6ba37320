"""Winograd's minimal filtering F(m, r) along one axis: the transforms as formulas of the points that a scheme has.

A tile of m outputs of a correlation with r taps and stride 1 reads n = m + r - 1 inputs; in one dimension

    y = A^T [ sum over channels of (G w) * (B^T x) ]        (* elementwise)

are n products for each channel instead of m * r, and along two axes the square of that: 36 instead of 144 for F(4x4, 3x3)
(S. Winograd, 1980; A. Lavin and S. Gray, *Fast algorithms for convolutional neural networks*, arXiv:1509.09308). The weight
gradient of the tile is a correlation too, of its n inputs with m upstream gradients, and gives r taps: the same B^T, and
matrices E and D in the places of G and A::

    dw = D^T [ sum over tiles of (E dy) * (B^T x) ]

All five follow from n - 1 numbers at which polynomials are evaluated, and infinity, where they are their highest coefficient:
with M(p) the product of all p - q, B^T has the coefficients of M(x) / (x - p), E the powers of p, G those times 1 / M'(p),
A^T and D^T likewise turned round. Our numbers come in pairs +-p, so even and odd powers are shared by both. They lie close
together: 0, +-sqrt(1/2), +-sqrt(2) have a quarter of the error of the usual 0, +-1, +-2. For 5 points no zero: +-1/2, +-5/4
err by 0.9e-6 (128 channels, of the largest output; F(4x4, 3x3): 2e-6), +-sqrt(1/2), +-sqrt(2) by 2.2e-6, 0, +-1, 2 by 4e-6.

Every product that is added is an explicit ``fma``, so a sum has the same bits in whatever kernel its formula stands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from konv.engine.simd import fma

Number = Callable[..., Any]  # number(a, r) is the constant a + r * sqrt(2)
Surd = tuple[Fraction, Fraction]  # a and r of such a number; of ours one of them is 0

HALF, FOURTH = Fraction(1, 2), Fraction(1, 4)
# Of so many points beside infinity: whether 0 is one, and the positive ones of the pairs.
SETS: dict[int, tuple[bool, tuple[tuple[Any, Any], ...]]] = {
    1: (False, ()),
    2: (True, ()),
    3: (False, ((0, HALF),)),
    4: (True, ((1, 0),)),
    5: (False, ((HALF, 0), (5 * FOURTH, 0))),
    6: (True, ((0, HALF), (0, 1))),
    7: (False, ((HALF, 0), (1, 0), (3 * HALF, 0))),
    8: (True, ((HALF, 0), (1, 0), (2, 0))),
}
MOST_POINTS = max(SETS)


@dataclass(frozen=True)
class Scheme:
    """F(outputs, taps) along an axis. F(1, 1) is an axis that is left as it is."""

    outputs: int
    taps: int

    @property
    def points(self) -> int:
        """Points, and inputs that a tile reads."""
        return self.outputs + self.taps - 1

    @property
    def zero(self) -> int:
        """1 where 0 is a point, the first; the pairs follow, infinity is the last."""
        return int(SETS[self.points][0])

    @property
    def roots(self) -> list[Surd]:
        """The positive points of the pairs."""
        return [(Fraction(a), Fraction(r)) for a, r in SETS[self.points][1]]

    @property
    def squares(self) -> list[Fraction]:
        """Those of the pairs."""
        return [a * a + 2 * r * r for a, r in self.roots]

    def inputs(self, cells: Sequence[Any], number: Number) -> list[Any]:
        """``B^T d``: inputs to points."""
        whole = _polynomial(self.squares)
        points = [_sum(whole, cells[::2], number)] if self.zero else []
        for root, square in zip(self.roots, self.squares):
            others = _polynomial([other for other in self.squares if other != square])
            low, high = (_sum(others, cells[self.zero + i :: 2], number) for i in (0, 1))
            points += [fma(number(*_times(root, sign)), low, high) for sign in (1, -1)]
        return [*points, _sum(whole, cells[self.zero :: 2], number)]

    def filters(self, taps: Sequence[Any], number: Number) -> list[Any]:
        """``G w``: taps to points."""
        values = self.upstream(taps, number)
        return [_scaled(factor, value, number) for factor, value in zip(self._factors(), values)]

    def upstream(self, numbers: Sequence[Any], number: Number) -> list[Any]:
        """``E dy``: upstream gradients of the outputs (of G the taps) to the polynomial's values at the points."""
        points = [numbers[0]] if self.zero else []
        for root, square in zip(self.roots, self.squares):
            even, odd = (_sum([square**k for k in range(len(numbers))], numbers[i::2], number) for i in (0, 1))
            points += [even] * 2 if odd is None else [fma(number(*_times(root, sign)), odd, even) for sign in (1, -1)]
        return [*points, numbers[-1]]

    def output(self, points: Sequence[Any], number: Number) -> list[Any]:
        """``A^T m``: points to outputs."""
        return self._sums(points, self.outputs, [(Fraction(1), Fraction(0))] * self.points, number)

    def weights(self, points: Sequence[Any], number: Number) -> list[Any]:
        """``D^T m``: points to taps. The factors that G has stand here: they are met once, not in each tile."""
        return self._sums(points, self.taps, self._factors(), number)

    def _sums(self, points: Sequence[Any], count: int, factors: Sequence[Surd], number: Number) -> list[Any]:
        """``sum over points p of factor * p**k * m[p]`` for k < count."""
        pairs = []
        for i, (root, square) in enumerate(zip(self.roots, self.squares)):
            plus, minus = self.zero + 2 * i, self.zero + 2 * i + 1
            # Without zero, factors of a pair differ in sign: what is even is their difference.
            first, second = points[plus] + points[minus], points[plus] - points[minus]
            if factors[plus] != factors[minus]:
                first, second = second, first
            pairs.append((root, square, factors[plus], first, second))
        sums = []
        for k in range(count):
            terms = [(factors[0], points[0])] if self.zero and k == 0 else []
            for root, square, factor, even, odd in pairs:
                power = _times(factor, square ** (k // 2))
                terms.append((_product(power, root), odd) if k % 2 else (power, even))
            if k == count - 1:
                terms.append(((Fraction(1), Fraction(0)), points[-1]))
            sums.append(_combination(terms, number))
        return sums

    def _factors(self) -> list[Surd]:
        """``1 / M'(p)`` of every point; of infinity 1."""
        factors = [(1 / math.prod((-square for square in self.squares), start=Fraction(1)), Fraction(0))] * self.zero
        for root, square in zip(self.roots, self.squares):
            even = 2 * math.prod((square - other for other in self.squares if other != square), start=Fraction(1))
            if self.zero:
                factors += [(1 / (even * square), Fraction(0))] * 2
            else:
                factors += [_times(root, sign / (even * square)) for sign in (1, -1)]
        return [*factors, (Fraction(1), Fraction(0))]


def both_axes(
    formulas: Sequence[Callable[..., list[Any]]], cells: Sequence[Sequence[Any]], number: Number
) -> list[list[Any]]:
    """The first formula down the columns of ``cells``, then the second along the rows."""
    row, column = formulas
    columns = [row(values, number) for values in zip(*cells)]
    return [column(values, number) for values in zip(*columns)]


def _polynomial(squares: Sequence[Fraction]) -> list[Fraction]:
    """The coefficients of the product of all ``y - square``, the lowest first."""
    result = [Fraction(1)]
    for square in squares:
        result = [a - square * b for a, b in zip([Fraction(0), *result], [*result, Fraction(0)])]
    return result


def _sum(coefficients: Sequence[Fraction], values: Sequence[Any], number: Number) -> Any:
    """``sum of coefficients * values``, None of none."""
    return _combination([((c, Fraction(0)), value) for c, value in zip(coefficients, values)], number)


def _combination(terms: Sequence[tuple[Surd, Any]], number: Number) -> Any:
    """The sum of numbers times values: multiply-adds behind what needs no product."""
    if not terms:
        return None
    first, *others = sorted(terms, key=lambda term: term[0] != (1, 0))
    total = _scaled(*first, number)
    for factor, value in others:
        total = total + value if factor == (1, 0) else fma(number(*factor), value, total)
    return total


def _scaled(factor: Surd, value: Any, number: Number) -> Any:
    return value if factor == (1, 0) else value * number(*factor)


def _times(number: Surd, factor: Any) -> Surd:
    return number[0] * factor, number[1] * factor


def _product(x: Surd, y: Surd) -> Surd:
    return x[0] * y[0] + 2 * x[1] * y[1], x[0] * y[1] + x[1] * y[0]
