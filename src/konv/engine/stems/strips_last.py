"""First layers and 1-D layers of few products, channels last: filters in lanes, pixels beside each other in registers.

With few channels a row of a window lies together in x, 21 numbers of a 7 x 7 window of 3 channels: rows are copied as they
are, with their padding, and an output begins ``stride * channels`` numbers behind its neighbour. All products are summed in
registers and written to their place in y. The direct algorithm takes x apart by channels and keeps a block's sums beside y:
3 x 3 of 3 channels 1.2-1.8 times as long, 7 x 7 1.1-1.2, 1-D of one channel 1.4-2.6, 10 outputs of one as long.

Asking for the lines of y that the next tile writes, one with each tap, gains 9 %, all at once 5 %, two tiles ahead 5 %; copying
only the rows that one row of outputs needs anew, asked for meanwhile, 2 to 5 %. Of 3 x 3 with stride 2 the copies still
take 8 %, the stores of 28 vectors behind 756 multiply-adds 6 %, though they hit L1. A tile of 9 pixels by 48
filters takes 1.5 times as long for 64 filters as one of 6 by 64.

A sum begins with the bias and runs over the taps in one order, in one accumulator: its bits depend on nothing else.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import TYPE_CHECKING

import numpy as np

from konv.engine import roofline
from konv.engine.direct.direct import input_gradient, weight_gradient  # never asked for: it declines
from konv.engine.launch import Job
from konv.engine.machine import dtype_name, machine, wide_type
from konv.engine.prepared import Prepared, prepared
from konv.engine.stems.strips_cut import whole
from konv.engine.stems.strips_last_kernels import correlate_strips_last
from konv.engine.threads import get_threads
from konv.geometry import Geometry

if TYPE_CHECKING:
    from konv.engine.plan import Problem

NAME = "strips_last"
MOST_CHANNELS, MOST_STEP = 4, 32  # a kernel is compiled for each distance of outputs
MOST_TAPS = 512
LEAST_FILTERS, LEAST_COLUMNS = 8, 16
BLOCK_BYTES = 64 << 10  # of copied rows
BLOCK_CELLS, LEAST_PIECES = 896, 8  # outputs of a block: it transposes all weights
LOAD = 0.3  # of a multiply-add
# Outputs of a tile at most, for so many vectors of filters, by registers: sums, the filters' weights and a number of x fit.
TILES = {32: {1: 28, 2: 14, 3: 9, 4: 6, 5: 5}, 16: {1: 12, 2: 6, 3: 4}}

__all__ = ["NAME", "blocking", "declines", "forward", "input_gradient", "share", "weight_gradient", "workspace"]


def declines(problem: Problem) -> str | None:
    """Forward of few channels in one group, channels last."""
    g = problem.geometry
    if problem.kind != "forward" or problem.layout != "last":
        return "it computes forward, channels last"
    if g.axes > 2 or g.groups > 1:
        return "it computes layers of one or two axes, in one group"
    taps, step = g.channels * math.prod(g.kernel), g.channels * g.stride[-1]
    if g.channels > MOST_CHANNELS:
        return f"{g.channels} channels to sum, more than {MOST_CHANNELS}"
    if taps > MOST_TAPS or step > MOST_STEP:
        return f"{taps} products, windows {step} numbers apart; it computes at most {MOST_TAPS}, {MOST_STEP}"
    short = g.axes == 2 and g.output[-1] < LEAST_COLUMNS  # the bits of 1-D layers do not depend on their length
    if g.filters < LEAST_FILTERS or short:
        return f"{g.filters} filters, rows of {g.output[-1]}; it computes at least {LEAST_FILTERS}, {LEAST_COLUMNS}"
    return None


def workspace(problem: Problem) -> int:
    """Bytes borrowed while it runs."""
    return _prepare(problem.geometry, problem.dtype, problem.dtype, get_threads()).size


def forward(x: np.ndarray, w: np.ndarray, b: np.ndarray | None, g: Geometry, out: np.ndarray) -> None:
    """Write conv(x, w) + b into ``out`` (N, F, *output)."""
    plan = _prepare(g, dtype_name(x.dtype), dtype_name(out.dtype), get_threads())
    plan.run(x=x, w=w, bias=plan.bias(b), y=out)


@functools.lru_cache(maxsize=256)
def _prepare(g: Geometry, dtype: str, out: str, threads: int) -> Prepared:
    lanes, itemsize = machine().lanes(dtype), np.dtype(wide_type(dtype)).itemsize
    vectors, run = _tile(g, dtype)
    ones = (1,) * (2 - g.axes)
    (height, row), (out_height, out_row), kernel, (row_stride, stride), dilation = (
        ones + n for n in (g.spatial, g.output, g.kernel, g.stride, g.dilation)
    )
    (pad_height, _), (pad_row, _) = ((0, 0),) * (2 - g.axes) + g.padding
    span_high, span_wide = (d * (k - 1) + 1 for k, d in zip(kernel, dilation))

    line = ((out_row - 1) * stride + span_wide) * g.channels * itemsize
    pieces = max(-(-line // BLOCK_BYTES), -(-out_row // BLOCK_CELLS))
    if g.axes == 1:
        pieces = max(pieces, min(LEAST_PIECES // max(1, g.batch), out_row // (4 * run)))
    block_columns = out_row if pieces <= 1 else whole(-(-out_row // pieces), run)
    column_blocks = -(-out_row // block_columns)
    pitch = whole(((block_columns - 1) * stride + span_wide) * g.channels, lanes)
    most = BLOCK_BYTES // (pitch * itemsize)
    block_rows = min(out_height, max(1, BLOCK_CELLS // block_columns), max(1, (most - span_high) // row_stride + 1))
    row_blocks = -(-out_height // block_rows)
    block_rows = -(-out_height // row_blocks)
    lines = (block_rows - 1) * row_stride + span_high

    taps = g.channels * math.prod(kernel)
    offsets = [
        i * dilation[0] * pitch + j * dilation[1] * g.channels + c
        for c, i, j in itertools.product(range(g.channels), *map(range, kernel))
    ]
    places = [*range(taps), *[taps] * lanes]  # what lies behind a filter's weights goes to a row that nobody reads
    panels = -(-g.filters // (vectors * lanes))
    panel_size, panels_start = (taps + 1) * vectors * lanes, whole(lines * pitch, 16)
    slot_size = whole(panels_start + panels * panel_size, 16)
    last = out_row - (column_blocks - 1) * block_columns
    job = Job(
        correlate_strips_last(
            dtype, out, lanes, vectors, run, stride * g.channels, last < run, g.filters % (vectors * lanes) == 0
        ),
        g.batch * row_blocks * column_blocks, filters=g.filters, panels=panels, taps=taps, channels=g.channels,
        height=height, row=row, out_height=out_height, out_row=out_row, block_rows=block_rows, row_blocks=row_blocks,
        block_columns=block_columns, column_blocks=column_blocks, window_rows=span_high, pitch=pitch, row_stride=row_stride,
        stride=stride, pad_height=pad_height, pad_row=pad_row, slot_size=slot_size, panels_start=panels_start,
        panel_size=panel_size, offsets=np.array(offsets, np.int64), places=np.array(places, np.int64),
    )  # fmt: skip
    return prepared(job, g.flops // 2, slot_size, dtype, g.filters, slots="space")


def _tile(g: Geometry, dtype: str) -> tuple[int, int]:
    """Vectors of filters, and outputs of a row: the least of what is computed and read."""
    columns, tiles = max(1, g.output[-1]), []
    for vectors, most in TILES[machine().registers].items():
        tiles.append((vectors, -(-columns // -(-columns // most))))  # rows are cut evenly
    return min(tiles, key=lambda tile: _computed(g, dtype, tile))


def _computed(g: Geometry, dtype: str, tile: tuple[int, int]) -> float:
    outputs = whole(g.filters, tile[0] * machine().lanes(dtype)) * whole(g.output[-1], tile[1])
    return outputs * (1 + LOAD * sum(tile) / math.prod(tile))


def blocking(problem: Problem) -> str:
    """Tile, blocks and pieces, in words."""
    g, dtype = problem.geometry, problem.dtype
    (vectors, run), plan = _tile(g, dtype), _prepare(g, dtype, dtype, get_threads())
    n = plan.job.numbers
    return (
        f"{run} pixels of a row by {vectors * machine().lanes(dtype)} filters in registers; blocks of {n['block_rows']} x "
        f"{n['block_columns']} outputs, whose rows of x are copied; {plan.cut}"
    )


def share(problem: Problem) -> float:
    """Of the limit; see :mod:`konv.engine.roofline`."""
    g, dtype = problem.geometry, problem.dtype
    done = _computed(g, dtype, _tile(g, dtype)) / max(1, g.filters * g.output[-1])
    return roofline.share(problem, done, speed=1, moving=1, storing=1)
