"""Kernels of 1-D windows side by side and few filters: what is repeated along a row meets the row as it lies in memory.

A *period* is as many cells as are whole windows and whole vectors; ``repeated[f, c, cell] = w[f, c, cell % kernel]`` of one is
known beforehand. A lane never leaves its place in the row: windows are summed up, or taken apart, once for all channels.
"""

from __future__ import annotations

import math

from konv.engine.compile import kernel
from konv.engine.machine import wide_type
from konv.engine.packing import sums_of_vectors
from konv.engine.simd import Variable, fence, fma, loop, minimum, shuffle, splat

KEPT = 24  # vectors of weights, in registers


def spread_window(windows, first, left, taps, lanes):
    """A vector of cells ``first ..`` of a row, in each the number of its window; zeros from window ``left`` on."""
    begin = first // taps
    numbers = windows.vec(begin, lanes, count=left - begin)
    return shuffle(numbers, numbers, [(first + lane) // taps - begin for lane in range(lanes)])


@kernel
def repeat_weights(dtype, lanes, taps):
    """``repeated[row, cell] = w[row, cell % taps]``, a row a filter's channel. One piece; it writes ``lanes`` numbers more."""
    windows = math.lcm(lanes, taps) // taps

    def text(piece, slot, w, repeated, rows):
        for row in loop(rows):
            for j in range(windows):  # what a vector writes too much is overwritten by the next
                for q in range(0, taps, lanes):
                    weights = w.vec(row * taps + q, lanes, count=taps - q)
                    repeated.put((row * windows + j) * taps + q, weights)

    return text, {"w": dtype, "repeated": wide_type(dtype)}


@kernel
def sum_windows(dtype, lanes, filters, vectors, taps):
    """Forward. A piece is (image, block of tiles); a tile is ``filters`` by ``vectors``, whole periods.

    All filters' sums of a lane run over the channels; then ``taps`` lanes are the sum of a window.
    """
    cells = lanes * vectors
    windows, whole = cells // taps, math.lcm(lanes, taps)

    def text(
        piece, slot, x, repeated, bias, y, workspace, slot_size, channels, all_filters, filter_blocks, period, row, outputs,
        tiles, block_tiles, row_blocks,
    ):  # fmt: skip
        sums = workspace.at(slot * slot_size)
        row_block, image = piece % row_blocks, piece // row_blocks
        source = x.at(image * channels * row)
        for t in loop(minimum(block_tiles, tiles - row_block * block_tiles)):
            tile = row_block * block_tiles + t
            first, last = tile * cells, 1 - minimum(tiles - 1 - tile, 1)
            # The cells of the next tile, or of the next image, are asked for
            upcoming = source.at((1 - last) * (first + cells) + last * (channels * row))
            for block in loop(filter_blocks):
                f = minimum(block * filters, all_filters - filters)
                weights = repeated.at(f * channels * period)
                totals = [Variable(sums.zero(lanes)) for _ in range(filters * vectors)]
                for short in (0, 1):  # masks only where the row ends
                    for c in loop(channels * (last if short else 1 - last)):
                        here, begin = source.at(c * row + first), c * period
                        for q in loop(cells // lanes * (1 - minimum(block, 1))):
                            upcoming.prefetch(c * row + q * lanes)
                        for v in range(vectors):
                            count = outputs * taps - first - v * lanes if short else None
                            numbers = here.vec(v * lanes, lanes, count=count)
                            for i in range(filters):
                                total = totals[i * vectors + v]
                                part = weights.vec(i * channels * period + begin + v * lanes % whole, lanes)
                                total.set(fma(numbers, part, total.get()))
                for i in range(filters):
                    for v in range(vectors):
                        sums.put(v * lanes, totals[i * vectors + v].get())
                    target = y.at((image * all_filters + f + i) * outputs + tile * windows)
                    for group in range(0, windows, lanes):
                        rows = []
                        for j in range(lanes):
                            window = min(group + j, windows - 1) * taps
                            parts = [
                                sums.vec(window + q, lanes, count=None if taps - q >= lanes else taps - q)
                                for q in range(0, taps, lanes)
                            ]
                            for part in parts[1:]:
                                parts[0] = parts[0] + part
                            rows.append(parts[0])
                        result = sums_of_vectors(rows, lanes) + splat(bias[f + i], lanes)
                        used = minimum(windows - group, outputs - tile * windows - group)
                        target.put(group, result, count=used)

    return text, {
        "x": dtype,
        "repeated": wide_type(dtype),
        "bias": wide_type(dtype),
        "y": dtype,
        "workspace": wide_type(dtype),
    }


@kernel
def spread_windows(dtype, x_dtype, lanes, filters, taps, streamed):
    """Input gradient. A piece is (block of images, block of periods): dy is spread over the cells of its windows once, then
    each channel's weights stay in registers for them all: dy of a period kept there, weights read from L2, took 1.3 to 1.7
    times as long.

    ``streamed``: past the caches, where rows begin with cache lines.
    """
    period, wide = math.lcm(lanes, taps), wide_type(dtype)
    vectors, windows = period // lanes, period // taps
    at_once = -(-vectors // -(-vectors * filters // KEPT))  # vectors of a period

    def text(
        piece, slot, dy, repeated, x, workspace, slot_size, images, block_images, channels, row, outputs, block_periods,
        row_blocks,
    ):  # fmt: skip
        row_block, first_image = piece % row_blocks, piece // row_blocks * block_images
        used_images, first_period = minimum(block_images, images - first_image), row_block * block_periods
        last = 1 - minimum(row_blocks - 1 - row_block, 1)
        cells = outputs * taps - first_period * period
        whole = minimum(cells // period, block_periods)
        left = (cells - whole * period) * last  # cells of a period that is none
        spread = workspace.at(slot * slot_size)  # [image, period, filter, cell]
        for z in loop(used_images):
            for p in loop(whole + minimum(left, 1)):
                begin = (first_period + p) * windows
                for i in range(filters):
                    line = dy.at(((first_image + z) * filters + i) * outputs + begin)
                    target = spread.at(((z * (block_periods + 1) + p) * filters + i) * period)
                    for v in range(vectors):
                        target.put(v * lanes, spread_window(line, v * lanes, outputs - begin, taps, lanes))
        for c in loop(channels):
            for begin in range(0, vectors, at_once):
                own = range(begin, min(begin + at_once, vectors))
                weights = [
                    [repeated.vec((i * channels + c) * period + v * lanes, lanes) for i in range(filters)] for v in own
                ]
                for z in loop(used_images):
                    target = x.at(((first_image + z) * channels + c) * row + first_period * period)
                    upstream = spread.at(z * (block_periods + 1) * filters * period)
                    for p in loop(whole):
                        for v, factors in zip(own, weights):
                            at = p * filters * period + v * lanes
                            total = upstream.vec(at, lanes) * factors[0]
                            for i in range(1, filters):
                                total = fma(upstream.vec(at + i * period, lanes), factors[i], total)
                            if streamed:
                                target.stream(p * period + v * lanes, total)
                            else:
                                target.put(p * period + v * lanes, total)
            for z in loop(used_images * last):
                target = x.at(((first_image + z) * channels + c) * row + (first_period + whole) * period)
                upstream = spread.at((z * (block_periods + 1) + whole) * filters * period)
                for short in (0, 1):
                    for q in loop(minimum(left % lanes, 1) if short else left // lanes):
                        at = left // lanes * lanes if short else q * lanes
                        total = x.zero(lanes)
                        for i in range(filters):
                            factors = repeated.vec((i * channels + c) * period + at, lanes)
                            total = fma(upstream.vec(at + i * period, lanes), factors, total)
                        target.put(at, total, count=left % lanes if short else None)
                unread = row - outputs * taps
                for q in loop((unread + (lanes - 1)) // lanes):
                    target.put(left + q * lanes, x.zero(lanes), count=unread - q * lanes)
        if streamed:
            fence()

    return text, {"dy": dtype, "repeated": wide, "x": x_dtype, "workspace": wide}
