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
from konv.engine.winograd_formulas import OUTPUTS, POINTS, SPAN, TAPS
from konv.engine.winograd_kernels import SPREAD
from konv.geometry import Geometry

MEMORY, LEAST_MEMORY = 0.15, 800_000  # of the im2col matrix; bytes that may always be borrowed
AHEAD_TILES, PASSING_TILES = (112, 84, 56, 42, 28, 14), (98, 64, 56, 42, 32, 28, 16)  # tiles of a block that are tried
MOST_PANELS = 8  # of a piece, where channels pass by
FAST_BYTES, SPILLED = 1 << 20, 0.5  # what fits into L2; what products lose for as many beyond
# Nanoseconds on one core: a product of a channel, a filter and a tile; a tile of inputs, for each channel; a filter's taps;
# its 36 points from L3, from L2; a tile's inputs in lines of some cells beside which other blocks lie: they come from
# memory, short lines unasked for (64@224: 34 ms in lines of 56 cells, 26 of 112, 22 of 224).
PRODUCT, INPUT, FILTER, FAR_POINTS, NEAR_POINTS, SHORT_LINES = 0.32, 4.5, 2.5, 0.8, 0.5, 1500
LONG_LINE = 224


@dataclass(frozen=True)
class Axes:
    """A convolution's three axes: what is read, how it is padded and dilated, what is computed; of 2-D ones the first is 1.

    Attributes
    ----------
    spatial, output : lengths
    low : padding before the first cell, less than none where an input gradient cuts
    dilation : from one tap to the next
    planes : taps along the first axis, each a plane of 3 x 3
    tile_rows, tile_columns : tiles in a plane of outputs; whole phases of a dilation
    """

    spatial: tuple[int, ...]
    output: tuple[int, ...]
    low: tuple[int, ...]
    dilation: tuple[int, ...]
    planes: int
    tile_rows: int
    tile_columns: int

    @staticmethod
    def of(g: Geometry, transposed: bool) -> Axes:
        """Those of a convolution, or of its input gradient."""
        missing = 3 - g.axes
        spatial, output, kernel, dilation = (
            (1,) * missing + lengths for lengths in (g.spatial, g.output, g.kernel, g.dilation)
        )
        low = (0,) * missing + tuple(low for low, _ in g.padding)
        if transposed:
            spatial, output = output, spatial
            low = tuple(step * (taps - 1) - n for step, taps, n in zip(dilation, kernel, low))
        rows, columns = (-(-n // (OUTPUTS * step)) * step for n, step in zip(output[1:], dilation[1:]))
        return Axes(spatial, output, low, dilation, kernel[0], rows, columns)

    @property
    def dilated(self) -> bool:
        """Whether tiles are phases."""
        return self.dilation[1:] != (1, 1)

    def rows_and_columns(self, batch: int, most_tiles: int) -> dict[str, int]:
        """The kernels' arguments that tell how all tiles are cut into blocks of at most about ``most_tiles``."""
        step = self.dilation[2]
        all_rows = batch * self.output[0] * self.tile_rows
        column_blocks, wholes = evenly(self.tile_columns // step, max(1, most_tiles // step))
        _, block_rows = evenly(all_rows, max(1, most_tiles // (wholes * step)))
        return {
            "tile_rows": self.tile_rows,
            "tile_columns": self.tile_columns,
            "all_rows": all_rows,
            "block_rows": block_rows,
            "block_columns": wholes * step,
            "column_blocks": column_blocks,
        }

    def pitch(self, block_columns: int, lanes: int) -> int:
        """Cells of a strip's line."""
        return -(-(block_columns * OUTPUTS + (TAPS - 1) * self.dilation[2]) // lanes) * lanes

    def numbers(self) -> dict[str, int]:
        """The kernels' arguments that tell shapes."""
        axes = ("depth", "height", "width")
        return (
            dict(zip((f"x_{axis}" for axis in axes), self.spatial))
            | dict(zip((f"out_{axis}" for axis in axes), self.output))
            | dict(zip((f"pad_{axis}" for axis in axes), self.low))
            | dict(zip(("depth_step", "row_step", "column_step"), self.dilation))
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
    chunks : parts of the sum, those of all planes of a kernel
    vectors, panels : vectors of filters in registers, how many such panels there are
    """

    channels: int
    filters: int
    wide: str
    lanes: int
    depth: int
    chunks: int
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
        planes = g.kernel[0] if g.axes == 3 else 1
        return Sizes(
            channels, filters, wide, lanes, depth, planes * chunks, chunks, chunk_vectors * lanes, vectors,
            -(-filters // (lanes * vectors)),
        )  # fmt: skip


@dataclass(frozen=True)
class Cut:
    """One way.

    Attributes
    ----------
    ahead : whether all filters are transformed ahead; else chunks of channels pass by
    group : tiles in registers
    pieces, threads : of the job
    filter_cells, slot_size : cells of the filters that are transformed ahead, and of each thread's own
    itemsize : bytes of a cell
    cost : about how many nanoseconds it takes one core
    numbers : the kernel's arguments
    """

    ahead: bool
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
    matrix = g.batch * math.prod(axes.output) * sizes.channels * math.prod(g.kernel) * np.dtype(wide).itemsize
    cuts = list(_cuts(max(1, g.batch), axes, sizes, threads))  # of no images as of one
    fitting = [cut for cut in cuts if cut.size <= max(LEAST_MEMORY, MEMORY * matrix)]
    return min(fitting, key=lambda cut: cut.cost) if fitting else min(cuts, key=lambda cut: cut.cost * cut.size)


def evenly(n: int, most: int) -> tuple[int, int]:
    """How many parts of at most ``most`` n is cut into, and the size of each (of the last: at most that)."""
    size = -(-n // -(-n // most))
    return -(-n // size), size


def _cuts(batch: int, axes: Axes, sizes: Sizes, threads: int) -> Iterator[Cut]:
    for tiles in AHEAD_TILES:
        yield _cut(batch, axes, sizes, threads, tiles, sizes.panels, True)
    for tiles in PASSING_TILES:
        for panels in range(1, min(sizes.panels, MOST_PANELS) + 1):
            yield _cut(batch, axes, sizes, threads, tiles, panels, False)


def _cut(batch: int, axes: Axes, s: Sizes, threads: int, most_tiles: int, part_panels: int, ahead: bool) -> Cut:
    tiled = axes.rows_and_columns(batch, most_tiles)
    block_rows, block_columns = tiled["block_rows"], tiled["block_columns"]
    blocks = -(-tiled["all_rows"] // block_rows) * tiled["column_blocks"]
    group = _group(block_rows * block_columns, machine().tile[1])
    tiles = -(-block_rows * block_columns // group) * group
    while ahead and blocks * -(-s.panels // part_panels) < 2 * threads and part_panels > 1:
        part_panels = -(-part_panels // 2)
    parts, part_panels = evenly(s.panels, part_panels)
    pieces, panel = blocks * parts, s.lanes * s.vectors

    input_plane, sums_plane, filter_plane = (
        n + SPREAD for n in (tiles * s.depth, tiles * panel, s.chunk_channels * panel)
    )
    pitch = axes.pitch(block_columns, s.lanes)
    strip_at = (s.chunks if ahead else 1) * POINTS * input_plane
    sums_at = strip_at + SPAN * pitch * s.lanes
    filters_at = sums_at + (1 if ahead else part_panels) * POINTS * sums_plane
    slot_size = filters_at + (0 if ahead else POINTS * filter_plane)
    filter_cells = s.panels * s.chunks * POINTS * filter_plane if ahead else 0

    channels = s.channels * axes.planes
    itemsize = np.dtype(s.wide).itemsize
    products = blocks * tiles * channels * s.filters
    used = width(pieces, products * POINTS)
    cost = products * PRODUCT * (1 + min(0.6, SPILLED * max(0, slot_size * itemsize / FAST_BYTES - 1)))
    line = block_columns * OUTPUTS
    inputs = INPUT + (SHORT_LINES * max(0, 1 / line - 1 / LONG_LINE) if tiled["column_blocks"] > 1 else 0)
    points = FAR_POINTS if (slot_size + filter_cells) * itemsize > FAST_BYTES else NEAR_POINTS
    filters = FILTER + blocks * points if ahead else blocks * FILTER
    cost += blocks * tiles * parts * channels * inputs + channels * s.filters * filters
    idle = -(-pieces // used) * used / pieces + (used - 1) / pieces / 4  # threads do not end together
    return Cut(
        ahead, group, pieces, used, filter_cells, slot_size, itemsize, cost * idle,
        dict(
            slot_size=slot_size, strip_at=strip_at, sums_at=sums_at, filters_at=filters_at, part_panels=part_panels,
            panels=s.panels, parts=parts, input_plane=input_plane, sums_plane=sums_plane, filter_plane=filter_plane,
            pitch=pitch, **tiled,
        ),
    )  # fmt: skip


def _group(tiles: int, most: int) -> int:
    """Tiles in registers at once: few values, each is a kernel to compile, and little waste in a block's last group.

    One step of a group takes about as many cycles as it has tiles, and one more.
    """
    if tiles <= most * 2 // 7:
        return most * 2 // 7
    return min((most, most * 4 // 5, most * 4 // 7), key=lambda group: -(-tiles // group) * (group + 1))
