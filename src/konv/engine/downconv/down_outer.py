"""Kernels of DownConv, backward. A row of x is read once for both of its uses, and its gradient is written once::

    dx[row, k] = sum over c of dh[row, c] * w1[c, k]           dw1[c, k] = sum over rows of dh[row, c] * x[row, k]

w1 and its sums lie as :mod:`konv.engine.downconv.down_kernels` has them, ``[k // lanes][c][lane]``.

(8, 16384, 128) takes 1.3 times as long as copying x past the caches, whose arithmetic alone takes as long as that: with all in
L2 one core reaches .84 of the limit, with x in L3 .8. Lost, none with a gain: k cut so that w1 and sums stay in L1, for 16 to 256
rows; two or more rows' products in turns, pinned, or in two sums each; all rows of x read before dx is written (it helps where
both lie alike in their pages, against which dx is placed, and costs .1 elsewhere); huge pages; the last rows first, which L3 may
still have from forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from konv.engine.compile import kernel
from konv.engine.downconv.down_kernels import steps, tile_rows
from konv.engine.machine import wide_type
from konv.engine.memory import LINE
from konv.engine.simd import ITEMSIZE, Variable, fence, fma, loop, minimum, splat, transpose
from konv.engine.windows import BLOCK_SUM

GROUP = 4  # channels whose sums of dw1 are taken together, where there are too many to keep all


@kernel
def add_rows(dtype, lanes, even):
    """dw1 (channels, features, k1): the sums of all parts, which lie as ``lay_rows`` has them.

    A piece is a channel; if ``even``, a vector of features of all channels, which lie together in a part: lines of one channel,
    an eighth of them, took 1.5 times as long on (8, 16384, 128). Those sums it puts in place of the first part's.
    """

    def added(sums: Any, place: Any, number: int, parts: Any, sums_size: Any) -> None:
        totals = [Variable(sums.zero(lanes)) for _ in range(number)]
        for part in loop(parts):
            for i, total in enumerate(totals):
                total.set(total.get() + sums.vec(part * sums_size + place + i * lanes, lanes))
        for i, total in enumerate(totals):
            sums.put(place + i * lanes, total.get())

    def text(piece, slot, sums, dw, features, k1, parts, channels, sums_size):
        if even:
            for t in loop(k1):
                place = (t * features // lanes + piece) * channels * lanes
                for group in loop(channels // GROUP):
                    added(sums, place + group * GROUP * lanes, GROUP, parts, sums_size)
                for c in loop(channels % GROUP):
                    added(sums, place + (channels // GROUP * GROUP + c) * lanes, 1, parts, sums_size)
            for c in loop(channels):
                for r in loop((k1 + (lanes - 1)) // lanes):
                    first, left = r * lanes, k1 - r * lanes
                    totals = [
                        sums.vec(
                            (((first + minimum(j, left - 1)) * features // lanes + piece) * channels + c) * lanes, lanes
                        )
                        for j in range(lanes)
                    ]
                    for i, numbers in enumerate(transpose(totals)):
                        dw.put((c * features + piece * lanes + i) * k1 + first, numbers, count=left)
            return
        own = dw.at(piece * features * k1)
        for t in loop(k1):
            for q in loop((features + (lanes - 1)) // lanes):
                feature = q * lanes
                k, left = t * features + feature, features - feature
                place, fits = (k // lanes * channels + piece) * lanes, lanes - k % lanes
                total = Variable(sums.zero(lanes))
                for part in loop(parts):
                    some = sums.at(part * sums_size + place)
                    total.set(total.get() + some.vec(k % lanes, lanes, count=minimum(fits, left)))
                    total.set(total.get() + some.vec(channels * lanes - fits, lanes, count=left, start=fits))
                own.scatter(feature * k1 + t, k1, total.get(), left)

    return text, {"sums": wide_type(dtype), "dw": dtype}


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
def stretch(dtype, lanes, rows, vectors, kept, need_x, need_w, past, ahead):
    """dx, and sums of dw1 and db1, of ``rows`` rows at a time. A piece is a part of the rows, and has sums of its own.

    ``kept``: how many channels there are, if all their weights and sums stay in registers; 0 for any number. ``past``: dx
    goes past the caches. ``ahead``: the next rows of x are asked for meanwhile. w1 and sums are
    ``[k // lanes][channel][lane]``; after a part's dw1 lies its db1.
    """

    line = LINE // ITEMSIZE[dtype]

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
            for sample, window in tile_rows(begin, 0, number, number, windows):
                cell = sample * sequence + window * size
                table.append((x.at(cell), dx.at(cell), dh.at(sample * hidden_pitch + hidden_first + window * channels)))
            for k, left in steps(size, lanes * vectors):
                for i in range(0, number * lanes * vectors if ahead and left is None else 0, line):
                    table[0][0].prefetch(number * (size + k) + i, later=True)
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
