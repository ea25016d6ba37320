"""The weight gradient with pixels in lanes, for groups of few filters: the counterpart of :mod:`konv.engine.groups.planes`."""

from __future__ import annotations

import itertools

from konv.engine.compile import kernel
from konv.engine.groups.planes_tile import meetings, reader
from konv.engine.machine import wide_type
from konv.engine.simd import Variable, bits, fma, loop, minimum, pick, shuffle, within


@kernel
def accumulate_planes(dtype, lanes, filters, rows, taps_high, taps_wide, stride_high, stride_wide, woven, asked):
    """``sums[part, tap] = sum of dy * x`` and ``biases[part, filter] = sum of dy`` over the images of a part.

    A piece is (part, some groups). A tile of ``filters`` x ``taps_high`` x ``taps_wide`` sums, each a vector of partial ones,
    goes over the outputs; so many ``rows`` of dy are held in registers, and a vector of x serves all of them that it met.
    ``asked``: whether to ask for what comes next. Where images have one row the machine does so unasked: 1.3 times as fast.
    ``woven`` : even and odd columns of dy, whose number is even, are vectors of their own; see :mod:`konv.engine.groups.planes`.
    """
    wide_step, sets = (2, range(2)) if woven else (stride_wide or 1, range(1))
    tile = [(f, k, t) for f in range(filters) for k in range(taps_high) for t in range(taps_wide)]
    names = [*tile, *range(filters)]  # of sums: of taps and of biases

    def text(
        piece, slot, x, dy, sums, biases, zeros, sources,
        images, part_images, block_images, chunk_rows, groups, group_chunk, group_channels, group_filters, source_count,
        x_depth, x_height, x_width, step, depth_step, out_depth, out_height, out_width, taps, dilation, pad, kernel_size,
        x_ahead, dy_ahead, x_around, dy_around,
    ):  # fmt: skip
        group_chunks = (groups + (group_chunk - 1)) // group_chunk
        part, first_group = piece // group_chunks, piece % group_chunks * group_chunk
        first_image = part * part_images
        some_images = minimum(part_images, images - first_image)
        out_plane = out_depth * out_height * out_width

        def add(tile_sums, shift, source, block, plane, depth, row, count, ahead):
            """Add the products of ``count`` rows of dy to the sums of a tile whose first tap reads ``shift`` cells on."""
            d = depth * depth_step + sources[source * 4 + 1]
            h = row * stride_high + sources[source * 4 + 2]
            height = x_height * within(d, x_depth)
            start = ((plane * group_channels + sources[source * 4]) * x_depth + d) * x_height + h
            lines = [
                pick(within(h + u, height), x.at((start + u) * x_width), zeros)
                for u in range((count - 1) * stride_high + taps_high)
            ]
            upstream = (plane * group_filters + block * filters) * out_plane + (depth * out_height + row) * out_width
            columns = out_width // len(sets)
            for q in loop((columns + (lanes - 1)) // lanes):
                column = q * lanes
                left = columns - column
                if asked:
                    for f, r in itertools.product(range(filters), range(count)):
                        dy.prefetch(upstream + ahead[1] + f * out_plane + r * out_width + column * len(sets))
                    for u, v in itertools.product(range(count * stride_high), range(wide_step)):
                        x.prefetch(ahead[0] + (start + u) * x_width + column * wide_step + v * lanes)
                gradients = {}
                for f, r, s in itertools.product(range(filters), range(count), sets):
                    at = upstream + f * out_plane + r * out_width + column * len(sets) + s
                    if woven:
                        gradients[f, r, s] = dy.alternate(at, lanes, bits=bits(0, left * 2 - s))
                    else:
                        gradients[f, r, s] = dy.vec(at, lanes, count=left)
                    tile_sums[f].set(tile_sums[f].get() + gradients[f, r, s])
                read = reader(lanes, wide_step if woven else stride_wide, step, x_width, column, shift, left, woven)
                for u, line in enumerate(lines):
                    met = meetings(u, count, taps_high, stride_high)
                    for t in range(taps_wide + len(sets) - 1 if met else 0):
                        pixels = read(t)(u, line)
                        own = [(s, t - s) for s in sets if 0 <= t - s < taps_wide]
                        for (s, tap), f, (r, k) in itertools.product(own, range(filters), met):
                            tile_sums[f, k, tap].set(fma(gradients[f, r, s], pixels, tile_sums[f, k, tap].get()))

        def add_images(part_sums, group, block, source, shift, image, count, start_row, row_count):
            """Add the products of some rows of some images."""
            for i in loop(count):
                plane = (image + i) * groups + group
                last = within(first_image + some_images - 1 - image - i, 1)
                ahead = pick(last, x_around, x_ahead), pick(last, dy_around, dy_ahead)  # what comes next
                for depth in loop(out_depth):
                    for q in loop(row_count // rows):
                        row = start_row + q * rows
                        add(part_sums, shift, source, block, plane, depth, row, rows, ahead)
                    for r in loop(row_count % rows if rows > 1 else 0):
                        row = start_row + row_count // rows * rows + r
                        add(part_sums, shift, source, block, plane, depth, row, 1, ahead)

        def add_all(group, block, source, shift):
            """The sums of a tile over all images of the part: in two steps, the error falls."""
            totals = {name: Variable(sums.zero(lanes)) for name in names}
            for image_block in loop((some_images + (block_images - 1)) // block_images):
                image = image_block * block_images
                image_count = minimum(block_images, some_images - image)
                for chunk in loop((out_height + (chunk_rows - 1)) // chunk_rows):
                    row = chunk * chunk_rows
                    row_count = minimum(chunk_rows, out_height - row)
                    part_sums = {name: Variable(sums.zero(lanes)) for name in names}
                    add_images(part_sums, group, block, source, shift, first_image + image, image_count, row, row_count)
                    for name, total in totals.items():
                        total.set(total.get() + part_sums[name].get())
            return totals

        for i in loop(minimum(group_chunk, groups - first_group)):
            group = first_group + i
            for block in loop(group_filters // filters):
                for source in loop(source_count):
                    first_filter = (part * groups + group) * group_filters + block * filters
                    to = first_filter * group_channels * kernel_size + sources[source * 4 + 3]
                    for tap_tile in loop((taps + (taps_wide - 1)) // taps_wide):
                        first_tap = tap_tile * taps_wide
                        totals = add_all(group, block, source, first_tap * dilation - pad)
                        for f, k, t in tile:
                            tap = first_tap + f * group_channels * kernel_size + k * taps + t
                            used = minimum(taps - first_tap - t, 1)
                            sums.put(to + tap, lane_sum(totals[f, k, t].get(), lanes), used)
                        for f in range(filters):
                            biases.put(first_filter + f, lane_sum(totals[f].get(), lanes), 1)

    wide = wide_type(dtype)
    return text, {"x": dtype, "dy": dtype, "sums": wide, "biases": wide, "zeros": dtype, "sources": "int64"}


def lane_sum(vector, lanes):
    """The sum of all lanes, in each of them."""
    turn = lanes // 2
    while turn:
        vector = vector + shuffle(vector, vector, [(lane + turn) % lanes for lane in range(lanes)])
        turn //= 2
    return vector
