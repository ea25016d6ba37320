"""The textbook's pooling layer, and its average form."""

from __future__ import annotations

import numpy as np

from konv import pooling
from konv.arguments import IntOrAxes, Padding, padding_pairs, per_axis
from konv.arrays import check_flag, checked_floats
from konv.layers.base import Layer
from konv.names import names_told


class _Pooling(Layer):
    """Windows over images, checked; x kept for backward."""

    repr_always = ("stride",)  # its default is not the 1 that a reader would take it for

    def __init__(self, pool_h: int, pool_w: int, stride: IntOrAxes = 2, pad: Padding = 0):
        self.pool_h, self.pool_w = per_axis("pool_h", pool_h, 1)[0], per_axis("pool_w", pool_w, 1)[0]
        window = (self.pool_h, self.pool_w)
        padding_pairs(pad, window, window, per_axis("stride", stride, 2), name="pad")
        self.stride = stride
        self.pad = pad

    @property
    def x(self) -> np.ndarray | None:
        """The input of the last ``forward`` in training, else None."""
        return None if self._saved is None else self._saved[0]

    def _input(self, x: np.ndarray) -> np.ndarray:
        (x,) = checked_floats(x=x)
        if x.ndim != 4:
            hint = (
                "; for one image pass x[None], for images without an axis of channels x[:, None]" if x.ndim == 3 else ""
            )
            raise ValueError(f"x has shape {x.shape}: expected images (N, C, H, W){hint}")
        return x

    def _upstream(self, dout: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x, shape = self._recall()[:2]
        dout = self._accepted(dout, shape)
        return dout.astype(x.dtype, copy=False), x

    def _window(self) -> dict:
        return {"kernel_size": (self.pool_h, self.pool_w), "stride": self.stride, "padding": self.pad}


class Pooling(_Pooling):
    """Max pooling of images, the layer of *Deep Learning from Scratch* (ch. 7.4.4).

    ``out[n, c, i, j] = max over u, v of x[n, c, i * stride + u - pad, j * stride + v - pad]``,
    ``out_h = 1 + (H + 2 * pad - pool_h) // stride``. Padding never wins (the book's own layer cannot pad).

    Parameters
    ----------
    pool_h, pool_w : int
    stride : int or (vertical, horizontal), 2 by default as in the book
    pad : as for :class:`konv.Convolution`; each window must hold a cell of x

    Attributes
    ----------
    x : the input kept for backward (None before forward, and in inference)
    arg_max : (N * out_h * out_w * C,), the first largest cell of each window as ``u * pool_w + v``, computed when read

    Raises
    ------
    TypeError, ValueError
        As :func:`konv.max_pool`.

    Examples
    --------
    >>> layer = Pooling(2, 2)
    >>> layer.forward(np.array([[[[1.0, 2.0], [4.0, 3.0]]]]))
    array([[[[4.]]]])
    >>> layer.backward(np.array([[[[10.0]]]]))
    array([[[[ 0.,  0.],
             [10.,  0.]]]])
    """

    @names_told
    def __init__(self, pool_h: int, pool_w: int, stride: IntOrAxes = 2, pad: Padding = 0):  # errors name Pooling
        super().__init__(pool_h, pool_w, stride, pad)

    def forward(self, x: np.ndarray) -> np.ndarray:
        """Pool x (N, C, H, W) to (N, C, out_h, out_w), dtype of x."""
        return self._forward(x, keeps=False)

    def _forward_keeping(self, x: np.ndarray) -> np.ndarray:
        """:meth:`forward`, whose output stays as it is until :meth:`_backward_rectified`."""
        return self._forward(x, keeps=True)

    def _forward(self, x: np.ndarray, keeps: bool) -> np.ndarray:
        x = self._input(x)
        out, winners = pooling.max_pool_winners(x, **self._window())
        self._remember((x, out.shape, winners, out if keeps else None))
        return out

    def backward(self, dout: np.ndarray) -> np.ndarray:
        """dx like x: each ``dout`` (N, C, out_h, out_w) goes to the first largest cell of its window."""
        dout, x = self._upstream(dout)
        return pooling.max_pool_from_winners(dout, x, self._saved[2], **self._window())

    @property
    def _output(self) -> np.ndarray | None:
        """The last output where :meth:`_forward_keeping` gave it, else None."""
        return None if self._saved is None else self._saved[3]

    def _backward_rectified(self, dout: np.ndarray) -> np.ndarray:
        """:meth:`backward`, and through the ReLU that gave x: a winner that is 0 passes nothing on."""
        dout, x = self._upstream(dout)
        return pooling.max_pool_from_winners(dout, x, self._saved[2], **self._window(), rectified=self._output)

    @property
    def arg_max(self) -> np.ndarray | None:
        """Index of each window's first largest cell, in the book's order (n, i, j, c); None where x is."""
        if self._saved is None:
            return None
        return np.moveaxis(self._saved[2], 1, -1).ravel().astype(np.intp)


class AveragePooling(_Pooling):
    """Average pooling of images: the mean of each window.

    Parameters
    ----------
    pool_h, pool_w, stride, pad : as for :class:`Pooling`
    count_include_pad : divide by ``pool_h * pool_w`` (True) or by the real cells of the window (False)

    Attributes
    ----------
    x : the input kept for backward, of which shape and dtype are used (None before forward, and in inference)

    Raises
    ------
    TypeError, ValueError
        As :func:`konv.avg_pool`.

    Examples
    --------
    >>> AveragePooling(2, 2).forward(np.array([[[[1.0, 2.0], [4.0, 3.0]]]]))
    array([[[[2.5]]]])
    """

    @names_told
    def __init__(
        self, pool_h: int, pool_w: int, stride: IntOrAxes = 2, pad: Padding = 0, *, count_include_pad: bool = True
    ):
        super().__init__(pool_h, pool_w, stride, pad)
        check_flag("count_include_pad", count_include_pad)
        self.count_include_pad = bool(count_include_pad)

    def forward(self, x: np.ndarray) -> np.ndarray:
        """Pool x (N, C, H, W) to (N, C, out_h, out_w), dtype of x."""
        x = self._input(x)
        out = pooling.avg_pool(x, **self._window(), count_include_pad=self.count_include_pad)
        self._remember((np.broadcast_to(x.dtype.type(0), x.shape), out.shape))  # shape and dtype, no data
        return out

    def backward(self, dout: np.ndarray) -> np.ndarray:
        """dx like x: each cell of a window gets an equal share of its ``dout`` (N, C, out_h, out_w)."""
        dout, x = self._upstream(dout)
        return pooling.avg_pool_backward(dout, x, **self._window(), count_include_pad=self.count_include_pad)
