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

AHEAD = 4  # channels, that are asked for before they are read


def _spread(windows, first, left, taps, lanes):
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
    """Input gradient. A piece is (image, block of periods): what a window's cells get is spread over them, then weighted.

    ``streamed``: past the caches, where rows begin with cache lines.
    """
    period = math.lcm(lanes, taps)
    vectors, windows = period // lanes, period // taps

    def text(piece, slot, dy, repeated, x, channels, row, outputs, periods, block_periods, row_blocks):
        row_block, image = piece % row_blocks, piece // row_blocks
        first_period = row_block * block_periods
        for p in loop(minimum(block_periods, periods - first_period)):
            at = first_period + p
            first, last = at * period, 1 - minimum(periods - 1 - at, 1)
            upstream = [dy.at((image * filters + i) * outputs + at * windows) for i in range(filters)]
            spread = [
                [_spread(line, v * lanes, outputs - at * windows, taps, lanes) for v in range(vectors)]
                for line in upstream
            ]
            for short in (0, 1):
                for c in loop(channels * (last if short else 1 - last)):
                    target = x.at((image * channels + c) * row + first)
                    for v in range(vectors):
                        total = x.zero(lanes)
                        for i in range(filters):
                            weights = repeated.vec((i * channels + c) * period + v * lanes, lanes)
                            total = fma(spread[i][v], weights, total)
                        if streamed and not short:
                            target.stream(v * lanes, total)
                        else:
                            target.put(v * lanes, total, count=row - first - v * lanes if short else None)
                    if short:  # cells that no window reads
                        unread = row - outputs * taps
                        for q in loop((unread + (lanes - 1)) // lanes):
                            x.put(
                                (image * channels + c + 1) * row - unread + q * lanes,
                                x.zero(lanes),
                                count=unread - q * lanes,
                            )
        if streamed:
            fence()

    return text, {"dy": dtype, "repeated": wide_type(dtype), "x": x_dtype}


@kernel
def sum_repeats(dtype, lanes, filters, taps):
    """Weight gradient. A piece is (part of the units, a unit being a block of images, or of a row's periods).

    dy of a unit is spread over the cells of its windows; products are summed lane by lane over all units, cells a period
    apart in the end.
    """
    wide = wide_type(dtype)
    period = math.lcm(lanes, taps)
    vectors, windows = period // lanes, period // taps

    def text(
        piece, slot, dy, x, sums, workspace, slot_size, parts, units, images, block_images, channels, all_filters,
        filter_blocks, row, outputs, periods, block_periods, row_blocks,
    ):  # fmt: skip
        totals = workspace.at(slot * slot_size)  # [block of filters, channel, filter, cell of a period]
        spread = totals.at(filter_blocks * channels * filters * period)  # [image, period, filter, cell]
        for i in loop(filter_blocks * channels * (filters * vectors)):
            totals.put(i * lanes, totals.zero(lanes))
        first_unit = piece * units // parts
        for u in loop((piece + 1) * units // parts - first_unit):
            row_block, first_image = (first_unit + u) % row_blocks, (first_unit + u) // row_blocks * block_images
            first_period = row_block * block_periods
            used_images, used = (
                minimum(block_images, images - first_image),
                minimum(block_periods, periods - first_period),
            )
            last = 1 - minimum(periods - first_period - used, 1)
            for block in loop(filter_blocks):
                f = minimum(block * filters, all_filters - filters)
                for z in loop(used_images):
                    for p in loop(used):
                        for i in range(filters):
                            at = (first_period + p) * windows
                            line = dy.at(((first_image + z) * all_filters + f + i) * outputs + at)
                            target = spread.at(((z * block_periods + p) * filters + i) * period)
                            for v in range(vectors):
                                target.put(v * lanes, _spread(line, v * lanes, outputs - at, taps, lanes))
                for c in loop(channels):
                    kept = totals.at((block * channels + c) * (filters * period))
                    added = [Variable(kept.vec(q * lanes, lanes)) for q in range(filters * vectors)]
                    for z in loop(used_images):
                        source = x.at(((first_image + z) * channels + c) * row + first_period * period)
                        for short in (0, 1):
                            for q in loop(last if short else used - last):
                                p = used - 1 if short else q
                                here, factors = (
                                    source.at(p * period),
                                    spread.at((z * block_periods + p) * filters * period),
                                )
                                for v in range(vectors):
                                    count = outputs * taps - (first_period + p) * period - v * lanes if short else None
                                    here.prefetch(AHEAD * row + v * lanes)
                                    numbers = here.vec(v * lanes, lanes, count=count)
                                    for i in range(filters):
                                        total = added[i * vectors + v]
                                        total.set(fma(numbers, factors.vec(i * period + v * lanes, lanes), total.get()))
                    for q, total in enumerate(added):
                        kept.put(q * lanes, total.get())
        for block in loop(filter_blocks):
            f = minimum(block * filters, all_filters - filters)
            for c in loop(channels):
                for i in range(filters):
                    source = totals.at(((block * channels + c) * filters + i) * period)
                    target = sums.at(((piece * all_filters + f + i) * channels + c) * taps)
                    for q in range(0, taps, lanes):
                        count = taps - q
                        total = source.vec(q, lanes, count=count)
                        for j in range(1, windows):
                            total = total + source.vec(j * taps + q, lanes, count=count)
                        target.put(q, total, count=count)

    return text, {"dy": dtype, "x": dtype, "sums": wide, "workspace": wide}
