"""1-D windows side by side, few filters (what compresses a long sequence): weights are repeated along the row.

Products on views must turn windows of 10 cells to lanes, a transpose for each 16, and multiply 4 filters with a tile of 8. Here
x, dx and dy stay where they are: lanes are cells of a row, times the weights of their places in the windows. What belongs to
one window is added up, or spread over its cells, once for all channels.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import numpy as np

from konv.engine import memory, roofline
from konv.engine.launch import Job, address
from konv.engine.machine import dtype_name, machine, wide_type
from konv.engine.prepared import Prepared, Step, prepared
from konv.engine.products.products_weights import add_sums
from konv.engine.products.repeats_kernels import repeat_weights, spread_windows, sum_windows
from konv.engine.products.repeats_outer import sum_repeats
from konv.engine.threads import get_threads
from konv.geometry import Geometry

if TYPE_CHECKING:
    from konv.engine.plan import Problem

NAME = "repeats"
MOST_FILTERS, LEAST_CHANNELS = 8, 16
MOST_VECTORS = 5  # of a period
MOST_BYTES = 512 << 10  # of repeated weights: they stay in L2
ROW_CELLS = 800  # of a row, or of several, that an input gradient spreads dy over
# Of a weight gradient: its unit's part of x stays in L2; channels that it sums at once
UNIT_PERIODS, UNIT_BYTES, CHANNELS = 16, 256 << 10, 6
PIECE_WORK = 1 << 20  # multiply-adds
STREAMED_BYTES = 16 << 20  # of dx: nobody finds that much in a cache
PARTS = 8  # of a weight gradient
TURNED = (2, 4, 8, 16)  # windows that products take apart by shuffles

__all__ = ["NAME", "blocking", "declines", "forward", "input_gradient", "share", "weight_gradient", "workspace"]


def declines(problem: Problem) -> str | None:
    """Other windows than described above, and those that :mod:`konv.engine.products.products` is compiled for."""
    g = problem.geometry
    if problem.layout == "last" or g.axes > 1 or g.groups > 1 or not g.batch:
        return "it computes layers of one axis and one group, channels first"
    if any(g.padding[0]) or g.dilation[0] > 1 or g.kernel != g.stride or g.kernel[0] in (1, *TURNED):
        return f"it computes kernels as long as their stride, without padding, other than {', '.join(map(str, TURNED))}"
    if g.filters > MOST_FILTERS or g.channels < LEAST_CHANNELS:
        return (
            f"{g.filters} filters, {g.channels} channels; it computes at most {MOST_FILTERS}, at least {LEAST_CHANNELS}"
        )
    period, lanes = _period(g, problem.dtype)
    # Forward takes any row: what computes a stream must not depend on its length
    least = {"forward": 1, "input_gradient": period, "weight_gradient": 2 * period}[problem.kind]
    if g.output[0] * g.kernel[0] < least:
        return f"rows of {g.output[0] * g.kernel[0]} cells; it computes at least {least}"
    size = g.filters * g.channels * period * np.dtype(wide_type(problem.dtype)).itemsize
    if period > lanes * MOST_VECTORS or size > MOST_BYTES:
        return f"weights repeat after {period} cells, {size >> 10} KiB in all"
    return None


def _period(g: Geometry, dtype: str) -> tuple[int, int]:
    lanes = machine().lanes(dtype)
    return math.lcm(lanes, g.kernel[0]), lanes


def _most_sums() -> int:
    return 24 if machine().registers >= 32 else 12


def workspace(problem: Problem) -> int:
    """Bytes borrowed while it runs."""
    return _prepare(problem).size


def _prepare(problem: Problem) -> Prepared:
    g, dtype, threads = problem.geometry, problem.dtype, get_threads()
    if problem.kind == "input_gradient":
        return _spreading(g, dtype, dtype, False, threads)
    return (_forward if problem.kind == "forward" else _gradient)(g, dtype, threads)


@functools.lru_cache(maxsize=256)
def _forward(g: Geometry, dtype: str, threads: int) -> Prepared:
    (row,), (outputs,), (taps,), (period, lanes) = g.spatial, g.output, g.kernel, _period(g, dtype)
    vectors = period // lanes
    # More periods in a tile read each weight less often, fewer leave less of it behind the row's end
    periods = min(
        range(1, max(1, _most_sums() // vectors // min(g.filters, 2)) + 1),
        key=lambda n: -(-outputs * taps // (n * period)) * n * (1 + 0.5 / n),
    )
    filters = max(1, min(g.filters, _most_sums() // (vectors * periods)))
    cells = period * periods
    tiles = -(-outputs * taps // cells)
    work = cells * g.channels * g.filters
    block_tiles = max(1, min(tiles, PIECE_WORK // work))
    row_blocks = -(-tiles // block_tiles)
    slot_size = cells + lanes
    job = Job(
        sum_windows(dtype, lanes, filters, vectors * periods, taps), g.batch * row_blocks, slot_size=slot_size,
        channels=g.channels, all_filters=g.filters, filter_blocks=-(-g.filters // filters), period=period, row=row,
        outputs=outputs, tiles=tiles, block_tiles=block_tiles, row_blocks=row_blocks,
    )  # fmt: skip
    return _repeating(job, slot_size, g, dtype)


def _repeating(job: Job, slot_size: int, g: Geometry, dtype: str) -> Prepared:
    """Of a job of repeated weights."""
    (period, lanes), rows = _period(g, dtype), g.filters * g.channels
    repeat = Step(Job(repeat_weights(dtype, lanes, g.kernel[0]), 1, rows=rows))
    return prepared(
        job, g.flops // 2, slot_size, dtype, g.filters, before=[repeat], slots="workspace", repeated=rows * period + lanes
    )  # fmt: skip


def forward(x: np.ndarray, w: np.ndarray, b: np.ndarray | None, g: Geometry, out: np.ndarray) -> None:
    """Write conv(x, w) + b into ``out`` (N, F, output)."""
    plan = _forward(g, dtype_name(x.dtype), get_threads())
    plan.run(x=x, w=w, bias=plan.bias(b), y=out)


@functools.lru_cache(maxsize=256)
def _spreading(g: Geometry, dtype: str, x_dtype: str, streamed: bool, threads: int) -> Prepared:
    (row,), (outputs,), (period, lanes) = g.spatial, g.output, _period(g, dtype)
    periods = outputs * g.kernel[0] // period
    row_blocks = -(-periods * period // ROW_CELLS)
    block_periods = -(-periods // row_blocks)
    row_blocks = -(-periods // block_periods)
    block_images = max(1, min(g.batch, ROW_CELLS // (block_periods * period))) if row_blocks == 1 else 1
    slot_size = block_images * (block_periods + 1) * g.filters * period
    job = Job(
        spread_windows(dtype, x_dtype, lanes, g.filters, g.kernel[0], streamed), -(-g.batch // block_images) * row_blocks,
        slot_size=slot_size, images=g.batch, block_images=block_images, channels=g.channels, row=row, outputs=outputs,
        block_periods=block_periods, row_blocks=row_blocks,
    )  # fmt: skip
    return _repeating(job, slot_size, g, dtype)


def input_gradient(dy: np.ndarray, w: np.ndarray, g: Geometry, out: np.ndarray) -> None:
    """Write dL/dx (N, C, length) into ``out``, whose type may be wider than that of dy."""
    lines = not address(out) % memory.LINE and not g.spatial[0] * out.itemsize % memory.LINE
    streamed = lines and out.nbytes >= STREAMED_BYTES
    _spreading(g, dtype_name(dy.dtype), dtype_name(out.dtype), streamed, get_threads()).run(dy=dy, w=w, x=out)


@functools.lru_cache(maxsize=256)
def _gradient(g: Geometry, dtype: str, threads: int) -> Prepared:
    (row,), (outputs,), (taps,), (period, lanes) = g.spatial, g.output, g.kernel, _period(g, dtype)
    wide, vectors = wide_type(dtype), period // lanes
    periods, itemsize = -(-outputs * taps // period), np.dtype(wide).itemsize
    row_blocks = -(-periods // UNIT_PERIODS)
    block_periods = -(-periods // row_blocks)
    row_blocks = -(-periods // block_periods)
    block_images = max(1, min(g.batch, UNIT_PERIODS // block_periods)) if row_blocks == 1 else 1
    channels = max(1, min(CHANNELS, g.channels, _most_sums() // g.filters))
    channel_blocks = -(-g.channels * block_images * block_periods * period * itemsize // UNIT_BYTES)
    block_channels = -(-g.channels // channel_blocks)
    block_channels = min(g.channels, -(-block_channels // channels) * channels)
    channel_blocks, groups = -(-g.channels // block_channels), -(-block_channels // channels)
    starts = [np.arange(v * lanes, outputs * taps // lanes * lanes, period)[:block_periods] for v in range(vectors)]
    images = np.arange(block_images)[:, None] * (g.channels * row)
    offsets = [(images + start).reshape(-1) for start in starts]
    most_vectors = max(map(len, offsets))
    # Lines of a unit as they follow each other, in an image or in a channel
    apart, cells = (g.channels * row, block_channels * row) if row_blocks == 1 else (row, block_periods * period)
    steps = np.arange(vectors * groups * most_vectors)
    steps_apart = -(-cells // (channels * lanes))
    ahead = steps // steps_apart * apart + steps % steps_apart * (channels * lanes)
    units = -(-g.batch // block_images) * row_blocks
    parts, weights, sums = min(PARTS, units), math.prod(g.w_shape), g.filters * channels
    slot_size = groups * (vectors + 1) * sums * lanes + sums * period
    slot_size += (vectors * most_vectors + block_images) * g.filters * lanes
    job = Job(
        sum_repeats(dtype, lanes, g.filters, channels, taps), parts * channel_blocks, slot_size=slot_size, parts=parts,
        units=units, images=g.batch, block_images=block_images, channels=g.channels, block_channels=block_channels,
        channel_blocks=channel_blocks, row=row, outputs=outputs, most_vectors=most_vectors, block_periods=block_periods,
        row_blocks=row_blocks, ahead=ahead.astype(np.int64),
        offsets=np.array([np.resize(line, most_vectors) for line in offsets], np.int64),
    )  # fmt: skip
    add = Job(
        add_sums(wide, dtype, lanes), -(-weights // (1024 * lanes)), parts=parts, numbers=weights, chunk=1024 * lanes
    )
    return prepared(
        job, g.flops // 2, slot_size, dtype, names={"sums": "parts"}, after=[Step(add, 1, {"sums": "parts"})],
        slots="workspace", parts=-(-parts * weights // lanes) * lanes,
    )  # fmt: skip


def weight_gradient(dy: np.ndarray, x: np.ndarray, g: Geometry, out: np.ndarray) -> None:
    """Write dL/dw (F, C, kernel) into ``out``."""
    _gradient(g, dtype_name(x.dtype), get_threads()).run(dy=dy, x=x, out=out)


def blocking(problem: Problem) -> str:
    """Tile, blocks and pieces, in words."""
    g, dtype = problem.geometry, problem.dtype
    period, _ = _period(g, dtype)
    made = _prepare(problem)
    n = made.job.numbers
    what = {
        "forward": f"blocks of {n.get('block_tiles')} tiles of a row",
        "input_gradient": f"blocks of {n.get('block_periods')} periods of a row",
        "weight_gradient": f"summed over units of {n.get('block_images')} x {n.get('block_periods')} periods by "
        f"{n.get('block_channels')} channels",
    }[problem.kind]
    return f"weights repeated over periods of {period} cells; {what}; {made.cut}"


def share(problem: Problem) -> float:
    """Of the limit; see :mod:`konv.engine.roofline`."""
    g = problem.geometry
    period, lanes = _period(g, problem.dtype)
    if problem.kind == "forward":
        done = roofline.padding(g.output[0] * g.kernel[0], period)
        return roofline.share(problem, done, speed=0.4, moving=1.5, storing=1)
    return roofline.share(problem, roofline.padding(g.output[0] * g.kernel[0], lanes), speed=0.7, moving=1, storing=1)
