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
    return gains(direction, known.geometry, known.dtype, known.where, known.options.transposed)


def gains(direction: str, g: Geometry, dtype: str, layout: str, transposed: bool) -> bool:
    """Whether konv is expected to be faster than PyTorch, forward or backward (all gradients together).

    Always in float16 and float64 (1.8 to 213 times), and where exact sums are asked for (:func:`konv.set_exact`), which
    PyTorch does not promise. Where it is not, of the rows of ``konv bench`` on the CPUs that we have (ratios of
    PyTorch's time to konv's, in its layout):

    =====================================================  ==============================================================
    forward, stride > 1, no better algorithm than direct    3x3 of 256 and 512 channels: 0.94-0.96, channels last 0.7
    channels last, forward: windows apart, more filters     64 to 256 filters 0.66, patches 0.74-0.90, 64 to 64 0.99
    than channels (of bfloat16 all)                         (fewer filters, or images of 49 pixels: 1.04-1.9)
    channels last, forward: direct, more than one channel   stems 0.72-0.94, the rest 0.8
    channels last, depthwise, fewer than 25 taps: forward   0.74-1.14, 1.6 once; with a stride backward 0.64-1.01
    =====================================================  ==============================================================
    """
    kind = "forward" if direction == "forward" and not transposed else "input_gradient"
    if dtype in ("float16", "float64") or exact():
        return True
    return _gains(algorithm_for(kind, g, dtype, layout).NAME, direction, g, layout, transposed)


@functools.lru_cache(maxsize=1024)
def _gains(name: str, direction: str, g: Geometry, layout: str, transposed: bool) -> bool:
    """By the name of the algorithm that konv would use; of a backward pass, for the gradient of x."""
    strided = max(g.stride) > 1
    depthwise = g.groups == g.channels > 1
    if direction == "backward":
        return not (layout == "last" and name == "grouped" and depthwise and strided)
    if name == "direct" and strided and g.channels > 4:
        return False
    if layout == "first":
        return True
    if name == "products_last":
        channels, filters = (g.filters, g.channels) if transposed else (g.channels, g.filters)
        return filters < channels or math.prod(g.output) <= 49
    if name == "grouped" and depthwise:
        return math.prod(g.kernel) >= 25
    return name not in ("pairs", "columns") and (name != "direct" or g.channels == 1)
