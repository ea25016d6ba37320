"""Weight gradients of first layers: their job, and the sums of its parts.

Where rows fill vectors and a block has enough outputs for its sums over lanes, 1.1 to 1.8 times as fast as the direct
algorithm, which lays dy out anew; on rows of 28 or 56 outputs, or blocks of 500, 0.6 to 0.85 times, with 147 taps 1.0.
To ask for the rows of the next filters while these are multiplied gains 3 to 40 %; tiles that read x less often, 4 x 6 to 8 x 3,
gain nothing, blocks of a quarter cost up to 10 %.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from konv.engine import roofline
from konv.engine.launch import Job
from konv.engine.machine import dtype_name, machine
from konv.engine.prepared import Prepared, prepared, without_bias
from konv.engine.stems.strips_cut import cut_rows, whole
from konv.engine.stems.strips_outer import accumulate_strips
from konv.engine.threads import get_threads
from konv.geometry import Geometry

BLOCK_BYTES = 192 << 10  # of copied rows: the more of them, the less often are lanes summed
PARTS = 16
FULL, LEAST_OUTPUTS, MOST_TAPS = 0.9, 640, 100  # of rows' last vectors; of a block; of images
LOAD = 0.5  # of a multiply-add
TILES = {
    32: ((3, 9), (3, 8), (3, 7), (4, 6), (5, 5), (6, 4), (7, 3)),
    16: ((2, 5), (2, 4), (3, 3), (4, 2)),
}  # (filters, taps)


def declines(g: Geometry, dtype: str) -> str | None:
    """Rows that leave lanes empty, blocks of few outputs, and many taps."""
    taps, row, numbers = g.channels * math.prod(g.kernel), g.output[-1], cut_rows(g, dtype, 16, BLOCK_BYTES).numbers
    if g.axes == 2 and taps > MOST_TAPS:
        return f"the weight gradient of {taps} taps, more than {MOST_TAPS}"
    if row < FULL * whole(row, 16) or numbers["block_rows"] * numbers["block_columns"] < LEAST_OUTPUTS:
        return f"the weight gradient where rows of {row} outputs leave lanes empty, or blocks are small"
    return None


def workspace(g: Geometry, dtype: str) -> int:
    """Bytes borrowed while it runs, the sums included."""
    plan = _prepare(g, dtype, get_threads())
    return plan.size + plan.sums_size


def weight_and_bias_gradient(dy: np.ndarray, x: np.ndarray, g: Geometry, out: np.ndarray, db: np.ndarray) -> None:
    """Write dL/dw (F, C, *kernel) into ``out`` and dL/db (F,) into ``db``: dy is read once."""
    if g.batch == 0:
        out[...] = db[...] = 0
        return
    plan = _prepare(g, dtype_name(x.dtype), get_threads())
    sums = np.empty(plan.sums, plan.no_bias.dtype)
    plan.run(x=x, dy=dy, sums=sums)
    total, (filters, taps) = sums.sum(axis=0), _tile(g)
    end = total.shape[1] - whole(filters, machine().lanes(dtype_name(x.dtype)))
    db[...] = total[:, end : end + filters].reshape(-1)[: g.filters]
    tiles = total[:, :end].reshape(len(total), plan.job.numbers["tap_blocks"], -1)[:, :, : filters * taps]
    tiles = tiles.reshape(*tiles.shape[:2], filters, taps).transpose(0, 2, 1, 3)
    all_taps = g.channels * math.prod(g.kernel)
    out[...] = tiles.reshape(len(total) * filters, -1)[: g.filters, :all_taps].reshape(g.w_shape)


weight_gradient = without_bias(weight_and_bias_gradient)


@functools.lru_cache(maxsize=256)
def _prepare(g: Geometry, dtype: str, threads: int) -> Prepared:
    lanes, (filters, taps) = machine().lanes(dtype), _tile(g)
    cut = cut_rows(g, dtype, lanes, BLOCK_BYTES)
    blocks, tap_blocks = -(-g.filters // filters), -(-len(cut.offsets) // taps)
    offsets = np.pad(cut.offsets, (0, tap_blocks * taps - len(cut.offsets)), "edge")
    parts = max(1, min(PARTS, cut.units))
    tail = g.output[-1] % lanes > 0
    job = Job(
        accumulate_strips(dtype, lanes, filters, taps, g.stride[-1], tail), parts, all_filters=g.filters, filter_blocks=blocks,
        tap_blocks=tap_blocks, units=cut.units, parts=parts, offsets=offsets, **cut.numbers,
    )  # fmt: skip
    sums = parts, blocks, tap_blocks * whole(filters * taps, lanes) + whole(filters, lanes)
    return prepared(job, g.flops // 2, cut.numbers["slot_size"], dtype, sums=sums, slots="space")


def _tile(g: Geometry) -> tuple[int, int]:
    """Filters and taps: the least of what is computed and read."""
    return min(TILES[machine().registers], key=lambda tile: _computed(g, tile))


def _computed(g: Geometry, tile: tuple[int, int]) -> float:
    products = whole(g.filters, tile[0]) * whole(g.channels * math.prod(g.kernel), tile[1])
    return products * (1 + LOAD * sum(tile) / math.prod(tile))


def blocking(g: Geometry, dtype: str) -> str:
    """Tile, blocks and pieces, in words."""
    (filters, taps), plan = _tile(g), _prepare(g, dtype, get_threads())
    n = plan.job.numbers
    return (
        f"{filters} filters by {taps} taps in registers, summed over blocks of {n['block_rows']} x {n['block_columns']} "
        f"outputs in {n['parts']} parts; {plan.cut}"
    )


def done(g: Geometry, dtype: str) -> float:
    """Multiply-adds, and reads in their time, for each one of the formula."""
    products = g.filters * g.channels * math.prod(g.kernel)
    return _computed(g, _tile(g)) / products * roofline.padding(g.output[-1], machine().lanes(dtype))
