"""Windows as columns, and columns added back: moved cells in NumPy, for any dtype; arrays and errors as in :mod:`konv.ops`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from konv import textbook
from konv.arguments import IntOrAxes, Padding, per_axis
from konv.arrays import FLOAT_TYPES, accumulator, checked_array
from konv.geometry import window_geometry
from konv.names import names_told


@names_told
def unfold(
    x: np.ndarray,
    kernel_size: IntOrAxes,
    *,
    stride: IntOrAxes = 1,
    padding: Padding = 0,
    dilation: IntOrAxes = 1,
) -> np.ndarray:
    """Every window of x as one column, in the order of ``torch.nn.Unfold``, for any number of axes and any dtype.

    ``columns[n, (c, k), o] = x_padded[n, c, o * stride + k * dilation]``

    Parameters
    ----------
    x : (N, C, *spatial), any dtype, which the result keeps
    kernel_size, stride, dilation : int or one per axis
    padding : as for :func:`konv.geometry`, zeros

    Returns
    -------
    columns : (N, C * prod(kernel), prod(output))

    Raises
    ------
    TypeError, ValueError
        x is no array, or the window does not fit.

    Examples
    --------
    >>> unfold(np.arange(4).reshape(1, 1, 4), 3)
    array([[[0, 1],
            [1, 2],
            [2, 3]]])
    """
    g = window_geometry(
        checked_array("x", x).shape,
        kernel_size,
        stride=stride,
        padding=padding,
        dilation=dilation,
        dtype=x.dtype,
    )
    windows = textbook.windows(x, g).reshape(g.batch, g.channels, math.prod(g.output), math.prod(g.kernel))
    rows = g.channels * math.prod(g.kernel)
    return np.ascontiguousarray(windows.swapaxes(-1, -2)).reshape(g.batch, rows, math.prod(g.output))


@names_told
def fold(
    columns: np.ndarray,
    output_size: IntOrAxes,
    kernel_size: IntOrAxes,
    *,
    stride: IntOrAxes = 1,
    padding: Padding = 0,
    dilation: IntOrAxes = 1,
) -> np.ndarray:
    """Add columns back onto the cells they came from: the adjoint of :func:`unfold`, and ``torch.nn.Fold`` in any dimension.

    Parameters
    ----------
    columns : (N, C * prod(kernel), prod(output)), a number type, which the result keeps
    output_size : int (one spatial axis) or one int per spatial axis: the shape of x's spatial axes
    kernel_size, stride, padding, dilation : as for :func:`unfold`

    Returns
    -------
    x : (N, C, *output_size)

    Raises
    ------
    TypeError, ValueError
        ``columns`` is no 3-D array, or its shape is not what the numbers give.

    Examples
    --------
    >>> fold(np.ones((1, 3, 2)), (4,), 3)
    array([[[1., 2., 2., 1.]]])
    """
    if checked_array("columns", columns).ndim != 3:
        raise ValueError(f"columns has shape {columns.shape}: expected (N, C * prod(kernel), prod(output))")
    several = isinstance(output_size, Sequence) or (isinstance(output_size, np.ndarray) and output_size.ndim > 0)
    axes = len(output_size) if several else 1  # type: ignore[arg-type]
    if not 1 <= axes <= 3:
        raise ValueError(f"output_size={output_size!r}: expected 1, 2 or 3 spatial axes")
    spatial = per_axis("output_size", output_size, axes)
    kernel = per_axis("kernel_size", kernel_size, len(spatial))
    batch, rows, positions = columns.shape
    if rows % math.prod(kernel) or not rows:
        raise ValueError(
            f"columns has shape {columns.shape}: its second axis must be C * prod(kernel), a multiple of {math.prod(kernel)}"
        )
    channels = rows // math.prod(kernel)
    g = window_geometry(
        (batch, channels, *spatial), kernel, stride=stride, padding=padding, dilation=dilation, dtype=columns.dtype
    )
    if positions != math.prod(g.output):
        raise ValueError(
            f"columns has shape {columns.shape}: its last axis must be the number of windows, "
            f"{' * '.join(map(str, g.output))} = {math.prod(g.output)}"
        )
    by_window = columns.reshape(batch, channels, math.prod(kernel), positions).transpose(0, 3, 1, 2)
    wide = accumulator(columns.dtype) if columns.dtype.name in FLOAT_TYPES else columns.dtype
    return textbook.fold_columns(by_window.reshape(batch * positions, rows).astype(wide), g).astype(
        columns.dtype, copy=False
    )
