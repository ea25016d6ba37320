"""Kernels of DownConv, forward: windows of a sequence to a few hidden numbers each, segments of those to places of the result.

The sequence lies as (B, L, H), so a window is a *row* of neighbouring cells, and so is a segment of hidden numbers::

    hidden[row, c] = max(0, b1[c] + sum over k of x[row, k] * w1[c, k])        few c: k in lanes; else c
    y[segment, g]  = b2[g] + sum over q of hidden[segment, q] * w2[q, g]       g in lanes

w1 lies as ``[k // lanes][c][lane]``, one stream: rows of a power of two bytes would all fall into the same lines of L1, and
were half as fast.

x is asked for a tile ahead, line by line and evenly over the products, however many channels read it again: (8, 16384, 128)
took 1.25 times as long where the CPU alone looked ahead, in as many places as a tile has rows. Lost: to ask ahead row by row (no
gain), into the nearest cache (1.5 times as long), past the caches (1.3), for the tile after the next (1.1), for every second line
(1.1); 3 rows by 8 channels, which read x once (1.0 to 1.3); threads in halves of x of their own (.96 with two, 1.04 with one);
to begin with the last segments, so that backward finds the first ones in the caches (no gain: L3 keeps none of 67 MB).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from konv.engine.compile import kernel
from konv.engine.machine import wide_type
from konv.engine.memory import LINE
from konv.engine.simd import (
    ITEMSIZE,
    Variable,
    beats,
    fma,
    loop,
    maximum,
    minimum,
    pick,
    select,
    shuffle,
    splat,
    transpose,
    within,
)
from konv.engine.windows import BLOCK_SUM


def lane_sums(vectors: Sequence[Any], zero: Any, lanes: int) -> Any:
    """At most ``lanes`` vectors -> one whose lane i is the sum of vector i's lanes, every one added in the same order."""
    low = [i // 2 + (lanes if i % 2 else 0) for i in range(lanes)]
    high = [lanes // 2 + i for i in low]
    sums = list(vectors) + [zero] * (lanes - len(vectors))
    while len(sums) > 1:
        half = len(sums) // 2
        pairs = [(sums[i], sums[i + half]) for i in range(half)]
        sums = [shuffle(a, b, low) + shuffle(a, b, high) for a, b in pairs]
    return sums[0]


def steps(size: Any, step: int) -> Iterator[tuple[Any, Any]]:
    """``(k, None)`` for whole steps below ``size``, then ``(k, what is left)``, if anything is."""
    for q in loop(size // step):
        yield q * step, None
    for _ in loop(minimum(size % step, 1)):
        yield size // step * step, size % step


def tile_rows(first: Any, begin: Any, count: Any, number: int, windows: Any) -> list[tuple[Any, Any]]:
    """(sample, window) of ``number`` rows, from ``begin`` of the ``count`` that follow ``first``; those past the last are it."""
    sample, window = (first + begin) // windows, (first + begin) % windows
    places = [(sample, window)]
    for i in range(1, number):  # a division for each would take as long as several products
        window = window + within(begin + i, count)
        full = 1 - within(window, windows)
        sample, window = sample + full, pick(full, 0, window)
        places.append((sample, window))
    return places


@kernel
def lay_rows(dtype, lanes, even):
    """w1 (channels, features, k1) as ``[block of tile channels][k // lanes][channel][lane]``. A piece is a channel.

    ``even``: features are a multiple of the lanes, so that vectors of both sides meet.
    """

    def text(piece, slot, w, rows, features, k1, tile, block_size):
        block, own = rows.at(piece // tile * block_size), w.at(piece * features * k1)
        if even:
            for q in loop(features // lanes):
                for r in loop((k1 + (lanes - 1)) // lanes):
                    first, left = r * lanes, k1 - r * lanes
                    cells = [own.vec((q * lanes + i) * k1 + first, lanes, count=left) for i in range(lanes)]
                    for j, numbers in enumerate(transpose(cells)):
                        place = (((first + j) * features // lanes + q) * tile + piece % tile) * lanes
                        block.put(place, numbers, count=lanes * within(j, left))
            return
        for t in loop(k1):
            for q in loop((features + (lanes - 1)) // lanes):
                feature = q * lanes
                k, left = t * features + feature, features - feature
                numbers = own.gather(feature * k1 + t, k1, lanes, left)
                place, fits = (k // lanes * tile + piece % tile) * lanes, lanes - k % lanes
                block.put(place + k % lanes, numbers, count=minimum(fits, left))
                block.put(place + tile * lanes - fits, numbers, count=left, start=fits)

    return text, {"w": dtype, "rows": wide_type(dtype)}


def squeeze_rows(
    first, count, x, w1, b1, hidden, windows, sequence, size, channels, block_size, hidden_pitch, hidden_first, *, lanes, rows,
    channels_tile, ahead, line, step=None, rectify=True,
):  # fmt: skip
    """The hidden numbers of ``count`` rows from ``first`` on, ``rows`` x ``channels_tile`` sums at a time.

    Rows are ``step`` numbers apart, if not side by side.
    """
    step = size if step is None else step
    together = lanes // channels_tile  # rows whose sums fit a vector
    zero = w1.zero(lanes)
    for tile in loop((count + (rows - 1)) // rows):
        places = tile_rows(first, tile * rows, count, rows, windows)
        sources = [x.at(sample * sequence + window * step) for sample, window in places]
        targets = [hidden.at(sample * hidden_pitch + hidden_first + window * channels) for sample, window in places]
        for block in loop((channels + (channels_tile - 1)) // channels_tile):
            panel, later = w1.at(block * block_size), sources[0].at((rows + block * ahead) * step)
            sums = [[Variable(zero) for _ in range(channels_tile)] for _ in sources]
            for k, left in steps(size, lanes):
                weights = [panel.vec(k * channels_tile + lanes * c, lanes) for c in range(channels_tile)]
                for i in range(0, ahead * lanes if left is None else 0, line):
                    later.prefetch(k * ahead + i, later=True)
                for source, row_sums in zip(sources, sums):
                    cells = source.vec(k, lanes, count=left)
                    for weight, total in zip(weights, row_sums):
                        total.set(fma(cells, weight, total.get()))
            channel = block * channels_tile
            for begin in range(0, rows, together):
                some = sums[begin : begin + together]
                numbers = lane_sums([total.get() for row_sums in some for total in row_sums], zero, lanes)
                for i, target in enumerate(targets[begin : begin + together]):
                    start = i * channels_tile
                    end = start + minimum(channels_tile, channels - channel)
                    place = channel - start
                    number = numbers + b1.vec(place, lanes, start=start, count=end)
                    if rectify:
                        number = select(beats(number, zero), number, zero)  # NaN stays
                    target.put(place, number, start=start, count=end)


def multiply_rows(
    first, count, a, b, bias, hidden, out, windows, sequence, reduction, out_pitch, out_first, size, pitch, *, lanes, rows,
    vectors, then,
):  # fmt: skip
    """``out[row, j] = bias[j] + sum over q of a[row, q] * b[q, j]`` of ``count`` rows from ``first`` on.

    ``then``: "rectify" it, or "gate" it: 0 where hidden[row, j] is not above 0. b and bias have ``pitch`` columns, a multiple
    of the tile's.
    """
    width = lanes * vectors
    zero = b.zero(lanes)
    for panel in loop(pitch // width):
        for tile in loop((count + (rows - 1)) // rows):
            rows_here = tile_rows(first, tile * rows, count, rows, windows)
            sources = [a.at(sample * sequence + window * reduction) for sample, window in rows_here]
            places = [sample * out_pitch + out_first + window * size for sample, window in rows_here]
            totals = [Variable(bias.vec(panel * width + lanes * j, lanes)) for _ in places for j in range(vectors)]
            for block in loop((reduction + (BLOCK_SUM - 1)) // BLOCK_SUM):
                sums = [Variable(zero) for _ in totals]
                for k in loop(minimum(BLOCK_SUM, reduction - block * BLOCK_SUM)):
                    q = block * BLOCK_SUM + k
                    line = [b.vec(q * pitch + panel * width + lanes * j, lanes) for j in range(vectors)]
                    for i, source in enumerate(sources):
                        factor = splat(source[q], lanes)
                        for total, column in zip(sums[vectors * i :], line):
                            total.set(fma(factor, column, total.get()))
                for total, block_sum in zip(totals, sums):
                    total.set(total.get() + block_sum.get())
            for j in range(vectors):
                column = panel * width + lanes * j
                for i, place in enumerate(places):
                    number, left = totals[vectors * i + j].get(), size - column
                    if then == "rectify":
                        number = select(beats(number, zero), number, zero)  # NaN stays
                    if then == "gate":
                        gate = hidden.vec(place + column, lanes, count=left)
                        number = select(beats(gate, zero), number, zero)
                    out.put(place + column, number, count=left)


@kernel
def squeeze(dtype, lanes, rows, channels_tile, ahead):
    """The hidden numbers: a piece is ``chunk`` rows.

    w1 is ``[block of channels][k // lanes][channel][lane]``, zeros past the last k and the last channel. ``ahead``: rows of the
    next tile that are asked for with each block of channels.
    """
    tile = dict(lanes=lanes, rows=rows, channels_tile=channels_tile, ahead=ahead, line=LINE // ITEMSIZE[dtype])

    def text(
        piece, slot, x, w1, b1, hidden, all_rows, chunk, windows, sequence, size, channels, block_size, hidden_pitch,
        hidden_first,
    ):  # fmt: skip
        first = piece * chunk
        squeeze_rows(
            first, minimum(chunk, all_rows - first), x, w1, b1, hidden, windows, sequence, size, channels, block_size,
            hidden_pitch, hidden_first, **tile,
        )  # fmt: skip

    wide = wide_type(dtype)
    return text, {"x": dtype, "w1": wide, "b1": wide, "hidden": dtype}


@kernel
def compress(dtype, lanes, rows, channels_tile, ahead, second_rows, vectors):
    """As :func:`squeeze`, and the result: a piece is ``chunk`` segments."""
    tile = dict(lanes=lanes, rows=rows, channels_tile=channels_tile, ahead=ahead, line=LINE // ITEMSIZE[dtype])

    def text(
        piece, slot, x, w1, b1, hidden, w2, b2, y, chunk, all_segments, segments, k2, padding, windows, sequence, size,
        channels, block_size, hidden_pitch, hidden_first, outputs, pitch,
    ):  # fmt: skip
        begin = piece * chunk
        end = minimum(begin + chunk, all_segments)
        first, last = (
            segment // segments * windows + minimum(maximum(segment % segments * k2 - padding, 0), windows)
            for segment in (begin, end)
        )
        squeeze_rows(
            first, last - first, x, w1, b1, hidden, windows, sequence, size, channels, block_size, hidden_pitch,
            hidden_first, **tile,
        )  # fmt: skip
        reduction = k2 * channels
        multiply_rows(
            begin, end - begin, hidden, w2, b2, hidden, y, 1, reduction, reduction, outputs, 0, outputs, pitch, lanes=lanes,
            rows=second_rows, vectors=vectors, then="",
        )  # fmt: skip

    wide = wide_type(dtype)
    return text, {"x": dtype, "w1": wide, "b1": wide, "hidden": dtype, "w2": wide, "b2": wide, "y": dtype}


@kernel
def multiply(dtype, out_dtype, lanes, rows, vectors, then):
    """:func:`multiply_rows`; a piece is ``chunk`` rows."""

    def text(
        piece, slot, a, b, bias, hidden, out, all_rows, chunk, windows, sequence, reduction, out_pitch, out_first, size, pitch
    ):  # fmt: skip
        first = piece * chunk
        multiply_rows(
            first, minimum(chunk, all_rows - first), a, b, bias, hidden, out, windows, sequence, reduction, out_pitch,
            out_first, size, pitch, lanes=lanes, rows=rows, vectors=vectors, then=then,
        )  # fmt: skip

    wide = wide_type(dtype)
    return text, {"a": dtype, "b": wide, "bias": wide, "hidden": dtype, "out": out_dtype}
