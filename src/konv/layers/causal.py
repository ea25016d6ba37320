"""Causal convolution over time, whole or in chunks."""

from __future__ import annotations

import numpy as np

from konv import ops
from konv.arguments import IntOrAxes, per_axis
from konv.arrays import check_upstream, checked_floats
from konv.engine.plan import exactly
from konv.layers.convolution import _Convolution
from konv.names import names_told


class CausalConv1d(_Convolution):
    """Convolution over time that sees the present and the past only, and can be fed chunk by chunk.

    ``y[n, f, o] = b[f] + sum over c, k of W[f, c, k] * x[n, c, o * stride - (K - 1 - k) * dilation]``; x is zero before
    time 0. What a later chunk needs of the earlier ones is its *state*: names and meaning of ``past_state`` and
    ``present_state`` are those of ONNX's ``CausalConvWithState`` (opset 27), here for dense and grouped weights too, any
    dilation and any stride.

    Parameters
    ----------
    W : (FN, C // groups, K); depthwise, as in ONNX, is (C, 1, K) with ``groups=C``
    b : (FN,), a number for all, or None
    stride, dilation, groups : int

    Attributes
    ----------
    W, b, dW, db, training : as those of :class:`konv.Convolution`
    history : int, ``dilation * (K - 1)``, the past inputs that an output sees

    Raises
    ------
    TypeError, ValueError
        At construction for arguments that no input could fit; in ``forward`` as :func:`konv.conv`, and for a state that
        does not fit x.

    Notes
    -----
    The state holds the last ``history + phase`` inputs, (N, C, history + phase), ``phase = inputs so far % stride``; with
    stride 1 and dilation 1 it is ONNX's (N, C, K - 1). (A time that is a multiple of the stride starts an output.) Outputs
    are summed in one fixed order, so that chunks of any lengths give the very bits that the whole gives.

    Examples
    --------
    >>> layer = CausalConv1d(np.array([[[1.0, 10.0]]]), None)
    >>> x = np.array([[[1.0, 2.0, 3.0, 4.0]]])
    >>> layer.forward(x)[0]
    array([[[10., 21., 32., 43.]]])
    >>> first, state = layer.forward(x[:, :, :3])
    >>> second, state = layer.forward(x[:, :, 3:], state)
    >>> first, second
    (array([[[10., 21., 32.]]]), array([[[43.]]]))
    """

    @names_told
    def __init__(
        self,
        W: np.ndarray,
        b: np.ndarray | float | None = None,
        *,
        stride: IntOrAxes = 1,
        dilation: IntOrAxes = 1,
        groups: int = 1,
    ):
        super().__init__(W, b, stride, 0, dilation, groups)
        if W.ndim != 3:
            raise ValueError(f"W has shape {W.shape}: expected (FN, C // groups, K)")
        self.stride, self.dilation = per_axis("stride", stride, 1)[0], per_axis("dilation", dilation, 1)[0]

    @property
    def history(self) -> int:
        """Past inputs that an output sees: ``dilation * (K - 1)``."""
        return self.dilation * (self.W.shape[2] - 1)

    def forward(self, x: np.ndarray, past_state: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Convolve a whole sequence, or the next chunk of one.

        Parameters
        ----------
        x : (N, C, L), L may be 0
        past_state : the ``present_state`` of the chunk before, dtype of x; None at the start (zeros)

        Returns
        -------
        y : (N, FN, outputs), those at the times 0, stride, 2 * stride, ... of the whole that fall into this chunk
        present_state : (N, C, history + phase), a new array
        """
        (x,) = checked_floats(x=x)
        stride, channels = self.stride, self.W.shape[1] * self.groups
        if x.ndim != 3 or x.shape[1] != channels:
            raise ValueError(f"x has shape {x.shape}: expected (N, C, L) with C = W.shape[1] * groups = {channels}")
        if past_state is None:
            past_state = np.zeros((len(x), channels, self.history), x.dtype)
        x, past_state = checked_floats(x=x, past_state=past_state)
        phase = past_state.shape[-1] - self.history
        if past_state.shape[:-1] != x.shape[:-1] or not 0 <= phase < stride:
            lengths = f"{self.history}" + (f" to {self.history + stride - 1}" if stride > 1 else "")
            raise ValueError(
                f"past_state has shape {past_state.shape}: expected ({x.shape[0]}, {channels}, {lengths}), "
                "dilation * (K - 1) inputs, and the inputs since the last multiple of the stride"
            )
        # It starts at a multiple of stride, less history. Always in one layout: the other may round otherwise, and a chunk
        # of one item has both.
        seen = np.ascontiguousarray(np.concatenate([past_state, x], axis=2))
        elapsed = seen.shape[2] - self.history
        first = min(stride, elapsed) if phase else 0  # the output at 0 was given with an earlier chunk
        W, b = self._parameters(x)
        if elapsed - first > 0:
            with exactly():  # an output must not depend on where a chunk ends
                y = ops.conv(seen[:, :, first:], W, b, **self._options())
        else:
            y = np.empty((len(x), len(W), 0), x.dtype)
        kept = self.history + elapsed % stride
        self._remember((seen, W, y.shape, first, past_state.shape[2], kept))
        return y, seen[:, :, seen.shape[2] - kept :].copy()

    def backward(self, dout: np.ndarray, dpresent_state: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Back-propagate the last ``forward``: sets ``dW`` and ``db``.

        Parameters
        ----------
        dout : (N, FN, outputs), dL/dy
        dpresent_state : dL/dpresent_state, its shape; None if nothing depends on the state

        Returns
        -------
        dx : (N, C, L)
        dpast_state : the shape of ``past_state``; the ``dpresent_state`` of the chunk before
        """
        seen, W, shape, first, past, kept = self._recall()
        dout = self._upstream(dout, shape)
        if dpresent_state is None:
            dpresent_state = np.zeros((*seen.shape[:2], kept), seen.dtype)
        (dpresent_state,) = checked_floats(dpresent_state=dpresent_state)
        check_upstream(dpresent_state, (*seen.shape[:2], kept), "dpresent_state")
        self._answered()
        dseen = np.zeros_like(seen)
        if shape[2]:
            with exactly():
                dseen[:, :, first:], dW, db = ops.conv_backward(dout, seen[:, :, first:], W, **self._options())
        else:
            dW, db = np.zeros_like(W), np.zeros(len(W), W.dtype)
        dseen[:, :, seen.shape[2] - kept :] += dpresent_state.astype(seen.dtype, copy=False)
        self._keep_gradients(dW, db)
        return dseen[:, :, past:].copy(), dseen[:, :, :past].copy()

    @property
    def x(self) -> np.ndarray | None:
        """The input of the last ``forward`` in training, else None."""
        return None if self._saved is None else self._saved[0][:, :, self._saved[4] :]

    def _options(self) -> dict:
        return {"stride": self.stride, "dilation": self.dilation, "groups": self.groups}
