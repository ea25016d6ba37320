"""Winograd's algorithm F(4x4, 3x3) for groups of 12 and 16 channels, tiles in lanes: forward and both gradients.

The formulas, the error and the reasons to refuse it are those of :mod:`konv.engine.winograd.winograd`. A group's points lie in
L2.

Time beside pixels in lanes, channels in lanes or the direct tile, on two cores of an AMD Zen 4: 512@14 in 32 groups 0.89, its
weights 0.9. A quarter of the products is not a quarter of the time: of 256@28 they take two fifths, for the 8 products that
each sum has it is written and read once; transforms take as much, what is written the rest, until its lines were asked for
during the products 1.3 times as long. So groups of 4 and 8 are for one axis, :mod:`konv.engine.winograd.winograd_rows`,
which takes 0.65 to 0.8 of the time there, and of 512@14, where rows of 14 leave lanes empty, 1.15.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from konv.engine import roofline
from konv.engine.launch import Job
from konv.engine.machine import dtype_name, machine, wide_type, widened
from konv.engine.prepared import Prepared, both_ways, prepared, without_bias
from konv.engine.threads import get_threads
from konv.engine.winograd.winograd_cuts import evenly
from konv.engine.winograd.winograd_kernels import SPREAD
from konv.engine.winograd.winograd_small_kernels import (
    FILTERS,
    OUTPUTS,
    POINTS,
    TAPS,
    winograd_of_small_weights,
    winograd_of_tiles,
)
from konv.geometry import Geometry

if TYPE_CHECKING:
    from konv.engine.plan import Problem

NAME = "winograd_small"
BEYOND = "few products stand for many of the formula's"
LEAST, MOST = 12, 16  # channels, and filters, of a group
LEAST_USED = 0.7  # of the cells of all vectors of tiles
WEIGHTS_BYTES = 600 << 10  # points of a block of the weight gradient, beside its sums
LEAST_SUMMED = 100  # vectors times channels of a weight gradient: of fewer its end takes too long
LEAST_PIECES = 32
# Of a weight gradient: one group is one piece, and one thread's (16 to 16 channels at 28 pixels: .76 of PyTorch)
LEAST_GROUPS = 4

__all__ = [
    "NAME", "blocking", "declines", "forward", "input_gradient", "share", "weight_and_bias_gradient", "weight_gradient",
    "workspace",
]  # fmt: skip


def declines(problem: Problem) -> str | None:
    """What it does not compute, and images of which tiles are mostly empty."""
    g = problem.geometry
    channels, filters, lanes = g.channels // g.groups, g.filters // g.groups, machine().lanes(problem.dtype)
    if problem.exact:
        return "an exact sum is asked for: its error is up to three times a direct sum's"
    if problem.layout == "last":
        return "channels are last"
    if g.kernel != (TAPS, TAPS) or max(g.stride + g.dilation) > 1:
        return "its kernels are 3 x 3 of stride and dilation 1"
    if (
        channels % FILTERS
        or filters % FILTERS
        or not LEAST <= min(channels, filters) <= max(channels, filters) <= MOST
        or channels * filters % lanes
    ):
        return f"groups of {channels} x {filters}: it takes multiples of {FILTERS}, {LEAST} to {MOST}"
    if max(n for low_high in g.padding for n in low_high) >= TAPS:
        return f"there is padding of {TAPS} or more"
    height, row = g.spatial if problem.kind == "input_gradient" else g.output
    cut = _cut(g, problem.kind == "input_gradient", lanes)
    used = height * row * cut.rows / (-(-height // OUTPUTS) * cut.blocks * OUTPUTS**2 * lanes)
    if used < LEAST_USED:
        return f"{height} x {row} outputs fill {used:.0%} of its vectors, less than {LEAST_USED:.0%}"
    if problem.kind == "weight_gradient":
        if g.groups < LEAST_GROUPS:
            return f"{g.groups} groups, which are the pieces of its weight gradient; it takes {LEAST_GROUPS} or more"
        if cut.vectors * channels < LEAST_SUMMED:
            return f"{cut.vectors} vectors of tiles and {channels} channels: its sums over lanes would take as long"
    elif max(channels, filters) == MOST and cut.rows < 4:
        return f"groups of {channels} x {filters} on large images: channels in lanes are as fast"
    return None


def workspace(problem: Problem) -> int:
    """Bytes taken while it runs: of half types, w is copied in float32."""
    g, dtype = problem.geometry, problem.dtype
    if problem.kind == "weight_gradient":
        return _prepare_weights(g, dtype, dtype, get_threads()).size
    return _prepare(g, problem.kind == "input_gradient", dtype, dtype, get_threads()).size + widened(g.w_shape, dtype)


def weight_and_bias_gradient(dy: np.ndarray, x: np.ndarray, g: Geometry, out: np.ndarray, db: np.ndarray) -> None:
    """Write dL/dw (F, C // groups, *kernel) into ``out`` and dL/db (F,) into ``db``: dy is read once."""
    plan = _prepare_weights(g, dtype_name(x.dtype), dtype_name(out.dtype), get_threads())
    plan.run(x=x, dy=dy, dw=out, db=db)


def _run(x: np.ndarray, w: np.ndarray, b: np.ndarray | None, g: Geometry, transposed: bool, out: np.ndarray) -> None:
    _prepare(g, transposed, dtype_name(x.dtype), dtype_name(out.dtype), get_threads()).correlate(x, w, b, out)


forward, input_gradient = both_ways(_run)
weight_gradient = without_bias(weight_and_bias_gradient)


@dataclass(frozen=True)
class Cut:
    """Vectors of tiles: of ``rows`` rows of tiles, each cut into ``blocks`` of ``columns``; ``vectors`` of all images."""

    rows: int
    blocks: int
    columns: int
    vectors: int


@functools.lru_cache(maxsize=512)
def _cut(g: Geometry, transposed: bool, lanes: int) -> Cut:
    height, width_ = g.spatial if transposed else g.output
    read = g.output[1] if transposed else g.spatial[1]
    left = TAPS - 1 - g.padding[1][0] if transposed else g.padding[1][0]
    high, wide = -(-height // OUTPUTS), -(-width_ // OUTPUTS)
    for rows in (4, 2, 1):
        room = lanes // rows
        # The cells beyond a vector's last tile are zero: it is no whole tile, or they are padding.
        if room > 1 and (wide < room or (wide == room and OUTPUTS * room - left >= read)):
            return Cut(rows, 1, wide, -(-g.batch * high // rows))
    blocks, columns = evenly(wide, lanes - 1)
    return Cut(1, blocks, columns, g.batch * high * blocks)


def _numbers(g: Geometry, transposed: bool, cut: Cut) -> dict[str, int]:
    """The kernels' arguments that tell shapes."""
    (x_height, x_width), cells = (g.output, g.spatial) if transposed else (g.spatial, g.output)
    low = [TAPS - 1 - n if transposed else n for n, _ in g.padding]
    tile_rows = -(-cells[0] // OUTPUTS)
    return dict(
        groups=g.groups, x_height=x_height, x_width=x_width, pad_height=low[0], pad_width=low[1], out_height=cells[0],
        out_width=cells[1], tile_rows=tile_rows, tile_columns=-(-cells[1] // OUTPUTS), all_rows=g.batch * tile_rows,
        column_blocks=cut.blocks, block_columns=cut.columns, all_vectors=cut.vectors,
    )  # fmt: skip


@functools.lru_cache(maxsize=512)
def _prepare(g: Geometry, transposed: bool, dtype: str, out: str, threads: int) -> Prepared:
    host = machine()
    channels, filters = g.channels // g.groups, g.filters // g.groups
    steps = (channels, 1)  # between filters, between channels that are summed: of w
    if transposed:
        channels, filters, steps = filters, channels, (1, channels)
    lanes, cut = host.lanes(dtype), _cut(g, transposed, host.lanes(dtype))
    blocks, vectors = evenly(cut.vectors, 7 if host.registers >= 32 else 2)
    parts, piece_blocks = evenly(blocks, max(1, blocks * g.groups // LEAST_PIECES))
    input_plane, sums_plane = (n * vectors * lanes + SPREAD for n in (channels, filters))
    sums_at, filters_at = POINTS * input_plane, POINTS * (input_plane + sums_plane)
    slot_size = filters_at + POINTS * channels * filters
    job = Job(
        winograd_of_tiles(dtype, out, lanes, cut.rows, vectors, "flipped taps" if transposed else "taps"),
        g.groups * parts, slot_size=slot_size, sums_at=sums_at, filters_at=filters_at, channels=channels, filters=filters,
        piece_blocks=piece_blocks, parts=parts, filter_step=steps[0], channel_step=steps[1], input_plane=input_plane,
        sums_plane=sums_plane, **_numbers(g, transposed, cut),
    )  # fmt: skip
    return prepared(job, g.flops // 8, slot_size, dtype, g.groups * filters)


@functools.lru_cache(maxsize=256)
def _prepare_weights(g: Geometry, dtype: str, out: str, threads: int) -> Prepared:
    lanes, itemsize = machine().lanes(dtype), np.dtype(wide_type(dtype)).itemsize
    channels, filters, cut = g.channels // g.groups, g.filters // g.groups, _cut(g, False, machine().lanes(dtype))
    most = max(1, WEIGHTS_BYTES // (POINTS * (channels + filters) * lanes * itemsize))
    _, vectors = evenly(cut.vectors, most)
    input_plane, upstream_plane = (n * vectors * lanes + SPREAD for n in (channels, filters))
    upstream_at, sums_at = POINTS * input_plane, POINTS * (input_plane + upstream_plane)
    bias_at = sums_at + POINTS * channels * filters * lanes
    slot_size = bias_at + filters * lanes
    job = Job(
        winograd_of_small_weights(dtype, out, lanes, cut.rows), g.groups, slot_size=slot_size, upstream_at=upstream_at,
        sums_at=sums_at, bias_at=bias_at, channels=channels, filters=filters, vectors=vectors, input_plane=input_plane,
        upstream_plane=upstream_plane, **_numbers(g, False, cut),
    )  # fmt: skip
    return prepared(job, g.flops // 8, slot_size, dtype)


def blocking(problem: Problem) -> str:
    """Tiles, vectors and pieces, in words."""
    g, dtype = problem.geometry, problem.dtype
    transposed, lanes = problem.kind == "input_gradient", machine().lanes(dtype)
    cut = _cut(g, transposed, lanes)
    if problem.kind == "weight_gradient":
        plan = _prepare_weights(g, dtype, dtype, get_threads())
        what = f"{plan.job.numbers['vectors']} of {cut.vectors} vectors a block, a group a piece"
    else:
        plan = _prepare(g, transposed, dtype, dtype, get_threads())
        n = plan.job.numbers
        what = f"{n['piece_blocks']} blocks of {cut.vectors} vectors a piece"
    return f"tiles of {OUTPUTS} x {OUTPUTS} outputs, {cut.rows} x {cut.columns} in a vector; {what}; {plan.cut}"


def share(problem: Problem) -> float:
    """Of the limit; see :mod:`konv.engine.roofline`. Above 1, for few products stand for many of the formula's."""
    g, lanes = problem.geometry, machine().lanes(problem.dtype)
    cut = _cut(g, problem.kind == "input_gradient", lanes)
    done = POINTS * cut.vectors * lanes / (max(1, g.batch) * math.prod(g.output) * math.prod(g.kernel))
    return roofline.share(problem, done, speed=0.3, moving=0.75, storing=0)
