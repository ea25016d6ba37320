"""The textbook's convolution layer, and its transpose."""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np

from konv import ops, rectified, textbook
from konv.arguments import IntOrAxes, Padding, checked_integer, padding_pairs, per_axis
from konv.arrays import check_upstream, checked_array, checked_floats
from konv.geometry import geometry
from konv.layers.base import Layer
from konv.names import names_told


class _Convolution(Layer):
    """What both directions share: checked parameters, and an input and weights kept for backward."""

    parameter_names = ("W", "b")

    def __init__(
        self,
        W: np.ndarray,
        b: np.ndarray | float | None,
        stride: IntOrAxes,
        pad: Padding,
        dilation: IntOrAxes,
        groups: int,
    ):
        checked_floats(W=W)
        if not 3 <= W.ndim <= 5 or 0 in W.shape:
            raise ValueError(
                f"W has shape {W.shape}: expected two axes of channels and 1, 2 or 3 of the kernel, none empty"
            )
        axes = W.ndim - 2
        strides, dilations = per_axis("stride", stride, axes), per_axis("dilation", dilation, axes)
        windows = tuple(d * (k - 1) + 1 for k, d in zip(W.shape[2:], dilations))
        padding_pairs(pad, windows, windows, strides, name="pad")
        groups = checked_integer("groups", groups, 1)
        if W.shape[0] % groups:
            raise ValueError(f"groups={groups} must divide the first axis of W (shape {W.shape})")
        self.W = W
        self.b = self._bias(b, W, groups)
        self.stride: Any = stride
        self.pad: Any = pad
        self.dilation: Any = dilation
        self.groups = groups
        self.dW: Any = None
        self.db: Any = None

    def _parameters(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """W and b in x's dtype; in training a copy of W, so that an update in place cannot change the gradient."""
        W = self.W.astype(x.dtype, copy=self.training)
        return W, None if self.b is None else self.b.astype(x.dtype, copy=False)

    def _bias(self, b: Any, W: np.ndarray, groups: int) -> np.ndarray | None:
        if b is None:
            return None
        filters, why = self._filters(W, groups)
        if isinstance(b, numbers.Real) and not isinstance(b, (bool, np.bool_)):
            try:
                return np.full(filters, b, W.dtype)  # the book's programs pass 0
            except OverflowError:
                raise ValueError(f"b={b}: expected a number that {W.dtype} can hold") from None
        checked_floats(b=checked_array("b", b))
        if b.shape != (filters,):
            raise ValueError(f"b has shape {b.shape}; expected (FN,) = ({filters},), {why}")
        return b

    def _filters(self, W: np.ndarray, groups: int) -> tuple[int, str]:
        """Channels of the output, the length of b, and why."""
        return W.shape[0], f"one for each filter of W (FN, C, *kernel) = {W.shape}"

    @property
    def x(self) -> np.ndarray | None:
        """The input of the last ``forward`` in training, else None. The array itself: do not change it before backward."""
        return None if self._saved is None else self._saved[0]

    def _upstream(self, dout: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        (dout,) = checked_floats(dout=dout)
        check_upstream(dout, shape, "dout")
        return dout.astype(self._saved[0].dtype, copy=False)

    def _keep_gradients(self, dW: np.ndarray, db: np.ndarray) -> None:
        self.dW = dW.astype(self.W.dtype, copy=False)
        self.db = None if self.b is None else db.astype(self.b.dtype, copy=False)


class Convolution(_Convolution):
    """The convolution layer of *Deep Learning from Scratch* (ch. 7), in 1, 2 or 3 dimensions by the axes of ``W``.

    ``out[n, f, o] = b[f] + sum over c, k of W[f, c, k] * x_padded[n, c, o * stride + k * dilation]``, along each axis
    ``out = 1 + (H + 2 * pad - FH) // stride``. As a matrix product: ``out = col @ col_W + b``.

    Parameters
    ----------
    W : (FN, C // groups, FH, FW), or one or three kernel axes
    b : (FN,), a number for all, or None
    stride, dilation : int or one per axis
    pad : int, one per axis, a (low, high) pair per axis, "valid", "same", "same_lower" or "causal"
    groups : int, divides C and FN
    padding_mode : "zeros", "reflect", "replicate" or "circular"

    Attributes
    ----------
    W, b : the arrays given; an optimizer may update them in place, at any time
    x : the input kept for backward (None before forward, and in inference)
    col : (N * out_h * out_w, C * FH * FW), the im2col matrix of x, computed when read; None where x is
    col_W : (C // groups * FH * FW, FN), the weights that ``forward`` used, as a matrix; None where x is
    dW, db : gradients, shape and dtype of W and b; None before backward
    training : see :class:`konv.layers.base.Layer`

    Raises
    ------
    TypeError, ValueError
        At construction for arguments that no input could fit; in ``forward`` as :func:`konv.conv`.

    Notes
    -----
    The layer computes in the dtype of ``x``; W and b are converted to it, their gradients back. Half types are summed in
    float32. For backward it keeps x itself (not a copy) and a copy of W, nothing else; in inference nothing.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> layer = Convolution(rng.standard_normal((8, 3, 3, 3)), np.zeros(8), stride=1, pad=1)
    >>> out = layer.forward(rng.standard_normal((2, 3, 28, 28)))
    >>> dx = layer.backward(np.ones_like(out))
    >>> out.shape, layer.col.shape, dx.shape, layer.dW.shape, layer.db.shape
    ((2, 8, 28, 28), (1568, 27), (2, 3, 28, 28), (8, 3, 3, 3), (8,))
    """

    @names_told
    def __init__(
        self,
        W: np.ndarray,
        b: np.ndarray | float | None,
        stride: IntOrAxes = 1,
        pad: Padding = 0,
        *,
        dilation: IntOrAxes = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
    ):
        super().__init__(W, b, stride, pad, dilation, groups)
        channels = W.shape[1] * groups
        # Any input at least as long as the window passes this: what fails now, fails for every input.
        large = tuple(2 * per * k for per, k in zip(per_axis("dilation", dilation, W.ndim - 2), W.shape[2:]))
        geometry((1, channels, *large), W.shape, groups=groups, dilation=dilation, padding_mode=padding_mode)
        self.padding_mode = padding_mode

    def forward(self, x: np.ndarray) -> np.ndarray:
        """Convolve.

        Parameters
        ----------
        x : (N, C, *spatial), floating point

        Returns
        -------
        out : (N, FN, *out), dtype of x; C-contiguous, or with channels last in memory where x has them so
        """
        return self._forward(x, ops.conv)

    def _forward_rectified(self, x: np.ndarray) -> np.ndarray:
        """``max(forward(x), 0)`` in one pass; :meth:`backward` stays forward's."""
        return self._forward(x, rectified.conv)

    def _forward(self, x: np.ndarray, convolve: Any) -> np.ndarray:
        (x,) = checked_floats(x=x)
        W, b = self._parameters(x)
        out = convolve(x, W, b, **self._options())
        self._remember((x, W, out.shape))
        return out

    def backward(self, dout: np.ndarray) -> np.ndarray:
        """Back-propagate the last ``forward``: sets ``dW`` and ``db``.

        Parameters
        ----------
        dout : (N, FN, *out), dL/dout

        Returns
        -------
        dx : dL/dx, shape and dtype of x

        Raises
        ------
        RuntimeError
            No forward in training mode came before, or several did and this is a second backward.
        """
        return self._backward(dout, ops.conv_backward)

    def _backward_rectified(self, dout: np.ndarray) -> np.ndarray:
        """:meth:`backward`, and through the ReLU that gave x: dx is 0 where x is."""
        return self._backward(dout, rectified.conv_backward)

    def _backward_of_weights(self, dout: np.ndarray) -> None:
        """:meth:`backward` without dx, which nobody asks for before the first layer."""
        self._backward(dout, ops.conv_backward, need=("w", "b"))

    def _backward(self, dout: np.ndarray, convolve: Any, **need: Any) -> np.ndarray:
        x, W, shape = self._recall()
        dout = self._upstream(dout, shape)
        self._answered()
        dx, dW, db = convolve(dout, x, W, **self._options(), **need)
        self._keep_gradients(dW, db)
        return dx

    @property
    def col(self) -> np.ndarray | None:
        """The im2col matrix of x, computed when read: (N * prod(out), C * prod(kernel)); None where x is."""
        if self._saved is None:
            return None
        g = geometry(self._saved[0].shape, self.W.shape, **self._options())
        return textbook.columns(self._saved[0], g)

    @property
    def col_W(self) -> np.ndarray | None:
        """The weights of the last ``forward`` as a matrix, (C // groups * prod(kernel), FN); None where x is."""
        return None if self._saved is None else self._saved[1].reshape(len(self._saved[1]), -1).T

    def _options(self) -> dict:
        return {
            "stride": self.stride,
            "padding": self.pad,
            "dilation": self.dilation,
            "groups": self.groups,
            "padding_mode": self.padding_mode,
        }


class ConvolutionTranspose(_Convolution):
    """Transposed convolution ("deconvolution"): enlarges, as the input gradient of a :class:`Convolution` does.

    ``y_padded[n, f, i * stride + k * dilation] += x[n, c, i] * W[c, f, k]``; ``pad`` cells are cut off each end, so along
    an axis ``out = (L - 1) * stride - 2 * pad + dilation * (kernel - 1) + 1 + output_padding``. The layer of Zeiler et
    al., *Deconvolutional Networks* (CVPR 2010); arithmetic: Dumoulin & Visin, arXiv:1603.07285, ch. 4.

    Parameters
    ----------
    W : (C, FN // groups, *kernel), 1 to 3 kernel axes
    b : (FN,), a number for all, or None
    stride, dilation : int or one per axis
    pad : int, one per axis, or a (low, high) pair per axis
    output_padding : int or one per axis, less than ``max(stride, dilation)``
    groups : int, divides C and FN

    Attributes
    ----------
    W, b, x, dW, db, training : as those of :class:`Convolution`

    Raises
    ------
    TypeError, ValueError
        At construction for arguments that no input could fit; in ``forward`` as :func:`konv.conv_transpose`.

    Examples
    --------
    >>> layer = ConvolutionTranspose(np.ones((3, 2, 2, 2), np.float32), None, stride=2)
    >>> out = layer.forward(np.ones((1, 3, 4, 4), np.float32))
    >>> out.shape, layer.backward(out).shape
    ((1, 2, 8, 8), (1, 3, 4, 4))
    """

    @names_told
    def __init__(
        self,
        W: np.ndarray,
        b: np.ndarray | float | None,
        stride: IntOrAxes = 1,
        pad: Padding = 0,
        *,
        output_padding: IntOrAxes = 0,
        dilation: IntOrAxes = 1,
        groups: int = 1,
    ):
        super().__init__(W, b, stride, pad, dilation, groups)
        if isinstance(pad, str) and pad != "valid":
            raise ValueError(f"pad={pad!r}: a transposed convolution takes numbers, (low, high) pairs, or 'valid'")
        axes = W.ndim - 2
        extra = per_axis("output_padding", output_padding, axes, minimum=0)
        for e, s, d in zip(extra, per_axis("stride", stride, axes), per_axis("dilation", dilation, axes)):
            if e >= max(s, d):
                raise ValueError(
                    f"output_padding={output_padding} must be less than max(stride, dilation) = {max(s, d)}"
                )
        self.output_padding = output_padding

    def _filters(self, W: np.ndarray, groups: int) -> tuple[int, str]:
        return W.shape[1] * groups, f"W.shape[1] * groups = {W.shape[1]} * {groups} for W {W.shape}"

    def forward(self, x: np.ndarray) -> np.ndarray:
        """Enlarge x (N, C, *spatial) to (N, FN, *out), dtype of x."""
        (x,) = checked_floats(x=x)
        W, b = self._parameters(x)
        out = ops.conv_transpose(x, W, b, **self._options())
        self._remember((x, W, out.shape))
        return out

    def backward(self, dout: np.ndarray) -> np.ndarray:
        """Back-propagate the last ``forward``: sets ``dW`` and ``db``, returns dx like x. Raises as :class:`Convolution`."""
        x, W, shape = self._recall()
        dout = self._upstream(dout, shape)
        self._answered()
        dx, dW, db = ops.conv_transpose_backward(dout, x, W, **self._options())
        self._keep_gradients(dW, db)
        return dx

    def _options(self) -> dict:
        return {
            "stride": self.stride,
            "padding": self.pad,
            "output_padding": self.output_padding,
            "dilation": self.dilation,
            "groups": self.groups,
        }
