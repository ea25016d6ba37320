"""How the weight gradient is cut: its weights into blocks of filters and channels, its pixels into units.

Units fit into a core's cache. Where few weights meet many pixels, the units are also divided into *parts*, whose sums are added
at the end. Of the blocks that come into question those are taken that are expected to cost least. All of it depends on the
geometry alone, so every sum has one order whatever the number of threads.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass

import numpy as np

from konv.engine.machine import machine
from konv.geometry import Geometry

BLOCK_BYTES = 320 << 10  # of x in a unit, for all channels of a block: it stays in L2
GRADIENT_BYTES = 256 << 10  # of dy in a unit, for all filters of a block
UNIT_PIXELS = 256  # a panel of filters stays in L1, and a tile's sums are rarely added to memory,
# Or where one tile holds all weights of a panel, which is read once: book-deep-1-16@28 .9 of the time.
UNIT_PIXELS_FEW = 784
IN_PLACE_BYTES, IN_PLACE_PIXELS = 64 << 10, (32, 256)  # of dy, where it is read in place: as many before the next panel
PIECES = 16  # so many, that threads share them evenly
PIECE_WORK = 1 << 20  # multiply-adds: where pieces would be smaller there are fewer
MEMORY_SHARE = 7  # two threads' workspace is at most 1/7 of the textbook's matrix,
MEMORY_BYTES = 768 << 10  # or so much
# Measured: to lay out an element of x, of dy; to add a part's.
IMAGE_CYCLES, GRADIENT_CYCLES, SUM_CYCLES = 0.5, 0.33, 0.25
NUMBER_CYCLES = 0.06  # to read a number that several multiply-adds need; one reads it itself
WAITING = 0.1  # of the time that threads would wait for the last pieces, if each piece had a thread


@dataclass(frozen=True)
class Pixels:
    """Units: ``planes`` (image, depth) pairs of ``rows`` x ``columns`` outputs, and the lines of x that their windows read.

    ``lines`` are the (depth, row) of each, from the first window's; an output row is ``row_lines`` lines below the one
    before, and the windows of kernel row (kd, kh) begin in ``line_of[kd, kh]``.
    """

    planes: int
    rows: int
    columns: int
    counts: tuple[int, int, int]  # units along planes, rows, columns
    lines: np.ndarray
    line_of: np.ndarray
    row_lines: int
    cells: int  # in a line
    step: int  # from one of them to the next, in x
    column_cells: int  # from one window to the next, in a line

    @property
    def size(self) -> int:
        """Cells of one channel in a unit."""
        return self.planes * len(self.lines) * self.cells

    @property
    def outputs(self) -> int:
        """Pixels of one filter in a unit."""
        return self.planes * self.rows * self.columns


@dataclass(frozen=True)
class Tile:
    """``joined`` runs of ``rows`` numbers by ``vectors`` vectors of filters."""

    vectors: int
    rows: int
    joined: int
    cycles: float  # that all tiles take for a pixel


@dataclass(frozen=True)
class Weights:
    """How weights are cut into blocks of ``channels`` and of ``block_panels`` panels of filters, and pixels into ``parts``.

    ``rows`` are those of all tiles of a panel, ``once`` tells that it is one, and dy is read where it lies; ``cycles`` is what a
    pixel is expected to take, ``excess`` how many times as much memory as there is in L2, or is allowed, and at least 1.
    """

    tile: Tile
    channels: int
    channel_blocks: int
    panels: int
    block_panels: int
    filter_blocks: int
    parts: int
    pieces: int
    rows: int
    once: bool
    cycles: float
    excess: float

    @property
    def whole(self) -> bool:
        """Whether a piece has all pixels, and writes its weights itself."""
        return self.parts == 1


@dataclass(frozen=True)
class Layout:
    """One geometry's cut: everything that its jobs need. ``blocks`` are the tiles along a run; sizes are in elements.

    ``together``: where one tile has all weights of a panel, dy, channels last, is read where it lies, so many pixels of all
    filters before the next; else 0.
    """

    pixels: Pixels
    weights: Weights
    blocks: int
    together: int
    run_cells: np.ndarray
    run_ranges: np.ndarray
    places: np.ndarray
    sums_size: int
    image_size: int
    slot_size: int


@functools.lru_cache(maxsize=256)
def layout(g: Geometry, dtype: str, last: bool) -> Layout:
    """The cut of a geometry's weight gradient, from arrays with channels last or first."""
    lanes, kernel, dilation = machine().lanes(dtype), three(g, g.kernel), three(g, g.dilation)
    channels = g.channels // g.groups
    pixels = _pixels(g, min(channels, 64) * wide_itemsize(dtype), last)
    run_taps = kernel[2] if dilation[2] == 1 else 1
    blocks = [_weights(g, dtype, pixels, run_taps, size, count, last) for size, count in _blocks(g, lanes)]
    best = min(blocks, key=lambda cut: (cut.excess, cut.cycles))
    tile, panel = best.tile, lanes * best.tile.vectors
    run_cells, run_ranges = _runs(g, pixels, tile.joined, run_taps, best.channels)
    slack = lanes * (best.channels + 2) + tile.rows  # what vectors spill, and tiles read, after the last line
    image_size = _lines(pixels.size * best.channels + slack)
    run_blocks = -(-run_taps * best.channels // tile.rows)
    together = 0
    if best.once:
        least, most = IN_PLACE_PIXELS
        together = min(most, max(least, IN_PLACE_BYTES // (best.block_panels * panel * wide_itemsize(dtype))))
    gradient_size = 0 if best.once else _lines((best.block_panels * pixels.outputs + lanes) * panel)
    return Layout(
        pixels, best, run_blocks, together, run_cells, run_ranges, _places(g, tile, run_taps, best.channels, run_blocks),
        _lines(best.block_panels * panel * (best.rows + 1)), image_size, image_size + gradient_size,
    )  # fmt: skip


def _blocks(g: Geometry, lanes: int) -> list[tuple[int, int]]:
    """Numbers of channels in a block, and numbers of blocks of filters, that are worth a look."""
    channels, filters = g.channels // g.groups, g.filters // g.groups
    counts = (*range(1, 9), 10, 12, 16, 20, 24, 32, 40, 48, 64, 96, 128, 192, 256)
    sizes = {min(channels, _whole(-(-channels // count), lanes)) for count in counts}
    return [(size, count) for size in sorted(sizes) for count in counts if count <= -(-filters // lanes)]


def _weights(
    g: Geometry, dtype: str, pixels: Pixels, run_taps: int, channels: int, filter_blocks: int, last: bool
) -> Weights:
    """Blocks of so many channels, and so many blocks of filters; and what they cost."""
    lanes, kernel = machine().lanes(dtype), three(g, g.kernel)
    all_channels, filters = g.channels // g.groups, g.filters // g.groups
    runs = math.prod(kernel) // run_taps
    tile = _tile(run_taps * channels, runs, runs // kernel[0] if kernel[0] > 1 else runs, filters, lanes)
    panel = lanes * tile.vectors
    panels, channel_blocks = -(-filters // panel), -(-all_channels // channels)
    block_panels = -(-panels // filter_blocks)
    filter_blocks = -(-panels // block_panels)
    tiles = -(-runs // tile.joined) * -(-run_taps * channels // tile.rows)
    rows, once = tiles * tile.joined * tile.rows, last and tiles == 1

    wanted = max(1, min(PIECES, g.flops // 2 // PIECE_WORK))
    blocks = g.groups * filter_blocks * channel_blocks
    itemsize, panels_size = wide_itemsize(dtype), block_panels * panel
    image, sums = channels * pixels.size, panels_size * (rows + 1)
    gradient = 0 if once else panels_size * pixels.outputs
    textbook = math.prod((g.batch, *g.output, g.channels, *g.kernel)) * g.itemsize
    room = max(textbook // MEMORY_SHARE, MEMORY_BYTES) // itemsize - 2 * (image + gradient)
    parts = max(1, min(-(-wanted // blocks), math.prod(pixels.counts), room // (blocks * sums)))
    excess = max(1, image * itemsize / BLOCK_BYTES, gradient * itemsize / GRADIENT_BYTES)
    if parts == 1:
        excess = max(excess, 2 * sums / max(1, room))

    cycles = channel_blocks * tile.cycles
    cycles += IMAGE_CYCLES * filter_blocks * channel_blocks * _whole(channels, lanes) * pixels.size / pixels.outputs
    cycles += GRADIENT_CYCLES * channel_blocks * panels * panel * (not once)
    cycles += SUM_CYCLES * parts * blocks * sums / (g.batch * math.prod(g.output))
    shares, pieces = min(PIECES, wanted), blocks * parts
    cycles *= 1 + WAITING * (_whole(pieces, shares) / pieces - 1)
    return Weights(
        tile, channels, channel_blocks, panels, block_panels, filter_blocks, parts, pieces, rows, once, cycles, excess
    )  # fmt: skip


def _pixels(g: Geometry, cell_bytes: int, last: bool) -> Pixels:
    """Units of at most UNIT_PIXELS outputs whose part of x, at ``cell_bytes`` a cell, fits into BLOCK_BYTES."""
    output, stride, kernel, dilation = (three(g, n) for n in (g.output, g.stride, g.kernel, g.dilation))
    all_planes = g.batch * output[0]

    def cut(planes: int, rows: int, columns: int) -> Pixels:
        counts = (-(-all_planes // planes), -(-output[1] // rows), -(-output[2] // columns))
        planes, rows, columns = (-(-n // count) for n, count in zip((all_planes, *output[1:]), counts))
        if dilation[1] == 1 and stride[1] <= kernel[1]:  # windows of neighbouring rows share lines
            heights = list(range((rows - 1) * stride[1] + kernel[1]))
            row_lines, kernel_line = stride[1], 1
        else:
            heights = [r * stride[1] + k * dilation[1] for k in range(kernel[1]) for r in range(rows)]
            row_lines, kernel_line = 1, rows
        depths = [k * dilation[0] for k in range(kernel[0])]
        lines = np.array([(d, h) for d in depths for h in heights], np.int64)
        line_of = np.arange(kernel[0])[:, None] * len(heights) + np.arange(kernel[1]) * kernel_line
        if last and kernel[2] == 1:  # the cells between windows are left out: one by one, cells are copied anyway
            cells, step, column_cells = columns, stride[2], 1
        else:
            cells, step, column_cells = (columns - 1) * stride[2] + dilation[2] * (kernel[2] - 1) + 1, 1, stride[2]
        return Pixels(planes, rows, columns, counts, lines, line_of, row_lines, cells, step, column_cells)

    few = g.channels // g.groups * math.prod(kernel) <= math.prod(machine().tile)
    most = UNIT_PIXELS_FEW if few else UNIT_PIXELS
    columns = -(-output[2] // -(-output[2] // most))
    rows = max(1, min(output[1], most // output[2]))
    planes = max(1, min(all_planes, most // (rows * columns))) if (rows, columns) == output[1:] else 1
    while (pixels := cut(planes, rows, columns)).size * cell_bytes > BLOCK_BYTES:
        if planes > 1:
            planes = (planes + 1) // 2
        elif rows > 1:
            rows = (rows + 1) // 2
        elif columns > 32:
            columns = (columns + 1) // 2
        else:
            break
    return pixels


@functools.lru_cache(maxsize=1024)
def _tile(run: int, runs: int, depth_runs: int, filters: int, lanes: int) -> Tile:
    """The tile that wastes least: multiply-adds and loads go two a cycle, and eight sums hide the latency of an addition."""
    host = machine()
    room = math.prod(host.tile)
    tiles = []
    for vectors in (2, 1):
        panels = -(-filters // (lanes * vectors))
        for joined in range(1, min(runs, room) + 1):
            if joined > 1 and (depth_runs % joined or joined * run * vectors > room):
                continue
            for rows in range(1 if joined == 1 else run, min(run, room // (joined * vectors)) + 1):
                numbers = joined * rows
                cycles = max(numbers * vectors, numbers + vectors, 8) / 2 + 0.5
                cycles += NUMBER_CYCLES * numbers * (vectors > 1 and machine().reads_twice)
                count = panels * -(-runs // joined) * -(-run // rows)
                tiles.append(Tile(vectors, rows, joined, count * cycles))
    return min(tiles, key=lambda tile: tile.cycles)


def _runs(g: Geometry, pixels: Pixels, joined: int, run_taps: int, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Where each run begins in a unit's lines; and for each tile's runs their depth, first and last row, first and last tap."""
    kernel, dilation = three(g, g.kernel), three(g, g.dilation)
    runs = list(itertools.product(range(kernel[0]), range(kernel[1]), range(0, kernel[2], run_taps)))
    cells = [pixels.line_of[d, h] * pixels.cells + w * dilation[2] for d, h, w in runs]
    ranges = []
    for first in range(0, len(runs), joined):
        together = [[n * size for n, size in zip(run, dilation)] for run in runs[first : first + joined]]
        (depths, rows, taps), last = zip(*together), (run_taps - 1) * dilation[2]
        ranges.append((depths[0], min(rows), max(rows), min(taps), max(taps) + last))
    return np.array(cells, np.int64) * channels, np.array(ranges, np.int64)


def _places(g: Geometry, tile: Tile, run_taps: int, channels: int, blocks: int) -> np.ndarray:
    """Which row of the tiles has weight (channel, tap), in the order of dw."""
    tap, c = np.arange(math.prod(g.kernel)), np.arange(channels)[:, None]
    run, number = tap // run_taps, tap % run_taps * channels + c
    block, row = number // tile.rows, number % tile.rows
    places = ((run // tile.joined * blocks + block) * tile.joined + run % tile.joined) * tile.rows + row
    return np.ascontiguousarray(places.reshape(-1), np.int64)


def three(g: Geometry, numbers: tuple[int, ...]) -> tuple[int, ...]:
    """Numbers along the axes of a geometry, along three."""
    return (1,) * (3 - g.axes) + tuple(numbers)


def _lines(elements: int) -> int:
    """Whole cache lines."""
    return _whole(elements, 16)


def _whole(n: int, unit: int) -> int:
    """n rounded up to a multiple of ``unit``."""
    return -(-n // unit) * unit


def wide_itemsize(dtype: str) -> int:
    """Bytes of an element as it is laid out and summed."""
    return 8 if dtype == "float64" else 4
