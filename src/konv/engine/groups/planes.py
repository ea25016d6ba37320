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
from konv.engine.machine import wide_type
from konv.engine.simd import Variable, bits, fma, loop, minimum, pick, pinned, shuffle, splat, within

# Elements: what lies so far on is asked for, hundreds of cycles before it is needed. Without it half as fast.
AHEAD = 2048
ANYWHERE, NEIGHBOURS = -1, -2
APART = 16  # columns of a kernel that follow each other: a vector of x serves the outputs here and so many cells before
KEPT_FACTORS = 9  # stay in registers for a row of tiles


class Tile(NamedTuple):
    """What is compiled into :func:`correlate_planes`."""

    filters: int
    rows: int
    vectors: int
    lanes: int
    taps_high: int
    taps_wide: tuple[int, ...]
    stride_high: int
    stride_wide: int
    woven: bool
    near: bool

    @property
    def cells(self) -> list[tuple[int, int, int]]:
        """(filter, row, vector) of all sums of a set."""
        return list(itertools.product(range(self.filters), range(self.rows), range(self.vectors)))

    @property
    def sets(self) -> range:
        """Of output columns, interleaved."""
        return range(2 if self.woven else len(self.taps_wide))

    @property
    def lines(self) -> int:
        """Rows of x that a tile reads."""
        return (self.rows - 1) * self.stride_high + self.taps_high


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
    own = Tile(filters, rows, vectors, lanes, taps_high, taps_wide, stride_high, stride_wide, woven, near)
    sets, wide_step = own.sets, 2 if woven else stride_wide or 1
    unrolled = min(taps_wide) >= 0
    kept = single and unrolled and sum(taps_wide) * taps_high * filters <= KEPT_FACTORS
    # Where a tile is several vectors of a row, rows are planes: read in the order of memory, which the machine asks for unasked.
    # 4 x 1536 rows of 1024, 4 taps: 0.9 ms instead of 1.6, of which prefetches were 0.5, masks 0.2 (to copy x to y takes 0.8
    # to 0.9, past the caches 0.9). 31 taps: 0.66 instead of 0.95; tiles of 12 vectors 0.82, of 4 0.78; vectors that
    # lie across two put together in registers, not read again, 0.88 (a third of them 0.69).
    long = vectors > 1 and unrolled and stride_wide == 1

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
        cells_of_row = vectors * lanes

        def first_of(plane, depth, row, source):
            """The first row of x that a tile reads of a source, counted from the first of x."""
            channel = plane * group_channels + sources[source * 3]
            d = depth * depth_step + sources[source * 3 + 1]
            return (channel * x_depth + d) * x_height + row * stride_high + sources[source * 3 + 2]

        def lines_of(plane, depth, row, source):
            """The rows of x that a tile reads of a source: their pointers."""
            h = row * stride_high + sources[source * 3 + 2]
            height = x_height * within(depth * depth_step + sources[source * 3 + 1], x_depth)
            start = first_of(plane, depth, row, source)
            return [pick(within(h + u, height), x.at((start + u) * x_width), zeros) for u in range(own.lines)]

        def factors_of(factors, source, tap):
            """``factors[row of the source][filter]`` of a tap, spread over the lanes."""
            at = factors.at((source * taps + tap) * taps_high * filters)
            return [[splat(at[k * filters + f], lanes) for f in range(filters)] for k in range(taps_high)]

        def add(sums, s, column, factor, lines_read, whole=False):
            """Add the products of one source to the sums of one set of columns; ``whole``: all of whose cells exist."""

            def readers(shift):
                return readers_of(own, step, x_width, column, shift, whole)

            if taps_wide[s] == ANYWHERE:
                for t in loop(columns[s + 1] - columns[s]):
                    read = [read(0) for read in readers(shifts[columns[s] + t])]
                    multiply(own, sums, factor(columns[s] + t), lines_read, read)
            elif taps_wide[s] == NEIGHBOURS:
                read = readers(shifts[columns[s]])
                for t in loop(columns[s + 1] - columns[s]):
                    multiply(own, sums, factor(columns[s] + t), lines_read, [r(t) for r in read])
            elif taps_wide[s]:
                first = sum(taps_wide[:s])
                multiply_unrolled(own, sums, s, lambda t: factor(first + t), lines_read, readers(shifts[first]))

        def add_all(sums, column, factor, lines_read):
            """Add the products of one source to the sums of all sets."""
            if woven:
                read = readers_of(own, 2, x_width, column, shifts[0])
                multiply_woven(own, sums, factor, lines_read, read)
                return
            for s in sets:
                place = sums[s], s, column, factor, lines_read
                if long and single:
                    first = column * wide_step + shifts[sum(taps_wide[:s])]
                    last = first + cells_of_row + (taps_wide[s] - 2)
                    whole = within(first, x_width) * within(last, x_width)
                    for _ in loop(whole):
                        add(*place, True)
                    for _ in loop(1 - whole):
                        add(*place)
                else:
                    add(*place)

        def store(sums, to_row, column):
            for f, r, v in own.cells:
                to, first = to_row + f * y_filter + r * y_row, column + v * lanes
                if len(sets) == 2:
                    y.weave(to + first * 2, sums[0][f, r, v].get(), sums[1][f, r, v].get(), out_width - first * 2)
                elif contiguous:
                    y.put(to + first, sums[0][f, r, v].get(), None if vectors > 1 else out_width - first)
                else:
                    y.scatter(to + first * y_step, y_step, sums[0][f, r, v].get(), out_width - first)

        def fetch(array, first, row_size, count, cells, write):
            """Ask for so many ``cells`` of some rows, which are needed soon."""
            for r, v in itertools.product(range(count), range(0, cells, lanes)):
                array.prefetch(first + r * row_size + v, write)

        def tile_of_one_source(sums, plane, depth, row, column, to_row, factor, lines_read):
            first_cell = column * wide_step
            if not long:
                at = ((plane * x_depth + depth) * x_height + row * stride_high) * x_width + first_cell
                fetch(x, at + AHEAD, x_width, rows * stride_high, cells_of_row * wide_step, False)
                if kept:
                    at = to_row + column * len(sets) + AHEAD
                    fetch(y, at, y_row, rows, cells_of_row * len(sets), True)
            add_all(sums, column, factor, lines_read)

        def tile_of_sources(sums, plane, depth, row, column, to_row, factors):
            """Asks for the next tile of rows."""
            first_cell = column * wide_step
            for f in range(filters):
                at = to_row + f * y_filter + rows * y_row + column * len(sets)
                fetch(y, at, y_row, rows, cells_of_row * len(sets), True)
            for source in loop(source_count):
                at = (first_of(plane, depth, row, source) + own.lines) * x_width + first_cell
                fetch(x, at, x_width, rows * stride_high, cells_of_row * wide_step, False)
                lines_read = lines_of(plane, depth, row, source)
                add_all(sums, column, lambda tap, source=source: factors_of(factors, source, tap), lines_read)

        for i in loop(minimum(chunk, lines - first_line)):
            line = first_line + i
            depth, plane = line % out_depth, line // out_depth
            group = plane % groups
            for block in loop(filter_blocks):
                filter_ = (group * filter_blocks + block) * filters
                factors = weights.at(filter_ * source_count * taps * taps_high)
                to_plane = y_start + (plane * filter_blocks + block) * filters * y_filter + depth * y_depth
                for row_tile in loop((out_rows + (rows - 1)) // rows):
                    row = first_row + minimum(row_tile * rows, out_rows - rows)  # the last tile ends with the last row
                    to_row = to_plane + row * y_row
                    lines_read = lines_of(plane, depth, row, 0) if single else None
                    factors_kept = [factors_of(factors, 0, t) for t in range(sum(taps_wide))] if kept else None

                    def factor(tap, factors=factors, factors_kept=factors_kept):
                        return factors_kept[tap] if factors_kept else factors_of(factors, 0, tap)

                    for column_tile in loop((width + (cells_of_row - 1)) // cells_of_row):
                        column = column_tile * cells_of_row
                        if vectors > 1:  # as with rows; one vector may be wider than the row
                            column = minimum(column, width - cells_of_row)
                        sums = [
                            {cell: Variable(splat(bias[filter_ + cell[0]], lanes)) for cell in own.cells} for _ in sets
                        ]
                        place = sums, plane, depth, row, column, to_row
                        if single:
                            tile_of_one_source(*place, factor, lines_read)
                        else:
                            tile_of_sources(*place, factors)
                        store(sums, to_row, column)

    wide = wide_type(x_dtype)
    pointers = {"x": x_dtype, "weights": wide, "bias": wide, "y": y_dtype, "zeros": x_dtype}
    return text, {**pointers, "shifts": "int64", "columns": "int64", "sources": "int64"}


def readers_of(tile, step, x_width, column, shift, whole=False):
    """For each vector of a tile its :func:`reader`; without masks where ``whole`` or ``near`` says that no cell is outside."""
    lanes, found = tile.lanes, []
    for v in range(tile.vectors):
        at = column + v * lanes
        if whole or (tile.near and 0 < v < tile.vectors - 1):
            found.append(lambda t, at=at + shift: lambda u, line: line.vec(at + t, lanes))
        else:
            stride = 2 if tile.woven else tile.stride_wide
            found.append(reader(lanes, stride, step, x_width, at, shift, woven=tile.woven))
    return found


def multiply(tile, sums, factors, lines_read, read):
    """Add the products of one tap, whose cells in a line ``read[vector](u, line)`` gives."""
    for u, line in enumerate(lines_read):
        met = meetings(u, tile.rows, tile.taps_high, tile.stride_high)
        for v in range(tile.vectors if met else 0):
            pixels = read[v](u, line)
            for (r, k), f in itertools.product(met, range(tile.filters)):
                sums[f, r, v].set(pinned(fma(factors[k][f], pixels, sums[f, r, v].get())))


def multiply_unrolled(tile, sums, s, factor, lines_read, readers):
    """Add the products of all taps of a set of columns. What another vector met with another tap is not read again."""
    for start in range(min(tile.taps_wide[s], APART)):
        seen: dict[Any, Any] = {}

        def sharing(v, t, seen=seen):
            def cells(u, line):
                place = u, v * tile.lanes + t
                if tile.stride_wide != 1 or place not in seen:
                    seen[place] = read(u, line)
                return seen[place]

            read = readers[v](t)
            return cells

        for t in range(start, tile.taps_wide[s], APART):
            multiply(tile, sums, factor(t), lines_read, [sharing(v, t) for v in range(tile.vectors)])


def multiply_woven(tile, sums, factor, lines_read, readers):
    """The products of both sets: what an even column meets with a tap, the odd one before it met with the next."""
    taps, factors = tile.taps_wide[0], {}
    for t in range(taps + 1):
        if t < taps:
            factors[t] = factor(t)
        met_sets = [(s, t - s) for s in tile.sets if 0 <= t - s < taps]
        for u, line in enumerate(lines_read):
            met = meetings(u, tile.rows, tile.taps_high, tile.stride_high)
            for v in range(tile.vectors if met else 0):
                pixels = readers[v](t)(u, line)
                for (s, tap), (r, k), f in itertools.product(met_sets, met, range(tile.filters)):
                    total = sums[s][f, r, v]
                    total.set(pinned(fma(factors[tap][k][f], pixels, total.get())))


def meetings(u, rows, taps, stride):
    """The (row of outputs, row of the kernel) that meet in row u of a tile's input."""
    return [(r, u - r * stride) for r in range(rows) if 0 <= u - r * stride < taps]


def reader(lanes, stride, step, width, column, shift, left=None, woven=False):
    """``read(t)(u, line)``: the cells of a row of x that a vector of outputs from ``column`` on meets with tap t.

    Tap t reads cells ``column * stride + shift + t``, zeros outside the row, and zeros in the lanes from ``left`` on.
    ``woven`` : of stride 2, of a type whose every other cell is one instruction
    """
    kept = {}
    at = column * (stride or step) + shift
    inside = bits(0 - at, width - at)
    wanted = None if left is None else bits(0, left * (stride or 1))

    def vector(line, t, i):
        """Cells at + t + i .. at + t + i + lanes - 1."""
        mask = inside >> (t + i)
        return line.vec(at + (t + i), lanes, bits=mask if wanted is None else mask & (wanted >> i))

    def read(t):
        def cells(u, line):
            if stride == 1:
                return vector(line, t, 0)
            if woven:
                mask = inside >> t
                return line.alternate(at + t, lanes, bits=mask if wanted is None else mask & wanted)
            if stride == 2:  # two vectors give the even cells of this tap and the odd ones of the next
                if (u, t) not in kept:
                    halves = vector(line, t, 0), vector(line, t, lanes)
                    for odd in (0, 1):
                        kept[u, t + odd] = shuffle(*halves, range(odd, 2 * lanes, 2))
                return kept.pop((u, t))
            count = (width - at + (step - 1)) // step
            start = (0 - at + (step - 1)) // step
            return line.gather(at, step, lanes, count=count if left is None else minimum(count, left), start=start)

        return cells

    return read
