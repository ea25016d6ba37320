"""ReLU and Sigmoid."""

from __future__ import annotations

from typing import Any

import numpy as np

from konv.arrays import accumulator, checked_floats
from konv.layers.base import Layer


class ReLU(Layer):
    """Rectified linear unit: ``y = max(x, 0)``, elementwise. In the book it is called ``Relu``.

    A NaN stays a NaN. The gradient at exactly 0 is 0, as in the book (*Deep Learning from Scratch*, sec. 5.5.1).

    Attributes
    ----------
    mask : bool array like x, or None
        Where the last input was <= 0; None outside training.

    Examples
    --------
    >>> import numpy as np
    >>> relu = ReLU()
    >>> relu.forward(np.array([[-1.0, 2.0], [3.0, -4.0]]))
    array([[0., 2.],
           [3., 0.]])
    >>> relu.backward(np.ones((2, 2)))
    array([[0., 1.],
           [1., 0.]])
    """

    @property
    def mask(self) -> np.ndarray | None:
        """Where the last input was <= 0 (bool, like x); None outside training."""
        if self._saved is None or self._output is None:
            return None if self._saved is None else self._saved[0]
        return self._output <= 0

    @property
    def _output(self) -> np.ndarray | None:
        """The last output where it tells the mask: the layer before computed it, and the next one keeps it. Else None."""
        return None if self._saved is None else self._saved[2]

    def _keep(self, out: np.ndarray) -> None:
        """Take ``out``, which is ``max(x, 0)`` and stays as it is until backward, for the last ``forward``'s output."""
        self._remember((None, out.dtype, out) if self.training else None)

    def forward(self, x: np.ndarray) -> np.ndarray:
        """``x`` of any shape and floating dtype -> an array of the same shape and dtype.

        Raises
        ------
        TypeError
            ``x`` is no floating-point array.
        """
        (x,) = checked_floats(x=x)
        out, mask = _rectify().forward(x)
        self._remember((mask, x.dtype, None) if self.training else None)
        return out

    def backward(self, dout: np.ndarray) -> np.ndarray:
        """``dx = dout`` where ``x > 0``, else 0, in x's dtype. ``dout`` has x's shape and is left as it is.

        Raises
        ------
        RuntimeError
            There was no ``forward`` in training mode.
        TypeError, ValueError
            ``dout`` is no float array, or has another shape.
        """
        mask, dtype, out = self._recall()
        mask = out <= 0 if mask is None else mask
        dout = self._accepted(dout, mask.shape)
        return _rectify().gradient(dout.astype(dtype, copy=False), mask)

    def _passed(self) -> None:
        """The layer behind has done what :meth:`backward` does. Raises as that."""
        self._recall()
        self._answered()


Relu = ReLU


def _rectify() -> Any:
    from konv.engine import rectify  # imports LLVM, which takes a while

    return rectify


class Sigmoid(Layer):
    """Logistic function: ``y = 1 / (1 + exp(-x))``, elementwise, without overflow for any x.

    Computed as ``exp(min(x, 0)) / (1 + exp(-|x|))``, whose exponentials never exceed 1. The gradient is ``y * (1 - y)``
    (*Deep Learning from Scratch*, sec. 5.5.2).

    Attributes
    ----------
    out : array like x, or None
        The last output; None outside training.

    Examples
    --------
    >>> import numpy as np
    >>> sigmoid = Sigmoid()
    >>> sigmoid.forward(np.array([-1000.0, 0.0, 1000.0]))
    array([0. , 0.5, 1. ])
    >>> sigmoid.backward(np.ones(3))
    array([0.  , 0.25, 0.  ])
    """

    @property
    def out(self) -> np.ndarray | None:
        """The last output (like x); None outside training."""
        return None if self._saved is None else self._saved[0]

    def forward(self, x: np.ndarray) -> np.ndarray:
        """``x`` of any shape and floating dtype -> an array of the same shape and dtype, with values in [0, 1].

        float16 and bfloat16 are calculated in float32.

        Raises
        ------
        TypeError
            ``x`` is no floating-point array.
        """
        (x,) = checked_floats(x=x)
        values = x.astype(accumulator(x.dtype), copy=False)
        with np.errstate(under="ignore"):  # exp(-1000) is 0, and that is right
            out = np.exp(np.minimum(values, 0)) / (1 + np.exp(-np.abs(values)))
            out = np.asarray(out, x.dtype)  # of no axes it would be a scalar
        # A copy: in-place work on the output must not change the gradient.
        self._remember((out.copy(), x.dtype) if self.training else None)
        return out

    def backward(self, dout: np.ndarray) -> np.ndarray:
        """``dx = dout * y * (1 - y)`` in x's dtype. ``dout`` has x's shape.

        Raises
        ------
        RuntimeError
            There was no ``forward`` in training mode.
        TypeError, ValueError
            ``dout`` is no float array, or has another shape.
        """
        out, dtype = self._recall()
        dout = self._accepted(dout, out.shape)
        working = accumulator(dtype)
        dout, out = dout.astype(working, copy=False), out.astype(working, copy=False)
        with np.errstate(under="ignore"):
            return np.asarray(dout * out * (1 - out), dtype)
