"""Fourier transforms of as many sequences at once as a vector has lanes, as pieces of kernels' texts.

A point is two vectors, real parts and imaginary parts: ``z[n][2][lane]``. A transform works in place, pass by pass; each
pass takes ``radix`` points apart, so that frequencies end in the order of their digits read backwards, and the inverse
begins with that order: products of spectra need no other. The inverse is the same arithmetic with real and imaginary parts
exchanged. Every product that is added is an explicit ``fma``, so that bits are those of any width of vectors.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from konv.engine.simd import fma, loop, splat, transpose

Points = list[tuple[Any, Any]]


def twiddles(radices: tuple[int, ...], dtype: str) -> np.ndarray:
    """The roots of unity of all passes but the last: of each point j and of each ``r`` from 1, ``exp(-2 pi i j r / length)``."""
    tables, length = [np.zeros(0)], math.prod(radices)
    for radix in radices[:-1]:
        j, r = np.arange(length // radix)[:, None], np.arange(1, radix)
        angles = 2 * np.pi * (j * r % length) / length
        tables.append(np.stack([np.cos(angles), -np.sin(angles)], axis=-1).reshape(-1))
        length //= radix
    return np.concatenate(tables).astype(dtype)


def transform(z: Any, roots: Any, radices: tuple[int, ...], lanes: int) -> None:
    """All passes but the last, whose points are neighbours: ``last_of(z, ...)`` computes those."""
    size, start = math.prod(radices), 0
    length = size
    for radix in radices[:-1]:
        step = length // radix
        for block in loop(size // length):
            for j in loop(step):
                first = block * length + j
                points = dft(_read(z, first, step, radix, lanes), z, lanes)
                write(z, first, step, [points[0], *_turned(points[1:], roots.at(start + j * ((radix - 1) * 2)))], lanes)
        start += step * (radix - 1) * 2
        length = step


def last_of(z: Any, first: Any, radices: tuple[int, ...], lanes: int) -> Points:
    """The points ``first ..`` after the last pass."""
    return dft(_read(z, first, 1, radices[-1], lanes), z, lanes)


def first_of_inverse(z: Any, first: Any, points: Points, lanes: int) -> None:
    """The inverse's first pass, of points that are written to ``first ..``."""
    write(z, first, 1, _exchanged(dft(_exchanged(points), z, lanes)), lanes)


def inverse(z: Any, roots: Any, radices: tuple[int, ...], lanes: int) -> None:
    """The inverse's passes after the first. Its results are ``size`` times too large."""
    size, start = math.prod(radices), len(twiddles(radices, "float32"))
    step = radices[-1]
    for radix in reversed(radices[:-1]):
        length = step * radix
        start -= step * (radix - 1) * 2
        for block in loop(size // length):
            for j in loop(step):
                first = block * length + j
                points = _exchanged(_read(z, first, step, radix, lanes))
                points = [points[0], *_turned(points[1:], roots.at(start + j * ((radix - 1) * 2)))]
                write(z, first, step, _exchanged(dft(points, z, lanes)), lanes)
        step = length


def dft(points: Points, z: Any, lanes: int) -> Points:
    """The transform of 2, 4 or 8 points."""
    if len(points) == 2:
        (a, b), (c, d) = points
        return [(a + c, b + d), (a - c, b - d)]
    even, odd = dft(points[::2], z, lanes), dft(points[1::2], z, lanes)
    if len(points) == 4:
        (a, b), (c, d) = even
        (e, f), (g, h) = odd
        return [(a + e, b + f), (c + h, d - g), (a - e, b - f), (c - h, d + g)]
    root, minus = z.full(lanes, math.sqrt(0.5)), z.full(lanes, -math.sqrt(0.5))
    low: Points = []
    high: Points = []
    for k, ((a, b), (c, d)) in enumerate(zip(even, odd)):
        if k == 0:
            low.append((a + c, b + d))
            high.append((a - c, b - d))
        elif k == 2:  # times -i
            low.append((a + d, b - c))
            high.append((a - d, b + c))
        else:  # times (1 - i) / sqrt(2), or (-1 - i) / sqrt(2)
            real, imaginary = (c + d, d - c) if k == 1 else (d - c, c + d)
            up, down = (root, minus) if k == 1 else (minus, root)
            low.append((fma(real, root, a), fma(imaginary, up, b)))
            high.append((fma(real, minus, a), fma(imaginary, down, b)))
    return low + high


def write(z: Any, first: Any, step: int, points: Points, lanes: int) -> None:
    """Points to ``first``, ``first + step``, ..."""
    for r, (real, imaginary) in enumerate(points):
        z.put((first + r * step) * (2 * lanes), real)
        z.put((first + r * step) * (2 * lanes) + lanes, imaginary)


def rows_to_points(
    source: Any, rows: list[tuple[Any, Any, Any]], z: Any, part: int, size: int, stride: int, lanes: int, check: Any,
    scale: float,
) -> None:  # fmt: skip
    """A row of cells for each lane, to real (``part`` 0) or imaginary parts: every ``stride``-th to one of ``stride`` sequences.

    A row is (its first cell, start, end): cells before ``first + start`` and from ``first + end`` on are zeros. ``check``
    becomes NaN in lanes that have met a number that is not finite.
    """
    for q in loop(size * stride // lanes):
        vectors = [
            source.vec(first + q * lanes, lanes, count=end - q * lanes, start=start - q * lanes)
            for first, start, end in rows
        ]
        for i, column in enumerate(transpose(vectors)):
            cell = q * lanes + i
            check.set(fma(column, z.zero(lanes), check.get()))
            scaled = column if scale == 1 else column * scale
            z.put(((cell % stride * size + cell // stride) * 2 + part) * lanes, scaled)


def _read(z: Any, first: Any, step: int, radix: int, lanes: int) -> Points:
    places = [(first + r * step) * (2 * lanes) for r in range(radix)]
    return [(z.vec(place, lanes), z.vec(place + lanes, lanes)) for place in places]


def _turned(points: Points, roots: Any) -> Points:
    turned = []
    for r, (real, imaginary) in enumerate(points):
        lanes = getattr(real, "lanes", None) or len(real)
        cosine, sine = splat(roots[2 * r], lanes), splat(roots[2 * r + 1], lanes)
        turned.append((fma(real, cosine, -(imaginary * sine)), fma(real, sine, imaginary * cosine)))
    return turned


def _exchanged(points: Points) -> Points:
    return [(imaginary, real) for real, imaginary in points]
