"""Max and average pooling with their gradients, in 1, 2 or 3 dimensions; arrays and errors as in :mod:`konv.ops`."""

from __future__ import annotations

import numpy as np

from konv import textbook
from konv.arrays import accumulator, check_upstream, checked_floats
from konv.geometry import Geometry, IntOrAxes, Padding, pooling_geometry


def max_pool(
    x: np.ndarray,
    kernel_size: IntOrAxes,
    *,
    stride: IntOrAxes | None = None,
    padding: Padding = 0,
    dilation: IntOrAxes = 1,
) -> np.ndarray:
    """The largest cell of each window. Padding never wins; a NaN in a window does.

    Parameters
    ----------
    x : (N, C, *spatial)
    kernel_size : int or one per axis
    stride : int or one per axis; the kernel size where None
    padding, dilation : as for :func:`konv.geometry`; every window must hold at least one cell of x

    Returns
    -------
    y : (N, C, *output)

    Raises
    ------
    TypeError, ValueError
        As :func:`conv`; and when a window would see padding alone.

    Examples
    --------
    >>> max_pool(np.array([[[1.0, 5.0, 2.0, 3.0]]]), 2)
    array([[[5., 3.]]])
    """
    (x,) = checked_floats(x=x)
    g = pooling_geometry(x.shape, kernel_size, stride=stride, padding=padding, dilation=dilation, dtype=x.dtype)
    padded = textbook.pad(x, g, fill=-np.inf)
    y = np.full(g.output_shape, -np.inf, x.dtype)
    with np.errstate(invalid="ignore"):  # bfloat16 warns where it compares a NaN, the other types do not
        for _, cells in textbook.taps(g):
            np.maximum(y, padded[cells], out=y)
    return y


def max_pool_backward(
    dy: np.ndarray,
    x: np.ndarray,
    kernel_size: IntOrAxes,
    *,
    stride: IntOrAxes | None = None,
    padding: Padding = 0,
    dilation: IntOrAxes = 1,
) -> np.ndarray:
    """Gradient of :func:`max_pool`: each ``dy`` goes to the first largest cell (the first NaN) of its window.

    Parameters
    ----------
    dy : (N, C, *output), x : (N, C, *spatial)
    kernel_size, stride, padding, dilation : those of the forward call

    Returns
    -------
    dx : (N, C, *spatial)

    Raises
    ------
    TypeError, ValueError
        As :func:`max_pool`; and ``dy`` must have the shape of the forward result.

    Examples
    --------
    >>> max_pool_backward(np.array([[[10.0, 20.0]]]), np.array([[[1.0, 5.0, 3.0, 3.0]]]), 2)
    array([[[ 0., 10., 20.,  0.]]])
    """
    dy, x = checked_floats(dy=dy, x=x)
    g = pooling_geometry(x.shape, kernel_size, stride=stride, padding=padding, dilation=dilation, dtype=x.dtype)
    check_upstream(dy, g.output_shape)
    wide = accumulator(x.dtype)
    gradient = np.zeros((*x.shape[:2], *g.padded), wide)
    winner = max_pool_argmax(x, g)
    for number, (_, cells) in enumerate(textbook.taps(g)):
        gradient[cells] += np.where(winner == number, dy, 0).astype(wide, copy=False)
    return textbook.unpad(gradient, g).astype(x.dtype, copy=False)


def max_pool_argmax(x: np.ndarray, g: Geometry) -> np.ndarray:
    """Which tap of each window holds its first largest cell (its first NaN): int, the shape of the result.

    Parameters
    ----------
    x : (N, C, *spatial)
    g : its :func:`konv.geometry.pooling_geometry`

    Examples
    --------
    >>> max_pool_argmax(np.array([[[1.0, 5.0, 3.0, 3.0]]]), pooling_geometry((1, 1, 4), 2))
    array([[[1, 0]]])
    """
    padded, real = textbook.pad(x, g, fill=-np.inf), textbook.pad(np.ones((1, 1, *g.spatial), bool), g)
    best = np.full(g.output_shape, -np.inf, x.dtype)
    winner = np.full(g.output_shape, -1, np.intp)
    for number, (_, cells) in enumerate(textbook.taps(g)):
        cell = padded[cells]
        with np.errstate(invalid="ignore"):  # bfloat16 warns where it compares a NaN, the other types do not
            better = (cell > best) | (np.isnan(cell) & ~np.isnan(best)) | (winner < 0)
        better &= real[cells]  # padding never wins, not even where all is -inf
        np.copyto(best, cell, where=better)
        winner[better] = number
    return winner


def avg_pool(
    x: np.ndarray,
    kernel_size: IntOrAxes,
    *,
    stride: IntOrAxes | None = None,
    padding: Padding = 0,
    dilation: IntOrAxes = 1,
    count_include_pad: bool = True,
) -> np.ndarray:
    """The mean of each window, summed in float32 for the half types.

    Parameters
    ----------
    x, kernel_size, stride, padding, dilation : as for :func:`max_pool`
    count_include_pad : divide by the kernel's cells (True) or by the window's real cells (False)

    Returns
    -------
    y : (N, C, *output)

    Raises
    ------
    TypeError, ValueError
        As :func:`max_pool`.

    Examples
    --------
    >>> avg_pool(np.array([[[2.0, 4.0]]]), 2, padding=1, count_include_pad=False)
    array([[[2., 4.]]])
    """
    (x,) = checked_floats(x=x)
    g = pooling_geometry(x.shape, kernel_size, stride=stride, padding=padding, dilation=dilation, dtype=x.dtype)
    padded = textbook.pad(x, g)
    total = np.zeros(g.output_shape, accumulator(x.dtype))
    for _, cells in textbook.taps(g):
        total += padded[cells]
    return (total / textbook.window_sizes(g, count_include_pad).astype(total.dtype)).astype(x.dtype, copy=False)


def avg_pool_backward(
    dy: np.ndarray,
    x: np.ndarray,
    kernel_size: IntOrAxes,
    *,
    stride: IntOrAxes | None = None,
    padding: Padding = 0,
    dilation: IntOrAxes = 1,
    count_include_pad: bool = True,
) -> np.ndarray:
    """Gradient of :func:`avg_pool`: every cell of a window gets an equal share of its ``dy``.

    Parameters
    ----------
    dy : (N, C, *output), x : (N, C, *spatial), of which only shape and dtype are used
    kernel_size, stride, padding, dilation, count_include_pad : those of the forward call

    Returns
    -------
    dx : (N, C, *spatial)

    Raises
    ------
    TypeError, ValueError
        As :func:`avg_pool`; and ``dy`` must have the shape of the forward result.

    Examples
    --------
    >>> avg_pool_backward(np.array([[[2.0, 4.0]]]), np.zeros((1, 1, 4)), 2)
    array([[[1., 1., 2., 2.]]])
    """
    dy, x = checked_floats(dy=dy, x=x)
    g = pooling_geometry(x.shape, kernel_size, stride=stride, padding=padding, dilation=dilation, dtype=x.dtype)
    check_upstream(dy, g.output_shape)
    wide = accumulator(x.dtype)
    share = dy.astype(wide, copy=False) / textbook.window_sizes(g, count_include_pad).astype(wide)
    gradient = np.zeros((*x.shape[:2], *g.padded), wide)
    for _, cells in textbook.taps(g):
        gradient[cells] += share
    return textbook.unpad(gradient, g).astype(x.dtype, copy=False)
