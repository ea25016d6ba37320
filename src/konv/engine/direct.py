"""Direct convolution: forward and input gradient as correlations, the weight gradient as outer products.

Forward: tap k of a window is (channel, kernel index). Input gradient: output o met kernel index t at padded cell ``P = o *
stride + t * dilation``. For the cells of one *phase*, ``P = m * stride + phase``, only the t with ``t * dilation % stride ==
phase`` count, and ``o = m - (t * dilation - phase) / stride``: a correlation of dy with stride 1 over those t, filters in the
role of channels, which writes every stride-th cell. Nothing is scattered, nothing is added twice. 1-D and 2-D problems
are 3-D ones with axes of length 1.

The sum of an output runs over the same taps in the same order wherever it lies, so its bits depend neither on threads,
nor on the batch, nor on the length of the input.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from konv.engine import columns, memory, weights
from konv.engine.correlate import correlate, panels
from konv.engine.launch import Job, address
from konv.engine.machine import dtype_name, machine, wide_type
from konv.engine.threads import get_threads, width
from konv.engine.weights import weight_gradient
from konv.geometry import Geometry

if TYPE_CHECKING:
    from konv.engine.plan import Problem

NAME = "direct"
BLOCK_BYTES = 192 << 10  # the input of a block of outputs stays in L2, beside a panel of weights
MOST_PHASES = 16
FORWARD = -1  # a phase number: those of the input gradient count from 0
FORWARD_ONLY = (FORWARD,)

__all__ = ["NAME", "declines", "forward", "input_gradient", "weight_gradient", "workspace"]


def declines(problem: Problem) -> str | None:
    """An input gradient of many phases would be as many jobs."""
    phases = math.prod(problem.geometry.stride)
    if problem.kind == "input_gradient" and phases > MOST_PHASES:
        return f"the input gradient has {phases} phases (the product of the strides), more than {MOST_PHASES}"
    return None


def workspace(problem: Problem) -> int:
    """Bytes borrowed while it runs."""
    g, dtype = problem.geometry, problem.dtype
    if problem.kind == "weight_gradient":
        return weights.workspace(g, dtype)
    phases = FORWARD_ONLY if problem.kind == "forward" else gradient_phases(g)
    return max((_correlation(g, phase, dtype, dtype, get_threads()).size for phase in phases), default=0)


def forward(x: np.ndarray, w: np.ndarray, b: np.ndarray | None, g: Geometry, out: np.ndarray) -> None:
    """Write conv(x, w) + b into ``out`` (N, F, *output)."""
    in_place(out, lambda target: _run(g, FORWARD, x, w, b, target))


def input_gradient(dy: np.ndarray, w: np.ndarray, g: Geometry, out: np.ndarray) -> None:
    """Write dL/dx (N, C, *spatial) into ``out``."""

    def run(target: np.ndarray) -> None:
        if leaves_cells(g):
            target[...] = 0  # the cells of some phases meet no weight
        if not all([_run(g, phase, dy, w, None, target) for phase in gradient_phases(g)]):
            # A zero of dy's padding times an infinite weight is NaN, in cells that the textbook's sum does not reach.
            columns.input_gradient(dy, w, g, target)

    in_place(out, run)


def in_place(out: np.ndarray, run: Callable[[np.ndarray], Any]) -> None:
    """``run(out)``, by way of a C-contiguous array where ``out`` is none: kernels write to such."""
    if out.flags.c_contiguous:
        run(out)
    else:
        run(target := np.empty(out.shape, out.dtype))
        out[...] = target


@dataclass(frozen=True)
class Axis:
    """One axis of a correlation: output o reads cell ``o * stride + taps[k] - pad`` and is written to ``start + o * step``.

    ``weights[k]`` is the kernel index that belongs to ``taps[k]``.
    """

    length: int
    out: int
    stride: int
    pad: int
    taps: tuple[int, ...]
    weights: tuple[int, ...]
    start: int = 0
    step: int = 1

    @property
    def window(self) -> int:
        """Cells that one output spans."""
        return max(self.taps) + 1


Axes = tuple[Axis, ...]


@functools.lru_cache(maxsize=512)
def gradient_phases(g: Geometry) -> tuple[int, ...]:
    """The phases of the input gradient that compute anything: those with taps and cells on every axis."""
    return tuple(i for i, axes in enumerate(gradient_axes(g)) if all(axis.taps and axis.out > 0 for axis in axes))


@functools.lru_cache(maxsize=512)
def leaves_cells(g: Geometry) -> bool:
    """Whether some phase of the input gradient has no tap, so that its cells are zero."""
    return not all(axis.taps for axes in gradient_axes(g) for axis in axes)


def compiled_stride(row: Axis) -> int:
    """The stride that a kernel is compiled for: one of the usual ones, or 0 for any (told at run time)."""
    return row.stride if row.stride <= 2 else 0


def axes_of(g: Geometry, phase: int) -> Axes:
    """The axes of the forward correlation (``FORWARD``), or of a phase of the input gradient."""
    return forward_axes(g) if phase == FORWARD else gradient_axes(g)[phase]


@functools.lru_cache(maxsize=512)
def forward_axes(g: Geometry) -> Axes:
    """The three axes of the forward correlation."""
    axes = []
    for i in range(g.axes):
        taps = tuple(k * g.dilation[i] for k in range(g.kernel[i]))
        axes.append(Axis(g.spatial[i], g.output[i], g.stride[i], g.padding[i][0], taps, tuple(range(g.kernel[i]))))
    return _three(axes)


@functools.lru_cache(maxsize=512)
def gradient_axes(g: Geometry) -> tuple[Axes, ...]:
    """The axes of each phase of the input gradient."""
    choices = []
    for i in range(g.axes):
        stride, dilation, low, length = g.stride[i], g.dilation[i], g.padding[i][0], g.spatial[i]
        phases = []
        for phase in range(stride):
            kernel = tuple(t for t in range(g.kernel[i]) if t * dilation % stride == phase)
            back = [(t * dilation - phase) // stride for t in kernel]  # o = m - back
            first = -(-(low - phase) // stride)  # the first m whose cell lies past the low padding
            start = first * stride + phase - low
            count = max(0, -(-(length - start) // stride))
            far = max(back, default=0)
            taps = tuple(far - b for b in back)
            phases.append(Axis(g.output[i], count, 1, far - first, taps, kernel, start, stride))
        choices.append(phases)
    return tuple(_three(list(axes)) for axes in itertools.product(*choices))


def _three(axes: list[Axis]) -> Axes:
    return (*[Axis(1, 1, 1, 0, (0,), (0,))] * (3 - len(axes)), *axes)


@dataclass(frozen=True)
class Correlation:
    """A correlation, prepared: two jobs, their tables, and the workspace they share (in cells and bytes)."""

    pack: Job
    multiply: Job
    offsets: np.ndarray
    depth_cells: np.ndarray
    sources: np.ndarray
    no_bias: np.ndarray
    panel_cells: int
    threads: int
    size: int


@functools.lru_cache(maxsize=512)
def _correlation(g: Geometry, phase: int, x_dtype: str, y_dtype: str, threads: int) -> Correlation:
    depth, height, row = axes = axes_of(g, phase)
    transposed = phase != FORWARD
    host, wide = machine(), wide_type(x_dtype)
    lanes, (vectors, pixels) = host.lanes(x_dtype), host.tile
    itemsize = np.dtype(wide).itemsize
    group_channels, group_filters = g.channels // g.groups, g.filters // g.groups
    channels, filters = (group_filters, group_channels) if transposed else (group_channels, group_filters)
    group_panels = -(-filters // (lanes * vectors))
    block_rows, block_columns = _block(axes, channels * len(depth.taps) * itemsize, pixels)
    rows, row_cells = (block_rows - 1) * height.stride + height.window, _row_cells(row, block_columns, pixels)
    row_blocks, column_blocks = -(-height.out // block_rows), -(-row.out // block_columns)
    blocks = g.batch * g.groups * depth.out * row_blocks * column_blocks
    part_panels = group_panels
    while blocks * -(-group_panels // part_panels) < 4 * threads and part_panels > 1:
        part_panels = -(-part_panels // 2)
    parts = -(-group_panels // part_panels)
    offsets, sources = _taps(axes, g, transposed, channels, rows, row_cells)
    slot_size = -(-(channels * len(depth.taps) * rows * row_cells + pixels * row.stride + lanes) // lanes) * lanes
    spatial = (1,) * (3 - g.axes) + (g.spatial if transposed else g.output)
    y_row, y_depth, y_filter = spatial[2], spatial[1] * spatial[2], math.prod(spatial)
    kernel_size = math.prod(g.kernel)
    pack = Job(
        panels(x_dtype, lanes, vectors), g.groups * group_panels, group_stride=group_filters * group_channels * kernel_size,
        # w is (F, C // groups, *kernel): of the input gradient, its channels are the filters
        filter_stride=kernel_size if transposed else group_channels * kernel_size,
        filters=filters, group_panels=group_panels, taps=len(offsets),
    )  # fmt: skip
    multiply = Job(
        correlate(x_dtype, y_dtype, lanes, vectors, pixels, compiled_stride(row), row.step == 1),
        blocks * parts, step=row.stride, slot_size=slot_size,
        groups=g.groups, channels=channels, x_depth=depth.length, x_height=height.length, x_width=row.length,
        pad_depth=depth.pad, pad_height=height.pad, pad_width=row.pad, depth_taps=len(depth.taps), stride_depth=depth.stride,
        stride_height=height.stride, taps=len(offsets), filters=filters, group_panels=group_panels, part_panels=part_panels,
        parts=parts, out_depth=depth.out, out_height=height.out, out_width=row.out, block_rows=block_rows,
        row_blocks=row_blocks, block_columns=block_columns, column_blocks=column_blocks, rows=rows, row_cells=row_cells,
        y_start=depth.start * y_depth + height.start * y_row + row.start, y_image=g.groups * filters * y_filter,
        y_filter=y_filter, y_depth=depth.step * y_depth, y_row=height.step * y_row, y_step=row.step,
    )  # fmt: skip
    work = blocks * block_rows * block_columns * filters * len(offsets)
    used = width(multiply.pieces, work)
    panel_cells = g.groups * group_panels * len(offsets) * lanes * vectors
    no_bias = np.zeros(g.groups * group_panels * lanes * vectors, wide)
    size = (panel_cells + used * slot_size) * itemsize
    return Correlation(
        pack, multiply, offsets, np.array(depth.taps, np.int64), sources, no_bias, panel_cells, used, size
    )


def _block(axes: Axes, line_bytes: int, pixels: int) -> tuple[int, int]:
    """Rows and columns of outputs whose input fits ``BLOCK_BYTES``."""
    _, height, row = axes
    rows, columns = height.out, row.out

    def size() -> int:
        return line_bytes * ((rows - 1) * height.stride + height.window) * _row_cells(row, columns, pixels)

    while rows > 1 and size() > BLOCK_BYTES:
        rows = -(-rows // 2)
    while columns > 4 * pixels and size() > BLOCK_BYTES:
        columns = -(-columns // 2 // pixels) * pixels
    return rows, columns


def _row_cells(row: Axis, columns: int, pixels: int) -> int:
    """Input cells of a row of so many outputs, at least of half a tile."""
    return (max(columns, pixels // 2) - 1) * row.stride + row.window


def _taps(
    axes: Axes, g: Geometry, transposed: bool, channels: int, rows: int, row_cells: int
) -> tuple[np.ndarray, np.ndarray]:
    """For each tap (channel, kernel index): its offset in a block's input, and in a filter's weights."""
    depth, height, row = axes
    kernel = (1,) * (3 - g.axes) + g.kernel
    channel_stride = math.prod(kernel) * (g.channels // g.groups if transposed else 1)
    offsets, sources = [], []
    for c in range(channels):
        for (j, d), (h, u), (v, i) in itertools.product(
            enumerate(depth.weights), zip(height.taps, height.weights), zip(row.taps, row.weights)
        ):
            offsets.append(((c * len(depth.taps) + j) * rows + h) * row_cells + v)
            sources.append(c * channel_stride + (d * kernel[1] + u) * kernel[2] + i)
    return np.array(offsets, np.int64), np.array(sources, np.int64)


def _run(g: Geometry, phase: int, x: np.ndarray, w: np.ndarray, b: Any, out: np.ndarray) -> bool:
    """Run one correlation. True if all weights are finite."""
    x, w = np.ascontiguousarray(x), np.ascontiguousarray(w)
    job = _correlation(g, phase, dtype_name(x.dtype), dtype_name(out.dtype), get_threads())
    bias = job.no_bias
    if b is not None:
        bias = np.zeros_like(bias)
        bias.reshape(g.groups, -1)[:, : len(b) // g.groups] = b.reshape(g.groups, -1)
    checks = np.empty_like(bias)
    with memory.workspace(job.size) as space:
        job.pack.run(
            width(job.pack.pieces, job.panel_cells), w=address(w), out=space, checks=address(checks), sources=address(job.sources)
        )  # fmt: skip
        job.multiply.run(
            job.threads, x=address(x), weights=space, bias=address(bias), y=address(out),
            workspace=space + job.panel_cells * bias.itemsize, offsets=address(job.offsets), depth_cells=address(job.depth_cells),
        )  # fmt: skip
    return bool(np.isfinite(checks).all())
