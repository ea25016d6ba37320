"""A convolution and the ReLU beside it in one pass over memory, for layers in a row: see :mod:`konv.layers.sequential`.

Where an algorithm cannot do it in passing, the ReLU goes over the result in place.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from konv import ops
from konv.arguments import IntOrAxes, Padding
from konv.arrays import checked_floats, dtype_name, empty, laid_out, layout_of
from konv.engine.plan import algorithm_for
from konv.geometry import Geometry


def conv(
    x: np.ndarray,
    w: np.ndarray,
    b: np.ndarray | None,
    *,
    stride: IntOrAxes = 1,
    padding: Padding = 0,
    dilation: IntOrAxes = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    layout: str | None = None,
) -> np.ndarray:
    """``max(conv(x, w, b), 0)``, where a NaN stays one. Raises what :func:`konv.conv` raises.

    >>> conv(np.ones((1, 1, 2)), np.array([[[2.0]], [[-2.0]]]), None)
    array([[[2., 2.],
            [0., 0.]]])
    """
    x, w, b = checked_floats(x=x, w=w, b=b)
    layout = layout or layout_of(x)
    g, algorithm = _chosen("forward", x, w, layout, (stride, padding, dilation, groups, padding_mode))
    ops._check_bias(b, g.filters)
    y = empty(g.output_shape, x.dtype, layout)
    if hasattr(algorithm, "forward_rectified"):
        algorithm.forward_rectified(laid_out(x, layout), np.ascontiguousarray(w), b, g, y)
        return y
    ops.conv(
        x, w, b, stride=stride, padding=padding, dilation=dilation, groups=groups, padding_mode=padding_mode, out=y
    )
    _keep_where_positive(y, y)
    return y


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
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As :func:`konv.conv_backward`, but dL/dz of ``x = max(z, 0)`` in the place of dL/dx: 0 where x is.

    >>> conv_backward(np.ones((1, 1, 2)), np.array([[[0.0, 3.0]]]), np.array([[[2.0]]]))[0]
    array([[[0., 2.]]])
    """
    dy, x, w = checked_floats(dy=dy, x=x, w=w)
    layout = layout_of(x, dy)
    g, algorithm = _chosen("input_gradient", x, w, layout, (stride, padding, dilation, groups, padding_mode))
    in_passing = hasattr(algorithm, "input_gradient_rectified") and max(g.stride) == 1
    dx, dw, db = ops.conv_backward(
        dy, x, w, stride=stride, padding=padding, dilation=dilation, groups=groups, padding_mode=padding_mode,
        need=ops.GRADIENTS[1:] if in_passing else ops.GRADIENTS,
    )  # fmt: skip
    if in_passing:
        dx = empty(g.x_shape, x.dtype, layout)
        algorithm.input_gradient_rectified(laid_out(dy, layout), np.ascontiguousarray(w), laid_out(x, layout), g, dx)
    else:
        _keep_where_positive(dx, x)
    return dx, dw, db


def _chosen(kind: str, x: np.ndarray, w: np.ndarray, layout: str, options: tuple) -> tuple[Geometry, Any]:
    """The geometry, and the algorithm; None where padding is not with zeros."""
    g = ops._geometry(x, w, *options)
    return g, algorithm_for(kind, g, dtype_name(x.dtype), layout) if g.padding_mode == "zeros" else None


def _keep_where_positive(x: np.ndarray, told_by: np.ndarray) -> None:
    from konv.engine import rectify  # LLVM takes a while to import

    rectify.where_positive(x, told_by, x)
