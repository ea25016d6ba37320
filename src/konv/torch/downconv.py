"""DownConv for PyTorch: a sequence of any width, cut into m segments by two strided convolutions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from konv.names import names_told
from konv.segments import Segments, check_input, down_conv_segments, segments
from konv.torch.down import down_conv
from konv.torch.functional import check_tensor
from konv.torch.modules import Conv1d


class DownConv(nn.Module):
    """Compress a sequence (B, seq_len, hidden_size) to (B, m_segments, hidden_size) by two strided convolutions.

    ::

        conv1a:  hidden_size -> hidden_size // channel_reduction channels, kernel k1, stride k1
        relu1a
        conv2a:  back to hidden_size channels, kernel k2, stride k2, padding

    with ``k2 = ceil(seq_len / k1 / m_segments)`` and ``padding = ceil((k2 * m_segments - seq_len / k1) / 2)``. The output
    serves as keys and values of an attention over m_segments places instead of seq_len.

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
    device, dtype : optional
        Of the parameters, as in :class:`torch.nn.Conv1d`.

    Attributes
    ----------
    conv1a, conv2a : torch.nn.Conv1d
    relu1a : torch.nn.ReLU
    seq_len, hidden_size, m, k1, channel_reduction : int
        The arguments; ``m`` is m_segments.
    k2, padding : int
        Kernel and padding of conv2a.

    Raises
    ------
    TypeError
        A size is not an integer (bool included), or ``dtype`` is not floating point.
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
    Recommendation" (SIGIR 2022). Arguments, ``state_dict`` keys, initial weights after the same ``torch.manual_seed``, and
    results (up to rounding) are those of the authors' class of this name.

    **Cost** for each sequence: ``2 * seq_len * hidden_size**2 / channel_reduction`` floating-point operations in conv1a and
    ``m_segments * k2 / seq_len`` of that, about ``1 / k1``, in conv2a: linear in the length.

    **How it is computed.** On the CPU both convolutions and the ReLU in one pass over x; backward reads x once more and writes
    its gradient once. What is kept for it beside x has ``1 / (k1 * channel_reduction)`` of its size. Elsewhere (another device,
    more than 64 channels, a first weight of more than 2 MiB, bfloat16 where the CPU multiplies its pairs, autocast,
    ``torch.compile``, ``torch.func``, a derivative of a derivative) each convolution is one
    matrix product of PyTorch's: windows whose stride is their kernel lie side by side, so x is seen without a copy as
    (B, windows, k1 * hidden_size). ``nn.Conv1d`` on a permuted tensor copies x there and dx back.

    **What may be changed.** Weights may be assigned, tied, frozen and parametrized (``torch.nn.utils.parametrizations``). Where
    a part has a hook, another forward, another kernel, or was replaced by another module, all three parts are called as
    modules on (B, channels, length) tensors, exactly as in the authors' class. What does not work: hooks registered for *all*
    modules (``torch.nn.modules.module.register_module_forward_hook``) see the DownConv but not its parts; and
    ``torch.jit.script`` cannot compile the choice (``torch.jit.trace`` and ``torch.compile`` can).

    Examples
    --------
    >>> import torch
    >>> down = DownConv(seq_len=200, hidden_size=64, m_segments=4, k1=10)
    >>> down(torch.zeros(8, 200, 64)).shape
    torch.Size([8, 4, 64])
    >>> sorted(down.state_dict())
    ['conv1a.bias', 'conv1a.weight', 'conv2a.bias', 'conv2a.weight']
    >>> down.geometry().real_windows
    (5, 5, 5, 5)
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
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise TypeError(f"dtype={dtype!r}: the parameters need a floating-point torch.dtype, such as torch.float32")
        cut = down_conv_segments(seq_len, hidden_size, m_segments, k1, channel_reduction)
        self.seq_len, self.m, self.k1, self.k2, self.padding = cut.seq_len, cut.m_segments, cut.k1, cut.k2, cut.padding
        self.hidden_size, self.channel_reduction = int(hidden_size), int(channel_reduction)
        channels = self.hidden_size // self.channel_reduction
        # Made in this order, so that one seed of the random generator gives the weights that the authors' class has.
        place = {"device": device, "dtype": dtype}
        self.conv1a = nn.Conv1d(self.hidden_size, channels, self.k1, stride=self.k1, **place)
        self.relu1a = nn.ReLU(inplace=True)
        self.conv2a = nn.Conv1d(channels, self.hidden_size, self.k2, stride=self.k2, padding=self.padding, **place)

    def forward(self, input_tensor: Tensor) -> Tensor:
        """(B, seq_len, hidden_size) -> (B, m_segments, hidden_size), in the parameters' dtype or autocast's.

        Any strides will do; a batch of 0 gives a batch of 0. The input is not written to.

        Raises
        ------
        TypeError
            ``input_tensor`` is no tensor, is integer or complex, or (outside autocast) has another dtype than the parameters.
        ValueError
            The shape is not the one that the module was built for.
        """
        check_tensor("input_tensor", input_tensor)
        if not isinstance(input_tensor, Tensor):
            raise TypeError(f"input_tensor must be a torch.Tensor, not {type(input_tensor).__name__}")
        if not input_tensor.is_floating_point():
            hint = "take its .real or .imag" if input_tensor.is_complex() else "convert it with .float()"
            raise TypeError(f"input_tensor is {input_tensor.dtype}, DownConv needs floating point: {hint}")
        if input_tensor.shape[1:] != (self.seq_len, self.hidden_size):
            check_input(input_tensor.shape, self.geometry(), self.hidden_size, "input_tensor")
        parts: Any = self._modules  # asked once: each self.conv1a is a search through three dictionaries
        first, last = parts["conv1a"], parts["conv2a"]
        if not self._parts_are_plain(first, parts["relu1a"], last):
            return self.conv2a(self.relu1a(self.conv1a(input_tensor.transpose(1, 2)))).transpose(1, 2)

        weight1, weight2 = first.weight, last.weight
        if input_tensor.dtype != weight1.dtype and not torch.is_autocast_enabled(input_tensor.device.type):
            raise TypeError(
                f"input_tensor is {input_tensor.dtype} but the parameters are {weight1.dtype}: convert one of them, with "
                f"input_tensor.to({weight1.dtype}) or module.to({input_tensor.dtype}), or use torch.autocast"
            )
        return down_conv(input_tensor, weight1, first.bias, weight2, last.bias, self.padding)

    def geometry(self) -> Segments:
        """Which inputs each segment reads, which are never read, which segments see padding alone. It prints itself."""
        return segments(self.seq_len, self.m, self.k1)

    def extra_repr(self) -> str:
        """What ``print`` shows of the module beside its parts."""
        return (
            f"seq_len={self.seq_len}, hidden_size={self.hidden_size}, m_segments={self.m}, k1={self.k1}, "
            f"channel_reduction={self.channel_reduction}, k2={self.k2}, padding={self.padding}"
        )

    def _parts_are_plain(self, first: Any, relu: Any, last: Any) -> bool:
        """Whether the parts do nothing but what their weights say, so that the matrix form equals calling them."""
        return (
            _is_plain(relu, nn.ReLU)
            and _is_plain(first, nn.Conv1d)
            and _is_plain(last, nn.Conv1d)
            and _arguments(first) == (self.k1, self.k1, 0, 1, 1, "zeros")
            and _arguments(last) == (self.k2, self.k2, self.padding, 1, 1, "zeros")
        )


def _is_plain(part: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling ``part`` runs ``kind.forward`` and nothing else. A parametrized part is plain: its weight tells all."""
    cls = type(part)
    if cls is not kind:
        known = [
            getattr(c, "_conv_forward", None) for c in (kind, Conv1d)
        ]  # :func:`konv.torch.convert` may have been here
        if cls.forward is not kind.forward or getattr(cls, "_conv_forward", None) not in known:
            return False
    hooked = part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks
    return not hooked and "forward" not in part.__dict__


def _arguments(conv: nn.Conv1d) -> tuple[Any, ...]:
    return (*conv.kernel_size, *conv.stride, *conv.padding, *conv.dilation, conv.groups, conv.padding_mode)
