"""The kernel of first layers: rows of x in strips of vectors, times the weights of some filters."""

from __future__ import annotations

from konv.engine.compile import kernel
from konv.engine.machine import wide_type
from konv.engine.simd import Variable, beats, deinterleave, fma, loop, maximum, minimum, pinned, select, splat, within


@kernel
def correlate_strips(dtype, out, lanes, filters, vectors, stride, narrow, rectified):
    """A piece is (image, block of rows, block of columns).

    ``narrow``: the last block of columns is narrower than a tile, so that its vectors overlap; or, "masked", than a vector.
    ``rectified``: 0 is written for what is not positive.
    """
    wide, columns_of_tile = wide_type(dtype), lanes * vectors

    def text(
        piece, slot, x, w, bias, y, space, offsets, channels, all_filters, filter_blocks, taps, height, row, out_height,
        out_row, row_blocks, block_rows, column_blocks, block_columns, lines, pitch, row_stride, pad_height, pad_row, slot_size,
    ):  # fmt: skip
        column_block, rest = piece % column_blocks, piece // column_blocks
        row_block, image = rest % row_blocks, rest // row_blocks
        first_row, first_column = row_block * block_rows, column_block * block_columns
        rows, columns = minimum(block_rows, out_height - first_row), minimum(block_columns, out_row - first_column)
        copied = space.at(slot * slot_size)
        corner = first_row * row_stride - pad_height, first_column * stride - pad_row
        copy_rows(x, copied, image, corner, (height, row), channels, lines, pitch, lanes, stride)

        for block in loop(filter_blocks):
            f = minimum(block * filters, all_filters - filters)
            start = [splat(bias[f + i], lanes) for i in range(filters)]
            for r in loop(rows):
                for t in loop((columns + (columns_of_tile - 1)) // columns_of_tile):
                    column = t * columns_of_tile
                    if not narrow:  # the last tile ends with the last column
                        column = minimum(column, columns - columns_of_tile)
                    places = [v * lanes for v in range(vectors)]
                    if narrow and narrow != "masked":
                        places = [minimum(place, columns - column - lanes) for place in places]
                    pixels = copied.at(r * row_stride * (stride * pitch) + column)
                    to = ((image * all_filters + f) * out_height + (first_row + r)) * out_row + first_column + column
                    for i in range(filters):
                        for v in range(vectors):
                            y.prefetch(to + i * out_height * out_row + columns_of_tile + v * lanes, write=True)
                    sums = [[Variable(copied.zero(lanes)) for _ in range(vectors)] for _ in range(filters)]
                    for k in loop(taps):
                        at = pixels.at(offsets[k])
                        factors = [splat(w[(f + i) * taps + k], lanes) for i in range(filters)]
                        for v, place in enumerate(places):
                            cells = at.vec(place, lanes)
                            for line, factor in zip(sums, factors):
                                line[v].set(pinned(fma(factor, cells, line[v].get())))
                    for i, totals in enumerate(sums):
                        for place, total in zip(places, totals):
                            count = columns - column - place if narrow == "masked" else None
                            result = total.get() + start[i]
                            if rectified:
                                zero = copied.zero(lanes)
                                result = select(beats(result, zero), result, zero)
                            y.put(to + i * out_height * out_row + place, result, count=count)

    return text, {"x": dtype, "w": dtype, "bias": wide, "y": out, "space": wide, "offsets": "int64"}


def copy_rows(x, copied, image, corner, shape, channels, lines, pitch, lanes, stride):
    """``copied[channel][line][phase][cell]``: rows from a corner of x, zeros beside and below it.

    Every ``stride``-th cell belongs to one of ``stride`` phases, of ``pitch`` cells each.
    """
    (top, left), (height, row) = corner, shape
    above = maximum(minimum(lines, height - top), 0)  # the end of x
    for c in loop(channels):
        for r in loop(above):
            inside = within(top + r, height)
            source = x.at(((image * channels + c) * height + (top + r)) * row + left)
            target = copied.at((c * lines + r) * (stride * pitch))
            for q in loop(pitch // lanes):
                _copy(source, target, q * lanes, left, row, inside, pitch, lanes, stride)
        for r in loop(lines - above):
            target = copied.at((c * lines + above + r) * (stride * pitch))
            for q in loop(stride * pitch // lanes):
                target.put(q * lanes, target.zero(lanes))


def _copy(source, target, cell, left, row, inside, pitch, lanes, stride):
    """``lanes`` cells of each of the ``stride`` sequences that every ``stride``-th cell of a row makes, zeros beside the row."""
    if stride in (1, 2, 4):
        read = []
        for i in range(stride):
            at = cell * stride + i * lanes
            read.append(source.vec(at, lanes, count=(row - left - at) * inside, start=0 - left - at))
        parts = deinterleave(read, lanes)
    else:
        parts = []
        for phase in range(stride):
            at = cell * stride + phase
            count = (row - left - at + (stride - 1)) // stride * inside
            parts.append(source.gather(at, stride, lanes, count=count, start=(0 - left - at + (stride - 1)) // stride))
    for phase, part in enumerate(parts):
        target.put(phase * pitch + cell, part)
