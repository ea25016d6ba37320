"""How a Winograd convolution is cut into pieces: the cheapest of a few ways that need little memory.

The ways differ in what is transformed again and in what is kept, not in the order of any sum.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from konv.engine.machine import machine
from konv.engine.threads import width
from konv.engine.winograd.winograd_axes import Axes
from konv.engine.winograd.winograd_kernels import SPREAD
from konv.engine.winograd.winograd_tiles import Tiling
from konv.geometry import Geometry

MEMORY, LEAST_MEMORY = 0.15, 800_000  # of the im2col matrix; bytes that may always be borrowed
AHEAD_TILES, PASSING_TILES = (112, 84, 56, 42, 28, 14), (98, 64, 56, 42, 32, 28, 16)  # tiles of a block that are tried
MANY_POINTS = 36  # of a tile: of fewer points more tiles fit into as much memory
MOST_KEPT = 16  # taps of a filter
MOST_PANELS = 8  # of a piece, where channels pass by
FAST_BYTES = 1 << 20  # what fits into L2
# Nanoseconds on one core: a product of a channel, a filter and a tile at one point; what is read of a tile of inputs for each
# channel, its points; a filter's taps, their points, those again from L3 and from L2; a tile's inputs in lines of some
# cells beside which other blocks lie: they come from memory, short lines unasked for (64@224: 34 ms in lines of 56 cells, 26
# of 112, 22 of 224).
PRODUCT, CELL, POINT, FILTER, FILTER_POINT = 0.0089, 0.09, 0.065, 1, 0.042
FAR_POINT, NEAR_POINT, SHORT_LINES = 0.022, 0.014, 1500
LONG_LINE = 224
KEPT_TAP = 0.2  # one that is turned once for all sections
# What products lose for as many bytes beyond L2 as fit there, of those that are read again: sums are not, where one section is
# all. Then inputs take so many times as long beside the rest as alone. Chosen for 25 layers on an AMD Zen 4, thirty ways each: on
# average 2 % slower than the best. With neither, 256@56 takes 1.2 times as long, 512@28 1.16, 512@33 dilated 2 1.12.
SPILLED, INPUTS = 0.5, 1.3
MANY_PIECES = 1 << 20  # enough for all threads
USUAL_TILES, USUAL_SHARE = 40, 128  # of a block, and filters of a share, where the batch must not be asked


def rows_and_columns(axes: Axes, batch: int, most_tiles: int) -> dict[str, int]:
    """The kernels' arguments that tell how all tiles are cut into blocks of at most about ``most_tiles``."""
    step = axes.columns.dilation
    all_rows = batch * axes.planes * axes.rows.tiles
    column_blocks, wholes = evenly(axes.columns.tiles // step, max(1, most_tiles // step))
    _, block_rows = evenly(all_rows, max(1, most_tiles // (wholes * step)))
    return {
        "planes": axes.planes,
        "tile_rows": axes.rows.tiles,
        "tile_columns": axes.columns.tiles,
        "all_rows": all_rows,
        "block_rows": block_rows,
        "block_columns": wholes * step,
        "column_blocks": column_blocks,
        "short_rows": int(axes.rows.short),
        "short_columns": int(axes.columns.short),
    }


def strip_size(axes: Axes, block_columns: int, lanes: int) -> tuple[int, int]:
    """Cells of a strip's line, and of a strip."""
    columns, rows = axes.columns, axes.rows
    cells = Tiling(columns.scheme.outputs, columns.dilation).cells(block_columns, columns.scheme.points)
    pitch = -(-cells // lanes) * lanes
    return pitch, pitch * lanes * rows.scheme.points


def shapes(axes: Axes, written: bool = True) -> dict[str, int]:
    """The kernels' arguments that tell shapes; ``depth_out_step`` where phases are written."""
    names = ("depth", "height", "width")
    return (
        {f"x_{name}": axis.spatial for name, axis in zip(names, axes.all)}
        | {f"out_{name}": axis.output for name, axis in zip(names, axes.all)}
        | dict(depth_in_step=axes.depth.in_step, row_dilation=axes.rows.dilation, column_dilation=axes.columns.dilation)
        | (dict(depth_out_step=axes.depth.out_step) if written else {})
    )


@dataclass(frozen=True)
class Sizes:
    """A convolution's channels and filters as vectors, and as what a kernel keeps in registers.

    Attributes
    ----------
    channels, filters : summed, computed; of an input gradient w's filters and channels
    wide, lanes : the type it computes in, and how many a vector has
    depth : channels that are summed before they are added up: 128 is no faster than 64, and the error 1.4 times as large
    channel_chunks, chunk_channels : parts of at most ``depth`` channels
    vectors, panels : vectors of filters in registers, how many such panels there are
    """

    channels: int
    filters: int
    wide: str
    lanes: int
    depth: int
    channel_chunks: int
    chunk_channels: int
    vectors: int
    panels: int

    @staticmethod
    def of(g: Geometry, transposed: bool, wide: str) -> Sizes:
        """Those of a convolution, or of its input gradient."""
        host = machine()
        lanes = host.lanes(wide)
        channels, filters = (g.filters, g.channels) if transposed else (g.channels, g.filters)
        vectors = min(host.tile[0], -(-filters // lanes))  # 16 filters: 1.6 times as fast as half a panel of zeros
        depth = 64 if channels <= 128 else 32  # where filters are many, memory is short
        chunks, chunk_vectors = evenly(-(-channels // lanes), depth // lanes)
        return Sizes(
            channels,
            filters,
            wide,
            lanes,
            depth,
            chunks,
            chunk_vectors * lanes,
            vectors,
            -(-filters // (lanes * vectors)),
        )


@dataclass(frozen=True)
class Cut:
    """One way.

    Attributes
    ----------
    ahead : whether all filters are transformed ahead; else chunks of channels pass by
    kept : taps of a filter where a piece turns them once for several sections; else 0
    group : tiles in registers
    pieces, threads : of the job
    filter_cells, slot_size : cells of the filters that are transformed ahead, and of each thread's own
    itemsize : bytes of a cell
    cost : about how many nanoseconds it takes one core
    numbers : the kernel's arguments
    """

    ahead: bool
    kept: int
    group: int
    pieces: int
    threads: int
    filter_cells: int
    slot_size: int
    itemsize: int
    cost: float
    numbers: dict[str, int]

    @property
    def size(self) -> int:
        """Bytes of the workspace."""
        return (self.filter_cells + self.threads * self.slot_size) * self.itemsize


def best(g: Geometry, transposed: bool, wide: str, threads: int) -> Cut:
    """The cheapest that fits into the memory; where none does, the best product of both."""
    axes, sizes = Axes.of(g, transposed), Sizes.of(g, transposed, wide)
    cells = g.batch * math.prod(axis.output for axis in axes.all) // math.prod(axis.out_step for axis in axes.all)
    matrix = cells * sizes.channels * math.prod(g.kernel) * np.dtype(wide).itemsize
    cuts = list(_cuts(max(1, g.batch), axes, sizes, threads, kept_taps(axes, g)))  # of no images as of one
    fitting = [cut for cut in cuts if cut.size <= max(LEAST_MEMORY, MEMORY * matrix)]
    return min(fitting, key=lambda cut: cut.cost) if fitting else min(cuts, key=lambda cut: cut.cost * cut.size)


def evenly(n: int, most: int) -> tuple[int, int]:
    """How many parts of at most ``most`` n is cut into, and the size of each (of the last: at most that)."""
    size = -(-n // -(-n // most))
    return -(-n // size), size


def kept_taps(axes: Axes, g: Geometry) -> int:
    """The taps of a filter where several sections are transformed for what is read of the input; else 0."""
    several = len(axes.sections(axes.phases[0])) > 1 or axes.phases_alike > 1
    taps = math.prod(g.kernel)
    return taps if several and taps <= MOST_KEPT else 0


def _cuts(batch: int, axes: Axes, sizes: Sizes, threads: int, kept: int) -> Iterator[Cut]:
    more = max(1, MANY_POINTS // axes.points)  # tiles of few points are many
    for tiles in AHEAD_TILES:
        yield _cut(batch, axes, sizes, threads, tiles * more, sizes.panels * axes.phases_alike, True, 0)
    for tiles in PASSING_TILES:
        for panels in range(1, min(sizes.panels * axes.phases_alike, MOST_PANELS) + 1):
            for own in sorted({0, kept}):
                yield _cut(batch, axes, sizes, threads, tiles * more, panels, False, own)


def _cut(
    batch: int, axes: Axes, s: Sizes, threads: int, most_tiles: int, share_panels: int, ahead: bool, kept: int
) -> Cut:
    tiled, points = rows_and_columns(axes, batch, most_tiles), axes.points
    block_rows, block_columns = tiled["block_rows"], tiled["block_columns"]
    sections = [len(axes.sections(phase)) for phase in axes.phases]
    alike, panels = axes.phases_alike, axes.phases_alike * s.panels
    apart = len(axes.phases) // alike
    blocks = -(-tiled["all_rows"] // block_rows) * tiled["column_blocks"]
    counts = _tiles_at_points(axes, block_rows, block_columns, tiled["column_blocks"])
    group = group_of(counts, machine().tile[1])
    tiles = -(-block_rows * block_columns // group) * group
    while ahead and apart * blocks * -(-panels // share_panels) < 2 * threads and share_panels > 1:
        share_panels = -(-share_panels // 2)
    shares, share_panels = evenly(panels, share_panels)
    turns = apart if blocks * shares >= 2 * threads else 1  # phases that write the same lines are best in one cache
    pieces, panel = blocks * apart // turns * shares, s.lanes * s.vectors

    input_plane, sums_plane, filter_plane = (
        n + SPREAD for n in (tiles * s.depth, tiles * panel, s.chunk_channels * panel)
    )
    pitch, strip = strip_size(axes, block_columns, s.lanes)
    strip_at = (max(sections) * s.channel_chunks if ahead else 1) * points * input_plane
    sums_at = strip_at + strip
    filters_at = sums_at + (1 if ahead else share_panels) * points * sums_plane
    kept_at = filters_at + (0 if ahead else points * filter_plane)
    slot_size = kept_at + -(-(share_panels + alike - 1) // alike) * kept * filter_plane
    filter_cells = s.panels * sum(sections) * s.channel_chunks * points * filter_plane if ahead else 0

    itemsize, pairs = np.dtype(s.wide).itemsize, s.channels * s.filters
    products = blocks * pairs * axes.depth.points * sum(n * -(-own // group) * group for n, own in counts)
    used = width(pieces, products)
    alone = max(sections) == alike == 1
    read_again = slot_size - (0 if ahead or not alone else share_panels * points * sums_plane)
    cost = products * PRODUCT * (1 + min(0.6, SPILLED * max(0, read_again * itemsize / FAST_BYTES - 1)))
    line = block_columns * axes.columns.scheme.outputs * axes.columns.in_step
    read = axes.rows.scheme.points * axes.columns.scheme.outputs * axes.columns.in_step
    inputs = (read * CELL + points * POINT) * (INPUTS if alone else 1)
    inputs += SHORT_LINES * max(0, 1 / line - 1 / LONG_LINE) if tiled["column_blocks"] > 1 else 0
    far = (slot_size + filter_cells) * itemsize > FAST_BYTES
    filters = (KEPT_TAP * kept / max(alike, sections[0]) or FILTER) + points * FILTER_POINT
    filters = filters + blocks * points * (FAR_POINT if far else NEAR_POINT) if ahead else blocks * filters
    cost += sum(sections) * (blocks * tiles * shares * s.channels * inputs / alike + pairs * filters)
    most = width(MANY_PIECES, products)
    idle = -(-pieces // used) * most / pieces + (most - 1) / pieces / 4  # threads do not end together
    idle *= shares * share_panels / panels  # the last share has fewer
    return Cut(
        ahead, kept, group, pieces, used, filter_cells, slot_size, itemsize, cost * idle,
        dict(
            slot_size=slot_size, strip_at=strip_at, sums_at=sums_at, filters_at=filters_at, kept_at=kept_at,
            share_panels=share_panels,
            shares=shares, turns=turns, turn_phases=apart // turns, phase_panels=alike,
            input_plane=input_plane, sums_plane=sums_plane, filter_plane=filter_plane,
            pitch=pitch, **tiled,
        ),
    )  # fmt: skip


def _tiles_at_points(axes: Axes, block_rows: int, block_columns: int, column_blocks: int) -> list[tuple[int, int]]:
    """(number of points, tiles of a block that ask for each of them): for all, then without last rows, columns, both."""
    rows, columns = axes.rows, axes.columns
    short_rows = rows.short * (block_rows // rows.tiles)
    short_columns = int(columns.short and column_blocks == 1)
    return [
        (m * n, tile_rows * tile_columns)
        for m, tile_rows in ((rows.points - rows.infinities, block_rows), (rows.infinities, block_rows - short_rows))
        for n, tile_columns in (
            (columns.points - columns.infinities, block_columns),
            (columns.infinities, block_columns - short_columns),
        )
    ]


def group_of(counts: list[tuple[int, int]], most: int) -> int:
    """Tiles in registers at once: few values, each is a kernel to compile, and little waste in a block's last group.

    One step of a group takes about as many cycles as it has tiles, and one more. ``counts`` : see :func:`_tiles_at_points`
    """
    if counts[0][1] <= most * 2 // 7:
        return most * 2 // 7
    groups = (most, most * 4 // 5, most * 4 // 7)
    return min(groups, key=lambda group: sum(n * -(-tiles // group) * (group + 1) for n, tiles in counts))


def gain(axes: Axes, channels: int, filters: int, kept: int, moving: float) -> float:
    """About how many times faster than a sum of all products this is, by the times above; of any batch.

    What short axes save is not counted: where that would decide, 512@14 with stride 2 and weights of 256@28, it is no faster.

    ``kept`` : see :func:`kept_taps`; ``moving`` : of the times of a tile's inputs and outputs, what the sum does not spend too
    """
    sections, phases = sum(len(axes.sections(phase)) for phase in axes.phases), len(axes.phases)
    cells = axes.columns.scheme.outputs * axes.columns.in_step * axes.rows.scheme.points
    inputs = moving * (cells * CELL + axes.points * POINT) * sections / axes.phases_alike
    outputs = axes.rows.scheme.outputs * axes.columns.scheme.outputs
    written = moving * (outputs * CELL * min(2, axes.columns.out_step) + axes.points * POINT) * phases
    sharing = max(axes.phases_alike, len(axes.sections(axes.phases[0])))
    block = USUAL_TILES * max(1, MANY_POINTS // axes.points)
    weights = ((KEPT_TAP * kept / sharing or FILTER) + axes.points * FILTER_POINT) * sections / block
    tile = axes.products * PRODUCT + inputs / min(filters, USUAL_SHARE) + written / channels + weights
    return axes.sums * PRODUCT / (tile * axes.tiles)
