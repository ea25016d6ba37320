"""Forward and input gradient of convolutions that are matrix products, pixels in lanes; see :mod:`konv.engine.windows`.

What memory is slow to bring is asked for while tiles multiply. Asking for the lines of dx, too, before they are written changed
nothing.
"""

from __future__ import annotations

from konv.engine.compile import kernel
from konv.engine.machine import wide_type
from konv.engine.simd import Variable, loop, maximum, minimum, pick, splat, within
from konv.engine.windows import in_vectors, multiply_tile, panel_columns, read_windows, runs, write_windows, write_zeros

AHEAD = 16  # rows are asked for so many products before they are read: they lie pages apart


@kernel
def multiply_pixels(x_dtype, y_dtype, lanes, vectors, tail, rows, turned, x_stride, x_taps, y_stride, y_taps):
    """Forward and input gradient: y = w @ x + bias. A piece is (block of pixels, group, part of the rows).

    Rows of w are read where they lie; those of its transpose (``turned``), and half types, are copied a few at a time.
    What can be copied by the first tile that reads it is, while that tile multiplies: the memory's time is hidden.
    The last panel has ``tail`` vectors; or "half" a one: several of those are computed at a time where vectors are wide.
    The last block of pixels, which may be short, is cut into parts of its own, so that the threads end together.

    ``x_stride, x_taps`` tell how windows lie in a row of x: those of neighbouring pixels begin ``x_stride`` cells apart
    and have ``x_taps`` cells (0: any number, told at run time); likewise what is written for a pixel in a row of y.

    The numbers of a job are of five groups (:func:`konv.engine.products.products_jobs.prepare_product` computes them):

    - the product: ``row_count`` rows of w, each a sum of ``reduction`` products, for ``pixels`` of all images, in ``groups``
    - how it is cut: ``block_panels`` panels of pixels are packed, ``panel_size`` elements each, into a slot of ``slot_size``;
      ``part_groups`` times ``row_group`` rows, one of ``parts``, meet them. The pieces from ``whole_pieces`` on are of the last
      block, behind ``whole_blocks`` whole ones, whose parts are ``tail_parts`` of ``tail_groups``
    - ``x_image``, ``x_channel``, ``x_depth``, ``x_row``: elements from one to the next; ``x_channels`` of a group; ``x_cells`` of
      a row; windows of ``x_kernel_...`` cells, ``x_step_...`` and ``x_step`` cells apart. Pixels lie in lines of
      ``x_line_pixels``, ``x_depth_lines`` to a plane, ``x_image_lines`` to an image; ``x_runs``: lines that a panel may meet
    - the same of y, with ``y_depths`` and ``y_rows`` of an image; ``y_fill_...``: rows that are written for a row of pixels
      where no window reads those between; ``y_plain``: a pixel is one cell, and they are neighbours
    - what is asked for meanwhile: ``next_pixels`` on, the ``x_lines`` lines of a block
    """
    wide = wide_type(x_dtype)
    width = lanes * vectors
    tail_lanes, tail = (lanes // 2, 1) if tail == "half" else (lanes, tail)
    copied = turned or wide != x_dtype
    one_cell = x_stride == 1 and x_taps == 1

    def text(
        piece, slot, w, x, bias, y, workspace, slot_size, panel_size, block_panels, groups, parts, part_groups, row_group,
        row_count, reduction, pixels,
        x_line_pixels, x_depth_lines, x_image_lines, x_runs, y_line_pixels, y_depth_lines, y_image_lines, y_runs,
        x_image, x_channels, x_channel, x_depth, x_row, x_cells, x_kernel_depth, x_kernel_height, x_kernel_width,
        x_step_depth, x_step_height, x_step,
        y_image, y_channels, y_channel, y_depth, y_row, y_depths, y_rows, y_cells, y_kernel_depth, y_kernel_height,
        y_kernel_width, y_step_depth, y_step_height, y_step, y_fill_depth, y_fill_height,
        y_plain, next_pixels, x_lines, whole_pieces, whole_blocks, tail_parts, tail_groups,
    ):  # fmt: skip
        x_kernel_width, y_kernel_width = x_taps or x_kernel_width, y_taps or y_kernel_width
        x_step, y_step = x_stride or x_step, y_stride or y_step
        tail_piece = 1 - within(piece, whole_pieces)
        parts, part_groups = pick(tail_piece, tail_parts, parts), pick(tail_piece, tail_groups, part_groups)
        part, rest = (piece - tail_piece * whole_pieces) % parts, (piece - tail_piece * whole_pieces) // parts
        group = rest % groups
        first = (rest // groups + tail_piece * whole_blocks) * block_panels * width
        last = minimum(first + block_panels * width, pixels)
        panels = (last - first + (width - 1)) // width
        x_size = pixels // (x_image_lines * x_line_pixels) * x_image
        packed = workspace.at(slot * slot_size)
        result = packed.at(panel_size * block_panels)
        copies = result.at(row_group * width + lanes)

        def located(line, image_lines, depth_lines):
            """Image, depth and height of a line of pixels."""
            return line // image_lines, line % image_lines // depth_lines, line % depth_lines

        def window(line, column):
            """Where the window of a pixel begins in x."""
            image, depth, height = located(line, x_image_lines, x_depth_lines)
            return (
                image * x_image + group * x_channels * x_channel + depth * x_step_depth * x_depth
                + height * x_step_height * x_row + column * x_step
            )  # fmt: skip

        def full_line(begin, line_pixels):
            """Whether a panel is full, and its pixels are neighbours in a line."""
            return within(width - 1, last - begin) * within(begin % line_pixels, line_pixels - (width - 1))

        # A block of whole panels within a line is read channel by channel, in long pieces; others run by run
        line, column = first // x_line_pixels, first % x_line_pixels
        row_cells = x_cells - column * x_step
        block_pixels = panels * width
        alone = (
            within(0, last - first - (block_pixels - 1))
            * within(column, x_line_pixels - (block_pixels - 1))
            * within(block_pixels * x_step, row_cells + 1)
        )
        direct = within(reduction, x_channels + 1) if one_cell else 0  # q is a channel
        alone *= 1 - direct
        start = window(line, column)
        for c in loop(x_channels * alone):
            for d in loop(x_kernel_depth):
                for h in loop(x_kernel_height):
                    cell = start + c * x_channel + d * x_depth + h * x_row
                    q = ((c * x_kernel_depth + d) * x_kernel_height + h) * x_kernel_width
                    for panel in loop(panels):
                        target = packed.at(panel * panel_size + q * width)
                        for j in range(vectors):
                            at = cell + (panel * width + lanes * j) * x_step
                            taps = read_windows(
                                x.at(at), x_step, x_stride, x_taps, x_kernel_width, lanes, None, None, x_size - at
                            )
                            for t, numbers in taps:
                                target.put(t * width + lanes * j, numbers)
        for panel in loop(panels * (1 - alone)):
            begin = first + panel * width
            copying = x_runs * (1 - direct * full_line(begin, x_line_pixels))
            for pixel, line, column, count in runs(begin, minimum(begin + width, last), copying, x_line_pixels):
                start = window(line, column)
                row_cells = x_cells - column * x_step
                few = 0 if x_taps else within(x_line_pixels, lanes // 2 + 1)  # would leave most of a transpose empty
                if not x_taps:
                    for j in loop(count * few):
                        target = packed.at(panel * panel_size + (pixel - begin) + j)
                        for c in loop(x_channels):
                            for d in loop(x_kernel_depth):
                                for h in loop(x_kernel_height):
                                    cell = start + c * x_channel + d * x_depth + h * x_row + j * x_step
                                    q = ((c * x_kernel_depth + d) * x_kernel_height + h) * x_kernel_width
                                    for t in loop(x_kernel_width):
                                        target[(q + t) * width] = x[cell + t]
                for j, used in in_vectors(count * (1 - few), row_cells // x_step, lanes):
                    target = packed.at(panel * panel_size + (pixel - begin) + j)
                    for c in loop(x_channels):
                        for d in loop(x_kernel_depth):
                            for h in loop(x_kernel_height):
                                cell = start + c * x_channel + d * x_depth + h * x_row + j * x_step
                                q = ((c * x_kernel_depth + d) * x_kernel_height + h) * x_kernel_width
                                x.prefetch(cell + AHEAD * x_channel)
                                taps = read_windows(
                                    x.at(cell), x_step, x_stride, x_taps, x_kernel_width, lanes, used,
                                    row_cells - j * x_step, x_size - cell,
                                )  # fmt: skip
                                for t, numbers in taps:
                                    target.put((q + t) * width, numbers, count=used)

        row_blocks = minimum(part_groups, (row_count + (row_group - 1)) // row_group - part * part_groups)
        # The cells of the next piece are asked for, tile by tile: some rows of its windows in one of its lines
        next_first = minimum(first + next_pixels, pixels - 1)
        next_line, next_column = next_first // x_line_pixels, next_first % x_line_pixels
        all_tiles = row_blocks * panels * (row_group // rows)
        line_tiles = maximum(all_tiles // x_lines, 1)
        tile_lines = (x_lines + (all_tiles - 1)) // all_tiles
        tile_numbers = (x_channels * x_kernel_depth * x_kernel_height + (line_tiles - 1)) // line_tiles
        next_cells = minimum(x_line_pixels, block_panels * width) * x_step

        def ask(number):
            """Ask for what this tile, of all, asks for."""
            for z in loop(tile_lines):
                cells = x.at(window(next_line + number // line_tiles * tile_lines + z, next_column))
                for i in loop(tile_numbers):
                    n = number % line_tiles * tile_numbers + i
                    h, rest = n % x_kernel_height, n // x_kernel_height
                    d, c = rest % x_kernel_depth, rest // x_kernel_depth
                    for k in loop(next_cells // lanes + 1):
                        cells.prefetch(c * x_channel + d * x_depth + h * x_row + k * lanes, later=True)

        for row_block in loop(row_blocks):
            first_row = (part * part_groups + row_block) * row_group
            used_rows = minimum(row_group, row_count - first_row)
            matrix = w.at(
                (group * reduction * row_count + first_row) if turned else (group * row_count + first_row) * reduction
            )
            few_rows = within(used_rows, lanes + 1) if turned else 0
            if turned:  # copies[rows / lanes, q, lanes]
                for i, used in in_vectors(used_rows * (1 - few_rows), used_rows, lanes):
                    for q in loop(reduction):
                        matrix.prefetch((q + AHEAD) * row_count + i)
                        copies.put(i * reduction + q * lanes, matrix.vec(q * row_count + i, lanes, count=used))
            elif copied:
                for r in loop(used_rows):
                    for q, used in in_vectors(reduction, reduction, lanes):
                        copies.put(r * reduction + q, matrix.vec(r * reduction + q, lanes, count=used), count=used)
            for panel in loop(panels):
                begin = first + panel * width
                end = minimum(begin + width, last)
                panel_packed = packed.at(panel * panel_size)
                plain = panel_columns(panel_packed, width, lanes, vectors)
                # A whole panel within a line is written from the registers, if its pixels are neighbours in y
                full = full_line(begin, x_line_pixels)
                whole = y_plain * full_line(begin, y_line_pixels) if y_stride == 1 else 0
                image, depth, height = located(begin // y_line_pixels, y_image_lines, y_depth_lines)
                target = y.at(image * y_image + depth * y_depth + height * y_row + begin % y_line_pixels)
                ahead = minimum(begin + next_pixels, pixels - 1)
                upcoming = x.at(window(ahead // x_line_pixels, ahead % x_line_pixels))
                here = x.at(window(begin // x_line_pixels, begin % x_line_pixels))

                def copying(q, here=here, panel_packed=panel_packed):
                    """Pixels of channel q, read where they lie, and copied."""
                    at = q * x_channel
                    numbers = [here.vec(at + lanes * j, lanes) for j in range(vectors)]
                    for j, pixel in enumerate(numbers):
                        here.prefetch(at + AHEAD * x_channel + lanes * j)
                        panel_packed.put(q * width + lanes * j, pixel)
                    return numbers

                def looking_ahead(q, plain=plain, upcoming=upcoming, row_block=row_block):
                    """Packed pixels; a line of memory of the piece after this one is asked for."""
                    upcoming.prefetch(q * x_channel + row_block % (vectors + 1) * lanes, later=True)
                    return plain(q)

                def place(k, image, depth, height, first_row=first_row):
                    """Where row ``k * y_kernel_width`` of y begins in the windows of a line of pixels; depth and height there."""
                    c, d, h = first_row // y_kernel_width + k, depth, height
                    if turned:  # y has windows; divisions are slow
                        h, rest = c % y_kernel_height, c // y_kernel_height
                        d, c = rest % y_kernel_depth, rest // y_kernel_depth
                        h, d = height * y_step_height + h, depth * y_step_depth + d
                    channel = image * y_image + (group * y_channels + c) * y_channel
                    return y.at(channel + d * y_depth + h * y_row), d, h

                for tile in loop((used_rows + (rows - 1)) // rows):
                    if not one_cell:
                        ask((row_block * panels + panel) * (row_group // rows) + tile)
                    # Rows past the last are the last again
                    places = [minimum(tile * rows + i, used_rows - 1) for i in range(rows)]
                    numbers = [group * row_count + first_row + r for r in places]
                    sums = [Variable(splat(bias[r], lanes)) for r in numbers for _ in range(vectors)]
                    kept = result.at(tile * rows * width)
                    if turned:
                        lines = [copies.at(r // lanes * lanes * reduction + r % lanes) for r in places]
                    else:
                        lines = [(copies if copied else matrix).at(r * reduction) for r in places]
                    if y_stride == 1:
                        for _ in loop(whole):
                            for r in numbers:
                                for j in range(vectors):
                                    target.prefetch(r * y_channel + lanes * j, write=True)
                    begins = within(tile, 1)
                    variants = [(1, plain)]
                    if one_cell:
                        new = direct * full * within(row_block, 1) * begins
                        variants = [(1 - new, looking_ahead), (new, copying)]
                    turning = few_rows * begins * within(panel, 1)
                    shorter = within(end - begin, tail_lanes * tail + 1) * (1 - turning) if tail else 0
                    for when, columns in variants:
                        for _ in loop(when * (1 - turning) * (1 - shorter)):
                            multiply_tile(lines, lanes if turned else 1, columns, reduction, lanes, sums, kept)
                        if turned:

                            def turn(q, columns=columns, matrix=matrix, used_rows=used_rows):
                                """The columns of q, beside which its rows are copied."""
                                matrix.prefetch((q + AHEAD) * row_count)
                                copies.put(q * lanes, matrix.vec(q * row_count, lanes, count=used_rows))
                                return columns(q)

                            for _ in loop(when * turning):
                                in_place = [matrix.at(r) for r in places]
                                multiply_tile(in_place, row_count, turn, reduction, lanes, sums, kept)
                    if tail:
                        columns = panel_columns(panel_packed, width, tail_lanes, tail)
                        some = [sums[vectors * i + j] for i in range(rows) for j in range(tail)]
                        if tail_lanes < lanes:
                            some = [Variable(splat(bias[r], tail_lanes)) for r in numbers]
                        for _ in loop(shorter):
                            multiply_tile(lines, lanes if turned else 1, columns, reduction, tail_lanes, some, kept)
                    if y_stride == 1:
                        for _ in loop(whole):
                            for i, r in enumerate(numbers):
                                for j in range(vectors):
                                    target.put(r * y_channel + lanes * j, sums[vectors * i + j].get())
                    for _ in loop(1 - whole):
                        for i in range(rows * vectors):
                            kept.put(i * lanes, sums[i].get())
                    if tail_lanes < lanes:
                        for _ in loop(shorter):
                            for i, total in enumerate(some):
                                kept.put(i * width, total.get())

                for pixel, line, column, count in runs(begin, end, y_runs * (1 - whole), y_line_pixels):
                    image, depth, height = located(line, y_image_lines, y_depth_lines)
                    row_cells = y_cells - column * y_step
                    for j, used in in_vectors(count, row_cells // y_step, lanes):
                        for k in loop(used_rows // y_kernel_width):
                            cells, d, h = place(k, image, depth, height)
                            target = cells.at((column + j) * y_step)
                            write_windows(
                                target, y_step, y_stride, y_taps, y_kernel_width, lanes, used, row_cells - j * y_step,
                                result.at(k * y_kernel_width * width + (pixel - begin) + j), width,
                            )  # fmt: skip
                            for other in loop(y_fill_depth * y_fill_height - 1):  # lines that no window reads
                                more_d, more_h = (other + 1) // y_fill_height, (other + 1) % y_fill_height
                                for _ in loop(within(d + more_d, y_depths) * within(h + more_h, y_rows)):
                                    line_target = target.at(more_d * y_depth + more_h * y_row)
                                    write_zeros(line_target, y_stride, lanes, used, row_cells - j * y_step)

    return text, {"w": x_dtype, "x": x_dtype, "bias": wide, "y": y_dtype, "workspace": wide}
