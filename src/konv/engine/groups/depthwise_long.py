"""Weight gradients of depthwise layers of one axis with many taps: their job.

Rows of x and of dy are copied between zeros; then half a vector is read a tap, where :mod:`konv.engine.groups.planes_outer` reads
one that crosses cache lines: 256 channels of 1,000 cells take 0.5 of its time with 31 or 15 taps, 0.8 with 8 or 5; rows of 60
cells 0.9 with 31 taps, but 1.3 with 8.

Lost: the same channels last, each 16 x 16 cells transposed while copied, 1.1 to 2 times as long as channels in lanes.
Groups of 4 to 16 channels in this way (the rows of a plane copied one behind the other, 4 filters by 6 taps in registers): the
products alone take 0.55 to 0.9 of the time that others take, with the copies, whose rows are short, 1.0 to 1.4.
"""

from __future__ import annotations

import functools

import numpy as np

from konv.arrays import all_finite
from konv.engine import columns
from konv.engine.groups.depthwise_long_kernels import SHIFTS, accumulate_long
from konv.engine.launch import Job
from konv.engine.machine import dtype_name, machine
from konv.engine.prepared import Prepared, prepared
from konv.engine.threads import get_threads
from konv.geometry import Geometry

LEAST_TAPS, LEAST_OF_SHORT, SHORT = 5, 9, 250  # of rows, of short rows, those of fewer outputs
MOST_SHIFTS = 4  # of dy, that meet those of x in registers
COPIED_CELLS = 3072  # of a row, whose copies stay in the nearest cache
LEAST_PIECES = 32


def takes(g: Geometry, layout: str) -> bool:
    """Rows of enough taps, without strides, channels first."""
    plain = g.axes == 1 and g.channels == g.filters == g.groups and g.stride[0] == g.dilation[0] == 1
    least = LEAST_TAPS if g.output[-1] >= SHORT else LEAST_OF_SHORT
    return plain and g.kernel[0] >= least and layout == "first"


@functools.lru_cache(maxsize=256)
def _prepare(g: Geometry, dtype: str, threads: int) -> Prepared:
    lanes = machine().lanes(dtype)
    tile = min(MOST_SHIFTS, -(-g.kernel[0] // SHIFTS))
    tiles = -(-g.kernel[0] // (SHIFTS * tile))
    taps = tile * tiles * SHIFTS
    cells = max(1, min(g.output[0], COPIED_CELLS))
    dy_at, dy_size = ((-(-(cells + n * taps) // lanes) + 3) * lanes for n in (1, 2))
    parts = max(1, min(g.batch, LEAST_PIECES // max(1, g.channels)))
    part_images = max(1, -(-g.batch // parts))
    parts = max(1, -(-g.batch // part_images))
    channel_chunk = max(1, g.channels * parts // (8 * threads))
    slot_size = dy_at + dy_size + (taps + 1) * lanes
    job = Job(
        accumulate_long(dtype, lanes, tile, tiles), parts * -(-g.channels // channel_chunk), slot_size=slot_size,
        dy_at=dy_at, totals_at=dy_at + dy_size, images=g.batch, part_images=part_images, channels=g.channels,
        channel_chunk=channel_chunk, row=g.spatial[0], out_row=g.output[0], columns=cells, pad=g.padding[0][0],
    )  # fmt: skip
    return prepared(job, g.flops // 2, slot_size, dtype, sums=(parts, g.channels, taps))


def workspace(g: Geometry, dtype: str) -> int:
    """Bytes taken while it runs: copied rows, and sums of all parts."""
    plan = _prepare(g, dtype, get_threads())
    return plan.size + plan.sums_size


def weight_and_bias_gradient(dy: np.ndarray, x: np.ndarray, g: Geometry, out: np.ndarray, db: np.ndarray) -> None:
    """Write dL/dw (F, 1, taps) into ``out`` and dL/db (F,) into ``db``: dy is read once."""
    sums, _ = _prepare(g, dtype_name(x.dtype), get_threads()).accumulate(dy, x, db)
    if all_finite(sums):
        out[...] = sums[:, None, : g.kernel[0]]
    else:  # zeros around a row met an infinity that is none of theirs
        columns.weight_gradient(dy, x, g, out)


def blocking(g: Geometry, dtype: str) -> str:
    """Tile, chunks and pieces, in words."""
    plan = _prepare(g, dtype, get_threads())
    n = plan.job.numbers
    return (
        f"shifts of dy times {SHIFTS} of x, chunks of {n['columns']} cells; {n['channel_chunk']} channels of "
        f"{n['part_images']} images a piece; {plan.cut}"
    )
