"""DownConv's boundary between PyTorch and konv: when its two convolutions go to the engine together, and how.

::

    DownConv --> down_conv --plain CPU tensors, nobody watches--> an autograd.Function --> konv.engine.downconv.down
                     '-- everything else: in_matrix_form, PyTorch's own operations

A compiler, a tracer, torch.func, forward-mode derivatives and modes see PyTorch's operations, and so does autocast; a derivative
of the gradients is made of them too. So no operator of its own is needed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from konv.down import down_shape
from konv.engine.downconv import down
from konv.engine.machine import machine
from konv.engine.threads import using
from konv.torch.ops import computes, leaves
from konv.torch.tensors import DTYPES, array_of, tensor_of, view_of

PAIRED_CHANNELS = 8


def down_conv(x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, padding: int) -> Tensor:
    """As :func:`konv.down.down_conv` on tensors that fit together; only y."""
    if not _takes(x, w1, b1, w2, b2):
        return in_matrix_form(x, w1, b1, w2, b2, padding)
    shape = down_shape(tuple(x.shape), tuple(w1.shape), tuple(w2.shape), padding, DTYPES[x.dtype])
    if down.declines(shape) is not None or _in_pairs(shape):
        return in_matrix_form(x, w1, b1, w2, b2, padding)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, w1, b1, w2, b2)):
        return _Function.apply(x, w1, b1, w2, b2, shape)
    return _forward(x, w1, b1, w2, b2, shape)[0]


def in_matrix_form(x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, padding: int) -> Tensor:
    """The same by PyTorch: windows that lie side by side make each convolution a matrix product on a reshaped view."""
    k1, k2 = w1.shape[2], w2.shape[2]
    windows = x.shape[1] // k1
    segments = (windows + 2 * padding - k2) // k2 + 1
    if x.shape[1] % k1:  # asked because even a slice of everything costs a copy in backward
        x = x[:, : windows * k1]
    h = F.relu(F.linear(x.unflatten(1, (windows, k1)).flatten(2), _as_matrix(w1), b1), inplace=True)
    # Padded to segments * k2 windows and no more: the second convolution would not read the last one either.
    h = F.pad(h, (0, 0, padding, segments * k2 - windows - padding))
    return F.linear(h.unflatten(1, (segments, k2)).flatten(2), _as_matrix(w2), b2)


def _as_matrix(weight: Tensor) -> Tensor:
    """(filters, channels, kernel) -> (filters, kernel * channels), the order of a window in a channels-last sequence."""
    return weight.transpose(1, 2).flatten(1)


def _in_pairs(shape: down.Shape) -> bool:
    """Whether PyTorch is faster: bfloat16, where the CPU multiplies pairs of it. With 10 channels konv took 1.4 times as long."""
    return shape.dtype == "bfloat16" and shape.channels >= PAIRED_CHANNELS and machine().dots


def _takes(x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None) -> bool:
    """Whether konv computes with such tensors, here and now."""
    if torch.compiler.is_compiling() or leaves() or torch.is_autocast_enabled("cpu") or _seen():
        return False
    return type(x) in (Tensor, torch.nn.Parameter) and computes(x, w1, b1) and computes(x, w2, b2)


def _seen() -> bool:
    """Whether a transform of torch.func or a mode is at work."""
    return bool(
        torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
    )


def _plain(dy: Tensor) -> bool:
    """Whether it is a tensor with memory of its own, not many at once (``is_grads_batched``)."""
    return type(dy) is Tensor and not torch._C._functorch.is_legacy_batchedtensor(dy)


def _forward(x: Tensor, w1: Tensor, b1: Any, w2: Tensor, b2: Any, shape: down.Shape) -> tuple[Tensor, np.ndarray]:
    """y and the hidden numbers."""
    y = torch.empty((shape.batch, shape.segments, shape.outputs), dtype=x.dtype)
    first, last = (None if b is None else array_of(b) for b in (b1, b2))
    with using(torch.get_num_threads()):
        return y, down.forward(array_of(x), array_of(w1), first, array_of(w2), last, shape, view_of(y))


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, shape: down.Shape
    ) -> Tensor:
        y, hidden = _forward(x, w1, b1, w2, b2, shape)
        ctx.save_for_backward(x, w1, b1, w2, b2, tensor_of(hidden, x.dtype))
        ctx.shape = shape
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        *inputs, hidden = ctx.saved_tensors
        needed, shape = ctx.needs_input_grad[:5], ctx.shape
        if torch.is_grad_enabled() or forward_ad._current_level >= 0 or _seen() or not _plain(dy):
            return *_gradients_of_pytorch(dy, inputs, shape.padding, needed), None
        x, w1, _, w2, _ = inputs
        cells = array_of(x)
        target = down.empty_gradient(cells) if needed[0] else None
        with using(torch.get_num_threads()):
            found = down.backward(
                array_of(dy), cells, array_of(hidden), array_of(w1), array_of(w2), shape, target,
                needed[1] or needed[2], needed[3] or needed[4],
            )  # fmt: skip
        dx = None if target is None else tensor_of(target, x.dtype)
        rest = (tensor_of(g, x.dtype) if g is not None and need else None for g, need in zip(found, needed[1:]))
        return dx, *rest, None


def _gradients_of_pytorch(dy: Tensor, inputs: Any, padding: int, needed: Any) -> Any:
    """The gradients as functions that have derivatives themselves."""
    differentiable = torch.is_grad_enabled()
    x, w1, b1, w2, b2 = inputs
    with torch.enable_grad():
        y = in_matrix_form(x, w1, b1, w2, b2, padding)
    wanted = [t for t, need in zip(inputs, needed) if need]
    found = iter(torch.autograd.grad(y, wanted, dy, create_graph=differentiable))
    return [next(found) if need else None for need in needed]
