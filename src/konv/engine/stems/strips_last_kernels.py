"""The kernel of first layers, channels last: filters in lanes, rows of x where they lie together."""

from __future__ import annotations

from konv.engine.compile import kernel
from konv.engine.machine import wide_type
from konv.engine.packing import panel_of_weights, row_of_numbers
from konv.engine.simd import Variable, fma, loop, maximum, minimum, pinned, splat, within


@kernel
def correlate_strips_last(dtype, out, lanes, vectors, run, step, narrow, whole):
    """A piece is (image, block of rows, block of columns).

    A tile is ``run`` outputs of a row, whose windows begin ``step`` numbers apart, by ``vectors`` of filters. ``narrow``: the
    last block of columns is narrower than that; its last output is computed more than once. ``whole``: filters fill the
    vectors.
    """
    wide, width = wide_type(dtype), lanes * vectors

    def text(
        piece, slot, x, w, bias, y, space, offsets, places, filters, panels, taps, channels, height, row, out_height, out_row,
        block_rows, row_blocks, block_columns, column_blocks, window_rows, pitch, row_stride, stride, pad_height, pad_row,
        slot_size, panels_start, panel_size,
    ):  # fmt: skip
        column_block, rest = piece % column_blocks, piece // column_blocks
        row_block, image = rest % row_blocks, rest // row_blocks
        first_row, first_column = row_block * block_rows, column_block * block_columns
        rows, columns = minimum(block_rows, out_height - first_row), minimum(block_columns, out_row - first_column)
        copied, own_panels = space.at(slot * slot_size), space.at(slot * slot_size + panels_start)
        left = (first_column * stride - pad_row) * channels

        def copy(i):
            h = first_row * row_stride + i - pad_height
            source, inside = x.at((image * height + h) * row * channels + left), within(h, height)
            row_of_numbers(source, copied.at(i * pitch), 0 - left, (row * channels - left) * inside, pitch, lanes)

        before = maximum(window_rows - row_stride, 0)
        for i in loop(before):
            copy(i)
        for p in loop(panels):
            panel_of_weights(
                w, p * width * taps, filters - p * width, taps, 1, 0, taps, lanes * taps, places,
                own_panels.at(p * panel_size), lanes, vectors, None,
            )  # fmt: skip

        for r in loop(rows):
            for i in loop(minimum(row_stride, window_rows)):
                copy(before + r * row_stride + i)
            coming = x.at(
                (image * height + first_row * row_stride - pad_height + before + (r + 1) * row_stride) * row * channels
            )
            for p in loop(panels):
                f, panel = p * width, own_panels.at(p * panel_size)
                start = [
                    bias.vec(f + lanes * j, lanes, count=None if whole else filters - f - lanes * j)
                    for j in range(vectors)
                ]
                for t in loop((columns + (run - 1)) // run):
                    if narrow:
                        cells = [minimum(t * run + i, columns - 1) for i in range(run)]
                    else:  # the last tile ends with the last column
                        first = minimum(t * run, columns - run)
                        cells = [first + i for i in range(run)]
                    pixels = [copied.at(r * row_stride * pitch + cell * step) for cell in cells]
                    to = y.at(((image * out_height + (first_row + r)) * out_row + first_column) * filters + f)
                    sums = [[Variable(start[j]) for j in range(vectors)] for _ in cells]
                    for k in loop(taps):
                        factors, offset = [panel.vec(k * width + lanes * j, lanes) for j in range(vectors)], offsets[k]
                        ahead = minimum(k, run * vectors - 1)  # a vector of the next tile
                        coming.prefetch(minimum((t * taps + k) * lanes, row_stride * row * channels))
                        cell = cells[0] + run + ahead // vectors
                        to.prefetch(cell * filters + ahead % vectors * lanes, write=True)
                        for line, at in zip(sums, pixels):
                            value = splat(at[offset], lanes)
                            for total, factor in zip(line, factors):
                                total.set(pinned(fma(value, factor, total.get())))
                    for line, cell in zip(sums, cells):
                        for j, total in enumerate(line):
                            count = None if whole else filters - f - lanes * j
                            to.put(cell * filters + lanes * j, total.get(), count=count)

    return text, {"x": dtype, "w": dtype, "bias": wide, "y": out, "space": wide, "offsets": "int64", "places": "int64"}
