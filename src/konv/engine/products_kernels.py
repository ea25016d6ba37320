"""Kernels of convolutions that are matrix products, pixels in lanes: nothing but blocks is ever copied.

One tile serves the three computations. Its rows are read where they lie, a number at a time; its columns are vectors of a
*panel* that was packed beside it, ``panel[q, columns]``::

    acc[row, columns] += rows[row][q] * panel[q, columns]

==================  =================  ==========================  ==========================
computation         rows               columns                     q runs over
==================  =================  ==========================  ==========================
forward             filters of w       pixels of y, packed from x  (channel, kernel index)
input gradient      (channel, kernel   pixels of dy                filters
                    index) of w
weight gradient     filters of dy      (channel, kernel index),    pixels
                                       packed from x
==================  =================  ==========================  ==========================

Pixels of all images count as one line, cut into panels; a *run* is the part of a panel that lies in one row of an image.
What windows read and write lies ``step`` cells apart: it is taken apart and put together by shuffles.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from konv.engine.compile import kernel
from konv.engine.simd import (
    Variable,
    deinterleave,
    fma,
    interleave,
    loop,
    maximum,
    minimum,
    splat,
    transpose,
    within,
)

BLOCK_SUM = 192  # sums of so many products are added up: the error falls 2-4 times


def multiply_tile(
    rows: Sequence[Any], step: Any, panel: Any, width: int, count: Any, lanes: int, totals: Sequence[Any]
) -> None:
    """``totals[row, vector] += sum over q < count of rows[row][q * step] * panel[q * width + ...]``."""
    vectors = len(totals) // len(rows)
    for block in loop((count + (BLOCK_SUM - 1)) // BLOCK_SUM):
        first = block * BLOCK_SUM
        sums = [Variable(panel.zero(lanes)) for _ in totals]
        for k in loop(minimum(count - first, BLOCK_SUM)):
            q = first + k
            columns = [panel.vec(q * width + lanes * j, lanes) for j in range(vectors)]
            for i, row in enumerate(rows):
                number = splat(row[q * step], lanes)
                for j, column in enumerate(columns):
                    a = sums[vectors * i + j]
                    a.set(fma(number, column, a.get()))
        for total, a in zip(totals, sums):
            total.set(total.get() + a.get())


def runs(begin: Any, end: Any, most: Any, line_pixels: Any) -> Iterator[tuple[Any, ...]]:
    """The runs of pixels begin .. end - 1, at most so many: (first pixel, its line, its column, how many pixels)."""
    position = Variable(begin)
    for _ in loop(most):
        pixel = position.get()
        line, column = pixel // line_pixels, pixel % line_pixels
        count = maximum(minimum(line_pixels - column, end - pixel), 0)
        yield pixel, line, column, count
        position.set(pixel + count)


def in_vectors(count: Any, whole: Any, lanes: int) -> Iterator[tuple[Any, Any]]:
    """Vectors that cover lanes 0 .. count - 1: (first lane, lanes used); None for all, while they end at ``whole`` or before.

    The body is traced twice: whole vectors need no masks, which cost more than the numbers that they hide.
    """
    vectors = minimum(count, whole) // lanes
    for j in loop(vectors):
        yield j * lanes, None
    for j in loop((count + (lanes - 1)) // lanes - vectors):
        lane = (vectors + j) * lanes
        yield lane, count - lane


def read_windows(
    cells: Any, step: Any, stride: int, taps: int, length: Any, lanes: int, used: Any, row_cells: Any, left: Any = 0
) -> Iterator[tuple[Any, Any]]:
    """For each tap a vector of ``used`` neighbouring pixels, in a row with ``row_cells`` more, an array with ``left`` more."""
    if stride:
        counts = [None] * stride
        if used is not None:
            used = minimum(used * stride, row_cells)
            counts = [used - lanes * i for i in range(stride)]
        vectors = [cells.vec(lanes * i, lanes, count=count) for i, count in enumerate(counts)]
        yield from enumerate(deinterleave(vectors, lanes)[:taps])
    elif taps:  # one
        yield 0, cells.gather(0, step, lanes, lanes if used is None else minimum(used, lanes))
    else:  # the windows as vectors, transposed. Rows past the last tap are written too, and again by the next channel
        last = lanes - 1 if used is None else minimum(used, lanes) - 1
        for block in loop((length + (lanes - 1)) // lanes):
            first = block * lanes
            starts = [minimum(last, i) * step + first for i in range(lanes)]
            inside = within(starts[-1] + (lanes - 1), left)
            for count in (None, length - first):  # without masks, but at the array's end: a quarter of the time
                for _ in loop(inside if count is None else 1 - inside):
                    for t, numbers in enumerate(transpose([cells.vec(start, lanes, count=count) for start in starts])):
                        yield first + t, numbers


def write_windows(
    cells: Any,
    step: Any,
    stride: int,
    taps: int,
    length: Any,
    lanes: int,
    used: Any,
    row_cells: Any,
    source: Any,
    pitch: Any,
) -> None:
    """Write ``used`` neighbouring pixels; those of tap t begin at ``source[pitch * t]``.

    Cells between windows become 0, where the stride is known.
    """
    if stride:
        vectors = [source.vec(pitch * t, lanes) for t in range(taps)] + [cells.zero(lanes)] * (stride - taps)
        _put(cells, interleave(vectors, lanes), lanes, used, row_cells)
    elif taps:  # one
        cells.scatter(0, step, source.vec(0, lanes), lanes if used is None else minimum(used, lanes))
    else:
        for block in loop((length + (lanes - 1)) // lanes):
            first = block * lanes
            windows = transpose([source.vec((first + t) * pitch, lanes) for t in range(lanes)])
            for i, window in enumerate(windows):
                for _ in loop(1 if used is None else within(i, used)):
                    cells.put(i * step + first, window, count=length - first)


def write_zeros(cells: Any, stride: int, lanes: int, used: Any, row_cells: Any) -> None:
    """Zeros to the cells of ``used`` neighbouring pixels' windows (where the stride is known)."""
    _put(cells, [cells.zero(lanes)] * stride, lanes, used, row_cells)


def _put(cells: Any, vectors: Sequence[Any], lanes: int, used: Any, row_cells: Any) -> None:
    if used is not None:
        used = minimum(used * len(vectors), row_cells)
    for i, numbers in enumerate(vectors):
        cells.put(lanes * i, numbers, count=None if used is None else used - lanes * i)


@kernel
def multiply_pixels(x_dtype, y_dtype, lanes, vectors, rows, turned, x_stride, x_taps, y_stride, y_taps):
    """Forward and input gradient: y = w @ x + bias. A piece is (block of pixels, group, part of the rows).

    Rows of w are read where they lie; those of its transpose (``turned``), and half types, are copied a few at a time.

    ``x_stride, x_taps`` tell how windows lie in a row of x: those of neighbouring pixels begin ``x_stride`` cells apart
    and have ``x_taps`` cells (0: any number, told at run time); likewise what is written for a pixel in a row of y.
    """
    wide = "float64" if x_dtype == "float64" else "float32"
    width = lanes * vectors
    copied = turned or wide != x_dtype

    def text(
        piece, slot, w, x, bias, y, workspace, slot_size, panel_size, block_panels, groups, parts, part_groups, row_group,
        row_count, reduction, pixels, line_pixels, depth_lines, image_lines, most_runs,
        x_image, x_channels, x_channel, x_depth, x_row, x_cells, x_kernel_depth, x_kernel_height, x_kernel_width,
        x_step_depth, x_step_height, x_step,
        y_image, y_channels, y_channel, y_depth, y_row, y_depths, y_rows, y_cells, y_kernel_depth, y_kernel_height,
        y_kernel_width, y_step_depth, y_step_height, y_step, y_fill_depth, y_fill_height,
        y_plain,
    ):  # fmt: skip
        x_kernel_width, y_kernel_width = x_taps or x_kernel_width, y_taps or y_kernel_width
        x_step, y_step = x_stride or x_step, y_stride or y_step
        part, rest = piece % parts, piece // parts
        group, first = rest % groups, rest // groups * block_panels * width
        last = minimum(first + block_panels * width, pixels)
        panels = (last - first + (width - 1)) // width
        x_size = pixels // (image_lines * line_pixels) * x_image
        packed = workspace.at(slot * slot_size)
        result = packed.at(panel_size * block_panels)
        copies = result.at(row_group * width + lanes)

        def located(line):
            """Image, depth and height of a line of pixels."""
            return line // image_lines, line % image_lines // depth_lines, line % depth_lines

        # A block of whole panels within a line is read channel by channel, in long pieces; others run by run
        line, column = first // line_pixels, first % line_pixels
        row_cells = x_cells - column * x_step
        block_pixels = panels * width
        alone = (
            within(0, last - first - (block_pixels - 1))
            * within(column, line_pixels - (block_pixels - 1))
            * within(block_pixels * x_step, row_cells + 1)
        )
        image, depth, height = located(line)
        start = (
            image * x_image + group * x_channels * x_channel + depth * x_step_depth * x_depth
            + height * x_step_height * x_row + column * x_step
        )  # fmt: skip
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
            for pixel, line, column, count in runs(begin, minimum(begin + width, last), most_runs, line_pixels):
                image, depth, height = located(line)
                start = (
                    image * x_image + group * x_channels * x_channel + depth * x_step_depth * x_depth
                    + height * x_step_height * x_row + column * x_step
                )  # fmt: skip
                row_cells = x_cells - column * x_step
                for j, used in in_vectors(count, row_cells // x_step, lanes):
                    target = packed.at(panel * panel_size + (pixel - begin) + j)
                    for c in loop(x_channels):
                        for d in loop(x_kernel_depth):
                            for h in loop(x_kernel_height):
                                cell = start + c * x_channel + d * x_depth + h * x_row + j * x_step
                                q = ((c * x_kernel_depth + d) * x_kernel_height + h) * x_kernel_width
                                taps = read_windows(
                                    x.at(cell), x_step, x_stride, x_taps, x_kernel_width, lanes, used,
                                    row_cells - j * x_step, x_size - cell,
                                )  # fmt: skip
                                for t, numbers in taps:
                                    target.put((q + t) * width, numbers, count=used)

        for row_block in loop(minimum(part_groups, (row_count + (row_group - 1)) // row_group - part * part_groups)):
            first_row = (part * part_groups + row_block) * row_group
            used_rows = minimum(row_group, row_count - first_row)
            matrix = w.at(
                (group * reduction * row_count + first_row) if turned else (group * row_count + first_row) * reduction
            )
            if turned:  # copies[rows / lanes, q, lanes]
                for i, used in in_vectors(used_rows, used_rows, lanes):
                    for q in loop(reduction):
                        copies.put(i * reduction + q * lanes, matrix.vec(q * row_count + i, lanes, count=used))
            elif copied:
                for r in loop(used_rows):
                    for q, used in in_vectors(reduction, reduction, lanes):
                        copies.put(r * reduction + q, matrix.vec(r * reduction + q, lanes, count=used), count=used)
            for panel in loop(panels):
                begin = first + panel * width
                end = minimum(begin + width, last)
                line, column = begin // line_pixels, begin % line_pixels
                # A whole panel within a line is written from the registers, if its pixels are neighbours in y
                whole = 0
                if y_stride == 1:
                    whole = y_plain * within(0, end - begin - (width - 1)) * within(column, line_pixels - (width - 1))
                for tile in loop((used_rows + (rows - 1)) // rows):
                    # Rows past the last are the last again
                    places = [minimum(tile * rows + i, used_rows - 1) for i in range(rows)]
                    numbers = [group * row_count + first_row + r for r in places]
                    totals = [Variable(splat(bias[r], lanes)) for r in numbers for _ in range(vectors)]
                    if turned:
                        lines = [copies.at(r // lanes * lanes * reduction + r % lanes) for r in places]
                    else:
                        lines = [(copies if copied else matrix).at(r * reduction) for r in places]
                    multiply_tile(
                        lines, lanes if turned else 1, packed.at(panel * panel_size), width, reduction, lanes, totals
                    )
                    if y_stride == 1:
                        for _ in loop(whole):
                            image, depth, height = located(line)
                            for i, r in enumerate(numbers):
                                to = image * y_image + r * y_channel + depth * y_depth + height * y_row + column
                                for j in range(vectors):
                                    y.put(to + lanes * j, totals[vectors * i + j].get())
                    for _ in loop(1 - whole):
                        for i in range(rows * vectors):
                            result.put((tile * rows * vectors + i) * lanes, totals[i].get())

                for pixel, line, column, count in runs(begin, end, most_runs * (1 - whole), line_pixels):
                    image, depth, height = located(line)
                    row_cells = y_cells - column * y_step
                    for j, used in in_vectors(count, row_cells // y_step, lanes):
                        for k in loop(used_rows // y_kernel_width):
                            number = first_row // y_kernel_width + k
                            h, rest = number % y_kernel_height, number // y_kernel_height
                            d, c = rest % y_kernel_depth, rest // y_kernel_depth
                            h, d = height * y_step_height + h, depth * y_step_depth + d
                            target = y.at(
                                image * y_image + (group * y_channels + c) * y_channel + d * y_depth + h * y_row
                                + (column + j) * y_step
                            )  # fmt: skip
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


@kernel
def weight_sums(dtype, out_dtype, lanes, vectors, rows, x_stride, x_taps):
    """Weight gradient: ``out[f, q] = sum over pixels of dy[f, pixel] * x[q, pixel]``, q = (channel, kernel index).

    A piece is (part of the pixels, group, region of filters, region of q). Block by block of pixels, x is turned into
    ``packed[pixel, q]``, and a tile's products are added to the region's sums, which stay in L2.
    """
    wide = "float64" if dtype == "float64" else "float32"
    half = dtype != wide
    width = lanes * vectors

    def text(
        piece, slot, dy, x, out, workspace, slot_size, groups, parts, row_count, region_rows, row_regions, reduction,
        region_columns, column_regions, images, pixels, blocks, image_blocks, block_images, block_pixels, line_pixels,
        depth_lines, image_lines, most_runs,
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

        sums = workspace.at(slot * slot_size)
        packed = sums.at(region_rows * region_columns)
        if x_taps:  # packed[panel, pixel, columns of a panel]
            pitch, panel_size = width, block_images * block_pixels * width
            numbers = packed.at(panel_size * (region_columns // width) + lanes * width)  # dy, where it must be widened
        else:  # packed[pixel, columns]
            pitch, panel_size = region_columns + lanes, width
            numbers = packed.at(block_images * block_pixels * pitch)
        for i in loop(used_rows * (region_columns // lanes)):
            sums.put(i * lanes, sums.zero(lanes))

        first_block = part * blocks // parts
        for b in loop((part + 1) * blocks // parts - first_block):
            block = first_block + b
            first_image, first_pixel = block // image_blocks * block_images, block % image_blocks * block_pixels
            used_images = minimum(block_images, images - first_image)
            count = minimum(block_pixels, pixels - first_pixel)
            upstream = dy.at(((first_image * groups + group) * row_count + first_row) * pixels + first_pixel)

            def each_run(z, first_image=first_image, first_pixel=first_pixel, count=count):
                """Where the windows of a run lie in x, its first row in ``packed``, its pixels, the cells left in the row."""
                for pixel, line, column, run in runs(first_pixel, first_pixel + count, most_runs, line_pixels):
                    image, depth, height = first_image + z, line // depth_lines, line % depth_lines
                    source = x.at(
                        image * x_image + group * x_channels * x_channel + depth * x_step_depth * x_depth
                        + height * x_step_height * x_row + column * x_step
                    )  # fmt: skip
                    yield source, z * count + (pixel - first_pixel), run, x_cells - column * x_step

            # What a full vector writes past a run's end is written again by the next run, image, or panel;
            # what one writes past a window's row, by the next row
            if x_taps:
                for vector in loop((used_columns + (lanes - 1)) // lanes):
                    q = first_column + vector * lanes
                    for z in loop(used_images):
                        for source, row, run, row_cells in each_run(z):
                            target = packed.at(vector // vectors * panel_size + row * pitch + vector % vectors * lanes)
                            for j, used in in_vectors(run, row_cells // x_step, lanes):
                                lines = []
                                for i in range(0, lanes, x_taps):
                                    # Past the last q comes the last again, in columns that are not used
                                    number = minimum(q + i, reduction - x_taps) // x_taps
                                    h, rest = number % x_kernel_height, number // x_kernel_height
                                    d, c = rest % x_kernel_depth, rest // x_kernel_depth
                                    cells = source.at(c * x_channel + d * x_depth + h * x_row + j * x_step)
                                    taps = read_windows(
                                        cells, x_step, x_stride, x_taps, x_taps, lanes, used, row_cells - j * x_step
                                    )
                                    lines += [tap for _, tap in taps]
                                for i, line in enumerate(transpose(lines)):
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

            if half:
                for r in loop(used_rows):
                    for z in loop(used_images):
                        for j in loop((count + (lanes - 1)) // lanes):
                            line = upstream.at((z * groups * row_count + r) * pixels + j * lanes)
                            numbers.put(
                                (r * block_images + z) * count + j * lanes, line.vec(0, lanes, count=count - j * lanes)
                            )
            for panel in loop(panels):
                for tile in loop(tiles):
                    places = [minimum(tile * rows + i, used_rows - 1) for i in range(rows)]
                    targets = [sums.at(r * region_columns + panel * width) for r in places]
                    totals = [Variable(target.vec(lanes * j, lanes)) for target in targets for j in range(vectors)]
                    for z in loop(used_images):
                        if half:
                            lines = [numbers.at((r * block_images + z) * count) for r in places]
                        else:
                            lines = [upstream.at((z * groups * row_count + r) * pixels) for r in places]
                        multiply_tile(
                            lines, 1, packed.at(panel * panel_size + z * count * pitch), pitch, count, lanes, totals
                        )
                    for i, target in enumerate(targets):
                        for j in range(vectors):
                            target.put(lanes * j, totals[vectors * i + j].get())

        for r in loop(used_rows):
            target = out.at(((part * groups + group) * row_count + first_row + r) * reduction + first_column)
            for j in loop((used_columns + (lanes - 1)) // lanes):
                line = sums.vec(r * region_columns + j * lanes, lanes)
                target.put(j * lanes, line, count=used_columns - j * lanes)

    return text, {"dy": dtype, "x": dtype, "out": out_dtype, "workspace": wide}


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
