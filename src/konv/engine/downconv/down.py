"""DownConv, both convolutions and the ReLU between them: the jobs of :mod:`konv.engine.downconv.down_plan`, one after the other.

Forward reads x once and writes y; between them lie the hidden numbers, few where a window has many cells.
Backward needs those, x and the weights; it reads x once more and writes dx once.

Lost: w1 kept in L1 by cutting k, with sums put aside (1.2 times as long).
"""

from __future__ import annotations

import numpy as np

from konv import lending
from konv.engine.downconv.down_plan import (
    Backward,
    Shape,
    add_plan,
    backward_plan,
    declines,
    forward_plan,
    lengthened,
    second_plan,
)
from konv.engine.launch import address
from konv.engine.machine import machine, wide_type
from konv.engine.memory import aligned
from konv.engine.threads import width

__all__ = ["Shape", "backward", "declines", "empty_gradient", "forward"]

PAST_BYTES = 8 << 20  # a gradient larger than this would drive from the caches what is needed sooner
ADDED = 8  # multiply-adds that take as long as one of the sums of dw1 that are added


def forward(
    x: np.ndarray, w1: np.ndarray, b1: np.ndarray | None, w2: np.ndarray, b2: np.ndarray | None, shape: Shape,
    y: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Write the result into y and return the hidden numbers, (batch, segments * k2, channels), zeros where padding is."""
    plan = forward_plan(shape)
    hidden = np.empty((shape.batch, shape.segments * shape.k2, shape.channels), x.dtype)
    end = shape.padding + shape.windows
    if shape.padding:
        hidden[:, : shape.padding] = 0
    if end < shape.segments * shape.k2:
        hidden[:, end:] = 0
    if not shape.batch:
        return hidden
    if plan.job is None:
        plan.first.run(x, w1.transpose(2, 1, 0), b1, hidden, hidden, shape)
    else:
        rows, bias = plan.rows.laid(w1), lengthened(b1, shape.channels, shape)
        pointers = dict(x=address(x), w1=address(rows), b1=address(bias), hidden=address(hidden))
        if plan.together:
            columns, last_bias = plan.second.laid(w2.transpose(2, 1, 0), b2, shape)
            pointers |= dict(w2=address(columns), b2=address(last_bias), y=address(y))
        plan.job.run(width(plan.job.pieces, shape.first_products), **pointers)
    if not plan.together:
        plan.second.run(hidden, w2.transpose(2, 1, 0), b2, hidden, y, shape)
    return hidden


def empty_gradient(x: np.ndarray) -> np.ndarray:
    """An uninitialised array like x, for its gradient: a row of it is written, then the next row of x read."""
    return lending.empty(x.shape, x.dtype, address(x)) if x.nbytes >= lending.LENT_BYTES else aligned(x.shape, x.dtype)


def backward(
    dy: np.ndarray, x: np.ndarray, hidden: np.ndarray, w1: np.ndarray, w2: np.ndarray, shape: Shape,
    dx: np.ndarray | None, first: bool = True, second: bool = True,
) -> tuple[np.ndarray | None, ...]:  # fmt: skip
    """Write dL/dx into ``dx`` (None where it is not needed); return (dw1, db1, dw2, db2).

    ``first``, ``second``: whether the gradients of the first and of the second convolution are needed; else they are None.
    """
    dw1, db1, dw2, db2 = None, None, None, None
    if second:
        dw2, db2 = _second_gradients(dy, hidden, shape)
    if dx is not None:
        dx[:, shape.windows * shape.k1 :] = 0
    if dx is not None or first:
        plan = backward_plan(shape, dx is not None, first, dx is not None and _past(dx, shape))
        if shape.rows:
            sums = _first_sums(dy, x, hidden, w1, w2, shape, dx, plan)
        else:
            sums = np.zeros((1, plan.sums_size), wide_type(shape.dtype))
        if first:
            dw1 = np.empty((shape.channels, shape.features, shape.k1), x.dtype)
            job = add_plan(shape, len(sums), plan.sums_size)
            job.run(width(job.pieces, ADDED * sums.size), sums=address(sums), dw=address(dw1))
            db1 = sums[:, plan.size * shape.channels :][:, : shape.channels].sum(axis=0).astype(x.dtype)
    return dw1, db1, dw2, db2


def _first_sums(
    dy: np.ndarray, x: np.ndarray, hidden: np.ndarray, w1: np.ndarray, w2: np.ndarray, shape: Shape,
    dx: np.ndarray | None, plan: Backward,
) -> np.ndarray:  # fmt: skip
    """Write ``dx``, and return the sums of dw1 and db1 as the kernel lays them."""
    wide = wide_type(shape.dtype)
    dh = np.empty((shape.batch * shape.segments, shape.segment_size), wide)
    plan.multiply.run(dy, w2.transpose(0, 2, 1), None, hidden, dh, shape)
    rows, sums = plan.rows.laid(w1), aligned((plan.stretch.pieces, plan.sums_size), wide)
    plan.stretch.run(
        width(plan.stretch.pieces, 2 * shape.first_products), x=address(x), dh=address(dh), w1=address(rows),
        dx=address(x if dx is None else dx), sums=address(sums),
    )  # fmt: skip
    return sums


def _second_gradients(dy: np.ndarray, hidden: np.ndarray, shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    job, parts = second_plan(shape)
    sums = np.empty((parts, shape.segment_size + 1, shape.outputs), wide_type(shape.dtype))
    if shape.batch:
        job.run(width(job.pieces, shape.second_products), a=address(hidden), b=address(dy), sums=address(sums))
    else:
        sums[...] = 0
    total, dw2 = (
        sums.sum(axis=0) if parts > 1 else sums[0],
        np.empty((shape.outputs, shape.channels, shape.k2), dy.dtype),
    )
    dw2[...] = total[:-1].reshape(shape.k2, shape.channels, shape.outputs).transpose(2, 1, 0)
    return dw2, total[-1].astype(dy.dtype)


def _past(dx: np.ndarray, shape: Shape) -> bool:
    """Whether dx is written past the caches: it is large, and every vector of it begins where a line does."""
    vector = machine().lanes(shape.dtype) * dx.itemsize
    apart = (shape.size * dx.itemsize, shape.length * shape.features * dx.itemsize, address(dx))
    return dx.nbytes >= PAST_BYTES and not any(place % vector for place in apart)
