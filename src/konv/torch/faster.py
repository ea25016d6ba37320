"""Who computes a layer that :func:`konv.torch.convert` made: konv where its plan expects a gain, else PyTorch.

The decision depends on shapes, dtype and layout alone: nothing is timed when a model runs.
"""

from __future__ import annotations

import functools
import math

from torch import Tensor

from konv.engine.plan import algorithm_for, exact
from konv.geometry import Geometry
from konv.torch import aten, tensors
from konv.torch.tensors import Call


def forward(x: Tensor, w: Tensor, b: Tensor | None, known: Call) -> Tensor:
    """The convolution; see :func:`konv.torch.tensors.forward`."""
    if known.options.where_faster and not expected("forward", known):
        # Laid out as konv's: a compiler was told so (PyTorch forgets channels_last_3d, and crops views of other strides).
        return aten.forward(x, w, b, known.options).contiguous(memory_format=known.layout)
    return tensors.forward(x, w, b, known)


def gradients(dy: Tensor, x: Tensor, w: Tensor, known: Call, mask: list[bool]) -> list[Tensor | None]:
    """Its gradients; see :func:`konv.torch.tensors.gradients`."""
    if known.options.where_faster and not expected("backward", known):
        dx, dw, db = aten.gradients(dy, x, w, known.options, mask)
        laid = ((dx, known.layout), (dw, known.weights))
        return [*(t if t is None else t.contiguous(memory_format=layout) for t, layout in laid), db]
    return tensors.gradients(dy, x, w, known, mask)


def expected(direction: str, known: Call) -> bool:
    """:func:`gains` of a call."""
    return exact() or _expected(direction, known)


@functools.lru_cache(maxsize=2048)
def _expected(direction: str, known: Call) -> bool:
    return gains(direction, known.geometry, known.dtype, known.where, known.options.transposed)


def gains(direction: str, g: Geometry, dtype: str, layout: str, transposed: bool) -> bool:
    """Whether konv is expected to be faster than PyTorch, forward or backward (all gradients together).

    Always in float16 and float64 (1.8 to 213 times), and where exact sums are asked for (:func:`konv.set_exact`), which
    PyTorch does not promise. Where it is not: ratios of PyTorch's time to konv's, float32, 2 threads, inside ResNet-50,
    ConvNeXt-tiny and MobileNetV2 of batch 1 and 8, where other operations wrote the input and emptied the caches. There a call of
    konv's costs 50 to 100 us of Python more, a tenth of it alone; so small layers gain less than in ``konv bench``.

    =====================================================  ==============================================================
    stride > 1, 2-D, kernels of fewer than 25 taps: first   3 to 32 channels 0.66-0.80 forward
    layers
    stride > 1, direct, more than 4 channels: forward       0.85, once 1.1; channels last 0.86-0.89
    stride > 1, 2-D, Winograd, fewer than 1024 outputs      0.77-0.84, backward 0.95-0.98
    1 x 1, at most 256 outputs, more filters than           0.79-1.08, backward 0.55-0.97 (of 512 channels 1.05-2.7)
    channels, which are fewer than 512
    channels last: depthwise and first layers, forward;     0.52-1.0; 0.42-0.98, once 1.14 (7 x 7 backward 1.7-6)
    backward too of fewer than 25 taps
    channels last: windows apart, unless 2^18 weights are   0.8-1.05, backward 0.63-1.0 (1.02-2.8); not so backward: patches,
    used for at most 512 outputs                            and 2^14 weights for as many outputs (1.04-1.2)
    channels last: pairs and columns forward                of bfloat16, not measured inside a model: patches 0.74-0.90
    =====================================================  ==============================================================

    Losing: PyTorch's forward pass and konv's backward where the gain is small: a graph of both costs 60 to 90 us more than
    PyTorch's own.
    """
    kind = "forward" if direction == "forward" and not transposed else "input_gradient"
    if dtype in ("float16", "float64") or exact():
        return True
    return _gains(algorithm_for(kind, g, dtype, layout).NAME, direction, g, layout, transposed)


FEW_TAPS = 25
FEW_OUTPUTS, FEW_STRIDED = 256, 1024  # outputs of a batch: of 1 x 1 layers, of Winograd with a stride
FEW_CHANNELS = 512
MANY_WEIGHTS, THEIR_OUTPUTS, LARGE = 1 << 18, 512, 1 << 14


@functools.lru_cache(maxsize=1024)
def _gains(name: str, direction: str, g: Geometry, layout: str, transposed: bool) -> bool:
    """By the name of the algorithm that konv would use; of a backward pass, for the gradient of x."""
    forward, last, strided = direction == "forward", layout == "last", max(g.stride) > 1
    taps, outputs, weights = math.prod(g.kernel), g.batch * math.prod(g.output), math.prod(g.w_shape)
    channels, filters = (g.filters, g.channels) if transposed else (g.channels, g.filters)
    first_layer, depthwise = g.groups == 1 and channels <= 4, g.groups == g.channels > 1
    if name == "direct" and strided and channels > 4:
        return not forward
    if name == "winograd" and g.axes > 1:
        return not strided or outputs >= FEW_STRIDED
    if taps == 1 and g.groups == 1 and outputs <= FEW_OUTPUTS and channels < min(filters, FEW_CHANNELS):
        return False
    if not last:
        return not (forward and first_layer and strided and g.axes > 1 and taps < FEW_TAPS)
    if depthwise or (first_layer and channels > 1):
        return not forward and taps >= FEW_TAPS
    if name == "products_last" and transposed:  # 64 to 256 channels and back: 0.7, 1.3
        return not forward or filters < channels
    if name == "products_last":
        if weights >= MANY_WEIGHTS and outputs <= THEIR_OUTPUTS:
            return True
        return not forward and (taps > 1 or min(weights, outputs) >= LARGE)
    return not forward or (name not in ("pairs", "columns") and (name != "direct" or channels == 1))
