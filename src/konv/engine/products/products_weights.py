"""Weight gradient of convolutions that are matrix products; see :mod:`konv.engine.windows`.

Where rows of dy lie a multiple of 4 KiB apart they would displace each other in the caches, and each tile fetch them anew:
they are copied, block by block, which took U-Net's weight gradient at 64 x 64 from 10 to 6.7 ms.
Asking for the lines of dw before they are written changed nothing.
"""

from __future__ import annotations

from konv.engine.compile import kernel
from konv.engine.machine import wide_type
from konv.engine.simd import Variable, loop, minimum, transpose, within
from konv.engine.windows import in_vectors, multiply_tile, panel_columns, read_windows, runs


@kernel
def weight_sums(dtype, out_dtype, lanes, vectors, rows, x_stride, x_taps, copied):
    """Weight gradient: ``out[f, q] = sum over pixels of dy[f, pixel] * x[q, pixel]``, q = (channel, kernel index).

    If ``biased``, the sums of dy too, a row of a tile when its products have just brought it: dy is not read for them again.

    A piece is (part of the pixels, group, region of filters, region of q). Block by block of pixels, x is turned into
    ``packed[pixel, q]``, and a tile's products are added to the region's sums, which stay in L2. Rows of dy are read where
    they lie, or ``copied`` beside: half types, which are widened once, and rows that displace each other.
    """
    wide = wide_type(dtype)
    width = lanes * vectors

    def text(
        piece, slot, dy, x, out, bias, workspace, biased, slot_size, groups, parts, row_count, region_rows, row_regions,
        reduction, region_columns, column_regions, images, pixels, blocks, image_blocks, block_images, block_pixels, most_runs,
        block_lines, x_line_pixels, x_depth_lines, x_image_lines,
        x_image, x_channels, x_channel, x_depth, x_row, x_cells, x_kernel_depth, x_kernel_height, x_kernel_width,
        x_step_depth, x_step_height, x_step,
    ):  # fmt: skip
        x_kernel_width, x_step = x_taps or x_kernel_width, x_stride or x_step
        column_region, rest = piece % column_regions, piece // column_regions
        row_region, rest = rest % row_regions, rest // row_regions
        group, part = rest % groups, rest // groups
        first_row, first_column = row_region * region_rows, column_region * region_columns
        used_rows = minimum(region_rows, row_count - first_row)
        used_columns = minimum(region_columns, reduction - first_column)
        tiles, panels = (used_rows + (rows - 1)) // rows, (used_columns + (width - 1)) // width

        biased *= within(column_region, 1)
        kept = workspace.at(slot * slot_size)
        biases = kept.at(rows * width)  # [row, lane]
        sums = biases.at((region_rows + lanes) * lanes)
        packed = sums.at(region_rows * region_columns)
        if x_taps:  # packed[panel, pixel, columns of a panel]
            pitch, panel_size = width, block_images * block_pixels * width
            numbers = packed.at(panel_size * (region_columns // width) + lanes * width)  # dy, where it is copied
        else:  # packed[pixel, columns]
            pitch, panel_size = region_columns + lanes, width
            numbers = packed.at(block_images * block_pixels * pitch)
        for i in loop(used_rows * (region_columns // lanes)):
            sums.put(i * lanes, sums.zero(lanes))
        for i in loop((used_rows + lanes) * biased):
            biases.put(i * lanes, sums.zero(lanes))

        first_block = part * blocks // parts
        for b in loop((part + 1) * blocks // parts - first_block):
            block = first_block + b
            first_image, first_pixel = block // image_blocks * block_images, block % image_blocks * block_pixels
            used_images = minimum(block_images, images - first_image)
            count = minimum(block_pixels, pixels - first_pixel)
            upstream = dy.at(((first_image * groups + group) * row_count + first_row) * pixels + first_pixel)

            def each_run(z, first_image=first_image, first_pixel=first_pixel, count=count):
                """Where the windows of a run lie in x, its first row in ``packed``, its pixels, the cells left in the row."""
                for pixel, line, column, run in runs(first_pixel, first_pixel + count, most_runs, x_line_pixels):
                    image, depth, height = first_image + z, line // x_depth_lines, line % x_depth_lines
                    source = x.at(
                        image * x_image + group * x_channels * x_channel + depth * x_step_depth * x_depth
                        + height * x_step_height * x_row + column * x_step
                    )  # fmt: skip
                    yield source, z * count + (pixel - first_pixel), run, x_cells - column * x_step

            # What a full vector writes past a run's end is written again by the next run, image, or panel;
            # what one writes past a window's row, by the next row
            if x_taps:
                for vector in loop((used_columns + (lanes - 1)) // lanes):
                    places = []  # of the windows' rows, found once: divisions are slow
                    for i in range(0, lanes, x_taps):
                        # Past the last q comes the last again, in columns that are not used
                        number = minimum(first_column + vector * lanes + i, reduction - x_taps) // x_taps
                        h, rest = number % x_kernel_height, number // x_kernel_height
                        d, c = rest % x_kernel_depth, rest // x_kernel_depth
                        places.append(c * x_channel + d * x_depth + h * x_row)
                    for z in loop(used_images):
                        for source, row, run, row_cells in each_run(z):
                            target = packed.at(vector // vectors * panel_size + row * pitch + vector % vectors * lanes)
                            for j, used in in_vectors(run, row_cells // x_step, lanes):
                                lines = [source.at(place + j * x_step) for place in places]
                                left = row_cells - j * x_step
                                for i, line in enumerate(_columns(lines, x_step, x_stride, x_taps, lanes, used, left)):
                                    target.put((j + i) * pitch, line)
            else:
                for z in loop(used_images):
                    for source, row, run, _ in each_run(z):
                        for number in loop(reduction // x_kernel_width):
                            h, rest = number % x_kernel_height, number // x_kernel_height
                            d, c = rest % x_kernel_depth, rest // x_kernel_depth
                            cells = source.at(c * x_channel + d * x_depth + h * x_row)
                            target = packed.at(row * pitch + number * x_kernel_width)
                            for block in loop((x_kernel_width + (lanes - 1)) // lanes):
                                for i in loop(run):
                                    taps = cells.vec(i * x_step + block * lanes, lanes, x_kernel_width - block * lanes)
                                    target.put(i * pitch + block * lanes, taps)

            if copied:
                for r in loop(used_rows):
                    for z in loop(used_images):
                        for j in loop((count + (lanes - 1)) // lanes):
                            line = upstream.at((z * groups * row_count + r) * pixels + j * lanes)
                            line.prefetch(pixels * 4)
                            numbers.put(
                                (r * block_images + z) * count + j * lanes, line.vec(0, lanes, count=count - j * lanes)
                            )
            # The cells of the next block are asked for, some rows of its windows a tile
            ahead = minimum(first_block + b + 1, blocks - 1)
            ahead_image, ahead_pixel = ahead // image_blocks * block_images, ahead % image_blocks * block_pixels
            ahead_cells = minimum(block_pixels, x_line_pixels) * x_step
            upcoming = x.at(group * x_channels * x_channel + ahead_pixel % x_line_pixels * x_step)
            share = (used_columns // x_kernel_width + (panels * tiles - 1)) // (panels * tiles)
            for panel in loop(panels):
                for tile in loop(tiles):
                    for i in loop(share):
                        number = first_column // x_kernel_width + (panel * tiles + tile) * share + i
                        h, rest = number % x_kernel_height, number // x_kernel_height
                        d, c = rest % x_kernel_depth, rest // x_kernel_depth
                        for z in loop(used_images):
                            for j in loop(block_lines):
                                line = ahead_pixel // x_line_pixels + j
                                cells = upcoming.at(
                                    (ahead_image + z) * x_image + c * x_channel
                                    + (line // x_depth_lines * x_step_depth + d) * x_depth
                                    + (line % x_depth_lines * x_step_height + h) * x_row
                                )  # fmt: skip
                                for k in loop(ahead_cells // lanes + 1):
                                    cells.prefetch(k * lanes, later=True)
                    row_places = [minimum(tile * rows + i, used_rows - 1) for i in range(rows)]
                    targets = [sums.at(r * region_columns + panel * width) for r in row_places]

                    def rows_of(z, row_places=row_places, upstream=upstream, count=count):
                        """Where the tile's rows of dy begin."""
                        if copied:
                            return [numbers.at((r * block_images + z) * count) for r in row_places]
                        return [upstream.at((z * groups * row_count + r) * pixels) for r in row_places]

                    totals = [Variable(sums.zero(lanes)) for _ in range(rows * vectors)]
                    for z in loop(used_images):
                        columns = panel_columns(
                            packed.at(panel * panel_size + z * count * pitch), pitch, lanes, vectors
                        )
                        after = minimum((tile + 1) * rows, used_rows - rows) * pixels
                        after_lines = upstream.at(z * groups * row_count * pixels + after)

                        def looking_ahead(q, columns=columns, after_lines=after_lines):
                            """Packed numbers; a piece of the next tile's rows of dy is asked for."""
                            if not copied:
                                after_lines.prefetch(q % rows * pixels + q // rows * rows)
                            return columns(q)

                        # No more than BLOCK_SUM pixels: all images are one sum
                        multiply_tile(rows_of(z), 1, looking_ahead, count, lanes, totals, kept)
                    places = [target.at(lanes * j) for target in targets for j in range(vectors)]
                    added = [place.vec(0, lanes) + total.get() for place, total in zip(places, totals)]
                    for place, total in zip(places, added):  # a row may be there twice
                        place.put(0, total)
                    for _ in loop(biased * within(panel, 1)):
                        whole = [Variable(sums.zero(lanes)) for _ in range(rows)]
                        for z in loop(used_images):
                            for j in loop((count + (lanes - 1)) // lanes):
                                for row, total in zip(rows_of(z), whole):
                                    total.set(total.get() + row.vec(j * lanes, lanes, count=count - j * lanes))
                        added = [biases.vec(r * lanes, lanes) + total.get() for r, total in zip(row_places, whole)]
                        for r, total in zip(row_places, added):
                            biases.put(r * lanes, total)

        for r in loop(used_rows):
            target = out.at(((part * groups + group) * row_count + first_row + r) * reduction + first_column)
            for j in loop((used_columns + (lanes - 1)) // lanes):
                line = sums.vec(r * region_columns + j * lanes, lanes)
                target.put(j * lanes, line, count=used_columns - j * lanes)
        for block in loop((used_rows + (lanes - 1)) // lanes * biased):
            total = sum_of(transpose([biases.vec((block * lanes + i) * lanes, lanes) for i in range(lanes)]))
            target = bias.at((part * groups + group) * row_count + first_row + block * lanes)
            target.put(0, total, count=used_rows - block * lanes)

    return text, {"dy": dtype, "x": dtype, "out": out_dtype, "bias": out_dtype, "workspace": wide}


def sum_of(vectors):
    """Their sum, half by half."""
    while len(vectors) > 1:
        vectors = [a + b for a, b in zip(vectors[::2], vectors[1::2])]
    return vectors[0]


def _columns(lines, step, stride, taps, lanes, used, row_cells):
    """For each of ``lanes`` neighbouring pixels a vector of its numbers, ``taps`` from each of the lines."""
    if taps == 1:
        read = [read_windows(cells, step, stride, taps, taps, lanes, used, row_cells) for cells in lines]
        return transpose([numbers for line in read for _, numbers in line])
    # Windows lie side by side: those of a vector are its units
    count = None if used is None else minimum(used * stride, row_cells)
    columns = []
    for first in range(0, lanes * taps, lanes):
        columns += transpose(
            [cells.vec(first, lanes, count=None if count is None else count - first) for cells in lines], taps
        )
    return columns


@kernel
def add_sums(wide, dtype, lanes):
    """``out[i] = sum over parts of sums[part, i]``, a vector a time. A piece is ``chunk`` numbers."""

    def text(piece, slot, sums, out, parts, numbers, chunk):
        first = piece * chunk
        for block in loop((minimum(chunk, numbers - first) + (lanes - 1)) // lanes):
            i = first + block * lanes
            total = Variable(sums.vec(i, lanes, count=numbers - i))
            for part in loop(parts - 1):
                total.set(total.get() + sums.vec((part + 1) * numbers + i, lanes, count=numbers - i))
            out.put(i, total.get(), count=numbers - i)

    return text, {"sums": wide, "out": dtype}
