"""Depthwise layers with kernels of many taps on planes of few pixels, channels first: channels in lanes.

One core of an AMD Zen 4 is bound by its multiply-adds here, one vector of 16 a cycle; 7 x 7 on 7 x 7 pixels take a sum, two
loads and a shuffle for each three. Against rows in lanes, milliseconds: 768@7 .16/.24 (weights .18/.60), 384@14 .31/.37
(.35/.61), weights of 192@28 .89/1.13; the forward of 192@28 is equal. Kernels of 3 and 5 columns lose to
:mod:`konv.engine.groups.depthwise_fixed`, 5 x 5 on 7 x 7 .14 to .10 ms, as 7 x 7 on 14 x 14 do. Asking for the next image's
pixels cost half as much again.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

from konv.engine import columns, roofline
from konv.engine.groups.small_planes_kernels import accumulate_small_planes, correlate_small_planes
from konv.engine.launch import Job
from konv.engine.machine import dtype_name, machine, widened
from konv.engine.prepared import Prepared, both_ways, prepared, without_bias
from konv.engine.threads import get_threads
from konv.geometry import Geometry

if TYPE_CHECKING:
    from konv.engine.plan import Problem

NAME = "small_planes"
LEAST_TAPS = {8: 7, 16: 8}  # of a row of the kernel, for planes of at most so many rows and columns
LEAST_TAPS_OF_WEIGHTS = {8: 7, 16: 7, 28: 7}
MOST_TAPS = 9  # which are unrolled
PRODUCTS = 256  # summed before they are added to others
LEAST_PIECES = 16  # of a weight gradient, each of which is summed by itself

__all__ = [
    "NAME", "blocking", "declines", "forward", "input_gradient", "share", "weight_and_bias_gradient", "weight_gradient",
    "workspace",
]  # fmt: skip


def declines(problem: Problem) -> str | None:
    """What it does not compute, or what rows in lanes compute faster: long rows, few taps."""
    g = problem.geometry
    if problem.layout != "first" or g.axes != 2 or not g.groups == g.channels == g.filters:
        return "it takes depthwise layers with two axes, channels first"
    if max(g.stride + g.dilation) > 1:
        return "its strides and dilations are 1"
    sizes = LEAST_TAPS_OF_WEIGHTS if problem.kind == "weight_gradient" else LEAST_TAPS
    size, taps = max(g.spatial + g.output), g.kernel[1]
    least = next((least for most, least in sizes.items() if size <= most), MOST_TAPS + 1)
    if not least <= taps <= MOST_TAPS:
        return f"{taps} columns of taps on planes of up to {size} cells a row: rows in lanes are faster"
    if g.channels < machine().lanes(problem.dtype):
        return f"{g.channels} channels leave lanes empty"
    return None


def workspace(problem: Problem) -> int:
    """Bytes taken while it runs: sums of all parts; of half types, w is copied in float32."""
    g, dtype = problem.geometry, problem.dtype
    if problem.kind == "weight_gradient":
        plan = _accumulation(g, dtype, get_threads())
        return plan.size + plan.sums_size
    return _correlation(g, problem.kind == "input_gradient", dtype, dtype, get_threads()).size + widened(
        g.w_shape, dtype
    )


def weight_and_bias_gradient(dy: np.ndarray, x: np.ndarray, g: Geometry, out: np.ndarray, db: np.ndarray) -> None:
    """Write dL/dw (C, 1, *kernel) into ``out`` and dL/db (C,) into ``db``."""
    sums, finite = _accumulation(g, dtype_name(x.dtype), get_threads()).accumulate(dy, x, db)
    if finite:
        out[...] = sums
    else:
        columns.weight_gradient(dy, x, g, out)


def _correlate(
    x: np.ndarray, w: np.ndarray, b: np.ndarray | None, g: Geometry, backwards: bool, out: np.ndarray
) -> None:
    _correlation(g, backwards, dtype_name(x.dtype), dtype_name(out.dtype), get_threads()).correlate(x, w, b, out)


forward, input_gradient = both_ways(_correlate, finite=True)
weight_gradient = without_bias(weight_and_bias_gradient)


@functools.lru_cache(maxsize=256)
def _correlation(g: Geometry, backwards: bool, x_dtype: str, y_dtype: str, threads: int) -> Prepared:
    lanes, (taps_high, taps) = machine().lanes(x_dtype), g.kernel
    (x_height, x_width), (out_height, out_width) = (g.output, g.spatial) if backwards else (g.spatial, g.output)
    pad_high, pad = (k - 1 - low if backwards else low for k, (low, _) in zip(g.kernel, g.padding))
    blocks = -(-g.channels // lanes)
    piece_images = max(1, min(g.batch, g.batch * blocks // (8 * threads)))
    y_at, y_size, w_size = (_vectors(n, lanes) for n in (x_height * x_width, out_height * out_width, taps_high * taps))
    slot_size = y_at + y_size + w_size
    job = Job(
        correlate_small_planes(x_dtype, y_dtype, lanes, taps, x_width, out_width, pad, backwards),
        -(-g.batch // piece_images) * blocks, slot_size=slot_size, y_at=y_at, w_at=y_at + y_size, images=g.batch,
        piece_images=piece_images, channels=g.channels, x_height=x_height, out_height=out_height,
        taps_high=taps_high, pad_high=pad_high,
    )  # fmt: skip
    return prepared(job, g.flops // 2, slot_size, x_dtype, g.channels)


@functools.lru_cache(maxsize=256)
def _accumulation(g: Geometry, dtype: str, threads: int) -> Prepared:
    lanes, (taps_high, taps) = machine().lanes(dtype), g.kernel
    (x_height, x_width), (out_height, out_width) = g.spatial, g.output
    blocks = -(-g.channels // lanes)
    part_images = max(1, min(g.batch, g.batch * blocks // LEAST_PIECES))
    parts = max(1, -(-g.batch // part_images))
    dy_at, dy_size, w_size = (
        _vectors(n, lanes) for n in (x_height * x_width, out_height * out_width, taps_high * taps)
    )
    slot_size = dy_at + dy_size + w_size
    job = Job(
        accumulate_small_planes(dtype, lanes, taps, x_width, out_width, g.padding[1][0]),
        parts * blocks, slot_size=slot_size, dy_at=dy_at, sums_at=dy_at + dy_size, images=g.batch, part_images=part_images,
        channels=g.channels, x_height=x_height, out_height=out_height, taps_high=taps_high, pad_high=g.padding[0][0],
        chunk_rows=max(1, PRODUCTS // max(1, out_width)),
    )  # fmt: skip
    return prepared(job, g.flops // 2, slot_size, dtype, sums=(parts, *g.w_shape))


def _vectors(cells: int, lanes: int) -> int:
    """Numbers of so many vectors; they are written ``lanes`` at a time."""
    return -(-cells // lanes) * lanes * lanes


def blocking(problem: Problem) -> str:
    """Lanes, planes and pieces, in words."""
    g, dtype, lanes = problem.geometry, problem.dtype, machine().lanes(problem.dtype)
    if problem.kind == "weight_gradient":
        plan = _accumulation(g, dtype, get_threads())
        n = plan.job.numbers
        images = f"{n['part_images']} images a piece, summed over {n['chunk_rows']} rows at a time"
    else:
        plan = _correlation(g, problem.kind == "input_gradient", dtype, dtype, get_threads())
        images = f"{plan.job.numbers['piece_images']} images a piece"
    return f"{lanes} channels in a vector, whole planes; {images}; {plan.cut}"


def share(problem: Problem) -> float:
    """Of the limit; see :mod:`konv.engine.roofline`."""
    done = roofline.padding(problem.geometry.channels, machine().lanes(problem.dtype))
    if problem.kind == "weight_gradient":
        return roofline.share(problem, done, speed=0.7, moving=3, storing=0)
    return roofline.share(problem, done, speed=0.9, moving=1, storing=1)
