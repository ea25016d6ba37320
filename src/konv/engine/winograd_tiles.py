"""Rows of tiles between arrays and points: parts of the kernels' texts.

Arrays pass through a *strip*: the lines of one row of tiles, for each of their cells a vector of channels. Arrays whose
layout is "last" lie like that in memory; others are transposed, ``lanes`` channels by ``lanes`` cells at a time.
"""

from __future__ import annotations

from konv.engine.simd import loop, minimum, transpose, within
from konv.engine.winograd_formulas import OUTPUTS, SPAN, both_axes, output_column


def constants(zero):
    """The function that makes vectors of a formula's constants ``a + r * sqrt(2)``."""
    return lambda a, r=0: zero + float(a + float(r) * 2**0.5)


def read_strip(array, strip, lanes, layout, lines, pitch, image, first, channels, height, width, top, left, cells):
    """``strip[i, q, lane] = array[image, first + lane, top + i, left + q]``, zero outside of the image.

    ``cells`` of each line are asked for; a multiple of ``lanes`` may be written. Lanes past the last channel hold what
    nobody sums: that channel once more, or zero.
    """
    if layout == "last":
        for i in loop(lines):
            h = top + i
            inside = within(h, height)
            for q in loop(cells):
                w = left + q
                count = (channels - first) * inside * within(w, width)
                line = array.vec(((image * height + h) * width + w) * channels + first, lanes, count=count)
                strip.put((i * pitch + q) * lanes, line)
        return
    planes = [(image * channels + minimum(first + i, channels - 1)) * height for i in range(lanes)]
    for i in loop(lines):
        h = top + i
        inside = within(h, height)
        for q in loop((cells + (lanes - 1)) // lanes):
            w = left + q * lanes
            rows = [array.vec((plane + h) * width + w, lanes, count=(width - w) * inside, start=-w) for plane in planes]
            for k, column in enumerate(transpose(rows)):
                strip.put((i * pitch + q * lanes + k) * lanes, column)


def write_strip(array, strip, lanes, layout, pitch, image, first, channels, height, width, top, left, cells):
    """``array[image, first + lane, top + i, left + q] = strip[i, q, lane]`` for what exists of 4 lines of ``cells``."""
    for i in loop(minimum(OUTPUTS, height - top)):
        h = top + i
        if layout == "last":
            to = ((image * height + h) * width + left) * channels + first
            for q in loop(minimum(cells, width - left)):
                array.put(to + q * channels, strip.vec((i * pitch + q) * lanes, lanes), count=channels - first)
        else:
            for q in loop((cells + (lanes - 1)) // lanes):
                w = left + q * lanes
                used = minimum(width - w, cells - q * lanes)
                columns = [strip.vec((i * pitch + q * lanes + k) * lanes, lanes) for k in range(lanes)]
                for k, row in enumerate(transpose(columns)):
                    exists = within(first + k, channels)
                    array.put(((image * channels + first + k) * height + h) * width + w, row, count=used * exists)


def strip_to_points(strip, points, lanes, formula, size, pitch, columns, step, plane, number):
    """Tiles of ``size`` x ``size`` cells, one every 4 cells, to 6 x 6 points: ``points[point, tile, lane]``."""
    for tile in loop(columns):
        cells = [[strip.vec((i * pitch + tile * OUTPUTS + k) * lanes, lanes) for k in range(size)] for i in range(size)]
        for i, row in enumerate(both_axes(formula, cells, number)):
            for k, value in enumerate(row):
                points.put((SPAN * i + k) * plane + tile * step, value)


def points_to_strip(points, strip, lanes, pitch, columns, step, plane, offset, number):
    """6 x 6 points of each tile to its 4 x 4 outputs, a tile after the other: ``strip[i, q, lane]``."""
    for tile in loop(columns):
        values = [[points.vec((SPAN * i + k) * plane + tile * step, lanes) for k in range(SPAN)] for i in range(SPAN)]
        for i, row in enumerate(both_axes(output_column, values, number)):
            for k, value in enumerate(row):
                strip.put((i * pitch + tile * OUTPUTS + k) * lanes, value + offset)
