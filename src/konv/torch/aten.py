"""The same operations as PyTorch computes them, for options that have a low and a high padding."""

from __future__ import annotations

import torch
from torch import Tensor

from konv.torch.tensors import Options


def forward(x: Tensor, w: Tensor, b: Tensor | None, options: Options) -> Tensor:
    """As :func:`konv.torch.tensors.forward`."""
    o = options
    x = _padded(x, o)
    return torch.convolution(x, w, b, o.stride, o.padding[::2], o.dilation, o.transposed, o.output_padding, o.groups)


def gradients(dy: Tensor, x: Tensor, w: Tensor, options: Options, mask: list[bool]) -> list[Tensor | None]:
    """As :func:`konv.torch.tensors.gradients`."""
    o, filters = options, w.shape[1] * options.groups if options.transposed else w.shape[0]
    dx, dw, db = torch.ops.aten.convolution_backward(
        dy,
        _padded(x, o),
        w,
        [filters],
        o.stride,
        o.padding[::2],
        o.dilation,
        o.transposed,
        o.output_padding,
        o.groups,
        mask,
    )
    if mask[0]:
        for axis, extra in enumerate(_more(o)):
            dx = dx.narrow(2 + axis, 0, dx.shape[2 + axis] - extra)
    return [gradient if wanted else None for gradient, wanted in zip((dx, dw, db), mask)]


def _padded(x: Tensor, o: Options) -> Tensor:
    """x with the cells that its high padding has more than its low one; x itself where there are none."""
    more = _more(o)
    return torch.nn.functional.pad(x, [n for extra in reversed(more) for n in (0, extra)]) if any(more) else x


def _more(o: Options) -> list[int]:
    """ "same" pads at most one cell more at the end of an axis."""
    return [high - low for low, high in zip(o.padding[::2], o.padding[1::2])]
