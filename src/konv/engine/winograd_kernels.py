"""Winograd's kernels of forward and input gradient: points of the filters, and everything else in one piece a block."""

from __future__ import annotations

from konv.engine.compile import kernel
from konv.engine.simd import Variable, fma, loop, minimum, splat, transpose
from konv.engine.winograd_formulas import (
    OUTPUTS,
    POINTS,
    SPAN,
    TAPS,
    both_axes,
    filter_column,
    input_column,
    output_column,
)
from konv.engine.winograd_tiles import constants, read_strip, strip_to_points, write_strip

DEPTH = 64  # channels summed before they are added up: 128 is no faster, and the error 1.4 times as large
AHEAD = 8  # channels between asking for taps and using them
LINE = 16  # float32 numbers in a cache line
SPREAD = 16  # cells between the planes of the points beyond their size: at powers of two they would evict each other


@kernel
def filters_to_points(lanes, vectors, flipped):
    """``U[point, channel, filters] = G w G^T`` for a panel of filters and a chunk of channels, which are a piece."""
    width = lanes * vectors

    def text(
        piece, slot, w, points, filter_stride, channel_stride, filters, channels, chunks, chunk_channels, plane
    ):  # fmt: skip
        panel, chunk = piece // chunks, piece % chunks
        first = chunk * chunk_channels
        _transform_filters(
            w, points.at(piece * POINTS * plane), lanes, vectors, flipped, panel * width, filters, filter_stride,
            first * channel_stride, channel_stride, minimum(chunk_channels, channels - first), plane,
        )  # fmt: skip

    return text, {"w": "float32", "points": "float32"}


@kernel
def winograd(lanes, vectors, group, filters_from, layout):
    """The convolution of a block of tiles with a part of the panels of filters, which are a piece.

    A block is ``block_rows`` rows (of all images, one after the other) by ``block_columns`` columns of tiles. Three steps,
    all in the slot's workspace: inputs to points, for each panel the products summed over channels (``group`` tiles by
    ``vectors * lanes`` filters in registers), and points to outputs. Inputs and outputs pass through a *strip*: the lines
    of one row of tiles, a vector of channels for each of their cells, transposed from x and to y.

    ``filters_from`` is "points" where :func:`filters_to_points` ran before; "taps" and "flipped taps" transform each chunk
    just before its use, which is better where there is one block: U is 4 times as large as the weights.
    """
    width = lanes * vectors
    ahead = filters_from == "points"

    def text(
        piece, slot, x, w, bias, y, points, slots, slot_size, strip_at, sums_at, filters_at,
        channels, x_height, x_width, pad_height, pad_width, filters, out_height, out_width,
        tile_rows, tile_columns, all_rows, block_rows, block_columns, column_blocks, part_panels, panels, parts,
        chunks, chunk_channels, input_plane, sums_plane, filter_plane, pitch, filter_stride, channel_stride,
    ):  # fmt: skip
        part, block = piece % parts, piece // parts
        first_row, first_column = block // column_blocks * block_rows, block % column_blocks * block_columns
        rows = minimum(block_rows, all_rows - first_row)
        columns = minimum(block_columns, tile_columns - first_column)
        inputs = slots.at(slot * slot_size)
        strip, sums, own_filters = inputs.at(strip_at), inputs.at(sums_at), inputs.at(filters_at)
        zero = bias.zero(lanes)

        number = constants(zero)

        # Inputs to points. Lanes past the last channel are summed by nobody.
        for r in loop(rows):
            image, top = (first_row + r) // tile_rows, (first_row + r) % tile_rows * OUTPUTS
            for block_of_channels in loop((channels + (lanes - 1)) // lanes):
                c = block_of_channels * lanes
                read_strip(
                    x, strip, lanes, layout, SPAN, pitch, image, c, channels, x_height, x_width, top - pad_height,
                    first_column * OUTPUTS - pad_width, columns * OUTPUTS + (TAPS - 1),
                )  # fmt: skip
                chunk = c // chunk_channels
                to = inputs.at(chunk * POINTS * input_plane + r * columns * DEPTH + (c - chunk * chunk_channels))
                strip_to_points(strip, to, lanes, input_column, SPAN, pitch, columns, DEPTH, input_plane, number)

        # Products, summed over channels: one matrix product (tiles, channels) @ (channels, filters) for each point.
        groups = (rows * columns + (group - 1)) // group
        for p in loop(minimum(part_panels, panels - part * part_panels)):
            panel = part * part_panels + p
            for chunk in loop(chunks):
                count = minimum(chunk_channels, channels - chunk * chunk_channels)
                if ahead:
                    chunk_filters = points.at((panel * chunks + chunk) * POINTS * filter_plane)
                else:
                    chunk_filters = own_filters
                    _transform_filters(
                        w, own_filters, lanes, vectors, filters_from == "flipped taps", panel * width, filters, filter_stride,
                        chunk * chunk_channels * channel_stride, channel_stride, count, filter_plane,
                    )  # fmt: skip
                kept = chunk * lanes  # the first chunk starts at zero
                for point in loop(POINTS):
                    row = chunk_filters.at(point * filter_plane)
                    for g in loop(groups):
                        tile = inputs.at((chunk * POINTS + point) * input_plane + g * (group * DEPTH))
                        target = sums.at(point * sums_plane + g * (group * width))
                        accumulators = [Variable(zero) for _ in range(group * vectors)]
                        for c in loop(count):
                            # They come from L2 or L3: unasked for, 256@14 takes 1.3 times as long.
                            tile.prefetch(group * DEPTH + c * LINE)  # the next group's inputs
                            for j in range(0, width, LINE):
                                row.prefetch(filter_plane + c * width + j)  # the next point's filters
                            values = [row.vec(c * width + lanes * j, lanes) for j in range(vectors)]
                            for i in range(group):
                                cell = splat(tile[c + DEPTH * i], lanes)
                                for j in range(vectors):
                                    a = accumulators[vectors * i + j]
                                    a.set(fma(cell, values[j], a.get()))
                        for i, a in enumerate(accumulators):
                            target.put(lanes * i, a.get() + target.vec(lanes * i, lanes, count=kept))
            # Points to outputs.
            for j in loop(minimum(vectors, (filters - panel * width + (lanes - 1)) // lanes)):
                first = panel * width + lanes * j
                offset = bias.vec(first, lanes)
                for r in loop(rows):
                    image, top = (first_row + r) // tile_rows, (first_row + r) % tile_rows * OUTPUTS
                    for tile in loop(columns):
                        source = sums.at((r * columns + tile) * width + lanes * j)
                        values = [
                            [source.vec((SPAN * i + k) * sums_plane, lanes) for k in range(SPAN)] for i in range(SPAN)
                        ]
                        for i, row in enumerate(both_axes(output_column, values, number)):
                            for k, value in enumerate(row):
                                strip.put((i * pitch + tile * OUTPUTS + k) * lanes, value + offset)
                    write_strip(
                        y, strip, lanes, layout, pitch, image, first, filters, out_height, out_width, top,
                        first_column * OUTPUTS, columns * OUTPUTS,
                    )  # fmt: skip

    return text, dict.fromkeys(("x", "w", "bias", "y", "points", "slots"), "float32")


def _transform_filters(
    w, points, lanes, vectors, flipped, first, filters, filter_stride, start, channel_stride, count, plane
):
    """``points[point, c, filters] = G w G^T`` for the filters of a panel and ``count`` channels.

    A filter's 9 taps are read as vectors and transposed: a tenth of the time that gathering each tap takes. Lanes past
    the last filter repeat it.
    """
    number, taps = constants(w.zero(lanes)), TAPS * TAPS

    for j in loop(vectors):
        sources = [minimum(first + j * lanes + i, filters - 1) * filter_stride + start for i in range(lanes)]
        coming = [sources[0] + t for t in range(0, lanes * taps + LINE, LINE)] if flipped else sources
        for c in loop(count):
            # Taps to come. Unasked for: 1.3-1.5 times the time for one image of 512@7, 3.2 times for its gradient, whose
            # channels lie a filter apart.
            for line in coming:
                w.prefetch(line + (c + AHEAD) * channel_stride)
            values = []
            for t in range(0, taps, lanes):
                values += transpose([w.vec(s + c * channel_stride + t, lanes, count=taps - t) for s in sources])
            values = values[:taps][:: -1 if flipped else 1]
            rows = [values[TAPS * i : TAPS * (i + 1)] for i in range(TAPS)]
            for i, row in enumerate(both_axes(filter_column, rows, number)):
                for k, value in enumerate(row):
                    points.put((SPAN * i + k) * plane + (c * vectors + j) * lanes, value)
