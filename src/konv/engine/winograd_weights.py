"""The weight gradient by Winograd's algorithm, F(3x3, 4x4): blocks of channels by filters, each summed over all tiles.

A block's inputs and upstream gradients are transformed once more for every block of filters or channels that they meet. That
costs half the time of the products, and keeps the 36 sums of a block in L2, the workspace small and the threads apart:
sharing the transformed numbers takes 65 % of the im2col matrix at 256@14.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

from konv.arrays import known_layout
from konv.engine import memory
from konv.engine.launch import Job, address
from konv.engine.machine import dtype_name, machine, wide_type, widened
from konv.engine.threads import get_threads, width
from konv.engine.winograd_axes import Axes, tables, taps_of, tiles_in_words
from konv.engine.winograd_cuts import LEAST_MEMORY, MEMORY, evenly, rows_and_columns, shapes, strip_size
from konv.engine.winograd_kernels import SPREAD
from konv.engine.winograd_outer import add_parts, tiles_to_weights
from konv.geometry import Geometry

BLOCK_TILES, FEW_TILES = 32, 512  # in one sum; half as many below FEW_TILES tiles, to need less memory
BLOCKS = ((64, 64), (64, 32), (32, 32), (32, 16), (16, 16))  # channels by filters: the first that fits into MEMORY
# Where all tiles are one block, a piece keeps its upstream gradients while channels pass by.
PASSING = ((64, 64), (32, 64), (16, 64), (16, 32), (16, 16))
PARTS = 16  # into which the tiles are cut, that threads have something to do: sums of their own, added at the end
PART_MEMORY = 0.03  # of the im2col matrix, that the parts' sums may take
ADDED = 4608  # weights in a piece of the addition


@dataclass(frozen=True)
class Prepared:
    """A weight gradient's jobs.

    Attributes
    ----------
    multiply : from x and dy to weights, or to the sums of all parts
    add : the parts; None where there is one
    sections : the table
    threads : that ``multiply`` uses, each with a slot
    part_cells : cells of the parts' sums; the slots lie behind them
    size : bytes of the workspace
    """

    multiply: Job
    add: Job | None
    sections: np.ndarray
    threads: int
    part_cells: int
    size: int


@functools.lru_cache(maxsize=256)
def prepare(g: Geometry, dtype: str, layout: str, threads: int) -> Prepared:
    """The jobs of a geometry's weight gradient. Sums are cut by shapes alone, so their bits do not depend on the threads."""
    columns_matrix = math.prod(g.output) * g.batch * g.channels * math.prod(g.kernel)
    axes = Axes.of(g, False)
    candidates = PASSING if g.batch * axes.tiles <= BLOCK_TILES else BLOCKS
    for block in candidates:
        prepared = _prepare(g, axes, dtype, layout, *block)
        if block == candidates[-1] or prepared.size <= max(
            LEAST_MEMORY, MEMORY * columns_matrix * np.dtype(wide_type(dtype)).itemsize
        ):
            return prepared
    raise AssertionError


def _prepare(g: Geometry, axes: Axes, dtype: str, layout: str, most_channels: int, most_filters: int) -> Prepared:
    host = machine()
    lanes, (vectors, rows) = host.lanes(dtype), host.tile
    vectors = min(vectors, -(-g.filters // lanes), -(-most_filters // lanes))
    rows = min(rows, 8)  # 8 divides what layers have; 13 and 14 are as fast for 64 channels
    few = BLOCK_TILES < g.batch * axes.tiles <= FEW_TILES
    tiled = rows_and_columns(axes, g.batch, BLOCK_TILES // 2 if few else BLOCK_TILES)
    blocks = -(-tiled["all_rows"] // tiled["block_rows"]) * tiled["column_blocks"]
    most_parts = int(PART_MEMORY * math.prod(g.output) * g.batch / g.filters)
    parts, part_blocks = evenly(blocks, -(-blocks // max(1, min(PARTS, most_parts))))

    channel_blocks, channel_vectors = evenly(-(-g.channels // lanes), max(1, most_channels // lanes))
    filter_blocks, panels = evenly(-(-g.filters // (lanes * vectors)), max(1, most_filters // (lanes * vectors)))
    piece_blocks = channel_blocks if blocks == 1 else 1
    channel_pieces = -(-channel_blocks // piece_blocks)
    block_channels, block_filters = channel_vectors * lanes, panels * lanes * vectors

    (sections, _), kernel_size, points = tables(axes, g), math.prod(g.kernel), axes.points
    tiles = tiled["block_rows"] * tiled["block_columns"]
    input_plane, upstream_plane = tiles * block_channels + SPREAD, tiles * block_filters + SPREAD
    sum_rows = -(-block_channels // rows) * rows
    sums_plane = panels * sum_rows * lanes * vectors + SPREAD
    pitch, strip = strip_size(axes, tiled["block_columns"], lanes)
    taps_plane = -(-block_channels * kernel_size // lanes) * lanes * lanes
    # Of several sections the taps of all filters are kept; else a vector of filters is written at once, and inputs are over.
    several = len(sections) > 1
    upstream_at = max(points * input_plane, 0 if several else taps_plane)
    sums_at = upstream_at + points * upstream_plane
    strip_at = sums_at + points * sums_plane
    taps_at = strip_at + strip
    slot_size = taps_at + (block_filters // lanes * taps_plane if several else 0)
    schemes = [(axis.scheme.outputs, axis.scheme.taps) for axis in (axes.rows, axes.columns)]
    multiply = Job(
        tiles_to_weights(
            dtype, lanes, vectors, rows, *schemes, taps_of(axes, g), kernel_size, layout,
            (axes.rows.in_step, axes.columns.in_step), axes.dilated,
        ),
        parts * channel_pieces * filter_blocks,
        slot_size=slot_size, upstream_at=upstream_at, sums_at=sums_at, strip_at=strip_at, taps_at=taps_at if several else 0,
        channels=g.channels, filters=g.filters, blocks=blocks, part_blocks=part_blocks, parts=parts,
        section_count=len(sections), channel_blocks=channel_blocks, piece_blocks=piece_blocks, channel_pieces=channel_pieces,
        kept_upstream=int(blocks == 1), block_channels=block_channels, block_filters=block_filters, sum_rows=sum_rows,
        input_plane=input_plane, upstream_plane=upstream_plane, sums_plane=sums_plane,
        taps_plane=taps_plane if several else 0, pitch=pitch, **shapes(axes, written=False), **tiled,
    )  # fmt: skip
    weights, add, part_cells = math.prod(g.w_shape), None, 0
    if parts > 1:
        add = Job(add_parts(wide_type(dtype), lanes), -(-weights // ADDED), size=weights, parts=parts, cells=ADDED)
        part_cells = parts * weights
    used = width(multiply.pieces, g.batch * axes.tiles * axes.products * g.channels * g.filters)
    size = (part_cells + used * slot_size) * np.dtype(wide_type(dtype)).itemsize
    return Prepared(multiply, add, sections, used, part_cells, size)


def workspace(g: Geometry, dtype: str, layout: str) -> int:
    """Bytes taken while :func:`weight_gradient` runs: half types are summed into a copy."""
    return prepare(g, dtype, layout, get_threads()).size + widened(g.w_shape, dtype) if g.batch else 0


def weight_gradient(dy: np.ndarray, x: np.ndarray, g: Geometry, out: np.ndarray) -> None:
    """Write dL/dw (F, C, *kernel) into ``out``."""
    if g.batch == 0:
        out[...] = 0
        return
    job = prepare(g, dtype_name(x.dtype), known_layout(dy, x), get_threads())
    wide = wide_type(dtype_name(x.dtype))
    target = out if out.dtype == wide else np.empty(out.shape, wide)
    with memory.workspace(job.size) as parts:
        dw = address(target) if job.add is None else parts
        job.multiply.run(
            job.threads, x=address(x), dy=address(dy), dw=dw, slots=parts + job.part_cells * target.itemsize,
            sections=address(job.sections),
        )  # fmt: skip
        if job.add is not None:
            job.add.run(width(job.add.pieces, job.part_cells), sums=parts, dw=address(target))
    if target is not out:
        out[...] = target


def blocking(g: Geometry, dtype: str, layout: str) -> str:
    """Tiles, blocks and pieces, in words."""
    job = prepare(g, dtype, layout, get_threads())
    n = job.multiply.numbers
    return (
        f"{tiles_in_words(Axes.of(g, False))}; blocks of {n['block_channels']} channels by {n['block_filters']} filters, "
        f"summed over blocks of {n['block_rows']} x {n['block_columns']} tiles in {n['parts']} parts; "
        f"{job.multiply.cut(job.threads)}"
    )
