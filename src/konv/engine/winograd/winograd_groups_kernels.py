"""Winograd's kernel for groups of a few vectors of channels: all of a group's numbers stay in one core's caches."""

from __future__ import annotations

from konv.engine.compile import kernel
from konv.engine.machine import wide_type
from konv.engine.simd import Variable, fma, loop, maximum, minimum, splat, transpose, within
from konv.engine.winograd.winograd_formulas import Scheme
from konv.engine.winograd.winograd_kernels import Taps, panel_to_points
from konv.engine.winograd.winograd_tiles import (
    Images,
    Strip,
    Tiling,
    constants,
    points_to_strip,
    read_strip,
    strip_to_points,
    write_strip,
)

SCHEME = Scheme(4, 3)
OUTPUTS, TAPS, SPAN, POINTS = SCHEME.outputs, SCHEME.taps, SCHEME.points, SCHEME.points**2
ALL_TAPS = (1 << TAPS * TAPS) - 1  # as bits


@kernel
def winograd_of_groups(dtype, out, lanes, vectors, tiles, order, layout):
    """The convolution of a group, in some blocks of tiles, which are a piece.

    Its filters are transformed first. A block is some rows and columns of tiles, of several images where each is one block.
    ``tiles`` are multiplied at once with ``vectors`` of filters; ``order`` is that of the taps, "taps" or "flipped taps".
    """
    width, schemes = lanes * vectors, (SCHEME, SCHEME)
    places = Taps(TAPS, TAPS, *((-TAPS, -1) if order == "flipped taps" else (0, 0)))
    tilings = Tiling(OUTPUTS), Tiling(OUTPUTS)

    def text(
        piece, slot, x, w, bias, y, slots, slot_size, sums_at, filters_at, strip_at, images, groups, channels, filters,
        x_height, x_width, pad_height, pad_width, out_height, out_width, tile_rows, tile_columns,
        block_images, block_rows, block_columns, row_blocks, column_blocks, blocks, piece_blocks, parts,
        filter_stride, channel_stride, input_plane, sums_plane, filter_plane, pitch,
    ):  # fmt: skip
        group, part = piece // parts, piece % parts
        inputs = slots.at(slot * slot_size)
        sums, points, lines = inputs.at(sums_at), inputs.at(filters_at), inputs.at(strip_at)
        source = Images(x, layout, groups * channels, 1, x_height, x_width)
        target = Images(y, layout, groups * filters, 1, out_height, out_width)
        number = constants(bias.zero(lanes))
        panels = filters // width
        for p in loop(panels):
            panel_to_points(
                w, points.at(p * POINTS * filter_plane), lanes, vectors, schemes, places, p * width, filters, filter_stride,
                group * channels * filters * (TAPS * TAPS), channel_stride, channels, filter_plane, ALL_TAPS,
            )  # fmt: skip

        for b in loop(minimum(piece_blocks, blocks - part * piece_blocks)):
            block = part * piece_blocks + b
            column, rest = block % column_blocks * block_columns, block // column_blocks
            row, image = rest % row_blocks * block_rows, rest // row_blocks * block_images
            columns, rows = minimum(block_columns, tile_columns - column), minimum(block_rows, tile_rows - row)
            own_images = minimum(block_images, images - image)
            left, top = column * OUTPUTS, row * OUTPUTS
            image_tiles = rows * columns
            cells, height = columns * OUTPUTS + (TAPS - 1), rows * OUTPUTS + (TAPS - 1)
            for i in loop(own_images):
                for v in loop(channels // lanes):
                    first = group * channels + v * lanes
                    place = image + i, 0, first, top - pad_height, left - pad_width, cells
                    read = _read_lines if layout == "first" else read_strip
                    read(source, Strip(lines, pitch, *tilings), lanes, height, *place)
                    for r in loop(rows):
                        strip = Strip(lines.at(r * OUTPUTS * pitch * lanes), pitch, *tilings)
                        to = inputs.at((i * image_tiles + r * columns) * channels + v * lanes)
                        strip_to_points(
                            strip, to, lanes, [SCHEME.inputs] * 2, (SPAN, SPAN), columns, channels, input_plane, number
                        )
            for p in loop(panels):
                for point in loop(POINTS):
                    values, taps = inputs.at(point * input_plane), points.at((p * POINTS + point) * filter_plane)
                    for t in loop((own_images * image_tiles + (tiles - 1)) // tiles):
                        to = sums.at(point * sums_plane + t * (tiles * width))
                        _multiply(values.at(t * tiles * channels), taps, to, channels, tiles, lanes, vectors)
                for j in range(vectors):
                    first = group * filters + p * width + j * lanes
                    offset = bias.vec(first, lanes)
                    for i in loop(own_images):
                        for r in loop(rows):
                            strip = Strip(lines, pitch, *tilings)
                            done = sums.at((i * image_tiles + r * columns) * width + j * lanes)
                            points_to_strip(done, strip, lanes, schemes, columns, width, sums_plane, offset, number)
                            place = image + i, 0, first, top + r * OUTPUTS, left, columns * OUTPUTS
                            write_strip(target, strip, lanes, *place)

    return text, dict.fromkeys(("w", "bias", "slots"), wide_type(dtype)) | {"x": dtype, "y": out}


def _multiply(values, taps, sums, channels, tiles, lanes, vectors):
    """``sums[i, f] = sum over c of values[i, c] * taps[c, f]`` for some tiles i."""
    totals = [[Variable(sums.zero(lanes)) for _ in range(vectors)] for _ in range(tiles)]
    for c in loop(channels):
        row = [taps.vec((c * vectors + j) * lanes, lanes) for j in range(vectors)]
        for i, tile in enumerate(totals):
            cell = splat(values[i * channels + c], lanes)
            for total, filters in zip(tile, row):
                total.set(fma(cell, filters, total.get()))
    for i, tile in enumerate(totals):
        for j, total in enumerate(tile):
            sums.put((i * vectors + j) * lanes, total.get())


def _read_lines(images, strip, lanes, lines, image, plane, first, top, left, cells):
    """As :func:`read_strip` of an array whose channels are first; vectors begin at the image's edge, not before it."""
    array, _, channels, _, height, width = images
    planes = [(image * channels + (first + i)) * height for i in range(lanes)]
    start = maximum(0 - left, 0)
    vectors = (minimum(cells, width - left) - start + (lanes - 1)) // lanes
    for i in loop(lines):
        h, line = top + i, strip.cells.at(i * strip.pitch * lanes)
        used = within(h, height)
        for q in loop(start):
            line.put(q * lanes, line.zero(lanes))
        for q in loop(vectors):
            w = left + start + q * lanes
            rows = [array.vec((p + h) * width + w, lanes, count=(width - w) * used) for p in planes]
            for k, column in enumerate(transpose(rows)):
                line.put((start + q * lanes + k) * lanes, column)
        for q in loop(cells - start - maximum(vectors, 0) * lanes):
            line.put((start + maximum(vectors, 0) * lanes + q) * lanes, line.zero(lanes))
