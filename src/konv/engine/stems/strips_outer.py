"""The kernel of first layers' weight gradients: vectors of dy times those of x that each tap reads, summed in lanes."""

from __future__ import annotations

from konv.engine.compile import kernel
from konv.engine.machine import wide_type
from konv.engine.packing import sums_of_vectors
from konv.engine.simd import Variable, fma, loop, minimum
from konv.engine.stems.strips_kernels import copy_rows


@kernel
def accumulate_strips(dtype, lanes, filters, taps, stride, tail):
    """``sums[part][block of filters][block of taps][filter, tap]``. A piece is a part of the (image, rows, columns) units.

    A tile is ``filters`` x ``taps``; behind the last tile of taps a block of filters has its sums of dy. ``tail``: rows end
    with a part of a vector. Each unit is summed by itself, then added.
    """
    wide = wide_type(dtype)
    products, biases_size = (-(-n // lanes) * lanes for n in (filters * taps, filters))

    def text(
        piece, slot, x, dy, sums, space, offsets, channels, all_filters, filter_blocks, tap_blocks, height, row, out_height,
        out_row, row_blocks, block_rows, column_blocks, block_columns, lines, pitch, row_stride, pad_height, pad_row, units,
        parts, slot_size,
    ):  # fmt: skip
        copied = space.at(slot * slot_size)
        plane = out_height * out_row
        begin = piece * units // parts
        sums_size = filter_blocks * (tap_blocks * products + biases_size)
        for u in loop((piece + 1) * units // parts - begin):
            unit = begin + u
            column_block, rest = unit % column_blocks, unit // column_blocks
            row_block, image = rest % row_blocks, rest // row_blocks
            first_row, first_column = row_block * block_rows, column_block * block_columns
            rows, columns = minimum(block_rows, out_height - first_row), minimum(block_columns, out_row - first_column)
            copy_rows(
                x, copied, image, (first_row * row_stride - pad_height, first_column * stride - pad_row), (height, row),
                channels, lines, pitch, lanes, stride,
            )  # fmt: skip
            kept = minimum(u, 1) * lanes
            whole = columns // lanes
            for block in loop(filter_blocks):
                corner = first_row * out_row + first_column
                upstream, following = (
                    [
                        dy.at((image * all_filters + minimum(f + i, all_filters - 1)) * plane + corner)
                        for i in range(filters)
                    ]
                    for f in (block * filters, (block + 1) * filters)
                )
                to = sums.at(piece * sums_size + block * (tap_blocks * products + biases_size))
                for t in loop(tap_blocks):
                    cells = [offsets[t * taps + k] for k in range(taps)]
                    totals = [[Variable(copied.zero(lanes)) for _ in range(taps)] for _ in range(filters)]
                    for r in loop(rows):
                        line = copied.at(r * row_stride * (stride * pitch))
                        for v in loop(whole):
                            place = r * out_row + v * lanes
                            gradients = [at.vec(place, lanes) for at in upstream]
                            for at in following:
                                at.prefetch(place, later=True)
                            _add(totals, gradients, [line.at(v * lanes + cell) for cell in cells], lanes, None)
                        if tail:
                            count, last = columns - whole * lanes, whole * lanes
                            gradients = [at.vec(r * out_row + last, lanes, count=count) for at in upstream]
                            _add(totals, gradients, [line.at(last + cell) for cell in cells], lanes, count)
                    _keep(to.at(t * products), [total.get() for line in totals for total in line], kept, lanes)
                biases = [Variable(copied.zero(lanes)) for _ in range(filters)]
                for r in loop(rows):
                    for v in loop((columns + (lanes - 1)) // lanes):
                        for total, at in zip(biases, upstream):
                            here = at.vec(r * out_row + v * lanes, lanes, count=columns - v * lanes)
                            total.set(total.get() + here)
                _keep(to.at(tap_blocks * products), [total.get() for total in biases], kept, lanes)

    return text, {"x": dtype, "dy": dtype, "sums": wide, "space": wide, "offsets": "int64"}


def _add(totals, gradients, lines, lanes, count):
    for k, line in enumerate(lines):
        pixels = line.vec(0, lanes, count=count)
        for total, gradient in zip(totals, gradients):
            total[k].set(fma(gradient, pixels, total[k].get()))


def _keep(to, vectors, kept, lanes):
    """Add the sums of the lanes of some vectors to neighbouring numbers, or where ``kept`` is 0 write them."""
    for i in range(0, len(vectors), lanes):
        rows = vectors[i : i + lanes]
        total = sums_of_vectors(rows + [to.zero(lanes)] * (lanes - len(rows)), lanes)
        to.put(i, total + to.vec(i, lanes, count=kept))
