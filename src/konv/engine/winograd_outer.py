"""Kernels of Winograd's weight gradient: for each point, sums over tiles of (channels x filters) outer products.

``dw[f, c] = D^T [ sum over tiles of (E dy[f] E^T) * (B^T x[c] B) ] D``, see :mod:`konv.engine.winograd_formulas`.
"""

from __future__ import annotations

from konv.engine.compile import kernel
from konv.engine.machine import wide_type
from konv.engine.simd import Variable, fma, loop, minimum, splat, transpose, within
from konv.engine.winograd_formulas import (
    OUTPUTS,
    POINTS,
    SPAN,
    TAPS,
    both_axes,
    input_column,
    upstream_column,
    weight_column,
)
from konv.engine.winograd_tiles import Images, Strip, constants, first_cell, read_strip, strip_to_points


@kernel
def tiles_to_weights(dtype, lanes, vectors, rows, layout, dilated):
    """The weights of a block of filters and some blocks of channels, from a part of the tiles, which are a piece.

    Inputs and upstream gradients of a block of tiles are transformed, then multiplied point by point; the sums of all
    points stay in the slot's workspace from block to block of tiles. Where there is one such block, ``kept_upstream`` is 1:
    the transformed gradients stay too, for all blocks of channels of the piece.
    """
    width = lanes * vectors

    def text(
        piece, slot, x, dy, dw, slots, slot_size, upstream_at, sums_at, strip_at,
        channels, x_depth, x_height, x_width, pad_depth, pad_height, pad_width, filters, out_depth, out_height, out_width,
        depth_step, row_step, column_step,
        tile_rows, tile_columns, all_rows, block_rows, block_columns, column_blocks, blocks, part_blocks, parts,
        plane_blocks, channel_blocks, piece_blocks, channel_pieces, kept_upstream, block_channels, block_filters, sum_rows,
        input_plane, upstream_plane, sums_plane, pitch,
    ):  # fmt: skip
        part, block_of_filters = piece % parts, piece // parts // channel_pieces
        first_block, first_filter = part * part_blocks, block_of_filters * block_filters
        own_filters = minimum(block_filters, filters - first_filter)
        filter_vectors, panels = (own_filters + (lanes - 1)) // lanes, (own_filters + (width - 1)) // width
        inputs = slots.at(slot * slot_size)
        upstream, sums = inputs.at(upstream_at), inputs.at(sums_at)
        strip = Strip(inputs.at(strip_at), pitch, *((row_step, column_step) if dilated else ()))
        x_images = Images(x, layout, channels, x_depth, x_height, x_width)
        dy_images = Images(dy, layout, filters, out_depth, out_height, out_width)
        zero = x.zero(lanes)
        number = constants(zero)

        first_of_piece = piece // parts % channel_pieces * piece_blocks
        for k in loop(minimum(piece_blocks, channel_blocks - first_of_piece)):
            tap_plane = (first_of_piece + k) // plane_blocks
            first_channel = (first_of_piece + k) % plane_blocks * block_channels
            own_channels = minimum(block_channels, channels - first_channel)
            channel_vectors, groups = (own_channels + (lanes - 1)) // lanes, (own_channels + (rows - 1)) // rows
            fresh = 1 - kept_upstream * minimum(k, 1)

            for b in loop(minimum(part_blocks, blocks - first_block)):
                block = first_block + b
                first_row, first_column = block // column_blocks * block_rows, block % column_blocks * block_columns
                own_rows = minimum(block_rows, all_rows - first_row)
                columns = minimum(block_columns, tile_columns - first_column)
                left = first_column * OUTPUTS
                for r in loop(own_rows):
                    plane, tile = (first_row + r) // tile_rows, r * columns
                    image, plane = plane // out_depth, plane % out_depth
                    top = first_cell((first_row + r) % tile_rows, strip.row_step)
                    for v in loop(channel_vectors):
                        read_strip(
                            x_images, strip, lanes, SPAN, image, plane + tap_plane * depth_step - pad_depth,
                            first_channel + v * lanes, top - pad_height, left - pad_width,
                            columns * OUTPUTS + (TAPS - 1) * strip.column_step,
                        )  # fmt: skip
                        to = inputs.at(tile * block_channels + v * lanes)
                        strip_to_points(
                            strip, to, lanes, input_column, SPAN, columns, block_channels, input_plane, number
                        )
                    for v in loop(filter_vectors * fresh):
                        first = first_filter + v * lanes
                        read_strip(dy_images, strip, lanes, OUTPUTS, image, plane, first, top, left, columns * OUTPUTS)
                        to = upstream.at(tile * block_filters + v * lanes)
                        strip_to_points(
                            strip, to, lanes, upstream_column, OUTPUTS, columns, block_filters, upstream_plane, number
                        )
                for point in loop(POINTS):
                    a, d = inputs.at(point * input_plane), upstream.at(point * upstream_plane)
                    for panel in loop(panels):
                        for g in loop(groups):
                            _add_outer_products(
                                a.at(g * rows), block_channels, input_plane, d.at(panel * width), block_filters,
                                upstream_plane, sums.at(point * sums_plane + (panel * sum_rows + g * rows) * width),
                                own_rows * columns, rows, lanes, vectors, b * lanes,
                            )  # fmt: skip

            for v in loop(filter_vectors):
                source = sums.at(v // vectors * sum_rows * width + v % vectors * lanes)
                first = first_filter + v * lanes
                plane = part * (channel_blocks // plane_blocks) + tap_plane
                to = dw.at(((plane * filters + first) * channels + first_channel) * (TAPS * TAPS))
                _write_weights(
                    source, width, sums_plane, inputs, to, channels, filters - first, own_channels, lanes, number
                )

    return text, {"x": dtype, "dy": dtype, "dw": wide_type(dtype), "slots": wide_type(dtype)}


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


def _write_weights(sums, step, plane, taps, dw, channels, filters, own_channels, lanes, number):
    """Points to weights ``dw[filter, channel, tap]``, for a vector of filters, by way of ``taps[channel, tap, filter]``."""
    cells = TAPS * TAPS
    for c in loop(own_channels):
        values = [[sums.vec((SPAN * i + k) * plane + c * step, lanes) for k in range(SPAN)] for i in range(SPAN)]
        for i, row in enumerate(both_axes(weight_column, values, number)):
            for k, value in enumerate(row):
                taps.put((c * cells + TAPS * i + k) * lanes, value)
    for q in loop((own_channels * cells + (lanes - 1)) // lanes):
        columns = [taps.vec((q * lanes + k) * lanes, lanes) for k in range(lanes)]
        for k, row in enumerate(transpose(columns)):
            count = (own_channels * cells - q * lanes) * within(k, filters)
            dw.put(k * channels * cells + q * lanes, row, count=count)


@kernel
def add_parts(wide, lanes):
    """``dw[pair, plane, tap] = sum over parts of sums[part, plane, pair, tap]``, in their order, for pairs of filter and channel.

    A piece is ``cells`` numbers of a plane, whole pairs; where there is one plane, they are added as they lie.
    """
    taps = TAPS * TAPS

    def text(piece, slot, sums, dw, size, parts, planes, cells):
        plane, first = piece % planes, piece // planes * cells
        own = minimum(cells, size - first)
        lines, line = minimum(planes - 1, 1), own + (taps - own) * minimum(planes - 1, 1)  # a pair at a time, or all
        for p in loop(lines * (own // taps) + (1 - lines)):
            for q in loop((line + (lanes - 1)) // lanes):
                count = line - q * lanes
                at = first + p * taps + q * lanes
                total = Variable(sums.vec(plane * size + at, lanes, count=count))
                for part in loop(parts - 1):
                    total.set(total.get() + sums.vec(((part + 1) * planes + plane) * size + at, lanes, count=count))
                to = (first // taps + p) * (taps * planes) + plane * taps + q * lanes
                dw.put(to, total.get(), count=count)

    return text, dict.fromkeys(("sums", "dw"), wide)
