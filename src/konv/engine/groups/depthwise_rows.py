"""Depthwise layers with two axes on channels-last arrays: the jobs of :mod:`konv.engine.groups.depthwise_rows_kernels`, and of
:mod:`konv.engine.groups.depthwise_sliding_kernels` where arrays are near.

Two threads at the channels of one image wait for each other's cache lines: 960@7 took .15 ms where images are apart .06. Fewer
tiles a piece where spans are many gained nothing (768@7 .153 and .141).
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from konv.arrays import all_finite
from konv.engine import columns, memory
from konv.engine.groups.axes import gradient_phases
from konv.engine.groups.depthwise_rows_kernels import accumulate_rows, add_taps, correlate_rows, lay_taps
from konv.engine.groups.depthwise_sliding_kernels import correlate_sliding
from konv.engine.launch import Job, address
from konv.engine.machine import dtype_name, machine, wide_type
from konv.engine.simd import ITEMSIZE
from konv.engine.threads import get_threads, width
from konv.geometry import Geometry

MOST_TAPS, MOST_STRIDE = 9, 8  # of a column of the kernel: unrolled
MOST_COLUMNS = 32  # of the kernel, in a table
# Of weights, or of their sums, of a span of channels, where an image is near. Whole pixels are read fastest, except with many
# taps: 768@7, 7 x 7, .14 ms instead of .18, but 96@56 1.2 instead of 1.1.
SPAN_BYTES, NEAR_BYTES, MANY_TAPS = 8 << 10, 640 << 10, 36
# Rows and columns of kernels that slide; their open sums, where there are 32 registers or fewer.
SLIDING, OPEN_SUMS, FEW_OPEN_SUMS = 3, 21, 9
# They slide where x and y together, or a row, are near. Images of at most so many rows, which may be one tile, always: tiles that
# are a whole image add no zeros of rows outside, and no sample's bits depend on the batch.
SLIDING_BYTES, SLIDING_ROW, MOST_ROWS = 16 << 20, 16 << 10, 8
PIECE_CELLS = 32 << 10  # outputs of a piece, where it is more than one row
LEAST_PIECES = 16
# Pixels of a row whose products are added one by one to a sum: so the error stays small. A row is not cut: of a longer one, which
# is a part by itself, all are.
MOST_ADDED = 1024

Meets = tuple[tuple[int, int, int], ...]


def takes(g: Geometry) -> bool:
    """Whether these are the jobs of a layer."""
    small = g.axes == 2 and g.kernel[0] <= MOST_TAPS and g.stride[0] <= MOST_STRIDE and g.kernel[1] <= MOST_COLUMNS
    return small and g.groups == g.channels == g.filters


@dataclass(frozen=True)
class Rows:
    """A prepared job, its threads, lanes and rows of a tile."""

    job: Job
    threads: int
    lanes: int
    tile: int


@dataclass(frozen=True)
class Correlation(Rows):
    """With zeros for its bias, and the job that lays w out, into so many bytes."""

    no_bias: np.ndarray
    lay: Job
    size: int


@dataclass(frozen=True)
class Accumulation(Rows):
    """With how many sums it leaves, the job that adds them, and their bytes."""

    parts: int
    add: Job
    size: int


def correlate(
    x: np.ndarray, w: np.ndarray, b: np.ndarray | None, g: Geometry, backwards: bool, out: np.ndarray
) -> None:
    """Forward, or with ``backwards`` the input gradient."""
    plan = correlation(g, backwards, dtype_name(x.dtype), dtype_name(out.dtype), get_threads())
    bias = plan.no_bias if b is None else np.ascontiguousarray(b, plan.no_bias.dtype)
    launch(plan, address(x), address(w), address(bias), address(out))


def launch(plan: Correlation, x: int, w: int, b: int, out: int) -> None:
    """The same of what lies at these addresses, b of the type that sums have; 0: none."""
    with memory.workspace(plan.size) as weights:
        plan.lay.run(1, w=w, out=weights)
        plan.job.run(plan.threads, x=x, weights=weights, bias=b or address(plan.no_bias), y=out)


def weight_and_bias_gradient(dy: np.ndarray, x: np.ndarray, g: Geometry, out: np.ndarray, db: np.ndarray) -> None:
    """Write dL/dw (C, 1, *kernel) into ``out`` and dL/db (C,) into ``db``."""
    plan = accumulation(g, dtype_name(x.dtype), get_threads())
    wide = wide_type(dtype_name(x.dtype))
    biases = np.empty((plan.parts, g.channels), wide)
    with memory.workspace(plan.size) as sums:
        plan.job.run(plan.threads, x=address(x), dy=address(dy), sums=sums, biases=address(biases))
        plan.add.run(1, sums=sums, out=address(out))
    db[...] = biases.sum(axis=0) if plan.parts > 1 else biases[0]
    if not all_finite(biases):  # nor is dy: cells in the padding, left out here, make NaN of it
        columns.weight_gradient(dy, x, g, out)


@functools.lru_cache(maxsize=512)
def correlation(g: Geometry, backwards: bool, x_dtype: str, y_dtype: str, threads: int) -> Correlation:
    """The job of a correlation."""
    (x_height, x_width), (out_height, out_width) = (g.output, g.spatial) if backwards else (g.spatial, g.output)
    lanes, stride = machine().lanes(x_dtype), g.stride[0]
    period = stride if backwards else 1  # tiles begin with a whole one
    slides = _slides(g, backwards, ITEMSIZE[x_dtype])
    few = 8 < out_height < 4 * LEAST_PIECES // max(1, g.batch)
    tile = _open_tile(out_height, g.kernel[1]) if slides else _tile(out_height, period, few)
    fixed = tile == out_height
    meets = row_meetings(g, tile, backwards, x_height if fixed else None)
    tiles = g.batch * -(-out_height // tile)
    span, spans = _spans(g, x_dtype, 2 * tiles, math.prod(g.kernel) >= MANY_TAPS)
    chunk = max(1, min(-(-tiles * spans // (8 * threads)), PIECE_CELLS // max(1, tile * out_width * span)))
    even = g.channels % lanes == 0
    numbers: dict[str, Any] = dict(
        tiles=tiles, chunk=chunk, span=span, channels=g.channels, x_height=x_height, x_width=x_width, out_height=out_height,
        out_width=out_width, last=-(-(out_height - tile) // period) * period, zeros=_zeros(x_width * g.channels, x_dtype),
    )  # fmt: skip
    if slides:
        kernel = correlate_sliding(x_dtype, y_dtype, lanes, tile, meets, *g.kernel, backwards, even, fixed)
        numbers["first_column"] = _first_column(g, backwards)
    else:
        advance = (1, stride) if backwards else (stride, 1)
        kernel = correlate_rows(x_dtype, y_dtype, lanes, tile, meets, *g.kernel, advance, even, fixed)
        numbers["columns"], numbers["most"] = _columns(g, backwards)
    job = Job(kernel, -(-tiles // chunk) * spans, **numbers)
    wide, taps = wide_type(x_dtype), math.prod(g.kernel)
    size = -(-g.channels // lanes) * lanes * taps * ITEMSIZE[wide]
    lay = Job(lay_taps(x_dtype, lanes), 1, channels=g.channels, taps=taps)
    return Correlation(job, width(job.pieces, g.flops // 2), lanes, tile, np.zeros(g.channels, wide), lay, size)


@functools.lru_cache(maxsize=256)
def accumulation(g: Geometry, dtype: str, threads: int) -> Accumulation:
    """The job of the weight gradient; how it is cut does not depend on ``threads``."""
    lanes, out_height = machine().lanes(dtype), g.output[0]
    tile = _tile(out_height, 1)
    fixed = tile == out_height
    meets = row_meetings(g, tile, False, g.spatial[0] if fixed else None)
    table, most = _columns(g, False)
    tiles = g.batch * (out_height // tile + out_height % tile)
    span, spans = _spans(g, dtype, tiles, True)
    chunk = max(1, min(-(-tiles * spans // LEAST_PIECES), MOST_ADDED // max(1, g.output[1])))
    parts = -(-tiles // chunk)
    job = Job(
        accumulate_rows(dtype, lanes, tile, meets, *g.kernel, g.stride[0], g.channels % lanes == 0, fixed),
        parts * spans, tiles=tiles, chunk=chunk, span=span, channels=g.channels, most=most,
        x_height=g.spatial[0], x_width=g.spatial[1], out_height=out_height, out_width=g.output[1],
        zeros=_zeros(g.spatial[1] * g.channels, dtype), columns=table,
    )  # fmt: skip
    wide, taps = wide_type(dtype), math.prod(g.kernel)
    add = Job(add_taps(wide, dtype, lanes), 1, parts=parts, channels=g.channels, taps=taps)
    size = parts * -(-g.channels // lanes) * lanes * taps * ITEMSIZE[wide]
    return Accumulation(job, width(job.pieces, g.flops // 2), lanes, tile, parts, add, size)


def workspace(g: Geometry, dtype: str, kind: str) -> int:
    """Bytes of the weights as they are laid out, or of partial sums."""
    if kind == "weight_gradient":
        return accumulation(g, dtype, get_threads()).size
    return correlation(g, kind == "input_gradient", dtype, dtype, get_threads()).size


def blocking(g: Geometry, dtype: str, kind: str) -> str:
    """Tile and pieces, in words."""
    if kind == "input_gradient" and not gradient_phases(g):
        return "nothing to compute"
    if kind == "weight_gradient":
        plan: Rows = accumulation(g, dtype, get_threads())
        what = "summed over"
    else:
        plan, what = correlation(g, kind == "input_gradient", dtype, dtype, get_threads()), "computed in"
    n = plan.job.numbers
    return (
        f"{plan.lanes} channels in a vector, {plan.tile} rows together; {what} {n['chunk']} of {n['tiles']} such tiles, "
        f"{min(n['span'], g.channels)} channels a piece; {plan.job.cut(plan.threads)}"
    )


def _zeros(cells: int, dtype: str) -> np.ndarray:
    return np.zeros(cells * ITEMSIZE[dtype], np.uint8)  # only read: the system keeps one page of them


def _tile(rows: int, period: int, few: bool = False) -> int:
    """Rows of a tile: of an image those that compute fewest twice; ``few``: at most 4, where there is little to share out."""
    most = max(MOST_ROWS if machine().registers >= 32 and not few else 4, period)
    sizes = [n for n in range(period, most + 1, period) if n <= max(rows, period)]
    return min(reversed(sizes), key=lambda n: -(-rows // n) * (n + 2))


def _open_tile(rows: int, taps: int) -> int:
    """Rows of a tile that slides: as many as open sums allow, or those that compute fewest twice."""
    most = (OPEN_SUMS if machine().registers >= 32 else FEW_OPEN_SUMS) // taps
    return min(range(1, min(most, rows, MOST_ROWS) + 1), key=lambda n: (-(-rows // n) * (n + 1), -n))


def _first_column(g: Geometry, backwards: bool) -> int:
    """The column of x that completes the first one of outputs."""
    return g.padding[1][0] if backwards else g.kernel[1] - 1 - g.padding[1][0]


def _slides(g: Geometry, backwards: bool, itemsize: int) -> bool:
    """Whether the sums of a row's columns stay open; only a row's first and last ones meet columns outside, then."""
    if max(g.kernel) > SLIDING or g.kernel[1] == 1 or max(g.stride) > 1 or g.dilation[1] > 1:
        return False
    (_, x_width), (out_height, out_width) = (g.output, g.spatial) if backwards else (g.spatial, g.output)
    first, cells = _first_column(g, backwards), math.prod(g.spatial) + math.prod(g.output)
    if first < 0 or out_width < g.kernel[1] or out_width - g.kernel[1] + first >= x_width:
        return False
    row = x_width * g.channels * itemsize
    return out_height <= MOST_ROWS or row <= SLIDING_ROW or g.batch * g.channels * cells * itemsize <= SLIDING_BYTES


def row_meetings(g: Geometry, tile: int, backwards: bool, height: int | None) -> Meets:
    """(row of x, row of outputs, row of the kernel) of a tile, counted from its first; those inside ``height``, if given.

    Rows of x are counted from the first output's row times the stride, or of a gradient divided by it.
    """
    stride, dilation, low = g.stride[0], g.dilation[0], g.padding[0][0]
    found = []
    for r, t in itertools.product(range(tile), range(g.kernel[0])):
        if not backwards:
            found.append((r * stride + t * dilation - low, r, t))
        elif (r + low - t * dilation) % stride == 0:
            found.append(((r + low - t * dilation) // stride, r, t))
    return tuple(sorted(meet for meet in found if height is None or 0 <= meet[0] < height))


def _columns(g: Geometry, backwards: bool) -> tuple[np.ndarray, int]:
    """For each column of outputs how many it meets, and (column of x, column of the kernel) of each; and the most of them."""
    stride, dilation, low = g.stride[1], g.dilation[1], g.padding[1][0]
    met: list[list[tuple[int, int]]] = []
    for column in range(g.spatial[1] if backwards else g.output[1]):
        met.append([])
        for t in range(g.kernel[1]):
            at = column + low - t * dilation if backwards else column * stride + t * dilation - low
            if not backwards and 0 <= at < g.spatial[1]:
                met[-1].append((at, t))
            elif backwards and at % stride == 0 and 0 <= at // stride < g.output[1]:
                met[-1].append((at // stride, t))
        met[-1].sort()
    most = max(map(len, met), default=0)
    table = np.zeros((len(met), 1 + 2 * most), np.int64)
    for entry, pairs in zip(table, met):
        entry[0] = len(pairs)
        entry[1 : 1 + 2 * len(pairs)] = np.array(pairs, np.int64).reshape(-1)
    return table, most


def _spans(g: Geometry, dtype: str, tiles: int, cut: bool) -> tuple[int, int]:
    """(channels of a span, spans), as equal as vectors allow; ``cut``: so few that their weights lie in the nearest cache."""
    lanes, wide = machine().lanes(dtype), ITEMSIZE[wide_type(dtype)]
    vectors = -(-g.channels // lanes)
    spans = -(-LEAST_PIECES // max(1, tiles))
    if cut and g.channels * math.prod(g.spatial) * ITEMSIZE[dtype] <= NEAR_BYTES:
        spans = max(spans, -(-vectors * lanes * math.prod(g.kernel) * wide // SPAN_BYTES))
    each = -(-vectors // min(spans, vectors))
    return each * lanes, -(-vectors // each)
