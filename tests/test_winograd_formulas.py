"""Winograd's identity: in exact arithmetic in one dimension, in decimal arithmetic in two. Plain Python, no kernel."""

from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest

from konv.engine.winograd.winograd_formulas import MOST_POINTS, Scheme, both_axes

F43 = Scheme(4, 3)
SCHEMES = [Scheme(outputs, n + 1 - outputs) for n in range(1, MOST_POINTS + 1) for outputs in range(1, n + 1)]


class Root:
    """Exact numbers a + r * sqrt(2) with rational a and r."""

    def __init__(self, a, r=0):
        self.a, self.r = Fraction(a), Fraction(r)

    def __add__(self, other):
        return Root(self.a + other.a, self.r + other.r)

    def __sub__(self, other):
        return Root(self.a - other.a, self.r - other.r)

    def __mul__(self, other):
        return Root(self.a * other.a + 2 * self.r * other.r, self.a * other.r + self.r * other.a)

    def __eq__(self, other):
        return (self.a, self.r) == (other.a, other.r)

    def __repr__(self):
        return f"{self.a} + {self.r} sqrt(2)"


def matrix(formula, columns, number):
    """The matrix of a linear formula: its values at the unit vectors, as rows of ``number``s."""
    units = [[number(int(i == j)) for i in range(columns)] for j in range(columns)]
    return [list(row) for row in zip(*(formula(unit, number) for unit in units))]


def number(a, r=0):
    return float(a) + float(r) * 2**0.5


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_the_identity_holds_exactly_in_one_dimension(scheme):
    """``sum over points of A^T[o, p] G[p, t] B^T[p, i]`` is 1 where ``i == o + t``, else 0: numbers a + r sqrt(2)."""
    n, bt = scheme.points, matrix(scheme.inputs, scheme.points, Root)
    pairs = [(scheme.output, scheme.outputs, scheme.filters, scheme.taps)]
    pairs += [(scheme.weights, scheme.taps, scheme.upstream, scheme.outputs)]  # of the weight gradient
    for left, outer, right, inner in pairs:
        g, at = matrix(right, inner, Root), matrix(left, n, Root)
        for o, t, i in np.ndindex(outer, inner, n):
            total = Root(0)
            for p in range(n):
                total = total + at[o][p] * g[p][t] * bt[p][i]
            assert total == Root(int(i == o + t)), (o, t, i)


@pytest.mark.parametrize("scheme", [scheme for scheme in SCHEMES if scheme.taps > 1], ids=str)
def test_fewer_taps_need_no_infinity(scheme):
    """The polynomial of a section's taps has then no highest coefficient; nor is the last input read at other points."""
    g, bt = (
        matrix(formula, n, number) for formula, n in ((scheme.filters, scheme.taps), (scheme.inputs, scheme.points))
    )
    assert not any(g[-1][:-1]) and not any(row[-1] for row in bt[:-1])


def test_the_identity_holds_in_two_dimensions():
    """A tile of F(4, 3) x F(5, 2) in decimal arithmetic of 50 digits."""
    rng, rows, columns = np.random.default_rng(0), F43, Scheme(5, 2)
    cells, taps = rng.integers(-9, 10, (6, 6)), rng.integers(-9, 10, (3, 2))
    with localcontext() as context:
        context.prec = 50

        def decimal(a):
            return Decimal(Fraction(a).numerator) / Decimal(Fraction(a).denominator)

        def number(a, r=0):
            return decimal(a) + decimal(r) * Decimal(2).sqrt()

        v = both_axes([rows.inputs, columns.inputs], [[Decimal(int(a)) for a in row] for row in cells], number)
        u = both_axes([rows.filters, columns.filters], [[Decimal(int(a)) for a in row] for row in taps], number)
        products = [[a * b for a, b in zip(*pair)] for pair in zip(u, v)]
        outputs = both_axes([rows.output, columns.output], products, number)
        for i, j in np.ndindex(4, 5):
            assert abs(outputs[i][j] - int((cells[i : i + 3, j : j + 2] * taps).sum())) <= Decimal(10) ** -45
