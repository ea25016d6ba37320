"""One level of Strassen's algorithm, its sums taken where they are read; see :mod:`konv.engine.products.strassen`."""

from __future__ import annotations

from typing import Any

from konv.engine.compile import kernel
from konv.engine.simd import Variable, fma, loop, minimum, pick, splat, within
from konv.engine.windows import in_vectors, read_windows, runs

# Strassen's seven products: (quarters of w, quarters of x, quarters of y that a product is added to), each with its sign.
# Of w: (half of the filters, half of the sum); of x: (half of the sum, half of the pixels); of y: (of filters, of pixels).
PRODUCTS = (
    (((0, 0, 1), (1, 1, 1)), ((0, 0, 1), (1, 1, 1)), ((0, 0, 1), (1, 1, 1))),
    (((1, 0, 1), (1, 1, 1)), ((0, 0, 1),), ((1, 0, 1), (1, 1, -1))),
    (((0, 0, 1),), ((0, 1, 1), (1, 1, -1)), ((0, 1, 1), (1, 1, 1))),
    (((1, 1, 1),), ((1, 0, 1), (0, 0, -1)), ((0, 0, 1), (1, 0, 1))),
    (((0, 0, 1), (0, 1, 1)), ((1, 1, 1),), ((0, 0, -1), (0, 1, 1))),
    (((1, 0, 1), (0, 0, -1)), ((0, 0, 1), (0, 1, 1)), ((1, 1, 1),)),
    (((0, 1, 1), (1, 1, -1)), ((1, 0, 1), (1, 1, 1)), ((0, 0, 1),)),
)
AHEAD = 16  # rows are asked for so many before they are read: they lie pages apart


def signed_sum(terms: list[tuple[Any, int]]) -> Any:
    """Of vectors with their signs; the first is positive."""
    (total, _), *others = terms
    for other, sign in others:
        total = total + other if sign > 0 else total - other
    return total


@kernel
def multiply_quarters(dtype, lanes, vectors, tail, rows, x_stride, x_taps):
    """Forward: y = w @ x + bias. A piece is (block of pairs of pixels, part of the filters).

    A pair is two pixels of one sample, half of its pixels apart; where their number is odd, zeros stand for the last one's
    fellow. ``packed[panel, half of the pixels, q, pair]``: both halves of a panel are panels as those of
    :mod:`konv.engine.products.products_kernels`. The last panel has ``tail`` vectors, or "half" a one. Rows of w are read
    where they lie; the next ones, and the lines of y, are asked for while products are computed.
    """
    width = lanes * vectors
    tail_lanes, tail = (lanes // 2, 1) if tail == "half" else (lanes, tail)

    def text(
        piece, slot, w, x, bias, y, workspace, slot_size, panel_size, block_panels, parts, part_tiles, tiles, half_rows,
        half_sums, block_sums, pairs, half_pixels, sample_pixels, most_samples, y_sample, whole_pieces, whole_blocks,
        tail_parts, tail_tiles, x_runs, x_line_pixels, x_depth_lines, x_image_lines, x_image, x_channels, x_channel, x_depth,
        x_row, x_cells, x_kernel_depth, x_kernel_height, x_kernel_width, x_step_depth, x_step_height, x_step,
    ):  # fmt: skip
        x_kernel_width, x_step = x_taps or x_kernel_width, x_stride or x_step
        reduction = 2 * half_sums
        tail_piece = 1 - within(piece, whole_pieces)
        parts, part_tiles = pick(tail_piece, tail_parts, parts), pick(tail_piece, tail_tiles, part_tiles)
        part, block = (piece - tail_piece * whole_pieces) % parts, (piece - tail_piece * whole_pieces) // parts
        first = (block + tail_piece * whole_blocks) * block_panels * width
        last = minimum(first + block_panels * width, pairs)
        panels = (last - first + (width - 1)) // width
        packed = workspace.at(slot * slot_size)
        result = packed.at(panel_size * block_panels)  # result[half of the filters, half of the pixels, row, pair]
        result_size = rows * width

        def pieces_of_samples(begin, end):
            """(first pair, half, sample, first pixel there, pairs, pixels): pixels are one fewer where the last has no fellow."""
            for pair, sample, column, count in runs(begin, end, most_samples, half_pixels):
                for half in range(2):
                    pixel = half * half_pixels + column
                    yield pair, half, sample, pixel, count, minimum(count, sample_pixels - pixel)

        for panel in loop(panels):
            begin = first + panel * width
            for pair, half, sample, start, count, pixels in pieces_of_samples(begin, minimum(begin + width, last)):
                here = packed.at(panel * panel_size + half * reduction * width + (pair - begin))
                for _ in loop(count - pixels):
                    for q in loop(reduction):
                        here[q * width + pixels] = 0.0
                number = sample * sample_pixels + start
                for pixel, line, column, cells_here in runs(number, number + pixels, x_runs, x_line_pixels):
                    row_cells = x_cells - column * x_step
                    cells = (
                        line // x_image_lines * x_image + line % x_image_lines // x_depth_lines * x_step_depth * x_depth
                        + line % x_depth_lines * x_step_height * x_row + column * x_step
                    )  # fmt: skip
                    for j, used in in_vectors(cells_here, row_cells // x_step, lanes):
                        target = here.at(pixel - number + j)
                        for c in loop(x_channels):
                            for d in loop(x_kernel_depth):
                                for h in loop(x_kernel_height):
                                    cell = cells + c * x_channel + d * x_depth + h * x_row + j * x_step
                                    q = ((c * x_kernel_depth + d) * x_kernel_height + h) * x_kernel_width
                                    x.prefetch(cell + AHEAD * x_channel)
                                    taps = read_windows(
                                        x.at(cell), x_step, x_stride, x_taps, x_kernel_width, lanes, used,
                                        row_cells - j * x_step,
                                    )  # fmt: skip
                                    for t, numbers in taps:
                                        target.put((q + t) * width, numbers, count=used)

        for tile in loop(minimum(part_tiles, tiles - part * part_tiles)):
            first_row = (part * part_tiles + tile) * rows
            after = minimum(first_row + rows, half_rows - rows)
            next_rows = [w.at((i * half_rows + after) * reduction) for i in range(2)]
            for panel in loop(panels):
                begin = first + panel * width
                end = minimum(begin + width, last)
                here = packed.at(panel * panel_size)

                def ask(i, half, begin=begin, end=end, first_row=first_row):
                    """Ask for the lines of a quarter of y."""
                    for _, sample, column, count in runs(begin, end, most_samples, half_pixels):
                        line = y.at(
                            sample * y_sample
                            + (i * half_rows + first_row) * sample_pixels
                            + half * half_pixels
                            + column
                        )
                        for r in loop(rows):
                            for k in loop(count // lanes + 1):
                                line.prefetch(r * sample_pixels + k * lanes, write=True)

                def add(sums, to, lanes, vectors):
                    """Add a product to quarters of the result."""
                    for i, half, sign in to:
                        target = result.at((2 * i + half) * result_size)
                        for r in range(rows):
                            for j in range(vectors):
                                at = r * width + j * lanes
                                target.put(
                                    at, signed_sum([(target.vec(at, lanes), 1), (sums[r * vectors + j].get(), sign)])
                                )

                def multiply(lanes, vectors, here=here, first_row=first_row, next_rows=next_rows):
                    """The products of a tile: ``rows`` filters of either half by so many vectors of pairs."""
                    for i in range(2):
                        for r in range(rows):
                            start = splat(bias[i * half_rows + first_row + r], lanes)
                            for half in range(2):
                                for j in range(vectors):
                                    result.put((2 * i + half) * result_size + r * width + j * lanes, start)
                    for number in loop((half_sums + (block_sums - 1)) // block_sums):
                        first_q = number * block_sums
                        for n, (left, right, to) in enumerate(PRODUCTS):
                            if 1 < n < 6:
                                ask(n % 2, n // 2 - 1)
                            matrix = w.at(first_row * reduction + first_q)
                            lines = [
                                [(matrix.at((i * half_rows + r) * reduction + k * half_sums), s) for i, k, s in left]
                                for r in range(rows)
                            ]
                            quarters = [
                                (here.at((half * reduction + k * half_sums + first_q) * width), s)
                                for k, half, s in right
                            ]
                            sums = [Variable(here.zero(lanes)) for _ in range(rows * vectors)]
                            for q in loop(minimum(block_sums, half_sums - first_q)):
                                if n < 2:
                                    next_rows[n].prefetch((first_q + q) * lanes, later=True)
                                columns = [
                                    signed_sum([(p.vec(q * width + j * lanes, lanes), s) for p, s in quarters])
                                    for j in range(vectors)
                                ]
                                for r, line in enumerate(lines):
                                    a = signed_sum([(splat(p[q], lanes), s) for p, s in line])
                                    for j, column in enumerate(columns):
                                        total = sums[r * vectors + j]
                                        total.set(fma(a, column, total.get()))
                            add(sums, to, lanes, vectors)

                shorter = within(end - begin, tail_lanes * tail + 1) if tail else 0
                for _ in loop(1 - shorter):
                    multiply(lanes, vectors)
                if tail:
                    for _ in loop(shorter):
                        multiply(tail_lanes, tail)

                for pair, half, sample, start, _, pixels in pieces_of_samples(begin, end):
                    source = result.at(half * result_size + (pair - begin))
                    target = y.at(sample * y_sample + first_row * sample_pixels + start)
                    for j, used in in_vectors(pixels, pixels, lanes):
                        for i in range(2):
                            for r in loop(rows):
                                numbers = source.vec(2 * i * result_size + r * width + j, lanes)
                                target.put((i * half_rows + r) * sample_pixels + j, numbers, count=used)

    return text, {"w": dtype, "x": dtype, "bias": dtype, "y": dtype, "workspace": dtype}
