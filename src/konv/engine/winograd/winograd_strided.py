"""Winograd's algorithm for 3 x 3 with stride 2, forward: 256 products instead of 441 for 7 x 7 outputs.

What is read and multiplied is told in :mod:`konv.engine.winograd.winograd_strided_kernels`. A few images at a time, and of
them up to 128 channels: first their numbers, which stay in L3, then panels of filters, each transformed once for all of these
images, and sums of outputs that are added to y. How many channels depends on the layer alone, and so do the bits. Half types
do not hold such sums: they take all channels at once.

Error: 0.3-0.5e-6 of the largest output (direct: 0.2-0.4e-6), against float64 on normal, rectified and positive numbers: 128@28,
256@28, 512@14, 512@33, 1024@7. In all else it is that of
:mod:`konv.engine.winograd.winograd`: relative to the largest output, and a NaN may fill its tile.

Losing: one sum of all parts in the points of two taps, 289 products for 7 x 7 (:mod:`konv.engine.winograd.winograd`), takes 1.05
to 1.3 times the time of direct for 512@14, this 0.7: there are twice as many numbers of a filter to transform. All channels at
once, with 2.9 and 1.7 times the memory for 512@14 and 256@28 of batch 8: 0.95 of the time; of as few images as this memory
allows 1.15 to 1.3 times. 64 channels at a time: 1.04 times as long; sums in y that are transposed each time 1.03 times. 64
channels summed before they are added up, not 32: 0.97 to 1.0 of the time, 1.2 times the memory.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from konv.arrays import known_layout
from konv.engine import memory, roofline
from konv.engine.launch import Job
from konv.engine.machine import dtype_name, machine, wide_type, widened
from konv.engine.prepared import Prepared, Step
from konv.engine.threads import get_threads, width
from konv.engine.winograd.winograd_cuts import evenly, group_of
from konv.engine.winograd.winograd_kernels import SPREAD
from konv.engine.winograd.winograd_strided_kernels import (
    CELLS,
    KINDS,
    MATRICES,
    OUTPUTS,
    POINTS,
    STRIDE,
    TAPS,
    places,
    strided_inputs,
    strided_products,
    tiles_of,
)
from konv.geometry import Geometry

if TYPE_CHECKING:
    from konv.engine.plan import Problem

NAME = "winograd_strided"
BEYOND = "few products stand for many of the formula's"
DEPTH = 32  # channels that are summed before they are added up
CHANNELS = 128  # whose outputs are added to y at once
# See `declines`.
LACKING = 0, 1, 2, 5
LEAST_CHANNELS, LEAST_FILTERS, LEAST_FILTERS_OF_LARGE, LARGE = 128, 128, 256, 400
VALUES_BYTES, VALUES_BYTES_OF_HALF = 17 << 17, 9 << 19  # of the numbers of a block of images

__all__ = ["NAME", "blocking", "declines", "forward", "share", "workspace"]


def declines(problem: Problem) -> str | None:
    """What it does not compute."""
    g = problem.geometry
    if problem.kind != "forward":
        return "it computes forward only"
    if problem.exact:
        return "an exact sum is asked for: its error is up to three times a direct sum's"
    if g.groups > 1 or g.kernel != (TAPS, TAPS) or g.stride != (STRIDE, STRIDE) or max(g.dilation) > 1:
        return "its kernels are 3 x 3 of stride 2, of one group"
    if g.channels < LEAST_CHANNELS:
        return (
            f"{g.channels} channels to sum, fewer than {LEAST_CHANNELS}: what is transformed costs more than it saves"
        )
    least = LEAST_FILTERS_OF_LARGE if math.prod(g.output) >= LARGE else LEAST_FILTERS
    if g.filters < least:
        return f"{g.filters} filters, fewer than {least}: the inputs' numbers, which come from L3, are too seldom used"
    if not set(LACKING).isdisjoint(g.output):
        return f"{' x '.join(map(str, g.output))} outputs: it takes those that tiles of 4 and 3 add up to"
    return None


def workspace(problem: Problem) -> int:
    """Bytes taken while it runs: of half types, w is copied in float32."""
    g, dtype = problem.geometry, problem.dtype
    blocks = _prepare(g, dtype, dtype, problem.layout, get_threads())
    return max(block.size for _, block in blocks) + widened(g.w_shape, dtype)


@functools.lru_cache(maxsize=512)
def _prepare(g: Geometry, dtype: str, out: str, layout: str, threads: int) -> list[tuple[int, Prepared]]:
    """Blocks of images, each with its first: of some channels their numbers, then all panels of filters."""
    host, wide = machine(), wide_type(dtype)
    itemsize, lanes, batch = np.dtype(wide).itemsize, host.lanes(wide), max(1, g.batch)
    vectors = min(host.tile[0], -(-g.filters // lanes))
    panel, most = lanes * vectors, host.tile[1]
    depth = min(DEPTH, -(-g.channels // lanes) * lanes)
    all_chunks = -(-g.channels // depth)
    turn_chunks, values_bytes = evenly(all_chunks, max(1, CHANNELS // depth))[1], VALUES_BYTES
    if out != wide:
        turn_chunks, values_bytes = all_chunks, VALUES_BYTES_OF_HALF
    plane, output = depth * panel + SPREAD, (g.output[0], g.output[1])
    image = places(1, *output, (1, 1))[1] * depth * itemsize  # bytes of its numbers of one chunk
    chunks = all_chunks if batch * all_chunks * image <= values_bytes else turn_chunks
    (rows, whole_rows), (columns, whole_columns) = map(tiles_of, g.output)
    pitch = -(-(STRIDE * g.output[1] + TAPS) // lanes) * lanes
    strip, no_bias = pitch * lanes * CELLS, np.zeros(-(-g.filters // panel) * panel, wide)

    def block(images: int) -> Prepared:
        groups = _groups(images, g, most)
        table, cells = places(images, *output, groups)
        shared: dict[str, Any] = dict(
            matrices=table, channels=g.channels, height=g.output[0], width=g.output[1], tile_rows=rows,
            tile_columns=columns, whole_rows=whole_rows, whole_columns=whole_columns, cells=cells,
        )  # fmt: skip
        sums_at = MATRICES * plane
        slot = sums_at + (cells + lanes) * panel  # whole vectors of cells are turned
        steps: list[Step] = []
        for first in range(0, all_chunks, chunks):
            own = dict(shared, first_chunk=first, chunks=min(chunks, all_chunks - first))
            own_vectors = -(-min(chunks * depth, g.channels - first * depth) // lanes)
            inputs = Job(
                strided_inputs(dtype, lanes, depth, layout), images * own_vectors, x_height=g.spatial[0], x_width=g.spatial[1],
                pad_height=g.padding[0][0], pad_width=g.padding[1][0], pitch=pitch, slot_size=strip, **own,
            )  # fmt: skip
            products = Job(
                strided_products(out, wide, lanes, vectors, depth, groups, layout), -(-g.filters // panel), images=images,
                filters=g.filters, turn_chunks=turn_chunks, sums_at=sums_at, slot_size=slot, **own,
            )  # fmt: skip
            if not steps:
                moving = width(inputs.pieces, images * g.channels * math.prod(g.spatial) * 4)
                used = width(products.pieces, cells * g.channels * g.filters)
            steps += [Step(inputs, moving), Step(products, used)]
        values = -(-cells * chunks * depth * itemsize // memory.LINE) * memory.LINE
        size = values + max(moving * strip, used * slot) * itemsize
        return Prepared(products, used, size, (("values", 0), ("slots", values)), tuple(steps), no_bias, (), None)

    count, images = evenly(batch, max(1, values_bytes // (chunks * image)))
    made = {n: block(n) for n in {images, batch - images * (count - 1)}}
    return [(i * images, made[min(images, batch - i * images)]) for i in range(count)]


def _groups(images: int, g: Geometry, most: int) -> tuple[int, int]:
    """Cells in registers at once, of matrices of points along both axes and of the others; see :func:`group_of`."""
    table, _ = places(images, g.output[0], g.output[1], (1, 1))
    counts = [(1, int(n)) for n in table[:, -1]]
    others = [n for i, n in enumerate(counts) if POINTS in divmod(i, KINDS)]
    return group_of(counts, most), group_of(others, most)


def forward(x: np.ndarray, w: np.ndarray, b: np.ndarray | None, g: Geometry, out: np.ndarray) -> None:
    """Write conv(x, w) + b into ``out`` (N, F, *output)."""
    if out.size == 0:
        return
    blocks = _prepare(g, dtype_name(x.dtype), dtype_name(out.dtype), known_layout(x, out), get_threads())
    w, bias = blocks[0][1].weights(w), blocks[0][1].bias(b)
    for first, block in blocks:
        block.run(x=x[first:], w=w, bias=bias, y=out[first:])


def blocking(problem: Problem) -> str:
    """Tiles, blocks and pieces, in words."""
    g, dtype = problem.geometry, problem.dtype
    _, block = _prepare(g, dtype, dtype, problem.layout, get_threads())[0]
    images, turns = block.job.numbers["images"], len(block.steps) // 2
    return (
        f"tiles of {OUTPUTS} x {OUTPUTS} outputs; images in blocks of {images}, channels in {turns}, a panel of filters a piece; "
        f"{block.cut}"
    )


def share(problem: Problem) -> float:
    """Of the limit; see :mod:`konv.engine.roofline`. Above 1, for few products stand for many of the formula's."""
    g, lanes = problem.geometry, machine().lanes(problem.dtype)
    done = math.prod(2 * n + -(-n // OUTPUTS) for n in g.output) / (math.prod(g.output) * math.prod(g.kernel))
    return roofline.share(problem, done * roofline.padding(g.filters, lanes), speed=0.75, moving=0.75, storing=0)
