"""The readable reference: convolution, its gradients, its transpose and pooling in plain NumPy.

Each function is its formula and little else; the tests hold every fast path of konv against this page. One index rule
runs through all of it. Output ``o`` meets weight ``k`` at the cell ``o * stride + k * dilation`` of the padded input::

    y[n, f, o] = b[f] + sum over c, k of  w[f, c, k] * x_padded[n, c, o * stride + k * dilation]

``o`` and ``k`` are single indices in 1-D and tuples in 2-D and 3-D. The 2-D forms ``im2col`` and ``col2im`` are those of
*Deep Learning from Scratch* (K. Saitoh, 2016), ch. 7.4; matrix forms and gradients: Dumoulin & Visin, *A guide to
convolution arithmetic for deep learning*, arXiv:1603.07285.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from konv.arguments import PADDING_MODES, checked_integer, padding_pairs, per_axis, source_cells
from konv.arrays import checked_array
from konv.geometry import Geometry, geometry, pooling_geometry, transposed_geometry, window_geometry
from konv.names import names_told


@names_told
def im2col(input_data: np.ndarray, filter_h: int, filter_w: int, stride: int = 1, pad: int = 0) -> np.ndarray:
    """Lay every window of a batch of images out as one row of a matrix.

    ``col[(n, i, j), (c, u, v)] = x_padded[n, c, i * stride + u, j * stride + v]``

    Parameters
    ----------
    input_data : (N, C, H, W), any dtype, which the result keeps
    filter_h, filter_w : window height and width
    stride, pad : int (or one per axis; ``pad`` takes what ``padding`` of :func:`konv.geometry` takes)

    Returns
    -------
    col : (N * out_h * out_w, C * filter_h * filter_w), ``out_h = 1 + (H + 2 * pad - filter_h) // stride``

    Raises
    ------
    TypeError, ValueError
        ``input_data`` is no 4-D array, or the window does not fit (see :func:`konv.geometry`).

    Examples
    --------
    >>> im2col(np.arange(9.0).reshape(1, 1, 3, 3), 2, 2)
    array([[0., 1., 3., 4.],
           [1., 2., 4., 5.],
           [3., 4., 6., 7.],
           [4., 5., 7., 8.]])
    """
    if checked_array("input_data", input_data).ndim != 4:
        raise ValueError(f"input_data has shape {input_data.shape}: expected (N, C, H, W)")
    g = _book_geometry(input_data.shape, filter_h, filter_w, stride, pad)
    return columns(input_data, g)


@names_told
def col2im(
    col: np.ndarray, input_shape: tuple[int, ...], filter_h: int, filter_w: int, stride: int = 1, pad: int = 0
) -> np.ndarray:
    """Add the rows of ``col`` back onto the image cells they came from: the adjoint of :func:`im2col`.

    ``x_padded[n, c, i * stride + u, j * stride + v] += col[(n, i, j), (c, u, v)]``, then the padding is cut off.

    Parameters
    ----------
    col : (N * out_h * out_w, C * filter_h * filter_w), any dtype, which the result keeps
    input_shape : (N, C, H, W)
    filter_h, filter_w, stride, pad : as for :func:`im2col`

    Returns
    -------
    image : (N, C, H, W)

    Raises
    ------
    TypeError, ValueError
        The window does not fit ``input_shape``, or ``col`` has another shape than these numbers give.

    Examples
    --------
    >>> col2im(np.ones((4, 4)), (1, 1, 3, 3), 2, 2)[0, 0]
    array([[1., 2., 1.],
           [2., 4., 2.],
           [1., 2., 1.]])
    """
    if isinstance(input_shape, str) or not isinstance(input_shape, (Sequence, np.ndarray)):
        raise TypeError(f"input_shape={input_shape!r}: expected (N, C, H, W)")
    if len(input_shape) != 4:
        raise ValueError(f"input_shape={tuple(input_shape)}: expected (N, C, H, W)")
    shape = tuple(checked_integer(f"input_shape[{i}]", n, min(i, 1)) for i, n in enumerate(input_shape))  # N may be 0
    g = _book_geometry(shape, filter_h, filter_w, stride, pad)
    rows = g.batch * math.prod(g.output)
    width = g.channels * math.prod(g.kernel)
    if checked_array("col", col).shape != (rows, width):
        raise ValueError(
            f"col must have shape (N * out_h * out_w, C * filter_h * filter_w) = "
            f"({g.batch} * {g.output[0]} * {g.output[1]}, {g.channels} * {g.kernel[0]} * {g.kernel[1]}) = ({rows}, {width}), "
            f"not {col.shape}"
        )
    return fold_columns(col, g)


def conv(x, w, b=None, *, stride=1, padding=0, dilation=1, groups=1, padding_mode="zeros"):
    """Convolution as one matrix product per group: ``y = im2col(x) @ w.reshape(F, -1).T + b``.

    Parameters, shapes and errors as :func:`konv.conv`; x (N, C, *spatial), w (F, C // groups, *kernel), b (F,) or None.

    Examples
    --------
    >>> conv(np.array([[[1.0, 2.0, 3.0, 4.0]]]), np.array([[[1.0, 0.0, -1.0]]]))
    array([[[-2., -2.]]])
    """
    g = geometry(
        x.shape, w.shape, stride=stride, padding=padding, dilation=dilation, groups=groups, padding_mode=padding_mode
    )
    y = np.empty((g.filters, g.batch, *g.output), x.dtype)
    for channels, filters in _groups(g):
        col = columns(x[:, channels], g)  # (N * O, C/groups * K)
        col_w = w[filters].reshape(len(w[filters]), -1).T  # (C/groups * K, F/groups)
        y[filters] = (col @ col_w).T.reshape(len(w[filters]), g.batch, *g.output)
    y = np.ascontiguousarray(np.moveaxis(y, 0, 1))
    return y if b is None else y + _per_channel(b, y)


def conv_backward(dy, x, w, *, stride=1, padding=0, dilation=1, groups=1, padding_mode="zeros"):
    """Gradients of :func:`conv`: from ``dy = dL/dy`` to ``(dx, dw, db)``.

    ``y = col @ col_w + b`` gives ``db = sum(dy)``, ``dw = col.T @ dy``, ``dcol = dy @ col_w.T``, ``dx = col2im(dcol)``.

    Examples
    --------
    >>> x, w = np.array([[[1.0, 2.0, 3.0, 4.0]]]), np.array([[[1.0, 0.0, -1.0]]])
    >>> conv_backward(np.ones((1, 1, 2)), x, w)
    (array([[[ 1.,  1., -1., -1.]]]), array([[[3., 5., 7.]]]), array([2.]))
    """
    g = geometry(
        x.shape, w.shape, stride=stride, padding=padding, dilation=dilation, groups=groups, padding_mode=padding_mode
    )
    db = dy.sum(axis=(0, *range(2, dy.ndim)))
    dx, dw = np.empty_like(x, order="C"), np.empty_like(w, order="C")
    for channels, filters in _groups(g):
        rows = np.moveaxis(dy[:, filters], 1, -1).reshape(-1, dy[:, filters].shape[1])  # (N * O, F/groups)
        dw[filters] = (columns(x[:, channels], g).T @ rows).T.reshape(dw[filters].shape)
        dx[:, channels] = fold_columns(rows @ w[filters].reshape(len(w[filters]), -1), g)
    return dx, dw, db


def conv_transpose(x, w, b=None, *, stride=1, padding=0, output_padding=0, dilation=1, groups=1):
    """Transposed convolution: every input cell scatters its weighted kernel.

    ``y_padded[n, f, i * stride + k * dilation] += x[n, c, i] * w[c, f, k]``, then ``padding`` is cut off both ends.
    x (N, C, *spatial), w (C, F // groups, *kernel), b (F,) or None; errors as :func:`konv.conv_transpose`.

    Examples
    --------
    >>> conv_transpose(np.array([[[1.0, 10.0]]]), np.array([[[1.0, 2.0, 3.0]]]), stride=2)
    array([[[ 1.,  2., 13., 20., 30.]]])
    """
    g = transposed_geometry(
        x.shape,
        w.shape,
        stride=stride,
        padding=padding,
        output_padding=output_padding,
        dilation=dilation,
        groups=groups,
    )
    y = np.zeros((*g.x_shape[:2], *g.padded), x.dtype)
    for outputs, inputs in _groups(g):
        for k, cells in taps(g):
            y[:, outputs][cells] += np.moveaxis(np.tensordot(x[:, inputs], w[inputs][:, :, *k], axes=(1, 0)), -1, 1)
    y = np.ascontiguousarray(y[_inside(g)])
    return y if b is None else y + _per_channel(b, y)


def conv_transpose_backward(dy, x, w, *, stride=1, padding=0, output_padding=0, dilation=1, groups=1):
    """Gradients of :func:`conv_transpose`: ``(dx, dw, db)``.

    ``dx[n, c, i] = sum over f, k of dy_padded[n, f, i * stride + k * dilation] * w[c, f, k]`` (a plain convolution), and
    ``dw[c, f, k] = sum over n, i of x[n, c, i] * dy_padded[n, f, i * stride + k * dilation]``.

    Examples
    --------
    >>> x, w = np.array([[[1.0, 10.0]]]), np.array([[[1.0, 2.0, 3.0]]])
    >>> conv_transpose_backward(np.ones((1, 1, 5)), x, w, stride=2)
    (array([[[6., 6.]]]), array([[[11., 11., 11.]]]), array([5.]))
    """
    g = transposed_geometry(
        x.shape,
        w.shape,
        stride=stride,
        padding=padding,
        output_padding=output_padding,
        dilation=dilation,
        groups=groups,
    )
    padded = pad(dy, g)
    dx, dw = np.zeros_like(x, order="C"), np.zeros_like(w, order="C")
    for outputs, inputs in _groups(g):
        for k, cells in taps(g):
            met = padded[:, outputs][cells]  # (N, F/groups, *spatial of x)
            over = (0, *range(2, x.ndim))
            dw[inputs][:, :, *k] = np.tensordot(x[:, inputs], met, axes=(over, over))
            dx[:, inputs] += np.moveaxis(np.tensordot(met, w[inputs][:, :, *k], axes=(1, 1)), -1, 1)
    return dx, dw, dy.sum(axis=(0, *range(2, dy.ndim)))


def max_pool(x, kernel_size, *, stride=None, padding=0, dilation=1):
    """Largest cell of each window; padding never wins.

    Examples
    --------
    >>> max_pool(np.array([[[1.0, 5.0, 2.0, 3.0]]]), 2)
    array([[[5., 3.]]])
    """
    g = pooling_geometry(x.shape, kernel_size, stride=stride, padding=padding, dilation=dilation)
    return windows(x, g, fill=-np.inf).max(axis=-1)


def max_pool_backward(dy, x, kernel_size, *, stride=None, padding=0, dilation=1):
    """Gradient of :func:`max_pool`: ``dy`` goes to the first largest cell of its window.

    Examples
    --------
    >>> max_pool_backward(np.array([[[10.0, 20.0]]]), np.array([[[1.0, 5.0, 3.0, 3.0]]]), 2)
    array([[[ 0., 10., 20.,  0.]]])
    """
    g = pooling_geometry(x.shape, kernel_size, stride=stride, padding=padding, dilation=dilation)
    winner = max_pool_argmax(x, g)
    dx = np.zeros((*x.shape[:2], *g.padded), x.dtype)
    for number, (_, cells) in enumerate(taps(g)):
        dx[cells] += np.where(winner == number, dy, 0)
    return np.ascontiguousarray(dx[_inside(g)])


def max_pool_argmax(x: np.ndarray, g: Geometry) -> np.ndarray:
    """Which tap of each window is its first largest real cell (its first NaN): int, (N, C, *output).

    >>> max_pool_argmax(np.array([[[1.0, 5.0, 3.0, 3.0]]]), pooling_geometry((1, 1, 4), 2))
    array([[[1, 0]]])
    """
    cells = windows(x, g, fill=-np.inf)
    real = windows(np.ones((1, 1, *g.spatial), bool), g)
    first_real = real.argmax(axis=-1)
    winner = cells.argmax(axis=-1)
    # Padding is -inf; only a window of nothing but -inf can take it for its largest cell.
    taken_from_padding = ~np.take_along_axis(np.broadcast_to(real, cells.shape), winner[..., np.newaxis], -1)[..., 0]
    return np.where(taken_from_padding, first_real, winner)


def avg_pool(x, kernel_size, *, stride=None, padding=0, dilation=1, count_include_pad=True):
    """Mean of each window; with ``count_include_pad=False`` the mean of its real cells.

    Examples
    --------
    >>> avg_pool(np.array([[[1.0, 5.0, 2.0, 3.0]]]), 2)
    array([[[3. , 2.5]]])
    """
    g = pooling_geometry(x.shape, kernel_size, stride=stride, padding=padding, dilation=dilation)
    return (windows(x, g).sum(axis=-1) / window_sizes(g, count_include_pad)).astype(x.dtype)


def avg_pool_backward(dy, x, kernel_size, *, stride=None, padding=0, dilation=1, count_include_pad=True):
    """Gradient of :func:`avg_pool`: every cell of a window gets an equal share of its ``dy``.

    Examples
    --------
    >>> avg_pool_backward(np.array([[[2.0, 4.0]]]), np.zeros((1, 1, 4)), 2)
    array([[[1., 1., 2., 2.]]])
    """
    g = pooling_geometry(x.shape, kernel_size, stride=stride, padding=padding, dilation=dilation)
    share = dy / window_sizes(g, count_include_pad)
    dx = np.zeros((*x.shape[:2], *g.padded), x.dtype)
    for _, cells in taps(g):
        dx[cells] += share
    return np.ascontiguousarray(dx[_inside(g)])


def pad(x: np.ndarray, g: Geometry, fill: float = 0) -> np.ndarray:
    """x (N, C, *spatial) with the geometry's padding around its spatial axes, a new array.

    >>> pad(np.array([[[1, 2, 3]]]), geometry((1, 1, 3), (1, 1, 3), padding=2, padding_mode="reflect"))
    array([[[3, 2, 1, 2, 3, 2, 1]]])
    """
    width = ((0, 0), (0, 0), *g.padding)
    if g.padding_mode == "zeros":
        # Where nothing is filled in, the zero of the dtype itself, which dates and structures have, too.
        return np.pad(x, width, constant_values=x.dtype.type(fill) if fill else np.zeros((), x.dtype))
    return np.pad(x, width, mode=PADDING_MODES[g.padding_mode])  # type: ignore[call-overload]


def unpad(padded: np.ndarray, g: Geometry) -> np.ndarray:
    """The adjoint of :func:`pad`: zero padding is cut off, a repeated cell is added to the cell it repeats.

    >>> unpad(np.array([[[1, 1, 1, 1, 1]]]), geometry((1, 1, 3), (1, 1, 3), padding=1, padding_mode="replicate"))
    array([[[2, 1, 2]]])
    """
    if g.padding_mode == "zeros":
        return np.ascontiguousarray(padded[_inside(g)])
    for axis in range(g.axes):
        rows = np.moveaxis(padded, 2 + axis, 0)
        x = np.zeros((g.spatial[axis], *rows.shape[1:]), padded.dtype)
        np.add.at(x, source_cells(g.spatial[axis], g.padding[axis], g.padding_mode), rows)
        padded = np.moveaxis(x, 0, 2 + axis)
    return np.ascontiguousarray(padded)


def windows(x: np.ndarray, g: Geometry, fill: float = 0) -> np.ndarray:
    """Every window of x, its cells on the last axis: (N, C, *output, K), ``K = prod(kernel)``.

    >>> windows(np.array([[[1, 2, 3]]]), geometry((1, 1, 3), (1, 1, 2)))
    array([[[[1, 2],
             [2, 3]]]])
    """
    padded = pad(x, g, fill)
    return np.stack([padded[cells] for _, cells in taps(g)], axis=-1)


def columns(x: np.ndarray, g: Geometry) -> np.ndarray:
    """:func:`im2col` in any number of dimensions: (N * prod(output), C * prod(kernel)).

    >>> columns(np.array([[[1, 2, 3]]]), geometry((1, 1, 3), (1, 1, 2)))
    array([[1, 2],
           [2, 3]])
    """
    channels = x.shape[1]
    rows = np.moveaxis(windows(x, g), 1, -2)
    return np.ascontiguousarray(rows).reshape(g.batch * math.prod(g.output), channels * math.prod(g.kernel))


def fold_columns(col: np.ndarray, g: Geometry) -> np.ndarray:
    """:func:`col2im` in any number of dimensions: the adjoint of :func:`columns`, (N, C, *spatial).

    >>> fold_columns(np.array([[1, 2], [10, 20]]), geometry((1, 1, 3), (1, 1, 2)))
    array([[[ 1, 12, 20]]])
    """
    kernel_size = math.prod(g.kernel)
    channels = col.shape[1] // kernel_size
    by_tap = np.moveaxis(col.reshape(g.batch, *g.output, channels, kernel_size), -2, 1)  # (N, C, *output, K)
    padded = np.zeros((*by_tap.shape[:2], *g.padded), col.dtype)
    for number, (_, cells) in enumerate(taps(g)):
        padded[cells] += by_tap[..., number]
    return unpad(padded, g)


def taps(g: Geometry) -> Iterator[tuple[tuple[int, ...], tuple]]:
    """Each kernel index k, and the padded cells ``o * stride + k * dilation`` that it meets, as slices."""
    for k in np.ndindex(*g.kernel):
        starts = [i * d for i, d in zip(k, g.dilation)]
        spatial = [slice(a, a + (o - 1) * s + 1, s) for a, o, s in zip(starts, g.output, g.stride)]
        yield k, (slice(None), slice(None), *spatial)


def _groups(g: Geometry) -> list[tuple[slice, slice]]:
    """The channels and the filters of each group."""
    c, f = g.channels // g.groups, g.filters // g.groups
    return [(slice(i * c, i * c + c), slice(i * f, i * f + f)) for i in range(g.groups)]


def _inside(g: Geometry) -> tuple:
    """The slices that cut zero padding off."""
    return (slice(None), slice(None), *(slice(low, low + n) for n, (low, _) in zip(g.spatial, g.padding)))


def _book_geometry(shape: tuple[int, ...], filter_h: int, filter_w: int, stride: int, pad: int) -> Geometry:
    """The geometry of the book's functions, whose errors speak of the book's arguments."""
    kernel = checked_integer("filter_h", filter_h, 1), checked_integer("filter_w", filter_w, 1)
    padding_pairs(pad, kernel, kernel, per_axis("stride", stride, 2), name="pad")
    return window_geometry(shape, kernel, stride=stride, padding=pad)


def _per_channel(b: np.ndarray, y: np.ndarray) -> np.ndarray:
    return b.reshape(-1, *[1] * (y.ndim - 2))


def window_sizes(g: Geometry, count_include_pad: bool) -> np.ndarray:
    """How many cells the mean of each pooling window divides by: int, (output,).

    >>> window_sizes(pooling_geometry((1, 1, 4), 2, padding=1), False)
    array([1, 2, 1])
    """
    if count_include_pad:
        return np.full(g.output, math.prod(g.kernel))
    sizes = np.ones((), np.int64)
    for axis in range(g.axes):
        sizes = np.multiply.outer(sizes, g.real_taps(axis))
    return sizes
