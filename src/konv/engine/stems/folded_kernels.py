"""The kernel of first layers' input gradients: products of dy's pixels with all taps, in lanes, folded line by line."""

from __future__ import annotations

from konv.engine.compile import kernel
from konv.engine.machine import wide_type
from konv.engine.simd import (
    Variable,
    bits,
    fma,
    interleave,
    loop,
    maximum,
    minimum,
    pinned,
    shuffle,
    splat,
    transpose,
    within,
)


@kernel
def fold_products(dtype, out, lanes, rows, vectors, steps, stride, channels):
    """A piece is (image, block of rows of x, block of its columns), each in units of the stride.

    ``products[tap][pixel]`` of some rows of dy are computed in tiles of ``rows`` taps by ``vectors`` of pixels, and each
    row is added to the lines of x that it meets: ``lines[line][channel][phase][cell]``, a ring. ``steps``: how far the taps
    of a kernel row lie from the first. ``channels``: of x with channels last, whose dy is transposed for each tile; with channels
    first 0, and dy is read where it lies.
    """
    wide, tile = wide_type(dtype), lanes * vectors
    phases = [[(j, step // stride) for j, step in enumerate(steps) if step % stride == p] for p in range(stride)]

    def text(
        piece, slot, dy, w, dx, space, all_channels, filters, taps, tap_tiles, kernel_rows, dilated_rows, row_stride, height,
        row, out_height, out_row, pad_height, pad_row, row_blocks, block_rows, column_blocks, block_columns, read_columns,
        rows_before, columns_before, unit_rows, units, ring, pitch, products_pitch, products_start, panel_start, slot_size,
    ):  # fmt: skip
        column_block, rest = piece % column_blocks, piece // column_blocks
        row_block, image = rest % row_blocks, rest // row_blocks
        first_row, first_column = row_block * block_rows, column_block * block_columns
        begin = minimum(maximum(first_column - columns_before, 0), out_row)
        width = maximum(minimum(first_column + read_columns, out_row) - begin, 0)
        space = space.at(slot * slot_size)
        products, panel = space.at(products_start), space.at(panel_start)
        plane, line_size = out_height * out_row, stride * pitch
        zero = space.zero(lanes)
        for i in loop(ring * all_channels * line_size // lanes):
            space.put(i * lanes, zero)

        for u in loop(units):
            low = first_row - rows_before + u * unit_rows
            first = minimum(maximum(low, 0), out_height)
            here = maximum(minimum(minimum(low + unit_rows, first_row + block_rows), out_height) - first, 0)
            count = here * width
            pixel = first * out_row + begin
            if channels:
                upstream = dy.at((image * plane + pixel) * filters)
            else:
                upstream = dy.at(image * filters * plane + pixel)
            for q in loop((count + (tile - 1)) // tile):
                left = count - q * tile
                if channels:
                    _lay_transposed(upstream.at(q * tile * filters), panel, filters, left, lanes, vectors)
                for t in loop(tap_tiles):
                    factors = w.at(t * filters * rows)
                    sums = [[Variable(zero) for _ in range(vectors)] for _ in range(rows)]
                    for f in loop(filters):
                        if channels:
                            cells = [panel.vec(f * tile + v * lanes, lanes) for v in range(vectors)]
                            for v in range(vectors):  # what is transposed next
                                upstream.prefetch(((q + 1) * filters + f) * tile + v * lanes)
                        else:
                            at = upstream.at(f * plane + q * tile)
                            cells = [at.vec(v * lanes, lanes, count=left - v * lanes) for v in range(vectors)]
                            for v in range(vectors):
                                at.prefetch(2 * tile + v * lanes)
                        for k, totals in enumerate(sums):
                            factor = splat(factors[f * rows + k], lanes)
                            for total, cell in zip(totals, cells):
                                total.set(pinned(fma(factor, cell, total.get())))
                    tap = minimum(t * rows, taps - rows)  # the last tile ends with the last tap
                    for k, totals in enumerate(sums):
                        for v, total in enumerate(totals):
                            products.put((tap + k) * products_pitch + q * tile + v * lanes, total.get())

            for r in loop(unit_rows):
                o = low + r
                start = maximum(o, 0) * row_stride % ring
                computed = within(o - first, here)
                for q in loop(pitch // lanes * computed):
                    # lanes whose pixel, so many columns before, is one of dy
                    before = begin - first_column - q * lanes
                    masks = {step: bits(before + step, before + step + width) for met in phases for _, step in met}
                    for i in loop(kernel_rows):
                        turn = start + i * dilated_rows
                        turn = turn - ring * within(turn - ring, ring)
                        for c in loop(all_channels):
                            target = space.at((turn * all_channels + c) * line_size + q * lanes)
                            given = products.at(
                                (c * kernel_rows + i) * len(steps) * products_pitch + (o - first) * width - before
                            )
                            for p, met in enumerate(phases):
                                number = target.vec(p * pitch, lanes)
                                for j, step in met:
                                    number = number + given.vec(j * products_pitch - step, lanes, bits=masks[step])
                                if met:
                                    target.put(p * pitch, number)
                # No later row meets the lines of this one.
                mine = within(o - first_row, block_rows)
                for k in loop(row_stride * within(o, o + 1)):
                    turn = start + k
                    turn = turn - ring * within(turn - ring, ring)
                    line, h = space.at(turn * all_channels * line_size), o * row_stride + k - pad_height
                    inside = within(h, height) * mine
                    for q in loop(pitch // lanes):
                        cell = (first_column + q * lanes) * stride - pad_row
                        if channels:
                            parts = [
                                _taken(line, (c * stride + p) * pitch + q * lanes, lanes)
                                for p in range(stride)
                                for c in range(channels)
                            ]
                            _write(
                                dx.at((image * height + h) * row * channels), cell, parts, row, inside, lanes, channels
                            )
                        else:
                            for c in loop(all_channels):
                                parts = [
                                    _taken(line, (c * stride + p) * pitch + q * lanes, lanes) for p in range(stride)
                                ]
                                to = dx.at(((image * all_channels + c) * height + h) * row)
                                _write(to, cell, parts, row, inside, lanes, 1)

    return text, {"dy": dtype, "w": wide, "dx": out, "space": wide}


def _lay_transposed(upstream, panel, filters, left, lanes, vectors):
    """``panel[filter][pixel]`` from (pixel, filter); pixels past the last repeat it."""
    for v in range(vectors):
        pixels = [maximum(minimum(v * lanes + i, left - 1), 0) for i in range(lanes)]
        for b in loop((filters + (lanes - 1)) // lanes):
            block = [upstream.vec(i * filters + b * lanes, lanes, count=filters - b * lanes) for i in pixels]
            for i, line in enumerate(transpose(block)):
                panel.put((b * lanes + i) * (lanes * vectors) + v * lanes, line)


def _taken(line, place, lanes):
    """Numbers of the ring, which begin at zero again."""
    vector = line.vec(place, lanes)
    line.put(place, line.zero(lanes))
    return vector


def _write(to, cell, parts, row, inside, lanes, channels):
    """Phases and channels of some cells to a row of x, lane by lane in turns."""
    for k, vector in enumerate(_woven(parts, lanes)):
        first = cell * channels + k * lanes
        to.put(first, vector, count=(row * channels - first) * inside, start=0 - first)


def _woven(parts, lanes):
    """:func:`interleave` of any number of vectors."""
    n = len(parts)
    if n & (n - 1) == 0:
        return interleave(parts, lanes)
    woven = []
    for k in range(n):
        places = range(k * lanes, (k + 1) * lanes)
        mixed = shuffle(parts[0], parts[0], [i // n for i in places])
        for s in range(1, n):
            order = [lanes + i // n if i % n == s else lane for lane, i in enumerate(places)]
            mixed = shuffle(mixed, parts[s], order)
        woven.append(mixed)
    return woven
