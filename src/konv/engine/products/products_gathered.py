"""Input gradients of deep 1x1 layers on small images, channels first: laid channels last, multiplied so, and laid back.

Panels of pixels seldom end where images of 7 x 7 do, and w, larger than dy and dx there, has to be turned for every block of
them. With channels last w is read as it lies: of one thread 1024-2048@14 with stride 2 took .88 of the CPU time, both copies
included, 512-2048@7 .98. Forward was not tried so: of 512-2048@7 the product alone took .95 of the time on one thread, .99 on
two.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import TYPE_CHECKING

import numpy as np

from konv import lending
from konv.engine.compile import kernel
from konv.engine.launch import Job, address
from konv.engine.machine import dtype_name, machine, wide_type
from konv.engine.products import products_last
from konv.engine.simd import loop, minimum, transpose, within
from konv.engine.threads import width
from konv.engine.windows import in_vectors
from konv.geometry import Geometry

if TYPE_CHECKING:
    from konv.engine.plan import Problem

NAME = "products_gathered"
LEAST_FILTERS, LEAST_CHANNELS = 1024, 256
MOST_PIXELS = 64  # of an image that windows read
COPY_BYTES = 8 << 20  # of images that are computed together
COPIED = 8  # multiply-adds take as long as one number's copy

__all__ = ["NAME", "blocking", "declines", "input_gradient", "share", "workspace"]


def declines(problem: Problem) -> str | None:
    """All but input gradients of deep 1x1 layers on small images; never for the batch's sake."""
    g = problem.geometry
    if problem.layout == "last":
        return "channels last; it lays channels first so"
    if problem.kind != "input_gradient":
        return f"{problem.kind.replace('_', ' ')}; it computes input gradients"
    if math.prod(g.kernel) > 1 or any(map(any, g.padding)) or g.groups > 1:
        return "no 1x1 kernel of one group without padding"
    if wide_type(problem.dtype) != problem.dtype:
        return "half types"
    if g.filters < LEAST_FILTERS or g.channels < LEAST_CHANNELS or math.prod(g.output) > MOST_PIXELS:
        return (
            f"{g.filters} filters, {g.channels} channels and {math.prod(g.output)} pixels; it takes {LEAST_FILTERS} and "
            f"{LEAST_CHANNELS} or more, and up to {MOST_PIXELS}"
        )
    return None


def _together(g: Geometry) -> Geometry:
    """Of the pixels that windows read, of as many images as are computed together."""
    image = math.prod(g.output) * (g.channels + g.filters) * g.itemsize
    images = max(1, min(g.batch, COPY_BYTES // image))
    return dataclasses.replace(g, batch=images, spatial=g.output, stride=(1,) * g.axes)


def _last(problem: Problem) -> Problem:
    """What is multiplied."""
    return dataclasses.replace(problem, geometry=_together(problem.geometry), layout="last")


def workspace(problem: Problem) -> int:
    """Bytes borrowed while it runs, both copies among them."""
    some = _together(problem.geometry)
    copies = some.batch * math.prod(some.output) * (some.channels + some.filters) * some.itemsize
    return copies + products_last.workspace(_last(problem))


def blocking(problem: Problem) -> str:
    """Tile, blocks and pieces, in words."""
    images = _together(problem.geometry).batch
    return f"{images} images at a time laid channels last; {products_last.blocking(_last(problem))}"


def share(problem: Problem) -> float:
    """Of the limit; see :mod:`konv.engine.roofline`."""
    return products_last.share(_last(problem))


def input_gradient(dy: np.ndarray, w: np.ndarray, g: Geometry, out: np.ndarray) -> None:
    """Write dL/dx (N, C, *spatial) into ``out``."""
    dy, together = np.ascontiguousarray(dy), _together(g)
    target = out if out.flags.c_contiguous else np.empty(out.shape, out.dtype)
    if math.prod(g.stride) > 1:
        target[...] = 0  # cells that no window reads
    for first in range(0, g.batch, together.batch):
        some = dataclasses.replace(together, batch=min(together.batch, g.batch - first))
        source = lending.empty((some.batch, *some.output, g.filters), dy.dtype)
        made = lending.empty((some.batch, *some.output, g.channels), dy.dtype)
        there, back = _jobs(some, g, dtype_name(dy.dtype))
        there.run(width(there.pieces, COPIED * source.size), x=address(dy[first:]), out=address(source))
        products_last.input_gradient(np.moveaxis(source, -1, 1), w, some, np.moveaxis(made, -1, 1))
        back.run(width(back.pieces, COPIED * made.size), x=address(made), out=address(target[first:]))
    if target is not out:
        out[...] = target


@functools.lru_cache(maxsize=256)
def _jobs(some: Geometry, g: Geometry, dtype: str) -> tuple[Job, Job]:
    """What lays dy's pixels channels last, and what lays those of dx back."""
    lanes, pixels = machine().lanes(dtype), math.prod(g.output)
    ones = (1,) * (3 - g.axes)
    (_, height, cells), step, lines = ones + g.spatial, ones + g.stride, ones + g.output
    if math.prod(step) == 1:
        lines, step, height, cells = (1, 1, pixels), (1, 1, 1), 1, pixels
    blocks = -(-g.filters // lanes), -(-g.channels // lanes)
    there = Job(lay_last(dtype, lanes), some.batch * blocks[0], channels=g.filters, blocks=blocks[0], pixels=pixels)
    back = Job(
        lay_first(dtype, lanes, step[2] > 1), some.batch * blocks[1], channels=g.channels, blocks=blocks[1], pixels=pixels,
        channel=math.prod(g.spatial), depth=step[0] * height * cells, row=step[1] * cells, step=step[2], line_pixels=lines[2],
        depth_lines=lines[1],
    )  # fmt: skip
    return there, back


@kernel
def lay_last(dtype, lanes):
    """``out[image, pixel, channel]`` of ``x[image, channel, pixel]``. A piece is (image, ``lanes`` channels)."""

    def text(piece, slot, x, out, channels, blocks, pixels):
        image, first = piece // blocks, piece % blocks * lanes
        rows = [x.at((image * channels + minimum(first + i, channels - 1)) * pixels) for i in range(lanes)]
        for j, used in in_vectors(pixels, pixels, lanes):
            target = out.at((image * pixels + j) * channels + first)
            for i, pixel in enumerate(transpose([row.vec(j, lanes, count=used) for row in rows])):
                for _ in loop(1 if used is None else within(i, used)):
                    target.put(i * channels, pixel, count=channels - first)

    return text, {"x": dtype, "out": dtype}


@kernel
def lay_first(dtype, lanes, strided):
    """The other way: ``x[image, pixel, channel]`` to the cells of ``out[image, channel]`` that windows read."""

    def text(piece, slot, x, out, channels, blocks, pixels, channel, depth, row, step, line_pixels, depth_lines):
        image, first = piece // blocks, piece % blocks * lanes
        used_channels = channels - first
        planes = out.at((image * channels + first) * channel)
        for line in loop(pixels // line_pixels):
            start = line // depth_lines * depth + line % depth_lines * row
            for j, used in in_vectors(line_pixels, line_pixels, lanes):
                source = x.at((image * pixels + line * line_pixels) * channels + first)
                places = [minimum(j + i, line_pixels - 1) for i in range(lanes)]
                numbers = transpose([source.vec(place * channels, lanes, count=used_channels) for place in places])
                for c, vector in enumerate(numbers):
                    for _ in loop(within(c, used_channels)):
                        target = planes.at(c * channel + start + j * step)
                        if strided:
                            target.scatter(0, step, vector, lanes if used is None else minimum(used, lanes))
                        else:
                            target.put(0, vector, count=used)

    return text, {"x": dtype, "out": dtype}
