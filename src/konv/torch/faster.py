"""Who computes a layer that :func:`konv.torch.convert` made: konv where its plan expects a gain, else PyTorch.

The decision depends on shapes, dtype and layout alone: nothing is timed when a model runs.
"""

from __future__ import annotations

import functools
import math

from torch import Tensor

from konv.engine.plan import algorithm_for, asked, exact
from konv.geometry import Geometry
from konv.torch import aten, tensors
from konv.torch.tensors import Call


def forward(x: Tensor, w: Tensor, b: Tensor | None, known: Call) -> Tensor:
    """The convolution; see :func:`konv.torch.tensors.forward`."""
    if known.options.where_faster and not expected("forward", known):
        # Laid out as konv's: a compiler was told so (PyTorch forgets channels_last_3d, and crops views of other strides).
        return aten.forward(x, w, b, known.options).contiguous(memory_format=known.layout)
    return tensors.forward(x, w, b, sums(known))


def sums(known: Call) -> Call:
    """The call, or the same of exact sums: those of a converted layer where they are faster than its plan."""
    return _sums(known, asked()) if known.options.where_faster else known


@functools.lru_cache(maxsize=1024)
def _sums(known: Call, asked: object) -> Call:
    direct = sums_directly(known.geometry, known.dtype, known.where, known.options.transposed)
    return known.exactly if direct else known


def gradients(dy: Tensor, x: Tensor, w: Tensor, known: Call, mask: list[bool]) -> list[Tensor | None]:
    """Its gradients; see :func:`konv.torch.tensors.gradients`."""
    if known.options.where_faster and not expected("backward", known):
        dx, dw, db = aten.gradients(dy, x, w, known.options, mask)
        laid = ((dx, known.layout), (dw, known.weights))
        return [*(t if t is None else t.contiguous(memory_format=layout) for t, layout in laid), db]
    return tensors.gradients(dy, x, w, known, mask)


def expected(direction: str, known: Call) -> bool:
    """:func:`gains` of a call."""
    return _expected(direction, known, asked())


@functools.lru_cache(maxsize=4096)
def _expected(direction: str, known: Call, asked: object) -> bool:
    return gains(direction, known.geometry, known.dtype, known.where, known.options.transposed)


def gains(direction: str, g: Geometry, dtype: str, layout: str, transposed: bool) -> bool:
    """Whether konv is expected to be faster than PyTorch, forward, backward (all gradients together), or in inference.

    Inference is a forward pass that no backward pass follows.

    Always in float16 and float64 (1.8 to 213 times), and where exact sums are asked for (:func:`konv.set_exact`), which
    PyTorch does not promise. Where it is not: ratios of PyTorch's time to konv's, float32, 2 threads, inside ResNet-50,
    ConvNeXt-tiny and MobileNetV2 of batch 1 and 8, where other operations wrote the input and emptied the caches. There a call of
    konv's cost 30 to 80 us of Python more than PyTorch's, twice as much as alone; so small layers gain less than in
    ``konv bench``. A layer that keeps what it has met now takes 29 us beside the kernel in MobileNetV2's inference of one image
    (with a graph 75, and 95 backward). In brackets what remains konv's. "Rarely used" are
    2^18 weights or more, no fewer than the cells squared.

    =====================================================  ==============================================================
    stride > 1, direct, more than 4 channels: forward,      0.82-0.95, once 1.24 (0.97-1.33)
    unless as direct sums, see `sums_directly`
    stride > 1, 2-D, Winograd, fewer than 4096 outputs:     0.79-0.93 (0.98, 1.30; backward 1.0-1.4)
    forward, with the same exception
    1 x 1, at most 256 outputs, more filters than           0.82-0.94, last to 1.19; backward 0.55-0.83, three times 1.0-1.4
    channels, which are fewer than 512; but not forward     (1.03-1.16; 0.95-0.98)
    of 2^18 weights, nor channels first without a graph
    channels last, 2-D depthwise of fewer than 2^20         0.61-1.0, once 1.05; backward 0.57-1.04, once 1.2 (forward
    outputs; backward if of fewer than 25 taps              1.0-1.53, backward 1.07-1.74, 7 x 7 2.4-7.2)
    channels last, first layers of fewer than 16 taps or    0.71-1.07; backward 0.72-1.06 (1.05-1.09; 1.14-1.23)
    2^14 cells
    channels last, 1 x 1, unless rarely used or of 2^14     0.71-1.08, twice 1.15, 1.26; backward 0.70-1.07, of fewer
    cells; backward of 2^14 weights, too                    filters than channels to 1.35 (0.97-2.95; 1.0-2.3)
    channels last, patches, of fewer than 2^14 cells,       0.71-0.93 (1.05-1.6; backward 1.07-1.52)
    unless rarely used: forward
    channels last: pairs and columns forward                of bfloat16, not measured inside a model: patches 0.74-0.90
    =====================================================  ==============================================================

    What is left to PyTorch among konv's layers takes longer than in a model of PyTorch's alone, by 20 to 60 us in small layers
    and up to 0.2 ms in those of 3 x 3 with stride 2: its own copies are found in no cache. So a ratio of 0.95 to 1 is konv's.

    Losing: PyTorch's forward pass and konv's backward, or the other way, where the gain is small: a graph of both costs 60 to
    90 us more than PyTorch's own. So layers of 192 to 32 channels at 28 pixels, whose backward pass alone is konv's in 1.2,
    made a MobileNetV2 step of batch 1 take 1.18 times as long. Weights kept as a layer packed them, for the next call
    without a graph: a parameter changed through ``.data`` or a NumPy view does not tell, so old weights might compute.
    """
    kind = "input_gradient" if transposed or direction == "backward" else "forward"
    if dtype in ("float16", "float64") or exact():
        return True
    if direction != "backward" and sums_directly(g, dtype, layout, transposed):
        return True
    return _gains(algorithm_for(kind, g, dtype, layout).NAME, direction, g, layout, transposed)


PATCH_TAPS, MANY_TAPS = 16, 25
FEW_CELLS, FEW_STRIDED, MANY_CELLS = 256, 4096, 1 << 14  # outputs of all channels count as one
FEW_CHANNELS, MANY_WEIGHTS, MANY_PRODUCTS = 512, 1 << 18, 1 << 26
DEPTHWISE = 1 << 20  # outputs


def sums_directly(g: Geometry, dtype: str, layout: str, transposed: bool) -> bool:
    """Whether few outputs of a strided 3 x 3 layer are computed without Winograd's algorithm.

    That of one image turns as many weights as that of eight. The plan must not ask for the batch, so that a sample's bits do
    not depend on it; who computes a converted layer does. 128@56 in ResNet-50, batch 1: 1.31 ms; by the plan 1.80, by PyTorch
    1.46 among konv's layers, 1.30 in a model of PyTorch's alone. (Deeper ones are ``winograd_strided``'s, always konv's.)
    """
    if max(g.stride) == 1 or g.kernel != (3, 3) or dtype != "float32" or layout == "last" or transposed:
        return False
    cells = g.batch * math.prod(g.output)
    if cells >= FEW_STRIDED or cells * math.prod(g.w_shape) < MANY_PRODUCTS:
        return False
    return algorithm_for("forward", g, dtype, layout).NAME in ("winograd", "direct")


@functools.lru_cache(maxsize=1024)
def _gains(name: str, direction: str, g: Geometry, layout: str, transposed: bool) -> bool:
    """By the name of the algorithm that konv would use; of a backward pass, for the gradient of x."""
    forward, last, strided = direction != "backward", layout == "last", max(g.stride) > 1
    taps, cells, weights = math.prod(g.kernel), g.batch * math.prod(g.output), math.prod(g.w_shape)
    channels, filters = (g.filters, g.channels) if transposed else (g.channels, g.filters)
    first_layer, rarely_used = g.groups == 1 and channels <= 4, weights >= max(cells**2, MANY_WEIGHTS)
    if name == "direct" and strided and channels > 4:
        return not forward
    if name == "winograd" and g.axes > 1:
        return not (forward and strided) or cells >= FEW_STRIDED
    if taps == 1 and g.groups == 1 and cells <= FEW_CELLS and channels < min(filters, FEW_CHANNELS):
        return forward and (weights >= MANY_WEIGHTS or (direction == "inference" and not last))
    if not last:
        return True
    if g.groups == channels > 1:  # depthwise
        return cells * filters >= DEPTHWISE or (not forward and taps >= MANY_TAPS)
    if first_layer and channels > 1:
        return cells >= MANY_CELLS and taps >= PATCH_TAPS
    if name == "products_last" and transposed:  # 64 to 256 channels and back: 0.7, 1.3
        return not forward or filters < channels
    if name == "products_last" and forward:
        return cells >= MANY_CELLS or rarely_used
    if name == "products_last":
        return taps > 1 or rarely_used or min(weights, cells) >= MANY_CELLS
    return not forward or (name not in ("pairs", "columns") and (name != "direct" or channels == 1))
