"""Winograd's algorithm along one axis, F(4, 3) down the columns of images, for groups of 4 to 16 channels: rows in lanes.

The formulas and the reasons to refuse it are those of :mod:`konv.engine.winograd.winograd`; one axis errs by half of two.
Half of the products are left where two axes leave a quarter, but nothing of them is stored: of so few channels two axes spend
more time on transforms, and on the sums of all points, than products take.

CPU time beside what was fastest before, tiles or rows in lanes (:mod:`konv.engine.winograd.winograd_small`, which is left for
groups of 12 and 16 on small images, and :mod:`konv.engine.groups`), on an AMD Zen 4::

                     forward    weights
    256@28, 8 x 8    0.65       0.7
    256@56, 8 x 8    0.78       0.65
    256@14, 8 x 8    0.93       1.1, not taken
    128@56, 4 x 4    0.74       0.77
    512@28, 16 x 16  1.1, not   0.81

Strides of 2, whose rows of outputs are paired (``PAIRS``), which saves a sixth of the products::

                     forward    input gradient
    256@56           0.68       0.87
    512@28           0.87       0.84
    128@56, 4 x 4    0.79       0.74
    256@14           1.45       1.2, not taken

Weight gradients of whole vectors of groups of 4, 8 and 16 are those of :mod:`konv.engine.winograd.winograd_rows_channels`.

With the 16 registers of AVX2 they take 1.1 times as long of 8 channels: only groups of 4 are taken. Weight gradients took 0.96
of the time of :mod:`konv.engine.groups.small_groups`: to take even and odd cells apart costs what is saved.

Products of 256@28 take two thirds of its forward, near their limit. Waiting for x took a quarter, until its lines were asked
for a row of tiles ahead, during the products; in weight gradients, too, where lines asked for during the transforms gained
nothing. Lines of y are asked for a row of tiles ahead, too: 0.94 of the time of strides of 2. In weight gradients twice or half
as many cells at a time, or 8 filters by one channel, are not faster. Reading and writing without masks where vectors are whole
gained nothing (x 1.03, y 1.0 of the time), nor did asking for x in the second cache only.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import numpy as np

from konv.engine import roofline
from konv.engine.launch import Job
from konv.engine.machine import dtype_name, machine, widened
from konv.engine.prepared import Prepared, both_ways, prepared, without_bias
from konv.engine.threads import get_threads
from konv.engine.winograd import winograd_rows_channels
from konv.engine.winograd.winograd_cuts import evenly
from konv.engine.winograd.winograd_rows_kernels import (
    OUTPUTS,
    POINTS,
    SHORT,
    TAPS,
    Rows,
    rows_of,
    winograd_of_rows,
)
from konv.engine.winograd.winograd_rows_outer import winograd_of_row_weights
from konv.geometry import Geometry

if TYPE_CHECKING:
    from konv.engine.plan import Problem

NAME = "winograd_rows"
BEYOND = "few products stand for many of the formula's"
LEAST, MOST, MOST_FULL = (
    4,
    8,
    16,
)  # channels, and filters, of a group; of weight gradients and strides, which fill vectors
LEAST_USED, LEAST_USED_FULL = 0.55, 0.8  # of the cells of tiles and vectors, of the same
LEAST_PIECES = 64
LEAST_GROUPS = 4  # of a weight gradient, of which they are the pieces
# Channels x filters x outputs of an image: 8 x 8 @8 alone takes 1.1 to 1.2 times as long as in the kernels of grouped, 8 x 8 @12
# and 4 x 4 @28 as long; of 32 groups 0.95.
LEAST_OF_ONE_GROUP = 8192
CHUNK_CELLS = 256  # of a row of points of a weight gradient, summed in registers

__all__ = [
    "NAME", "blocking", "declines", "forward", "input_gradient", "share", "weight_and_bias_gradient", "weight_gradient",
    "workspace",
]  # fmt: skip


def declines(problem: Problem) -> str | None:
    """What it does not compute, and images of which tiles or vectors are mostly empty."""
    g, lanes, weights = problem.geometry, machine().lanes(problem.dtype), problem.kind == "weight_gradient"
    channels, filters = g.channels // g.groups, g.filters // g.groups
    if problem.exact:
        return "an exact sum is asked for: its error is up to three times a direct sum's"
    if problem.layout == "last":
        return "channels are last"
    strided = not weights and g.stride == (2, 2)
    if g.kernel != (TAPS, TAPS) or max(g.dilation) > 1 or not (strided or g.stride == (1, 1)):
        return "its kernels are 3 x 3 of dilation 1 and stride 1, or 2 but for weight gradients"
    most = MOST_FULL if weights or strided else MOST
    if strided and machine().registers < 32:
        most = LEAST
    if not LEAST <= min(channels, filters) <= max(channels, filters) <= most or channels % 4 or filters % 4:
        return f"groups of {channels} x {filters}: it takes multiples of 4, {LEAST} to {most}"
    if channels * filters % lanes:
        return f"{channels} x {filters} pairs of a group leave lanes empty"
    if max(n for low_high in g.padding for n in low_high) >= TAPS:
        return f"there is padding of {TAPS} or more"
    if weights and g.groups < LEAST_GROUPS:
        return f"{g.groups} groups, which are the pieces of its weight gradient; it takes {LEAST_GROUPS} or more"
    height, row = g.spatial if problem.kind == "input_gradient" else g.output
    used, least_used = _used(problem), LEAST_USED_FULL if weights or strided else LEAST_USED
    if weights and winograd_rows_channels.takes(g, problem.dtype):
        least_used = winograd_rows_channels.LEAST_USED
    if used < least_used:
        return f"{height} x {row} outputs fill {used:.0%} of its tiles and vectors, less than {least_used:.0%}"
    if g.groups == 1 and not strided and (alone := channels * filters * height * row) < LEAST_OF_ONE_GROUP:
        return f"one group of {alone} products of channels, filters and outputs, fewer than {LEAST_OF_ONE_GROUP}"
    return None


def _strides(g: Geometry, transposed: bool) -> tuple[int, int]:
    """(down, up): of x from one output to the next, of outputs from one cell of what is read to the next."""
    return (1, g.stride[0]) if transposed else (g.stride[0], 1)


def _tile(problem: Problem) -> Rows:
    g = problem.geometry
    return rows_of(*_strides(g, problem.kind == "input_gradient"), g.padding[0][0])[0]


def _used(problem: Problem) -> float:
    """The share of what it multiplies that is of outputs. Half vectors and short tiles are for outputs and dx only."""
    g, lanes, back = problem.geometry, machine().lanes(problem.dtype), problem.kind == "input_gradient"
    height, row = g.spatial if back else g.output
    if problem.kind == "weight_gradient" and winograd_rows_channels.takes(g, problem.dtype):
        return winograd_rows_channels.used(g)
    if problem.kind == "weight_gradient":
        return height * row / max(1, -(-height // OUTPUTS) * OUTPUTS * (-(-row // lanes) * lanes))
    half = lanes // 2 if lanes > 2 else lanes
    if g.stride[0] == 2:
        rows, cells = (4, 2 * half) if back else (2, half)
        return height * row / max(1, -(-height // rows) * rows * (-(-row // cells) * cells))
    points = height // OUTPUTS * POINTS + (0, SHORT.points, SHORT.points, POINTS)[height % OUTPUTS]
    return height * row * POINTS / max(1, points * OUTPUTS * (-(-row // half) * half))


def workspace(problem: Problem) -> int:
    """Bytes taken while it runs: of half types, w is copied in float32."""
    g, dtype = problem.geometry, problem.dtype
    if problem.kind == "weight_gradient":
        return _weights_job(g, dtype, dtype).size
    return _prepare(g, problem.kind == "input_gradient", dtype, dtype, get_threads()).size + widened(g.w_shape, dtype)


def weight_and_bias_gradient(dy: np.ndarray, x: np.ndarray, g: Geometry, out: np.ndarray, db: np.ndarray) -> None:
    """Write dL/dw (F, C // groups, *kernel) into ``out`` and dL/db (F,) into ``db``: dy is read once."""
    _weights_job(g, dtype_name(x.dtype), dtype_name(out.dtype)).run(x=x, dy=dy, dw=out, db=db)


def _weights_job(g: Geometry, dtype: str, out: str) -> Prepared:
    prepare = winograd_rows_channels.accumulation if winograd_rows_channels.takes(g, dtype) else _prepare_weights
    return prepare(g, dtype, out, get_threads())


def _run(x: np.ndarray, w: np.ndarray, b: np.ndarray | None, g: Geometry, transposed: bool, out: np.ndarray) -> None:
    _prepare(g, transposed, dtype_name(x.dtype), dtype_name(out.dtype), get_threads()).correlate(x, w, b, out)


forward, input_gradient = both_ways(_run)
weight_gradient = without_bias(weight_and_bias_gradient)


@functools.lru_cache(maxsize=512)
def _prepare(g: Geometry, transposed: bool, dtype: str, out: str, threads: int) -> Prepared:
    host, stride = machine(), g.stride[0]
    channels, filters, lanes = g.channels // g.groups, g.filters // g.groups, host.lanes(dtype)
    (x_height, x_width), (out_height, out_width) = (g.output, g.spatial) if transposed else (g.spatial, g.output)
    flipped = transposed and stride == 1
    pads = tuple(TAPS - 1 - low if flipped else low for low, _ in g.padding)
    if transposed:
        channels, filters = filters, channels
    down, up = strides = _strides(g, transposed)
    tile = rows_of(down, up, pads[0])[0]
    tile_rows, columns = -(-out_height // tile.outputs), -(-out_width // up)
    all_rows = max(1, g.batch) * tile_rows
    parts, piece_rows = evenly(all_rows, max(1, all_rows * g.groups // LEAST_PIECES))
    short = stride == 1 and 0 < out_height % OUTPUTS <= SHORT.outputs
    half = lanes > 2 and 0 < columns % lanes <= lanes // 2
    pitch = lanes + -(-x_width // (down * lanes)) * lanes
    points_at = (tile.factors + short * SHORT.points) * TAPS * channels * filters
    slot_size = (
        points_at + channels * tile.points * down * pitch + 3 * lanes
    )  # the last row's vectors may reach beyond it
    together = 4 // up if host.registers >= 32 or down == 2 else 2 // up  # PAIRS have half as many sums
    job = Job(
        winograd_of_rows(dtype, out, lanes, channels, filters, together, strides, pads, transposed, short, half),
        g.groups * parts, slot_size=slot_size, points_at=points_at, groups=g.groups, x_height=x_height, x_width=x_width,
        out_height=out_height, out_width=out_width, tile_rows=tile_rows, all_rows=all_rows, piece_rows=piece_rows,
        parts=parts, pitch=pitch, zeros=_zeros(x_width),
    )  # fmt: skip
    return prepared(job, g.flops // 4, slot_size, dtype, g.groups * filters)


@functools.lru_cache(maxsize=256)
def _prepare_weights(g: Geometry, dtype: str, out: str, threads: int) -> Prepared:
    host = machine()
    channels, filters, lanes = g.channels // g.groups, g.filters // g.groups, host.lanes(dtype)
    (x_height, x_width), (out_height, out_width) = g.spatial, g.output
    tile_rows = -(-out_height // OUTPUTS)
    upstream_pitch = -(-out_width // lanes) * lanes
    pitch = lanes + max(upstream_pitch, -(-x_width // lanes) * lanes)
    _, chunk_rows = evenly(max(1, g.batch) * tile_rows, max(1, CHUNK_CELLS // upstream_pitch))
    input_plane, upstream_plane = channels * chunk_rows * pitch + 2 * lanes, filters * chunk_rows * upstream_pitch
    upstream_at, sums_at = POINTS * input_plane, POINTS * (input_plane + upstream_plane)
    bias_at = sums_at + POINTS * TAPS * channels * filters * lanes
    slot_size = bias_at + filters * lanes
    together = (4, 2) if host.registers >= 32 else (2, 2)
    turns = max(1, POINTS * channels * filters // math.prod(together) // (channels + filters))
    job = Job(
        winograd_of_row_weights(dtype, out, lanes, channels, filters, together),
        g.groups, slot_size=slot_size, upstream_at=upstream_at, sums_at=sums_at, bias_at=bias_at, groups=g.groups,
        x_height=x_height, x_width=x_width, pad_height=g.padding[0][0], pad_width=g.padding[1][0], out_height=out_height,
        out_width=out_width, tile_rows=tile_rows, all_rows=g.batch * tile_rows, chunk_rows=chunk_rows, pitch=pitch,
        upstream_pitch=upstream_pitch, input_plane=input_plane, upstream_plane=upstream_plane,
        asked=-(-OUTPUTS * x_width // (lanes * turns)), zeros=_zeros(max(x_width, out_width)),
    )  # fmt: skip
    return prepared(job, g.flops // 4, slot_size, dtype)


def _zeros(cells: int) -> np.ndarray:
    """A row outside the image, of any type."""
    return np.zeros(cells * 8, np.uint8)


def blocking(problem: Problem) -> str:
    """Tiles, vectors and pieces, in words."""
    g, dtype = problem.geometry, problem.dtype
    tiles = f"tiles of {_tile(problem).outputs} rows, {machine().lanes(dtype)} cells of a row in a vector"
    if problem.kind == "weight_gradient" and winograd_rows_channels.takes(g, dtype):
        return winograd_rows_channels.blocking(g, dtype, get_threads())
    if problem.kind == "weight_gradient":
        plan = _prepare_weights(g, dtype, dtype, get_threads())
        return f"{tiles}; {plan.job.numbers['chunk_rows']} rows of tiles a chunk, a group a piece; {plan.cut}"
    plan = _prepare(g, problem.kind == "input_gradient", dtype, dtype, get_threads())
    return f"{tiles}; {plan.job.numbers['piece_rows']} rows of tiles of a group a piece; {plan.cut}"


def share(problem: Problem) -> float:
    """Of the limit; see :mod:`konv.engine.roofline`. Above 1, for few products stand for many of the formula's."""
    tile, (_, up) = _tile(problem), _strides(problem.geometry, problem.kind == "input_gradient")
    done = len(tile.products) / (tile.outputs * TAPS / up) / max(_used(problem), 1e-9)
    speed = 0.5 if problem.kind == "weight_gradient" else 0.65
    return roofline.share(problem, done, speed=speed, moving=0.75, storing=0)
