"""Convolutions that are matrix products on views, channels last.

As :mod:`konv.engine.products.products`, but where channels are neighbours in memory they are in the lanes of y, and x is read
where it lies, a number at a time. Only half types and windows that see padding are copied first, a tile's at a time. Few filters
are :mod:`konv.engine.products.products_last_few`'s. Weight gradients of few numbers, of half types or of windows that see padding
are left to the direct algorithm: of the last it was as fast.

Panels laid again for every block of pixels took 3 to 10 % of the time. Stores past the caches were 2 to 4 % faster where y is
large, but leave nothing of it to the next layer; all windows copied first took 3 to 7 % longer. Sums of 256 products and more
reach 97 % of one core's limit and 88 to 94 % of two cores', which share the memory, in pieces of any size: PyTorch is level.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from konv.engine import memory, roofline
from konv.engine.launch import Job, address
from konv.engine.machine import dtype_name, machine, wide_type
from konv.engine.products import products_last_few
from konv.engine.products.products import overlap
from konv.engine.products.products_grids import tile_shape
from konv.engine.products.products_last_kernels import multiply_rows
from konv.engine.products.products_last_weights import window_sums
from konv.engine.products.products_weight_jobs import PIECES, even, parts_bytes
from konv.engine.products.products_weights import add_sums
from konv.engine.threads import get_threads, width
from konv.geometry import Geometry

if TYPE_CHECKING:
    from konv.engine.plan import Problem

NAME = "products_last"
WEIGHTS_LAST = True  # w, and dL/dw, may lie channels last too: no copy turns them then
BLOCK_BYTES = 384 << 10  # the panels of a piece stay in L2
BLOCK_PIXELS = 784  # that they are used for,
LEAST_PIXELS = 128  # or so many, where pieces are few
TILES = {4: 4, 3: 5, 2: 8, 1: 12}  # vectors of filters: pixels; 24 sums instead of 16 took 2 to 6 % longer
FEW_REGISTERS = {3: 4, 2: 6, 1: 8}  # where there are 16
LINE = 16  # numbers, so that what lies behind them begins a cache line
REGION = (256, 192)  # of a weight gradient: its sums, (filters, numbers of a window)
SUM_PIXELS = 192  # that a sum of it is taken over at a time
LEAST_RUN = 16  # numbers of a window that lie together,
LEAST_FILTERS = 8  # and filters, for a weight gradient

__all__ = [
    "NAME", "blocking", "declines", "forward", "input_gradient", "input_gradient_and_bias", "share",
    "weight_and_bias_gradient", "weight_gradient", "workspace",
]  # fmt: skip


def declines(problem: Problem) -> str | None:
    """Other layouts, groups, windows that overlap; for weight gradients those that see padding, too."""
    if problem.layout != "last":
        return "channels first; it puts channels in lanes"
    g = problem.geometry
    if problem.kind == "weight_gradient":
        if wide_type(problem.dtype) != problem.dtype:
            return "half types; it computes the weight gradients of others"
        if g.channels * g.kernel[-1] < LEAST_RUN or g.filters < LEAST_FILTERS:
            return f"{g.filters} filters of {g.channels} x {g.kernel[-1]} neighbours leave most of a tile empty"
    if g.groups > 1:
        return f"groups = {g.groups}; it computes one"
    if problem.kind == "weight_gradient":
        return overlap(g)
    return overlap(dataclasses.replace(g, padding=((0, 0),) * g.axes))


def workspace(problem: Problem) -> int:
    """Bytes borrowed while it runs."""
    g, dtype = problem.geometry, problem.dtype
    if problem.kind == "weight_gradient":
        permuted = math.prod(g.w_shape) * g.itemsize if math.prod(g.kernel) > 1 else 0
        return _gradient(g, dtype, True, get_threads()).size + permuted
    turned = problem.kind == "input_gradient"
    if not turned and products_last_few.takes(g, dtype):
        return products_last_few.workspace(g, dtype)
    permuted = math.prod(g.w_shape) * g.itemsize if turned and math.prod(g.kernel) > 1 else 0
    return _product(g, turned, dtype, dtype, get_threads()).size + permuted


def forward(x: np.ndarray, w: np.ndarray, b: np.ndarray | None, g: Geometry, out: np.ndarray) -> None:
    """Write conv(x, w) + b into ``out`` (N, F, *output)."""
    few = products_last_few.takes(g, dtype_name(x.dtype)) and x.dtype == out.dtype
    run = products_last_few.forward if few else _forward
    _in_place(out, lambda target: run(x, w, b, g, target))


def input_gradient(dy: np.ndarray, w: np.ndarray, g: Geometry, out: np.ndarray) -> None:
    """Write dL/dx (N, C, *spatial) into ``out``."""
    _in_place(out, lambda target: _input_gradient(dy, w, None, g, target))


def input_gradient_and_bias(dy: np.ndarray, w: np.ndarray, b: np.ndarray, g: Geometry, out: np.ndarray) -> None:
    """The same and b (C,) added, of a transposed layer: added afterwards, 128 to 64 at 64 took 1.13 times as long."""
    _in_place(out, lambda target: _input_gradient(dy, w, b, g, target))


def _input_gradient(dy: np.ndarray, w: np.ndarray, b: np.ndarray | None, g: Geometry, out: np.ndarray) -> None:
    """``out`` has its channels as the last axis."""
    if any(
        k < s or o * s - low < n for k, s, o, n, (low, _) in zip(g.kernel, g.stride, g.output, g.spatial, g.padding)
    ):
        out[...] = 0 if b is None else b  # cells that no window reads
    _run(g, True, dy, w, None if b is None else np.tile(b, g.kernel[-1]), out)


def weight_gradient(dy: np.ndarray, x: np.ndarray, g: Geometry, out: np.ndarray) -> None:
    """Write dL/dw (F, C, *kernel) into ``out``."""
    _run_gradient(dy, x, g, out, None)


def weight_and_bias_gradient(dy: np.ndarray, x: np.ndarray, g: Geometry, out: np.ndarray, db: np.ndarray) -> None:
    """Write dL/dw (F, C, *kernel) into ``out`` and dL/db (F,) into ``db``: dy is read once for both."""
    _run_gradient(dy, x, g, out, db)


def _in_place(out: np.ndarray, run: Callable[[np.ndarray], None]) -> None:
    """``run(out)`` with channels as the last axis, by way of a copy where they do not lie like that."""
    last = out.transpose(0, *range(2, out.ndim), 1)
    if last.flags.c_contiguous:
        run(last)
    else:
        run(target := np.empty(last.shape, out.dtype))
        last[...] = target


@dataclass(frozen=True)
class Product:
    """A forward or an input gradient, prepared."""

    multiply: Job
    no_bias: np.ndarray
    threads: int
    size: int


def _three_axes(g: Geometry) -> tuple[tuple[int, ...], ...]:
    """Sizes of x, y, the kernel and the stride."""
    ones = (1,) * (3 - g.axes)
    return ones + g.spatial, ones + g.output, ones + g.kernel, ones + g.stride


def _windows(g: Geometry) -> tuple[np.ndarray, dict[str, int]]:
    """Where the segments of a window begin, and how far apart windows lie in x."""
    spatial, _, kernel, step = _three_axes(g)
    row, plane = spatial[2] * g.channels, spatial[1] * spatial[2] * g.channels
    segments = np.array(
        [d * plane + h * row for d in range(kernel[0]) for h in range(kernel[1])],
        np.int64,
    )
    return segments, dict(
        image=spatial[0] * plane,
        depth=step[0] * plane,
        row=step[1] * row,
        pixel=step[2] * g.channels,
    )


def _shapes() -> dict[int, int]:
    return TILES if machine().registers >= 32 else FEW_REGISTERS


def _lines(g: Geometry, lanes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of a window of x its segments and its vectors (offset, depth, height, first cell), and of each number of w the places.

    The places: where the number lies from the window's beginning on, and where in its vectors, laid one after the other. The
    last vector of a long segment begins a little earlier than where the one before ends.
    """
    ones = (0,) * (3 - g.axes)
    low = ones + tuple(low for low, _ in g.padding)
    spatial, _, kernel, _ = _three_axes(g)
    length, row, plane = kernel[2] * g.channels, spatial[2] * g.channels, spatial[1] * spatial[2] * g.channels
    begin = -(low[0] * plane + low[1] * row + low[2] * g.channels)
    segments = np.array(
        [(begin + d * plane + h * row, d, h, 0) for d in range(kernel[0]) for h in range(kernel[1])], np.int64
    )
    starts = [min(i * lanes, max(0, length - lanes)) for i in range(-(-length // lanes))]
    lines = np.array([(at + c, d, h, c) for at, d, h, _ in segments for c in starts], np.int64)
    cell = np.arange(length)
    in_lines = np.minimum(cell // lanes, len(starts) - 1)
    in_lines = in_lines * lanes + cell - np.array(starts)[in_lines]
    numbers = np.arange(len(segments))[:, None]
    places = np.stack([segments[:, :1] + cell, numbers * (len(starts) * lanes) + in_lines])  # (2, segments, cells)
    in_order = places.reshape(2, -1, g.channels).transpose(0, 2, 1).reshape(2, -1)  # of w: channels first
    return segments, lines, np.ascontiguousarray(in_order)


def _tile(run: int, lanes: int) -> tuple[int, int]:
    """Vectors of filters and pixels of the tile that leaves the fewest lanes empty."""
    shapes = _shapes()
    vectors = min(shapes, key=lambda n: -(-run // (lanes * n)) * n)
    return vectors, shapes[vectors]


def _blocks(pixels: int, rows: int, panels: int, panel_bytes: int, threads: int) -> tuple[int, int]:
    """Panels of a part, and pixels of a block: panels stay in L2, and there are four pieces a thread if that many can be."""
    part_panels = max(1, min(panels, BLOCK_BYTES // panel_bytes))
    parts = -(-panels // part_panels)
    blocks = max(-(-pixels // BLOCK_PIXELS), min(-(-4 * threads // parts), pixels // LEAST_PIXELS), 1)
    parts = max(parts, min(-(-4 * threads // blocks), panels))
    return -(-panels // parts), max(1, -(-pixels // (blocks * rows))) * rows


@functools.lru_cache(maxsize=512)
def _product(g: Geometry, transposed: bool, x_dtype: str, y_dtype: str, threads: int) -> Product:
    host, wide = machine(), wide_type(x_dtype)
    lanes, itemsize = host.lanes(x_dtype), np.dtype(wide).itemsize
    spatial, output, kernel, step = _three_axes(g)
    padded = any(map(any, g.padding))
    plain = not padded and all(n == o * s for n, o, s in zip(spatial, output, step)) and step[:2] == (1, 1)
    segments, lines, places = _lines(g, lanes)
    window = kernel[2] * g.channels
    if transposed:
        reduction, run, window_lines, lines = g.filters, window, -(-g.filters // lanes), segments
        all_segments, pixel_size = len(segments), g.filters
    else:
        reduction, run, window_lines = window * len(segments), g.filters, len(lines)
        all_segments, pixel_size = 1, g.filters
    copied = x_dtype != wide or (padded and not transposed)
    vectors, rows = _tile(run, lanes)
    panel_width = lanes * vectors
    run_panels = -(-run // panel_width)
    all_panels, pixels = run_panels * all_segments, g.batch * math.prod(output)
    part_panels, block_pixels = _blocks(pixels, rows, all_panels, reduction * panel_width * itemsize, threads)
    parts, blocks = -(-all_panels // part_panels), -(-pixels // block_pixels)
    pitch = (window_lines + 1) * lanes
    slot_size = -(-((part_panels * reduction + rows) * panel_width + rows * pitch * copied) // lanes) * lanes
    scattered = not transposed and (math.prod(kernel) > 1 or bool(copied and window % lanes))
    _, grid = _windows(g)
    low = (0,) * (3 - g.axes) + tuple(low for low, _ in g.padding)
    multiply = Job(
        multiply_rows(x_dtype, y_dtype, lanes, vectors, rows, transposed, plain, scattered, copied, padded), parts * blocks,
        places=places[int(copied)], lines=lines, slot_size=slot_size, pixels=pixels, block_pixels=block_pixels, blocks=blocks,
        part_panels=part_panels, all_panels=all_panels, reduction=reduction, run=run, run_panels=run_panels,
        window_lines=window_lines, line_count=min(lanes, window), pitch=pitch, line_pixels=output[2], depth_lines=output[1],
        image_lines=output[0] * output[1], pixel_size=pixel_size, image=grid["image"], depth=grid["depth"], row=grid["row"],
        pixel_step=grid["pixel"], depths=spatial[0], heights=spatial[1], row_cells=spatial[2] * g.channels,
        step_depth=step[0], step_height=step[1], low_depth=low[0], low_height=low[1], low_cells=low[2] * g.channels,
    )  # fmt: skip
    used = width(multiply.pieces, pixels * reduction * all_panels * panel_width)
    return Product(multiply, np.zeros(run_panels * panel_width, wide), used, used * slot_size * itemsize)


def _forward(x: np.ndarray, w: np.ndarray, b: np.ndarray | None, g: Geometry, out: np.ndarray) -> None:
    _run(g, False, x, w, b, out)


def _run(g: Geometry, transposed: bool, x: np.ndarray, w: np.ndarray, b: Any, out: np.ndarray) -> None:
    """``out`` has its channels as the last axis."""
    x = np.ascontiguousarray(x.transpose(0, *range(2, x.ndim), 1))
    if transposed and math.prod(g.kernel) > 1:  # (filter, rows of the window, cell, channel): as a window lies in x
        w = w.transpose(0, *range(2, w.ndim), 1)
    w = np.ascontiguousarray(w)
    job = _product(g, transposed, dtype_name(x.dtype), dtype_name(out.dtype), get_threads())
    bias = job.no_bias
    if b is not None and len(b) == len(bias):
        bias = np.ascontiguousarray(b, bias.dtype)
    elif b is not None:
        bias = np.zeros_like(bias)
        bias[: len(b)] = b
    laid = np.zeros(job.threads, np.int64)
    with memory.workspace(job.size) as space:
        job.multiply.run(
            job.threads,
            w=address(w),
            x=address(x),
            bias=address(bias),
            y=address(out),
            workspace=space,
            laid=address(laid),
        )


def blocking(problem: Problem) -> str:
    """Tile, blocks and pieces, in words."""
    g, dtype, gradient = problem.geometry, problem.dtype, problem.kind == "input_gradient"
    if problem.kind == "weight_gradient":
        job = _gradient(g, dtype, True, get_threads())
        n = job.sums.numbers
        wide = tile_shape()[1] * machine().lanes(dtype)
        return (
            f"{tile_shape()[0]} filters by up to {wide} numbers of a window in registers; blocks of "
            f"{n['block_pixels']} pixels by {n['region_rows']} filters; {job.sums.cut(job.threads)}"
        )
    if not gradient and products_last_few.takes(g, dtype):
        return products_last_few.blocking(g, dtype)
    product = _product(g, gradient, dtype, dtype, get_threads())
    n, role = product.multiply.numbers, "numbers of a window" if gradient else "filters"
    width = len(product.no_bias) // n["run_panels"]
    rows = _shapes()[width // machine().lanes(dtype)]
    return (
        f"{rows} pixels by {width} {role} in registers; blocks of {n['block_pixels']} pixels by "
        f"{min(n['part_panels'] * width, n['run'] * n['all_panels'] // n['run_panels'])} {role}, each a sum of "
        f"{n['reduction']} products; {product.multiply.cut(product.threads)}"
    )


def share(problem: Problem) -> float:
    """Of the limit; see :mod:`konv.engine.roofline`."""
    g, lanes = problem.geometry, machine().lanes(problem.dtype)
    if problem.kind == "forward" and products_last_few.takes(g, problem.dtype):
        return products_last_few.share(problem)
    run = g.filters if problem.kind == "forward" else g.channels * g.kernel[-1]
    return roofline.share(problem, roofline.padding(run, lanes), speed=0.75, moving=0.75, storing=6)


@dataclass(frozen=True)
class Gradient:
    """A weight gradient, prepared. With ``add``, sums over parts of the pixels are added up in the end."""

    sums: Job
    add: Job | None
    add_biases: Job | None
    part_cells: int
    part_biases: int
    segments: np.ndarray
    threads: int
    size: int


@functools.lru_cache(maxsize=512)
def _gradient(g: Geometry, dtype: str, biased: bool, threads: int) -> Gradient:
    lanes, (rows, most) = machine().lanes(dtype), tile_shape()
    spatial, output, kernel, step = _three_axes(g)
    segments, grid = _windows(g)
    if math.prod(step) == 1 and spatial == output:  # all pixels are one line
        output = (1, 1, max(1, g.batch * math.prod(output)))
    run, pixels = kernel[2] * g.channels, g.batch * math.prod(g.output)
    vectors = min((most, most - 1), key=lambda n: -(-run // (lanes * n)) * n)
    run_panels = -(-run // (lanes * vectors))
    cells = math.prod(g.w_shape)
    blocks = -(-pixels // SUM_PIXELS)
    most_rows, most_columns = REGION
    for narrower, shorter in ((1, 1), (2, 1), (4, 1), (4, 2)):
        row_regions, region_rows = even(g.filters, most_rows // shorter, rows)
        panel_regions, region_panels = even(
            run_panels * len(segments), most_columns // narrower // (lanes * vectors), 1
        )
        pieces = row_regions * panel_regions
        parts = max(
            1,
            min(
                -(-PIECES // pieces),
                parts_bytes(g, g.itemsize) // (cells * g.itemsize),
                blocks,
            ),
        )
        if pieces * parts >= PIECES:
            break
    panel_cells = region_panels * lanes * vectors
    slot_size = (
        rows * lanes * vectors
        + (region_rows + SUM_PIXELS) * panel_cells
        + even(region_rows, region_rows + 4 * lanes, 4 * lanes)[1]
    )
    sums = Job(
        window_sums(dtype, lanes, vectors, rows), pieces * parts, slot_size=slot_size, filters=g.filters,
        region_rows=region_rows, row_regions=row_regions, segments=len(segments), run=run, run_panels=run_panels,
        region_panels=region_panels, panel_regions=panel_regions, pixels=pixels, block_pixels=SUM_PIXELS, blocks=blocks,
        parts=parts, line_pixels=output[2], depth_lines=output[1], image_lines=output[0] * output[1],
        most_runs=(SUM_PIXELS - 2) // output[2] + 2, biased=int(biased), **{f"x_{name}": n for name, n in grid.items()},
    )  # fmt: skip
    add = add_biases = None
    part_cells = part_biases = 0
    if parts > 1:
        add, add_biases = (
            Job(add_sums(dtype, dtype, lanes), -(-n // (1024 * lanes)), parts=parts, numbers=n, chunk=1024 * lanes)
            for n in (cells, g.filters)
        )
        part_cells, part_biases = (-(-parts * n // LINE) * LINE for n in (cells, g.filters))
    used = width(sums.pieces, pixels * cells)
    size = (part_cells + part_biases + used * slot_size) * g.itemsize
    return Gradient(sums, add, add_biases, part_cells, part_biases, segments, used, size)


def _run_gradient(dy: np.ndarray, x: np.ndarray, g: Geometry, out: np.ndarray, db: np.ndarray | None) -> None:
    x, dy = (np.ascontiguousarray(np.moveaxis(a, 1, -1)) for a in (x, dy))
    job = _gradient(g, dtype_name(x.dtype), db is not None, get_threads())
    in_place = math.prod(g.kernel) == 1 and out.flags.c_contiguous
    made = out if in_place else np.empty((g.filters, *g.kernel, g.channels), out.dtype)
    with memory.workspace(job.size) as space:
        part_biases = space + job.part_cells * g.itemsize
        biases = part_biases if db is None or job.add else address(db)
        job.sums.run(
            job.threads, dy=address(dy), x=address(x), out=space if job.add else address(made), bias=biases,
            workspace=part_biases + job.part_biases * g.itemsize, x_segments=address(job.segments),
        )  # fmt: skip
        if job.add:
            job.add.run(width(job.add.pieces, job.part_cells), sums=space, out=address(made))
        if job.add_biases and db is not None:
            job.add_biases.run(1, sums=part_biases, out=address(db))
    if not in_place:
        out[...] = np.moveaxis(made, -1, 1)
