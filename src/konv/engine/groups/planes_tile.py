"""The tile of pixels in lanes: its sums are in registers, and each vector of x that is read serves all that it meets.

Three rows of outputs, three rows of the kernel (k), stride 1: ::

    row of x      0     1     2     3     4        read once for each column of the kernel
    outputs 0    k=0   k=1   k=2
    outputs 1          k=0   k=1   k=2
    outputs 2                k=0   k=1   k=2
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

from konv.engine.simd import bits, fma, loop, minimum, pinned, shuffle, within

ANYWHERE, NEIGHBOURS = -1, -2
APART = 16  # columns of a kernel that follow each other: a vector of x serves the outputs here and so many cells before
KEPT_FACTORS = 9  # stay in registers for a row of tiles


class Tile(NamedTuple):
    """What is compiled into :func:`konv.engine.groups.planes.correlate_planes`, which tells what each means."""

    filters: int
    rows: int
    vectors: int
    lanes: int
    taps_high: int
    taps_wide: tuple[int, ...]
    stride_high: int
    stride_wide: int
    contiguous: bool
    single: bool
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

    @property
    def columns(self) -> int:
        """Of outputs of each set."""
        return self.vectors * self.lanes

    @property
    def wide_step(self) -> int:
        """Cells of x from one column of outputs of a set to the next."""
        return 2 if self.woven else self.stride_wide or 1

    @property
    def unrolled(self) -> bool:
        """Whether all taps of a row are."""
        return min(self.taps_wide) >= 0

    @property
    def kept(self) -> bool:
        """Whether all factors stay in registers for a row of tiles."""
        few = sum(self.taps_wide) * self.taps_high * self.filters <= KEPT_FACTORS
        return self.single and self.unrolled and few

    @property
    def long(self) -> bool:
        """Whether a tile is several vectors of a row, and rows are planes: read in the order of memory, which the machine
        asks for unasked.

        4 x 1536 rows of 1024, 4 taps: 0.9 ms instead of 1.6, of which prefetches were 0.5, masks 0.2 (to copy x to y takes
        0.8 to 0.9, past the caches 0.9). 31 taps: 0.66 instead of 0.95; tiles of 12 vectors 0.82, of 4 0.78; vectors that
        lie across two put together in registers, not read again, 0.88 (a third of them 0.69).
        31 taps are bound by reading across cache lines, 1.5 multiply-adds each. So products that pairs of outputs share, of taps
        a vector or half a vector apart, three for four, give 0.93 of the time of this kernel at best; from two copies of a
        row, so that no half vector lies across, 1.0.
        """
        return self.vectors > 1 and self.unrolled and self.stride_wide == 1


class Row(NamedTuple):
    """Where a tile stands in the rows of x, for the columns of a kernel.

    ``shifts[t]`` is the cell that tap t reads for column 0; the taps of set s are ``columns[s]`` to ``columns[s + 1] - 1``.
    ``step``: cells from one column's window to the next; ``width``: of the rows; ``column``: the tile's first.
    """

    shifts: Any
    columns: Any
    step: Any
    width: Any
    column: Any


def add_source(tile, sums, row, factor, lines_read):
    """Add the products of one source of rows, ``lines_read``, to the sums of all sets; ``factor(tap)[k][filter]``."""
    if tile.woven:
        multiply_woven(tile, sums, factor, lines_read, readers_of(tile, 2, row, row.shifts[0]))
        return
    for s in tile.sets:
        place = tile, sums[s], s, row, factor, lines_read
        if tile.long and tile.single:
            first = row.column * tile.wide_step + row.shifts[sum(tile.taps_wide[:s])]
            last = first + tile.columns + (tile.taps_wide[s] - 2)
            whole = within(first, row.width) * within(last, row.width)
            for _ in loop(whole):
                add_to_set(*place, whole=True)
            for _ in loop(1 - whole):
                add_to_set(*place)
        else:
            add_to_set(*place)


def add_to_set(tile, sums, s, row, factor, lines_read, whole=False):
    """Add the products of one source to the sums of one set of columns; ``whole``: all of whose cells exist."""

    def readers(shift):
        return readers_of(tile, row.step, row, shift, whole)

    shifts, columns = row.shifts, row.columns
    if tile.taps_wide[s] == ANYWHERE:
        for t in loop(columns[s + 1] - columns[s]):
            read = [read(0) for read in readers(shifts[columns[s] + t])]
            multiply(tile, sums, factor(columns[s] + t), lines_read, read)
    elif tile.taps_wide[s] == NEIGHBOURS:
        read = readers(shifts[columns[s]])
        for t in loop(columns[s + 1] - columns[s]):
            multiply(tile, sums, factor(columns[s] + t), lines_read, [r(t) for r in read])
    elif tile.taps_wide[s]:
        first = sum(tile.taps_wide[:s])
        multiply_unrolled(tile, sums, s, lambda t: factor(first + t), lines_read, readers(shifts[first]))


def readers_of(tile, step, row, shift, whole=False):
    """For each vector of a tile its :func:`reader`; without masks where ``whole`` or ``near`` says that no cell is outside."""
    lanes, found = tile.lanes, []
    for v in range(tile.vectors):
        at = row.column + v * lanes
        if whole or (tile.near and 0 < v < tile.vectors - 1):
            found.append(lambda t, at=at + shift: lambda u, line: line.vec(at + t, lanes))
        else:
            stride = 2 if tile.woven else tile.stride_wide
            found.append(reader(lanes, stride, step, row.width, at, shift, woven=tile.woven))
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
