"""Pixels in lanes, channels first: the jobs of forward and input gradient, see :mod:`konv.engine.groups.planes`.

What an output reads comes phase by phase from :mod:`konv.engine.groups.axes`: of an input gradient with a stride each phase of
rows is a job; the phases of a row are computed together where there are two.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from konv.engine.groups.axes import Axis, forward_axes, gradient_axes
from konv.engine.groups.planes import correlate_planes
from konv.engine.groups.planes_tile import ANYWHERE, NEIGHBOURS
from konv.engine.launch import Job
from konv.engine.machine import dtype_name, machine
from konv.engine.prepared import Prepared, prepared
from konv.engine.simd import ITEMSIZE
from konv.engine.threads import get_threads
from konv.geometry import Geometry

MOST_ROWS, MOST_COLUMNS = 7, 32  # of a kernel whose taps are unrolled
MOST_NEIGHBOURS = 32  # columns whose masks are made together
PIECE_CELLS = 32 << 10  # outputs of a piece, where it is more than one plane
# Wide depthwise planes, where x and y are not held by L3 or are half of it, are read nearly in the order of memory, or its
# prefetcher gives up: two rows together, one where a stride is 2 and the kernel small. On two cores of an AMD Zen 4: 144@56
# 0.42 ms instead of 0.52 of four rows, 32@112 0.48 instead of 0.79; of 13 MB and less more rows are 1.1 to 1.2 times as fast.
# To ask for what comes next, of x and of y, took 1.1 to 1.3 times as long wherever memory binds; of small groups, whose planes
# are read several times, and in weight gradients it still gains a tenth.
FAR_BYTES, FAR_TAPS, FAR_ROW_BYTES = 16 << 20, 5, 128


def correlate(x: np.ndarray, w: np.ndarray, b: Any, g: Geometry, transposed: bool, out: np.ndarray) -> None:
    """Forward, or ``transposed`` the input gradient, of which cells that no output reads are left as they are."""
    for plan in correlations(g, transposed, dtype_name(x.dtype), dtype_name(out.dtype), get_threads()):
        plan.run(x=x, weights=plan.weights(w), bias=plan.bias(b), y=out)


def launcher(g: Geometry, transposed: bool, dtype: str, threads: int) -> Callable[[int, int, int, int], None]:
    """:func:`correlate` of addresses, not of half types: run(x, w, b or 0, out)."""
    plans = correlations(g, transposed, dtype, dtype, threads)
    memory_of_weights = ctypes.c_char * (math.prod(g.w_shape) * ITEMSIZE[dtype])

    def run(x: int, w: int, b: int, out: int) -> None:
        weights = np.frombuffer(memoryview(memory_of_weights.from_address(w)), dtype)
        for plan in plans:
            plan.run(x=x, weights=plan.weights(weights), bias=b or plan.no_bias, y=out)

    return run


@functools.lru_cache(maxsize=512)
def correlations(g: Geometry, transposed: bool, x_dtype: str, y_dtype: str, threads: int) -> list[Prepared]:
    """The jobs that compute anything: one, or one for each phase of rows."""
    return [_correlation(g, axes, transposed, x_dtype, y_dtype, threads) for axes in _axes(g, transposed)]


def _axes(g: Geometry, transposed: bool) -> tuple[Any, ...]:
    """(depth, height, sets of columns) of each correlation."""
    if not transposed:
        depth, height, row = forward_axes(g)
        return ((depth, height, (row,)),)
    phases, stride = [tuple(axis.ascending for axis in axes) for axes in gradient_axes(g)], g.stride[-1]
    found = []
    for i in range(0, len(phases), stride):
        depth, height, _ = phases[i]
        rows = [row for _, _, row in phases[i : i + stride]]
        if stride == 2:
            together = [tuple(sorted(rows, key=lambda row: row.start))]
        else:
            together = [(row,) for row in rows if row.taps]
        found += [
            (depth, height, row)
            for row in together
            if depth.taps and height.taps and depth.out and height.out and row[0].out
        ]
    return tuple(found)


def _correlation(g: Geometry, axes: Any, transposed: bool, x_dtype: str, y_dtype: str, threads: int) -> Prepared:
    depth, height, row = axes
    first = row[0]
    group_channels, group_filters = g.channels // g.groups, g.filters // g.groups
    channels, filters = (group_filters, group_channels) if transposed else (group_channels, group_filters)
    woven = woven_row(row, x_dtype, y_dtype)
    tile_filters = next(n for n in (2 if woven else 4, 2, 1) if filters % n == 0)
    columns_of_set = -(-first.out // (1 + woven))
    lanes = lanes_of(x_dtype, columns_of_set)
    shared = rows_shared(height)
    rows, vectors = _tile(height.out, columns_of_set // lanes, tile_filters * len(row))
    wide_rows = sum(a.out for a in row) * ITEMSIZE[y_dtype] > FAR_ROW_BYTES
    if channels == filters == 1 and len(height.taps) <= FAR_TAPS and wide_rows and array_bytes(g, x_dtype) > FAR_BYTES:
        rows = min(rows, 1 if height.stride * height.step == 2 and len(height.taps) <= 3 else 2)
    sources = np.array(
        [
            (c, d - depth.pad, u - height.pad)
            for c, d, u in itertools.product(range(channels), depth.taps, height.taps[::shared])
        ],
        np.int64,
    )
    columns = np.cumsum([0, *(len(a.taps) for a in row)], dtype=np.int64)
    shifts = np.array([tap - a.pad for a in row for tap in a.taps] + [0], np.int64)
    width_out = sum(a.out for a in row)
    lines = g.batch * g.groups * depth.out
    blocks = _row_blocks(lines, height.out, rows)
    block_rows = -(-height.out // blocks // rows) * rows
    row_blocks = -(-height.out // block_rows)
    chunk = max(1, min(-(-lines // (8 * threads)), PIECE_CELLS // max(1, height.out * width_out)))
    spatial = (1,) * (3 - g.axes) + (g.spatial if transposed else g.output)
    y_row, y_depth, y_filter = spatial[2], spatial[1] * spatial[2], math.prod(spatial)
    job = Job(
        correlate_planes(
            x_dtype, y_dtype, lanes, (tile_filters, rows, vectors), shared, _taps_wide(row),
            (height.stride, first.stride if first.stride <= 2 else 0), len(row) == 2 or first.step == 1, len(sources) == 1,
            woven,
            vectors > 1 and first.stride == 1 and not woven and _near(row, lanes),
        ),
        -(-lines // chunk) * row_blocks, lines=lines, chunk=chunk, groups=g.groups, source_count=len(sources),
        taps=int(columns[-1]), filter_blocks=filters // tile_filters, group_channels=channels, x_depth=depth.length,
        x_height=height.length, x_width=first.length, step=first.stride, depth_step=depth.stride, out_depth=depth.out,
        out_height=height.out, out_width=width_out, row_blocks=row_blocks, block_rows=block_rows,
        y_start=depth.start * y_depth + height.start * y_row + first.start,
        y_filter=y_filter, y_depth=depth.step * y_depth, y_row=height.step * y_row, y_step=first.step,
        zeros=np.zeros(first.length * 8, np.uint8), shifts=shifts, columns=columns, sources=sources,
    )  # fmt: skip
    work = lines * height.out * width_out * filters * len(sources) * shared * int(columns[-1])
    taps = _taps(g, axes, transposed, channels, filters, tile_filters, shared)
    return prepared(job, work, 0, x_dtype, g.groups * filters, taps=taps)


def woven_row(row: tuple[Axis, ...], x_dtype: str, y_dtype: str) -> bool:
    """Whether even and odd columns are apart: in bfloat16, of more than one vector, and with taps that are unrolled."""
    first = row[0]
    plain = len(row) == first.stride == first.step == 1 and neighbours(first) and len(first.taps) < MOST_COLUMNS
    halves = x_dtype == y_dtype == "bfloat16" and machine().dots
    return plain and halves and first.out > machine().lanes(x_dtype)


def neighbours(axis: Axis) -> bool:
    """Whether the axis' taps follow each other."""
    return all(b == a + 1 for a, b in itertools.pairwise(axis.taps))


def rows_shared(height: Axis) -> int:
    """Rows of the kernel that are taken together: all, or one."""
    return len(height.taps) if height.stride <= 2 and neighbours(height) and len(height.taps) <= MOST_ROWS else 1


def _near(rows: tuple[Axis, ...], lanes: int) -> bool:
    """Whether windows of stride 1 reach at most a vector beyond the ends of a row, in each set of columns."""
    out = max(row.out for row in rows)
    return all(max(row.pad, out + row.window - 1 - row.pad - row.length) <= lanes for row in rows)


def _taps_wide(rows: tuple[Axis, ...]) -> tuple[int, ...]:
    """How the kernel is compiled for the taps of each set of columns: all unrolled, or none."""
    follow, stride = all(map(neighbours, rows)), rows[0].stride
    if follow and stride <= 2 and all(len(row.taps) <= MOST_COLUMNS for row in rows):
        return tuple(len(row.taps) for row in rows)
    some = follow and stride == 1 and all(len(row.taps) <= MOST_NEIGHBOURS for row in rows)
    return (NEIGHBOURS if some else ANYWHERE,) * len(rows)


def _tile(height: int, whole_vectors: int, sums: int) -> tuple[int, int]:
    """(rows, vectors) of a tile: of rows those that compute fewest twice, and among them the most."""
    most = (8 if machine().registers >= 32 else 4) // min(sums, 2)
    if height == 1:
        return 1, max(n for n in (8, 4, 2, 1) if n <= max(1, min(most, whole_vectors)))
    return min((n for n in (8, 7, 4, 2, 1) if n <= min(most, height)), key=lambda n: -(-height // n) * (n + 2)), 1


def array_bytes(g: Geometry, dtype: str) -> int:
    """Of x and y."""
    return g.batch * (g.channels * math.prod(g.spatial) + g.filters * math.prod(g.output)) * ITEMSIZE[dtype]


def _row_blocks(lines: int, height: int, rows: int) -> int:
    """In how many blocks of rows a plane is cut: more than one where there are few planes."""
    return max(1, min(-(-height // rows), -(-64 // max(1, lines)))) if height >= 64 else 1


def _taps(g: Geometry, axes: Any, transposed: bool, channels: int, filters: int, tile: int, shared: int) -> np.ndarray:
    """Indices into w (F, C // groups, *kernel), flat: [group][block of filters][source][column][row of the source][filter]."""
    depth, height, row = axes
    kernel = (1,) * (3 - g.axes) + g.kernel
    columns = np.array([i for a in row for i in a.weights], np.int64)
    rows = np.array(height.weights, np.int64).reshape(-1, shared)
    group, block, channel, d, source, column, u, filter_ = np.ix_(
        *map(np.arange, (g.groups, filters // tile, channels, len(depth.taps), len(rows), len(columns), shared, tile))
    )
    f = block * tile + filter_
    group_channels, group_filters = g.channels // g.groups, g.filters // g.groups
    outer, inner = (channel, f) if transposed else (f, channel)
    cell = (np.array(depth.weights, np.int64)[d] * kernel[1] + rows[source, u]) * kernel[2] + columns[column]
    return (((group * group_filters + outer) * group_channels + inner) * math.prod(kernel) + cell).reshape(-1)


def lanes_of(dtype: str, row: int) -> int:
    """Half vectors where a row is no longer than one."""
    lanes = machine().lanes(dtype)
    return lanes // 2 if row <= lanes // 2 and lanes > 4 else lanes
