"""Convolution, its gradients and its relatives on NumPy arrays: check -> plan -> run.

Every function checks its arrays here and its shapes in :mod:`konv.geometry`, before memory is touched; then the engine
computes. Shared rules:

- x is (N, C, *spatial) with 1, 2 or 3 spatial axes, in any memory layout; N may be 0.
- Arrays with channels last in memory (``np.moveaxis(nhwc, -1, 1)``) are computed as they are; what they give has its channels
  last too. All other results are C-contiguous.
- Elements are float16, float32, float64 or bfloat16 (of ``ml_dtypes``). The result has the dtype of x; half types are
  summed in float32 and rounded once. All arrays of a call share one dtype.
- Inputs are never written to; results are new arrays.
- ``TypeError``: no NumPy array, or a dtype that is not floating point. ``ValueError``: shapes that do not meet.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from konv import textbook
from konv.arguments import IntOrAxes, Padding
from konv.arrays import (
    accumulator,
    check_upstream,
    checked_floats,
    dtype_name,
    empty,
    laid_out,
    layout_of,
    output_array,
)
from konv.engine.plan import algorithm_for
from konv.geometry import Geometry, are_plain, geometry, transposed_geometry
from konv.names import names_told

GRADIENTS = ("x", "w", "b")


@names_told
def conv(
    x: np.ndarray,
    w: np.ndarray,
    b: np.ndarray | None = None,
    *,
    stride: IntOrAxes = 1,
    padding: Padding = 0,
    dilation: IntOrAxes = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Convolution (cross-correlation, as in every deep learning library) in 1, 2 or 3 dimensions.

    ``y[n, f, o] = b[f] + sum over c, k of w[f, c, k] * x_padded[n, c, o * stride + k * dilation]``

    Parameters
    ----------
    x : (N, C, *spatial)
    w : (F, C // groups, *kernel)
    b : (F,) or None
    stride, padding, dilation, groups, padding_mode : as for :func:`konv.geometry`
    out : array of the result's shape and dtype to write into, any memory layout; its range of
        memory must not overlap that of an input

    Returns
    -------
    y : (N, F, *output), ``out`` where given

    Raises
    ------
    TypeError
        An array is not a NumPy array of one floating point dtype (integers: convert with ``x.astype(np.float32)``).
    ValueError
        Shapes do not meet (see :func:`konv.geometry`), or ``out`` does not fit, is read-only or overlaps an input.

    Examples
    --------
    >>> x = np.arange(5.0).reshape(1, 1, 5)
    >>> conv(x, np.array([[[1.0, 1.0, 1.0]]]), padding="same")
    array([[[1., 3., 6., 9., 7.]]])
    """
    return _conv(x, w, b, stride, padding, dilation, groups, padding_mode, out)


def _conv(
    x: np.ndarray,
    w: np.ndarray,
    b: np.ndarray | None,
    stride: IntOrAxes = 1,
    padding: Padding = 0,
    dilation: IntOrAxes = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    out: np.ndarray | None = None,
    rectified: bool = False,
) -> np.ndarray:
    """:func:`conv`, or with ``rectified`` :func:`konv.rectified.conv`."""
    given = (x, w, b)
    x, w, b = checked_floats(x=x, w=w, b=b)
    g = _geometry(x, w, stride, padding, dilation, groups, padding_mode)
    _check_bias(b, g.filters)
    # An x of one channel fits both layouts: then ``out`` decides, or the result would have to be copied there.
    layout = layout_of(x, out) if isinstance(out, np.ndarray) and out.ndim == x.ndim else layout_of(x)
    if out is None:
        y = empty(g.output_shape, x.dtype, layout)
    else:
        y = output_array(out, g.output_shape, x.dtype, layout, x=given[0], w=given[1], b=given[2])
    if g.padding_mode != "zeros":
        x, g = _zero_padded(x, g)
    chosen = algorithm_for("forward", g, dtype_name(x.dtype), layout)
    x, w = laid_out(x, layout), np.ascontiguousarray(w)
    if rectified and hasattr(chosen, "forward_rectified"):
        chosen.forward_rectified(x, w, b, g, y)
    else:
        chosen.forward(x, w, b, g, y)
        if rectified:
            _keep_where_positive(y, y)
    if out is None or y is out:
        return y
    out[...] = y
    return out


@names_told
def conv_backward(
    dy: np.ndarray,
    x: np.ndarray,
    w: np.ndarray,
    *,
    stride: IntOrAxes = 1,
    padding: Padding = 0,
    dilation: IntOrAxes = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    need: Sequence[str] = GRADIENTS,
) -> tuple[Any, Any, Any]:
    """Gradients of :func:`conv`: from ``dy = dL/dy`` to ``(dL/dx, dL/dw, dL/db)``.

    ``dx[n, c, i] = sum of dy[n, f, o] * w[f, c, k]`` over all (o, k) that met cell i, likewise
    ``dw[f, c, k] = sum over n, o of dy[n, f, o] * x_padded[n, c, o * stride + k * dilation]``, ``db[f] = sum of dy[:, f]``.

    Parameters
    ----------
    dy : (N, F, *output), x : (N, C, *spatial), w : (F, C // groups, *kernel)
    stride, padding, dilation, groups, padding_mode : those of the forward call
    need : which of "x", "w", "b" to compute

    Returns
    -------
    (dx, dw, db) : shapes of x, w and (F,); None where not needed

    Raises
    ------
    TypeError, ValueError
        As :func:`conv`; and ``dy`` must have the shape of the forward result.

    Examples
    --------
    >>> dx, dw, db = conv_backward(np.ones((1, 1, 3)), np.arange(5.0).reshape(1, 1, 5), np.ones((1, 1, 3)))
    >>> dx, dw, db
    (array([[[1., 2., 3., 2., 1.]]]), array([[[3., 6., 9.]]]), array([3.]))
    """
    return _conv_backward(dy, x, w, stride, padding, dilation, groups, padding_mode, need)


def _conv_backward(
    dy: np.ndarray,
    x: np.ndarray,
    w: np.ndarray,
    stride: IntOrAxes = 1,
    padding: Padding = 0,
    dilation: IntOrAxes = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    need: Sequence[str] = GRADIENTS,
    rectified: bool = False,
) -> tuple[Any, Any, Any]:
    """:func:`conv_backward`, or with ``rectified`` :func:`konv.rectified.conv_backward`."""
    dy, x, w = checked_floats(dy=dy, x=x, w=w)
    g = _geometry(x, w, stride, padding, dilation, groups, padding_mode)
    check_upstream(dy, g.output_shape)
    wanted = _needed(need)
    dx = dw = db = None
    dtype, layout = dtype_name(x.dtype), layout_of(x, dy)
    padded_x, inner = (x, g) if g.padding_mode == "zeros" else _zero_padded(x, g)
    dy = laid_out(dy, layout)
    if "x" in wanted:
        # A repeated cell collects several gradients: half types stay float32 until those are added up.
        inner_dx = empty(inner.x_shape, dy.dtype if inner is g else accumulator(dy.dtype), layout)
        chosen = algorithm_for("input_gradient", inner, dtype, layout)
        if rectified and inner is g and max(g.stride) == 1 and hasattr(chosen, "input_gradient_rectified"):
            chosen.input_gradient_rectified(dy, np.ascontiguousarray(w), laid_out(x, layout), g, inner_dx)
            rectified = False  # done
        else:
            chosen.input_gradient(dy, np.ascontiguousarray(w), inner, inner_dx)
        dx = inner_dx if inner is g else laid_out(textbook.unpad(inner_dx, g).astype(x.dtype, copy=False), layout)
        if rectified:
            _keep_where_positive(dx, x)
    if "w" in wanted:
        dw = np.empty(g.w_shape, w.dtype)
        chosen = algorithm_for("weight_gradient", inner, dtype, layout)
        if "b" in wanted and hasattr(chosen, "weight_and_bias_gradient"):
            db = np.empty(g.filters, dy.dtype)
            chosen.weight_and_bias_gradient(dy, laid_out(padded_x, layout), inner, dw, db)
        else:
            chosen.weight_gradient(dy, laid_out(padded_x, layout), inner, dw)
    if "b" in wanted and db is None:
        db = _bias_gradient(dy)
    return dx, dw, db


@names_told
def conv_transpose(
    x: np.ndarray,
    w: np.ndarray,
    b: np.ndarray | None = None,
    *,
    stride: IntOrAxes = 1,
    padding: Padding = 0,
    output_padding: IntOrAxes = 0,
    dilation: IntOrAxes = 1,
    groups: int = 1,
) -> np.ndarray:
    """Transposed convolution: the input gradient of a convolution, used to enlarge.

    ``y_padded[n, f, i * stride + k * dilation] += x[n, c, i] * w[c, f, k]``, then ``padding`` is cut off; along an axis
    ``out = (L - 1) * stride - low - high + dilation * (kernel - 1) + 1 + output_padding``.

    Parameters
    ----------
    x : (N, C, *spatial)
    w : (C, F // groups, *kernel)
    b : (F,) or None
    stride, dilation : int, or one int per spatial axis, at least 1
    padding : cells cut from each end of the result: int, one per axis, a (low, high) pair per axis, or "valid"
    output_padding : int or one per axis, less than ``max(stride, dilation)``: cells added at the end of the result
    groups : int that divides C

    Returns
    -------
    y : (N, F, *out)

    Raises
    ------
    TypeError, ValueError
        As :func:`conv`; and when an axis of the result would be empty, or ``output_padding >= max(stride, dilation)``.

    Examples
    --------
    >>> conv_transpose(np.array([[[1.0, 10.0]]]), np.array([[[1.0, 2.0, 3.0]]]), stride=2)
    array([[[ 1.,  2., 13., 20., 30.]]])
    """
    x, w, b = checked_floats(x=x, w=w, b=b)
    g = _geometry_of_transposed(x, w, stride, padding, output_padding, dilation, groups)
    _check_bias(b, g.channels)
    layout = layout_of(x)
    chosen = algorithm_for("input_gradient", g, dtype_name(x.dtype), layout)
    x, w = laid_out(x, layout), np.ascontiguousarray(w)
    if b is not None and hasattr(chosen, "input_gradient_and_bias"):
        y = empty(g.x_shape, x.dtype, layout)
        chosen.input_gradient_and_bias(x, w, b, g, y)
        return y
    y = empty(g.x_shape, x.dtype if b is None else accumulator(x.dtype), layout)
    chosen.input_gradient(x, w, g, y)
    if b is not None:
        _add_bias(y, b)
    return y.astype(x.dtype, copy=False)


@names_told
def conv_transpose_backward(
    dy: np.ndarray,
    x: np.ndarray,
    w: np.ndarray,
    *,
    stride: IntOrAxes = 1,
    padding: Padding = 0,
    output_padding: IntOrAxes = 0,
    dilation: IntOrAxes = 1,
    groups: int = 1,
    need: Sequence[str] = GRADIENTS,
) -> tuple[Any, Any, Any]:
    """Gradients of :func:`conv_transpose`: ``(dx, dw, db)``, None where not needed.

    ``dx`` is a plain convolution of ``dy`` with w; ``dw`` is that convolution's weight gradient with x upstream.

    Parameters
    ----------
    dy : (N, F, *out), x : (N, C, *spatial), w : (C, F // groups, *kernel)
    stride, padding, output_padding, dilation, groups : those of the forward call
    need : which of "x", "w", "b" to compute

    Returns
    -------
    (dx, dw, db) : shapes of x, w and (F,); None where not needed

    Raises
    ------
    TypeError, ValueError
        As :func:`conv_transpose`; and ``dy`` must have the shape of the forward result.

    Examples
    --------
    >>> x, w = np.array([[[1.0, 10.0]]]), np.array([[[1.0, 2.0, 3.0]]])
    >>> conv_transpose_backward(np.ones((1, 1, 5)), x, w, stride=2)
    (array([[[6., 6.]]]), array([[[11., 11., 11.]]]), array([5.]))
    """
    dy, x, w = checked_floats(dy=dy, x=x, w=w)
    g = _geometry_of_transposed(x, w, stride, padding, output_padding, dilation, groups)
    check_upstream(dy, g.x_shape)
    wanted = _needed(need)
    dx = dw = db = None
    dtype, layout = dtype_name(x.dtype), layout_of(x, dy)
    dy = laid_out(dy, layout)
    if "x" in wanted:
        dx = empty(g.output_shape, x.dtype, layout)
        chosen = algorithm_for("forward", g, dtype, layout)
        chosen.forward(dy, np.ascontiguousarray(w), None, g, dx)
    if "w" in wanted:
        dw = np.empty(g.w_shape, w.dtype)
        chosen = algorithm_for("weight_gradient", g, dtype, layout)
        chosen.weight_gradient(laid_out(x, layout), dy, g, dw)
    if "b" in wanted:
        db = _bias_gradient(dy)
    return dx, dw, db


def _geometry(x: np.ndarray, w: np.ndarray, *options: Any) -> Geometry:
    """The geometry of a call; that of the same plain numbers is checked once (a network makes the same calls again)."""
    return (_known_geometry if are_plain(options) else _new_geometry)(x.shape, w.shape, x.dtype, *options)


def _geometry_of_transposed(x: np.ndarray, w: np.ndarray, *options: Any) -> Geometry:
    """That of a transposed convolution, likewise."""
    return (_known_transposed if are_plain(options) else _new_transposed)(x.shape, w.shape, x.dtype, *options)


def _new_geometry(
    x_shape: Any, w_shape: Any, dtype: Any, stride: Any, padding: Any, dilation: Any, groups: Any, padding_mode: Any
) -> Geometry:
    return geometry(
        x_shape, w_shape, stride=stride, padding=padding, dilation=dilation, groups=groups, padding_mode=padding_mode,
        dtype=dtype,
    )  # fmt: skip


def _new_transposed(
    x_shape: Any, w_shape: Any, dtype: Any, stride: Any, padding: Any, output_padding: Any, dilation: Any, groups: Any
) -> Geometry:
    return transposed_geometry(
        x_shape, w_shape, stride=stride, padding=padding, output_padding=output_padding, dilation=dilation, groups=groups,
        dtype=dtype,
    )  # fmt: skip


_known_geometry = functools.lru_cache(maxsize=1024)(_new_geometry)
_known_transposed = functools.lru_cache(maxsize=1024)(_new_transposed)


def _check_bias(b: np.ndarray | None, filters: int) -> None:
    if b is not None and b.shape != (filters,):
        raise ValueError(f"b has shape {b.shape}; expected (F,) = ({filters},), one for each filter")


def _needed(need: Sequence[str]) -> set[str]:
    if need is GRADIENTS:
        return {*GRADIENTS}
    if not isinstance(need, Collection):
        raise TypeError(f"need={need!r}: expected a sequence of names out of {GRADIENTS}")
    wanted = [need] if isinstance(need, str) else list(need)
    if not all(isinstance(name, str) and name in GRADIENTS for name in wanted):
        raise ValueError(f"need={need!r}: expected names out of {GRADIENTS}")
    return set(wanted)


def _zero_padded(x: np.ndarray, g: Geometry) -> tuple[np.ndarray, Geometry]:
    """The engine pads with zeros only: other modes are applied to x here, and the geometry has no padding left."""
    inner = dataclasses.replace(g, spatial=g.padded, padding=((0, 0),) * g.axes, padding_mode="zeros")
    return textbook.pad(x, g), inner


def _add_bias(y: np.ndarray, b: np.ndarray) -> None:
    from konv.engine.bias import add_bias  # LLVM takes a while to import

    add_bias(y, b)


def _keep_where_positive(y: np.ndarray, told_by: np.ndarray) -> None:
    from konv.engine import rectify  # LLVM takes a while to import

    rectify.where_positive(y, told_by, y)


def _bias_gradient(dy: np.ndarray) -> np.ndarray:
    from konv.engine.bias import bias_gradient  # LLVM takes a while to import

    return bias_gradient(dy)
