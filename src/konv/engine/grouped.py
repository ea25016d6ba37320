"""Groups of few filters (depthwise above all), and the input gradients of few channels: pixels in lanes.

The same axes and phases as in :mod:`konv.engine.direct`; another tile, in which a vector is a run of neighbouring pixels.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from konv.engine import columns, direct, memory
from konv.engine.direct import (
    FORWARD,
    FORWARD_ONLY,
    Axes,
    axes_of,
    compiled_stride,
    forward_axes,
    gradient_phases,
    leaves_cells,
)
from konv.engine.launch import Job, address
from konv.engine.machine import dtype_name, machine, wide_type
from konv.engine.planes import accumulate_planes, correlate_planes
from konv.engine.threads import get_threads, width
from konv.geometry import Geometry

if TYPE_CHECKING:
    from konv.engine.plan import Problem

NAME = "grouped"
MOST_FILTERS = 8  # of 32 that the other tile computes at once
BLOCK_BYTES = 256 << 10
TAPS_IN_TILE = 10


def declines(problem: Problem) -> str | None:
    """Where filters (in the role they play) fill the lanes of the direct tile, that one is faster."""
    g = problem.geometry
    filters, channels = g.filters // g.groups, g.channels // g.groups
    if problem.kind == "weight_gradient":
        if g.groups < 4 or filters * channels > 64 or max(filters, channels) > MOST_FILTERS:
            return f"{g.groups} groups of {channels} x {filters}; it takes 4 or more of at most {MOST_FILTERS} x {MOST_FILTERS}"
        return None
    role = filters if problem.kind == "forward" else channels
    if role > MOST_FILTERS:
        return f"{role} filters in a group fill the lanes of the direct tile; it computes at most {MOST_FILTERS}"
    return direct.declines(problem)


def workspace(problem: Problem) -> int:
    """Bytes borrowed while it runs."""
    g, dtype = problem.geometry, problem.dtype
    if problem.kind == "weight_gradient":
        return _weights(g, dtype, get_threads()).size
    phases = FORWARD_ONLY if problem.kind == "forward" else gradient_phases(g)
    return max((_planes(g, phase, dtype, dtype, get_threads()).size for phase in phases), default=0)


def forward(x: np.ndarray, w: np.ndarray, b: np.ndarray | None, g: Geometry, out: np.ndarray) -> None:
    """Write conv(x, w) + b into ``out`` (N, F, *output)."""
    direct.in_place(out, lambda target: _run(g, FORWARD, x, w, b, target))


def input_gradient(dy: np.ndarray, w: np.ndarray, g: Geometry, out: np.ndarray) -> None:
    """Write dL/dx (N, C, *spatial) into ``out``."""
    if not np.isfinite(
        w
    ).all():  # a zero of dy's padding times infinity would be NaN, where the textbook's sum has no such term
        columns.input_gradient(dy, w, g, out)
        return

    def run(target: np.ndarray) -> None:
        if leaves_cells(g):
            target[...] = 0
        for phase in gradient_phases(g):
            _run(g, phase, dy, w, None, target)

    direct.in_place(out, run)


def weight_gradient(dy: np.ndarray, x: np.ndarray, g: Geometry, out: np.ndarray) -> None:
    """Write dL/dw (F, C // groups, *kernel) into ``out``."""
    x, dy = np.ascontiguousarray(x), np.ascontiguousarray(dy)
    plan = _weights(g, x.dtype.name, get_threads())
    with memory.workspace(plan.size) as space:
        plan.job.run(
            plan.threads, x=address(x), dy=address(dy), sums=address(sums := np.empty(plan.sums, plan.wide)), workspace=space,
            offsets=address(plan.offsets), depth_cells=address(plan.depth_cells),
        )  # fmt: skip
    taps = math.prod(g.kernel)
    out[...] = sums[:, :, :taps].sum(axis=-1).reshape(g.w_shape)


@dataclass(frozen=True)
class Planes:
    """A prepared job, its tables, and what it borrows."""

    job: Job
    offsets: np.ndarray
    depth_cells: np.ndarray
    threads: int
    size: int
    wide: str
    weights: Any = None
    no_bias: Any = None
    sums: tuple[int, ...] = ()


def _run(g: Geometry, phase: int, x: np.ndarray, w: np.ndarray, b: Any, out: np.ndarray) -> None:
    plan = _planes(g, phase, dtype_name(x.dtype), dtype_name(out.dtype), get_threads())
    factors = np.ascontiguousarray(w, plan.wide).reshape(-1)[plan.weights]
    bias = plan.no_bias if b is None else np.ascontiguousarray(b, plan.wide)
    x = np.ascontiguousarray(x)
    with memory.workspace(plan.size) as space:
        plan.job.run(
            plan.threads, x=address(x), weights=address(factors), bias=address(bias), y=address(out), workspace=space,
            offsets=address(plan.offsets), depth_cells=address(plan.depth_cells),
        )  # fmt: skip


def _offsets(axes: Axes, channels: int, rows: int, phase_cells: int) -> np.ndarray:
    """Where tap (channel, kernel index) lies in the rows that a block copied."""
    depth, height, row = axes
    pitch = phase_cells * row.stride
    return np.array(
        [
            ((c * len(depth.taps) + j) * rows + h) * pitch + v % row.stride * phase_cells + v // row.stride
            for c in range(channels)
            for j, h, v in itertools.product(range(len(depth.taps)), height.taps, row.taps)
        ],
        np.int64,
    )


def _lanes(dtype: str, row: int) -> int:
    """Half vectors where a row is no longer than one."""
    lanes = machine().lanes(dtype)
    return lanes // 2 if row <= lanes // 2 and lanes > 4 else lanes


@functools.lru_cache(maxsize=512)
def _planes(g: Geometry, phase: int, x_dtype: str, y_dtype: str, threads: int) -> Planes:
    depth, height, row = axes = axes_of(g, phase)
    transposed = phase != FORWARD
    wide = wide_type(x_dtype)
    itemsize = np.dtype(wide).itemsize
    lanes = _lanes(x_dtype, row.out)
    group_channels, group_filters = g.channels // g.groups, g.filters // g.groups
    channels, filters = (group_filters, group_channels) if transposed else (group_channels, group_filters)
    tile_filters = next(n for n in (4, 2, 1) if filters % n == 0)
    vectors = (16 if tile_filters == 4 else 8) // tile_filters if machine().registers >= 32 else 8 // tile_filters
    tile_rows, tile_columns = (vectors, 1) if height.out > 1 else (1, vectors)
    phase_cells = -(-row.out // (lanes * tile_columns)) * lanes * tile_columns + max(row.taps) // row.stride
    line_bytes = channels * len(depth.taps) * phase_cells * row.stride * itemsize
    block_rows = height.out
    while block_rows > tile_rows and line_bytes * ((block_rows - 1) * height.stride + height.window) > BLOCK_BYTES:
        block_rows = -(-block_rows // 2 // tile_rows) * tile_rows
    row_blocks = -(-height.out // block_rows)
    rows = (block_rows - 1) * height.stride + height.window
    offsets = _offsets(axes, channels, rows, phase_cells)
    # a tile may compute rows past the block's last: what it reads there must be the slot's own
    slot = (channels * len(depth.taps) * rows + tile_rows * height.stride) * phase_cells * row.stride + lanes
    slot = -(-slot // 16) * 16
    spatial = (1,) * (3 - g.axes) + (g.spatial if transposed else g.output)
    y_row, y_depth, y_filter = spatial[2], spatial[1] * spatial[2], math.prod(spatial)
    job = Job(
        correlate_planes(x_dtype, y_dtype, lanes, tile_filters, tile_rows, tile_columns, compiled_stride(row), row.step == 1),
        g.batch * g.groups * depth.out * row_blocks, step=row.stride, slot_size=slot, groups=g.groups,
        channels=channels, x_depth=depth.length,
        x_height=height.length, x_width=row.length, pad_depth=depth.pad, pad_height=height.pad, pad_width=row.pad,
        depth_taps=len(depth.taps), stride_depth=depth.stride, stride_height=height.stride, taps=len(offsets),
        group_filters=filters, out_depth=depth.out, out_height=height.out, out_width=row.out, block_rows=block_rows,
        row_blocks=row_blocks, block_input_rows=rows, phase_cells=phase_cells,
        y_start=depth.start * y_depth + height.start * y_row + row.start, y_image=g.groups * filters * y_filter,
        y_filter=y_filter, y_depth=depth.step * y_depth, y_row=height.step * y_row, y_step=row.step,
    )  # fmt: skip
    work = g.batch * g.groups * depth.out * height.out * row.out * filters * len(offsets)
    used = width(job.pieces, work)
    factors = _factors(axes, g, transposed, channels, filters, tile_filters)
    no_bias = np.zeros(g.groups * filters, wide)
    return Planes(job, offsets, np.array(depth.taps, np.int64), used, used * slot * itemsize, wide, factors, no_bias)


def _factors(axes: Axes, g: Geometry, transposed: bool, channels: int, filters: int, tile: int) -> np.ndarray:
    """Indices into w (F, C // groups, *kernel), flat: [group][block of filters][tap][filter]."""
    kernel = (1,) * (3 - g.axes) + g.kernel
    taps = np.array([(d * kernel[1] + u) * kernel[2] + i for d, u, i in itertools.product(*(a.weights for a in axes))])
    group, block, channel, tap, filter_ = np.ix_(
        *map(np.arange, (g.groups, filters // tile, channels, len(taps), tile))
    )
    f = block * tile + filter_
    group_channels, group_filters = g.channels // g.groups, g.filters // g.groups
    outer, inner = (channel, f) if transposed else (f, channel)
    cell = ((group * group_filters + outer) * group_channels + inner) * math.prod(kernel) + taps[tap]
    return cell.reshape(-1)


@functools.lru_cache(maxsize=256)
def _weights(g: Geometry, dtype: str, threads: int) -> Planes:
    depth, height, row = axes = forward_axes(g)
    wide = wide_type(dtype)
    lanes = _lanes(dtype, row.out)
    channels, filters = g.channels // g.groups, g.filters // g.groups
    phase_cells = -(-row.out // lanes) * lanes + max(row.taps) // row.stride
    rows = (height.out - 1) * height.stride + height.window
    offsets = _offsets(axes, 1, rows, phase_cells)
    tiles = -(-len(offsets) // TAPS_IN_TILE)
    padded = np.concatenate([offsets, np.repeat(offsets[-1:], tiles * TAPS_IN_TILE - len(offsets))])
    slot = -(-(len(depth.taps) * rows * phase_cells * row.stride + lanes) // 16) * 16
    job = Job(
        accumulate_planes(dtype, lanes, TAPS_IN_TILE, compiled_stride(row)), g.groups, step=row.stride,
        slot_size=slot, images=g.batch, groups=g.groups,
        channels=channels, group_filters=filters, x_depth=depth.length, x_height=height.length, x_width=row.length,
        pad_depth=depth.pad, pad_height=height.pad, pad_width=row.pad, depth_taps=len(depth.taps), stride_depth=depth.stride,
        stride_height=height.stride, tap_tiles=tiles, out_depth=depth.out, out_height=height.out, out_width=row.out,
        input_rows=rows, phase_cells=phase_cells,
    )  # fmt: skip
    used = width(job.pieces, g.flops // 2)
    shape = (g.filters, channels, tiles * TAPS_IN_TILE, lanes)
    size = used * slot * np.dtype(wide).itemsize
    return Planes(job, padded, np.array(depth.taps, np.int64), used, size, wide, sums=shape)
