"""Convolutions that are matrix products on views, channels last: forward and input gradient.

As :mod:`konv.engine.products`, but where channels are neighbours in memory they are in the lanes of y, and x is read where it
lies, a number at a time. Weight gradients are left to the direct algorithm, whose sums over pixels lie like that anyway.
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
from konv.engine.products import overlap, tile_shape
from konv.engine.products_last_kernels import multiply_rows
from konv.engine.threads import get_threads, width
from konv.geometry import Geometry

if TYPE_CHECKING:
    from konv.engine.plan import Problem

NAME = "products_last"
BLOCK_BYTES = 384 << 10  # the panels of a piece stay in L2
BLOCK_PIXELS = 512  # that they are used for

__all__ = ["NAME", "blocking", "declines", "forward", "input_gradient", "share", "weight_gradient", "workspace"]


def declines(problem: Problem) -> str | None:
    """Other layouts, groups, windows that overlap or see padding."""
    if problem.layout != "last":
        return "channels first; it puts channels in lanes"
    if problem.kind == "weight_gradient":
        return "it computes no weight gradients"
    if problem.geometry.groups > 1:
        return f"groups = {problem.geometry.groups}; it computes one"
    return overlap(problem.geometry)


def workspace(problem: Problem) -> int:
    """Bytes borrowed while it runs."""
    g, dtype = problem.geometry, problem.dtype
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
    """Never asked for: :func:`declines` says so."""
    raise NotImplementedError


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


@functools.lru_cache(maxsize=512)
def _product(g: Geometry, transposed: bool, x_dtype: str, y_dtype: str, threads: int) -> Product:
    host, wide = machine(), wide_type(x_dtype)
    lanes, (rows, most) = host.lanes(x_dtype), tile_shape()
    itemsize = np.dtype(wide).itemsize
    ones = (1,) * (3 - g.axes)
    spatial, output, kernel, step = ones + g.spatial, ones + g.output, ones + g.kernel, ones + g.stride
    window = kernel[2] * g.channels  # a segment: neighbours in a row of x
    row, plane = spatial[2] * g.channels, spatial[1] * spatial[2] * g.channels
    windows = np.array([d * plane + h * row for d in range(kernel[0]) for h in range(kernel[1])], np.int64)
    single = np.zeros(1, np.int64)
    grid_x = dict(image=spatial[0] * plane, depth=step[0] * plane, row=step[1] * row, pixel=step[2] * g.channels)
    pixels = math.prod(output)
    grid_y = dict(
        image=pixels * g.filters, depth=output[1] * output[2] * g.filters, row=output[2] * g.filters, pixel=g.filters
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
    reduction, all_panels = segment_length * len(x_segments), run_panels * len(y_segments)
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
    run = g.channels * g.kernel[-1] if problem.kind == "input_gradient" else g.filters
    return roofline.share(problem, roofline.padding(run, lanes), speed=0.75, moving=0.75, storing=6)
