"""Weight and bias gradient of convolutions that are matrix products, channels last.

Both arrays lie as the tile wants them: its rows are filters of dy, a number from each pixel; its columns are numbers of the
window, neighbours in x. Blocks of x are copied all the same, into panels that lie in few pages.
"""

from __future__ import annotations

from konv.engine.compile import kernel
from konv.engine.simd import Variable, loop, minimum, within
from konv.engine.windows import multiply_tile, panel_columns, runs


@kernel
def window_sums(dtype, lanes, vectors, rows):
    """``out[f, q] = sum over pixels of dy[pixel, f] * x[pixel, q]``, q = (segment, its cells and channels); the sums of dy.

    A piece is (part of the pixels, region of filters, region of the panels of q). Block by block of pixels the products
    are added to the region's sums, which stay in L2; meanwhile the next block is asked for.
    """
    width = lanes * vectors

    def text(
        piece, slot, dy, x, out, bias, workspace, x_segments, slot_size, filters, region_rows, row_regions, segments, run,
        run_panels, region_panels, panel_regions, pixels, block_pixels, blocks, parts, line_pixels, depth_lines, image_lines,
        most_runs, x_image, x_depth, x_row, x_pixel, biased,
    ):  # fmt: skip
        panel_region, rest = piece % panel_regions, piece // panel_regions
        first_row, part = rest % row_regions * region_rows, rest // row_regions
        first_panel = panel_region * region_panels
        used_rows = minimum(region_rows, filters - first_row)
        panels = minimum(region_panels, segments * run_panels - first_panel)
        tiles = (used_rows + (rows - 1)) // rows
        kept = workspace.at(slot * slot_size)
        sums = kept.at(rows * width)
        packed = sums.at(region_rows * region_panels * width)
        biases = packed.at(block_pixels * region_panels * width)
        filter_blocks = (used_rows + (4 * lanes - 1)) // (4 * lanes) * biased * within(panel_region, 1)
        for i in loop(region_rows * panels * vectors):
            sums.put(i * lanes, sums.zero(lanes))
        for i in loop(filter_blocks * 4):
            biases.put(i * lanes, sums.zero(lanes))

        def window(line, column):
            image, depth, height = (
                line // image_lines,
                line % image_lines // depth_lines,
                line % depth_lines,
            )
            return image * x_image + depth * x_depth + height * x_row + column * x_pixel

        first_block = part * blocks // parts
        for b in loop((part + 1) * blocks // parts - first_block):
            first = (first_block + b) * block_pixels
            count = minimum(block_pixels, pixels - first)
            for pixel, line, column, length in runs(first, first + count, most_runs, line_pixels):
                source = x.at(window(line, column))
                for p in loop(panels):
                    columns = (first_panel + p) % run_panels * width
                    numbers = source.at(x_segments[(first_panel + p) // run_panels] + columns)
                    target = packed.at((p * block_pixels + (pixel - first)) * width)
                    for i in loop(length):
                        for j in range(vectors):
                            row = numbers.vec(
                                i * x_pixel + lanes * j,
                                lanes,
                                count=run - columns - lanes * j,
                            )
                            target.put(i * width + lanes * j, row)

            upstream = dy.at(first * filters + first_row)
            for f in loop(filter_blocks):
                places = [(f * 4 + j) * lanes for j in range(4)]
                totals = [Variable(sums.zero(lanes)) for _ in places]
                for i in loop(count):
                    for place, total in zip(places, totals):
                        total.set(total.get() + upstream.vec(i * filters + place, lanes, count=used_rows - place))
                for place, total in zip(places, totals):
                    biases.put(place, biases.vec(place, lanes) + total.get())
            ahead = minimum(first + block_pixels, pixels - 1)
            next_dy = dy.at(ahead * filters + first_row)
            next_x = x.at(window(ahead // line_pixels, ahead % line_pixels) + first_panel % run_panels * width)
            share = (block_pixels + (panels * tiles - 1)) // (panels * tiles)
            for p in loop(panels):
                for tile in loop(tiles):
                    for i in loop(share):
                        pixel = (p * tiles + tile) * share + i
                        for line in loop((used_rows + (lanes - 1)) // lanes):
                            next_dy.prefetch(pixel * filters + line * lanes, later=True)
                        for line in loop(panels * vectors):
                            next_x.prefetch(pixel * x_pixel + line * lanes, later=True)
                    places = [minimum(tile * rows + i, used_rows - 1) for i in range(rows)]
                    totals = [Variable(sums.zero(lanes)) for _ in range(rows * vectors)]
                    columns = panel_columns(packed.at(p * block_pixels * width), width, lanes, vectors)
                    multiply_tile(
                        [upstream.at(r) for r in places],
                        filters,
                        columns,
                        count,
                        lanes,
                        totals,
                        kept,
                    )
                    cells = [sums.at((p * region_rows + r) * width + lanes * j) for r in places for j in range(vectors)]
                    added = [cell.vec(0, lanes) + total.get() for cell, total in zip(cells, totals)]
                    for cell, total in zip(cells, added):  # a row may be there twice
                        cell.put(0, total)

        for p in loop(panels):
            segment, columns = (
                (first_panel + p) // run_panels,
                (first_panel + p) % run_panels * width,
            )
            for r in loop(used_rows):
                target = out.at(((part * filters + first_row + r) * segments + segment) * run + columns)
                for j in range(vectors):
                    line = sums.vec((p * region_rows + r) * width + lanes * j, lanes)
                    target.put(lanes * j, line, count=run - columns - lanes * j)
        for i in loop(filter_blocks * 4):
            line = biases.vec(i * lanes, lanes)
            bias.put(part * filters + first_row + i * lanes, line, count=used_rows - i * lanes)

    pointers = dict.fromkeys(("dy", "x", "out", "bias", "workspace"), dtype)
    return text, {**pointers, "x_segments": "int64"}
