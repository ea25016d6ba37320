"""The bias gradient: dy summed over images and pixels, at the speed of memory.

Sums are cut into parts that depend on the shape alone, and each part into stretches that are summed by themselves and then
added. NumPy's sum took as long as a whole weight gradient of few channels.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from konv.arrays import known_layout
from konv.engine.compile import kernel
from konv.engine.launch import Job, address
from konv.engine.machine import dtype_name, machine, wide_type
from konv.engine.simd import Variable, loop, minimum
from konv.engine.threads import width

PARTS = 16  # for threads to share
STRETCH = 512  # pixels of a channels-last part that are summed before they are added to the rest
UNROLLED = 4


def bias_gradient(dy: np.ndarray) -> np.ndarray:
    """dL/db (F,) of dy (N, F, *output)."""
    batch, filters, pixels = *dy.shape[:2], math.prod(dy.shape[2:])
    if not dy.size:
        return np.zeros(filters, dy.dtype)
    last = known_layout(dy) == "last"
    dtype = dtype_name(dy.dtype)
    job, parts = _job(dtype, last, batch, filters, pixels)
    sums = np.empty((parts, filters, 1 if last else machine().lanes(dtype)), wide_type(dtype))
    job.run(width(job.pieces, dy.size), dy=address(dy), sums=address(sums))
    sums = sums.sum(axis=2)
    return (sums.sum(axis=0) if parts > 1 else sums[0]).astype(dy.dtype, copy=False)


@functools.lru_cache(maxsize=256)
def _job(dtype: str, last: bool, batch: int, filters: int, pixels: int) -> tuple[Job, int]:
    lanes = machine().lanes(dtype)
    if last:
        parts = max(1, min(PARTS, batch * pixels // STRETCH))
        job = Job(sum_last(dtype, lanes), parts, parts=parts, pixels=batch * pixels, filters=filters)
    else:
        parts = max(1, min(batch, -(-PARTS // filters)))
        job = Job(sum_first(dtype, lanes), parts * filters, parts=parts, images=batch, filters=filters, pixels=pixels)
    return job, parts


@kernel
def sum_first(dtype, lanes):
    """``sums[part, filter, lane]`` of dy (N, F, pixels). A piece is (part of the images, filter)."""

    def text(piece, slot, dy, sums, parts, images, filters, pixels):
        f, part = piece % filters, piece // filters
        first = part * images // parts
        total = Variable(sums.zero(lanes))
        for n in loop((part + 1) * images // parts - first):
            image = dy.at(((first + n) * filters + f) * pixels)
            stretches = [Variable(sums.zero(lanes)) for _ in range(UNROLLED)]
            for q in loop((pixels + (UNROLLED * lanes - 1)) // (UNROLLED * lanes)):
                for i, stretch in enumerate(stretches):
                    at = (q * UNROLLED + i) * lanes
                    stretch.set(stretch.get() + image.vec(at, lanes, count=pixels - at))
            for stretch in stretches:
                total.set(total.get() + stretch.get())
        sums.put(piece * lanes, total.get())

    return text, {"dy": dtype, "sums": wide_type(dtype)}


@kernel
def sum_last(dtype, lanes):
    """``sums[part, filter]`` of dy (N * pixels, F). A piece is a part of the pixels."""

    def text(piece, slot, dy, sums, parts, pixels, filters):
        first = piece * pixels // parts
        count = (piece + 1) * pixels // parts - first
        for block in loop((filters + (lanes - 1)) // lanes):
            here = filters - block * lanes
            total = Variable(sums.zero(lanes))
            for start in loop((count + (STRETCH - 1)) // STRETCH):
                rows = minimum(count - start * STRETCH, STRETCH)
                source = dy.at((first + start * STRETCH) * filters + block * lanes)
                stretches = [Variable(sums.zero(lanes)) for _ in range(UNROLLED)]
                for r in loop((rows + (UNROLLED - 1)) // UNROLLED):
                    for i, stretch in enumerate(stretches):
                        row = r * UNROLLED + i
                        exists = minimum(rows - row, 1)
                        stretch.set(stretch.get() + source.vec(row * filters, lanes, count=here * exists))
                for stretch in stretches:
                    total.set(total.get() + stretch.get())
            sums.put(piece * filters + block * lanes, total.get(), count=here)

    return text, {"dy": dtype, "sums": wide_type(dtype)}
