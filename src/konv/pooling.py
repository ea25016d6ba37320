"""Max and average pooling with their gradients, in 1, 2 or 3 dimensions; arrays and errors as in :mod:`konv.ops`."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from konv.arguments import IntOrAxes, Padding
from konv.arrays import check_flag, check_upstream, checked_floats, layout_of
from konv.geometry import Geometry, are_plain, pooling_geometry
from konv.names import names_told


@names_told
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
    return max_pool_winners(x, kernel_size, stride=stride, padding=padding, dilation=dilation)[0]


def max_pool_winners(
    x: np.ndarray,
    kernel_size: IntOrAxes,
    *,
    stride: IntOrAxes | None = None,
    padding: Padding = 0,
    dilation: IntOrAxes = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """:func:`max_pool`, and which tap of each window holds its first largest cell (its first NaN): small integers.

    Examples
    --------
    >>> max_pool_winners(np.array([[[1.0, 5.0, 3.0, 3.0]]]), 2)
    (array([[[5., 3.]]]), array([[[1, 0]]], dtype=uint8))
    """
    (x,) = checked_floats(x=x)
    g = _geometry(x, kernel_size, stride, padding, dilation)
    return _engine().largest(x, g)


@names_told
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
    (x,) = checked_floats(x=x)
    _, winners = max_pool_winners(x, kernel_size, stride=stride, padding=padding, dilation=dilation)
    return max_pool_from_winners(dy, x, winners, kernel_size, stride=stride, padding=padding, dilation=dilation)


def max_pool_from_winners(
    dy: np.ndarray,
    x: np.ndarray,
    winners: np.ndarray,
    kernel_size: IntOrAxes,
    *,
    stride: IntOrAxes | None = None,
    padding: Padding = 0,
    dilation: IntOrAxes = 1,
    rectified: np.ndarray | None = None,
) -> np.ndarray:
    """:func:`max_pool_backward` with the taps that :func:`max_pool_winners` gave; of x shape, dtype and layout are used.

    ``rectified``: the largest numbers that it gave with the taps. Then the gradient goes through a ReLU before the pooling, too.

    Examples
    --------
    >>> x = np.array([[[1.0, 5.0, 3.0, 3.0]]])
    >>> max_pool_from_winners(np.array([[[10.0, 20.0]]]), x, max_pool_winners(x, 2)[1], 2)
    array([[[ 0., 10., 20.,  0.]]])
    """
    dy, x = checked_floats(dy=dy, x=x)
    g = _geometry(x, kernel_size, stride, padding, dilation)
    check_upstream(dy, g.output_shape)
    return _engine().largest_gradient(dy, winners, g, layout_of(x), rectified)


@names_told
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
    check_flag("count_include_pad", count_include_pad)
    g = _geometry(x, kernel_size, stride, padding, dilation)
    return _engine().mean(x, g, count_include_pad)


@names_told
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
    check_flag("count_include_pad", count_include_pad)
    g = _geometry(x, kernel_size, stride, padding, dilation)
    check_upstream(dy, g.output_shape)
    told_by = dy if 0 in x.strides else x  # a layer keeps the shape of x only
    return _engine().mean_gradient(dy, g, count_include_pad, layout_of(told_by))


def _geometry(x: np.ndarray, *options: Any) -> Geometry:
    """The geometry of a call; that of the same plain numbers is checked once, in 75 us: as long as a small layer takes."""
    return (_known_geometry if are_plain(options) else _new_geometry)(x.shape, x.dtype, *options)


def _new_geometry(x_shape: Any, dtype: Any, kernel_size: Any, stride: Any, padding: Any, dilation: Any) -> Geometry:
    return pooling_geometry(x_shape, kernel_size, stride=stride, padding=padding, dilation=dilation, dtype=dtype)


_known_geometry = functools.lru_cache(maxsize=1024)(_new_geometry)


def _engine() -> Any:
    from konv.engine.pooling import pool  # imports LLVM, which takes a while

    return pool
