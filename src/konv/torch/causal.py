"""Causal convolution over time on tensors, whole or in chunks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from konv.names import names_told
from konv.torch.functional import autocast, check_tensor, exact_conv1d


class CausalConv1d(nn.Conv1d):
    """Convolution over time that sees the present and the past only, and can be fed chunk by chunk.

    ``y[n, f, o] = b[f] + sum over c, k of weight[f, c, k] * x[n, c, o * stride - (K - 1 - k) * dilation]``; x is zero before
    time 0. What a later chunk needs of the earlier ones is its *state*: ``past_state`` and ``present_state`` mean what they
    mean in ONNX's ``CausalConvWithState`` (opset 27), as in :class:`konv.CausalConv1d`.

    Parameters
    ----------
    in_channels, out_channels, kernel_size : int
    stride, dilation, groups : int
    bias : bool
    device, dtype : optional, of the parameters

    Attributes
    ----------
    weight : (out_channels, in_channels // groups, K)
    bias : (out_channels,) or None
    history : int, ``dilation * (K - 1)``, the past inputs that an output sees

    Raises
    ------
    TypeError, ValueError
        At construction as :class:`torch.nn.Conv1d`, in ``forward`` for a state that does not fit x.

    Notes
    -----
    Parameters, ``state_dict`` and initial weights are those of :class:`torch.nn.Conv1d`. The state holds the last
    ``history + phase`` inputs, ``phase = inputs so far % stride``. Where konv computes, chunks of any lengths give the very bits
    that the whole gives. Gradients go from chunk to chunk through the state; ``state.detach()`` cuts them off.

    Examples
    --------
    >>> import torch
    >>> layer = CausalConv1d(1, 1, 2, bias=False)
    >>> _ = torch.nn.init.ones_(layer.weight)
    >>> x = torch.arange(4.0).reshape(1, 1, 4)
    >>> with torch.no_grad():
    ...     first, state = layer(x[:, :, :3])
    ...     second, state = layer(x[:, :, 3:], state)
    >>> first, second, state
    (tensor([[[0., 1., 3.]]]), tensor([[[5.]]]), tensor([[[3.]]]))
    """

    @names_told
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, 0, dilation, groups, bias, device=device, dtype=dtype
        )

    @property
    def history(self) -> int:
        """Past inputs that an output sees: ``dilation * (K - 1)``."""
        return self.dilation[0] * (self.kernel_size[0] - 1)

    def forward(self, x: Tensor, past_state: Tensor | None = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Convolve a whole sequence, or the next chunk of one.

        Parameters
        ----------
        x : (N, in_channels, L), L may be 0
        past_state : the ``present_state`` of the chunk before, dtype of x; None at the start (zeros)

        Returns
        -------
        y : (N, out_channels, outputs), those at the times 0, stride, 2 * stride, ... of the whole that fall into this chunk
        present_state : (N, in_channels, history + phase), a new tensor
        """
        check_tensor("x", x)
        (stride,), history = self.stride, self.history
        if x.dim() != 3 or x.shape[1] != self.in_channels:
            raise ValueError(
                f"x has shape {tuple(x.shape)}: expected (N, C, L) with C = in_channels = {self.in_channels}"
            )
        if past_state is None:
            past_state = x.new_zeros(x.shape[0], x.shape[1], history)
        if past_state.dtype != x.dtype:
            raise TypeError(f"past_state is {past_state.dtype} and x is {x.dtype}; convert one")
        phase = past_state.shape[-1] - history
        if past_state.shape[:-1] != x.shape[:-1] or not 0 <= phase < stride:
            lengths = f"{history}" + (f" to {history + stride - 1}" if stride > 1 else "")
            raise ValueError(
                f"past_state has shape {tuple(past_state.shape)}: expected ({x.shape[0]}, {self.in_channels}, {lengths}), "
                "dilation * (K - 1) inputs, and the inputs since the last multiple of the stride"
            )
        seen = torch.cat([past_state, x], dim=2)  # starts at a multiple of stride, less history
        elapsed = seen.shape[2] - history
        first = min(stride, elapsed) if phase else 0  # the output at 0 was given with an earlier chunk
        if elapsed - first > 0:
            y = exact_conv1d(seen[:, :, first:], self.weight, self.bias, self.stride, self.dilation, self.groups)
        else:
            y = autocast(x.new_empty(x.shape[0], self.out_channels, 0))
        kept = history + elapsed % stride
        return y, seen[:, :, seen.shape[2] - kept :].clone()
