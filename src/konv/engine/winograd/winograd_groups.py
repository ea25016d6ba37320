"""Winograd's algorithm F(4x4, 3x3) for groups of one to three vectors of channels, as ResNeXt has: a quarter of the products.

The formulas, the error and the reasons to refuse it are those of :mod:`konv.engine.winograd.winograd`. A group's points are so
few that those of its filters, a block's inputs and its sums lie in L2 together, and a thread takes whole groups.

512@14, 32 groups of 16 x 16, takes half the time of pixels in lanes, which takes two thirds of the direct tile's. What is left
is half products, half transforms and what they move through L2; fewer or more tiles of a block, or channels known when
the kernel is compiled, change nothing. Groups of 8 in half vectors would lose in empty lanes what they save in products.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import numpy as np

from konv.arrays import known_layout
from konv.engine import roofline
from konv.engine.launch import Job
from konv.engine.machine import dtype_name, machine, widened
from konv.engine.prepared import Prepared, both_ways, prepared
from konv.engine.threads import get_threads
from konv.engine.winograd.winograd_cuts import evenly
from konv.engine.winograd.winograd_groups_kernels import OUTPUTS, POINTS, SPAN, TAPS, winograd_of_groups
from konv.engine.winograd.winograd_kernels import SPREAD
from konv.geometry import Geometry

if TYPE_CHECKING:
    from konv.engine.plan import Problem

NAME = "winograd_groups"
BEYOND = "few products stand for many of the formula's"
MOST = 48  # channels, and filters, of a group
LEAST_OUTPUTS = 6  # in a tile, on average
BLOCK_TILES = 32  # whose points lie in the caches
PIECE_TILES = 64  # at least, of a piece, that share the transformed filters

__all__ = ["NAME", "blocking", "declines", "forward", "input_gradient", "share", "workspace"]


def declines(problem: Problem) -> str | None:
    """What it does not compute, and small images, of which a tile is mostly empty."""
    g = problem.geometry
    channels, filters, lanes = g.channels // g.groups, g.filters // g.groups, machine().lanes(problem.dtype)
    if problem.exact:
        return "an exact sum is asked for: its error is up to three times a direct sum's"
    if problem.kind == "weight_gradient":
        return "it computes no weight gradients"
    if g.kernel != (TAPS, TAPS) or max(g.stride + g.dilation) > 1:
        return "its kernels are 3 x 3 of stride and dilation 1"
    if g.groups == 1 or channels % lanes or filters % lanes or max(channels, filters) > MOST:
        return f"groups of {channels} x {filters}: it takes whole vectors of {lanes} lanes, of at most {MOST} channels"
    height, row = g.spatial if problem.kind == "input_gradient" else g.output
    if height * row < LEAST_OUTPUTS * -(-height // OUTPUTS) * -(-row // OUTPUTS):
        return f"{height} x {row} outputs fill less than {LEAST_OUTPUTS} of a tile's 16 cells"
    return None


def workspace(problem: Problem) -> int:
    """Bytes taken while it runs: of half types, w is copied in float32."""
    g, dtype = problem.geometry, problem.dtype
    job = _prepare(g, problem.kind == "input_gradient", dtype, dtype, problem.layout, get_threads())
    return job.size + widened(g.w_shape, dtype)


@functools.lru_cache(maxsize=512)
def _prepare(g: Geometry, transposed: bool, dtype: str, out: str, layout: str, threads: int) -> Prepared:
    host = machine()
    channels, filters = g.channels // g.groups, g.filters // g.groups
    if transposed:
        channels, filters = filters, channels
    (x_height, x_width), cells = (g.output, g.spatial) if transposed else (g.spatial, g.output)
    low = [TAPS - 1 - n if transposed else n for n, _ in g.padding]
    lanes = host.lanes(dtype)
    vectors = 2 if filters % (2 * lanes) == 0 else 1
    images, (rows, columns) = max(1, g.batch), [-(-n // OUTPUTS) for n in cells]
    column_blocks, block_columns = evenly(columns, BLOCK_TILES)
    row_blocks, block_rows = evenly(rows, max(1, BLOCK_TILES // block_columns))
    whole = row_blocks * column_blocks == 1
    image_blocks, block_images = evenly(images, max(1, BLOCK_TILES // (rows * columns)) if whole else 1)
    blocks = image_blocks * row_blocks * column_blocks
    block_tiles = block_images * block_rows * block_columns
    most = host.tile[1] * 2 // vectors
    tiles = min((n for n in (28, 16, 14, 8, 6) if n <= most), key=lambda n: -(-block_tiles // n) * (n + 1))
    parts, piece_blocks = evenly(blocks, max(1, PIECE_TILES // block_tiles))

    panel = lanes * vectors
    held = -(-block_tiles // tiles) * tiles
    input_plane, sums_plane, filter_plane = (n + SPREAD for n in (held * channels, held * panel, channels * panel))
    pitch = -(-(block_columns * OUTPUTS + TAPS - 1) // lanes) * lanes + lanes
    sums_at = POINTS * input_plane
    filters_at = sums_at + POINTS * sums_plane
    strip_at = filters_at + POINTS * filter_plane * (filters // panel)
    slot_size = strip_at + (block_rows * 4 + SPAN) * pitch * lanes
    tap = TAPS * TAPS
    job = Job(
        winograd_of_groups(dtype, out, lanes, vectors, tiles, "flipped taps" if transposed else "taps", layout),
        g.groups * parts, slot_size=slot_size, sums_at=sums_at, filters_at=filters_at, strip_at=strip_at, images=g.batch,
        groups=g.groups, channels=channels, filters=filters,
        x_height=x_height, x_width=x_width, pad_height=low[0], pad_width=low[1], out_height=cells[0],
        out_width=cells[1], tile_rows=rows, tile_columns=columns,
        block_images=block_images, block_rows=block_rows, block_columns=block_columns,
        row_blocks=row_blocks, column_blocks=column_blocks, blocks=blocks, piece_blocks=piece_blocks, parts=parts,
        filter_stride=tap * (1 if transposed else channels), channel_stride=tap * (filters if transposed else 1),
        input_plane=input_plane, sums_plane=sums_plane, filter_plane=filter_plane, pitch=pitch,
    )  # fmt: skip
    return prepared(job, g.flops // 8, slot_size, dtype, g.groups * filters)


def _run(x: np.ndarray, w: np.ndarray, b: np.ndarray | None, g: Geometry, transposed: bool, out: np.ndarray) -> None:
    names, layout = (dtype_name(x.dtype), dtype_name(out.dtype)), known_layout(x, out)
    _prepare(g, transposed, *names, layout, get_threads()).correlate(x, w, b, out)


forward, input_gradient = both_ways(_run)


def blocking(problem: Problem) -> str:
    """Tiles, blocks and pieces, in words."""
    g, dtype = problem.geometry, problem.dtype
    plan = _prepare(g, problem.kind == "input_gradient", dtype, dtype, problem.layout, get_threads())
    n = plan.job.numbers
    return (
        f"tiles of {OUTPUTS} x {OUTPUTS} outputs; blocks of {n['block_images']} x {n['block_rows']} x {n['block_columns']} tiles "
        f"by {n['filters']} filters of a group, {n['piece_blocks']} blocks a piece; {plan.cut}"
    )


def share(problem: Problem) -> float:
    """Of the limit; see :mod:`konv.engine.roofline`. Above 1, for few products stand for many of the formula's."""
    g = problem.geometry
    cells = g.spatial if problem.kind == "input_gradient" else g.output
    tiles = math.prod(-(-n // OUTPUTS) for n in cells)
    done = POINTS * tiles / (math.prod(g.output) * math.prod(g.kernel))
    return roofline.share(problem, done, speed=0.3, moving=0.75, storing=0)
