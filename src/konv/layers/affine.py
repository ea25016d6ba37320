"""Affine: the fully connected layer."""

from __future__ import annotations

import math

import numpy as np

from konv.arrays import accumulator, checked_floats
from konv.layers.base import Layer
from konv.names import names_told
from konv.ops import conv


class Affine(Layer):
    """Fully connected layer: ``y = x @ W + b`` with x flattened to (N, D).

    Source: *Deep Learning from Scratch*, sec. 5.6, whose class has the same arguments and attributes.

    Parameters
    ----------
    W : float array (D, M)
    b : float array (M,), or None for no bias

    Attributes
    ----------
    W, b : the arrays given, not copies, so that an optimizer's update in place reaches the layer
    dW, db : float arrays like W and b
        Gradients left by :meth:`backward`; None before it.
    x : float array (N, D), or None
        The last input, flattened; None outside training.
    original_x_shape : tuple of int, or None
        Its shape before that.

    Raises
    ------
    TypeError
        W or b is no floating-point array.
    ValueError
        W has not two axes, or b not W's number of columns.

    Notes
    -----
    The layer calculates in x's dtype, in float32 for float16 and bfloat16; W and b may have another, and their gradients
    have theirs. In training the layer keeps a reference to x and a copy of W, so that an update of W in place between
    ``forward`` and ``backward`` does not change dx. W is the transpose of the weight of PyTorch's ``Linear``.

    Examples
    --------
    >>> import numpy as np
    >>> affine = Affine(np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), np.array([10.0, 20.0]))
    >>> affine.forward(np.array([[1.0, 2.0, 3.0]]))
    array([[14., 25.]])
    >>> affine.backward(np.array([[1.0, 2.0]]))
    array([[1., 2., 3.]])
    >>> affine.dW
    array([[1., 2.],
           [2., 4.],
           [3., 6.]])
    """

    parameter_names = ("W", "b")

    @names_told
    def __init__(self, W: np.ndarray, b: np.ndarray | None) -> None:
        self.W = W
        self.b = b
        self.dW: np.ndarray | None = None
        self.db: np.ndarray | None = None
        self.original_x_shape: tuple[int, ...] | None = None
        self._check_parameters()

    def _check_parameters(self) -> None:
        """Also before each forward: the book's programs put new arrays into W and b."""
        checked_floats(W=self.W)
        if self.W.ndim != 2:
            raise ValueError(f"W must have shape (D, M), inputs by outputs, got shape {self.W.shape}")
        if self.b is not None:
            checked_floats(b=self.b)
            if self.b.shape != self.W.shape[1:]:
                raise ValueError(
                    f"b has shape {self.b.shape}, but W {self.W.shape} has {self.W.shape[1]} outputs: "
                    f"b must have shape ({self.W.shape[1]},)"
                )

    @property
    def x(self) -> np.ndarray | None:
        """The last input, flattened to (N, D); None outside training."""
        return None if self._saved is None else self._saved[0]

    def forward(self, x: np.ndarray) -> np.ndarray:
        """``x`` (N, ...) with D values in each row -> ``x.reshape(N, D) @ W + b``, (N, M), in x's dtype.

        Raises
        ------
        TypeError
            ``x`` is no floating-point array.
        ValueError
            The rows of ``x`` do not have D values.
        """
        (x,) = checked_floats(x=x)
        self._check_parameters()
        if x.ndim == 0:
            raise ValueError("x must have shape (N, ...), got a single number of shape ()")
        values = math.prod(x.shape[1:])
        if values != self.W.shape[0]:
            raise ValueError(
                f"x has shape {x.shape}: {values} values in each of its {x.shape[0]} rows, "
                f"but W {self.W.shape} takes {self.W.shape[0]}"
            )
        working = accumulator(x.dtype)
        rows = x.reshape(x.shape[0], values)
        W = self.W.astype(working, copy=self.training)
        self.original_x_shape = x.shape
        self._remember((rows, W, x.shape))
        out = _product(rows.astype(working, copy=False), W)
        if self.b is not None:
            out += self.b.astype(working, copy=False)
        return out.astype(x.dtype, copy=False)

    def backward(self, dout: np.ndarray) -> np.ndarray:
        """``dx = dout @ W.T`` in x's shape and dtype; sets ``dW = x.T @ dout`` and ``db = dout.sum(axis=0)``.

        ``dout`` has shape (N, M), like the output.

        Raises
        ------
        RuntimeError
            There was no ``forward`` in training mode.
        TypeError, ValueError
            ``dout`` is no float array, or has another shape.
        """
        rows, W, shape = self._recall()
        dout = self._accepted(dout, (rows.shape[0], W.shape[1]))
        dout = dout.astype(W.dtype, copy=False)
        dW = _product(rows.T.astype(W.dtype, copy=False), dout)
        self.dW = dW.astype(self.W.dtype.newbyteorder("="), order="C", copy=False)
        if self.b is not None:
            self.db = dout.sum(axis=0).astype(self.b.dtype.newbyteorder("="), copy=False)
        return _product(dout, W.T).reshape(shape).astype(rows.dtype, copy=False)


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``a @ b``, as a convolution of kernel 1 over the rows of a.

    NumPy's BLAS has threads of its own, which wait for more work by spinning: the layers after it found half a core
    (a step of the book's DeepConvNet took 65 ms, 26 without them).
    """
    if not (a.size and b.size):
        return a @ b
    return conv(a.T[np.newaxis], np.ascontiguousarray(b.T)[..., np.newaxis])[0].T
