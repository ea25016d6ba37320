"""Rows of tiles between arrays and points: parts of the kernels' texts.

Arrays pass through a *strip*: the lines of one row of tiles, for each of their cells a vector of channels. Arrays whose
layout is "last" lie like that in memory; others are transposed, ``lanes`` channels by ``lanes`` cells at a time. Lines that a
strip reads from edge to edge are one line to it: line by line, which transposes what lies beside them too, 16 channels at 14
pixels took 1.1 to 1.2 times as long, 32 and 64 at 8 1.07 to 1.1.

In a dilated convolution the cells of a tile of m outputs lie ``dilation`` apart, and as many tiles lie between each other's
cells: tiles 0 .. dilation - 1 are the phases of the first ``m * dilation`` outputs, the next ones of the next. Of an array with
a stride a strip has every so manieth cell only.

Losing: vectors that begin at the image's edge, and lines that two rows of tiles share read once. That is half as many
transposes for 14 pixels, at .93 to 1.0 of the speed, with or without prefetches.
"""

from __future__ import annotations

import functools
import operator
from typing import Any, NamedTuple

from konv.engine.simd import beats, bits, deinterleave, interleave, loop, maximum, minimum, select, transpose, within
from konv.engine.winograd.winograd_formulas import both_axes


class Images(NamedTuple):
    """An array of images and its shape: (N, channels, depth, height, width), channels first or last in memory."""

    array: Any
    layout: str
    channels: Any
    depth: Any
    height: Any
    width: Any


class Tiling(NamedTuple):
    """How tiles lie along an axis: their outputs, and from one of them to the next."""

    outputs: int
    dilation: Any = 1

    def first(self, tile: Any) -> Any:
        """Where a tile begins."""
        if isinstance(self.dilation, int) and self.dilation == 1:
            return tile * self.outputs
        return tile // self.dilation * (self.outputs * self.dilation) + tile % self.dilation

    def cells(self, tiles: Any, points: int) -> Any:
        """Cells of some tiles, whole phases, each of which reads so many."""
        return tiles * self.outputs + (points - self.outputs) * self.dilation


class Strip(NamedTuple):
    """A strip's place, its cells in a line, and how tiles lie along both axes."""

    cells: Any
    pitch: Any
    rows: Tiling
    columns: Tiling

    def place(self, tile: Any, i: int, k: int) -> Any:
        """Where cell (i, k) of a tile lies, in vectors."""
        return i * self.pitch + self.columns.first(tile) + k * self.columns.dilation


class Block:
    """How the tiles of a block lie in a workspace: those that ask for products at infinity are neighbours.

    Only the last output of a tile asks for them. Where an axis is ``short``, its last tile lacks that output: so of 7 outputs
    tiles of 4 take 121 products instead of 144 (3 x 3). Tiles of the last column come first, then the others, and behind them
    in the same order reversed those of the last row of an image.
    """

    def __init__(self, first_row, rows, tile_rows, columns, short_rows, short_columns):
        self.first_row, self.rows, self.tile_rows, self.short_rows = first_row, rows, tile_rows, short_rows
        self.whole_rows = rows - self._short_before(rows)
        self.whole_columns = columns - short_columns
        self.first = short_columns * self.whole_rows  # behind the last column's
        self.tiles, self.short_columns = rows * columns, short_columns

    def _short_before(self, r):
        """How many of the first r rows are the last of an image."""
        return self.short_rows * ((self.first_row + r) // self.tile_rows - self.first_row // self.tile_rows)

    def places(self, r):
        """Of the tiles of a row: a function of their column."""
        before, short = self._short_before(r), self._short_before(r + 1)
        q = r - before + (short - before) * (self.whole_rows + 2 * before - r)
        start = self.first + q * self.whole_columns
        last = q + (short - before) * (self.rows * self.whole_columns)
        jump = last - start - self.whole_columns
        return lambda column: start + column + maximum(column - self.whole_columns + 1, 0) * jump

    def range(self, row, column):
        """The first place and the number of the tiles that ask for a point; ``row``, ``column`` : 1 where it is infinity."""
        first = column * self.first
        inner = (self.whole_rows * row + self.rows * (1 - row)) * self.whole_columns
        outer = (1 - row) * (1 - column) * self.short_columns * (self.rows - self.whole_rows)
        return first, self.first - first + inner + outer


def constants(zero):
    """The function that makes vectors of a formula's constants ``a + r * sqrt(2)``."""
    return lambda a, r=0: zero + float(a + float(r) * 2**0.5)


def read_strip(images, strip, lanes, lines, image, plane, first, top, left, cells, steps=(1, 1)):
    """``strip[i, q, lane] = images[image, first + lane, plane, top + i * steps[0], left + q * steps[1]]``, zero outside.

    Line i of a dilated strip lies ``dilation`` times as far. ``cells`` of each line are asked for; a multiple of ``lanes`` may
    be written. Lanes past the last channel hold what nobody sums: that channel once more, or zero.
    """
    array, layout, channels, depth, height, width = images
    exists, step = within(plane, depth), strip.rows.dilation * steps[0]
    if layout == "last":
        for i in loop(lines):
            h = top + i * step
            inside = within(h, height) * exists
            line = ((image * depth + plane) * height + h) * width
            for q in loop(cells):
                w = left + q * steps[1]
                cell = array.vec(
                    (line + w) * channels + first, lanes, count=(channels - first) * inside * within(w, width)
                )
                strip.cells.put((i * strip.pitch + q) * lanes, cell)
        return
    planes = [((image * channels + minimum(first + i, channels - 1)) * depth + plane) * height for i in range(lanes)]
    together = 0
    if steps == (1, 1) and isinstance(strip.rows.dilation, int) and strip.rows.dilation == 1:
        # Lines that are read from edge to edge follow each other in memory
        above = minimum(maximum(0 - top, 0), lines)
        there = maximum(minimum(lines, height - top) - above, 0) * exists
        together = within(0 - left, width + 1) * within(width, left + cells + 1)
        together *= within(lanes - 1, there * width)
        _read_together(array, strip, lanes, planes, (lines, above, there, top, left, cells, width), together)
    for i in loop(lines * (1 - together)):
        h = top + i * step
        inside = within(h, height) * exists
        for q in loop((cells + (lanes - 1)) // lanes):
            w = left + q * (lanes * steps[1])
            rows = [_cells_apart(array, (p + h) * width + w, -w, (width - w) * inside, steps[1], lanes) for p in planes]
            for k, column in enumerate(transpose(rows)):
                strip.cells.put((i * strip.pitch + q * lanes + k) * lanes, column)


def _read_together(array, strip, lanes, planes, shape, wanted):
    """Lines ``above`` .. ``above + there - 1`` of a strip as one line of the array; at its end ``lanes`` cells are read again."""
    lines, above, there, top, left, cells, width = shape
    zero, pitch, all_cells = strip.cells.zero(lanes), strip.pitch, there * width
    for q in loop((all_cells + (lanes - 1)) // lanes * wanted):
        cell = minimum(q * lanes, all_cells - lanes)
        line, column = cell // width, cell % width
        rows = [array.vec((p + top + above) * width + cell, lanes) for p in planes]
        place = (above + line) * pitch + column - left
        for numbers in transpose(rows):
            strip.cells.put(place * lanes, numbers)
            column = column + 1
            ended = 1 - within(column, width)
            column, place = column * (1 - ended), place + 1 + ended * (pitch - width)
    for i in loop(lines * wanted):
        outside = 1 - within(i - above, there)
        for q in loop(cells * outside + (0 - left) * (1 - outside)):
            strip.cells.put((i * pitch + q) * lanes, zero)
        for q in loop((cells + left - width) * (1 - outside)):
            strip.cells.put((i * pitch + width - left + q) * lanes, zero)


def write_strip(images, strip, lanes, image, plane, first, top, left, cells, steps=(1, 1), kept_where=""):
    """The reverse of :func:`read_strip` for what exists; ``top`` and ``left`` do where ``plane`` does.

    What is not ``kept_where`` is 0: kept is what is "positive" itself, or where another array of that shape is (steps are 1).
    """
    array, layout, channels, depth, height, width = images
    step = strip.rows.dilation * steps[0]
    count = minimum(cells, (width - left + (steps[1] - 1)) // steps[1])

    def kept(values, at, used):
        if isinstance(kept_where, str) and not kept_where:
            return values
        zero = strip.cells.zero(lanes)
        told_by = values if isinstance(kept_where, str) else kept_where.vec(at, lanes, count=used)
        return select(beats(told_by, zero), values, zero)

    for i in loop(minimum(strip.rows.outputs, (height - top + (step - 1)) // step) * within(plane, depth)):
        h = top + i * step
        if layout == "last":
            to = (((image * depth + plane) * height + h) * width + left) * channels + first
            for q in loop(count):
                cell = strip.cells.vec((i * strip.pitch + q) * lanes, lanes)
                at = to + q * (channels * steps[1])
                array.put(at, kept(cell, at, channels - first), count=channels - first)
        else:
            for q in loop((count + (lanes - 1)) // lanes):
                columns = [strip.cells.vec((i * strip.pitch + q * lanes + k) * lanes, lanes) for k in range(lanes)]
                for k, row in enumerate(transpose(columns)):
                    line = (((image * channels + first + k) * depth + plane) * height + h) * width
                    used = (count - q * lanes) * within(first + k, channels)
                    at = line + left + q * (lanes * steps[1])
                    _put_apart(array, at, kept(row, at, used), used, steps[1], lanes)


def _cells_apart(array, place, start, count, step, lanes):
    """Cells ``place, place + step, ...`` as a vector; zero where they are none of the cells start .. count - 1 from there on."""
    if step & (step - 1):
        return array.gather(place, step, lanes, (count + (step - 1)) // step, start=(start + (step - 1)) // step)
    vectors = range(0, step * lanes, lanes)
    return deinterleave([array.vec(place + i, lanes, count=count - i, start=start - i) for i in vectors], lanes)[0]


def _put_apart(array, place, vector, count, step, lanes):
    """The first lanes of a vector to ``place``, ``place + step``, ...; nothing between them is touched."""
    if step == 1:
        array.put(place, vector, count=count)
    elif step & (step - 1) or step > lanes:
        array.scatter(place, step, vector, count)
    else:
        used = sum(1 << i for i in range(0, lanes, step))
        for i, cells in enumerate(interleave([vector] * step, lanes)):
            array.put(place + i * lanes, cells, bits=bits(0, count * step - i * lanes) & used)


def _neighbours(tile):
    return tile


def strip_to_points(strip, points, lanes, formulas, size, columns, step, plane, number, total=None, places=_neighbours):
    """Tiles of ``size[0]`` x ``size[1]`` cells to their points: ``points[point, places(tile), lane]``.

    Cells are added to ``total``.
    """
    for tile in loop(columns):
        cells = [
            [strip.cells.vec(strip.place(tile, i, k) * lanes, lanes) for k in range(size[1])] for i in range(size[0])
        ]
        if total is not None:
            total.set(
                total.get() + functools.reduce(operator.add, [functools.reduce(operator.add, row) for row in cells])
            )
        values = both_axes(formulas, cells, number)
        for i, value in enumerate(value for row in values for value in row):
            points.put(i * plane + places(tile) * step, value)


def points_to_strip(points, strip, lanes, schemes, tiles, step, plane, offset, number, places=_neighbours):
    """Points of each tile to its outputs: ``strip[i, q, lane]``."""
    for tile in loop(tiles):
        values = points_of_tile(points, lanes, schemes, places(tile) * step, plane)
        for i, row in enumerate(both_axes([scheme.output for scheme in schemes], values, number)):
            for k, value in enumerate(row):
                strip.cells.put(strip.place(tile, i, k) * lanes, value + offset)


def points_of_tile(points, lanes, schemes, place, plane):
    """The numbers at all points of a tile, as rows."""
    rows, n = (scheme.points for scheme in schemes)
    return [[points.vec((n * i + k) * plane + place, lanes) for k in range(n)] for i in range(rows)]
