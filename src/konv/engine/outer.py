"""Kernels of the weight gradient: sums over pixels of (channels x filters) outer products, without an im2col matrix.

``dw[f, c, t] = sum over images and pixels of  dy[f, pixel] * x_padded[c, pixel * stride + t * dilation]``

Both factors are laid out with the pixel outside: ``gradient[pixel, filters]``, filters in lanes, and ``image[cell, channels]``
with its zero padding. Channels of neighbouring cells lie side by side, so the taps of a kernel row and their channels are
one *run* of ``kernel_width * channels`` numbers (a tap by itself where it is dilated), and few channels fill a tile as well
as many. One tile holds ``rows`` numbers of a run by ``vectors * lanes`` filters. Pixels and runs are offsets into the
image: stride, dilation and depth are tables.
"""

from __future__ import annotations

from konv.engine.compile import kernel
from konv.engine.simd import Variable, fma, loop, minimum, splat, transpose, within


@kernel
def channels_last(dtype, lanes):
    """Rows of x, padded, to ``image[cell, channel]``. A piece is one padded row (image, group, depth, height)."""
    wide = "float64" if dtype == "float64" else "float32"

    def text(
        piece, slot, x, image, first_image, groups, channels, x_depth, x_height, x_width, pad_depth, pad_height, pad_width,
        padded_depth, padded_height, padded_width,
    ):  # fmt: skip
        h, rest = piece % padded_height, piece // padded_height
        d, rest = rest % padded_depth, rest // padded_depth
        group, n = rest % groups, rest // groups
        inside = within(d - pad_depth, x_depth) * within(h - pad_height, x_height)
        for block in loop((channels + (lanes - 1)) // lanes):
            c = block * lanes
            for q in loop((padded_width + (lanes - 1)) // lanes):
                cell = q * lanes - pad_width
                rows = []
                for i in range(lanes):
                    exists = inside * within(c + i, channels)
                    plane = ((first_image + n) * groups + group) * channels + c + i
                    line = (plane * x_depth + (d - pad_depth)) * x_height + (h - pad_height)
                    rows.append(x.vec(line * x_width + cell, lanes, count=(x_width - cell) * exists, start=-cell))
                for i, column in enumerate(transpose(rows)):
                    to = (piece * padded_width + q * lanes + i) * channels + c
                    image.put(to, column, count=(channels - c) * within(q * lanes + i, padded_width))

    return text, {"x": dtype, "image": wide}


@kernel
def filters_last(dtype, lanes, vectors):
    """dy to ``gradient[pixel, filters]``, zeros past the last filter. A piece is (image, group, panel of filters)."""
    wide = "float64" if dtype == "float64" else "float32"
    width = lanes * vectors

    def text(piece, slot, dy, gradient, first_image, groups, filters, group_panels, pixels, panel_pixels):
        panel, rest = piece % group_panels, piece // group_panels
        group, n = rest % groups, rest // groups
        for j in range(vectors):
            first = panel * width + lanes * j
            source = (((first_image + n) * groups + group) * filters + first) * pixels
            for q in loop((pixels + (lanes - 1)) // lanes):
                rows = []
                for i in range(lanes):
                    count = (pixels - q * lanes) * within(first + i, filters)
                    rows.append(dy.vec(source + pixels * i + q * lanes, lanes, count=count))
                for i, column in enumerate(transpose(rows)):
                    gradient.put((piece * panel_pixels + q * lanes + i) * width + lanes * j, column)

    return text, {"dy": dtype, "gradient": wide}


@kernel
def accumulate(wide, lanes, vectors, rows):
    """``sums[run, filters] += image * gradient`` over the pixels of a chunk. A piece is (group, panel, run, block of it).

    Each image is summed by itself and then added: the error falls, and the order does not depend on the threads.
    """
    width = lanes * vectors

    def text(
        piece, slot, image, gradient, sums, run_cells, first_image, images, groups, group_panels, runs, blocks, group_size,
        panel_pixels, out_depth, out_height, out_width, depth_step, height_step, width_step,
    ):  # fmt: skip
        block, rest = piece % blocks, piece // blocks
        run, rest = rest % runs, rest // runs
        panel, group = rest % group_panels, rest // group_panels
        to = piece * rows * width
        kept = lanes * (1 - within(0, 1 - first_image))  # the first chunk starts at zero
        totals = [Variable(sums.vec(to + lanes * i, lanes, count=kept)) for i in range(rows * vectors)]
        for n in loop(images):
            source = image.at((n * groups + group) * group_size + run_cells[run] + block * rows)
            upstream = gradient.at(((n * groups + group) * group_panels + panel) * panel_pixels * width)
            part = [Variable(sums.zero(lanes)) for _ in totals]
            for d in loop(out_depth):
                for h in loop(out_height):
                    line = source.at(d * depth_step + h * height_step)
                    line_upstream = upstream.at((d * out_height + h) * out_width * width)
                    for w in loop(out_width):
                        filters = [line_upstream.vec(w * width + lanes * j, lanes) for j in range(vectors)]
                        cell = line.at(w * width_step)
                        for i in range(rows):
                            number = splat(cell[i], lanes)
                            for j in range(vectors):
                                a = part[vectors * i + j]
                                a.set(fma(number, filters[j], a.get()))
            for a, b in zip(totals, part):
                a.set(a.get() + b.get())
        for i, a in enumerate(totals):
            sums.put(to + lanes * i, a.get())

    return text, {"image": wide, "gradient": wide, "sums": wide, "run_cells": "int64"}


@kernel
def weights_out(wide, dtype, lanes, vectors):
    """``sums`` to dw (F, C // groups, *kernel). A piece is (group, panel, run)."""
    width = lanes * vectors

    def text(piece, slot, sums, dw, group_panels, runs, run_taps, run_size, channels, filters):
        run, rest = piece % runs, piece // runs
        panel, group = rest % group_panels, rest // group_panels
        taps = runs * run_taps
        for t in loop(run_taps):
            for c in loop(channels):
                for j in range(vectors):
                    first = panel * width + lanes * j
                    row = sums.vec((piece * run_size + t * channels + c) * width + lanes * j, lanes)
                    to = ((group * filters + first) * channels + c) * taps + run * run_taps + t
                    dw.scatter(to, channels * taps, row, minimum(filters - first, lanes))

    return text, {"sums": wide, "dw": dtype}
