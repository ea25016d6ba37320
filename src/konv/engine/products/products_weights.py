"""Weight gradient of convolutions that are matrix products; see :mod:`konv.engine.windows`.

Where rows of dy lie a multiple of 4 KiB apart they would displace each other in the caches, and each tile fetch them anew:
they are copied, block by block, which took U-Net's weight gradient at 64 x 64 from 10 to 6.7 ms.
Asking for the lines of dw before they are written changed nothing.

Layers of few pixels (deep ones at 7 x 7) are one block, each number packed once: 1.05 to 1.15 times as fast with a stride of 2.
Joining the images' pieces of dy's rows beside a tile, so that sums are not begun anew every 49 pixels, lost more (5 to 8 %)
than it saved; at 14 x 14, where all pixels are 400 KB a region, one block was 5 to 9 % slower than several.
Packing the array of fewer channels gained 5 % at 256 -> 64 channels, and where it saves less than a tenth it lost 4 to 9 %.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from konv.engine.compile import kernel
from konv.engine.machine import wide_type
from konv.engine.simd import Variable, loop, minimum, pick, transpose, within
from konv.engine.windows import in_vectors, multiply_tile, panel_columns, read_windows, runs


@kernel
def weight_sums(dtype, out_dtype, lanes, vectors, rows, x_stride, x_taps, copied, turned, whole):
    """Weight gradient: ``out[f, q] = sum over pixels of dy[f, pixel] * x[q, pixel]``, q = (channel, kernel index).

    A piece is (part of the pixels, group, region of filters, region of q). Block by block of pixels, x is turned into
    ``packed[pixel, q]``, and a tile's products are added to the region's sums, which stay in L2. Rows of dy are read where
    they lie, or ``copied`` beside: half types, which are widened once, and rows that displace each other.

    ``turned``, for 1x1 layers of more channels than filters: dy and x change places, ``out[q, f]`` is written, and what is
    said here of filters is true of channels. ``whole``: a part is one block, whose sums are written at once.
    If ``biased``, the sums of dy too: of a row when a tile's products have just brought it, or of the packed columns.
    """
    wide = wide_type(dtype)
    width = lanes * vectors

    def text(
        piece, slot, dy, x, out, bias, workspace, biased, slot_size, groups, parts, row_count, region_rows, row_regions,
        reduction, region_columns, column_regions, images, pixels, blocks, image_blocks, block_images, block_pixels,
        sum_images, most_runs, block_lines, x_line_pixels, x_depth_lines, x_image, x_channels, x_channel, x_depth, x_row,
        x_cells, x_kernel_depth, x_kernel_height, x_kernel_width, x_step_depth, x_step_height, x_step,
    ):  # fmt: skip
        column_region, rest = piece % column_regions, piece // column_regions
        row_region, rest = rest % row_regions, rest // row_regions
        group, part = rest % groups, rest // groups
        first_row, first_column = row_region * region_rows, column_region * region_columns
        used_rows = minimum(region_rows, row_count - first_row)
        used_columns = minimum(region_columns, reduction - first_column)
        tiles, panels = (used_rows + (rows - 1)) // rows, (used_columns + (width - 1)) // width
        windows = Windows(
            x.at(group * x_channels * x_channel), x_stride or x_step, x_taps or x_kernel_width, x_kernel_height,
            x_kernel_depth, x_step_height, x_step_depth, x_row, x_depth, x_channel, x_image, x_cells, x_line_pixels,
            x_depth_lines,
        )  # fmt: skip

        biased *= within(row_region if turned else column_region, 1)
        kept = workspace.at(slot * slot_size)
        biases = kept.at(rows * width)  # [row, lane]; [column] where turned
        sums = biases.at(region_columns if turned else (region_rows + lanes) * lanes)
        packed = sums if whole else sums.at(region_rows * region_columns)
        if x_taps:  # packed[panel, pixel, columns of a panel]
            pitch, panel_size = width, block_images * block_pixels * width
            numbers = packed.at(panel_size * (region_columns // width) + lanes * width)  # dy, where it is copied
        else:  # packed[pixel, columns]
            pitch, panel_size = region_columns + lanes, width
            numbers = packed.at(block_images * block_pixels * pitch)
        if not whole:
            for i in loop(used_rows * (region_columns // lanes)):
                sums.put(i * lanes, sums.zero(lanes))
        for i in loop((region_columns // lanes if turned else used_rows + lanes) * biased):
            biases.put(i * lanes, sums.zero(lanes))

        first_block = part * blocks // parts
        for b in loop((part + 1) * blocks // parts - first_block):
            number = first_block + b
            first_image, first_pixel = number // image_blocks * block_images, number % image_blocks * block_pixels
            block = Block(
                first_image, minimum(block_images, images - first_image),
                first_pixel, minimum(block_pixels, pixels - first_pixel), most_runs,
            )  # fmt: skip
            if x_taps:
                _pack_columns(
                    windows, block, packed, pitch, panel_size, first_column, used_columns, reduction, x_stride, x_taps,
                    lanes, vectors,
                )  # fmt: skip
            else:
                _pack_windows(windows, block, packed, pitch, reduction, lanes)
            if turned:
                for _ in loop(biased):
                    _add_columns(block, packed, pitch, panel_size, biases, panels, lanes, vectors)

            upstream = dy.at(((first_image * groups + group) * row_count + first_row) * pixels + first_pixel)
            image_size, row_size = groups * row_count * pixels, pixels
            if copied:
                _copy_rows(block, upstream, image_size, row_size, numbers, used_rows, block_images, lanes)
                upstream, image_size, row_size = numbers, block.pixels, block_images * block.pixels

            # What is packed next is asked for, some rows of windows a tile: those of the next block, or of the next region
            ahead = number if whole else minimum(number + 1, blocks - 1)
            ahead_image, ahead_pixel = ahead // image_blocks * block_images, ahead % image_blocks * block_pixels
            ahead_row = (first_column + (region_columns if whole else 0)) // windows.kernel_width
            next_rows = dy.at(((ahead_image * groups + group) * row_count + first_row) * pixels + ahead_pixel)
            share = (used_columns // windows.kernel_width + (panels * tiles - 1)) // (panels * tiles)
            for panel in loop(panels):
                for tile in loop(tiles):
                    for i in loop(share):
                        _fetch_row(
                            windows, ahead_row + (panel * tiles + tile) * share + i, ahead_image, block.images,
                            ahead_pixel, minimum(block_pixels, x_line_pixels), block_lines, lanes,
                        )  # fmt: skip
                    row_places = [minimum(tile * rows + i, used_rows - 1) for i in range(rows)]
                    lines = [upstream.at(r * row_size) for r in row_places]
                    after = upstream.at(minimum((tile + 1) * rows, used_rows - rows) * row_size)
                    if turned and not copied:
                        after = pick(
                            within(panel, 1), next_rows.at(minimum(tile * rows, used_rows - rows) * row_size), after
                        )
                    totals = [Variable(sums.zero(lanes)) for _ in range(rows * vectors)]
                    for z, begun in _images(block.images, sum_images if whole else None):
                        numbers_of_image = packed.at(panel * panel_size + z * block.pixels * pitch)
                        columns = panel_columns(numbers_of_image, pitch, lanes, vectors)
                        next_lines = after.at(z * image_size)

                        def looking_ahead(q, columns=columns, next_lines=next_lines, row_size=row_size):
                            """Packed numbers; a piece of the next tile's rows of dy is asked for."""
                            if not copied:
                                next_lines.prefetch(q % rows * row_size + q // rows * rows, later=turned)
                            return columns(q)

                        lines_of_image = [line.at(z * image_size) for line in lines]
                        multiply_tile(lines_of_image, 1, looking_ahead, block.pixels, lanes, totals, kept, begun)
                    if whole:
                        for r, i in zip(row_places, range(0, rows * vectors, vectors)):
                            target = out.at(
                                ((part * groups + group) * row_count + first_row + r) * reduction + first_column
                            )
                            for j in range(vectors):
                                column = panel * width + lanes * j
                                target.put(column, totals[i + j].get(), count=used_columns - column)
                    else:
                        targets = [sums.at(r * region_columns + panel * width) for r in row_places]
                        places = [target.at(lanes * j) for target in targets for j in range(vectors)]
                        added = [place.vec(0, lanes) + total.get() for place, total in zip(places, totals)]
                        for place, total in zip(places, added):  # a row may be there twice
                            place.put(0, total)
                    if not turned:
                        for _ in loop(biased * within(panel, 1)):
                            _add_rows(block, lines, image_size, biases, row_places, lanes)

        if turned:
            target = out.at(((part * groups + group) * reduction + first_column) * row_count + first_row)
            _write_turned(sums, region_columns, target, row_count, used_rows, used_columns, lanes)
            target = bias.at((part * groups + group) * reduction + first_column)
            for j in loop((used_columns + (lanes - 1)) // lanes * biased):
                target.put(j * lanes, biases.vec(j * lanes, lanes), count=used_columns - j * lanes)
            return
        if not whole:
            for r in loop(used_rows):
                target = out.at(((part * groups + group) * row_count + first_row + r) * reduction + first_column)
                for j in loop((used_columns + (lanes - 1)) // lanes):
                    line = sums.vec(r * region_columns + j * lanes, lanes)
                    target.put(j * lanes, line, count=used_columns - j * lanes)
        for i in loop((used_rows + (lanes - 1)) // lanes * biased):
            total = sum_of(transpose([biases.vec((i * lanes + k) * lanes, lanes) for k in range(lanes)]))
            target = bias.at((part * groups + group) * row_count + first_row + i * lanes)
            target.put(0, total, count=used_rows - i * lanes)

    return text, {"dy": dtype, "x": dtype, "out": out_dtype, "bias": out_dtype, "workspace": wide}


@dataclass(frozen=True)
class Windows:
    """How windows lie in x, of which a group begins at ``x``: their steps and sizes, and the cells of a row, plane, ..."""

    x: Any
    step: Any
    kernel_width: Any
    kernel_height: Any
    kernel_depth: Any
    step_height: Any
    step_depth: Any
    row: Any
    depth: Any
    channel: Any
    image: Any
    cells: Any
    line_pixels: Any
    depth_lines: Any

    def at(self, image: Any, line: Any, column: Any) -> Any:
        """The first cell of a window."""
        depth, height = line // self.depth_lines * self.step_depth, line % self.depth_lines * self.step_height
        return self.x.at(image * self.image + depth * self.depth + height * self.row + column * self.step)

    def place(self, number: Any) -> Any:
        """How far from there its row ``number`` begins, of the rows of all channels."""
        height, rest = number % self.kernel_height, number // self.kernel_height
        depth, channel = rest % self.kernel_depth, rest // self.kernel_depth
        return channel * self.channel + depth * self.depth + height * self.row


@dataclass(frozen=True)
class Block:
    """Pixels that are packed together: so many of each of some images."""

    image: Any
    images: Any
    pixel: Any
    pixels: Any
    most_runs: Any

    def runs(self, windows: Windows, z: Any) -> Iterator[tuple[Any, ...]]:
        """Of image z: where a run's windows lie in x, its first row in ``packed``, its pixels, the cells left in the row."""
        end = self.pixel + self.pixels
        for pixel, line, column, count in runs(self.pixel, end, self.most_runs, windows.line_pixels):
            source, row = windows.at(self.image + z, line, column), z * self.pixels + (pixel - self.pixel)
            yield source, row, count, windows.cells - column * windows.step


def _images(images, most):
    """The images of a block, and 1 where a sum is begun anew, which is so every ``most`` images if there is such a limit."""
    if most is None:
        for z in loop(images):
            yield z, 0
    else:
        for some in loop((images + (most - 1)) // most):
            for z in loop(minimum(most, images - some * most)):
                yield some * most + z, within(0, some) * within(z, 1)


# What a full vector writes past a run's end is written again by the next run, image, or panel;
# what one writes past a window's row, by the next row


def _pack_columns(windows, block, packed, pitch, panel_size, first, used, reduction, stride, taps, lanes, vectors):
    """``packed[panel, pixel, columns]``: numbers ``first`` .. of the windows, a vector of them of many pixels at a time."""
    for vector in loop((used + (lanes - 1)) // lanes):
        # Where the windows' rows lie is found once: divisions are slow. Past the last q comes it again, in unused columns
        numbers = [minimum(first + vector * lanes + i, reduction - taps) // taps for i in range(0, lanes, taps)]
        places = [windows.place(number) for number in numbers]
        for z in loop(block.images):
            for source, row, count, cells in block.runs(windows, z):
                target = packed.at(vector // vectors * panel_size + row * pitch + vector % vectors * lanes)
                for j, inside in in_vectors(count, cells // windows.step, lanes):
                    lines = [source.at(place + j * windows.step) for place in places]
                    left = cells - j * windows.step
                    for i, line in enumerate(_columns(lines, windows.step, stride, taps, lanes, inside, left)):
                        target.put((j + i) * pitch, line)


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


def _pack_windows(windows, block, packed, pitch, reduction, lanes):
    """``packed[pixel, number]``: windows whose rows have a length that kernels are not compiled for, row by row."""
    length = windows.kernel_width
    for z in loop(block.images):
        for source, row, count, _ in block.runs(windows, z):
            for number in loop(reduction // length):
                cells = source.at(windows.place(number))
                target = packed.at(row * pitch + number * length)
                for first in loop((length + (lanes - 1)) // lanes):
                    for i in loop(count):
                        taps = cells.vec(i * windows.step + first * lanes, lanes, length - first * lanes)
                        target.put(i * pitch + first * lanes, taps)


def _copy_rows(block, upstream, image_size, row_size, numbers, used_rows, block_images, lanes):
    """``numbers[row, image, pixel]``: the block's part of dy."""
    for r in loop(used_rows):
        for z in loop(block.images):
            for j in loop((block.pixels + (lanes - 1)) // lanes):
                line = upstream.at(z * image_size + r * row_size + j * lanes)
                line.prefetch(row_size * 4)
                cells = line.vec(0, lanes, count=block.pixels - j * lanes)
                numbers.put((r * block_images + z) * block.pixels + j * lanes, cells)


def _fetch_row(windows, number, image, images, pixel, line_pixels, lines, lanes):
    """Ask for a row of the windows of a block's pixels."""
    place = windows.place(number)
    for z in loop(images):
        for j in loop(lines):
            cells = windows.at(image + z, pixel // windows.line_pixels + j, pixel % windows.line_pixels).at(place)
            for k in loop(line_pixels * windows.step // lanes + 1):
                cells.prefetch(k * lanes, later=True)


def _add_rows(block, lines, image_size, biases, places, lanes):
    """Add the sums of some rows of dy to ``biases[row, lane]``."""
    totals = [Variable(biases.zero(lanes)) for _ in lines]
    for z in loop(block.images):
        for j in loop((block.pixels + (lanes - 1)) // lanes):
            for line, total in zip(lines, totals):
                cells = line.vec(z * image_size + j * lanes, lanes, count=block.pixels - j * lanes)
                total.set(total.get() + cells)
    added = [biases.vec(r * lanes, lanes) + total.get() for r, total in zip(places, totals)]
    for r, total in zip(places, added):  # a row may be there twice
        biases.put(r * lanes, total)


def _add_columns(block, packed, pitch, panel_size, biases, panels, lanes, vectors):
    """Add the sums of what is packed to ``biases[column]``."""
    for panel in loop(panels):
        totals = [Variable(biases.zero(lanes)) for _ in range(vectors)]
        for i in loop(block.images * block.pixels):
            for j, total in enumerate(totals):
                total.set(total.get() + packed.vec(panel * panel_size + i * pitch + lanes * j, lanes))
        for j, total in enumerate(totals):
            place = (panel * vectors + j) * lanes
            biases.put(place, biases.vec(place, lanes) + total.get())


def _write_turned(sums, pitch, out, out_pitch, rows, columns, lanes):
    """``out[column, row] = sums[row, column]``."""
    for block in loop((rows + (lanes - 1)) // lanes):
        for j in loop((columns + (lanes - 1)) // lanes):
            places = [minimum(block * lanes + i, rows - 1) for i in range(lanes)]
            for i, line in enumerate(transpose([sums.vec(r * pitch + j * lanes, lanes) for r in places])):
                count = (rows - block * lanes) * within(j * lanes + i, columns)
                out.put((j * lanes + i) * out_pitch + block * lanes, line, count=count)


def sum_of(vectors):
    """Their sum, half by half."""
    while len(vectors) > 1:
        vectors = [a + b for a, b in zip(vectors[::2], vectors[1::2])]
    return vectors[0]


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
