"""Input gradients of few channels (stems: 3, audio: 1): a matrix product, folded while it is in the cache.

``products[c, t][o] = sum over f of w[f, c, t] * dy[f, o]`` for each output o and each tap t, pixels in lanes: every product of
the formula once, none with padding or with the zeros of a stride. Then ``dx[c, o * stride + t] += products[c, t][o]``: a row
of dy is added to the lines of dx that it meets, which wait in a ring until no later row meets them. A block of dx that begins
within an image computes the rows of dy before it, and the columns, once more. Against the algorithms that took these layers
before, which skip or multiply zeros: channels first 1.2 to 2.5 times as fast, 10 taps of 512 filters 4.6 times, channels last
1.6 to 3.5 times.

A tile of one vector of pixels reads each weight in a multiply-add; two vectors by 14 taps, three by 9 and four by 6, which
read it into a register first, took 1.2 to 1.6 times as long, dy copied for each tile up to 1.7 times.

A number of dx is the sum over its taps, in their order, of sums over the filters in theirs: its bits depend on nothing else.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import numpy as np

from konv.arrays import known_layout
from konv.engine import roofline
from konv.engine.direct.direct import forward, weight_gradient  # never asked for: it declines
from konv.engine.launch import Job
from konv.engine.machine import dtype_name, machine, wide_type
from konv.engine.prepared import Prepared, prepared
from konv.engine.stems.folded_kernels import fold_products
from konv.engine.stems.strips_cut import whole
from konv.engine.threads import get_threads
from konv.geometry import Geometry

if TYPE_CHECKING:
    from konv.engine.plan import Problem

NAME = "folded"
MOST_CHANNELS, MOST_TAPS, MOST_COLUMNS = 4, 200, 16  # a kernel is compiled for the taps of a row
MOST_STREAMS = 16  # phases and channels, that a row of dx interleaves
LEAST_FILTERS = 8
BLOCK_BYTES = 96 << 10  # of products
LEAST_PIECES = 8
LEAST_COLUMNS = 256  # of a block, in units of the stride
LEAST_ROWS = 16  # of a block, for each one computed again
MOST_ROWS = {
    32: 28,
    16: 13,
}  # taps of a tile, by registers: a weight is read by the multiply-add itself, if by only one
FEW_TAPS = 9  # their sums are two vectors of pixels, that additions need not wait for each other

__all__ = ["NAME", "blocking", "declines", "forward", "input_gradient", "share", "weight_gradient", "workspace"]


def declines(problem: Problem) -> str | None:
    """Input gradients of few channels in one group."""
    g = problem.geometry
    if problem.kind != "input_gradient":
        return "it computes input gradients"
    if g.axes > 2 or g.groups > 1 or g.channels > MOST_CHANNELS:
        return (
            f"{g.channels} channels in {g.groups} groups, {g.axes} axes; it computes at most {MOST_CHANNELS}, 1 and 2"
        )
    taps = g.channels * math.prod(g.kernel)
    if taps > MOST_TAPS or g.kernel[-1] > MOST_COLUMNS:
        return f"{taps} taps in rows of {g.kernel[-1]}; it computes at most {MOST_TAPS}, {MOST_COLUMNS}"
    streams = g.stride[-1] * (g.channels if problem.layout == "last" else 1)
    if streams > MOST_STREAMS:
        return f"{streams} phases and channels in a row, more than {MOST_STREAMS}"
    if g.filters < LEAST_FILTERS:
        return f"{g.filters} filters to sum, fewer than {LEAST_FILTERS}"
    return None


def workspace(problem: Problem) -> int:
    """Bytes borrowed while it runs, and the weights."""
    g, dtype = problem.geometry, problem.dtype
    plan = _prepare(g, dtype, dtype, problem.layout, get_threads())
    return plan.size + plan.weights_size


def input_gradient(dy: np.ndarray, w: np.ndarray, g: Geometry, out: np.ndarray) -> None:
    """Write dL/dx (N, C, *spatial) into ``out``."""
    plan = _prepare(g, dtype_name(dy.dtype), dtype_name(out.dtype), known_layout(dy, out), get_threads())
    plan.run(dy=dy, w=plan.weights(w), dx=out)


@functools.lru_cache(maxsize=256)
def _prepare(g: Geometry, dtype: str, out: str, layout: str, threads: int) -> Prepared:
    lanes, ones = machine().lanes(dtype), (1,) * (2 - g.axes)
    (height, row), (out_height, out_row), kernel, (row_stride, stride), dilation = (
        ones + n for n in (g.spatial, g.output, g.kernel, g.stride, g.dilation)
    )
    (pad_height, _), (pad_row, _) = ((0, 0),) * (2 - g.axes) + g.padding
    taps = g.channels * math.prod(kernel)
    (vectors, rows), unit_rows, block_columns, row_blocks, column_blocks = _cut(g, dtype)
    lines, columns = -(-(pad_height + height) // row_stride), -(-(pad_row + row) // stride)
    block_rows = -(-lines // row_blocks)
    rows_before, columns_before = (
        d * (k - 1) // s for d, k, s in zip(dilation, kernel, g.stride if g.axes == 2 else (1, stride))
    )
    rows_before = min(rows_before, lines) if row_blocks > 1 else 0
    columns_before = min(columns_before, columns) if column_blocks > 1 else 0

    span = dilation[0] * (kernel[0] - 1) + 1
    ring = span + row_stride
    pitch = whole(block_columns, lanes)
    read_columns = block_columns if column_blocks > 1 else max(block_columns, out_row)  # whole rows of dy lie together
    products_pitch = whole(unit_rows * min(out_row, read_columns + columns_before), lanes * vectors)
    products_start = ring * g.channels * stride * pitch
    panel_start = whole(products_start + taps * products_pitch + lanes, 16)
    slot_size = whole(panel_start + whole(g.filters, lanes) * lanes * vectors, 16)
    steps = tuple(dilation[1] * j for j in range(kernel[1]))
    job = Job(
        fold_products(dtype, out, lanes, rows, vectors, steps, stride, g.channels * (layout == "last")),
        g.batch * row_blocks * column_blocks, all_channels=g.channels, filters=g.filters, taps=taps, tap_tiles=-(-taps // rows),
        kernel_rows=kernel[0], dilated_rows=dilation[0], row_stride=row_stride, height=height, row=row,
        out_height=out_height, out_row=out_row, pad_height=pad_height, pad_row=pad_row, row_blocks=row_blocks,
        block_rows=block_rows, column_blocks=column_blocks, block_columns=block_columns, read_columns=read_columns,
        rows_before=rows_before,
        columns_before=columns_before, unit_rows=unit_rows, units=-(-(block_rows + rows_before) // unit_rows), ring=ring,
        pitch=pitch, products_pitch=products_pitch, products_start=products_start, panel_start=panel_start,
        slot_size=slot_size,
    )  # fmt: skip
    firsts = np.minimum(np.arange(-(-taps // rows)) * rows, taps - rows)
    tiles = firsts[:, None, None] + np.arange(g.filters)[:, None] * taps + np.arange(rows)
    return prepared(job, g.flops // 2, slot_size, dtype, slots="space", taps=tiles)


@functools.lru_cache(maxsize=256)
def _cut(g: Geometry, dtype: str) -> tuple[tuple[int, int], int, int, int, int]:
    """The tile (vectors, taps), rows of dy at a time, columns of a block, and how many blocks of rows and columns."""
    lanes, itemsize = machine().lanes(dtype), np.dtype(wide_type(dtype)).itemsize
    taps = g.channels * math.prod(g.kernel)
    columns, room = -(-(g.padding[-1][0] + g.spatial[-1]) // g.stride[-1]), BLOCK_BYTES // (taps * itemsize)
    column_blocks = -(-columns // max(2 * lanes, room))
    if g.axes == 1:
        column_blocks = max(column_blocks, min(-(-LEAST_PIECES // max(1, g.batch)), columns // LEAST_COLUMNS))
    block_columns = whole(-(-columns // column_blocks), lanes) if column_blocks > 1 else columns
    column_blocks = -(-columns // block_columns)
    row_blocks, most = 1, 1
    if g.axes == 2:
        lines = -(-(g.padding[0][0] + g.spatial[0]) // g.stride[0])
        again = max(1, g.dilation[0] * (g.kernel[0] - 1) // g.stride[0])
        row_blocks = max(1, min(-(-LEAST_PIECES // max(1, g.batch * column_blocks)), lines // (LEAST_ROWS * again)))
        if column_blocks == 1:
            most = max(1, min(g.output[0], room // g.output[-1]))
    vectors, largest = 1 + (taps <= FEW_TAPS), MOST_ROWS[machine().registers]
    tiles = min(range(-(-taps // largest), taps + 1), key=lambda n: n * (-(-taps // n) + 1))
    pixels = g.output[-1] if column_blocks == 1 else block_columns
    unit = min(range(1, most + 1), key=lambda n: (whole(n * pixels, vectors * lanes) / n, -n))
    return (vectors, -(-taps // tiles)), unit, block_columns, row_blocks, column_blocks


def blocking(problem: Problem) -> str:
    """Tile, blocks and pieces, in words."""
    g, dtype = problem.geometry, problem.dtype
    (vectors, rows), plan = _cut(g, dtype)[0], _prepare(g, dtype, dtype, problem.layout, get_threads())
    n = plan.job.numbers
    return (
        f"{rows} taps by {vectors * machine().lanes(dtype)} pixels in registers, {n['unit_rows']} rows of dy at a time; "
        f"blocks of {n['block_rows']} x {n['block_columns']} strides of x; {plan.cut}"
    )


def share(problem: Problem) -> float:
    """Of the limit; see :mod:`konv.engine.roofline`."""
    return roofline.share(problem, 1.05, speed=0.9, moving=0.5, storing=4)
