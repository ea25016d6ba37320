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
)
from konv.engine.winograd_tiles import constants, points_to_strip, read_strip, strip_to_points, write_strip

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
def winograd(lanes, vectors, group, depth, filters_from, layout):
    """The convolution of a block of tiles with a part of the panels of filters, which are a piece.

    A block is ``block_rows`` rows (of all images, one after the other) by ``block_columns`` columns of tiles. Three steps,
    all in the slot's workspace: inputs to points, products summed over channels, and points to outputs.

    ``filters_from`` is "points" where :func:`filters_to_points` ran before: then the inputs' points of all channels are
    there, and panels pass by, each with its 36 sums. U is 4 times as large as the weights: where that is too much,
    "taps" and "flipped taps" keep the sums of all panels of the part instead, and chunks of channels pass by.
    """
    width = lanes * vectors

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
        first_panel = part * part_panels
        own_panels = minimum(part_panels, panels - first_panel)
        inputs = slots.at(slot * slot_size)
        strip, all_sums, own_filters = inputs.at(strip_at), inputs.at(sums_at), inputs.at(filters_at)
        number = constants(bias.zero(lanes))

        def transform_inputs(chunk, to):
            """Lanes past the last channel are summed by nobody."""
            for r in loop(rows):
                image, top = (first_row + r) // tile_rows, (first_row + r) % tile_rows * OUTPUTS
                for v in loop((minimum(chunk_channels, channels - chunk * chunk_channels) + (lanes - 1)) // lanes):
                    read_strip(
                        x, strip, lanes, layout, SPAN, pitch, image, chunk * chunk_channels + v * lanes, channels, x_height,
                        x_width, top - pad_height, first_column * OUTPUTS - pad_width, columns * OUTPUTS + (TAPS - 1),
                    )  # fmt: skip
                    tiles = to.at(r * columns * depth + v * lanes)
                    strip_to_points(strip, tiles, lanes, input_column, SPAN, pitch, columns, depth, input_plane, number)

        def multiply(chunk, values, taps, sums):
            """One matrix product (tiles, channels) @ (channels, filters) for each point."""
            for point in loop(POINTS):
                for g in loop((rows * columns + (group - 1)) // group):
                    _add_products(
                        values.at(point * input_plane + g * (group * depth)), taps.at(point * filter_plane), filter_plane,
                        sums.at(point * sums_plane + g * (group * width)),
                        minimum(chunk_channels, channels - chunk * chunk_channels), depth, group, lanes, vectors, chunk * lanes,
                    )  # fmt: skip

        def transform_sums(panel, sums):
            for j in loop(minimum(vectors, (filters - panel * width + (lanes - 1)) // lanes)):
                first = panel * width + lanes * j
                offset = bias.vec(first, lanes)
                for r in loop(rows):
                    image, top = (first_row + r) // tile_rows, (first_row + r) % tile_rows * OUTPUTS
                    tiles = sums.at(r * columns * width + lanes * j)
                    points_to_strip(tiles, strip, lanes, pitch, columns, width, sums_plane, offset, number)
                    write_strip(
                        y, strip, lanes, layout, pitch, image, first, filters, out_height, out_width, top,
                        first_column * OUTPUTS, columns * OUTPUTS,
                    )  # fmt: skip

        if filters_from == "points":
            for chunk in loop(chunks):
                transform_inputs(chunk, inputs.at(chunk * POINTS * input_plane))
            for p in loop(own_panels):
                panel = first_panel + p
                for chunk in loop(chunks):
                    taps = points.at((panel * chunks + chunk) * POINTS * filter_plane)
                    multiply(chunk, inputs.at(chunk * POINTS * input_plane), taps, all_sums)
                transform_sums(panel, all_sums)
        else:
            for chunk in loop(chunks):
                transform_inputs(chunk, inputs)
                for p in loop(own_panels):
                    _transform_filters(
                        w, own_filters, lanes, vectors, filters_from == "flipped taps", (first_panel + p) * width, filters,
                        filter_stride, chunk * chunk_channels * channel_stride, channel_stride,
                        minimum(chunk_channels, channels - chunk * chunk_channels), filter_plane,
                    )  # fmt: skip
                    multiply(chunk, inputs, own_filters, all_sums.at(p * POINTS * sums_plane))
            for p in loop(own_panels):
                transform_sums(first_panel + p, all_sums.at(p * POINTS * sums_plane))

    return text, dict.fromkeys(("x", "w", "bias", "y", "points", "slots"), "float32")


def _add_products(values, taps, plane, sums, count, depth, group, lanes, vectors, kept):
    """``sums[i, f] (+)= sum over c of values[i, c] * taps[c, f]`` for ``group`` tiles i; added to what is there if ``kept``.

    Both come from L2 or L3. Unasked for, 256@14 takes 1.3 times as long.
    """
    width = lanes * vectors
    accumulators = [Variable(sums.zero(lanes)) for _ in range(group * vectors)]
    for c in loop(count):
        values.prefetch(group * depth + c * LINE)  # the next group's
        for j in range(0, width, LINE):
            taps.prefetch(plane + c * width + j)  # the next point's
        row = [taps.vec(c * width + lanes * j, lanes) for j in range(vectors)]
        for i in range(group):
            cell = splat(values[c + depth * i], lanes)
            for j in range(vectors):
                a = accumulators[vectors * i + j]
                a.set(fma(cell, row[j], a.get()))
    for i, a in enumerate(accumulators):
        sums.put(lanes * i, a.get() + sums.vec(lanes * i, lanes, count=kept))


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
