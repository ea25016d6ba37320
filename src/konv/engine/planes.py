"""Kernels with pixels in lanes: for groups of few filters, depthwise above all, where filters would leave lanes empty.

A vector is a run of neighbouring outputs of one row. What it reads lies side by side in a row of x too, shifted by the tap:
rows are read where they lie, with masks at their ends; a row above or below the plane is read from ``zeros``.
A tile is some rows of outputs, one vector wide: each row of x is loaded once for every column of the kernel, and serves
all the outputs of the tile that meet it.
"""

from __future__ import annotations

import itertools
from typing import Any

from konv.engine.compile import kernel
from konv.engine.machine import wide_type
from konv.engine.simd import Variable, bits, fma, loop, minimum, pick, pinned, shuffle, splat, within

# Elements: what lies so far on is asked for, hundreds of cycles before it is needed. Without it half as fast.
AHEAD = 2048
ANYWHERE, NEIGHBOURS = -1, -2
APART = 16  # columns of a kernel that follow each other: a vector of x serves the outputs here and so many cells before
KEPT_FACTORS = 9  # stay in registers for a row of tiles


@kernel
def correlate_planes(
    x_dtype, y_dtype, lanes, tile, taps_high, taps_wide, stride, contiguous, single, short, woven, near
):
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
    short : (first row of the first window, rows) of planes that are one tile high, of one source: the rows outside are left
        out; or None
    woven : whether even and odd columns of outputs are sets of their own, with the same taps: so bfloat16 is read and written
        fastest, depthwise 3 x 3 1.3 to 1.7 times as fast. What neighbours in lanes cost is their widening, by shuffles and
        shifts, which a CPU does one at a time, and their rounding. Two taps of one read (``both``) take 1.08 times as long
    near : whether only the first and the last vector of a tile may reach outside a row
    """
    (filters, rows, vectors), (stride_high, stride_wide) = tile, stride
    sets = range(2 if woven else len(taps_wide))
    lines_of_tile = (rows - 1) * stride_high + taps_high
    unrolled = min(taps_wide) >= 0
    kept = single and unrolled and sum(taps_wide) * taps_high * filters <= KEPT_FACTORS
    wide_step = 2 if woven else stride_wide or 1
    cells = [(f, r, v) for f in range(filters) for r in range(rows) for v in range(vectors)]
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
            if short:
                inside = {u for u in range(lines_of_tile) if 0 <= short[0] + u < short[1]}
                return [x.at((start + u) * x_width) if u in inside else None for u in range(lines_of_tile)]
            return [pick(within(h + u, height), x.at((start + u) * x_width), zeros) for u in range(lines_of_tile)]

        def factors_of(factors, source, tap):
            """``factors[row of the source][filter]`` of a tap, spread over the lanes."""
            at = factors.at((source * taps + tap) * taps_high * filters)
            return [[splat(at[k * filters + f], lanes) for f in range(filters)] for k in range(taps_high)]

        def multiply(sums, factors, lines_read, read):
            """Add the products of one tap, whose cells in a line ``read(u, line)`` gives, vector by vector."""
            for u, line in enumerate(lines_read):
                met = meetings(u, rows, taps_high, stride_high) if line is not None else []
                for v in range(vectors if met else 0):
                    pixels = read[v](u, line)
                    for (r, k), f in itertools.product(met, range(filters)):
                        sums[f, r, v].set(pinned(fma(factors[k][f], pixels, sums[f, r, v].get())))

        def add(sums, s, column, factors, factors_kept, source, lines_read, whole=False):
            """Add the products of one source to the sums of one set of columns; ``whole``: all of whose cells exist."""

            def readers(shift):
                found = [reader(lanes, stride_wide, step, x_width, column + v * lanes, shift) for v in range(vectors)]
                for v in range(vectors) if whole else range(1, vectors - 1) if near else ():
                    at = column + v * lanes + shift
                    found[v] = lambda t, at=at: lambda u, line: line.vec(at + t, lanes)
                return found

            if taps_wide[s] == ANYWHERE:
                for t in loop(columns[s + 1] - columns[s]):
                    read = [read(0) for read in readers(shifts[columns[s] + t])]
                    multiply(sums, factors_of(factors, source, columns[s] + t), lines_read, read)
            elif taps_wide[s] == NEIGHBOURS:
                read = readers(shifts[columns[s]])
                for t in loop(columns[s + 1] - columns[s]):
                    multiply(sums, factors_of(factors, source, columns[s] + t), lines_read, [r(t) for r in read])
            elif taps_wide[s]:
                first = sum(taps_wide[:s])
                read = readers(shifts[first])
                for start in range(min(taps_wide[s], APART)):
                    seen: dict[Any, Any] = {}
                    for t in range(start, taps_wide[s], APART):
                        factor = factors_kept[first + t] if kept else factors_of(factors, source, first + t)
                        multiply(sums, factor, lines_read, [sharing(seen, v, t, read[v](t)) for v in range(vectors)])

        def add_woven(sums, column, factors, factors_kept, source, lines_read):
            """As :func:`add`, for both sets: what an even column meets with a tap, the odd one before it met with the next."""
            read = [reader(lanes, 2, 2, x_width, column + v * lanes, shifts[0], woven=True) for v in range(vectors)]
            factor: dict[int, Any] = {}
            for t in range(taps_wide[0] + 1):
                if t < taps_wide[0]:
                    factor[t] = factors_kept[t] if kept else factors_of(factors, source, t)
                met_sets = [(s, t - s) for s in sets if 0 <= t - s < taps_wide[0]]
                for u, line in enumerate(lines_read):
                    met = meetings(u, rows, taps_high, stride_high) if line is not None else []
                    for v in range(vectors if met else 0):
                        pixels = read[v](t)(u, line)
                        for (s, tap), (r, k), f in itertools.product(met_sets, met, range(filters)):
                            total = sums[s][f, r, v]
                            total.set(pinned(fma(factor[tap][k][f], pixels, total.get())))

        def sharing(seen, v, t, read):
            """As ``read``, but what another vector met with another tap is not read again."""

            def cells(u, line):
                place = u, v * lanes + t
                if stride_wide != 1 or place not in seen:
                    seen[place] = read(u, line)
                return seen[place]

            return cells

        def store(sums, to_row, column):
            for f, r, v in cells:
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
                    for column_tile in loop((width + (vectors * lanes - 1)) // (vectors * lanes)):
                        column = column_tile * (vectors * lanes)
                        if vectors > 1:  # as with rows; one vector may be wider than the row
                            column = minimum(column, width - vectors * lanes)
                        first_cell = column * wide_step
                        sums = [{cell: Variable(splat(bias[filter_ + cell[0]], lanes)) for cell in cells} for _ in sets]
                        if single:
                            if not long:
                                at = ((plane * x_depth + depth) * x_height + row * stride_high) * x_width + first_cell
                                fetch(x, at + AHEAD, x_width, rows * stride_high, vectors * lanes * wide_step, False)
                                if kept:
                                    at = to_row + column * len(sets) + AHEAD
                                    fetch(y, at, y_row, rows, vectors * lanes * len(sets), True)
                            if woven:
                                add_woven(sums, column, factors, factors_kept, 0, lines_read)
                            for s in () if woven else sets:
                                place = sums[s], s, column, factors, factors_kept, 0, lines_read
                                if long:
                                    first = first_cell + shifts[sum(taps_wide[:s])]
                                    last = first + vectors * lanes + (taps_wide[s] - 2)
                                    whole = within(first, x_width) * within(last, x_width)
                                    for _ in loop(whole):
                                        add(*place, True)
                                    for _ in loop(1 - whole):
                                        add(*place)
                                else:
                                    add(*place)
                        else:  # ask for the next tile of rows
                            for f in range(filters):
                                at = to_row + f * y_filter + rows * y_row + column * len(sets)
                                fetch(y, at, y_row, rows, vectors * lanes * len(sets), True)
                            for source in loop(source_count):
                                at = (first_of(plane, depth, row, source) + lines_of_tile) * x_width + first_cell
                                fetch(x, at, x_width, rows * stride_high, vectors * lanes * wide_step, False)
                                lines_read = lines_of(plane, depth, row, source)
                                if woven:
                                    add_woven(sums, column, factors, factors_kept, source, lines_read)
                                for s in () if woven else sets:
                                    add(sums[s], s, column, factors, factors_kept, source, lines_read)
                        store(sums, to_row, column)

    wide = wide_type(x_dtype)
    pointers = {"x": x_dtype, "weights": wide, "bias": wide, "y": y_dtype, "zeros": x_dtype}
    return text, {**pointers, "shifts": "int64", "columns": "int64", "sources": "int64"}


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
