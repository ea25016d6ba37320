"""Winograd's kernel along one axis for weight gradients: for each point, sums over rows of (channels x filters) outer products.

``dw[f, c] = D^T [ sum over tiles of (E dy[f]) * (B^T x[c]) ]`` down the columns, see
:mod:`konv.engine.winograd.winograd_formulas`; the columns of the kernel shift the points of x.
"""

from __future__ import annotations

from konv.engine.compile import kernel
from konv.engine.machine import wide_type
from konv.engine.packing import sums_of_vectors
from konv.engine.simd import Variable, fma, loop, minimum, pick, pinned, within
from konv.engine.winograd.winograd_rows_kernels import KERNEL, OUTPUTS, POINTS, SCHEME, TAPS, rows_to_points
from konv.engine.winograd.winograd_tiles import constants


@kernel
def winograd_of_row_weights(dtype, out, lanes, channels, filters, together):
    """dw and db of a group, which is a piece: chunks of rows of tiles, whose sums are added to those in the workspace.

    The sums of so many (filters, channels) stand in registers ``together``, with all columns of the kernel.
    """
    pairs, (filters_together, channels_together) = channels * filters, together

    def text(
        piece, slot, x, dy, dw, db, zeros, slots, slot_size, upstream_at, sums_at, bias_at, groups,
        x_height, x_width, pad_height, pad_width, out_height, out_width, tile_rows, all_rows, chunk_rows,
        pitch, upstream_pitch, input_plane, upstream_plane, asked,
    ):  # fmt: skip
        inputs = slots.at(slot * slot_size)
        upstream, sums, biases = inputs.at(upstream_at), inputs.at(sums_at), inputs.at(bias_at)
        number = constants(slots.zero(lanes))
        for i in loop(filters):
            biases.put(i * lanes, slots.zero(lanes))
        for i in loop(POINTS * TAPS * pairs):
            sums.put(i * lanes, slots.zero(lanes))
        for i in loop(POINTS * input_plane // lanes):  # what lies beside the rows
            inputs.put(i * lanes, slots.zero(lanes))

        def add_to_bias(f, cells):
            total = (cells[0] + cells[1]) + (cells[2] + cells[3])
            biases.put(f * lanes, biases.vec(f * lanes, lanes) + total)

        def ask(row, unit):
            """For some lines of a row of tiles, of one plane of x or dy."""
            image, row = row // tile_rows, row % tile_rows * OUTPUTS
            plane, turn = unit % (channels + filters), unit // (channels + filters)
            x_line = ((image * groups + piece) * channels + plane) * x_height + (row - pad_height + (TAPS - 1))
            dy_line = ((image * groups + piece) * filters + (plane - channels)) * out_height + row
            line = pick(within(plane, channels), x.at(x_line * x_width), dy.at(dy_line * out_width))
            for k in loop(asked):
                line.prefetch((turn * asked + k) * lanes, later=True)

        for chunk in loop((all_rows + (chunk_rows - 1)) // chunk_rows):
            own = minimum(chunk_rows, all_rows - chunk * chunk_rows)
            for r in loop(own):
                image, row = (chunk * chunk_rows + r) // tile_rows, (chunk * chunk_rows + r) % tile_rows * OUTPUTS
                plane = image * groups + piece
                rows_to_points(
                    x.at(plane * channels * x_height * x_width), row - pad_height, zeros, inputs.at(r * pitch + lanes),
                    channels, POINTS, SCHEME.inputs, x_height, x_width,
                    chunk_rows * pitch, input_plane, lanes, number,
                )  # fmt: skip
                rows_to_points(
                    dy.at(plane * filters * out_height * out_width), row, zeros, upstream.at(r * upstream_pitch),
                    filters, OUTPUTS, SCHEME.upstream, out_height, out_width,
                    chunk_rows * upstream_pitch, upstream_plane, lanes, number, add_to_bias,
                )  # fmt: skip
            for p in loop(POINTS):
                for f in loop(filters // filters_together):
                    for c in loop(channels // channels_together):
                        cells = inputs.at(
                            p * input_plane + c * channels_together * (chunk_rows * pitch) + (lanes - pad_width)
                        )
                        gradients = upstream.at(
                            p * upstream_plane + f * filters_together * (chunk_rows * upstream_pitch)
                        )
                        products = [
                            [[Variable(slots.zero(lanes)) for _ in range(TAPS)] for _ in range(channels_together)]
                            for _ in range(filters_together)
                        ]
                        unit = (p * (filters // filters_together) + f) * (channels // channels_together) + c
                        for r in loop(own):
                            ask((chunk + 1) * chunk_rows + r, unit)
                            for v in loop(upstream_pitch // lanes):
                                at = r * upstream_pitch + v * lanes
                                values = [
                                    gradients.vec(i * (chunk_rows * upstream_pitch) + at, lanes)
                                    for i in range(filters_together)
                                ]
                                for j in range(channels_together):
                                    for t in range(TAPS):
                                        cell = cells.vec(j * (chunk_rows * pitch) + (r * pitch + v * lanes) + t, lanes)
                                        for own_products, value in zip(products, values):
                                            total = own_products[j][t]
                                            total.set(pinned(fma(value, cell, total.get())))
                        for i, own_products in enumerate(products):
                            for j, row_of_taps in enumerate(own_products):
                                for t, total in enumerate(row_of_taps):
                                    pair = (f * filters_together + i) * channels + (c * channels_together + j)
                                    to = sums.at(((p * TAPS + t) * pairs + pair) * lanes)
                                    to.put(0, to.vec(0, lanes) + total.get())
        to = dw.at(piece * pairs * KERNEL)
        for t in loop(TAPS):
            for q in loop(pairs // lanes):
                values = []
                for point in range(POINTS):
                    at = sums.at(((point * TAPS + t) * pairs + q * lanes) * lanes)
                    values.append(sums_of_vectors([at.vec(i * lanes, lanes) for i in range(lanes)], lanes))
                for k, value in enumerate(SCHEME.weights(values, number)):
                    to.scatter(q * lanes * KERNEL + k * TAPS + t, KERNEL, value, lanes)
        for f in loop(filters):
            total = sums_of_vectors([biases.vec(f * lanes, lanes)] * lanes, lanes)
            db.put(piece * filters + f, total, count=1)

    wide = wide_type(dtype)
    return text, {"x": dtype, "dy": dtype, "dw": out, "db": out, "zeros": dtype, "slots": wide}
