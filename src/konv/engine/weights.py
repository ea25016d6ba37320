"""The weight gradient: chunks of images are laid out with the pixel outside, then multiplied tile by tile."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass

import numpy as np

from konv.engine import memory
from konv.engine.launch import Job, address
from konv.engine.machine import dtype_name, machine, wide_type
from konv.engine.outer import accumulate, channels_last, filters_last, weights_out
from konv.engine.threads import width
from konv.geometry import Geometry

CHUNK_BYTES = 4 << 20  # laid out at once


@dataclass(frozen=True)
class Layout:
    """One geometry's sizes, in elements, and its tables.

    Attributes
    ----------
    spatial, low, padded : length, low padding, and padded length that windows read, of three axes
    output, steps : outputs along three axes, and the step from one's window to the next in an image laid out channels last
    run_cells : where each run of a window lies in it
    run_taps : taps in a run
    blocks : tiles in a run
    """

    spatial: tuple[int, ...]
    low: tuple[int, ...]
    padded: tuple[int, ...]
    output: tuple[int, ...]
    steps: tuple[int, ...]
    run_cells: np.ndarray
    run_taps: int
    blocks: int
    panels: int
    panel_pixels: int
    image_size: int
    gradient_size: int
    sums_size: int
    chunk: int


@functools.lru_cache(maxsize=256)
def layout(g: Geometry, dtype: str) -> Layout:
    """The layout of a geometry's weight gradient."""
    host = machine()
    lanes, (vectors, rows) = host.lanes(dtype), host.tile
    one = (1,) * (3 - g.axes)
    output, stride, kernel, dilation = one + g.output, one + g.stride, one + g.kernel, one + g.dilation
    padded = tuple((o - 1) * s + d * (k - 1) + 1 for o, s, k, d in zip(output, stride, kernel, dilation))
    channels = g.channels // g.groups
    run_taps = kernel[2] if dilation[2] == 1 else 1

    cells = (
        padded[1] * padded[2] * channels,
        padded[2] * channels,
        channels,
    )  # from one cell to the next, on each axis
    steps = tuple(n * size for n, size in zip(stride, cells))
    runs = (*kernel[:2], kernel[2] // run_taps)
    places = itertools.product(
        *(range(0, n * size, size) for n, size in zip(runs, (d * c for d, c in zip(dilation, cells))))
    )
    run_cells = np.array([sum(place) for place in places], np.int64)
    blocks = -(-run_taps * channels // rows)
    panels = -(-(g.filters // g.groups) // (lanes * vectors))
    panel_pixels = -(-math.prod(output) // lanes) * lanes
    image_size = g.groups * math.prod(padded) * channels
    gradient_size = g.groups * panels * panel_pixels * lanes * vectors
    sums_size = g.groups * panels * math.prod(runs) * blocks * rows * lanes * vectors
    itemsize = 8 if dtype == "float64" else 4
    chunk = max(1, min(g.batch, CHUNK_BYTES // ((image_size + gradient_size) * itemsize)))
    low = (0,) * len(one) + tuple(pair[0] for pair in g.padding)
    return Layout(
        one + g.spatial, low, padded, output, steps, run_cells, run_taps, blocks, panels, panel_pixels,
        image_size, gradient_size, sums_size, chunk,
    )  # fmt: skip


def workspace(g: Geometry, dtype: str) -> int:
    """Bytes that :func:`weight_gradient` borrows."""
    cut = layout(g, dtype)
    cells = cut.sums_size + cut.chunk * (cut.image_size + cut.gradient_size) + _slack(dtype)
    return cells * (8 if dtype == "float64" else 4)


def weight_gradient(dy: np.ndarray, x: np.ndarray, g: Geometry, out: np.ndarray) -> None:
    """Write dL/dw (F, C // groups, *kernel) into ``out``."""
    if g.batch == 0:
        out[...] = 0
        return
    x, dy = np.ascontiguousarray(x), np.ascontiguousarray(dy)
    target = out if out.flags.c_contiguous else np.empty(out.shape, out.dtype)
    dtype = dtype_name(x.dtype)
    cut = layout(g, dtype)
    itemsize = 8 if dtype == "float64" else 4
    with memory.workspace(workspace(g, dtype)) as sums:
        image = sums + cut.sums_size * itemsize
        gradient = image + (cut.chunk * cut.image_size + _slack(dtype)) * itemsize
        for first in range(0, g.batch, cut.chunk):
            lay_image, lay_gradient, multiply = _chunk_jobs(g, dtype, first, min(cut.chunk, g.batch - first))
            moved = cut.chunk * (cut.image_size + cut.gradient_size)
            lay_image.run(width(lay_image.pieces, moved), x=address(x), image=image)
            lay_gradient.run(width(lay_gradient.pieces, moved), dy=address(dy), gradient=gradient)
            multiply.run(
                width(multiply.pieces, g.flops // 2 // g.batch), image=image, gradient=gradient, sums=sums,
                run_cells=address(cut.run_cells),
            )  # fmt: skip
        finish = _finish_job(g, dtype, dtype_name(out.dtype))
        finish.run(width(finish.pieces, math.prod(g.w_shape)), sums=sums, dw=address(target))
    if target is not out:
        out[...] = target


@functools.lru_cache(maxsize=256)
def _chunk_jobs(g: Geometry, dtype: str, first: int, images: int) -> tuple[Job, Job, Job]:
    host, cut = machine(), layout(g, dtype)
    lanes, (vectors, rows) = host.lanes(dtype), host.tile
    (depth, height, row), (pad_depth, pad_height, pad_width) = cut.spatial, cut.low
    pixels = math.prod(cut.output)
    lay_image = Job(
        channels_last(dtype, lanes), images * g.groups * cut.padded[0] * cut.padded[1], first_image=first, groups=g.groups,
        channels=g.channels // g.groups, x_depth=depth, x_height=height, x_width=row, pad_depth=pad_depth,
        pad_height=pad_height, pad_width=pad_width, padded_depth=cut.padded[0], padded_height=cut.padded[1],
        padded_width=cut.padded[2],
    )  # fmt: skip
    lay_gradient = Job(
        filters_last(dtype, lanes, vectors), images * g.groups * cut.panels, first_image=first, groups=g.groups,
        filters=g.filters // g.groups, group_panels=cut.panels, pixels=pixels, panel_pixels=cut.panel_pixels,
    )  # fmt: skip
    multiply = Job(
        accumulate(wide_type(dtype), lanes, vectors, rows), g.groups * cut.panels * len(cut.run_cells) * cut.blocks,
        first_image=first, images=images, groups=g.groups, group_panels=cut.panels, runs=len(cut.run_cells),
        blocks=cut.blocks, group_size=cut.image_size // g.groups, panel_pixels=cut.panel_pixels,
        **dict(zip(("out_depth", "out_height", "out_width"), cut.output)),
        **dict(zip(("depth_step", "height_step", "width_step"), cut.steps)),
    )  # fmt: skip
    return lay_image, lay_gradient, multiply


@functools.lru_cache(maxsize=256)
def _finish_job(g: Geometry, dtype: str, out: str) -> Job:
    host, cut = machine(), layout(g, dtype)
    lanes, (vectors, rows) = host.lanes(dtype), host.tile
    return Job(
        weights_out(wide_type(dtype), out, lanes, vectors), g.groups * cut.panels * len(cut.run_cells),
        group_panels=cut.panels, runs=len(cut.run_cells), run_taps=cut.run_taps, run_size=cut.blocks * rows,
        channels=g.channels // g.groups, filters=g.filters // g.groups,
    )  # fmt: skip


def _slack(dtype: str) -> int:
    """Cells after the images: the last tile of a run may read past its end."""
    return machine().tile[1]
