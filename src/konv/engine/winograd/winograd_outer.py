"""Kernels of Winograd's weight gradient: for each point, sums over tiles of (channels x filters) outer products.

``dw[f, c] = D^T [ sum over tiles of (E dy[f] E^T) * (B^T x[c] B) ] D``, see :mod:`konv.engine.winograd.winograd_formulas`, for
the taps of one section after the other. The bias gradient is summed where dy is read: by itself that was 2 to 6 % of small
layers.
"""

from __future__ import annotations

from konv.engine.compile import kernel
from konv.engine.machine import wide_type
from konv.engine.simd import Variable, fma, loop, maximum, minimum, splat, transpose, within
from konv.engine.winograd.winograd_formulas import Scheme, both_axes
from konv.engine.winograd.winograd_kernels import SECTION, Taps
from konv.engine.winograd.winograd_tiles import (
    Block,
    Images,
    Strip,
    Tiling,
    constants,
    points_of_tile,
    read_strip,
    strip_to_points,
)


@kernel
def tiles_to_weights(dtype, lanes, vectors, rows, row_axis, column_axis, taps, kernel_size, layout, steps, dilated):
    """The weights of a block of filters and some blocks of channels, from a part of the tiles, which are a piece.

    Inputs and upstream gradients of a block of tiles are transformed, then multiplied point by point; the sums of all
    points stay in the slot's workspace from block to block of tiles. Where there is one such block, ``kept_upstream`` is 1:
    the transformed gradients stay too, for all sections and blocks of channels of the piece. ``db[part, filter]`` is written
    by the pieces of the first channels.

    ``row_axis``, ``column_axis`` : schemes (outputs, taps); ``taps`` : steps between the taps of a section along both;
    ``kernel_size`` : all taps
    """
    row_scheme, column_scheme = Scheme(*row_axis), Scheme(*column_axis)
    width, cells = lanes * vectors, row_scheme.points * column_scheme.points
    places = Taps(row_axis[1], column_axis[1], *taps).cells
    read, inputs_of = (row_scheme.points, column_scheme.points), (row_scheme.inputs, column_scheme.inputs)
    written, upstream_of = (row_scheme.outputs, column_scheme.outputs), (row_scheme.upstream, column_scheme.upstream)

    def text(
        piece, slot, x, dy, dw, db, slots, sections, slot_size, upstream_at, sums_at, strip_at, taps_at,
        channels, x_depth, x_height, x_width, filters, out_depth, out_height, out_width,
        depth_in_step, row_dilation, column_dilation, planes,
        tile_rows, tile_columns, all_rows, block_rows, block_columns, column_blocks, short_rows, short_columns,
        blocks, part_blocks, parts, section_count,
        channel_blocks, piece_blocks, channel_pieces, kept_upstream, block_channels, block_filters, sum_rows,
        input_plane, upstream_plane, sums_plane, taps_plane, pitch, bias_filters,
    ):  # fmt: skip
        part, block_of_filters = piece % parts, piece // parts // channel_pieces
        first_block, first_filter = part * part_blocks, block_of_filters * block_filters
        own_filters = minimum(block_filters, filters - first_filter)
        filter_vectors, panels = (own_filters + (lanes - 1)) // lanes, (own_filters + (width - 1)) // width
        inputs = slots.at(slot * slot_size)
        upstream, sums, found = inputs.at(upstream_at), inputs.at(sums_at), inputs.at(taps_at)
        dilation = (row_dilation, column_dilation) if dilated else (1, 1)
        strip = Strip(inputs.at(strip_at), pitch, *map(Tiling, written, dilation))
        x_images = Images(x, layout, channels, x_depth, x_height, x_width)
        dy_images = Images(dy, layout, filters, out_depth, out_height, out_width)
        number = constants(x.zero(lanes))

        def transform(section, first_channel, channel_vectors, filter_vectors, block, kept, first):
            """A block of tiles to points: inputs of a section, and upstream gradients, whose sums too where it is the ``first``.

            They are added to what is there where ``kept`` is not 0.
            """
            first_row, first_column = block // column_blocks * block_rows, block % column_blocks * block_columns
            own_rows = minimum(block_rows, all_rows - first_row)
            columns = minimum(block_columns, tile_columns - first_column)
            at_end = 1 - minimum(tile_columns - first_column - columns, 1)
            tiles = Block(first_row, own_rows, tile_rows, columns, short_rows, short_columns * at_end)
            left = strip.columns.first(first_column)
            for r in loop(own_rows):
                plane, places = (first_row + r) // tile_rows, tiles.places(r)
                image, plane = plane // planes, plane % planes
                top = strip.rows.first((first_row + r) % tile_rows)
                for v in loop(channel_vectors):
                    read_strip(
                        x_images, strip, lanes, read[0], image, plane * depth_in_step + section[0], first_channel + v * lanes,
                        top * steps[0] + section[1], left * steps[1] + section[2], strip.columns.cells(columns, read[1]), steps,
                    )  # fmt: skip
                    strip_to_points(
                        strip, inputs.at(v * lanes), lanes, inputs_of, read, columns, block_channels, input_plane, number,
                        places=places,
                    )  # fmt: skip
                for v in loop(filter_vectors):
                    read_strip(
                        dy_images, strip, lanes, written[0], image, plane, first_filter + v * lanes, top, left,
                        columns * written[1],
                    )  # fmt: skip
                    to, total = upstream.at(v * lanes), Variable(slots.zero(lanes))
                    strip_to_points(
                        strip, to, lanes, upstream_of, written, columns, block_filters, upstream_plane, number, total, places
                    )  # fmt: skip
                    sums_of_dy = db.at(part * bias_filters + first_filter + v * lanes)
                    before = sums_of_dy.vec(0, lanes, count=minimum(kept + r, 1) * first * lanes)
                    sums_of_dy.put(0, before + total.get(), count=first * lanes)
            return tiles

        def multiply(section, groups, tiles, kept):
            """The products at the points that the section has. At infinity a short tile's gradient is zero."""
            for point in loop(cells):
                row, column = point // read[1], point % read[1]
                inside = within(row, section[5]) * within(column, section[6])
                first, own = tiles.range(row // maximum(read[0] - 1, 1), column // maximum(read[1] - 1, 1))
                a = inputs.at(point * input_plane + first * block_channels)
                d = upstream.at(point * upstream_plane + first * block_filters)
                for panel in loop(panels * inside):
                    for g in loop(groups):
                        _add_outer_products(
                            a.at(g * rows), block_channels, input_plane, d.at(panel * width), block_filters, upstream_plane,
                            sums.at(point * sums_plane + (panel * sum_rows + g * rows) * width), own, rows, lanes,
                            vectors, kept,
                        )  # fmt: skip

        first_of_piece = piece // parts % channel_pieces * piece_blocks
        for k in loop(minimum(piece_blocks, channel_blocks - first_of_piece)):
            first_channel = (first_of_piece + k) * block_channels
            own_channels = minimum(block_channels, channels - first_channel)
            channel_vectors, groups = (own_channels + (lanes - 1)) // lanes, (own_channels + (rows - 1)) // rows
            to = dw.at(((part * filters + first_filter) * channels + first_channel) * kernel_size)
            for s in loop(section_count):
                section = sections.at(s * SECTION)
                fresh = 1 - kept_upstream * minimum(k + s, 1)
                for b in loop(minimum(part_blocks, blocks - first_block)):
                    tiles = transform(
                        section, first_channel, channel_vectors, filter_vectors * fresh, first_block + b, b,
                        1 - minimum(s + k + first_of_piece, 1),
                    )  # fmt: skip
                    multiply(section, groups, tiles, b * lanes)
                for v in loop(filter_vectors):
                    source = sums.at(v // vectors * sum_rows * width + v % vectors * lanes)
                    _sums_to_taps(
                        source, width, sums_plane, found.at(v * taps_plane), (row_scheme, column_scheme), places, section,
                        own_channels, kernel_size, lanes, number,
                    )  # fmt: skip
                    for _ in loop(maximum(s + 2 - section_count, 0)):  # the last section's
                        _write_weights(
                            found.at(v * taps_plane), to.at(v * lanes * channels * kernel_size), channels * kernel_size,
                            minimum(filters - first_filter - v * lanes, lanes), own_channels * kernel_size, lanes,
                        )  # fmt: skip

    wide = wide_type(dtype)
    return text, dict.fromkeys(("dw", "db", "slots"), wide) | {"x": dtype, "dy": dtype, "sections": "int64"}


def _add_outer_products(a, a_step, a_plane, d, d_step, d_plane, sums, tiles, rows, lanes, vectors, kept):
    """``sums[i, j] (+)= sum over tiles of a[tile, i] * d[tile, j]`` for ``rows`` channels and ``vectors`` of filters.

    Added to what is there where ``kept`` is not 0; the next planes of both factors are asked for.
    """
    accumulators = [Variable(sums.zero(lanes)) for _ in range(rows * vectors)]
    for k in loop(tiles):
        a.prefetch(a_plane + k * a_step)
        for j in range(vectors):
            d.prefetch(d_plane + k * d_step + lanes * j)
        values = [d.vec(k * d_step + lanes * j, lanes) for j in range(vectors)]
        for i in range(rows):
            cell = splat(a[k * a_step + i], lanes)
            for j in range(vectors):
                s = accumulators[vectors * i + j]
                s.set(fma(cell, values[j], s.get()))
    for i, s in enumerate(accumulators):
        sums.put(lanes * i, s.get() + sums.vec(lanes * i, lanes, count=kept))


def _sums_to_taps(sums, step, plane, taps, schemes, places, section, channels, kernel_size, lanes, number):
    """Points to the taps of a section, for a vector of filters: ``taps[channel, tap, filter]``."""
    for c in loop(channels):
        values = points_of_tile(sums, lanes, schemes, c * step, plane)
        rows = both_axes([scheme.weights for scheme in schemes], values, number)
        for place, value in zip(places, (value for row in rows for value in row)):
            own = section[4] >> place & 1  # of a section of fewer taps the last are none
            taps.put((c * kernel_size + section[3] + place) * lanes, value, count=own * lanes)


def _write_weights(taps, dw, step, filters, size, lanes):
    """``dw[filter, i] = taps[i, filter]`` for ``size`` numbers of each filter, ``step`` apart."""
    for q in loop((size + (lanes - 1)) // lanes):
        columns = [taps.vec((q * lanes + k) * lanes, lanes) for k in range(lanes)]
        for k, row in enumerate(transpose(columns)):
            dw.put(k * step + q * lanes, row, count=(size - q * lanes) * within(k, filters))


@kernel
def add_parts(wide, lanes):
    """``dw[i] = sum over parts of sums[part, i]``, in their order; a piece is ``cells`` of ``size`` numbers."""

    def text(piece, slot, sums, dw, size, parts, cells):
        first = piece * cells
        own = minimum(cells, size - first)
        for q in loop((own + (lanes - 1)) // lanes):
            at, count = first + q * lanes, own - q * lanes
            total = Variable(sums.vec(at, lanes, count=count))
            for part in loop(parts - 1):
                total.set(total.get() + sums.vec((part + 1) * size + at, lanes, count=count))
            dw.put(at, total.get(), count=count)

    return text, dict.fromkeys(("sums", "dw"), wide)
