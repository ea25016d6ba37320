"""Compile ahead: one small call of everything that usual layers need, so that no later program waits for the compiler."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator

import numpy as np

import konv
from konv.arrays import laid_out
from konv.bench.layers import ROWS, Row
from konv.engine.downconv.down import PAST_BYTES


def calls() -> Iterator[tuple[str, Callable[[], object]]]:
    """(name, call) of every layer in the table of ``konv bench``, channels first and last, and of the layers beside them.

    A kernel depends on a layer's shape, type and layout, hardly on its batch: a batch of one is enough.

    Examples
    --------
    >>> names = [name for name, _ in calls()]
    >>> len(names) > 100, names[0]
    (True, 'resnet-3x3-64@56')
    """
    for row in ROWS:
        small = dataclasses.replace(row, x=(1, *row.x[1:]))
        for layout in ("first", "last"):
            yield (
                row.name if layout == "first" else f"{row.name}, channels last",
                functools.partial(_both, small, layout),
            )
    for dtype in ("float32", "float64"):
        for layout in ("first", "last"):
            yield f"pooling, ReLU, {dtype}", functools.partial(_beside, dtype, layout)
        for sizes in ((200, 64, 4, 10), (1024, 128, 4, 32)):
            yield f"DownConv, {dtype}", functools.partial(_down, dtype, sizes)


def _both(row: Row, layout: str) -> None:
    """The forward and the backward pass of a row, on zeros."""
    x, w, dy = (np.zeros(shape, row.dtype_of_numpy) for shape in (row.x, row.w, row.y))
    x, dy, b = laid_out(x, layout), laid_out(dy, layout), np.zeros(row.filters, row.dtype_of_numpy)
    if row.transposed:
        konv.conv_transpose(x, w, b, **row.arguments)
        konv.conv_transpose_backward(dy, x, w, **row.arguments)
    else:
        konv.conv(x, w, b, **row.arguments)
        konv.conv_backward(dy, x, w, **row.arguments)


def _beside(dtype: str, layout: str) -> None:
    for size in (28, 14, 8):
        x = laid_out(np.zeros((1, 32, size, size), dtype), layout)
        relu = konv.ReLU()
        relu.backward(relu.forward(x))
        for kernel, stride, padding in ((2, 2, 0), (3, 2, 1)):
            for forward, backward in (
                (konv.max_pool, konv.max_pool_backward),
                (konv.avg_pool, konv.avg_pool_backward),
            ):
                y = forward(x, kernel, stride=stride, padding=padding)
                backward(y, x, kernel, stride=stride, padding=padding)


def _down(dtype: str, sizes: tuple[int, ...]) -> None:
    layer = konv.DownConv(*sizes, dtype=dtype, rng=0)
    sample = np.zeros((1, *sizes[:2]), dtype)
    for batch in (1, 1 + PAST_BYTES // sample.nbytes):  # a large gradient is written by a kernel of its own
        layer.backward(layer.forward(np.repeat(sample, batch, axis=0)))
