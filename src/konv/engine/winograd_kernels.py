"""Winograd's kernels of forward and input gradient: points of the filters, and everything else in one piece a block."""

from __future__ import annotations

from konv.engine.compile import kernel
from konv.engine.machine import wide_type
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
from konv.engine.winograd_tiles import (
    Images,
    Strip,
    constants,
    first_cell,
    points_to_strip,
    read_strip,
    strip_to_points,
    write_strip,
)

AHEAD = 8  # channels between asking for taps and using them
SPREAD = 16  # cells between the planes of the points beyond their size: at powers of two they would evict each other


@kernel
def filters_to_points(wide, lanes, vectors, order):
    """``U[point, channel, filters] = G w G^T`` for a panel of filters and a chunk of channels, which are a piece.

    ``order`` is "taps" where a filter's taps lie together; "flipped taps" those of an input gradient; "taps of planes" those
    of a 3-D kernel.
    """
    width = lanes * vectors

    def text(
        piece, slot, w, points, filter_stride, channel_stride, filters, channels, chunks, channel_chunks, chunk_channels, plane
    ):  # fmt: skip
        panel, chunk = piece // chunks, piece % chunks
        first = chunk % channel_chunks * chunk_channels
        taps = _taps_of_chunk(chunk, chunks, channel_chunks, order)
        panel_to_points(
            w, points.at(piece * POINTS * plane), lanes, vectors, order, panel * width, filters, filter_stride,
            first * channel_stride + taps, channel_stride, minimum(chunk_channels, channels - first), plane,
        )  # fmt: skip

    return text, {"w": wide, "points": wide}


@kernel
def winograd(dtype, out, lanes, vectors, group, depth, filters_from, layout, dilated):
    """The convolution of a block of tiles with a part of the panels of filters, which are a piece.

    A block is ``block_rows`` rows (of all images, one after the other) by ``block_columns`` columns of tiles. Three steps,
    all in the slot's workspace: inputs to points, products summed over channels, and points to outputs.

    ``filters_from`` is "points" where :func:`filters_to_points` ran before: then the inputs' points of all channels are
    there, and panels pass by, each with its 36 sums. U is 4 times as large as the weights: where that is too much,
    the other orders of taps keep the sums of all panels of the part instead, and chunks of channels pass by.
    """
    width = lanes * vectors

    def text(
        piece, slot, x, w, bias, y, points, slots, slot_size, strip_at, sums_at, filters_at,
        channels, x_depth, x_height, x_width, pad_depth, pad_height, pad_width, filters, out_depth, out_height, out_width,
        depth_step, row_step, column_step,
        tile_rows, tile_columns, all_rows, block_rows, block_columns, column_blocks, part_panels, panels, parts,
        chunks, channel_chunks, chunk_channels, input_plane, sums_plane, filter_plane, pitch, filter_stride, channel_stride,
    ):  # fmt: skip
        part, block = piece % parts, piece // parts
        first_row, first_column = block // column_blocks * block_rows, block % column_blocks * block_columns
        rows = minimum(block_rows, all_rows - first_row)
        columns = minimum(block_columns, tile_columns - first_column)
        first_panel = part * part_panels
        own_panels = minimum(part_panels, panels - first_panel)
        inputs = slots.at(slot * slot_size)
        strip = Strip(inputs.at(strip_at), pitch, *((row_step, column_step) if dilated else ()))
        all_sums, own_filters = inputs.at(sums_at), inputs.at(filters_at)
        source = Images(x, layout, channels, x_depth, x_height, x_width)
        target = Images(y, layout, filters, out_depth, out_height, out_width)
        left = first_column * OUTPUTS
        number = constants(bias.zero(lanes))

        def place(r):
            """Image, plane and first line of a row of tiles."""
            plane = (first_row + r) // tile_rows
            return plane // out_depth, plane % out_depth, first_cell((first_row + r) % tile_rows, strip.row_step)

        def channels_of(chunk):
            """The first channel of a chunk, and how many it has."""
            first = chunk % channel_chunks * chunk_channels
            return first, minimum(chunk_channels, channels - first)

        def transform_inputs(chunk, to):
            """Lanes past the last channel are summed by nobody."""
            first, count = channels_of(chunk)
            for r in loop(rows):
                image, plane, top = place(r)
                plane = plane + chunk // channel_chunks * depth_step - pad_depth
                for v in loop((count + (lanes - 1)) // lanes):
                    read_strip(
                        source, strip, lanes, SPAN, image, plane, first + v * lanes, top - pad_height, left - pad_width,
                        columns * OUTPUTS + (TAPS - 1) * strip.column_step,
                    )  # fmt: skip
                    tiles = to.at(r * columns * depth + v * lanes)
                    strip_to_points(strip, tiles, lanes, input_column, SPAN, columns, depth, input_plane, number)

        def transform_filters(panel, chunk):
            first, count = channels_of(chunk)
            start = first * channel_stride + _taps_of_chunk(chunk, chunks, channel_chunks, filters_from)
            panel_to_points(
                w, own_filters, lanes, vectors, filters_from, panel * width, filters, filter_stride, start, channel_stride, count,
                filter_plane,
            )  # fmt: skip

        def multiply(chunk, values, taps, sums):
            """One matrix product (tiles, channels) @ (channels, filters) for each point."""
            for point in loop(POINTS):
                for g in loop((rows * columns + (group - 1)) // group):
                    _add_products(
                        values.at(point * input_plane + g * (group * depth)), taps.at(point * filter_plane), filter_plane,
                        sums.at(point * sums_plane + g * (group * width)), channels_of(chunk)[1], depth, group, lanes, vectors,
                        chunk * lanes,
                    )  # fmt: skip

        def transform_sums(panel, sums):
            for j in loop(minimum(vectors, (filters - panel * width + (lanes - 1)) // lanes)):
                first = panel * width + lanes * j
                offset = bias.vec(first, lanes)
                for r in loop(rows):
                    tiles = sums.at(r * columns * width + lanes * j)
                    points_to_strip(tiles, strip, lanes, columns, width, sums_plane, offset, number)
                    image, plane, top = place(r)
                    write_strip(target, strip, lanes, image, plane, first, top, left, columns * OUTPUTS)

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
                    transform_filters(first_panel + p, chunk)
                    multiply(chunk, inputs, own_filters, all_sums.at(p * POINTS * sums_plane))
            for p in loop(own_panels):
                transform_sums(first_panel + p, all_sums.at(p * POINTS * sums_plane))

    return text, dict.fromkeys(("w", "bias", "points", "slots"), wide_type(dtype)) | {"x": dtype, "y": out}


def _taps_of_chunk(chunk, chunks, channel_chunks, order):
    """Where the 3 x 3 taps of a chunk's plane lie among a filter's: planes of a 3-D kernel are summed like channels."""
    return ((chunks - 1 - chunk if order == "flipped taps" else chunk) // channel_chunks) * (TAPS * TAPS)


def _add_products(values, taps, plane, sums, count, depth, group, lanes, vectors, kept):
    """``sums[i, f] (+)= sum over c of values[i, c] * taps[c, f]`` for ``group`` tiles i; added to what is there if ``kept``.

    Both come from L2 or L3. Unasked for, 256@14 takes 1.3 times as long.
    """
    width = lanes * vectors
    accumulators = [Variable(sums.zero(lanes)) for _ in range(group * vectors)]
    for c in loop(count):
        values.prefetch(group * depth + c * lanes)  # the next group's
        for j in range(0, width, lanes):
            taps.prefetch(plane + c * width + j)  # the next point's
        row = [taps.vec(c * width + lanes * j, lanes) for j in range(vectors)]
        for i in range(group):
            cell = splat(values[c + depth * i], lanes)
            for j in range(vectors):
                a = accumulators[vectors * i + j]
                a.set(fma(cell, row[j], a.get()))
    for i, a in enumerate(accumulators):
        sums.put(lanes * i, a.get() + sums.vec(lanes * i, lanes, count=kept))


def panel_to_points(
    w, points, lanes, vectors, order, first, filters, filter_stride, start, channel_stride, count, plane
):
    """``points[point, c, filters] = G w G^T`` for the filters of a panel and ``count`` channels.

    Taps are read as vectors and transposed: a tenth of the time that gathering each takes. Lanes past the last filter repeat
    it.
    """
    number, cells = constants(w.zero(lanes)), TAPS * TAPS
    for j in loop(vectors):
        sources = [minimum(first + j * lanes + i, filters - 1) * filter_stride + start for i in range(lanes)]
        if order == "taps":
            _gather_taps(w, points.at(j * lanes), lanes, lanes * vectors, sources, count, plane)
        coming = (
            [sources[0] + t for t in range(0, lanes * cells + lanes, lanes)] if order == "flipped taps" else sources
        )
        for c in loop(count):
            to = points.at((c * vectors + j) * lanes)
            if order == "taps":
                values = [to.vec(t * plane, lanes) for t in range(cells)]
            else:
                # Taps to come. Unasked for, one image of 512@7 takes 3.2 times as long: its channels lie a filter apart.
                for line in coming:
                    w.prefetch(line + (c + AHEAD) * channel_stride)
                values = []
                for t in range(0, cells, lanes):
                    values += transpose([w.vec(s + c * channel_stride + t, lanes, count=cells - t) for s in sources])
                values = values[:cells][:: -1 if order == "flipped taps" else 1]
            rows = [values[TAPS * i : TAPS * (i + 1)] for i in range(TAPS)]
            for i, row in enumerate(both_axes(filter_column, rows, number)):
                for k, value in enumerate(row):
                    to.put((SPAN * i + k) * plane, value)


def _gather_taps(w, taps, lanes, width, sources, count, plane):
    """``taps[tap, c, lane] = w[filter of the lane, c, tap]``: in the places of the first points, which will overwrite them.

    A filter's taps of ``lanes`` channels lie together: all lanes of what is read are used.
    """
    cells = TAPS * TAPS
    for block in loop((count + (lanes - 1)) // lanes):
        to, start = taps.at(block * lanes * width), block * lanes * cells
        for q in range(0, lanes * cells, lanes):
            for s in sources:
                w.prefetch(s + start + (lanes * cells + q))
            rows = [w.vec(s + start + q, lanes, count=count * cells - start - q) for s in sources]
            for k, column in enumerate(transpose(rows)):
                c, tap = (q + k) // cells, (q + k) % cells
                to.put(tap * plane + c * width, column)
