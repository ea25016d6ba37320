"""Kernels for depthwise layers with two axes on channels-last arrays: channels in lanes, some rows of outputs together.

A tile is one pixel of some neighbouring rows, one vector of channels: a pixel of x is loaded once for all the outputs of its
column that it meets. Vector by vector, then column by column, every row is read and written in the order of memory, which
the CPU's prefetchers follow. Which columns of x and of the kernel a column of outputs meets is a table, so cells outside a row
are left out, and between those of a strided layer's input gradient others are met. Rows outside the image are ``zeros``.

Tiles of one row, several pixels wide, load less but jump from pixel to pixel: 144@56 took twice as long, 1.0 ms instead of .5.
Sizes compiled in, as with channels first, gained nothing over all: 192@28/2 .93 and .85 of the time, 7 x 7 on 192@28 1.4.
Nor did all columns of one vector before the next one's: 7 x 7 .9 to 1.3 of the time, 3 x 3 1.1 to 1.5.
"""

from __future__ import annotations

from typing import Any

from konv.engine.compile import kernel
from konv.engine.machine import wide_type
from konv.engine.simd import Variable, bits, fma, loop, minimum, pick, pinned, transpose, within
from konv.engine.windows import in_vectors


@kernel
def lay_taps(dtype, lanes):
    """``out[vector of channels, tap, lane]`` of w (channels, taps), zeros past the last channel: one piece.

    A vector's are neighbours, or they would evict each other where channels are many. By NumPy 768 channels of 7 x 7 took 17 us
    instead of 7.
    """

    def text(piece, slot, w, out, channels, taps):
        for v in loop((channels + (lanes - 1)) // lanes):
            for t, used in in_vectors(taps, taps, lanes):
                first = v * lanes
                count = lanes if used is None else used
                rows = [w.vec((first + i) * taps + t, lanes, count * within(first + i, channels)) for i in range(lanes)]
                for i, row in enumerate(transpose(rows)):
                    for _ in loop(1 if used is None else within(i, used)):
                        out.put((v * taps + t + i) * lanes, row)

    return text, {"w": dtype, "out": wide_type(dtype)}


@kernel
def add_taps(dtype, out_dtype, lanes):
    """``out[channel, tap] = sum over parts of sums[part, vector of channels, tap, lane]``: one piece."""

    def text(piece, slot, sums, out, parts, channels, taps):
        vectors = (channels + (lanes - 1)) // lanes
        for v in loop(vectors):
            for t, used in in_vectors(taps, taps, lanes):
                counts = [None if used is None else lanes * within(i, used) for i in range(lanes)]
                totals = [Variable(sums.zero(lanes)) for _ in range(lanes)]
                for part in loop(parts):
                    first = ((part * vectors + v) * taps + t) * lanes
                    for i, (total, count) in enumerate(zip(totals, counts)):
                        sums.prefetch(first + (taps + i) * lanes)  # of the next vector
                        total.set(total.get() + sums.vec(first + i * lanes, lanes, count))
                for i, row in enumerate(transpose([total.get() for total in totals])):
                    channel = v * lanes + i
                    out.put(channel * taps + t, row, (lanes if used is None else used) * within(channel, channels))

    return text, {"sums": dtype, "out": out_dtype}


@kernel
def correlate_rows(x_dtype, y_dtype, lanes, tile, meets, taps_high, taps, advance, even, fixed):
    """Forward, or the input gradient of any stride. A piece is (some tiles of rows, a span of channels).

    Parameters
    ----------
    tile : rows of outputs of a tile
    meets : (row of x, row of outputs, row of the kernel) that are multiplied, counted from a tile's first
    taps_high, taps : size of the kernel
    advance : (rows of x, rows of outputs): so many lie between two tiles
    even : whether spans are whole vectors
    fixed : whether an image is one tile, whose meetings are all inside
    """
    lines = sorted({u for u, _, _ in meets})
    forward, back = advance

    def text(
        piece, slot, x, weights, bias, y, zeros, columns, tiles, chunk, span, channels, most,
        x_height, x_width, out_height, out_width, last,
    ):  # fmt: skip
        spans = (channels + (span - 1)) // span
        first_tile, first_channel = piece // spans * chunk, piece % spans * span
        own = minimum(span, channels - first_channel)
        row_tiles = (out_height + (tile - 1)) // tile

        for i in loop(minimum(chunk, tiles - first_tile)):
            image, row = (first_tile + i) // row_tiles, minimum((first_tile + i) % row_tiles * tile, last)
            first = row // back * forward
            read = {u: x.at((image * x_height + first + u) * x_width * channels) for u in lines}
            if not fixed:
                read = {u: pick(within(first + u, x_height), line, zeros) for u, line in read.items()}
            written = [y.at((image * out_height + row + r) * out_width * channels) for r in range(tile)]
            for column in loop(out_width):
                entry = columns.at(column * (1 + 2 * most))
                for block in loop((own + (lanes - 1)) // lanes):
                    channel = first_channel + block * lanes
                    some: dict[str, Any] = {} if even else {"bits": bits(0, channels - channel)}
                    start = bias.vec(channel, lanes, **some)
                    sums = [Variable(start) for _ in range(tile)]
                    for k in loop(entry[0]):
                        at = entry[1 + 2 * k] * channels + channel
                        factor = weights.at(channel * (taps_high * taps) + entry[2 + 2 * k] * lanes)
                        factors = [factor.vec(u * (taps * lanes), lanes) for u in range(taps_high)]
                        for u in lines:
                            values = read[u].vec(at, lanes, **some)
                            for _, r, t in (meet for meet in meets if meet[0] == u):
                                sums[r].set(pinned(fma(factors[t], values, sums[r].get())))
                    for r, line in enumerate(written):
                        put: dict[str, Any] = {} if even else {"count": channels - channel}
                        if back > 1:
                            put = {"count": (channels - channel) * within(row + r, out_height)}
                        line.put(column * channels + channel, sums[r].get(), **put)

    wide = wide_type(x_dtype)
    pointers = {"x": x_dtype, "weights": wide, "bias": wide, "y": y_dtype, "zeros": x_dtype, "columns": "int64"}
    return text, pointers


@kernel
def accumulate_rows(dtype, lanes, tile, meets, taps_high, taps, stride, even, fixed):
    """``sums[part, vector, tap, lane] = sum of dy * x``, ``biases[part, channel] = sum of dy``. A piece is (part, span).

    A part is some tiles of rows of dy. The products of a pixel of each row are summed in registers and added to the sums in
    memory, of which a span's stay in the nearest cache.
    """

    def text(
        piece, slot, x, dy, sums, biases, zeros, columns, tiles, chunk, span, channels, most,
        x_height, x_width, out_height, out_width,
    ):  # fmt: skip
        spans = (channels + (span - 1)) // span
        part, first_channel = piece // spans, piece % spans * span
        first_tile = part * chunk
        own = minimum(span, channels - first_channel)
        row_tiles = out_height // tile + out_height % tile  # the rows that are left are tiles of one
        vectors = (channels + (lanes - 1)) // lanes
        totals, bias = sums.at(part * vectors * (taps_high * taps * lanes)), biases.at(part * channels)
        for block in loop((own + (lanes - 1)) // lanes):
            channel = first_channel + block * lanes
            for t in loop(taps_high * taps):
                totals.put(channel * (taps_high * taps) + t * lanes, totals.zero(lanes))
            bias.put(channel, totals.zero(lanes), channels - channel)

        def add(image, row, count):
            """The products of ``count`` rows."""
            first = row * stride
            met = [meet for meet in meets if meet[1] < count]
            lines = sorted({u for u, _, _ in met})
            read = {u: x.at((image * x_height + first + u) * x_width * channels) for u in lines}
            if not fixed:
                read = {u: pick(within(first + u, x_height), line, zeros) for u, line in read.items()}
            upstream = [dy.at((image * out_height + row + r) * out_width * channels) for r in range(count)]
            for column in loop(out_width):
                entry = columns.at(column * (1 + 2 * most))
                for block in loop((own + (lanes - 1)) // lanes):
                    channel = first_channel + block * lanes
                    some: dict[str, Any] = {} if even else {"bits": bits(0, channels - channel)}
                    put: dict[str, Any] = {} if even else {"count": channels - channel}
                    gradients = [line.vec(column * channels + channel, lanes, **some) for line in upstream]
                    total = gradients[0]
                    for gradient in gradients[1:]:
                        total = total + gradient
                    bias.put(channel, bias.vec(channel, lanes, **some) + total, **put)
                    for k in loop(entry[0]):
                        at = entry[1 + 2 * k] * channels + channel
                        to = totals.at(channel * (taps_high * taps) + entry[2 + 2 * k] * lanes)
                        products: dict[int, Any] = {}
                        for u in lines:
                            values = read[u].vec(at, lanes, **some)
                            for _, r, t in (meet for meet in met if meet[0] == u):
                                if t in products:
                                    products[t] = pinned(fma(gradients[r], values, products[t]))
                                else:
                                    products[t] = gradients[r] * values
                        for t, product in products.items():
                            place = t * (taps * lanes)
                            to.put(place, to.vec(place, lanes) + product)

        for i in loop(minimum(chunk, tiles - first_tile)):
            image, place = (first_tile + i) // row_tiles, (first_tile + i) % row_tiles
            whole = within(place, out_height // tile)
            for _ in loop(whole):
                add(image, place * tile, tile)
            for _ in loop(0 if fixed or tile == 1 else 1 - whole):
                add(image, out_height // tile * tile + place - out_height // tile, 1)

    wide = wide_type(dtype)
    return text, {"x": dtype, "dy": dtype, "sums": wide, "biases": wide, "zeros": dtype, "columns": "int64"}
