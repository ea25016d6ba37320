"""The engine's main kernel: correlation of a padded input with panels of weights, one register tile at a time.

One tile computes ``pixels`` outputs of ``vectors * lanes`` filters, filters in lanes::

    acc[pixel, filters] = bias[filters] + sum over k of  panel[k, filters] * S[offsets[k] + pixel]

``S`` holds the rows that a block of outputs reads, copied with their zero padding into the slot's workspace; k runs over
channels and taps, and ``offsets[k]`` is where tap k of a channel lies. So the kernel needs no im2col matrix and knows nothing
of kernel shapes: dilation, depth, and the phases of an input gradient are tables. A tile is two halves that start at any
two places, so short rows (7 pixels) fill it too; a half that would run over its row's end is shifted back and computed again.
"""

from __future__ import annotations

from konv.engine.compile import kernel
from konv.engine.simd import Variable, fma, loop, maximum, minimum, shuffle, splat, transpose, within

# Sums of so many products are added up: the error falls 2-4 times. 512 would leave 64 channels x 9 taps nearly whole.
BLOCK_TAPS = 192


@kernel
def panels(dtype, lanes, vectors):
    """Weights to panels: ``panel[k, filters]``, filters in lanes, zeros past the last. A piece is a panel of a group.

    ``checks`` gets one number per filter: 0, or NaN where a weight of it is not finite.
    """
    wide = "float64" if dtype == "float64" else "float32"
    width = lanes * vectors

    def text(piece, slot, w, out, checks, sources, group_stride, filter_stride, filters, group_panels, taps):
        group, panel = piece // group_panels, piece % group_panels
        for j in range(vectors):
            first = panel * width + lanes * j
            source = group * group_stride + first * filter_stride
            check = Variable(out.zero(lanes))
            for k in loop(taps):
                row = w.gather(source + sources[k], filter_stride, lanes, filters - first)
                out.put((piece * taps + k) * width + lanes * j, row)
                check.set(fma(row, out.zero(lanes), check.get()))
            checks.put(piece * width + lanes * j, check.get())

    return text, {"w": dtype, "out": wide, "checks": wide, "sources": "int64"}


@kernel
def correlate(x_dtype, y_dtype, lanes, vectors, pixels, stride, contiguous):
    """The correlation. A piece is (image, group, depth, block of rows, block of columns, part of the panels).

    ``stride`` is the step between the inputs of neighbouring pixels, 0 for one that is told at run time.
    Without ``contiguous`` their outputs lie ``y_step`` apart.
    """
    wide = "float64" if x_dtype == "float64" else "float32"
    width, half = lanes * vectors, pixels // 2

    def text(
        piece, slot, x, weights, bias, y, workspace, offsets, depth_cells,
        step, slot_size, groups, channels, x_depth, x_height, x_width, pad_depth, pad_height, pad_width,
        depth_taps, stride_depth, stride_height, taps, filters, group_panels, part_panels, parts,
        out_depth, out_height, out_width, block_rows, row_blocks, block_columns, column_blocks, rows, row_cells,
        y_start, y_image, y_filter, y_depth, y_row, y_step,
    ):  # fmt: skip
        step = stride or step
        part, rest = piece % parts, piece // parts
        column_block, rest = rest % column_blocks, rest // column_blocks
        row_block, rest = rest % row_blocks, rest // row_blocks
        depth, rest = rest % out_depth, rest // out_depth
        group, image = rest % groups, rest // groups
        first_row, first_column = row_block * block_rows, column_block * block_columns
        out_rows = minimum(block_rows, out_height - first_row)
        out_columns = minimum(block_columns, out_width - first_column)

        source = workspace.at(slot * slot_size)
        for c in loop(channels):
            for j in loop(depth_taps):
                d = depth * stride_depth + depth_cells[j] - pad_depth
                for r in loop(rows):
                    h = first_row * stride_height + r - pad_height
                    inside = within(d, x_depth) * within(h, x_height)
                    line = (((image * groups + group) * channels + c) * x_depth + d) * x_height + h
                    start = first_column * step - pad_width
                    for q in loop((row_cells + (lanes - 1)) // lanes):
                        cell = start + q * lanes
                        values = x.vec(line * x_width + cell, lanes, count=(x_width - cell) * inside, start=-cell)
                        to = ((c * depth_taps + j) * rows + r) * row_cells + q * lanes
                        source.put(to, values, count=row_cells - q * lanes)

        halves = (out_columns + (half - 1)) // half
        total = out_rows * halves
        for p in loop(minimum(part_panels, group_panels - part * part_panels)):
            panel = part * part_panels + p
            filter_ = group * filters + panel * width
            block = weights.at((group * group_panels + panel) * taps * width)
            offset_bias = (group * group_panels + panel) * width
            for pair in loop((total + 1) // 2):
                starts, targets = [], []
                for z in range(2):
                    t = minimum(pair * 2 + z, total - 1)
                    r, c = t // halves, minimum((t % halves) * half, maximum(out_columns - half, 0))
                    starts.append(source.at(r * stride_height * row_cells + c * step))
                    column = (first_column + c) * (1 if contiguous else y_step)
                    targets.append(
                        y_start + image * y_image + filter_ * y_filter + depth * y_depth
                        + (first_row + r) * y_row + column
                    )  # fmt: skip
                sums = [
                    Variable(bias.vec(offset_bias + lanes * j, lanes)) for _ in range(pixels) for j in range(vectors)
                ]
                for first in loop((taps + (BLOCK_TAPS - 1)) // BLOCK_TAPS):
                    part_sums = [Variable(bias.zero(lanes)) for _ in sums]
                    for q in loop(minimum(BLOCK_TAPS, taps - first * BLOCK_TAPS)):
                        k = first * BLOCK_TAPS + q
                        row = [block.vec(k * width + lanes * j, lanes) for j in range(vectors)]
                        ends = [start.at(offsets[k]) for start in starts]
                        for i in range(pixels):
                            pixel = splat(ends[i // half][step * (i % half)], lanes)
                            for j in range(vectors):
                                a = part_sums[vectors * i + j]
                                a.set(fma(pixel, row[j], a.get()))
                    for a, b in zip(sums, part_sums):
                        a.set(a.get() + b.get())
                used = minimum(out_columns, half)
                zeros = [bias.zero(lanes)] * (lanes * -(-pixels // lanes) - pixels)
                for j in range(vectors):
                    column = [sums[vectors * i + j].get() for i in range(pixels)] + zeros
                    for g in range(0, len(column), lanes):
                        for f, line in enumerate(transpose(column[g : g + lanes])):
                            exists = within(panel * width + (lanes * j + f), filters)
                            for z in range(2):  # the lanes of this group that belong to half z
                                low, high = max(half * z, g), min(half * (z + 1), g + lanes, pixels)
                                if low >= high:
                                    continue
                                order = [(low - g + i) % lanes for i in range(lanes)]
                                moved = line if low == g else shuffle(line, line, order)
                                at = targets[z] + (lanes * j + f) * y_filter
                                count = minimum(used - (low - half * z), high - low) * exists
                                if contiguous:
                                    y.put(at + (low - half * z), moved, count)
                                else:
                                    y.scatter(at + (low - half * z) * y_step, y_step, moved, count)

    pointers = {"x": x_dtype, "weights": wide, "bias": wide, "y": y_dtype, "workspace": wide}
    return text, {**pointers, "offsets": "int64", "depth_cells": "int64"}
