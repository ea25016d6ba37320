"""Small groups on channels-last arrays, and depthwise layers that :mod:`konv.engine.groups.depthwise_rows` does not take: jobs of
:mod:`konv.engine.groups.channels`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from typing import Any

import numpy as np

from konv.engine import columns
from konv.engine.groups.axes import FORWARD, Axes, Axis, axes_of, forward_axes, gradient_phases
from konv.engine.groups.channels import AHEAD, accumulate_channels, correlate_channels
from konv.engine.launch import Job
from konv.engine.machine import dtype_name, machine
from konv.engine.prepared import Prepared, prepared
from konv.engine.simd import ITEMSIZE
from konv.engine.threads import get_threads
from konv.geometry import Geometry

PIECE_CELLS = 32 << 10  # outputs of a piece, where it is more than one row
MOST_TAPS = 32  # of a row of the kernel, taken together
WOVEN_TAPS = 4  # their factors, too, are twice as many
MOST_SUMS = 8, 24  # of a weight gradient, taken together: depthwise, in small groups
# Of rows of more than 8 taps, where there are 32 registers: outputs of a tile; taps and outputs of a weight gradient's, so each
# number is read for more of them: 31 taps .63 to .9 of the time, their weight gradient .8.
MANY_TAPS, MANY_OUTPUTS, MANY_SUMS, MANY_ADDED = 9, (14, 12, 10), 16, 8
SHORT = 14  # outputs of a row that is one tile, where there are 32 registers
CHUNK_BYTES = 64 << 10  # of dy: what is read for every block of channels stays in the cache
LEAST_PARTS = 16  # of a weight gradient: each is summed by itself


def correlate(g: Geometry, phase: int, x: np.ndarray, w: np.ndarray, b: Any, out: np.ndarray) -> None:
    """Forward, or a phase of the input gradient."""
    plan, order = correlation(g, phase, dtype_name(x.dtype), dtype_name(out.dtype), get_threads())
    bias = plan.bias(b if b is None or order is None else b.take(order))
    plan.run(x=x, weights=plan.weights(w), bias=bias, y=out)


def weight_and_bias_gradient(dy: np.ndarray, x: np.ndarray, g: Geometry, out: np.ndarray, db: np.ndarray) -> None:
    """Write dL/dw (F, C // groups, *kernel) into ``out`` and dL/db (C,) into ``db``."""
    plan = accumulation(g, dtype_name(x.dtype), get_threads())
    sums, finite = plan.accumulate(dy, x, db, zeros=True)
    if finite:
        total = np.empty(out.shape, sums.dtype)
        total.reshape(-1)[plan.taps] = sums
        out[...] = total
    else:
        columns.weight_gradient(dy, x, g, out)


def weights_size(g: Geometry, dtype: str, transposed: bool) -> int:
    """Bytes of the weights in the order of the job, of the phase that has most."""
    phases = gradient_phases(g) if transposed else (FORWARD,)
    return max((correlation(g, phase, dtype, dtype, get_threads())[0].weights_size for phase in phases), default=0)


@functools.lru_cache(maxsize=512)
def correlation(
    g: Geometry, phase: int, x_dtype: str, y_dtype: str, threads: int
) -> tuple[Prepared, np.ndarray | None]:
    """The job of a correlation; its weights lie as [tap][turn][channel]. And the channels as it has them, if woven."""
    depth, height, row = (axis.ascending for axis in axes_of(g, phase))
    apart = row.taps[1] - row.taps[0] if len(row.taps) > 1 else 1
    cut = len(row.taps) * g.channels // g.groups > MOST_TAPS
    sources = _sources((depth, height, row), 1 if cut else len(row.taps))
    kernel = (1,) * (3 - g.axes) + g.kernel
    taps = [
        (d * kernel[1] + h) * kernel[2] + i for d, h, i in itertools.product(depth.weights, height.weights, row.weights)
    ]
    tile = tile_of(row.out, 1 if cut or g.groups < g.channels else len(row.taps))
    lines = g.batch * depth.out * height.out
    chunk = max(1, min(-(-lines // (8 * threads)), PIECE_CELLS // max(1, row.out * g.channels)))
    spatial = (1,) * (3 - g.axes) + (g.output if phase == FORWARD else g.spatial)
    y_step, y_row, y_depth = g.channels, g.channels * spatial[2], g.channels * spatial[1] * spatial[2]
    lanes, woven = machine().lanes(x_dtype), _woven(g, 1 if cut else len(row.taps), x_dtype, y_dtype)
    job = Job(
        correlate_channels(
            x_dtype, y_dtype, lanes, g.channels // g.groups, tile, 1 if cut else len(row.taps), row.stride,
            1 if cut else apart, cut, None if cut else _short(row, tile), woven,
            depth.length * height.length > 1,
        ),
        -(-lines // chunk), lines=lines, chunk=chunk, source_count=len(sources), channels=g.channels, x_depth=depth.length,
        x_height=height.length, x_width=row.length, depth_step=depth.stride, row_step=height.stride,
        shift=0 if cut else row.taps[0] - row.pad, out_depth=depth.out, out_height=height.out, out_width=row.out,
        y_start=depth.start * y_depth + height.start * y_row + row.start * y_step, y_image=y_depth * spatial[0],
        y_depth=depth.step * y_depth, y_row=height.step * y_row, y_step=row.step * y_step,
        y_ahead=-(-AHEAD // (row.step * y_step)) * row.step * y_step,
        zeros=np.zeros(g.channels * 8, np.uint8), sources=sources,
    )  # fmt: skip
    indices = _indices(g, np.array(taps), phase != FORWARD)
    work = lines * row.out * indices.size
    order = np.minimum(_woven_order(g.channels, lanes), g.channels - 1) if woven else None
    if order is not None:
        indices = indices[..., order]
    return prepared(job, work, 0, x_dtype, indices.shape[-1], taps=indices), order


@functools.lru_cache(maxsize=256)
def accumulation(g: Geometry, dtype: str, threads: int) -> Prepared:
    """The job of the weight gradient."""
    depth, height, row = forward_axes(g)
    apart, neighbours = g.dilation[-1], all(b == a + 1 for a, b in itertools.pairwise(height.taps))
    group = g.channels // g.groups
    most = max(1, MOST_SUMS[group > 1] // group)
    many = group == 1 and len(row.taps) >= MANY_TAPS and row.out > SHORT and machine().registers >= 32
    if many:
        most = -(-len(row.taps) // -(-len(row.taps) // MANY_SUMS))
    wide_tile = min(len(row.taps), most)
    high_tile = len(height.taps) if neighbours and len(height.taps) * wide_tile * group <= 9 else 1
    sources = _sources((depth, dataclasses.replace(height, taps=height.taps[::high_tile]), row), len(row.taps))
    tile = row.out if tile_of(row.out) == row.out and group == 1 else min(MANY_ADDED if many else 4, row.out)
    lines = g.batch * depth.out * height.out
    chunk = max(1, min(depth.out * height.out, lines // LEAST_PARTS))
    segment = min(row.out, max(1, CHUNK_BYTES // (g.channels * ITEMSIZE[dtype] * tile)) * tile)
    job = Job(
        accumulate_channels(
            dtype, machine().lanes(dtype), group, tile, high_tile, wide_tile, row.stride, apart,
            _short(row, tile) if wide_tile == len(row.taps) else None, depth.length * height.length > 1,
        ),
        -(-lines // chunk), lines=lines, chunk=chunk, source_count=len(sources), channels=g.channels, x_depth=depth.length,
        x_height=height.length, x_width=row.length, depth_step=depth.stride, row_step=height.stride, shift=-row.pad,
        out_depth=depth.out, out_height=height.out, out_width=row.out, taps=len(row.taps),
        tap_tiles=-(-len(row.taps) // wide_tile), segment=segment, dy_ahead=segment * g.channels,
        x_ahead=(height.stride * row.length if segment == row.out else segment * row.stride) * g.channels,
        zeros=np.zeros(g.channels * 8, np.uint8), sources=sources,
    )  # fmt: skip
    taps = _indices(g, np.arange(math.prod(g.kernel)), False)
    return prepared(job, g.flops // 2, 0, dtype, sums=(job.pieces, *taps.shape), taps=taps)


def _woven(g: Geometry, taps: int, x_dtype: str, y_dtype: str) -> bool:
    """Whether even and odd channels are apart, in bfloat16: 3 x 3 in .75 to 1 of the time, 5 x 5 would be in 1.4."""
    halves = x_dtype == y_dtype == "bfloat16" and machine().dots
    return halves and taps <= WOVEN_TAPS and g.groups == g.channels > machine().lanes(x_dtype)


def _woven_order(channels: int, lanes: int) -> np.ndarray:
    """The channels in the order of the lanes: of each two vectors the even ones, then the odd; some past the last."""
    vectors = -(-channels // (2 * lanes))
    return np.arange(vectors * 2 * lanes).reshape(vectors, lanes, 2).transpose(0, 2, 1).reshape(-1)


def _indices(g: Geometry, taps: np.ndarray, transposed: bool) -> np.ndarray:
    """Indices into w (F, C // groups, *kernel), flat: [tap][turn][channel]."""
    group, size = g.channels // g.groups, math.prod(g.kernel)
    tap, turn, channel = np.ix_(taps, np.arange(group), np.arange(g.channels))
    own = channel % group
    met = (own + turn) % group
    filter_, inner = (channel - own + met, own) if transposed else (channel, met)
    return (filter_ * group + inner) * size + tap


def _sources(axes: Axes, together: int) -> np.ndarray:
    """(depth, row, column) that each of the kernel's rows, or of its taps, reads beyond an output's own."""
    depth, height, row = axes
    return np.array(
        [
            (d - depth.pad, h - height.pad, v - row.pad)
            for d, h, v in itertools.product(depth.taps, height.taps, row.taps[::together])
        ],
        np.int64,
    )


def _short(row: Axis, tile: int) -> tuple[int, int] | None:
    return (row.taps[0] - row.pad, row.length) if row.out == tile else None


def tile_of(columns: int, taps: int = 1) -> int:
    """Outputs of a tile: a whole short row, or those that compute fewest outputs twice; more of them where taps are many."""
    most = 8 if machine().registers >= 32 else 4
    if columns <= SHORT * most // 8:
        return columns
    sizes = [n for n in (8, 7, 4, 2, 1) if n <= min(most, columns)]
    if taps >= MANY_TAPS and most == 8:
        sizes = [*(n for n in MANY_OUTPUTS if n <= columns and n < taps), *sizes]
    return min(sizes, key=lambda n: -(-columns // n) * (n + 2))


def blocking(g: Geometry, dtype: str, kind: str) -> str:
    """Tile and pieces, in words."""
    lanes = machine().lanes(dtype)
    if kind == "weight_gradient":
        plan, what = accumulation(g, dtype, get_threads()), "summed over"
    else:
        phases = (FORWARD,) if kind == "forward" else gradient_phases(g)
        if not phases:
            return "nothing to compute"
        (plan, _), what = correlation(g, phases[0], dtype, dtype, get_threads()), "computed in"
    n = plan.job.numbers
    return f"{lanes} channels in a vector, {what} {n['chunk']} rows of {n['out_width']} outputs a piece; {plan.cut}"
