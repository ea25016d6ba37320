"""Forward of windows side by side, few filters, channels last (what compresses a long sequence): lanes are numbers of a window.

A window is a row of neighbouring numbers. With filters in lanes, as in :mod:`konv.engine.products.products_last`, 4 or 8 of them
leave most lanes empty; here the window fills them, and the lanes of a sum are added up once for each output: as DownConv's
first product, whose words these are, without its ReLU. 128 to 8 channels by 10 cells took .3 of the time, 1x1 from 512 to 12 .74.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from konv.engine import roofline
from konv.engine.compile import kernel
from konv.engine.downconv.down_kernels import lay_rows, squeeze_rows
from konv.engine.launch import Job, address
from konv.engine.machine import dtype_name, machine, wide_type
from konv.engine.memory import LINE, aligned
from konv.engine.simd import ITEMSIZE, minimum
from konv.engine.threads import get_threads, width
from konv.geometry import Geometry

if TYPE_CHECKING:
    from konv.engine.plan import Problem

MOST_ADDED = 512  # products in a lane's sum: so the error stays small
ADD_LANES = 20  # multiply-adds that take as long as adding up the lanes of a row's sums
PIECE_BYTES, PIECES = 768 << 10, 16  # of x, in a piece; and so many of them where x is small


def takes(g: Geometry, dtype: str) -> bool:
    """Whether a layer without groups is computed here: a window is one row of x, and filters would fill few lanes."""
    plain = math.prod(g.stride) == 1 and g.spatial == g.output  # all pixels are one line
    if any(map(any, g.padding)) or max(g.dilation) > 1 or not (g.axes == 1 or (plain and math.prod(g.kernel) == 1)):
        return False
    lanes, size = machine().lanes(dtype), g.channels * g.kernel[-1]
    tile, _ = _tile(g.filters, lanes)
    blocks = -(-g.filters // tile)
    steps = -(-size // lanes)
    return steps <= MOST_ADDED and steps * blocks * tile + ADD_LANES * blocks < size * -(-g.filters // lanes)


@kernel
def multiply_windows(dtype, lanes, rows, filters_tile, ahead):
    """``y[row, f] = bias[f] + sum over q of x[row, q] * w[q, f]``. A piece is ``chunk`` rows; w lies as ``lay_rows`` lays it."""
    tile = dict(lanes=lanes, rows=rows, channels_tile=filters_tile, ahead=ahead, line=LINE // ITEMSIZE[dtype])

    def text(piece, slot, x, w, bias, y, all_rows, chunk, windows, sequence, step, size, filters, block_size):
        first = piece * chunk
        squeeze_rows(
            first, minimum(chunk, all_rows - first), x, w, bias, y, windows, sequence, size, filters, block_size,
            windows * filters, 0, **tile, step=step, rectify=False,
        )  # fmt: skip

    wide = wide_type(dtype)
    return text, {"x": dtype, "w": wide, "bias": wide, "y": dtype}


@dataclass(frozen=True)
class Prepared:
    """The job, its threads, the job that lays w out, and how: shape, and whether that fills all of it."""

    job: Job
    threads: int
    lay: Job
    shape: tuple[int, ...]
    filled: bool


def _tile(filters: int, lanes: int) -> tuple[int, int]:
    """Filters and rows of a tile."""
    sums = 24 if machine().registers >= 32 else 8
    tile = min(range(min(5, lanes), 0, -1), key=lambda n: -(-filters // n) * (n + 1))  # x is read once for each of them
    return tile, min(8, sums // tile)


@functools.lru_cache(maxsize=256)
def prepared(g: Geometry, dtype: str, threads: int) -> Prepared:
    """The jobs of a layer."""
    lanes, taps = machine().lanes(dtype), g.kernel[-1]
    tile, rows = _tile(g.filters, lanes)
    size, blocks, windows = g.channels * taps, -(-g.filters // tile), math.prod(g.output)
    steps, all_rows = -(-size // lanes), g.batch * windows
    step = g.stride[-1] * g.channels
    chunk = max(rows, min(PIECE_BYTES // (size * ITEMSIZE[dtype]), all_rows // PIECES) // rows * rows)
    job = Job(
        multiply_windows(dtype, lanes, rows, tile, -(-rows // blocks)), -(-all_rows // chunk), all_rows=all_rows, chunk=chunk,
        windows=windows, sequence=math.prod(g.spatial) * g.channels, step=step, size=size, filters=g.filters,
        block_size=steps * lanes * tile,
    )  # fmt: skip
    even = g.channels % lanes == 0 and 2 * taps >= lanes
    lay = Job(
        lay_rows(dtype, lanes, even),
        g.filters,
        features=g.channels,
        k1=taps,
        tile=tile,
        block_size=steps * lanes * tile,
    )
    filled = size % lanes == 0 and g.filters % tile == 0
    return Prepared(job, width(job.pieces, g.flops // 2), lay, (blocks, steps, tile, lanes), filled)


def workspace(g: Geometry, dtype: str) -> int:
    """Bytes of the weights as they are laid out."""
    return math.prod(prepared(g, dtype, get_threads()).shape) * ITEMSIZE[wide_type(dtype)]


def forward(x: np.ndarray, w: np.ndarray, b: np.ndarray | None, g: Geometry, out: np.ndarray) -> None:
    """Write conv(x, w) + b into ``out``, whose channels are its last axis."""
    dtype = dtype_name(x.dtype)
    plan, wide = prepared(g, dtype, get_threads()), wide_type(dtype)
    x, w = np.ascontiguousarray(x.transpose(0, *range(2, x.ndim), 1)), np.ascontiguousarray(w)
    laid = aligned(plan.shape, wide)
    if not plan.filled:
        laid[...] = 0
    plan.lay.run(1, w=address(w), rows=address(laid))
    bias = np.zeros(g.filters, wide) if b is None else np.ascontiguousarray(b, wide)
    plan.job.run(plan.threads, x=address(x), w=address(laid), bias=address(bias), y=address(out))


def blocking(g: Geometry, dtype: str) -> str:
    """Tile and pieces, in words."""
    plan = prepared(g, dtype, get_threads())
    tile, rows = _tile(g.filters, machine().lanes(dtype))
    return (
        f"{machine().lanes(dtype)} numbers of a window in a vector, {rows} windows by {tile} filters in registers; "
        f"{plan.job.numbers['chunk']} windows a piece; {plan.job.cut(plan.threads)}"
    )


def share(problem: Problem) -> float:
    """Of the limit; see :mod:`konv.engine.roofline`."""
    g, lanes = problem.geometry, machine().lanes(problem.dtype)
    done = roofline.padding(g.channels * g.kernel[-1], lanes) * roofline.padding(g.filters, _tile(g.filters, lanes)[0])
    return roofline.share(problem, done, speed=0.85, moving=0.6, storing=6)
