"""First layers, and 1-D layers of few products: pixels in lanes, rows copied with their padding and taken apart by the stride.

With 27 products in an output the direct tile spends as long in packing weights and transposing results. Here a vector is a
run of outputs of one row, which read neighbours in the copied row; a tile is some filters, whose weights are read where they
lie, times some vectors, and is stored to y as it is. Against the algorithms that took these layers before: 3 channels, 32 or
64 filters, 3 x 3 stride 2 1.15-1.7 times as fast, 7 x 7 stride 2 1.0-1.2, stride 1 1.0-1.25; 1 channel 1.0-2.5; 1-D of 4 to 25
channels 1.2-1.8. 2-D of 8 to 22 channels: 0.9-1.1, left to them.

The input gradient with stride 1 is the same on dy, with w flipped, filters and channels exchanged. The weight gradient, whose
rows must be longer, is in :mod:`konv.engine.stems.strips_weights`.

A sum runs over the taps in one order, in one accumulator: its bits depend on nothing else.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import TYPE_CHECKING

import numpy as np

from konv.arrays import all_finite
from konv.engine import roofline
from konv.engine.direct import direct
from konv.engine.launch import Job
from konv.engine.machine import dtype_name, machine
from konv.engine.prepared import Prepared, prepared
from konv.engine.stems import strips_weights
from konv.engine.stems.strips_cut import cut_rows, whole
from konv.engine.stems.strips_kernels import correlate_strips
from konv.engine.stems.strips_weights import weight_and_bias_gradient, weight_gradient
from konv.engine.threads import get_threads
from konv.engine.winograd import winograd
from konv.geometry import Geometry

if TYPE_CHECKING:
    from konv.engine.plan import Problem

NAME = "strips"
MOST_CHANNELS, MOST_TAPS, MOST_STRIDE = 4, 200, 8  # channels of images; any of 1-D layers
LEAST_FILTERS, LEAST_COLUMNS = 16, 16
BLOCK_BYTES = 64 << 10  # of copied rows
WINOGRAD_CHANNELS = range(16, 33)  # of 1-D layers: 25, with 7 taps, take it 0.84 of the time, 16 0.75, but 40 1.05
LOAD = 0.5  # of a multiply-add
# (filters, vectors), by registers: sums, the filters' weights and a vector of pixels fit.
TILES = {32: ((3, 7), (4, 6), (5, 5), (6, 4), (7, 3), (8, 2), (10, 2)), 16: ((2, 4), (2, 5), (3, 3), (4, 2))}
# Where the machine computes vectors in halves, rows that leave many lanes empty are computed in vectors of half the length:
# 30 filters of 5 x 5 at 28 pixels, rows of 24, take 0.88 of the time. In both halves filters' numbers are read twice as often.
HALVES, HALVED = ((6, 3), (7, 3), (5, 3)), 1.2

__all__ = [
    "NAME", "blocking", "declines", "forward", "forward_rectified", "input_gradient", "share", "weight_and_bias_gradient",
    "weight_gradient", "workspace",
]  # fmt: skip


def declines(problem: Problem) -> str | None:
    """Forward, and stride 1 of the input gradient; few channels in one group, channels first."""
    g, gradient = problem.geometry, problem.kind == "input_gradient"
    if problem.layout != "first" or (gradient and max(g.stride) > 1):
        return "it computes with channels first, input gradients of stride 1"
    if g.axes > 2 or g.groups > 1:
        return "it computes layers of one or two axes, in one group"
    g = _flipped(g) if gradient else g
    taps = g.channels * math.prod(g.kernel)
    if g.axes == 2 and g.channels > MOST_CHANNELS:
        return f"{g.channels} channels to sum, more than {MOST_CHANNELS}"
    if taps > MOST_TAPS or g.stride[-1] > MOST_STRIDE:
        return f"{taps} products, stride {g.stride[-1]}; it computes at most {MOST_TAPS}, stride {MOST_STRIDE}"
    short = g.axes == 2 and g.output[-1] < LEAST_COLUMNS  # the bits of 1-D layers do not depend on their length
    if g.filters < LEAST_FILTERS or short:
        return f"{g.filters} filters, rows of {g.output[-1]}; it computes at least {LEAST_FILTERS}, {LEAST_COLUMNS}"
    if problem.kind == "weight_gradient":
        return strips_weights.declines(g, problem.dtype)
    if g.channels in WINOGRAD_CHANNELS and winograd.declines(problem) is None:
        return f"{g.channels} channels to sum: Winograd's algorithm saves more than its transforms cost"
    return None


def workspace(problem: Problem) -> int:
    """Bytes borrowed while it runs."""
    g, dtype = problem.geometry, problem.dtype
    if problem.kind == "weight_gradient":
        return strips_weights.workspace(g, dtype)
    if problem.kind == "forward":
        return _prepare(g, dtype, dtype, get_threads()).size
    return _prepare(_flipped(g), dtype, dtype, get_threads()).size + math.prod(g.w_shape) * g.itemsize


def forward(x: np.ndarray, w: np.ndarray, b: np.ndarray | None, g: Geometry, out: np.ndarray) -> None:
    """Write conv(x, w) + b into ``out`` (N, F, *output)."""
    _run(x, w, b, g, out)


def forward_rectified(x: np.ndarray, w: np.ndarray, b: np.ndarray | None, g: Geometry, out: np.ndarray) -> None:
    """Write max(conv(x, w) + b, 0) into ``out`` (N, F, *output)."""
    _run(x, w, b, g, out, True)


def _run(
    x: np.ndarray, w: np.ndarray, b: np.ndarray | None, g: Geometry, out: np.ndarray, rectified: bool = False
) -> None:
    plan = _prepare(g, dtype_name(x.dtype), dtype_name(out.dtype), get_threads(), rectified)
    plan.run(x=x, w=w, bias=plan.bias(b), y=out)


def input_gradient(dy: np.ndarray, w: np.ndarray, g: Geometry, out: np.ndarray) -> None:
    """Write dL/dx (N, C, *spatial) into ``out``."""
    if not all_finite(w):  # a zero of dy's padding times infinity is NaN, in cells that the textbook does not reach
        direct.input_gradient(dy, w, g, out)
        return
    flipped = np.ascontiguousarray(np.flip(w.swapaxes(0, 1), tuple(range(2, w.ndim))))
    forward(dy, flipped, None, _flipped(g), out)


@functools.lru_cache(maxsize=256)
def _flipped(g: Geometry) -> Geometry:
    """The convolution of dy that is the input gradient."""
    spans = [d * (k - 1) for k, d in zip(g.kernel, g.dilation)]
    padding = tuple((span - low, 0) for span, (low, _) in zip(spans, g.padding))
    return dataclasses.replace(
        g, channels=g.filters, filters=g.channels, spatial=g.output, output=g.spatial, padding=padding
    )


@functools.lru_cache(maxsize=256)
def _prepare(g: Geometry, dtype: str, out: str, threads: int, rectified: bool = False) -> Prepared:
    lanes, filters, vectors = _tile(g, dtype)
    cut, tile = cut_rows(g, dtype, lanes * vectors, BLOCK_BYTES), lanes * vectors
    last = g.output[-1] - (cut.numbers["column_blocks"] - 1) * cut.numbers["block_columns"]
    narrow = "masked" if last < lanes else last < tile
    job = Job(
        correlate_strips(dtype, out, lanes, filters, vectors, g.stride[-1], narrow, rectified), cut.units,
        all_filters=g.filters, filter_blocks=-(-g.filters // filters), taps=len(cut.offsets), offsets=cut.offsets,
        **cut.numbers,
    )  # fmt: skip
    return prepared(job, g.flops // 2, cut.numbers["slot_size"], dtype, g.filters, slots="space")


def _tile(g: Geometry, dtype: str) -> tuple[int, int, int]:
    """Lanes, filters and vectors of pixels: the least of what is computed and read."""
    host = machine()
    tiles = [(host.lanes(dtype), *tile) for tile in TILES[host.registers]]
    if host.reads_twice:
        tiles += [(host.lanes(dtype) // 2, *tile) for tile in HALVES]
    return min(tiles, key=lambda tile: _computed(g, dtype, *tile))


def _computed(g: Geometry, dtype: str, lanes: int, filters: int, vectors: int) -> float:
    outputs = whole(g.filters, filters) * whole(g.output[-1], lanes * vectors)
    dearer = 1 if lanes == machine().lanes(dtype) else HALVED
    return outputs * (1 + LOAD * (filters + vectors) / (filters * vectors)) * dearer


def blocking(problem: Problem) -> str:
    """Tile, blocks and pieces, in words."""
    g, dtype = problem.geometry, problem.dtype
    if problem.kind == "weight_gradient":
        return strips_weights.blocking(g, dtype)
    g = _flipped(g) if problem.kind == "input_gradient" else g
    (lanes, filters, vectors), plan = _tile(g, dtype), _prepare(g, dtype, dtype, get_threads())
    n = plan.job.numbers
    return (
        f"{filters} filters by {vectors * lanes} pixels of a row in registers; blocks of {n['block_rows']} x "
        f"{n['block_columns']} outputs, for which {n['channels']} x {n['lines']} rows of x are copied; "
        f"{plan.cut}"
    )


def share(problem: Problem) -> float:
    """Of the limit; see :mod:`konv.engine.roofline`."""
    g, dtype = problem.geometry, problem.dtype
    if problem.kind == "weight_gradient":
        return roofline.share(problem, strips_weights.done(g, dtype), speed=0.75, moving=1, storing=0)
    g = _flipped(g) if problem.kind == "input_gradient" else g
    done = _computed(g, dtype, *_tile(g, dtype)) / max(1, g.filters * g.output[-1])
    return roofline.share(problem, done, speed=1, moving=1, storing=1)
