"""Sums in one fixed order, so that an output has the same bits however many are computed beside it.

BLAS sums in an order that depends on the shapes; a stream cut into other chunks would differ in the last bit. Here each
output is ``b + w[0, 0] * x + w[0, 1] * x + ...`` over channels, then taps, by element-wise multiply and add, each of
which IEEE 754 rounds in one way only. Used by streaming layers; slower than a matrix product.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from konv.arrays import accumulator
from konv.geometry import Geometry
from konv.textbook import taps

if TYPE_CHECKING:
    from konv.engine.plan import Problem

NAME = "ordered"


def declines(problem: Problem) -> str | None:
    """Everything but a forward pass that asks for it."""
    if not problem.any_length:
        return "the caller does not ask for bits that are the same at any length"
    return None if problem.kind == "forward" else "computes the forward pass only"


def workspace(problem: Problem) -> int:
    """Bytes of the padded input, the sums and one product."""
    g = problem.geometry
    itemsize = 8 if problem.dtype == "float64" else 4
    return itemsize * (g.batch * g.channels * math.prod(g.padded) + 2 * math.prod(g.output_shape))


def forward(x: np.ndarray, w: np.ndarray, b: np.ndarray | None, g: Geometry, out: np.ndarray) -> None:
    """``out = b + sum over c, k of w[:, c, k] * x[:, c, o * stride + k * dilation]``, in that order."""
    dtype = accumulator(x.dtype)
    padded = np.pad(x.astype(dtype, copy=False), ((0, 0), (0, 0), *g.padding))
    padded = padded.reshape(g.batch, g.groups, g.channels // g.groups, *g.padded)
    weights = w.astype(dtype, copy=False).reshape(g.groups, g.filters // g.groups, g.channels // g.groups, -1)
    total = np.zeros((g.batch, g.groups, g.filters // g.groups, *g.output), dtype)
    if b is not None:
        total += b.astype(dtype, copy=False).reshape(g.groups, -1, *[1] * g.axes)
    product = np.empty_like(total)
    for c in range(g.channels // g.groups):
        for number, (_, cells) in enumerate(taps(g)):
            factor = weights[:, :, c, number].reshape(g.groups, -1, *[1] * g.axes)
            np.multiply(factor, padded[:, :, c][cells][:, :, np.newaxis], out=product)
            total += product
    out[...] = total.reshape(g.output_shape)
