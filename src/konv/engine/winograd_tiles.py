"""Rows of tiles between arrays and points: parts of the kernels' texts.

Arrays pass through a *strip*: the lines of one row of tiles, for each of their cells a vector of channels. Arrays whose
layout is "last" lie like that in memory; others are transposed, ``lanes`` channels by ``lanes`` cells at a time.

In a dilated convolution a tile's cells lie ``step`` apart, and ``step`` tiles lie between each other's cells: tiles
0 .. step - 1 are the phases of the first ``4 * step`` outputs, the next ones of the next.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from konv.engine.simd import loop, minimum, transpose, within
from konv.engine.winograd_formulas import OUTPUTS, SPAN, both_axes, output_column


class Images(NamedTuple):
    """An array of images and its shape: (N, channels, depth, height, width), channels first or last in memory."""

    array: Any
    layout: str
    channels: Any
    depth: Any
    height: Any
    width: Any


class Strip(NamedTuple):
    """A strip's place, its cells in a line, and the steps between a tile's lines and between their cells."""

    cells: Any
    pitch: Any
    row_step: Any = 1
    column_step: Any = 1

    def place(self, tile: Any, i: int, k: int) -> Any:
        """Where cell (i, k) of a tile lies, in vectors."""
        return i * self.pitch + first_cell(tile, self.column_step) + k * self.column_step


def first_cell(tile: Any, step: Any) -> Any:
    """Where along an axis a tile's outputs begin."""
    return tile // step * OUTPUTS * step + tile % step if _is_dilated(step) else tile * OUTPUTS


def constants(zero):
    """The function that makes vectors of a formula's constants ``a + r * sqrt(2)``."""
    return lambda a, r=0: zero + float(a + float(r) * 2**0.5)


def read_strip(images, strip, lanes, lines, image, plane, first, top, left, cells):
    """``strip[i, q, lane] = images[image, first + lane, plane, top + i * row_step, left + q]``, zero outside.

    ``cells`` of each line are asked for; a multiple of ``lanes`` may be written. Lanes past the last channel hold what
    nobody sums: that channel once more, or zero.
    """
    array, layout, channels, depth, height, width = images
    exists = within(plane, depth)
    if layout == "last":
        for i in loop(lines):
            h = top + i * strip.row_step
            inside = within(h, height) * exists
            line = ((image * depth + plane) * height + h) * width
            for q in loop(cells):
                w = left + q
                cell = array.vec(
                    (line + w) * channels + first, lanes, count=(channels - first) * inside * within(w, width)
                )
                strip.cells.put((i * strip.pitch + q) * lanes, cell)
        return
    planes = [((image * channels + minimum(first + i, channels - 1)) * depth + plane) * height for i in range(lanes)]
    for i in loop(lines):
        h = top + i * strip.row_step
        inside = within(h, height) * exists
        for q in loop((cells + (lanes - 1)) // lanes):
            w = left + q * lanes
            rows = [array.vec((p + h) * width + w, lanes, count=(width - w) * inside, start=-w) for p in planes]
            for k, column in enumerate(transpose(rows)):
                strip.cells.put((i * strip.pitch + q * lanes + k) * lanes, column)


def write_strip(images, strip, lanes, image, plane, first, top, left, cells):
    """``images[image, first + lane, plane, top + i * row_step, left + q] = strip[i, q, lane]`` for what exists of 4 lines."""
    array, layout, channels, depth, height, width = images
    step = strip.row_step
    for i in loop(minimum(OUTPUTS, (height - top + (step - 1)) // step)):
        h = top + i * step
        if layout == "last":
            to = (((image * depth + plane) * height + h) * width + left) * channels + first
            for q in loop(minimum(cells, width - left)):
                cell = strip.cells.vec((i * strip.pitch + q) * lanes, lanes)
                array.put(to + q * channels, cell, count=channels - first)
        else:
            for q in loop((cells + (lanes - 1)) // lanes):
                w = left + q * lanes
                used = minimum(width - w, cells - q * lanes)
                columns = [strip.cells.vec((i * strip.pitch + q * lanes + k) * lanes, lanes) for k in range(lanes)]
                for k, row in enumerate(transpose(columns)):
                    line = (((image * channels + first + k) * depth + plane) * height + h) * width
                    array.put(line + w, row, count=used * within(first + k, channels))


def strip_to_points(strip, points, lanes, formula, size, columns, step, plane, number):
    """Tiles of ``size`` x ``size`` cells, one every 4 cells, to 6 x 6 points: ``points[point, tile, lane]``."""
    for tile in loop(columns):
        cells = [[strip.cells.vec(strip.place(tile, i, k) * lanes, lanes) for k in range(size)] for i in range(size)]
        for i, row in enumerate(both_axes(formula, cells, number)):
            for k, value in enumerate(row):
                points.put((SPAN * i + k) * plane + tile * step, value)


def points_to_strip(points, strip, lanes, columns, step, plane, offset, number):
    """6 x 6 points of each tile to its 4 x 4 outputs: ``strip[i, q, lane]``."""
    for tile in loop(columns):
        values = [[points.vec((SPAN * i + k) * plane + tile * step, lanes) for k in range(SPAN)] for i in range(SPAN)]
        for i, row in enumerate(both_axes(output_column, values, number)):
            for k, value in enumerate(row):
                strip.cells.put(strip.place(tile, i, k) * lanes, value + offset)


def _is_dilated(step: Any) -> bool:
    return not (isinstance(step, int) and step == 1)
