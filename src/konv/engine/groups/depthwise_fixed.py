"""Depthwise layers with two axes and many channels, channels first: jobs of :mod:`konv.engine.groups.depthwise_fixed_kernels`,
which are compiled for the size of a plane.

Only the planes of square pictures of 160, 192, 224 and 256 pixels, halved again and again: whoever draws pictures of all sizes
would else compile at each.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from konv.arrays import all_finite
from konv.engine import columns
from konv.engine.groups.depthwise_fixed_kernels import KEPT_FACTORS, accumulate_fixed, correlate_fixed
from konv.engine.groups.planes_jobs import FAR_BYTES, FAR_ROW_BYTES, FAR_TAPS
from konv.engine.launch import Job, address
from konv.engine.machine import dtype_name, machine, wide_type
from konv.engine.simd import ITEMSIZE
from konv.engine.threads import get_threads, width
from konv.geometry import Geometry

LEAST_CHANNELS = 32  # or code of its own does not pay
MOST_CELLS = 112  # of a row and of a column
SIDES = {side << times for side in (5, 6, 7, 8) for times in range(5) if side << times <= MOST_CELLS}  # of planes
MOST_TAPS, MOST_TAPS_OF_WEIGHTS = 7, 5  # of a row and of a column; sums of weights are in registers together
MOST_LINES = 3000  # rows by taps, all of which are text: 49 taps on 56 x 56 compile in 1.5 s, on 112 x 112 in 5
PRODUCTS = 192  # summed in one accumulator before they are added to another
LEAST_PIECES = 32  # of a weight gradient, each of which is summed by itself


def takes(g: Geometry, dtype: str, kind: str) -> bool:
    """Whether these are the jobs of a layer."""
    depthwise = g.axes == 2 and g.groups == g.channels == g.filters
    if not depthwise or not worth_compiling(g) or max(g.dilation) > 1 or max(g.output) > MOST_CELLS:
        return False
    if kind == "weight_gradient":
        return g.output[1] <= machine().lanes(dtype) and max(g.kernel) <= MOST_TAPS_OF_WEIGHTS and max(g.stride) <= 2
    return max(g.kernel) <= MOST_TAPS and max(g.stride) <= (2 if kind == "forward" else 1)


def worth_compiling(g: Geometry) -> bool:
    """Whether a layer has the channels, and planes of a size that is common enough, for kernels of its own."""
    square = g.spatial[0] == g.spatial[1] and g.spatial[0] in SIDES
    return g.channels >= LEAST_CHANNELS and square and g.spatial[0] * math.prod(g.kernel) <= MOST_LINES


@dataclass(frozen=True)
class Fixed:
    """A prepared job, its threads, lanes and rows of a tile, zeros for its bias, and in how many parts its sums are."""

    job: Job
    threads: int
    lanes: int
    rows: int
    no_bias: np.ndarray
    parts: int = 1


def correlate(x: np.ndarray, w: np.ndarray, b: Any, g: Geometry, backwards: bool, out: np.ndarray) -> None:
    """Forward, or with ``backwards`` the input gradient."""
    run(correlation(g, backwards, dtype_name(x.dtype), dtype_name(out.dtype), get_threads()), x, w, b, out)


def run(plan: Fixed, x: np.ndarray, w: np.ndarray, b: Any, out: np.ndarray) -> None:
    """Run a correlation's job."""
    weights = np.ascontiguousarray(w, x.dtype)
    bias = plan.no_bias if b is None else np.ascontiguousarray(b, x.dtype)
    launch(plan, address(x), address(weights), address(bias), address(out))


def launch(plan: Fixed, x: int, w: int, b: int, out: int) -> None:
    """The same of addresses, b may be 0."""
    plan.job.run(plan.threads, x=x, w=w, bias=b or address(plan.no_bias), y=out)


def weight_and_bias_gradient(dy: np.ndarray, x: np.ndarray, g: Geometry, out: np.ndarray, db: np.ndarray) -> None:
    """Write dL/dw (C, 1, *kernel) into ``out`` and dL/db (C,) into ``db``."""
    plan = accumulation(g, dtype_name(x.dtype), get_threads())
    wide = np.dtype(wide_type(dtype_name(x.dtype)))
    in_place = plan.parts == 1 and out.dtype == db.dtype == wide and out.flags.c_contiguous and db.flags.c_contiguous
    if in_place:
        sums, biases = out, db
    else:
        sums, biases = np.empty((plan.parts, *g.w_shape), wide), np.empty((plan.parts, g.channels), wide)
    plan.job.run(plan.threads, x=address(x), dy=address(dy), sums=address(sums), biases=address(biases))
    if not in_place:
        out[...], db[...] = sums.sum(axis=0), biases.sum(axis=0)
    if not all_finite(biases):  # nor is dy: taps in the padding, left out here, make NaN of it
        columns.weight_gradient(dy, x, g, out)


@functools.lru_cache(maxsize=256)
def correlation(g: Geometry, backwards: bool, x_dtype: str, y_dtype: str, threads: int) -> Fixed:
    """The job of a correlation."""
    x_size, y_size = (g.output, g.spatial) if backwards else (g.spatial, g.output)
    pad = tuple(k - 1 - low if backwards else low for k, (low, _) in zip(g.kernel, g.padding))
    vectors = vectors_of(y_size[1], x_dtype, woven(y_size[1], g.stride[1], x_dtype, y_dtype))
    planes = g.batch * g.channels
    moved = planes * (math.prod(x_size) + math.prod(y_size)) * ITEMSIZE[x_dtype]
    two_taps = vectors[0][2] == 2 and g.kernel[1] > 1 and g.kernel[0] * -(-g.kernel[1] // 2) <= KEPT_FACTORS
    if machine().registers < 32:
        most = 4 // vectors[0][2]
    else:
        most = 8 if two_taps else (14 if len(vectors) == 1 else 8) // vectors[0][2]
    if moved > FAR_BYTES and g.kernel[0] <= FAR_TAPS and y_size[1] * ITEMSIZE[y_dtype] > FAR_ROW_BYTES:
        most = min(most, 1 if g.stride[0] == 2 and g.kernel[0] <= 3 else 2)
    rows = _rows(y_size[0], most)
    chunk = -(-planes // max(1, 8 * threads))
    job = Job(
        correlate_fixed(
            x_dtype, y_dtype, vectors, rows, g.kernel, g.stride, pad, x_size, y_size, backwards, two_taps
        ),
        -(-planes // max(1, chunk)), planes=planes, chunk=chunk, channels=g.channels,
    )  # fmt: skip
    return Fixed(
        job, width(job.pieces, g.flops // 2), vectors[0][1], rows, np.zeros(g.channels * ITEMSIZE[x_dtype], np.uint8)
    )


@functools.lru_cache(maxsize=256)
def accumulation(g: Geometry, dtype: str, threads: int) -> Fixed:
    """The job of the weight gradient; how it is cut does not depend on ``threads``."""
    (_, lanes, _), out_height = vectors_of(g.output[1], dtype, False)[0], g.output[0]
    rows = _rows(out_height, max(1, min(14, machine().registers - 4 - math.prod(g.kernel))), apart=True)
    part_images = max(1, min(g.batch, g.batch * g.channels // LEAST_PIECES))
    parts, chunk = max(1, -(-g.batch // part_images)), max(1, g.channels // (8 * threads))
    job = Job(
        accumulate_fixed(
            dtype, lanes, rows, g.kernel, g.stride, tuple(low for low, _ in g.padding), g.spatial, g.output
        ),
        parts * -(-g.channels // chunk), images=g.batch, part_images=part_images,
        block_images=max(1, PRODUCTS // max(1, out_height)), chunk=chunk, channels=g.channels,
    )  # fmt: skip
    return Fixed(job, width(job.pieces, g.flops // 2), lanes, rows, np.zeros(0), parts)


def workspace(g: Geometry, dtype: str, kind: str) -> int:
    """Bytes of partial sums; those of one part in the type of the result are written where they belong."""
    if kind != "weight_gradient":
        return 0
    parts = accumulation(g, dtype, get_threads()).parts
    return 0 if parts == 1 and dtype == wide_type(dtype) else parts * math.prod(g.w_shape) * ITEMSIZE[wide_type(dtype)]


def blocking(g: Geometry, dtype: str, kind: str) -> str:
    """Tile and pieces, in words."""
    if kind == "weight_gradient":
        plan = accumulation(g, dtype, get_threads())
        n = plan.job.numbers
        pieces = f"{n['chunk']} channels of {n['part_images']} images"
    else:
        plan = correlation(g, kind == "input_gradient", dtype, dtype, get_threads())
        pieces = f"{plan.job.numbers['chunk']} planes"
    return (
        f"{plan.lanes} pixels of a row in a vector, {plan.rows} rows together, the size of a plane compiled in; "
        f"{pieces} a piece; {plan.job.cut(plan.threads)}"
    )


def vectors_of(row: int, dtype: str, woven: bool) -> tuple[tuple[int, int, int], ...]:
    """(first column, lanes, sets) of the vectors of a row: the last has half the lanes where those suffice."""
    lanes, sets = machine().lanes(dtype), 1 + woven
    found = [(at, lanes, sets) for at in range(0, row, lanes * sets)]
    if found and row - found[-1][0] <= lanes * sets // 2 and lanes > 4:
        found[-1] = found[-1][0], lanes // 2, sets
    return tuple(found)


def _rows(height: int, most: int, apart: bool = False) -> int:
    """Rows of a tile, those that compute fewest twice; ``apart``: none twice, the last tile may be smaller."""
    return min(
        range(1, min(most, max(1, height)) + 1),
        key=lambda n: (height / n if apart else -(-height // n)) * (n + 2) - n / 64,
    )


def woven(row: int, stride: int, x_dtype: str, y_dtype: str) -> bool:
    """Whether even and odd columns are apart, as in :mod:`konv.engine.groups.planes_jobs`."""
    return x_dtype == y_dtype == "bfloat16" and machine().dots and stride == 1 and row > machine().lanes(x_dtype)
