"""Kernels of the weight gradient: sums over pixels of (channels x filters) outer products, without an im2col matrix.

``dw[f, c, t] = sum over images and pixels of  dy[f, pixel] * x_padded[c, pixel * stride + t * dilation]``

Both factors are laid out with the pixel outside: ``gradient[pixel, filters]``, filters in lanes, and ``image[cell, channels]``
with its zero padding. Channels of neighbouring cells lie side by side, so the taps of a kernel row and their channels are
one *run* of ``kernel_width * channels`` numbers (a tap by itself where it is dilated), and few channels fill a tile as well
as many. One tile holds ``rows`` numbers of ``joined`` runs by ``vectors * lanes`` filters.

A piece goes over its *units*, some 256 pixels each, which it lays out for itself: they stay in its core's cache while all
tiles are multiplied. Laying out costs a few percent of that; chunks of whole images, laid out by all threads together and
read by all of them from the cache they share, cost a quarter. While a unit is multiplied, dy of the next is asked for, which
gains a tenth where it comes from memory; asking for x gained nothing.

Where one tile has all weights of a panel, dy with channels last is not laid out: 27 numbers by 64 filters .66 of the time, 10
by 512 .33.
"""

from __future__ import annotations

from konv.engine.compile import kernel
from konv.engine.direct.outer_packing import (
    fetch_first,
    fetch_last,
    gradient_last,
    gradient_transposed,
    image_interleaved,
    image_last,
    image_transposed,
)  # fmt: skip
from konv.engine.machine import wide_type
from konv.engine.simd import ITEMSIZE, Variable, fma, has_nan, loop, maximum, minimum, splat, transpose, within


@kernel
def sum_outer_products(dtype, out, lanes, vectors, rows, joined, interleaved, last, once):
    """The sums of a block of weights over a part of the pixels. A piece is (group, part, filter block, channel block).

    ``interleaved`` is the number of channels in a block where it is small, else 0; ``last`` says that x and dy are laid out
    channels last, ``once`` that one tile has all weights of a panel, which then reads dy where it lies. Each unit is summed by
    itself and then added, in an order that does not depend on the threads.
    """
    wide, width = wide_type(dtype), lanes * vectors
    lay_image = image_last if last else image_interleaved(interleaved) if interleaved else image_transposed
    lay_gradient = gradient_last if last else gradient_transposed
    fetch = (fetch_last if last else fetch_first)(ITEMSIZE[dtype])

    def text(
        piece, slot, x, dy, sums, dw, db, space, lines, run_cells, run_ranges, places, groups, channels, filters, x_depth,
        x_height, x_width, out_depth, out_height, out_width, depth_stride, height_stride, width_stride, depth_pad,
        height_pad, width_pad, all_planes, planes, block_rows, block_columns, row_blocks, column_blocks, units, parts,
        filter_blocks, block_panels, panels, channel_blocks, block_channels, line_count, line_cells,
        cell_step, column_cells, row_step, runs, blocks, sums_size, slot_size, image_size, panel_rows, taps, whole,
        together,
    ):  # fmt: skip
        channel_block, rest = piece % channel_blocks, piece // channel_blocks
        filter_block, rest = rest % filter_blocks, rest // filter_blocks
        part, group = rest % parts, rest // parts
        channel = minimum(channel_block * block_channels, channels - block_channels)
        first_panel = filter_block * block_panels
        panels_here = minimum(block_panels, panels - first_panel)
        image = space.at(slot * slot_size)
        gradient = image.at(image_size)
        sums = sums.at((slot * whole + piece * (1 - whole)) * sums_size)
        bias = block_panels * panel_rows * width  # after the weights' sums
        start = part * units // parts
        column_step = column_cells * block_channels
        plane_size = line_count * line_cells * block_channels
        for i in loop(block_panels * (panel_rows + 1) * vectors * int(once)):
            sums.put(i * lanes, sums.zero(lanes))

        for u in loop((part + 1) * units // parts - start):
            unit = start + u
            left, rest = unit % column_blocks * block_columns, unit // column_blocks
            top, first_plane = rest % row_blocks * block_rows, rest // row_blocks * planes
            planes_here = minimum(planes, all_planes - first_plane)
            height, breadth = minimum(block_rows, out_height - top), minimum(block_columns, out_width - left)
            pixels = height * breadth
            first_column = left * width_stride - width_pad

            for p in loop(planes_here):
                n, d = (first_plane + p) // out_depth, (first_plane + p) % out_depth
                for i in loop(line_count):
                    z = d * depth_stride - depth_pad + lines[2 * i]
                    y = top * height_stride - height_pad + lines[2 * i + 1]
                    to = image.at(p * plane_size + i * line_cells * block_channels)
                    inside = within(z, x_depth) * within(y, x_height)
                    lay_image(
                        lanes, x, to, (n, z, y, first_column), (x_depth, x_height, x_width), groups * channels,
                        group * channels + channel, block_channels, line_cells, cell_step, inside,
                    )  # fmt: skip

            zero = sums.zero(lanes)
            kept = lanes * minimum(u, 1)  # the first unit starts at zero
            if once:  # every window is multiplied, so none can hide an infinity or NaN
                for p in loop(planes_here):
                    pixel = ((first_plane + p) * out_height + top) * out_width + left
                    for h in loop(height):
                        upstream = dy.at(((pixel + h * out_width) * groups + group) * filters + first_panel * width)
                        row = image.at(p * plane_size + h * row_step)
                        heads = [row.at(run_cells[j]) for j in range(joined)]
                        _sum_in_place(
                            lanes, vectors, rows, upstream, groups * filters, filters - first_panel * width, heads, column_step,
                            breadth, together, panels_here, sums, panel_rows, bias,
                        )  # fmt: skip
                continue
            spoiled = Variable(zero)
            for panel in loop(panels_here):
                totals = [[Variable(zero) for _ in range(2)] for _ in range(vectors)]
                for p in loop(planes_here):
                    n, d = (first_plane + p) // out_depth, (first_plane + p) % out_depth
                    to = gradient.at((panel * planes_here + p) * pixels * width)
                    lay_gradient(
                        lanes, vectors, dy, to, (n, d, top * out_width + left), (out_depth, out_height * out_width),
                        groups * filters, group * filters, filters, (first_panel + panel) * width, pixels, totals,
                    )  # fmt: skip
                for j, (even, odd) in enumerate(totals):
                    total, to = even.get() + odd.get(), bias + panel * width + lanes * j
                    spoiled.set(spoiled.get() + (total - total))
                    sums.put(to, total + sums.vec(to, lanes, count=kept))
            # Windows in the padding have only zeros to add, except where they meet an infinity or NaN.
            everything = has_nan(spoiled.get())
            following = minimum(unit + 1, (part + 1) * units // parts - 1)
            next_left, rest = following % column_blocks * block_columns, following // column_blocks
            next_top, plane = rest % row_blocks * block_rows, rest // row_blocks * planes
            n, d = plane // out_depth, plane % out_depth
            next_pixel = (n, d, next_top * out_width + next_left)
            share = (width + (runs * blocks - 1)) // (runs * blocks)

            for panel in loop(panels_here):
                upstream = gradient.at(panel * planes_here * pixels * width)
                for run in loop(runs):
                    first_depth, first_row, last_row, first_tap, last_tap = (run_ranges[5 * run + i] for i in range(5))
                    above = height_pad - top * height_stride
                    low, high = _meeting(first_row, last_row, above, x_height, height_stride, height, everything)
                    before = -first_column
                    begin, end = _meeting(first_tap, last_tap, before, x_width, width_stride, breadth, everything)
                    for block in loop(blocks):
                        first = (run * blocks + block) * share
                        for f in loop(minimum(width - first, share) * within(planes - 1, 1)):
                            fetch(
                                dy, next_pixel, (out_depth, out_height * out_width), groups * filters, group * filters,
                                filters, (first_panel + panel) * width, pixels, width, first + f,
                            )  # fmt: skip
                        products = [Variable(zero) for _ in range(joined * rows * vectors)]
                        for p in loop(planes_here):
                            z = (first_plane + p) % out_depth * depth_stride - depth_pad + first_depth
                            for h in loop((high - low) * maximum(within(z, x_depth), everything)):
                                line = upstream.at(((p * height + low + h) * breadth + begin) * width)
                                first = p * plane_size + (low + h) * row_step + begin * column_step + block * rows
                                heads = [image.at(first + run_cells[run * joined + j]) for j in range(joined)]
                                for w in loop(end - begin):
                                    row = [line.vec(w * width + lanes * j, lanes) for j in range(vectors)]
                                    for k, head in enumerate(heads):
                                        cell = head.at(w * column_step)
                                        for i in range(rows):
                                            number = splat(cell[i], lanes)
                                            for j in range(vectors):
                                                a = products[(k * rows + i) * vectors + j]
                                                a.set(fma(number, row[j], a.get()))
                        to = ((panel * runs + run) * blocks + block) * (joined * rows * width)
                        for i, a in enumerate(products):
                            sums.put(to + lanes * i, a.get() + sums.vec(to + lanes * i, lanes, count=kept))

        for panel in loop(panels_here * whole):
            _write(
                lanes, vectors, sums, dw, places, 1, 0, panel, panel_rows, group * filters, filters,
                (first_panel + panel) * width, channels * taps, channel * taps, block_channels * taps,
            )  # fmt: skip
        for panel in loop(panels_here * whole * within(channel_block, 1)):
            _write_bias(
                lanes, vectors, sums.at(bias), db, 1, 0, panel, group * filters, filters, (first_panel + panel) * width
            )

    pointers = {"x": dtype, "dy": dtype, "sums": wide, "dw": out, "db": out, "space": wide}
    tables = dict.fromkeys(("lines", "run_cells", "run_ranges", "places"), "int64")
    return text, pointers | tables


@kernel
def add_weight_parts(wide, out, lanes, vectors):
    """dw from the sums of all parts. A piece is (group, filter block, channel block, panel)."""

    def text(
        piece, slot, sums, dw, db, places, channels, filters, parts, filter_blocks, block_panels, panels, channel_blocks,
        block_channels, panel_rows, sums_size, taps,
    ):  # fmt: skip
        panel, rest = piece % block_panels, piece // block_panels
        channel_block, rest = rest % channel_blocks, rest // channel_blocks
        filter_block, group = rest % filter_blocks, rest // filter_blocks
        channel = minimum(channel_block * block_channels, channels - block_channels)
        pieces = filter_blocks * channel_blocks
        first = group * parts * pieces + filter_block * channel_blocks + channel_block
        exists = within(filter_block * block_panels + panel, panels)
        for _ in loop(exists):
            _write(
                lanes, vectors, sums.at(first * sums_size), dw, places, parts, pieces * sums_size, panel, panel_rows,
                group * filters, filters, (filter_block * block_panels + panel) * (lanes * vectors), channels * taps,
                channel * taps, block_channels * taps,
            )  # fmt: skip
        for _ in loop(exists * within(channel_block, 1)):
            _write_bias(
                lanes, vectors, sums.at(first * sums_size + block_panels * panel_rows * (lanes * vectors)), db, parts,
                pieces * sums_size, panel, group * filters, filters,
                (filter_block * block_panels + panel) * (lanes * vectors),
            )  # fmt: skip

    return text, {"sums": wide, "dw": out, "db": out, "places": "int64"}


def _sum_in_place(
    lanes, vectors, rows, dy, pitch, filters, heads, step, pixels, together, panels, sums, panel_rows, bias
):  # fmt: skip
    """Add the products of a row of dy, pixels ``pitch`` apart, and its sum: some pixels of all panels, then the next ones.

    Those are asked for meanwhile. Panel after panel of a whole unit took 2.4 times as long where dy comes from memory.
    """
    width, numbers = lanes * vectors, len(heads) * rows
    for q in loop((pixels + (together - 1)) // together):
        first = q * together
        for panel in loop(panels):
            line, used = dy.at(first * pitch + panel * width), filters - panel * width
            totals = [Variable(sums.zero(lanes)) for _ in range((numbers + 1) * vectors)]
            for w in loop(minimum(pixels - first, together)):
                row = [line.vec(w * pitch + lanes * j, lanes, count=used - lanes * j) for j in range(vectors)]
                for j in range(vectors):
                    line.prefetch((w + together) * pitch + lanes * j, later=True)
                for k, head in enumerate(heads):
                    cell = head.at((first + w) * step)
                    for i in range(rows):
                        number = splat(cell[i], lanes)
                        for j in range(vectors):
                            a = totals[(k * rows + i) * vectors + j]
                            a.set(fma(number, row[j], a.get()))
                for a, values in zip(totals[numbers * vectors :], row):
                    a.set(a.get() + values)
            places = [panel * panel_rows * width + lanes * i for i in range(numbers * vectors)]
            places += [bias + panel * width + lanes * j for j in range(vectors)]
            for place, a in zip(places, totals):
                sums.put(place, a.get() + sums.vec(place, lanes))


def _meeting(lowest, highest, before, length, stride, n, everything):
    """The outputs of 0 .. n - 1 from which some tap lowest .. highest reaches a cell 0 .. length - 1 after ``before``."""
    low = (maximum(before - highest, 0) + (stride - 1)) // stride
    high = (maximum(length + before - lowest, 0) + (stride - 1)) // stride
    low, high = minimum(low, n), minimum(high, n)
    return low * (1 - everything), high + (n - high) * everything


def _write(
    lanes, vectors, sums, dw, places, parts, part_size, panel, panel_rows, before, filters, first, filter_size, offset, count
):  # fmt: skip
    """A panel of filters of dw (F, C // groups, *kernel), ``count`` numbers of each filter, which lie at ``places``."""
    for j in range(vectors):
        for q in loop((count + (lanes - 1)) // lanes):
            at = []
            for i in range(lanes):
                place = places[minimum(q * lanes + i, count - 1)]
                at.append(((panel * panel_rows + place) * vectors + j) * lanes)
            totals = [Variable(sums.vec(i, lanes)) for i in at]
            for part in loop(parts - 1):
                for i, total in zip(at, totals):
                    total.set(total.get() + sums.vec((part + 1) * part_size + i, lanes))
            for i, row in enumerate(transpose([total.get() for total in totals])):
                f = first + lanes * j + i
                to = (before + f) * filter_size + offset + q * lanes
                dw.put(to, row, count=(count - q * lanes) * within(f, filters))


def _write_bias(lanes, vectors, sums, db, parts, part_size, panel, before, filters, first):
    """A panel of filters of db (F,)."""
    for j in range(vectors):
        total, at = Variable(sums.zero(lanes)), (panel * vectors + j) * lanes
        for part in loop(parts):
            total.set(total.get() + sums.vec(part * part_size + at, lanes))
        db.put(before + first + lanes * j, total.get(), count=filters - first - lanes * j)
