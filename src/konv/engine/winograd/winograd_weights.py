"""The weight gradient by Winograd's algorithm, F(3x3, 4x4): blocks of channels by filters, each summed over all tiles.

A block's inputs and upstream gradients are transformed once more for every block of filters or channels that they meet. That
costs half the time of the products, and keeps the 36 sums of a block in L2, the workspace small and the threads apart:
sharing the transformed numbers takes 65 % of the im2col matrix at 256@14.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass

import numpy as np

from konv.arrays import known_layout
from konv.engine.launch import Job
from konv.engine.machine import dtype_name, machine, wide_type, widened
from konv.engine.prepared import Prepared, Step, prepared, without_bias
from konv.engine.threads import get_threads, using, width
from konv.engine.winograd.winograd_axes import Axes, tables, taps_of, tiles_in_words
from konv.engine.winograd.winograd_cuts import (
    FAST_BYTES,
    LEAST_MEMORY,
    MANY_POINTS,
    MEMORY,
    evenly,
    rows_and_columns,
    shapes,
    strip_size,
)
from konv.engine.winograd.winograd_kernels import SPREAD
from konv.engine.winograd.winograd_outer import add_parts, tiles_to_weights
from konv.geometry import Geometry

TILES = (64, 48, 32, 24, 16)  # of a block, in one sum
BLOCKS = (128, 64, 32, 16)  # its channels, its filters
# Nanoseconds on one core: a product of a channel, a filter and a tile at one point; a sum of such, added to what is there, and
# as much again where a slot does not fit into L2; a channel of a tile's inputs to 36 points, a filter of its upstream
# gradients; points to the weights of a channel and a filter. Fitted to 16 layers, a hundred ways each: a few choices are
# up to 4 % slower than the best. With blocks of 32 tiles alone, 16 of few: 128@28 1.17 times as long, 4x4/2 256@8 1.22,
# 512@33 dilated 2 1.13, k3 of 128 1.17, one image of 64@56 (one piece) 1.6.
PRODUCT, SUM, INPUT, UPSTREAM, END = 0.0154, 0.071, 17, 9, 20
USUAL_THREADS = 2  # the tiles of a block are chosen for so many
PARTS = 16  # into which the tiles are cut, that threads have something to do: sums of their own, added at the end
PART_MEMORY = 0.03  # of the im2col matrix, that the parts' sums may take
ADDED = 4608  # weights in a piece of the addition


@dataclass(frozen=True)
class Cut:
    """One way to cut it.

    Attributes
    ----------
    most_tiles : of a block: with the shapes it decides in which order numbers are summed
    pieces, threads : of the job
    vectors, rows : of filters, of channels in registers
    parts : of all tiles
    slot_size, part_cells : cells of a thread's own, and of the parts' sums
    size : bytes of the workspace
    cost : about how many nanoseconds it takes one core
    numbers : the kernel's arguments
    """

    most_tiles: int
    pieces: int
    threads: int
    vectors: int
    rows: int
    parts: int
    slot_size: int
    part_cells: int
    size: int
    cost: float
    numbers: dict[str, int]


def best(g: Geometry, dtype: str, threads: int) -> Cut:
    """The cheapest way that fits into the memory; where none does, the best product of both.

    Only what leaves the order of the sums alone depends on ``threads``, so their bits do not.
    """
    axes = Axes.of(g, False)
    columns_matrix = math.prod(g.output) * g.batch * g.channels * math.prod(g.kernel) * _itemsize(dtype)
    limit = max(LEAST_MEMORY, MEMORY * columns_matrix)

    def cheapest(sizes: tuple[int, ...], threads: int) -> Cut:
        with using(threads):
            cuts = [_cut(g, axes, dtype, threads, *cut) for cut in itertools.product(sizes, BLOCKS, BLOCKS)]
        fitting = [cut for cut in cuts if cut.size <= limit]
        return min(fitting, key=lambda cut: cut.cost) if fitting else min(cuts, key=lambda cut: cut.cost * cut.size)

    usual = cheapest(TILES, USUAL_THREADS)
    return usual if threads == USUAL_THREADS else cheapest((usual.most_tiles,), threads)


def _cut(
    g: Geometry, axes: Axes, dtype: str, threads: int, most_tiles: int, most_channels: int, most_filters: int
) -> Cut:
    host = machine()
    lanes, (vectors, rows) = host.lanes(dtype), host.tile
    vectors = min(vectors, -(-g.filters // lanes), -(-most_filters // lanes))
    rows = min(rows, 8)  # divides what layers have; 13 and 14 are as fast for 64 channels, 16 beside one vector for 16
    tiled = rows_and_columns(axes, g.batch, most_tiles)
    blocks = -(-tiled["all_rows"] // tiled["block_rows"]) * tiled["column_blocks"]
    most_parts = int(PART_MEMORY * math.prod(g.output) * g.batch / g.filters)
    parts, part_blocks = evenly(blocks, -(-blocks // max(1, min(PARTS, most_parts))))

    channel_blocks, channel_vectors = evenly(-(-g.channels // lanes), max(1, most_channels // lanes))
    filter_blocks, panels = evenly(-(-g.filters // (lanes * vectors)), max(1, most_filters // (lanes * vectors)))
    piece_blocks = channel_blocks if blocks == 1 else 1  # a piece keeps its upstream gradients while channels pass by
    channel_pieces = -(-channel_blocks // piece_blocks)
    block_channels, block_filters = channel_vectors * lanes, panels * lanes * vectors

    sections, points = math.prod(axis.transforms for axis in axes.all), axes.points
    tiles = tiled["block_rows"] * tiled["block_columns"]
    input_plane, upstream_plane = _plane(tiles * block_channels), _plane(tiles * block_filters)
    sum_rows = -(-block_channels // rows) * rows
    sums_plane = _plane(panels * sum_rows * lanes * vectors)
    pitch, strip = strip_size(axes, tiled["block_columns"], lanes)
    taps_plane = -(-block_channels * math.prod(g.kernel) // lanes) * lanes * lanes
    # Of several sections the taps of all filters are kept; else a vector of filters is written at once, and inputs are over.
    several = sections > 1
    upstream_at = max(points * input_plane, 0 if several else taps_plane)
    sums_at = upstream_at + points * upstream_plane
    strip_at = sums_at + points * sums_plane
    taps_at = strip_at + strip
    slot_size = taps_at + (block_filters // lanes * taps_plane if several else 0)

    pieces, all_tiles, itemsize = parts * channel_pieces * filter_blocks, g.batch * axes.tiles, _itemsize(dtype)
    used = width(pieces, all_tiles * axes.products * g.channels * g.filters)
    part_cells = parts * math.prod(g.w_shape) if parts > 1 else 0
    pairs = channel_blocks * block_channels * filter_blocks * block_filters
    spilled = min(1.0, max(0.0, slot_size * itemsize / FAST_BYTES - 1))
    cost = pairs * (g.batch * axes.needed * PRODUCT + axes.products * blocks * SUM * (1 + spilled))
    upstream = 1 if blocks == 1 else sections * channel_pieces
    inputs = sections * g.channels * filter_blocks * INPUT + g.filters * upstream * UPSTREAM
    cost += all_tiles * inputs * points / MANY_POINTS + pairs * parts * sections * END
    idle = -(-pieces // threads) * threads / pieces + (threads - 1) / pieces / 4  # threads do not end together
    return Cut(
        most_tiles, pieces, used, vectors, rows, parts, slot_size, part_cells,
        (part_cells + used * slot_size) * itemsize, cost * idle,
        dict(
            slot_size=slot_size, upstream_at=upstream_at, sums_at=sums_at, strip_at=strip_at,
            taps_at=taps_at if several else 0, blocks=blocks, part_blocks=part_blocks, parts=parts,
            section_count=sections, channel_blocks=channel_blocks, piece_blocks=piece_blocks,
            channel_pieces=channel_pieces, kept_upstream=int(blocks == 1), block_channels=block_channels,
            block_filters=block_filters, sum_rows=sum_rows, input_plane=input_plane, upstream_plane=upstream_plane,
            sums_plane=sums_plane, taps_plane=taps_plane if several else 0, pitch=pitch,
            bias_filters=filter_blocks * block_filters, **tiled,
        ),
    )  # fmt: skip


def _plane(cells: int) -> int:
    """From one point's cells to the next's; where that were a power of two, once more: 63 tiles of 16 took 1.3 times as long."""
    spread = cells + SPREAD
    return spread + SPREAD * (spread % 512 == 0)


def _itemsize(dtype: str) -> int:
    return np.dtype(wide_type(dtype)).itemsize


@functools.lru_cache(maxsize=256)
def prepare(g: Geometry, dtype: str, layout: str, threads: int) -> Prepared:
    """From x and dy to weights, or to the sums of all parts and from these to weights; beside them sums of dy."""
    axes, cut, lanes = Axes.of(g, False), best(g, dtype, threads), machine().lanes(dtype)
    (sections, _), kernel_size = tables(axes, g), math.prod(g.kernel)
    schemes = [(axis.scheme.outputs, axis.scheme.taps) for axis in (axes.rows, axes.columns)]
    job = Job(
        tiles_to_weights(
            dtype, lanes, cut.vectors, cut.rows, *schemes, taps_of(axes, g), kernel_size, layout,
            (axes.rows.in_step, axes.columns.in_step), axes.dilated,
        ),
        cut.pieces, channels=g.channels, filters=g.filters, sections=sections, **shapes(axes, written=False), **cut.numbers,
    )  # fmt: skip
    weights, add = math.prod(g.w_shape), []
    if cut.parts > 1:
        adding = Job(
            add_parts(wide_type(dtype), lanes), -(-weights // ADDED), size=weights, parts=cut.parts, cells=ADDED
        )
        add.append(Step(adding, width(adding.pieces, cut.part_cells), {"sums": "parts"}))
    return prepared(
        job, 0, cut.slot_size, dtype, threads=cut.threads, sums=(cut.parts, cut.numbers["bias_filters"]),
        names={"dw": "parts" if add else "dw"}, after=add, parts=cut.part_cells,
    )  # fmt: skip


def workspace(g: Geometry, dtype: str, layout: str) -> int:
    """Bytes taken while :func:`weight_gradient` runs: half types are summed into a copy."""
    return prepare(g, dtype, layout, get_threads()).size + widened(g.w_shape, dtype) if g.batch else 0


def weight_and_bias_gradient(dy: np.ndarray, x: np.ndarray, g: Geometry, out: np.ndarray, db: np.ndarray) -> None:
    """Write dL/dw (F, C, *kernel) into ``out`` and dL/db (F,) into ``db``."""
    if g.batch == 0:
        out[...] = db[...] = 0
        return
    plan = prepare(g, dtype_name(x.dtype), known_layout(dy, x), get_threads())
    wide = plan.no_bias.dtype
    target, sums = out if out.dtype == wide else np.empty(out.shape, wide), np.empty(plan.sums, wide)
    plan.run(x=x, dy=dy, dw=target, db=sums)
    if target is not out:
        out[...] = target
    db[...] = (sums[0] if len(sums) == 1 else sums.sum(axis=0))[: g.filters]


weight_gradient = without_bias(weight_and_bias_gradient)


def blocking(g: Geometry, dtype: str, layout: str) -> str:
    """Tiles, blocks and pieces, in words."""
    plan = prepare(g, dtype, layout, get_threads())
    n = plan.job.numbers
    return (
        f"{tiles_in_words(Axes.of(g, False))}; blocks of {n['block_channels']} channels by {n['block_filters']} filters, "
        f"summed over blocks of {n['block_rows']} x {n['block_columns']} tiles in {n['parts']} parts; "
        f"{plan.cut}"
    )
