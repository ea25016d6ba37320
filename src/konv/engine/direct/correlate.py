"""The direct kernel: correlation of a padded input with filters, block by block, through the register tile.

A piece is a block of outputs, of one image or of several small ones, for a part of the filters. The channels come in slices.
Of each, the rows that the block reads are copied with their zero padding; then, for one panel of filters after the
other, the weights are transposed into lanes, and tiles add the products to the block's sums, which are written out after
the last slice. All of that lies in the slot's own workspace, which L2 holds.

``offsets`` tells where the input of a tap lies: the kernel needs no im2col matrix and knows nothing of kernel
shapes, dilation or depth. The phases of an input gradient (see :mod:`konv.engine.direct.direct`) are sums whose cells interleave.
"""

from __future__ import annotations

from konv.engine.compile import kernel
from konv.engine.machine import wide_type
from konv.engine.packing import (
    outputs_first,
    outputs_joined,
    outputs_last,
    panel_of_taps,
    panel_of_weights,
    rows_first,
    rows_last,
    rows_together,
)
from konv.engine.simd import Variable, loop, minimum, within
from konv.engine.tile import Tile, multiply

PHASE = 5  # numbers of a phase in its table, see sweeps.Tables
RUN = 3  # numbers of a run in its table: where it begins in the copied input, in the sums, and in the output


@kernel
def correlate(x_dtype, y_dtype, lanes, vectors, runs, run, step, x_layout, y_layout, taps):
    """The correlation. A piece is (block of images, group, depth, block of rows, block of columns, part of the panels).

    ``x_layout`` is "first", "last", or "together" where all channels are copied at once, last. ``step`` lies between the
    inputs of neighbouring outputs, 0 for one that is told at run time (``cell`` times the stride). A filter's weights are
    one row, or ``rows_of_weights`` for each channel of a slice; with ``taps``, rows of so many, and neighbouring filters are
    neighbours. ``checks`` becomes NaN where a weight is not finite.
    """
    wide = wide_type(x_dtype)
    tile = Tile(lanes, vectors, runs, run)
    width = tile.filters
    lay_rows = {"first": rows_first, "last": rows_last, "together": rows_together}[x_layout]

    def text(
        piece, slot, x, w, bias, y, workspace, run_places, checks, offsets, depth_cells, places, phases, kinds,
        images, block_images, groups, out_depth, out_rows, block_rows, row_blocks, out_columns, block_columns, column_blocks,
        filters, group_panels, part_panels, parts, channels, slices, slice_channels,
        x_image, x_channel, x_depth, x_row, x_cell, depth_length, height_length, row_length,
        stride_depth, stride_height, stride_row, pad_depth, pad_height, pad_width, depth_taps, rows, cells, cell,
        group_step, filter_step, channel_step, rows_of_weights, kernel_size, places_size, phase_count, phase_rows, phase_columns,
        y_image, y_filter, y_depth, y_row, y_cell, y_height, y_width, start_depth, step_depth, ask, join_rows, join_columns,
        slot_size, run_size, panel_start, bias_start, sums_start, panel_sums,
    ):  # fmt: skip
        pixel_step = step or stride_row * cell
        part, rest = piece % parts, piece // parts
        column_block, rest = rest % column_blocks, rest // column_blocks
        row_block, rest = rest % row_blocks, rest // row_blocks
        depth, rest = rest % out_depth, rest // out_depth
        group, first_image = rest % groups, rest // groups * block_images
        first_row, first_column, first_panel = row_block * block_rows, column_block * block_columns, part * part_panels
        here_images = minimum(block_images, images - first_image)
        here_rows = minimum(block_rows, out_rows - first_row)
        here_columns = minimum(block_columns, out_columns - first_column)
        here_panels = minimum(part_panels, group_panels - first_panel)

        space = workspace.at(slot * slot_size)
        panel = space.at(panel_start)
        line = depth_taps * slice_channels * cells  # of the copied input: one row of an image
        row_runs = (here_columns + (run - 1)) // run
        total = here_images * here_rows * row_runs
        pitch = row_runs * run * phase_columns  # cells of a row of sums
        kind = kinds[depth] + kinds[out_depth + row_block] + kinds[out_depth + row_blocks + column_block]
        places_here, phases_here = places.at(kind * places_size), phases.at(kind * phase_count * PHASE)

        # where each run begins: in the copied input, and in the sums; then those that only fill the last tile
        table = run_places.at(slot * run_size)
        for i in loop(here_images):
            for r in loop(here_rows):
                for c in loop(row_runs):
                    q = ((i * here_rows + r) * row_runs + c) * RUN
                    table[q] = (i * rows + r * stride_height) * line + c * (run * stride_row * cell)
                    table[q + 2] = i * y_image + r * phase_rows * y_row + c * (run * phase_columns) * y_cell
                    table[q + 1] = ((i * here_rows + r) * phase_rows * pitch + c * (run * phase_columns)) * width
        for z in range(runs):
            table[(total + z) * RUN] = 0
            table[(total + z) * RUN + 2] = 0
            table[(total + z) * RUN + 1] = (
                here_images * here_rows * phase_rows * pitch + z * run * phase_columns
            ) * width

        for p in loop(here_panels):
            for j in range(vectors):
                f = (first_panel + p) * width + lanes * j
                space.put(bias_start + p * width + lanes * j, bias.vec(group * filters + f, lanes, count=filters - f))

        for s in loop(slices):
            first_channel = s * slice_channels
            here_channels = minimum(slice_channels, channels - first_channel)
            check = Variable(checks.vec(slot * lanes, lanes))  # not kept in a register while tiles are computed
            for i in loop(here_images):
                for r in loop(rows):
                    for j in loop(depth_taps):
                        d = depth * stride_depth + depth_cells[j] - pad_depth
                        h = first_row * stride_height + r - pad_height
                        corner = (first_image + i) * x_image + (group * channels + first_channel) * x_channel
                        lay_rows(
                            x, corner + d * x_depth + h * x_row, here_channels, x_channel if x_layout == "first" else x_cell,
                            first_column * stride_row - pad_width, row_length, within(d, depth_length) * within(h, height_length),
                            space.at((i * rows + r) * line + j * slice_channels * cells), cells, lanes,
                            check if y_layout == "joined" else None, cell,
                        )  # fmt: skip

            checks.put(slot * lanes, check.get())
            later = minimum(s, 1)  # the first slice is added to the bias, the others to the sums
            last = within(s - (slices - 1), 1)
            for p in loop(here_panels):
                f = (first_panel + p) * width
                corner_y = (
                    first_image * y_image + (group * filters + f) * y_filter + (start_depth + depth * step_depth) * y_depth
                    + first_row * phase_rows * y_row + first_column * phase_columns * y_cell
                )  # fmt: skip
                source = group * group_step + f * filter_step + first_channel * channel_step
                check = Variable(checks.vec(slot * lanes, lanes))
                if taps:
                    panel_of_taps(
                        w,
                        source,
                        filters - f,
                        here_channels,
                        channel_step,
                        taps,
                        places_here,
                        panel,
                        lanes,
                        vectors,
                        check,
                    )
                else:
                    panel_of_weights(
                        w, source, filters - f, filter_step,
                        rows_of_weights * here_channels + (1 - rows_of_weights), channel_step,
                        kernel_size * (rows_of_weights + (1 - rows_of_weights) * here_channels),
                        rows_of_weights * 4 * channel_step + (1 - rows_of_weights) * 64,
                        places_here, panel, lanes, vectors, check,
                    )  # fmt: skip
                checks.put(slot * lanes, check.get())
                bias_row, sums = bias_start + p * width, sums_start + p * panel_sums
                for phase in loop(phase_count):
                    n = [phases_here[phase * PHASE + i] for i in range(PHASE)]
                    length, corner = n[2] * here_channels, sums + (n[3] * pitch + n[4]) * width
                    for t in loop((total + (runs - 1)) // runs):
                        entries = [table.at((t * runs + z) * RUN) for z in range(runs)]
                        if y_layout == "first":  # or the stores would wait for memory
                            for i in loop(minimum(filters - f, width) * ask * last * (1 - minimum(n[4], 1))):
                                y.prefetch(corner_y + n[3] * y_row + entries[0][2] + i * y_filter)
                        targets = [corner + entry[1] for entry in entries]
                        multiply(
                            tile, panel.at(n[1] * width), offsets.at(n[0]), length,
                            [space.at(entry[0]) for entry in entries], pixel_step,
                            [space.at(bias_row + later * (at - bias_row)) for at in targets], later * (width * phase_columns),
                            [space.at(at) for at in targets], width * phase_columns,
                        )  # fmt: skip
                for i in loop(here_images * last if y_layout != "last" else 0):
                    for r in loop(here_rows * phase_rows):
                        row, line_of_sums = (
                            first_row * phase_rows + r,
                            sums + (i * here_rows * phase_rows + r) * pitch * width,
                        )
                        if y_layout == "joined":
                            outputs_joined(
                                space.at(line_of_sums), here_columns, f, filters, join_rows, join_columns, row, y_height,
                                first_column, y_width, y.at((first_image + i) * y_image + depth * y_depth),
                                y_filter, y_row, y_cell, width,
                            )  # fmt: skip
                            continue
                        outputs_first(
                            space.at(line_of_sums),
                            minimum(here_columns * phase_columns, y_width - first_column * phase_columns) * within(row, y_height),
                            filters - f, y_filter, y.at(corner_y + i * y_image + r * y_row), lanes, vectors,
                        )  # fmt: skip

            for i in loop(here_images * last if y_layout == "last" else 0):
                f = first_panel * width
                corner_y = (
                    (first_image + i) * y_image + group * filters + f + (start_depth + depth * step_depth) * y_depth
                    + first_row * phase_rows * y_row + first_column * phase_columns * y_cell
                )  # fmt: skip
                for r in loop(here_rows * phase_rows):
                    outputs_last(
                        space.at(sums_start + (i * here_rows * phase_rows + r) * pitch * width),
                        minimum(here_columns * phase_columns, y_width - first_column * phase_columns)
                        * within(first_row * phase_rows + r, y_height),
                        here_panels, panel_sums, filters - f, y_cell, y.at(corner_y + r * y_row), lanes, vectors,
                    )  # fmt: skip

    pointers = {"x": x_dtype, "w": x_dtype, "bias": x_dtype, "y": y_dtype, "workspace": wide, "checks": wide}
    return text, pointers | dict.fromkeys(
        ("run_places", "offsets", "depth_cells", "places", "phases", "kinds"), "int64"
    )
