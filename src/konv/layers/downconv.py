"""DownConv for NumPy: a sequence of any width, cut into m segments by two strided convolutions."""

from __future__ import annotations

import math
from typing import Any, Self

import numpy as np

from konv.arrays import FLOAT_TYPES, checked_floats
from konv.down import down_conv, down_conv_backward
from konv.layers.activations import ReLU
from konv.layers.base import Layer
from konv.layers.convolution import Convolution
from konv.names import names_told
from konv.segments import Segments, check_input, down_conv_segments, segments

PARAMETERS = {
    "conv1a.weight": ("conv1a", "W"),
    "conv1a.bias": ("conv1a", "b"),
    "conv2a.weight": ("conv2a", "W"),
    "conv2a.bias": ("conv2a", "b"),
}
"""PyTorch's name of each parameter, and where it stands here."""


class DownConv(Layer):
    """Compress a sequence (B, seq_len, hidden_size) to (B, m_segments, hidden_size) by two strided convolutions.

    ::

        conv1a:  hidden_size -> hidden_size // channel_reduction channels, kernel k1, stride k1
        relu1a
        conv2a:  back to hidden_size channels, kernel k2, stride k2, padding

    with ``k2 = ceil(seq_len / k1 / m_segments)`` and ``padding = ceil((k2 * m_segments - seq_len / k1) / 2)``. The output
    serves as keys and values of an attention over m_segments places instead of seq_len. :class:`konv.torch.DownConv` is the
    same layer for PyTorch; each loads the other's ``state_dict()``.

    Parameters
    ----------
    seq_len : int
        Length of every sequence, at least k1.
    hidden_size : int
        Features of each place, at least channel_reduction.
    m_segments : int
        Length of the output.
    k1 : int
        Places in a window of the first convolution.
    channel_reduction : int
        How many times fewer channels there are between the convolutions (rounded down).
    dtype : floating-point dtype
        Of the parameters: float16, bfloat16, float32 or float64.
    rng : None, int, or numpy.random.Generator
        Where the initial parameters come from, as :func:`numpy.random.default_rng` takes it. They are uniform between
        ``-1 / sqrt(fan_in)`` and ``1 / sqrt(fan_in)``, ``fan_in = channels * kernel``, as PyTorch's are.

    Attributes
    ----------
    conv1a, conv2a : Convolution
        With weights ``W`` of shape (filters, channels, kernel), ``b`` of shape (filters,) and gradients ``dW``, ``db``.
    relu1a : ReLU
    seq_len, hidden_size, m, k1, channel_reduction : int
        The arguments; ``m`` is m_segments.
    k2, padding : int
        Kernel and padding of conv2a.

    Raises
    ------
    TypeError
        A size is not an integer (bool included), or ``dtype`` is none of the four.
    ValueError
        A size is less than 1 or too large, seq_len < k1, hidden_size < channel_reduction, or these sizes would give another
        number of segments than m_segments. The message names the nearest sizes that work.

    Warns
    -----
    konv.segments.SegmentWarning
        The last ``seq_len % k1`` places are never read, or a segment sees padding alone. :meth:`geometry` tells which.

    Notes
    -----
    Eq. 2 of Zhu et al., "Progressive Self-Attention Network with Unsymmetrical Positional Encoding for Sequential
    Recommendation" (SIGIR 2022); names and results are those of the authors' PyTorch class.

    **Cost** for each sequence: ``2 * seq_len * hidden_size**2 / channel_reduction`` floating-point operations in conv1a and
    ``m_segments * k2 / seq_len`` of that, about ``1 / k1``, in conv2a: linear in the length. ``backward`` costs twice as
    much. Kept in training, besides x itself: copies of the weights, and the ReLU's output and mask, together about
    ``1 / (k1 * channel_reduction)`` of x's size. The three parts are computed together: x is read once forward; backward reads
    it once more and writes its gradient once (:mod:`konv.down`). Parts that were replaced are called one after the other.

    Examples
    --------
    >>> import numpy as np
    >>> layer = DownConv(seq_len=200, hidden_size=64, m_segments=4, k1=10, rng=0)
    >>> x = np.ones((8, 200, 64), np.float32)
    >>> layer.forward(x).shape
    (8, 4, 64)
    >>> layer.backward(np.ones((8, 4, 64), np.float32)).shape
    (8, 200, 64)
    >>> {name: array.shape for name, array in layer.grads().items()}
    {'conv1a.weight': (4, 64, 10), 'conv1a.bias': (4,), 'conv2a.weight': (64, 4, 5), 'conv2a.bias': (64,)}
    """

    @names_told
    def __init__(
        self,
        seq_len: int = 200,
        hidden_size: int = 64,
        m_segments: int = 4,
        k1: int = 10,
        channel_reduction: int = 16,
        *,
        dtype: Any = np.float32,
        rng: int | np.random.Generator | None = None,
    ) -> None:
        dtype = np.dtype(dtype).newbyteorder("=")
        if dtype.name not in FLOAT_TYPES:
            raise TypeError(f"dtype={dtype.name}: the parameters need one of {', '.join(FLOAT_TYPES)}")
        cut = down_conv_segments(seq_len, hidden_size, m_segments, k1, channel_reduction)
        self.seq_len, self.m, self.k1, self.k2, self.padding = cut.seq_len, cut.m_segments, cut.k1, cut.k2, cut.padding
        self.hidden_size, self.channel_reduction = int(hidden_size), int(channel_reduction)
        channels = self.hidden_size // self.channel_reduction
        rng = np.random.default_rng(rng)
        self.conv1a = Convolution(*_uniform(rng, channels, self.hidden_size, self.k1, dtype), stride=self.k1)
        self.relu1a = ReLU()
        self.conv2a = Convolution(
            *_uniform(rng, self.hidden_size, channels, self.k2, dtype), stride=self.k2, pad=self.padding
        )

    def __repr__(self) -> str:
        return (
            f"DownConv(seq_len={self.seq_len}, hidden_size={self.hidden_size}, m_segments={self.m}, k1={self.k1}, "
            f"channel_reduction={self.channel_reduction})"
        )

    def forward(self, x: np.ndarray) -> np.ndarray:
        """(B, seq_len, hidden_size) -> (B, m_segments, hidden_size), in x's dtype.

        In training x is kept for :meth:`backward`, not copied.

        Raises
        ------
        TypeError
            ``x`` is no floating-point array.
        ValueError
            The shape is not the one that the layer was built for.
        """
        (x,) = checked_floats(x=x)
        if x.shape[1:] != (self.seq_len, self.hidden_size):
            check_input(x.shape, self.geometry(), self.hidden_size)
        if not self._parts_are_plain():
            y = self.conv2a.forward(self.relu1a.forward(self.conv1a.forward(x.transpose(0, 2, 1)))).transpose(0, 2, 1)
            self._remember((y.shape, None))
            return y
        (W1, b1), (W2, b2) = (part._parameters(x) for part in (self.conv1a, self.conv2a))
        y, hidden = down_conv(x, W1, b1, W2, b2, padding=self.padding)
        self._remember((y.shape, (x, hidden, W1, W2)))
        # The parts show what they would have kept, had they computed it.
        h = hidden[:, self.padding : self.padding + self.seq_len // self.k1].transpose(0, 2, 1)
        self.conv1a._remember((x.transpose(0, 2, 1), W1, h.shape))
        self.relu1a._remember((h <= 0, x.dtype, None) if self.training else None)
        self.conv2a._remember((h, W2, (y.shape[0], y.shape[2], y.shape[1])))
        return y

    def backward(self, dout: np.ndarray) -> np.ndarray:
        """The gradient of x, (B, seq_len, hidden_size), from that of the output, (B, m_segments, hidden_size).

        Sets ``dW`` and ``db`` of conv1a and conv2a, which :meth:`grads` returns. Inputs that are never read get 0.

        Raises
        ------
        RuntimeError
            There was no ``forward`` in training mode.
        TypeError, ValueError
            ``dout`` is no floating-point array, or has another shape than the output.
        """
        shape, kept = self._recall()
        (dout,) = checked_floats(dout=dout)
        if dout.shape != shape:
            raise ValueError(f"dout has shape {dout.shape}, but forward returned shape {shape}")
        self._answered()
        if kept is None:
            dwindows = self.relu1a.backward(self.conv2a.backward(dout.transpose(0, 2, 1)))
            return self.conv1a.backward(dwindows).transpose(0, 2, 1)
        x, hidden, W1, W2 = kept
        dout = dout.astype(x.dtype, copy=False)
        dx, dW1, db1, dW2, db2 = down_conv_backward(dout, x, hidden, W1, W2, padding=self.padding)
        self.conv1a._keep_gradients(dW1, db1)
        self.conv2a._keep_gradients(dW2, db2)
        return dx

    def _parts_are_plain(self) -> bool:
        """Whether the parts are those of the constructor, in the layer's mode: then they are computed together."""
        kinds = type(self.conv1a), type(self.relu1a), type(self.conv2a)
        convolutions = ((self.conv1a, self.k1, 0), (self.conv2a, self.k2, self.padding))
        modes = {part.training for part in (self, self.conv1a, self.relu1a, self.conv2a)}
        return (
            kinds == (Convolution, ReLU, Convolution)
            and len(modes) == 1
            and not any({"forward", "backward"} & vars(part).keys() for part in (self.conv1a, self.relu1a, self.conv2a))
            and all(
                (part.W.shape[2:], part.stride, part.pad, part.dilation, part.groups, part.padding_mode)
                == ((kernel,), kernel, padding, 1, 1, "zeros")
                for part, kernel, padding in convolutions
            )
        )

    def geometry(self) -> Segments:
        """Which inputs each segment reads, which are never read, which segments see padding alone. It prints itself."""
        return segments(self.seq_len, self.m, self.k1)

    def params(self) -> dict[str, np.ndarray]:
        """The four parameters under PyTorch's names: the arrays themselves."""
        return {name: getattr(getattr(self, part), letter) for name, (part, letter) in PARAMETERS.items()}

    def grads(self) -> dict[str, np.ndarray]:
        """The gradients that the last ``backward`` left, under the names of :meth:`params` (None before it)."""
        return {name: getattr(getattr(self, part), "d" + letter) for name, (part, letter) in PARAMETERS.items()}

    def train(self, mode: bool = True) -> Self:
        """Switch the layer and its parts to training (or, with ``mode=False``, to inference) and return the layer."""
        for part in (self.conv1a, self.relu1a, self.conv2a):
            part.train(mode)
        return super().train(mode)


def _uniform(
    rng: np.random.Generator, filters: int, channels: int, kernel: int, dtype: np.dtype
) -> tuple[np.ndarray, np.ndarray]:
    """Weight (filters, channels, kernel) and bias (filters,), uniform within 1 / sqrt(fan_in) of 0."""
    bound = 1 / math.sqrt(channels * kernel)
    weight = rng.uniform(-bound, bound, (filters, channels, kernel)).astype(dtype)
    return weight, rng.uniform(-bound, bound, filters).astype(dtype)
