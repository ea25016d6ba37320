"""Pixels in lanes, channels first: the job of the weight gradient, see :mod:`konv.engine.groups.planes_outer`."""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np

from konv.engine.groups.axes import forward_axes
from konv.engine.groups.planes_jobs import (
    FAR_BYTES,
    FAR_TAPS,
    array_bytes,
    lanes_of,
    neighbours,
    rows_shared,
    woven_row,
)
from konv.engine.groups.planes_outer import accumulate_planes
from konv.engine.launch import Job
from konv.engine.machine import dtype_name, machine
from konv.engine.prepared import Prepared, prepared
from konv.engine.simd import ITEMSIZE
from konv.engine.threads import get_threads
from konv.geometry import Geometry

BLOCK_BYTES, LEAST_PIECES = 64 << 10, 32  # of a weight gradient: what it reads several times stays in L2
PRODUCTS = 192  # summed in one accumulator before they are added to another: the error falls


def weight_and_bias_gradient(dy: np.ndarray, x: np.ndarray, g: Geometry, out: np.ndarray, db: np.ndarray) -> None:
    """Write dL/dw (F, C // groups, *kernel) into ``out`` and dL/db (F,) into ``db``: dy is read once."""
    out[...], _ = accumulation(g, dtype_name(x.dtype), get_threads()).accumulate(dy, x, db)


@functools.lru_cache(maxsize=256)
def accumulation(g: Geometry, dtype: str, threads: int) -> Prepared:
    """The job of a layer; how it is cut into sums does not depend on ``threads``."""
    depth, height, row = forward_axes(g)
    woven = row.out % 2 == 0 and woven_row((row,), dtype, dtype)
    columns_of_set = row.out // (1 + woven)
    lanes = lanes_of(dtype, columns_of_set)
    channels, filters, kernel = g.channels // g.groups, g.filters // g.groups, math.prod(g.kernel)
    shared = rows_shared(height)
    follow = neighbours(row) and row.stride <= 2
    columns = min(len(row.taps), {1: 8, 2: 4, 3: 3, 4: 3, 5: 3}.get(shared, 2)) if follow else 1
    tile_filters = 2 if filters % 2 == 0 and shared * columns <= 9 and machine().registers >= 32 else 1
    heights = (7, 4, 1) if tile_filters == 1 and (not woven or shared * columns <= 9) else (4, 1)
    rows = min((n for n in heights if n <= height.out), key=lambda n: height.out // n * (n + 2) + height.out % n * 3)
    if channels == filters == 1 and len(height.taps) <= FAR_TAPS and 3 * array_bytes(g, dtype) > 4 * FAR_BYTES:
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
    return prepared(job, g.flops // 2, 0, dtype, sums=(parts, *g.w_shape))
