"""Winograd's algorithm F(4x4, 3x3) for 3 x 3 convolutions with stride 1: a quarter of the multiplications.

A dilated convolution is one of each phase: tiles of cells that lie ``dilation`` apart. A 3-D one sums planes of 3 x 3 taps
as it sums channels.

The input gradient is the same computation on dy, with the taps in reverse order, filters and channels exchanged, and
``2 - low`` cells of padding (fewer than none where ``low`` is larger: then dy is cut). The weight gradient is F(3x3, 4x4),
in :mod:`konv.engine.winograd_weights`.

Error: 0.3-1.8e-6 of the largest output (direct: 0.3-0.8e-6), of the input gradient 0.3-1.6e-6 (0.3-0.8e-6), of the weight
gradient 0.2-0.9e-6 (0.2-0.9e-6), measured against float64 on normal, rectified and positive numbers, layers 64@56, 128@28,
256@14, 512@7, 512@28, 64->128@112, 512@33 dilated 2, 64@8x28x28; in float64 the same, times 2e-9.
It is relative to the largest output, not to each: one that is small beside its tile loses digits. Numbers above 1e36 may
overflow. A NaN or an infinity makes every output that reads it NaN or infinite, and may do so to their whole 4 x 4 tiles.

A sum runs over the channels in the same order in every tile, so its bits depend on neither threads nor the batch.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from konv.arrays import known_layout
from konv.engine import memory, roofline, winograd_weights
from konv.engine.launch import Job, address
from konv.engine.machine import dtype_name, machine, wide_type
from konv.engine.threads import get_threads, width
from konv.engine.winograd_cuts import Axes, Sizes, best
from konv.engine.winograd_formulas import OUTPUTS, TAPS
from konv.engine.winograd_kernels import filters_to_points, winograd
from konv.engine.winograd_weights import weight_gradient
from konv.geometry import Geometry

if TYPE_CHECKING:
    from konv.engine.plan import Problem

NAME = "winograd"
BEYOND = "36 products stand for the formula's 144"
LEAST_CHANNELS, LEAST_FILTERS, LEAST_OUTPUTS, LEAST_OUTPUTS_OF_WEIGHTS, LEAST_TILES = 8, 9, 6, 9, 16  # see `declines`

__all__ = ["NAME", "blocking", "declines", "forward", "input_gradient", "share", "weight_gradient", "workspace"]


def declines(problem: Problem) -> str | None:
    """Problems that are not its own, and those where another algorithm is about as fast, or faster.

    The batch is asked for weights only: the bits of a sample must not depend on it. The figures are its speed relative to
    the other algorithm's, on images of 3 x 3 to 224 x 224, batches of 1 to 100.

    ==========================================  ======================================================================
    summed channels (dy's filters) below 8      direct, 3 channels: 0.8-1.3; 8 channels 1.0-1.7, 64 and more 1.7-2.2
    filters (of a gradient, x's channels) to 8  pixels in lanes, 8 filters: 0.3-0.85
    fewer than 6 outputs in a tile, on average  direct, 2 x 2 images: 0.8-2.1, 36 products where 36 are needed; of what is
                                                taken, one image of 4 x 4 gains least: 0.8-1.2
    weights: fewer than 9 outputs, or 16 tiles  direct, 64@5: 1.0; 2048 -> 256@33, dilated 12, whose padding direct skips:
                                                0.65; one image of 64@4, 256@4, 512@7: 0.8, 0.5, 1.1
    ==========================================  ======================================================================
    """
    g, gradient = problem.geometry, problem.kind == "input_gradient"
    if problem.exact:
        return "an exact sum is asked for: its error is up to three times a direct sum's, and one NaN may fill a 4 x 4 tile"
    if g.axes < 2 or g.kernel[-2:] != (TAPS, TAPS):
        return f"its kernels are 3 x 3 along the last axes, not {' x '.join(map(str, g.kernel))}"
    for name, value in [("stride", g.stride), ("groups", (g.groups,))]:
        if set(value) != {1}:
            return f"its {name} is 1, not {' x '.join(map(str, value))}"
    channels, filters = (g.filters, g.channels) if gradient else (g.channels, g.filters)
    if channels < LEAST_CHANNELS:
        return f"{channels} channels to sum, fewer than {LEAST_CHANNELS}: the transforms cost more than they save"
    if filters < LEAST_FILTERS:
        return f"{filters} filters, fewer than {LEAST_FILTERS}: pixels fill vectors better than filters do"
    axes = Axes.of(g, gradient)
    height, row = axes.output[1:]
    tiles, weights = axes.tile_rows * axes.tile_columns, problem.kind == "weight_gradient"
    least = LEAST_OUTPUTS_OF_WEIGHTS if weights else LEAST_OUTPUTS
    if height * row < least * tiles:
        return f"{height} x {row} outputs fill less than {least} of a tile's {OUTPUTS * OUTPUTS} cells"
    if weights and g.batch * axes.output[0] * tiles < LEAST_TILES:
        return f"sums over fewer than {LEAST_TILES} tiles: what is transformed at their end costs more than they save"
    return None


def workspace(problem: Problem) -> int:
    """Bytes borrowed while it runs."""
    if problem.kind == "weight_gradient":
        return winograd_weights.workspace(problem.geometry, problem.dtype, problem.layout)
    g, dtype = problem.geometry, problem.dtype
    return _prepare(g, problem.kind == "input_gradient", dtype, dtype, problem.layout, get_threads()).size


def forward(x: np.ndarray, w: np.ndarray, b: np.ndarray | None, g: Geometry, out: np.ndarray) -> None:
    """Write conv(x, w) + b into ``out`` (N, F, *output)."""
    _run(x, w, b, g, False, out)


def input_gradient(dy: np.ndarray, w: np.ndarray, g: Geometry, out: np.ndarray) -> None:
    """Write dL/dx (N, C, *spatial) into ``out``."""
    _run(dy, w, None, g, True, out)


@dataclass(frozen=True)
class Prepared:
    """A convolution's jobs, and the workspace they share.

    Attributes
    ----------
    transform : the filters to points, ahead of the rest; None where each piece transforms what it needs
    multiply : everything else
    no_bias : zeros for the filters of all panels
    filter_cells : cells of the transformed filters; the slots lie behind them
    threads : that ``multiply`` uses, each with a slot
    size : bytes of the workspace
    """

    transform: Job | None
    multiply: Job
    no_bias: np.ndarray
    filter_cells: int
    threads: int
    size: int


@functools.lru_cache(maxsize=512)
def _prepare(g: Geometry, transposed: bool, dtype: str, out: str, layout: str, threads: int) -> Prepared:
    wide, axes = wide_type(dtype), Axes.of(g, transposed)
    sizes, cut = Sizes.of(g, transposed, wide), best(g, transposed, wide, threads)
    taps = math.prod(g.kernel)
    shared = {
        "filter_stride": taps * (1 if transposed else g.channels),
        "channel_stride": taps * (g.channels if transposed else 1),
        "filters": sizes.filters,
        "channels": sizes.channels,
        "chunks": sizes.chunks,
        "channel_chunks": sizes.channel_chunks,
        "chunk_channels": sizes.chunk_channels,
    }
    transform, source = None, "flipped taps" if transposed else "taps" if axes.planes == 1 else "taps of planes"
    if cut.ahead:
        kernel, source = filters_to_points(wide, sizes.lanes, sizes.vectors, source), "points"
        transform = Job(kernel, sizes.panels * sizes.chunks, plane=cut.numbers["filter_plane"], **shared)
    kernel = winograd(dtype, out, sizes.lanes, sizes.vectors, cut.group, sizes.depth, source, layout, axes.dilated)
    multiply = Job(kernel, cut.pieces, **axes.numbers(), **cut.numbers, **shared)
    no_bias = np.zeros(sizes.panels * sizes.lanes * sizes.vectors, wide)
    return Prepared(transform, multiply, no_bias, cut.filter_cells, cut.threads, cut.size)


def _run(x: np.ndarray, w: np.ndarray, b: np.ndarray | None, g: Geometry, transposed: bool, out: np.ndarray) -> None:
    if out.size == 0:
        return
    job = _prepare(g, transposed, dtype_name(x.dtype), dtype_name(out.dtype), known_layout(x, out), get_threads())
    bias = job.no_bias
    w = np.ascontiguousarray(w, bias.dtype)
    if b is not None:
        bias = np.zeros_like(bias)
        bias[: len(b)] = b
    with memory.workspace(job.size) as points:
        if job.transform is not None:
            job.transform.run(width(job.transform.pieces, job.filter_cells), w=address(w), points=points)
        job.multiply.run(
            job.threads, x=address(x), w=address(w), bias=address(bias), y=address(out), points=points,
            slots=points + job.filter_cells * bias.itemsize,
        )  # fmt: skip


def blocking(problem: Problem) -> str:
    """Tiles, blocks and pieces, in words."""
    g, dtype = problem.geometry, problem.dtype
    if problem.kind == "weight_gradient":
        return winograd_weights.blocking(g, dtype, problem.layout)
    transposed = problem.kind == "input_gradient"
    job = _prepare(g, transposed, dtype, dtype, problem.layout, get_threads())
    n, sizes = job.multiply.numbers, Sizes.of(g, transposed, wide_type(dtype))
    panel = sizes.vectors * sizes.lanes
    when = "ahead" if job.transform else "for each piece"
    return (
        f"tiles of {OUTPUTS} x {OUTPUTS} outputs; blocks of {n['block_rows']} x {n['block_columns']} tiles by "
        f"{min(n['part_panels'] * panel, sizes.filters)} filters, {panel} at a time, summed over {sizes.chunk_channels} channels "
        f"at a time, filters transformed {when}; {job.multiply.cut(job.threads)}"
    )


def share(problem: Problem) -> float:
    """Of the limit; see :mod:`konv.engine.roofline`. Above 1, for 36 products stand for the formula's 144."""
    g, transposed = problem.geometry, problem.kind == "input_gradient"
    axes, lanes = Axes.of(g, transposed), machine().lanes(problem.dtype)
    outputs = math.prod(axes.output[1:])
    done = (OUTPUTS + TAPS - 1) ** 2 / TAPS**2 * axes.tile_rows * axes.tile_columns / outputs
    done *= roofline.padding(g.channels if transposed else g.filters, lanes)
    if problem.kind == "weight_gradient":
        return roofline.share(problem, done, speed=0.5, moving=0.75, storing=0)
    return roofline.share(problem, done, speed=0.6, moving=0.75, storing=0)
