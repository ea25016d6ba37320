"""Kernels with pixels in lanes: for groups of few filters, depthwise above all, where filters would leave lanes empty.

A vector is a run of neighbouring outputs of one row. What it reads lies side by side in a row of x too, shifted by the tap:
rows are read where they lie, with masks at their ends; a row above or below the plane is read from ``zeros``.
A tile is some rows of outputs, one vector wide: each row of x is loaded once for every column of the kernel, and serves
all the outputs of the tile that meet it.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

from konv.engine.compile import kernel
from konv.engine.groups.planes_tile import Row, Tile, add_source
from konv.engine.machine import wide_type
from konv.engine.simd import Variable, loop, minimum, pick, splat, within


@kernel
def correlate_planes(x_dtype, y_dtype, lanes, tile, taps_high, taps_wide, stride, contiguous, single, woven, near):
    """Forward, or the input gradient of every ``stride``-th row. A piece is (some planes of outputs, block of rows).

    Parameters
    ----------
    tile : (filters, rows, vectors of a row) that are computed together
    taps_high : rows of the kernel that are taken together; they read neighbouring rows of x
    taps_wide : columns of the kernel, unrolled, which read neighbouring cells; ``NEIGHBOURS``: any number of such;
        ``ANYWHERE``: any number of any (``shifts``). Two of them: two interleaved sets of output columns, each with
        taps of its own (the input gradient of stride 2)
    stride : of the outputs' windows in x, (rows, columns); 0 columns: any number, gathered
    contiguous : whether outputs are neighbours in memory
    single : whether there is one source only, as in every depthwise layer with two axes
    woven : whether even and odd columns of outputs are sets of their own, with the same taps: so bfloat16 is read and written
        fastest, depthwise 3 x 3 1.3 to 1.7 times as fast. What neighbours in lanes cost is their widening, by shuffles and
        shifts, which a CPU does one at a time, and their rounding. Two taps of one read (``both``) take 1.08 times as long
    near : whether only the first and the last vector of a tile may reach outside a row
    """
    (filters, rows, vectors), (stride_high, stride_wide) = tile, stride
    tile = Tile(
        filters, rows, vectors, lanes, taps_high, taps_wide, stride_high, stride_wide, contiguous, single, woven, near
    )
    sets = tile.sets

    def text(
        piece, slot, x, weights, bias, y, zeros, shifts, columns, sources,
        lines, chunk, groups, source_count, taps, filter_blocks, group_channels, x_depth, x_height, x_width, step,
        depth_step, out_depth, out_height, out_width, row_blocks, block_rows,
        y_start, y_filter, y_depth, y_row, y_step,
    ):  # fmt: skip
        first_row = piece % row_blocks * block_rows
        out_rows = minimum(block_rows, out_height - first_row)
        first_line = piece // row_blocks * chunk
        width = (out_width + (len(sets) - 1)) // len(sets)
        planes = Planes(tile, x, zeros, sources, group_channels, depth_step, x_depth, x_height, x_width)
        results = Results(tile, y, out_width, y_filter, y_row, y_step)

        def factors_of(block_weights, source):
            """``factor(tap)[row of the source][filter]``, spread over the lanes."""

            def factor(tap):
                at = block_weights.at((source * taps + tap) * taps_high * filters)
                return [[splat(at[k * filters + f], lanes) for f in range(filters)] for k in range(taps_high)]

            return factor

        for i in loop(minimum(chunk, lines - first_line)):
            line = first_line + i
            depth, plane = line % out_depth, line // out_depth
            group = plane % groups
            for block in loop(filter_blocks):
                filter_ = (group * filter_blocks + block) * filters
                block_weights = weights.at(filter_ * source_count * taps * taps_high)
                to_plane = y_start + (plane * filter_blocks + block) * filters * y_filter + depth * y_depth
                for row_tile in loop((out_rows + (rows - 1)) // rows):
                    row = first_row + minimum(row_tile * rows, out_rows - rows)  # the last tile ends with the last row
                    to_row = to_plane + row * y_row
                    if single:
                        lines_read, factor = planes.lines(plane, depth, row, 0), factors_of(block_weights, 0)
                        if tile.kept:
                            factor = [factor(t) for t in range(sum(taps_wide))].__getitem__
                    for column_tile in loop((width + (tile.columns - 1)) // tile.columns):
                        column = column_tile * tile.columns
                        if vectors > 1:  # as with rows; one vector may be wider than the row
                            column = minimum(column, width - tile.columns)
                        sums = [
                            {cell: Variable(splat(bias[filter_ + cell[0]], lanes)) for cell in tile.cells} for _ in sets
                        ]
                        place, first_cell = Row(shifts, columns, step, x_width, column), column * tile.wide_step
                        if single:
                            add_source(tile, sums, place, factor, lines_read)
                        else:
                            for f in range(filters):
                                results.fetch(to_row + f * y_filter + rows * y_row, column)
                            for source in loop(source_count):
                                planes.fetch_below(plane, depth, row, source, first_cell)
                                lines_read = planes.lines(plane, depth, row, source)
                                add_source(tile, sums, place, factors_of(block_weights, source), lines_read)
                        results.store(sums, to_row, column)

    wide = wide_type(x_dtype)
    pointers = {"x": x_dtype, "weights": wide, "bias": wide, "y": y_dtype, "zeros": x_dtype}
    return text, {**pointers, "shifts": "int64", "columns": "int64", "sources": "int64"}


class Planes(NamedTuple):
    """x as tiles read it. A source is a channel of a group, and planes and rows of the kernel that are taken together.

    ``sources`` has three numbers of each: the channel, and how far its planes and rows lie from the first of the outputs'.
    """

    tile: Tile
    x: Any
    zeros: Any
    sources: Any
    group_channels: Any
    depth_step: Any
    depth: Any
    height: Any
    width: Any

    def first(self, plane, depth, row, source):
        """The first row of x that a tile reads of a source, counted from the first of x."""
        channel = plane * self.group_channels + self.sources[source * 3]
        d = depth * self.depth_step + self.sources[source * 3 + 1]
        return (channel * self.depth + d) * self.height + row * self.tile.stride_high + self.sources[source * 3 + 2]

    def lines(self, plane, depth, row, source):
        """The rows of x that a tile reads of a source: their pointers."""
        h = row * self.tile.stride_high + self.sources[source * 3 + 2]
        height = self.height * within(depth * self.depth_step + self.sources[source * 3 + 1], self.depth)
        start = self.first(plane, depth, row, source)
        return [
            pick(within(h + u, height), self.x.at((start + u) * self.width), self.zeros) for u in range(self.tile.lines)
        ]

    def fetch_below(self, plane, depth, row, source, first_cell):
        """Ask for what a source of the next tile of rows reads."""
        tile, first = self.tile, (self.first(plane, depth, row, source) + self.tile.lines) * self.width + first_cell
        fetch(self.x, first, self.width, tile.rows * tile.stride_high, tile.columns * tile.wide_step, tile.lanes, False)


class Results(NamedTuple):
    """y as tiles write it."""

    tile: Tile
    y: Any
    width: Any
    filter_pitch: Any
    row_pitch: Any
    step: Any

    def store(self, sums, to_row, column):
        """Write the sums of a tile."""
        y, sets = self.y, len(self.tile.sets)
        for f, r, v in self.tile.cells:
            to, first = to_row + f * self.filter_pitch + r * self.row_pitch, column + v * self.tile.lanes
            if sets == 2:
                y.weave(to + first * 2, sums[0][f, r, v].get(), sums[1][f, r, v].get(), self.width - first * 2)
            elif self.tile.contiguous:
                y.put(to + first, sums[0][f, r, v].get(), None if self.tile.vectors > 1 else self.width - first)
            else:
                y.scatter(to + first * self.step, self.step, sums[0][f, r, v].get(), self.width - first)

    def fetch(self, to_row, column):
        """Ask for where a tile will be written."""
        tile, sets = self.tile, len(self.tile.sets)
        fetch(self.y, to_row + column * sets, self.row_pitch, tile.rows, tile.columns * sets, tile.lanes, True)


def fetch(array, first, row_size, count, cells, lanes, write):
    """Ask for so many ``cells`` of ``count`` rows, which are needed soon."""
    for r, v in itertools.product(range(count), range(0, cells, lanes)):
        array.prefetch(first + r * row_size + v, write)
