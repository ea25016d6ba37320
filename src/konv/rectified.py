"""A convolution and the ReLU beside it in one pass over memory, for layers in a row: see :mod:`konv.layers.sequential`.

Where an algorithm cannot do it in passing, the ReLU goes over the result in place. Options, checks and errors are those of
:func:`konv.conv` and :func:`konv.conv_backward`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from konv import ops


def conv(x: np.ndarray, w: np.ndarray, b: np.ndarray | None, **options: Any) -> np.ndarray:
    """``max(conv(x, w, b), 0)``, where a NaN stays one.

    >>> conv(np.ones((1, 1, 2)), np.array([[[2.0]], [[-2.0]]]), None)
    array([[[2., 2.],
            [0., 0.]]])
    """
    return ops._conv(x, w, b, **options, rectified=True)


def conv_backward(dy: np.ndarray, x: np.ndarray, w: np.ndarray, **options: Any) -> tuple[Any, Any, Any]:
    """As :func:`konv.conv_backward`, but dL/dz of ``x = max(z, 0)`` in the place of dL/dx: 0 where x is.

    >>> conv_backward(np.ones((1, 1, 2)), np.array([[[0.0, 3.0]]]), np.array([[[2.0]]]))[0]
    array([[[0., 2.]]])
    """
    return ops._conv_backward(dy, x, w, **options, rectified=True)
