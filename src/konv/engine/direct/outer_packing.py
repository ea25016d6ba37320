"""How a piece of the weight gradient lays out its pixels: lines of x as (cell, channel), dy as (pixel, filter).

Each comes from either layout of memory, padded with zeros. A vector may spill over what follows it, which is written later: the
next cell, the channels before its own, the next line.
"""

from __future__ import annotations

from konv.engine.simd import loop, maximum, minimum, shuffle, transpose, within


def image_transposed(lanes, x, to, at, shape, all_channels, channel, channels, cells, step, inside):
    """A line of cells from (N, C, *spatial): lanes x lanes elements at a time."""
    (n, z, y, first), (depth, height, row) = at, shape
    blocks, plane = (channels + (lanes - 1)) // lanes, depth * height * row
    line = x.at((n * all_channels + channel) * plane + (z * height + y) * row)
    for q in loop((cells + (lanes - 1)) // lanes):
        cell = first + q * lanes
        for b in loop(blocks):
            c = (blocks - 1 - b) * lanes
            columns = []
            for i in range(lanes):
                source = line.at(minimum(c + i, channels - 1) * plane)  # channels past the last repeat it
                columns.append(source.vec(cell, lanes, count=(row - cell) * inside, start=-cell))
            for i, vector in enumerate(transpose(columns)):
                to.put((q * lanes + i) * channels + c, vector)


def image_interleaved(count):
    """As :func:`image_transposed` for few channels: ``count`` vectors of one channel to ``count`` vectors of all."""

    def lay(lanes, x, to, at, shape, all_channels, channel, channels, cells, step, inside):
        (n, z, y, first), (depth, height, row) = at, shape
        for q in loop((cells + (lanes - 1)) // lanes):
            cell = first + q * lanes
            planes = [((n * all_channels + channel + c) * depth + z) * height + y for c in range(count)]
            vectors = [x.vec(p * row + cell, lanes, count=(row - cell) * inside, start=-cell) for p in planes]
            for j in range(count):
                lane = range(lanes * j, lanes * (j + 1))
                mixed = shuffle(vectors[0], vectors[0], [i // count for i in lane])
                for c in range(1, count):
                    order = [lanes + i // count if i % count == c else i % lanes for i in lane]
                    mixed = shuffle(mixed, vectors[c], order)
                to.put((q * count + j) * lanes, mixed)

    return lay


def image_last(lanes, x, to, at, shape, all_channels, channel, channels, cells, step, inside):
    """A line of every ``step``-th cell from (N, *spatial, C): at once where it has all channels, else cell by cell."""
    (n, z, y, first), (depth, height, row) = at, shape
    line = x.at((((n * depth + z) * height + y) * row + first) * all_channels + channel)
    whole = within(all_channels - channels, 1) * within(step, 2)
    for q in loop((cells * channels + (lanes - 1)) // lanes * whole):
        start, count = -first * channels - q * lanes, (row - first) * channels * inside - q * lanes
        to.put(q * lanes, line.vec(q * lanes, lanes, count=count, start=start))

    vectors = (channels + (lanes - 1)) // lanes
    cells = cells * (1 - whole)
    end = minimum((maximum(row - first, 0) + (step - 1)) // step * inside, cells)
    begin = minimum((maximum(-first, 0) + (step - 1)) // step, end)
    for i in loop(begin):
        for q in loop(vectors):
            to.put(i * channels + q * lanes, to.zero(lanes))
    for i in loop(end - begin):
        for q in loop(vectors):
            source = (begin + i) * step * all_channels + q * lanes
            to.put((begin + i) * channels + q * lanes, line.vec(source, lanes, count=channels - q * lanes))
    for i in loop(cells - end):
        for q in loop(vectors):
            to.put((end + i) * channels + q * lanes, to.zero(lanes))


def gradient_transposed(
    lanes, vectors, dy, to, at, shape, all_filters, before, filters, first, pixels, totals
):  # fmt: skip
    """Neighbouring pixels of a panel of filters from (N, F, *output). Lanes past the last filter repeat it."""
    (n, d, pixel), (depth, plane) = at, shape
    image, size = dy.at(((n * all_filters + before) * depth + d) * plane + pixel), depth * plane
    for q in loop((pixels + (lanes - 1)) // lanes):
        for j in range(vectors):
            rows = []
            for i in range(lanes):
                source = image.at(minimum(first + lanes * j + i, filters - 1) * size)
                rows.append(source.vec(q * lanes, lanes, count=pixels - q * lanes))
            for i, column in enumerate(transpose(rows)):
                to.put((q * lanes + i) * (lanes * vectors) + lanes * j, column)
                total = totals[j][i % 2]
                total.set(total.get() + column)


def gradient_last(lanes, vectors, dy, to, at, shape, all_filters, before, filters, first, pixels, totals):
    """As :func:`gradient_transposed`, from (N, *output, F)."""
    (n, d, pixel), (depth, plane) = at, shape
    source = dy.at(((n * depth + d) * plane + pixel) * all_filters + before + first)
    for q in loop(pixels):
        for j in range(vectors):
            row = source.vec(q * all_filters + lanes * j, lanes, count=filters - first - lanes * j)
            to.put((q * vectors + j) * lanes, row)
            totals[j][0].set(totals[j][0].get() + row)


def fetch_first(itemsize):
    """Ask for a ``width``-th of dy in the next unit: the pixels of a filter."""

    def fetch(dy, at, shape, all_filters, before, filters, first, pixels, width, i):
        (n, d, pixel), (depth, plane), line = at, shape, 64 // itemsize
        f = n * all_filters + before + minimum(first + i, filters - 1)
        source = dy.at((f * depth + d) * plane + pixel)
        for q in loop((pixels + (line - 1)) // line):
            source.prefetch(q * line)

    return fetch


def fetch_last(itemsize):
    """As :func:`fetch_first`: every ``width``-th pixel, all filters of the panel."""

    def fetch(dy, at, shape, all_filters, before, filters, first, pixels, width, i):
        (n, d, pixel), (depth, plane) = at, shape
        source = dy.at(((n * depth + d) * plane + pixel) * all_filters + before + first)
        for q in loop((pixels - i + (width - 1)) // width):
            for line in range(0, width, 64 // itemsize):
                source.prefetch((q * width + i) * all_filters + line)

    return fetch
