"""Convolutions that are matrix products on views, channels last.

As :mod:`konv.engine.products`, but where channels are neighbours in memory they are in the lanes of y, and x is read where it
lies, a number at a time. Weight gradients of few numbers or half types are left to the direct algorithm.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from konv.engine import memory, roofline
from konv.engine.launch import Job, address
from konv.engine.machine import dtype_name, machine, wide_type
from konv.engine.products import PIECES, even, overlap, parts_bytes, tile_shape
from konv.engine.products_last_kernels import multiply_rows
from konv.engine.products_last_weights import window_sums
from konv.engine.products_weights import add_sums
from konv.engine.threads import get_threads, width
from konv.geometry import Geometry

if TYPE_CHECKING:
    from konv.engine.plan import Problem

NAME = "products_last"
BLOCK_BYTES = 384 << 10  # the panels of a piece stay in L2
BLOCK_PIXELS = 512  # that they are used for
LINE = 16  # numbers, so that what lies behind them begins a cache line
REGION = (256, 192)  # of a weight gradient: its sums, (filters, numbers of a window)
SUM_PIXELS = 192  # that a sum of it is taken over at a time
LEAST_RUN = 16  # numbers of a window that lie together,
LEAST_FILTERS = 8  # and filters, for a weight gradient

__all__ = [
    "NAME", "blocking", "declines", "forward", "input_gradient", "share", "weight_and_bias_gradient", "weight_gradient",
    "workspace",
]  # fmt: skip


def declines(problem: Problem) -> str | None:
    """Other layouts, groups, windows that overlap or see padding."""
    if problem.layout != "last":
        return "channels first; it puts channels in lanes"
    g = problem.geometry
    if problem.kind == "weight_gradient":
        if wide_type(problem.dtype) != problem.dtype:
            return "half types; it computes the weight gradients of others"
        if g.channels * g.kernel[-1] < LEAST_RUN or g.filters < LEAST_FILTERS:
            return f"{g.filters} filters of {g.channels} x {g.kernel[-1]} neighbours leave most of a tile empty"
    if problem.geometry.groups > 1:
        return f"groups = {problem.geometry.groups}; it computes one"
    return overlap(problem.geometry)


def workspace(problem: Problem) -> int:
    """Bytes borrowed while it runs."""
    g, dtype = problem.geometry, problem.dtype
    if problem.kind == "weight_gradient":
        permuted = math.prod(g.w_shape) * g.itemsize if math.prod(g.kernel) > 1 else 0
        return _gradient(g, dtype, True, get_threads()).size + permuted
    permuted = math.prod(g.w_shape) * g.itemsize if math.prod(g.kernel) > 1 else 0
    return _product(g, problem.kind == "input_gradient", dtype, dtype, get_threads()).size + permuted


def forward(x: np.ndarray, w: np.ndarray, b: np.ndarray | None, g: Geometry, out: np.ndarray) -> None:
    """Write conv(x, w) + b into ``out`` (N, F, *output)."""
    _in_place(out, lambda target: _run(g, False, x, w, b, target))


def input_gradient(dy: np.ndarray, w: np.ndarray, g: Geometry, out: np.ndarray) -> None:
    """Write dL/dx (N, C, *spatial) into ``out``."""

    def run(target: np.ndarray) -> None:
        if math.prod(g.kernel) * math.prod(g.output) < math.prod(g.spatial):
            target[...] = 0  # cells that no window reads
        _run(g, True, dy, w, None, target)

    _in_place(out, run)


def weight_gradient(dy: np.ndarray, x: np.ndarray, g: Geometry, out: np.ndarray) -> None:
    """Write dL/dw (F, C, *kernel) into ``out``."""
    _run_gradient(dy, x, g, out, None)


def weight_and_bias_gradient(dy: np.ndarray, x: np.ndarray, g: Geometry, out: np.ndarray, db: np.ndarray) -> None:
    """Write dL/dw (F, C, *kernel) into ``out`` and dL/db (F,) into ``db``: dy is read once for both."""
    _run_gradient(dy, x, g, out, db)


def _in_place(out: np.ndarray, run: Callable[[np.ndarray], None]) -> None:
    """``run(out)`` with channels as the last axis, by way of a copy where they do not lie like that."""
    last = np.moveaxis(out, 1, -1)
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
    x_segments: np.ndarray
    y_segments: np.ndarray
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


@functools.lru_cache(maxsize=512)
def _product(g: Geometry, transposed: bool, x_dtype: str, y_dtype: str, threads: int) -> Product:
    host, wide = machine(), wide_type(x_dtype)
    lanes, (rows, most) = host.lanes(x_dtype), tile_shape()
    itemsize = np.dtype(wide).itemsize
    spatial, output, kernel, step = _three_axes(g)
    window = kernel[2] * g.channels  # a segment: neighbours in a row of x
    windows, grid_x = _windows(g)
    single = np.zeros(1, np.int64)
    pixels = math.prod(output)
    grid_y = dict(
        image=pixels * g.filters,
        depth=output[1] * output[2] * g.filters,
        row=output[2] * g.filters,
        pixel=g.filters,
    )
    run = window if transposed else g.filters
    vectors = min(range(most, 0, -1), key=lambda n: -(-run // (lanes * n)) * n)
    panel_width = lanes * vectors
    run_panels = -(-run // panel_width)
    if transposed:
        source, target, x_segments, y_segments = grid_y, grid_x, single, windows
        segment_length = g.filters
    else:
        source, target, x_segments, y_segments = grid_x, grid_y, windows, single
        segment_length = window
    reduction, all_panels = (
        segment_length * len(x_segments),
        run_panels * len(y_segments),
    )
    block_pixels = BLOCK_PIXELS
    all_pixels = g.batch * pixels
    part_panels = max(1, min(all_panels, BLOCK_BYTES // (reduction * panel_width * itemsize)))
    while part_panels > 1 and -(-all_pixels // block_pixels) * -(-all_panels // part_panels) < 4 * threads:
        part_panels = -(-part_panels // 2)
    while block_pixels > 4 * rows and -(-all_pixels // block_pixels) * -(-all_panels // part_panels) < 4 * threads:
        block_pixels //= 2
    parts = -(-all_panels // part_panels)
    plain = math.prod(step) == 1 and spatial == output
    slot_size = (part_panels * reduction + rows) * panel_width
    multiply = Job(
        multiply_rows(x_dtype, y_dtype, lanes, vectors, rows, transposed, plain), -(-all_pixels // block_pixels) * parts,
        slot_size=slot_size,
        pixels=all_pixels, block_pixels=block_pixels, parts=parts, part_panels=part_panels, all_panels=all_panels,
        segments=len(x_segments), segment_length=segment_length, run=run, run_panels=run_panels, line_pixels=output[2],
        depth_lines=output[1], image_lines=output[0] * output[1], **{f"x_{name}": n for name, n in source.items()},
        **{f"y_{name}": n for name, n in target.items()},
    )  # fmt: skip
    used = width(multiply.pieces, all_pixels * reduction * all_panels * panel_width)
    no_bias = np.zeros(run_panels * panel_width, wide)
    size = used * slot_size * itemsize
    return Product(multiply, no_bias, x_segments, y_segments, used, size)


def _run(g: Geometry, transposed: bool, x: np.ndarray, w: np.ndarray, b: Any, out: np.ndarray) -> None:
    """``out`` has its channels as the last axis."""
    x = np.ascontiguousarray(np.moveaxis(x, 1, -1))
    # (filter, rows of the window, cell, channel): as a window lies in x
    w = np.ascontiguousarray(np.moveaxis(w, 1, -1)) if math.prod(g.kernel) > 1 else np.ascontiguousarray(w)
    job = _product(g, transposed, dtype_name(x.dtype), dtype_name(out.dtype), get_threads())
    bias = job.no_bias
    if b is not None:
        bias = np.zeros_like(bias)
        bias[: len(b)] = b
    with memory.workspace(job.size) as space:
        job.multiply.run(
            job.threads, w=address(w), x=address(x), bias=address(bias), y=address(out), workspace=space,
            x_segments=address(job.x_segments), y_segments=address(job.y_segments),
        )  # fmt: skip


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
    product, rows = _product(g, gradient, dtype, dtype, get_threads()), tile_shape()[0]
    n, role = product.multiply.numbers, "numbers of a window" if gradient else "filters"
    width = len(product.no_bias) // n["run_panels"]
    return (
        f"{rows} pixels by {width} {role} in registers; blocks of {n['block_pixels']} pixels by "
        f"{min(n['part_panels'] * width, n['run'] * len(product.y_segments))} {role}, each a sum of "
        f"{n['segments'] * n['segment_length']} products; {product.multiply.cut(product.threads)}"
    )


def share(problem: Problem) -> float:
    """Of the limit; see :mod:`konv.engine.roofline`."""
    g, lanes = problem.geometry, machine().lanes(problem.dtype)
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
