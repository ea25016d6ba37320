"""PyTorch's answers and numerical gradients: oracles that share no code with konv. All compute in float64.

PyTorch pads asymmetrically through ``torch.nn.functional.pad`` only; transposed convolutions are computed whole and cut.
"""

import numpy as np
import torch
import torch.nn.functional as F

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
TORCH_MODES = {"zeros": "constant"}


def torch_conv(x, w, b, *, stride, pairs, dilation, groups, padding_mode="zeros"):
    """``pairs``: (low, high) for each axis."""
    axes = x.ndim - 2
    padded = F.pad(x, _torch_pads(pairs), mode=TORCH_MODES.get(padding_mode, padding_mode))
    return CONV[axes](padded, w, b, stride=stride, dilation=dilation, groups=groups)


def torch_conv_transpose(x, w, b, *, stride, pairs, output_padding, dilation, groups):
    axes = x.ndim - 2
    whole = CONV_TRANSPOSE[axes](x, w, stride=stride, dilation=dilation, groups=groups)
    whole = F.pad(whole, _torch_pads([(0, extra) for extra in output_padding]))
    cut = whole[(..., *(slice(low, n - high) for n, (low, high) in zip(whole.shape[2:], pairs)))]
    return cut if b is None else cut + b.reshape(-1, *[1] * axes)


def torch_max_pool(x, kernel, *, stride, pairs, dilation):
    padded = F.pad(x, _torch_pads(pairs), value=-float("inf"))
    return MAX_POOL[x.ndim - 2](padded, kernel, stride=stride, dilation=dilation)


def with_gradients(function, dy, *arrays):
    """(y, gradient for each array, or None where the array is None): ``function`` of tensors, back-propagated from dy."""
    tensors = [None if a is None else torch.tensor(np.ascontiguousarray(a), requires_grad=True) for a in arrays]
    y = function(*tensors)
    y.backward(torch.tensor(np.ascontiguousarray(dy)))
    return y.detach().numpy(), [None if t is None else t.grad.numpy() for t in tensors]


def numerical_gradient(function, array, dy, step=1.0):
    """Central differences of ``sum(function(array) * dy)``. Exact on integers, with step 1, where ``function`` is linear."""
    gradient = np.zeros_like(array)
    for index in np.ndindex(array.shape):
        ends = []
        for sign in (1, -1):
            moved = array.copy()
            moved[index] += sign * step
            ends.append(float((function(moved) * dy).sum()))
        gradient[index] = (ends[0] - ends[1]) / (2 * step)
    return gradient


def _torch_pads(pairs):
    """PyTorch lists the last axis first."""
    return [int(amount) for pair in reversed(list(pairs)) for amount in pair]
