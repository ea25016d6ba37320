"""Kernels with pixels in lanes: for groups of few filters, depthwise above all, where filters would leave lanes empty.

``S`` holds the padded rows that a block of outputs reads, each row split by its phase (cell % stride): then the cells of
neighbouring outputs are neighbours for every tap, whatever the stride is. A tile is ``filters`` x ``rows`` x ``columns``
vectors of outputs; each step reads one vector for each row and column, and multiplies it with one weight of each filter.
"""

from __future__ import annotations

from konv.engine.compile import kernel
from konv.engine.simd import Variable, fma, loop, maximum, minimum, splat, within


def copy_plane(
    x, x_start, target, row_stride, lanes, stride, height, length, first_row, rows, first_cell, cells, exists
):
    """Padded rows of one plane of x to ``target[row][phase][cells]``; rows ``row_stride`` apart.

    Row r is row ``first_row + r`` of the plane (``height`` x ``length``), zeros where there is none; cell i of phase p is cell
    ``first_cell + i * stride + p``.
    """
    for r in loop(rows):
        h = first_row + r
        inside = within(h, height) * exists
        for phase in loop(stride):
            for q in loop((cells + (lanes - 1)) // lanes):
                cell = first_cell + phase + q * lanes * stride
                source = x_start + h * length + cell
                # lanes l with 0 <= cell + l * stride < length
                count = lanes_for(length - cell, stride) * inside
                start = lanes_for(0 - cell, stride)
                if isinstance(stride, int) and stride == 1:
                    values = x.vec(source, lanes, count=count, start=start)
                else:
                    values = x.gather(source, stride, lanes, count=count, start=start)
                target.put(r * row_stride + phase * cells + q * lanes, values, count=cells - q * lanes)


def lanes_for(n, stride):
    """ceil(n / stride), 0 where n is negative."""
    return (maximum(n, 0) + (stride - 1)) // stride


@kernel
def correlate_planes(x_dtype, y_dtype, lanes, filters, rows, columns, stride, contiguous):
    """Forward, or a phase of the input gradient. A piece is (image, group, depth, block of rows)."""
    wide = "float64" if x_dtype == "float64" else "float32"

    def text(
        piece, slot, x, weights, bias, y, workspace, offsets, depth_cells,
        step, slot_size, groups, channels, x_depth, x_height, x_width, pad_depth, pad_height, pad_width,
        depth_taps, stride_depth, stride_height, taps, group_filters,
        out_depth, out_height, out_width, block_rows, row_blocks, block_input_rows, phase_cells,
        y_start, y_image, y_filter, y_depth, y_row, y_step,
    ):  # fmt: skip
        step = stride or step
        row_block, rest = piece % row_blocks, piece // row_blocks
        depth, rest = rest % out_depth, rest // out_depth
        group, image = rest % groups, rest // groups
        first_row = row_block * block_rows
        out_rows = minimum(block_rows, out_height - first_row)
        pitch = phase_cells * step
        source = workspace.at(slot * slot_size)
        for c in loop(channels):
            for j in loop(depth_taps):
                d = depth * stride_depth + depth_cells[j] - pad_depth
                plane = (((image * groups + group) * channels + c) * x_depth + d) * x_height * x_width
                copy_plane(
                    x, plane, source.at((c * depth_taps + j) * block_input_rows * pitch), pitch, lanes, step, x_height, x_width,
                    first_row * stride_height - pad_height, block_input_rows, 0 - pad_width, phase_cells, within(d, x_depth),
                )  # fmt: skip

        for block in loop(group_filters // filters):
            first_filter = group * group_filters + block * filters
            factors = weights.at(first_filter * taps)
            for row_tile in loop((out_rows + (rows - 1)) // rows):
                row = row_tile * rows
                for column_tile in loop((out_width + (lanes * columns - 1)) // (lanes * columns)):
                    column = column_tile * lanes * columns
                    corner = source.at(row * stride_height * pitch + column)
                    sums = {
                        (f, r, q): Variable(splat(bias[first_filter + f], lanes))
                        for f in range(filters)
                        for r in range(rows)
                        for q in range(columns)
                    }
                    for k in loop(taps):
                        at = corner.at(offsets[k])
                        pixels = {
                            (r, q): at.vec(r * stride_height * pitch + q * lanes, lanes)
                            for r in range(rows)
                            for q in range(columns)
                        }
                        for f in range(filters):
                            factor = splat(factors[k * filters + f], lanes)
                            for r, q in pixels:
                                a = sums[f, r, q]
                                a.set(fma(factor, pixels[r, q], a.get()))
                    for (f, r, q), a in sums.items():
                        count = (out_width - column - q * lanes) * within(row + r, out_rows)
                        to = (
                            y_start + image * y_image + (first_filter + f) * y_filter + depth * y_depth
                            + (first_row + row + r) * y_row
                        )  # fmt: skip
                        if contiguous:
                            y.put(to + column + q * lanes, a.get(), count)
                        else:
                            y.scatter(to + (column + q * lanes) * y_step, y_step, a.get(), count)

    pointers = {"x": x_dtype, "weights": wide, "bias": wide, "y": y_dtype, "workspace": wide}
    return text, {**pointers, "offsets": "int64", "depth_cells": "int64"}


@kernel
def accumulate_planes(dtype, lanes, taps_in_tile, stride):
    """``sums[filter, channel, tap, lane] = sum of dy * x`` over all images, a lane for each. A piece is a group."""
    wide = "float64" if dtype == "float64" else "float32"

    def text(
        piece, slot, x, dy, sums, workspace, offsets, depth_cells,
        step, slot_size, images, groups, channels, group_filters, x_depth, x_height, x_width, pad_depth, pad_height, pad_width,
        depth_taps, stride_depth, stride_height, tap_tiles, out_depth, out_height, out_width, input_rows, phase_cells,
    ):  # fmt: skip
        step = stride or step
        pitch = phase_cells * step
        source = workspace.at(slot * slot_size)
        first_sum = piece * group_filters * channels * tap_tiles * taps_in_tile * lanes
        for i in loop(group_filters * channels * tap_tiles * taps_in_tile):
            sums.put(first_sum + i * lanes, sums.zero(lanes))
        for image in loop(images):
            for depth in loop(out_depth):
                for c in loop(channels):
                    for j in loop(depth_taps):
                        d = depth * stride_depth + depth_cells[j] - pad_depth
                        plane = (((image * groups + piece) * channels + c) * x_depth + d) * x_height * x_width
                        copy_plane(
                            x, plane, source.at(j * input_rows * pitch), pitch, lanes, step, x_height, x_width, 0 - pad_height,
                            input_rows, 0 - pad_width, phase_cells, within(d, x_depth),
                        )  # fmt: skip
                    for f in loop(group_filters):
                        upstream = ((image * groups + piece) * group_filters + f) * out_depth + depth
                        for tile in loop(tap_tiles):
                            to = first_sum + ((f * channels + c) * tap_tiles + tile) * taps_in_tile * lanes
                            totals = [Variable(sums.vec(to + t * lanes, lanes)) for t in range(taps_in_tile)]
                            ends = [source.at(offsets[tile * taps_in_tile + t]) for t in range(taps_in_tile)]
                            for r in loop(out_height):
                                for q in loop((out_width + (lanes - 1)) // lanes):
                                    count = out_width - q * lanes
                                    cell = (upstream * out_height + r) * out_width + q * lanes
                                    gradient = dy.vec(cell, lanes, count=count)
                                    at = r * stride_height * pitch + q * lanes
                                    for total, end in zip(totals, ends):
                                        total.set(fma(gradient, end.vec(at, lanes, count=count), total.get()))
                            for t, total in enumerate(totals):
                                sums.put(to + t * lanes, total.get())

    pointers = {"x": dtype, "dy": dtype, "sums": wide, "workspace": wide, "offsets": "int64", "depth_cells": "int64"}
    return text, pointers
