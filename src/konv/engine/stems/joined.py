"""Input gradients of few channels (stems: 3, audio: 1): neighbouring cells joined to fill the lanes.

Where the channels of x would leave lanes empty, a lane is a (channel, row, column) of a small rectangle of cells. All
rectangles are then one plain correlation of dy, whose stride is what a rectangle takes of dy: ``dx[c, m * P + j] = sum over
f, r of dy[f, m * P / stride + r] * w[f, c, t]`` for the t that meets cell j there, and weight zero where there is none. For 251
taps of one channel 94 % of the products count, for a 7 x 7 stem with stride 2 57 %; one channel in 16 lanes would use 6 %.

Those zeros would turn an infinity in dy to NaN beside it: where dy or w is not finite, another algorithm computes.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import TYPE_CHECKING

import numpy as np

from konv.engine import columns, roofline
from konv.engine.direct import direct
from konv.engine.direct.direct import Join, forward, weight_gradient  # the functions are never asked for: it declines
from konv.engine.simd import ITEMSIZE
from konv.engine.threads import get_threads
from konv.geometry import Geometry

if TYPE_CHECKING:
    from konv.engine.plan import Problem

NAME = "joined"
MOST_CHANNELS = 4
LANES = 16  # to fill, on any machine: sums are cut into the same blocks everywhere
LEAST_SHARE = 0.2  # of the products that must count
# Up to these the kernel of grouped.py is 1.25-6 times as fast; for 11 x 11, or stride 4 and 20 taps of 1-D, 0.7-0.8 times.
PLANES_STRIDE, PLANES_KERNEL = 2, 10

__all__ = ["NAME", "blocking", "declines", "forward", "input_gradient", "share", "weight_gradient", "workspace"]


def declines(problem: Problem) -> str | None:
    """Few channels, no groups, and a kernel that is large beside the rectangle; channels first, also by itself."""
    g = problem.geometry
    if problem.kind != "input_gradient":
        return "it computes input gradients"
    if g.groups > 1 or g.channels > MOST_CHANNELS:
        return f"{g.channels} channels in {g.groups} groups; it computes at most {MOST_CHANNELS}, in one"
    if max(g.dilation) > 1 or (g.axes == 3 and g.stride[0] > 1):
        return "the kernel is dilated, or strided in depth"
    if problem.layout == "first" and max(g.stride) <= PLANES_STRIDE and g.kernel[-1] <= PLANES_KERNEL:
        return f"kernels to {PLANES_KERNEL} with stride {PLANES_STRIDE}, channels first: pixels in lanes are faster"
    if _rectangle(g) is None:
        return f"less than {LEAST_SHARE:.0%} of the products of joined cells would count"
    return None


def workspace(problem: Problem) -> int:
    """The direct algorithm's, and the spread weights."""
    inner, join = _joined(problem.geometry)
    plans = direct.correlations(
        inner, False, problem.dtype, problem.dtype, *[problem.layout] * 2, get_threads(), True, join
    )
    return plans[0].size + math.prod(inner.w_shape) * ITEMSIZE[problem.dtype]


def input_gradient(dy: np.ndarray, w: np.ndarray, g: Geometry, out: np.ndarray) -> None:
    """Write dL/dx (N, C, *spatial) into ``out``."""
    inner, join = _joined(g)
    if not direct.run(inner, False, dy, _spread(w, g), None, out, join=join):
        columns.input_gradient(dy, w, g, out)


def _spread(w: np.ndarray, g: Geometry) -> np.ndarray:
    """w (F, C, *kernel) as the filters of the joined correlation, (C * rows * columns, F, *kernel), zeros where nothing meets."""
    inner, join = _joined(g)
    spread = np.zeros((g.channels, join.rows, join.columns, *inner.w_shape[1:]), w.dtype)
    weights, spatial = w.swapaxes(0, 1), tuple(range(2, 2 + g.axes))
    for row, column in itertools.product(range(join.rows), range(join.columns)):
        met = [_met(g, axis, j) for axis, j in enumerate((0, row, column)[3 - g.axes :])]
        taps = tuple(slice(tap, None, stride) for (tap, _, _), stride in zip(met, g.stride))
        cells = tuple(slice(last - count + pad[0], last + pad[0]) for (_, last, count), pad in zip(met, inner.padding))
        here = spread[:, row, column]
        here[(slice(None), slice(None), *cells)] = np.flip(weights[(slice(None), slice(None), *taps)], spatial)
    return spread.reshape(inner.w_shape)


def _met(g: Geometry, axis: int, j: int) -> tuple[int, int, int]:
    """Cell j meets tap ``t, t + stride, ...`` in the outputs before ``end``, backwards: (t, end, how many)."""
    cell, stride = j + g.padding[axis][0], g.stride[axis]
    tap = cell % stride
    return tap, (cell - tap) // stride + 1, len(range(tap, g.kernel[axis], stride))


def _reach(g: Geometry, axis: int, size: int) -> tuple[int, int]:
    """The outputs that so many neighbouring cells meet: first, and end."""
    met = [_met(g, axis, j) for j in range(size)]
    return min(end - count for _, end, count in met), max(end for _, end, _ in met)


@functools.lru_cache(maxsize=256)
def _rectangle(g: Geometry) -> tuple[int, int] | None:
    """Rows and columns to join, whole strides, so that the most products count; None where too few do."""
    strides = (1, 1, *g.stride)[-2:]
    best, chosen = LEAST_SHARE, None
    for rows in range(strides[0], LANES + 1, strides[0]) if g.axes > 1 else (1,):
        for width in range(strides[1], LANES // g.channels // rows + 1, strides[1]):
            share = g.channels * rows * width / LANES
            for axis, size in enumerate(([1] * g.axes + [rows, width])[-g.axes :]):
                first, end = _reach(g, axis, size)
                share *= g.kernel[axis] / g.stride[axis] / (end - first)
            if share > best:
                best, chosen = share, (rows, width)
    return chosen


@functools.lru_cache(maxsize=256)
def _joined(g: Geometry) -> tuple[Geometry, Join]:
    """The correlation of dy that computes all rectangles, and how its outputs lie in dx."""
    rows, width = _rectangle(g) or (1, 1, *g.stride)[-2:]
    sizes = ([1] * g.axes + [rows, width])[-g.axes :]
    reach = [_reach(g, axis, size) for axis, size in enumerate(sizes)]
    inner = Geometry(
        batch=g.batch, channels=g.filters, filters=g.channels * rows * width, groups=1, spatial=g.output,
        kernel=tuple(end - first for first, end in reach), stride=tuple(n // s for n, s in zip(sizes, g.stride)),
        padding=tuple((-first, 0) for first, _ in reach), dilation=(1,) * g.axes,
        output=tuple(-(-length // n) for length, n in zip(g.spatial, sizes)), itemsize=g.itemsize,
    )  # fmt: skip
    return inner, Join(g.channels, rows, width, g.spatial, math.prod(-(-k // s) for k, s in zip(g.kernel, g.stride)))


def blocking(problem: Problem) -> str:
    """What is joined, and how that is cut, in words."""
    inner, join = _joined(problem.geometry)
    plan, *_ = direct.correlations(
        inner, False, problem.dtype, problem.dtype, *[problem.layout] * 2, get_threads(), True, join
    )
    n = plan.job.numbers
    return (
        f"{join.channels} channels of {join.rows} x {join.columns} cells joined as filters; blocks of {n['block_images']} x "
        f"{n['block_rows']} x {n['block_columns']} rectangles, summed over {n['slice_channels']} filters at a time; "
        f"{plan.job.cut(plan.threads)}"
    )


def share(problem: Problem) -> float:
    """Of the limit; see :mod:`konv.engine.roofline`."""
    inner, _ = _joined(problem.geometry)
    done = inner.flops / max(1, problem.geometry.flops) * roofline.padding(inner.filters, LANES)
    return roofline.share(problem, done, speed=0.65, moving=1, storing=6)
