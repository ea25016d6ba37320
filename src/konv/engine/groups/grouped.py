"""Groups of few filters (depthwise above all), the input gradients of few channels, and first layers: pixels in lanes.

The same axes and phases as in :mod:`konv.engine.direct.direct`; another tile, in which a vector is a run of neighbouring pixels.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from konv.arrays import all_finite, known_layout
from konv.engine import columns, roofline
from konv.engine.addresses import OnAddresses
from konv.engine.direct import direct
from konv.engine.groups import depthwise, depthwise_fixed, depthwise_long, depthwise_rows, depthwise_spread
from konv.engine.groups.axes import FORWARD, Axis, forward_axes, gradient_axes, gradient_phases, leaves_cells
from konv.engine.groups.planes import correlate_planes
from konv.engine.groups.planes_outer import accumulate_planes
from konv.engine.groups.planes_tile import ANYWHERE, NEIGHBOURS
from konv.engine.launch import Job, address
from konv.engine.machine import dtype_name, machine, wide_type, widened
from konv.engine.simd import ITEMSIZE
from konv.engine.threads import get_threads, width
from konv.geometry import Geometry

if TYPE_CHECKING:
    from konv.engine.plan import Problem

NAME = "grouped"
MOST_FILTERS = 8  # of 32 that the other tile computes at once,
MOST_FILTERS_GROUPED = 16  # and as many of a kernel of at most 3 x 3; of 7 pixels in a row the other tile is faster
# Where the other tile has little to do between loads and stores: 1.5 to 2 times as fast.
FEW_CHANNELS, MOST_FILTERS_FEW = 3, 64
MOST_ROWS, MOST_COLUMNS = 7, 32  # of a kernel whose taps are unrolled
MOST_NEIGHBOURS = 32  # columns whose masks are made together
PIECE_CELLS = 32 << 10  # outputs of a piece, where it is more than one plane
BLOCK_BYTES, LEAST_PIECES = 64 << 10, 32  # of a weight gradient: what it reads several times stays in L2
PRODUCTS = 192  # summed in one accumulator before they are added to another: the error falls
# Depthwise arrays that L3 does not hold are read nearly in the order of memory, or its prefetcher gives up: tiles of one row
# where a stride is 2 and the kernel small, else of two. 96@112, 3 x 3: 2.5 ms instead of 3.7, of stride 2 1.1 instead of 2.0,
# weight gradients 2.6 instead of 3.6, 1.7 instead of 2.4. Of arrays that L3 holds two rows cost up to 1.2 times as much.
FAR_BYTES, FAR_TAPS = 32 << 20, 5


def declines(problem: Problem) -> str | None:
    """Where filters (in the role they play) fill the lanes of the direct tile, that one is faster."""
    g = problem.geometry
    filters, channels = g.filters // g.groups, g.channels // g.groups
    if problem.layout == "last" and (filters != channels or machine().lanes(problem.dtype) % channels):
        return f"channels last, groups of {channels} x {filters}: it takes as many filters as channels, which divide the lanes"
    if problem.kind == "weight_gradient":
        if g.groups < 4 or max(filters, channels) > MOST_FILTERS:
            return f"{g.groups} groups of {channels} x {filters}; it takes 4 or more of at most {MOST_FILTERS} x {MOST_FILTERS}"
        return None
    role, summed = (filters, channels) if problem.kind == "forward" else (channels, filters)
    if role > MOST_FILTERS and not _small(problem, role, summed):
        return f"{role} filters in a group fill the lanes of the direct tile; it computes at most {MOST_FILTERS}"
    return direct.declines(problem)


def _small(problem: Problem, filters: int, channels: int) -> bool:
    """Whether more filters than ``MOST_FILTERS`` are faster here: unit stride, and few products to sum."""
    g = problem.geometry
    plain = problem.layout == "first" and filters % 4 == 0 and max(g.stride + g.dilation) == 1
    if not plain or channels * math.prod(g.kernel) > PRODUCTS or machine().registers < 32:
        return False
    if channels <= FEW_CHANNELS:
        return filters <= MOST_FILTERS_FEW and max(g.kernel) <= MOST_COLUMNS
    row = g.output[-1] if problem.kind == "forward" else g.spatial[-1]
    short = g.axes == 1 or row <= machine().lanes(problem.dtype) // 2  # bits of 1-D layers do not depend on the length
    return g.groups > 1 and filters <= MOST_FILTERS_GROUPED and max(g.kernel) <= 3 and not short


def workspace(problem: Problem) -> int:
    """Bytes of the weights in the kernel's order, or of partial sums."""
    g, dtype = problem.geometry, problem.dtype
    itemsize = np.dtype(wide_type(dtype)).itemsize
    if problem.kind == "weight_gradient" and depthwise_long.takes(g, problem.layout):
        return depthwise_long.workspace(g, dtype)
    if problem.layout == "last" and depthwise_rows.takes(g):
        return depthwise_rows.workspace(g, dtype, problem.kind)
    if problem.layout == "last":
        if problem.kind == "weight_gradient":
            return math.prod(depthwise.accumulation(g, dtype).sums) * itemsize
        return depthwise.weights_size(g, dtype, problem.kind == "input_gradient") * itemsize
    if depthwise_fixed.takes(g, dtype, problem.kind):
        return depthwise_fixed.workspace(g, dtype, problem.kind)
    if problem.kind == "weight_gradient":
        return math.prod(_accumulation(g, dtype, get_threads()).sums) * itemsize
    transposed = problem.kind == "input_gradient"
    if transposed and depthwise_spread.takes(g):
        return widened(g.w_shape, dtype)
    plans = _correlations(g, transposed, dtype, dtype, get_threads())
    return max((plan.taps.size * itemsize for plan in plans), default=0)


def forward(x: np.ndarray, w: np.ndarray, b: np.ndarray | None, g: Geometry, out: np.ndarray) -> None:
    """Write conv(x, w) + b into ``out`` (N, F, *output)."""
    if not all_finite(w):  # padding that is left out, times infinity, would have been NaN
        columns.forward(x, w, b, g, out)
    elif known_layout(x, out) == "last":
        if depthwise_rows.takes(g):
            depthwise_rows.correlate(x, w, b, g, False, out)
        else:
            depthwise.correlate(g, FORWARD, x, w, b, out)
    elif depthwise_fixed.takes(g, dtype_name(x.dtype), "forward"):
        depthwise_fixed.correlate(x, w, b, g, False, out)
    else:
        _run(g, x, w, b, out, False)


def input_gradient(dy: np.ndarray, w: np.ndarray, g: Geometry, out: np.ndarray) -> None:
    """Write dL/dx (N, C, *spatial) into ``out``."""
    # A zero of dy's padding times infinity would be NaN, where the textbook's sum has no such term.
    if not all_finite(w):
        columns.input_gradient(dy, w, g, out)
        return
    layout = known_layout(dy, out)
    if layout == "last" and depthwise_rows.takes(g):
        depthwise_rows.correlate(dy, w, None, g, True, out)
        return
    if layout == "first" and depthwise_fixed.takes(g, dtype_name(dy.dtype), "input_gradient"):
        depthwise_fixed.correlate(dy, w, None, g, True, out)
        return
    if layout == "first" and depthwise_spread.takes(g):
        depthwise_spread.input_gradient(dy, w, g, out)
        return
    if leaves_cells(g):
        out[...] = 0
    if layout == "last":
        for phase in gradient_phases(g):
            depthwise.correlate(g, phase, dy, w, None, out)
    else:
        _run(g, dy, w, None, out, True)


def on_addresses(problem: Problem) -> OnAddresses | None:
    """See :func:`konv.engine.plan.on_addresses`: what is compiled for the size of its planes."""
    g, dtype, backwards = problem.geometry, problem.dtype, problem.kind == "input_gradient"
    if (
        problem.layout == "last"
        or problem.kind == "weight_gradient"
        or not depthwise_fixed.takes(g, dtype, problem.kind)
    ):
        return None
    plan = depthwise_fixed.correlation(g, backwards, dtype, dtype, get_threads())
    return OnAddresses(functools.partial(depthwise_fixed.launch, plan), finite_weights=True)


def weight_gradient(dy: np.ndarray, x: np.ndarray, g: Geometry, out: np.ndarray) -> None:
    """Write dL/dw (F, C // groups, *kernel) into ``out``."""
    weight_and_bias_gradient(dy, x, g, out, np.empty(g.filters, out.dtype))


def weight_and_bias_gradient(dy: np.ndarray, x: np.ndarray, g: Geometry, out: np.ndarray, db: np.ndarray) -> None:
    """Write dL/dw (F, C // groups, *kernel) into ``out`` and dL/db (F,) into ``db``: dy is read once."""
    layout = known_layout(x, dy)
    if depthwise_long.takes(g, layout):
        depthwise_long.weight_and_bias_gradient(dy, x, g, out, db)
        return
    if layout == "last":
        (depthwise_rows if depthwise_rows.takes(g) else depthwise).weight_and_bias_gradient(dy, x, g, out, db)
        return
    if depthwise_fixed.takes(g, dtype_name(x.dtype), "weight_gradient"):
        depthwise_fixed.weight_and_bias_gradient(dy, x, g, out, db)
        return
    plan = _accumulation(g, dtype_name(x.dtype), get_threads())
    parts, weights = plan.sums
    wide = wide_type(dtype_name(x.dtype))
    sums, biases = np.empty((parts, weights), wide), np.empty((parts, g.filters), wide)
    plan.job.run(plan.threads, x=address(x), dy=address(dy), sums=address(sums), biases=address(biases))
    out[...] = (sums.sum(axis=0) if parts > 1 else sums).reshape(g.w_shape)
    db[...] = biases.sum(axis=0)


@dataclass(frozen=True)
class Correlation:
    """A prepared job of :func:`correlate_planes`; ``taps`` are indices into w, in the kernel's order."""

    job: Job
    threads: int
    taps: np.ndarray
    no_bias: np.ndarray


def _run(g: Geometry, x: np.ndarray, w: np.ndarray, b: Any, out: np.ndarray, transposed: bool) -> None:
    for plan in _correlations(g, transposed, dtype_name(x.dtype), dtype_name(out.dtype), get_threads()):
        weights = w.take(plan.taps).astype(plan.no_bias.dtype, copy=False)
        bias = plan.no_bias if b is None else np.ascontiguousarray(b, plan.no_bias.dtype)
        plan.job.run(plan.threads, x=address(x), weights=address(weights), bias=address(bias), y=address(out))


@functools.lru_cache(maxsize=512)
def _correlations(g: Geometry, transposed: bool, x_dtype: str, y_dtype: str, threads: int) -> list[Correlation]:
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


def _correlation(g: Geometry, axes: Any, transposed: bool, x_dtype: str, y_dtype: str, threads: int) -> Correlation:
    depth, height, row = axes
    first, wide = row[0], wide_type(x_dtype)
    group_channels, group_filters = g.channels // g.groups, g.filters // g.groups
    channels, filters = (group_filters, group_channels) if transposed else (group_channels, group_filters)
    woven = _woven(row, x_dtype, y_dtype)
    tile_filters = next(n for n in (2 if woven else 4, 2, 1) if filters % n == 0)
    columns_of_set = -(-first.out // (1 + woven))
    lanes = _lanes(x_dtype, columns_of_set)
    shared = len(height.taps) if height.stride <= 2 and _neighbours(height) and len(height.taps) <= MOST_ROWS else 1
    rows, vectors = _tile(height.out, columns_of_set // lanes, tile_filters * len(row))
    if channels == filters == 1 and len(height.taps) <= FAR_TAPS and _array_bytes(g, x_dtype) > FAR_BYTES:
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
    return Correlation(job, width(job.pieces, work), taps, np.zeros(g.groups * filters, wide))


def _woven(row: tuple[Axis, ...], x_dtype: str, y_dtype: str) -> bool:
    """Whether even and odd columns are apart: in bfloat16, of more than one vector, and with taps that are unrolled."""
    first = row[0]
    plain = len(row) == first.stride == first.step == 1 and _neighbours(first) and len(first.taps) < MOST_COLUMNS
    halves = x_dtype == y_dtype == "bfloat16" and machine().dots
    return plain and halves and first.out > machine().lanes(x_dtype)


def _neighbours(axis: Axis) -> bool:
    return all(b == a + 1 for a, b in itertools.pairwise(axis.taps))


def _near(rows: tuple[Axis, ...], lanes: int) -> bool:
    """Whether windows of stride 1 reach at most a vector beyond the ends of a row, in each set of columns."""
    out = max(row.out for row in rows)
    return all(max(row.pad, out + row.window - 1 - row.pad - row.length) <= lanes for row in rows)


def _taps_wide(rows: tuple[Axis, ...]) -> tuple[int, ...]:
    """How the kernel is compiled for the taps of each set of columns: all unrolled, or none."""
    neighbours, stride = all(map(_neighbours, rows)), rows[0].stride
    if neighbours and stride <= 2 and all(len(row.taps) <= MOST_COLUMNS for row in rows):
        return tuple(len(row.taps) for row in rows)
    some = neighbours and stride == 1 and all(len(row.taps) <= MOST_NEIGHBOURS for row in rows)
    return (NEIGHBOURS if some else ANYWHERE,) * len(rows)


def _tile(height: int, whole_vectors: int, sums: int) -> tuple[int, int]:
    """(rows, vectors) of a tile: of rows those that compute fewest twice, and among them the most."""
    most = (8 if machine().registers >= 32 else 4) // min(sums, 2)
    if height == 1:
        return 1, max(n for n in (8, 4, 2, 1) if n <= max(1, min(most, whole_vectors)))
    return min((n for n in (8, 7, 4, 2, 1) if n <= min(most, height)), key=lambda n: -(-height // n) * (n + 2)), 1


def _array_bytes(g: Geometry, dtype: str) -> int:
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


@dataclass(frozen=True)
class Accumulation:
    """A prepared job of :func:`accumulate_planes`, and the shape of its sums."""

    job: Job
    threads: int
    sums: tuple[int, int]


@functools.lru_cache(maxsize=256)
def _accumulation(g: Geometry, dtype: str, threads: int) -> Accumulation:
    depth, height, row = forward_axes(g)
    woven = row.out % 2 == 0 and _woven((row,), dtype, dtype)
    columns_of_set = row.out // (1 + woven)
    lanes = _lanes(dtype, columns_of_set)
    channels, filters, kernel = g.channels // g.groups, g.filters // g.groups, math.prod(g.kernel)
    shared = len(height.taps) if height.stride <= 2 and _neighbours(height) and len(height.taps) <= MOST_ROWS else 1
    neighbours = _neighbours(row) and row.stride <= 2
    columns = min(len(row.taps), {1: 8, 2: 4, 3: 3, 4: 3, 5: 3}.get(shared, 2)) if neighbours else 1
    tile_filters = 2 if filters % 2 == 0 and shared * columns <= 9 and machine().registers >= 32 else 1
    heights = (7, 4, 1) if tile_filters == 1 and (not woven or shared * columns <= 9) else (4, 1)
    rows = min((n for n in heights if n <= height.out), key=lambda n: height.out // n * (n + 2) + height.out % n * 3)
    if channels == filters == 1 and len(height.taps) <= FAR_TAPS and 3 * _array_bytes(g, dtype) > 2 * FAR_BYTES:
        rows = min(rows, 2)  # x and dy, and commonly dx was written just before
    sources = np.array(
        [
            (
                c,
                d - depth.pad,
                u - height.pad,
                c * kernel + (depth.weights[i] * len(height.taps) + j * shared) * len(row.taps),
            )
            for c, (i, d), (j, u) in itertools.product(
                range(channels), enumerate(depth.taps), enumerate(height.taps[::shared])
            )
        ],
        np.int64,
    )
    image_bytes = (channels * math.prod(g.spatial) + filters * math.prod(g.output)) * ITEMSIZE[dtype]
    part_images = max(1, min(g.batch, g.batch * g.groups // LEAST_PIECES))
    if filters * len(sources) > 1 or len(row.taps) > columns:
        part_images = max(1, min(part_images, BLOCK_BYTES // image_bytes))
    parts = max(1, -(-g.batch // part_images))
    group_chunk = max(1, g.groups * parts // (8 * threads))
    # What comes next: the next image's plane, or after the last one the next channel's of the first. In small groups, which
    # read their planes several times, the plane behind this one.
    planes = channels * math.prod(g.spatial), filters * math.prod(g.output)
    if filters * channels == 1:
        ahead = [g.groups * size for size in planes]
        around = [size - (part_images - 1) * next_image for size, next_image in zip(planes, ahead)]
    else:
        ahead = around = [planes[0] // channels, tile_filters * planes[1] // filters]
    row_vectors = -(-columns_of_set // lanes) * (1 + woven)
    chunk_rows = max(1, PRODUCTS // row_vectors // rows) * rows
    block_images = max(1, PRODUCTS // (row_vectors * height.out * depth.out))
    job = Job(
        accumulate_planes(
            dtype, lanes, tile_filters, rows, shared, columns, height.stride, row.stride if row.stride <= 2 else 0,
            woven, depth.length * height.length > 1,
        ),
        parts * -(-g.groups // group_chunk), images=g.batch, part_images=part_images, block_images=block_images,
        chunk_rows=chunk_rows, groups=g.groups, group_chunk=group_chunk, group_channels=channels, group_filters=filters,
        source_count=len(sources), x_depth=depth.length, x_height=height.length, x_width=row.length, step=row.stride,
        depth_step=depth.stride, out_depth=depth.out, out_height=height.out, out_width=row.out, taps=len(row.taps),
        dilation=g.dilation[-1], pad=row.pad, kernel_size=kernel,
        x_ahead=ahead[0], dy_ahead=ahead[1], x_around=around[0], dy_around=around[1],
        zeros=np.zeros(row.length * 8, np.uint8), sources=sources,
    )  # fmt: skip
    return Accumulation(job, width(job.pieces, g.flops // 2), (parts, math.prod(g.w_shape)))


def _lanes(dtype: str, row: int) -> int:
    """Half vectors where a row is no longer than one."""
    lanes = machine().lanes(dtype)
    return lanes // 2 if row <= lanes // 2 and lanes > 4 else lanes


def blocking(problem: Problem) -> str:
    """Tile and pieces, in words."""
    g, dtype = problem.geometry, problem.dtype
    if problem.kind == "weight_gradient" and depthwise_long.takes(g, problem.layout):
        return depthwise_long.blocking(g, dtype)
    if problem.layout == "last":
        return (depthwise_rows if depthwise_rows.takes(g) else depthwise).blocking(g, dtype, problem.kind)
    if depthwise_fixed.takes(g, dtype, problem.kind):
        return depthwise_fixed.blocking(g, dtype, problem.kind)
    if problem.kind == "weight_gradient":
        plan = _accumulation(g, dtype, get_threads())
        n = plan.job.numbers
        return (
            f"rows of dy times rows of x, {_lanes(dtype, g.output[-1])} pixels in a vector; {n['group_chunk']} groups of "
            f"{n['part_images']} images a piece; {plan.job.cut(plan.threads)}"
        )
    plans = _correlations(g, problem.kind == "input_gradient", dtype, dtype, get_threads())
    if plans and problem.kind == "input_gradient" and depthwise_spread.takes(g):
        return depthwise_spread.blocking(g, dtype)
    if not plans:
        return "nothing to compute"
    n = plans[0].job.numbers
    vector = _lanes(dtype, n["out_width"])
    return (
        f"{vector} pixels of a row in a vector; {n['chunk']} planes of at most {n['block_rows']} x {n['out_width']} outputs "
        f"a piece; {plans[0].job.cut(plans[0].threads)}" + (f", {len(plans)} times" if len(plans) > 1 else "")
    )


def share(problem: Problem) -> float:
    """Of the limit; see :mod:`konv.engine.roofline`. Little is computed with a number that is read: reading counts."""
    g = problem.geometry
    row = g.spatial[-1] if problem.kind == "input_gradient" else g.output[-1]
    lanes = _lanes(problem.dtype, row)
    done = roofline.padding(row, lanes) if problem.layout == "first" else roofline.padding(g.channels, lanes)
    if problem.kind == "weight_gradient":
        return roofline.share(problem, done, speed=0.65, moving=2, storing=0)
    return roofline.share(problem, done, speed=0.8, moving=1.25, storing=2)
