"""Kernels of DownConv: windows of a sequence to a few hidden numbers each, and segments of those to places of the result.

The sequence lies as (B, L, H), so a window is a *row* of neighbouring cells, and so is a segment of hidden numbers::

    hidden[row, c] = max(0, b1[c] + sum over k of x[row, k] * w1[c, k])        few c: k in lanes; else c
    y[segment, g]  = b2[g] + sum over q of hidden[segment, q] * w2[q, g]       g in lanes

Back, a row of x is read once for both of its uses, and its gradient is written once::

    dx[row, k] = sum over c of dh[row, c] * w1[c, k]           dw1[c, k] = sum over rows of dh[row, c] * x[row, k]

w1 and its sums lie as ``[k // lanes][c][lane]``, one stream: rows of a power of two bytes would all fall into the same
lines of L1, and were half as fast.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from konv.engine.compile import kernel
from konv.engine.machine import wide_type
from konv.engine.simd import Variable, beats, fence, fma, loop, minimum, select, shuffle, splat
from konv.engine.windows import BLOCK_SUM

GROUP = 4  # channels whose sums of dw1 are taken together, where there are too many to keep all


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


@kernel
def lay_rows(dtype, lanes):
    """w1 (channels, features, k1) as ``[block of tile channels][k // lanes][channel][lane]``. A piece is a channel."""

    def text(piece, slot, w, rows, features, k1, tile, block_size):
        block = rows.at(piece // tile * block_size)
        for t in loop(k1):
            for q in loop((features + (lanes - 1)) // lanes):
                feature = q * lanes
                k, left = t * features + feature, features - feature
                numbers = w.gather((piece * features + feature) * k1 + t, k1, lanes, left)
                place, fits = (k // lanes * tile + piece % tile) * lanes, lanes - k % lanes
                block.put(place + k % lanes, numbers, count=minimum(fits, left))
                block.put(place + tile * lanes - fits, numbers, count=left, start=fits)

    return text, {"w": dtype, "rows": wide_type(dtype)}


@kernel
def add_rows(dtype, lanes):
    """dw1 (channels, features, k1): the sums of all parts, which lie as :func:`lay_rows` does. A piece is a channel."""

    def text(piece, slot, sums, dw, features, k1, parts, channels, sums_size):
        for t in loop(k1):
            for q in loop((features + (lanes - 1)) // lanes):
                feature = q * lanes
                k, left = t * features + feature, features - feature
                place, fits = (k // lanes * channels + piece) * lanes, lanes - k % lanes
                total = Variable(sums.zero(lanes))
                for part in loop(parts):
                    own = sums.at(part * sums_size + place)
                    total.set(total.get() + own.vec(k % lanes, lanes, count=minimum(fits, left)))
                    total.set(total.get() + own.vec(channels * lanes - fits, lanes, count=left, start=fits))
                dw.scatter((piece * features + feature) * k1 + t, k1, total.get(), left)

    return text, {"sums": wide_type(dtype), "dw": dtype}


@kernel
def squeeze(dtype, lanes, rows, channels_tile):
    """The hidden numbers: ``rows`` x ``channels_tile`` sums at a time. A piece is ``chunk`` rows; rows past its last are it.

    w1 is ``[block of channels][k // lanes][channel][lane]``, zeros past the last k and the last channel.
    """
    together = lanes // channels_tile  # rows whose sums fit a vector

    def text(
        piece, slot, x, w1, b1, hidden, all_rows, chunk, windows, sequence, size, channels, block_size, hidden_pitch,
        hidden_first,
    ):  # fmt: skip
        first = piece * chunk
        count = minimum(chunk, all_rows - first)
        for tile in loop((count + (rows - 1)) // rows):
            sources, targets = [], []
            for i in range(rows):
                row = first + minimum(tile * rows + i, count - 1)
                sample, window = row // windows, row % windows
                sources.append(x.at(sample * sequence + window * size))
                targets.append(hidden.at(sample * hidden_pitch + hidden_first + window * channels))
            for block in loop((channels + (channels_tile - 1)) // channels_tile):
                panel = w1.at(block * block_size)
                sums = [[Variable(w1.zero(lanes)) for _ in range(channels_tile)] for _ in sources]
                for k, left in steps(size, lanes):
                    weights = [panel.vec(k * channels_tile + lanes * c, lanes) for c in range(channels_tile)]
                    for source, row_sums in zip(sources, sums):
                        cells = source.vec(k, lanes, count=left)
                        for weight, total in zip(weights, row_sums):
                            total.set(fma(cells, weight, total.get()))
                zero, channel = w1.zero(lanes), block * channels_tile
                for begin in range(0, rows, together):
                    some = sums[begin : begin + together]
                    numbers = lane_sums([total.get() for row_sums in some for total in row_sums], zero, lanes)
                    for i, target in enumerate(targets[begin : begin + together]):
                        start = i * channels_tile
                        end = start + minimum(channels_tile, channels - channel)
                        place = channel - start
                        number = numbers + b1.vec(place, lanes, start=start, count=end)
                        target.put(
                            place, select(beats(number, zero), number, zero), start=start, count=end
                        )  # NaN stays

    wide = wide_type(dtype)
    return text, {"x": dtype, "w1": wide, "b1": wide, "hidden": dtype}


@kernel
def multiply(dtype, out_dtype, lanes, rows, vectors, then):
    """``out[row, j] = bias[j] + sum over q of a[row, q] * b[q, j]``; a piece is ``chunk`` rows.

    ``then``: "rectify" it, or "gate" it: 0 where hidden[row, j] is not above 0. b and bias have ``pitch`` columns, a multiple
    of the tile's.
    """
    width = lanes * vectors

    def text(
        piece, slot, a, b, bias, hidden, out, all_rows, chunk, windows, sequence, reduction, out_pitch, out_first, size, pitch
    ):  # fmt: skip
        first = piece * chunk
        count = minimum(chunk, all_rows - first)
        zero = b.zero(lanes)
        for panel in loop(pitch // width):
            for tile in loop((count + (rows - 1)) // rows):
                sources, places = [], []
                for i in range(rows):
                    row = first + minimum(tile * rows + i, count - 1)
                    sample, window = row // windows, row % windows
                    sources.append(a.at(sample * sequence + window * reduction))
                    places.append(sample * out_pitch + out_first + window * size)
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

    wide = wide_type(dtype)
    return text, {"a": dtype, "b": wide, "bias": wide, "hidden": dtype, "out": out_dtype}


@kernel
def sum_products(dtype, lanes, rows, vectors):
    """``sums[part, q, j] = sum over some rows of a[row, q] * b[row, j]``, and below them the sum of ``b[row, j]`` itself.

    A piece is (part of the rows, ``rows`` neighbouring q); q past the last are the last.
    """
    width = lanes * vectors

    def text(piece, slot, a, b, sums, all_rows, parts, tiles, reduction, size):
        tile, part = piece % tiles, piece // tiles
        first = part * all_rows // parts
        count = (part + 1) * all_rows // parts - first
        chosen = [minimum(tile * rows + i, reduction - 1) for i in range(rows)]
        out = sums.at(part * (reduction + 1) * size)
        for panel in loop((size + (width - 1)) // width):
            lefts = [size - panel * width - lanes * j for j in range(vectors)]
            totals = [[Variable(sums.zero(lanes)) for _ in lefts] for _ in range(rows + 1)]
            for block in loop((count + (BLOCK_SUM - 1)) // BLOCK_SUM):
                begin = first + block * BLOCK_SUM
                some = [[Variable(sums.zero(lanes)) for _ in lefts] for _ in range(rows + 1)]
                for r in loop(minimum(BLOCK_SUM, first + count - begin)):
                    source, target = a.at((begin + r) * reduction), b.at((begin + r) * size + panel * width)
                    columns = [target.vec(lanes * j, lanes, count=left) for j, left in enumerate(lefts)]
                    for q, row_sums in zip(chosen, some):
                        factor = splat(source[q], lanes)
                        for column, total in zip(columns, row_sums):
                            total.set(fma(factor, column, total.get()))
                    for column, total in zip(columns, some[rows]):
                        total.set(total.get() + column)
                for row_totals, row_sums in zip(totals, some):
                    for total, part_sum in zip(row_totals, row_sums):
                        total.set(total.get() + part_sum.get())
            for q, row_totals in zip(chosen, totals):
                for j, total in enumerate(row_totals):
                    out.put(q * size + panel * width + lanes * j, total.get(), count=lefts[j])
            for _ in loop(1 - minimum(tile, 1)):
                for j, total in enumerate(totals[rows]):
                    out.put(reduction * size + panel * width + lanes * j, total.get(), count=lefts[j])

    return text, {"a": dtype, "b": dtype, "sums": wide_type(dtype)}


@kernel
def stretch(dtype, lanes, rows, vectors, kept, need_x, need_w, past):
    """dx, and sums of dw1 and db1, of ``rows`` rows at a time. A piece is a part of the rows, and has sums of its own.

    ``kept``: how many channels there are, if all their weights and sums stay in registers; 0 for any number. ``past``: dx
    goes past the caches. w1 and sums are ``[k // lanes][channel][lane]``; after a part's dw1 lies its db1.
    """

    def text(
        piece, slot, x, dh, w1, dx, sums, all_rows, parts, windows, sequence, size, channels, sums_at, sums_size,
        hidden_pitch, hidden_first,
    ):  # fmt: skip
        first = piece * all_rows // parts
        count = (piece + 1) * all_rows // parts - first
        own = sums.at(piece * sums_size)
        if need_w:
            for q in loop(sums_size // lanes):
                own.put(q * lanes, sums.zero(lanes))

        def place(k: Any, channel: Any, j: int) -> Any:
            return (k + lanes * j) * channels + lanes * channel

        def row_gradient(row: tuple[Any, Any, Any], k: Any, left: Any, gradient: Sequence[Any]) -> None:
            for j, number in enumerate(gradient):
                if past and left is None:
                    row[1].stream(k + lanes * j, number)
                else:
                    row[1].put(k + lanes * j, number, count=None if left is None else left - lanes * j)

        def cells_of(row: tuple[Any, Any, Any], k: Any, left: Any) -> list[Any]:
            return [
                row[0].vec(k + lanes * j, lanes, count=None if left is None else left - lanes * j)
                for j in range(vectors)
            ]

        def add_products(table: Sequence[Any], k: Any, left: Any, channel: Any, number: int) -> None:
            """dw1 of ``number`` channels, over the rows of the table."""
            places = [[place(k, channel + c, j) for j in range(vectors)] for c in range(number)]
            totals = [[own.vec(p, lanes) for p in some] for some in places]
            for row in table:
                cells = cells_of(row, k, left)
                for c in range(number):
                    factor = splat(row[2][channel + c], lanes)
                    totals[c] = [fma(factor, cell, total) for cell, total in zip(cells, totals[c])]
            for some, channel_totals in zip(places, totals):
                for p, total in zip(some, channel_totals):
                    own.put(p, total)

        def together(table: Sequence[Any], k: Any, left: Any) -> None:
            """Both gradients, every number in a register."""
            each = [(c, j) for c in range(kept) for j in range(vectors)]
            weights = {(c, j): w1.vec(place(k, c, j), lanes) for c, j in each}
            totals = {(c, j): own.vec(place(k, c, j), lanes) for c, j in each}
            for row in table:
                factors = [splat(row[2][c], lanes) for c in range(kept)]
                cells = cells_of(row, k, left)
                gradient = [w1.zero(lanes)] * vectors
                for c, j in each:
                    totals[c, j] = fma(factors[c], cells[j], totals[c, j])
                    gradient[j] = fma(factors[c], weights[c, j], gradient[j])
                row_gradient(row, k, left, gradient)
            for c, j in each:
                own.put(place(k, c, j), totals[c, j])

        def apart(table: Sequence[Any], k: Any, left: Any) -> None:
            """One gradient, or both of many channels, one after the other."""
            if need_x:
                gradients = [[Variable(w1.zero(lanes)) for _ in range(vectors)] for _ in table]
                for c in loop(channels):
                    weights = [w1.vec(place(k, c, j), lanes) for j in range(vectors)]
                    for row, gradient in zip(table, gradients):
                        factor = splat(row[2][c], lanes)
                        for weight, total in zip(weights, gradient):
                            total.set(fma(factor, weight, total.get()))
                for row, gradient in zip(table, gradients):
                    row_gradient(row, k, left, [total.get() for total in gradient])
            if need_w:
                for group in loop(channels // GROUP):
                    add_products(table, k, left, group * GROUP, GROUP)
                for c in loop(channels % GROUP):
                    add_products(table, k, left, channels // GROUP * GROUP + c, 1)

        def rows_from(begin: Any, number: int) -> None:
            table = []
            for i in range(number):
                sample, window = (begin + i) // windows, (begin + i) % windows
                cell = sample * sequence + window * size
                table.append((x.at(cell), dx.at(cell), dh.at(sample * hidden_pitch + hidden_first + window * channels)))
            for k, left in steps(size, lanes * vectors):
                (together if kept and need_x and need_w else apart)(table, k, left)
            if need_w:
                for block in loop((channels + (lanes - 1)) // lanes):
                    at, left = block * lanes, channels - block * lanes
                    total = own.vec(sums_at + at, lanes)
                    for row in table:
                        total = total + row[2].vec(at, lanes, count=left)
                    own.put(sums_at + at, total)

        for t in loop(count // rows):
            rows_from(first + t * rows, rows)
        for t in loop(count % rows):
            rows_from(first + count // rows * rows + t, 1)
        if past:
            fence()

    wide = wide_type(dtype)
    return text, {"x": dtype, "dh": wide, "w1": wide, "dx": dtype, "sums": wide}
