"""Kernels for channels-last arrays, depthwise or in small groups: neighbouring channels in lanes.

Every pixel's channels lie side by side, so a vector of x, of the weights and of y are one load, and any stride is a distance.
In a group of n every filter meets n channels: those of each pixel are turned within the group, n times, and multiplied with
n vectors of weights. A tile is some neighbouring outputs of a row: a pixel of x is loaded once for all of them that it
meets. Pixels outside the image are read from ``zeros``.

All factors of a row of the kernel read at once, ahead of its products, went to the stack where they are many: 31 took 1.25 times
as long, 15 1.5. Spans of channels one after the other, of segments of a row, gained nothing (256 of 31 taps .95 to 1.4).
"""

from __future__ import annotations

import itertools
from typing import Any

from konv.engine.compile import kernel
from konv.engine.machine import wide_type
from konv.engine.simd import Variable, bits, fma, loop, minimum, pick, pinned, shuffle, within

AHEAD = 2048  # elements: what lies so far on is asked for, hundreds of cycles before it is needed


@kernel
def correlate_channels(x_dtype, y_dtype, lanes, group, tile, taps, stride, apart, cut, short, woven, ahead):
    """Forward, or a phase of the input gradient. A piece is some rows of outputs.

    Parameters
    ----------
    group : channels, and filters, of a group
    tile : outputs of a tile
    taps : columns of the kernel, ``apart`` cells from one to the next
    stride : cells from one output's window to the next
    cut : whether the sources tell columns too: of kernels with so many that they are not taken together
    short : (first cell of the first window, length) of rows that are one tile: the cells outside are left out; or None
    woven : whether even and odd channels are vectors of their own, as bfloat16 is read and written fastest; weights and
        bias then lie so, too: vector after vector of even channels, each with that of the odd ones behind it. Lost: reading each
        by ``alternate``, 1.15 times as long; weight gradients by it, whose vectors follow each other, 1.4
    ahead : whether to ask for what comes next: where images have one row, the machine does so unasked (1.15 times as fast)
    """
    cells, parts = cells_of(tile, taps, stride, apart, short), range(2 if woven else 1)
    block_lanes = lanes * len(parts)

    def text(
        piece, slot, x, weights, bias, y, zeros, sources,
        lines, chunk, source_count, channels, x_depth, x_height, x_width, depth_step, row_step, shift,
        out_depth, out_height, out_width, y_start, y_image, y_depth, y_row, y_step, y_ahead,
    ):  # fmt: skip
        first_line = piece * chunk

        def tile_of(image, depth, row, column, to_row, whole):
            """One tile, all channels; ``whole``: no cell of its rows lies outside the image."""
            first_cell = column * stride + shift
            inside = [1 if whole else within(first_cell + cell, x_width) for cell in cells]
            blocks = (channels + (block_lanes - 1)) // block_lanes
            pitch = blocks * block_lanes if woven else channels  # of weights
            for block in loop(blocks):
                channel = block * block_lanes
                some = bits(0, channels - channel)
                own = None if woven else some
                if ahead:
                    fetch(image, depth, row, column, to_row, channel)
                starts = [bias.vec(channel + p * lanes, lanes, bits=own) for p in parts]
                sums = [[Variable(start) for start in starts] for _ in range(tile)]
                for source in loop(source_count):
                    d = depth * depth_step + sources[source * 3]
                    h = row * row_step + sources[source * 3 + 1]
                    first = first_cell + sources[source * 3 + 2] if cut else first_cell
                    exists = within(d, x_depth) * within(h, x_height)
                    corner = x.at((((image * x_depth + d) * x_height + h) * x_width + first) * channels)
                    factors: dict[tuple[int, int], list[Any]] = {}

                    def factor(t, p, source=source, channel=channel, own=own, factors=factors):
                        """Of tap t, read where it is first used: of many taps only so many are kept as a tile has outputs."""
                        if (t, p) not in factors:
                            first = (source * taps + t) * group
                            factors[t, p] = [
                                weights.vec((first + r) * pitch + channel + p * lanes, lanes, bits=own)
                                for r in range(group)
                            ]
                        return factors[t, p]

                    if whole:  # of a row that does not exist, every pixel is the same zeros
                        line, step = pick(exists, corner, zeros), channels * exists
                    for cell, there in zip(cells, inside):
                        if whole:
                            pixel = line.at(cell * step)
                        else:
                            there = within(first + cell, x_width) if cut else there
                            pixel = pick(there * exists, corner.at(cell * channels), zeros)
                        found = (
                            pixel.both(channel, lanes, bits=some) if woven else [pixel.vec(channel, lanes, bits=some)]
                        )
                        for p in parts:
                            values = turns(found[p], group, lanes)
                            for q in range(tile):
                                t, rest = divmod(cell - q * stride, apart)
                                if rest == 0 and 0 <= t < taps:
                                    for weight, turned in zip(factor(t, p), values):
                                        sums[q][p].set(pinned(fma(weight, turned, sums[q][p].get())))
                for q in range(tile):
                    to, found = to_row + (column + q) * y_step + channel, [total.get() for total in sums[q]]
                    if woven:
                        y.weave(to, *found, channels - channel)
                    else:
                        y.put(to, *found, channels - channel)

        def fetch(image, depth, row, column, to_row, channel):
            """Ask for the lines that lie ``AHEAD`` of those that a tile reads first, its last row's, and of its outputs."""
            bottom = row * row_step + sources[source_count * 3 - 2]
            last = column * stride + shift + (cells_of(tile, taps, stride, apart)[-1] - tile * stride + 1)
            at = (((image * x_depth + depth) * x_height + bottom) * x_width + last) * channels + channel
            for u in range(stride):  # as many rows as columns are new, commonly
                for q in range(tile * stride):
                    x.prefetch(at + (q - u * x_width) * channels + AHEAD)
            for q in range(tile):
                y.prefetch(to_row + (column + q) * y_step + channel + y_ahead, write=True)

        for i in loop(minimum(chunk, lines - first_line)):
            line = first_line + i
            row, rest = line % out_height, line // out_height
            depth, image = rest % out_depth, rest // out_depth
            to_row = y_start + image * y_image + depth * y_depth + row * y_row
            for column_tile in loop((out_width + (tile - 1)) // tile):
                column = minimum(column_tile * tile, out_width - tile)  # the last tile ends with the last output
                first_cell = column * stride + shift
                if cut or short:
                    tile_of(image, depth, row, column, to_row, bool(short))
                else:
                    whole = within(first_cell, x_width) * within(first_cell + cells[-1], x_width)
                    for _ in loop(whole):
                        tile_of(image, depth, row, column, to_row, True)
                    for _ in loop(1 - whole):
                        tile_of(image, depth, row, column, to_row, False)

    wide = wide_type(x_dtype)
    pointers = {"x": x_dtype, "weights": wide, "bias": wide, "y": y_dtype, "zeros": x_dtype, "sources": "int64"}
    return text, pointers


@kernel
def accumulate_channels(dtype, lanes, group, tile, taps_high, taps_wide, stride, apart, short, ahead):
    """``sums[part, tap, turn, channel] += sum of dy * x``, ``biases[part, channel] += sum of dy``. A piece is a part: rows of dy.

    ``taps_high`` x ``taps_wide`` x ``group`` sums are kept while a ``segment`` of a row of dy goes by, then added to those in
    memory. ``ahead``: as of :func:`correlate_channels`; 1.2 to 1.4 times as fast.
    """
    wide = wide_type(dtype)

    def text(
        piece, slot, x, dy, sums, biases, zeros, sources,
        lines, chunk, source_count, channels, x_depth, x_height, x_width, depth_step, row_step, shift,
        out_depth, out_height, out_width, taps, tap_tiles, segment, x_ahead, dy_ahead,
    ):  # fmt: skip
        first_line = piece * chunk
        halves = 1 if taps_high * taps_wide * group >= 8 else 2  # enough sums to keep the multipliers busy
        names = list(itertools.product(range(taps_high), range(taps_wide), range(group)))

        def add(row_sums, some, channel, dy_row, corners, first_cell, column, count, whole):
            """Add the products of ``count`` neighbouring outputs; ``whole``: no cell of theirs lies outside a row."""
            if ahead:
                for q in range(count):
                    dy_row.prefetch((column + q) * channels + channel + dy_ahead)
                for corner, _ in corners[-stride:]:  # as many rows as columns are new, commonly
                    for q in range(count * stride):
                        corner.prefetch((column * stride + q) * channels + channel + x_ahead)
            upstream = [dy_row.vec((column + q) * channels + channel, lanes, bits=some) for q in range(count)]
            for q, values in enumerate(upstream):
                row_sums[q % 2].set(row_sums[q % 2].get() + values)
            for cell in cells_of(count, taps_wide, stride, apart, short):
                at = column * stride + first_cell + cell
                for k, (corner, exists) in enumerate(corners):
                    if whole:
                        pixel = pick(exists, corner, zeros).at(at * (channels * exists))
                    else:
                        pixel = pick(within(at, x_width) * exists, corner.at(at * channels), zeros)
                    values = turns(pixel.vec(channel, lanes, bits=some), group, lanes)
                    for q in range(count):
                        t, rest = divmod(cell - q * stride, apart)
                        if rest == 0 and 0 <= t < taps_wide:
                            for r, turned in enumerate(values):
                                total = row_sums[k, t, r, q % halves]
                                total.set(fma(upstream[q], turned, total.get()))

        for i in loop(minimum(chunk, lines - first_line)):
            line = first_line + i
            row, rest = line % out_height, line // out_height
            depth, image = rest % out_depth, rest // out_depth
            dy_row = dy.at(line * out_width * channels)
            for part in loop((out_width + (segment - 1)) // segment):
                start = part * segment
                columns = minimum(segment, out_width - start)
                for source in loop(source_count):
                    d = depth * depth_step + sources[source * 3]
                    corners = []
                    for k in range(taps_high):
                        h = row * row_step + sources[source * 3 + 1] + k
                        exists = within(d, x_depth) * within(h, x_height)
                        corners.append((x.at(((image * x_depth + d) * x_height + h) * x_width * channels), exists))
                    for tap_tile in loop(tap_tiles):
                        first_tap = tap_tile * taps_wide
                        first_cell = first_tap * apart + shift
                        for block in loop((channels + (lanes - 1)) // lanes):
                            channel = block * lanes
                            some = bits(0, channels - channel)
                            row_sums: dict[Any, Variable] = {
                                (*name, half): Variable(sums.zero(lanes)) for name in names for half in range(halves)
                            }
                            row_sums.update({half: Variable(sums.zero(lanes)) for half in range(2)})  # of the bias
                            tiles = columns // tile
                            for q in loop(tiles):
                                place = dy_row, corners, first_cell, start + q * tile, tile
                                if short:
                                    add(row_sums, some, channel, *place, True)
                                else:
                                    first = first_cell + (start + q * tile) * stride
                                    last = first + (tile - 1) * stride + (taps_wide - 1) * apart
                                    whole = within(first, x_width) * within(last, x_width)
                                    for _ in loop(whole):
                                        add(row_sums, some, channel, *place, True)
                                    for _ in loop(1 - whole):
                                        add(row_sums, some, channel, *place, False)
                            for q in loop(columns % tile if tile > 1 and not short else 0):
                                add(
                                    row_sums,
                                    some,
                                    channel,
                                    dy_row,
                                    corners,
                                    first_cell,
                                    start + tiles * tile + q,
                                    1,
                                    False,
                                )
                            for k, t, r in names:
                                tap = ((piece * source_count + source) * taps_high + k) * taps + first_tap + t
                                tap = tap * group + r
                                used = (channels - channel) * within(first_tap + t, taps)
                                total = sums.vec(tap * channels + channel, lanes, count=used)
                                for half in range(halves):
                                    total = total + row_sums[k, t, r, half].get()
                                sums.put(tap * channels + channel, total, used)
                            used = (channels - channel) * within(source + tap_tile, 1)  # once a segment
                            to = piece * channels + channel
                            total = biases.vec(to, lanes, count=used) + row_sums[0].get() + row_sums[1].get()
                            biases.put(to, total, used)

    return text, {"x": dtype, "dy": dtype, "sums": wide, "biases": wide, "zeros": dtype, "sources": "int64"}


def cells_of(tile, taps, stride, apart, short=None):
    """The cells of a row, counted from the first window's first, that a tile's windows have; of a short row those inside."""
    cells = sorted({q * stride + t * apart for q in range(tile) for t in range(taps)})
    return [cell for cell in cells if 0 <= short[0] + cell < short[1]] if short else cells


def turns(vector, group, lanes):
    """The lanes of every group turned by 0, 1, ...: lane i of turn r holds channel (i + r) % group of its group."""
    orders = [[lane // group * group + (lane % group + r) % group for lane in range(lanes)] for r in range(group)]
    return [vector, *(shuffle(vector, vector, order) for order in orders[1:])]
