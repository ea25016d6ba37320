"""The weight gradient: its jobs, prepared once for a geometry, and the memory they borrow."""

from __future__ import annotations

import functools
import math

import numpy as np

from konv.arrays import known_layout
from konv.engine.direct.outer import add_weight_parts, sum_outer_products
from konv.engine.direct.weights_cut import layout, three
from konv.engine.launch import Job
from konv.engine.machine import dtype_name, machine, wide_type
from konv.engine.prepared import Prepared, Step, prepared, without_bias
from konv.engine.threads import get_threads, width
from konv.geometry import Geometry

FEW_CHANNELS = 4  # are interleaved, not transposed


def workspace(g: Geometry, dtype: str, last: bool) -> int:
    """Bytes that :func:`weight_gradient` borrows, for arrays with channels last or first."""
    if g.batch == 0:
        return 0
    return _prepare(g, dtype, dtype, last, get_threads()).size


def weight_and_bias_gradient(dy: np.ndarray, x: np.ndarray, g: Geometry, out: np.ndarray, db: np.ndarray) -> None:
    """Write dL/dw (F, C // groups, *kernel) into ``out`` and dL/db (F,) into ``db``: dy is read once."""
    if g.batch == 0:
        out[...] = db[...] = 0
        return
    last = known_layout(x, dy) == "last"
    _prepare(g, dtype_name(x.dtype), dtype_name(out.dtype), last, get_threads()).run(x=x, dy=dy, dw=out, db=db)


weight_gradient = without_bias(weight_and_bias_gradient)


@functools.lru_cache(maxsize=256)
def _prepare(g: Geometry, dtype: str, out: str, last: bool, threads: int) -> Prepared:
    """From x and dy to weights, or to the sums of all parts, which are added up."""
    cut, lanes = layout(g, dtype, last), machine().lanes(dtype)
    pixels, blocks, tile = cut.pixels, cut.weights, cut.weights.tile
    channels, filters = g.channels // g.groups, g.filters // g.groups
    interleaved = blocks.channels if blocks.channels <= FEW_CHANNELS and not last else 0
    run_groups, taps = len(cut.run_ranges), math.prod(g.kernel)
    axes = ("depth", "height", "width")
    low = (0,) * (3 - g.axes) + tuple(pair[0] for pair in g.padding)
    weights = dict(
        channels=channels, filters=filters, parts=blocks.parts, filter_blocks=blocks.filter_blocks, panels=blocks.panels,
        block_panels=blocks.block_panels, channel_blocks=blocks.channel_blocks, block_channels=blocks.channels,
        sums_size=cut.sums_size, taps=taps, panel_rows=blocks.rows,
    )  # fmt: skip
    multiply = Job(
        sum_outer_products(
            dtype, out, lanes, tile.vectors, tile.rows, tile.joined, interleaved, last, cut.together > 0
        ), blocks.pieces,
        groups=g.groups, all_planes=g.batch * three(g, g.output)[0], planes=pixels.planes, block_rows=pixels.rows,
        block_columns=pixels.columns, row_blocks=pixels.counts[1], column_blocks=pixels.counts[2],
        units=math.prod(pixels.counts), line_count=len(pixels.lines), line_cells=pixels.cells,
        cell_step=pixels.step, column_cells=pixels.column_cells,
        row_step=pixels.row_lines * pixels.cells * blocks.channels, runs=run_groups, blocks=cut.blocks,
        slot_size=cut.slot_size, image_size=cut.image_size, whole=int(blocks.whole), lines=pixels.lines,
        together=cut.together, run_cells=cut.run_cells, run_ranges=cut.run_ranges, places=cut.places, **weights,
        **{f"x_{axis}": n for axis, n in zip(axes, three(g, g.spatial))},
        **{f"out_{axis}": n for axis, n in zip(axes, three(g, g.output))},
        **{f"{axis}_stride": n for axis, n in zip(axes, three(g, g.stride))},
        **{f"{axis}_pad": n for axis, n in zip(axes, low)},
    )  # fmt: skip
    used, names = width(blocks.pieces, g.flops // 2), {"sums": "parts"}
    if blocks.whole:
        return prepared(
            multiply, 0, cut.slot_size, dtype, threads=used, names=names, slots="space", parts=cut.sums_size * used
        )
    add = Job(
        add_weight_parts(wide_type(dtype), out, lanes, tile.vectors),
        g.groups * blocks.filter_blocks * blocks.channel_blocks * blocks.block_panels,
        places=cut.places, **weights,
    )  # fmt: skip
    after = [Step(add, width(add.pieces, blocks.parts * math.prod(g.w_shape)), names)]
    return prepared(
        multiply, 0, cut.slot_size, dtype, threads=used, names=names, after=after, slots="space",
        parts=cut.sums_size * blocks.pieces,
    )  # fmt: skip


def blocking(g: Geometry, dtype: str, last: bool) -> str:
    """Tile, blocks and pieces, in words."""
    if g.batch == 0:
        return "nothing to sum"
    cut, job = layout(g, dtype, last), _prepare(g, dtype, dtype, last, get_threads())
    tile, pixels, lanes = cut.weights.tile, cut.pixels, machine().lanes(dtype)
    return (
        f"{tile.joined} x {tile.rows} numbers by {tile.vectors * lanes} filters in registers; blocks of {cut.weights.channels} "
        f"channels by {cut.weights.block_panels * tile.vectors * lanes} filters, summed over units of {pixels.planes} x "
        f"{pixels.rows} x {pixels.columns} outputs in {cut.weights.parts} parts; {job.cut}"
    )


def done(g: Geometry, dtype: str, last: bool) -> float:
    """Multiply-adds for each one of the formula."""
    if g.batch == 0:
        return 1.0
    cut = layout(g, dtype, last).weights
    filters = cut.panels * cut.tile.vectors * machine().lanes(dtype) / (g.filters // g.groups)
    return filters * cut.channel_blocks * cut.rows / (g.channels // g.groups * math.prod(g.kernel))
