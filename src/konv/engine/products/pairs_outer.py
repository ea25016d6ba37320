"""Weight gradient of 1x1 layers in bfloat16, two pixels at a time; see :mod:`konv.engine.products.pairs`."""

from __future__ import annotations

from konv.engine.compile import kernel
from konv.engine.products.pairs_kernels import LINE, multiply_tile
from konv.engine.simd import loop, maximum, minimum, pair, pick, transpose, within
from konv.engine.windows import in_vectors


@kernel
def sum_pairs(out_dtype, lanes, vectors, rows, last, once):
    """``out[f, c] = sum over pixels of dy[f, pixel] * x[c, pixel]``, with ``last`` of x[pixel, c] and dy[pixel, f].

    A piece is (part of the pixels, group, region of filters, region of channels). Block by block of pixels, x is turned into
    ``packed[panel, pair, c]``, and a tile's products are added to the region's sums; all of it stays in L2. Beside the tiles the
    caches are asked for the next block, some of its rows in each.
    """
    width = lanes * vectors

    def text(
        piece, slot, dy, x, out, workspace, slot_size, groups, parts, row_count, region_rows, row_regions, reduction,
        region_columns, column_regions, images, pixels, blocks, image_blocks, block_images, block_pixels,
    ):  # fmt: skip
        column_region, rest = piece % column_regions, piece // column_regions
        row_region, rest = rest % row_regions, rest // row_regions
        group, part = rest % groups, rest // groups
        first_row, first_column = row_region * region_rows, column_region * region_columns
        used_rows = minimum(region_rows, row_count - first_row)
        used_columns = minimum(region_columns, reduction - first_column)

        sums = workspace.at(slot * slot_size)  # [row, column]
        numbers = sums.at(region_rows * region_columns).as_(
            "int32"
        )  # of dy: [row, image, pair]; last [row / lanes, pair, lanes]
        packed = numbers.at(
            region_rows * block_images * ((block_pixels + 1) // 2)
        )  # of x: [panel, image, pair, column]
        for i in loop(used_rows * (region_columns // lanes)):
            sums.put(i * lanes, sums.zero(lanes))

        def lay(source, step, cells, count, place, in_order):
            """``source[pixel, cells]``, pixels ``step`` apart, in pairs of pixels; ``place(pair, cell)`` is where one lies.

            ``in_order``: as it lies in memory, or a vector of cells after the other.
            """

            def put(k, j, used, odd=False):
                low = source.vec(2 * k * step + j, lanes, count=used)
                high = source.zero(lanes) if odd else source.vec((2 * k + 1) * step + j, lanes, count=used)
                place(k, j).put(0, pair(low, high))

            if in_order:
                for k in loop(count // 2):
                    for j, used in in_vectors(cells, cells, lanes):
                        put(k, j, used)
            else:
                for j, used in in_vectors(cells, cells, lanes):
                    for k in loop(count // 2):
                        put(k, j, used)
            for _ in loop(count % 2):
                for j, used in in_vectors(cells, cells, lanes):
                    put(count // 2, j, used, odd=True)

        def source(array, cells, image, pixel, channel):
            """Where a channel of this group lies in x, or a filter in dy."""
            if last:
                return array.at(pixel * groups * cells + group * cells + channel)
            return array.at(((image * groups + group) * cells + channel) * pixels + pixel)

        first_block = part * blocks // parts
        for b in loop((part + 1) * blocks // parts - first_block):
            block = first_block + b
            first_image, first_pixel = block // image_blocks * block_images, block % image_blocks * block_pixels
            used_images = minimum(block_images, images - first_image)
            count = minimum(block_pixels, pixels - first_pixel)
            pairs, channels, filters = (count + 1) // 2, groups * reduction, groups * row_count
            all_pairs = used_images * pairs
            panel_size = all_pairs * width
            panels, tiles = (used_columns + (width - 1)) // width, (used_rows + (rows - 1)) // rows
            if last:
                upstream = source(dy, row_count, 0, first_pixel, first_row)
                cells = source(x, reduction, 0, first_pixel, first_column)
                lay(
                    upstream,
                    filters,
                    used_rows,
                    count,
                    lambda k, j, pairs=pairs: numbers.at(j * pairs + k * lanes),
                    False,
                )

                def place(k, j, size=panel_size):
                    return packed.at(j // width * size + k * width + j % width)

                lay(cells, channels, used_columns, count, place, True)
            else:
                for z in loop(used_images):
                    upstream = source(dy, row_count, first_image + z, first_pixel, first_row)
                    for r in loop(used_rows):
                        for k, used in in_vectors(pairs, count // 2, lanes):
                            line = upstream.pairs(r * pixels + 2 * k, lanes, None if used is None else count - 2 * k)
                            numbers.put(r * all_pairs + z * pairs + k, line, count=used)
                    cells = source(x, reduction, first_image + z, first_pixel, first_column)
                    for vector in loop(panels * vectors):
                        to = packed.at(vector // vectors * panel_size + vector % vectors * lanes)
                        # Past the last channel comes the last again, in columns that are not used
                        places = [minimum(vector * lanes + i, used_columns - 1) * pixels for i in range(lanes)]
                        for k, used in in_vectors(pairs, count // 2, lanes):
                            left = None if used is None else count - 2 * k
                            lines = [cells.pairs(place + 2 * k, lanes, left) for place in places]
                            for i, line in enumerate(transpose(lines)):
                                for _ in loop(1 if used is None else within(i, used)):
                                    to.put((z * pairs + k + i) * width, line)

            coming = minimum(block + 1, blocks - 1)
            image, pixel = coming // image_blocks * block_images, coming % image_blocks * block_pixels
            if last:
                shapes = (count, used_columns, channels), (count, used_rows, filters)
            else:
                shapes = (used_columns, block_pixels, pixels), (used_rows, block_pixels, pixels)
            asked = []  # rows of x and dy: (the first, how many, lines of one, how far apart, how many in each tile)
            for (count, numbers_of, step), at in zip(
                shapes,
                (source(x, reduction, image, pixel, first_column), source(dy, row_count, image, pixel, first_row)),
            ):
                share = (count + (panels * tiles - 1)) // (panels * tiles)
                asked.append((at, count, (numbers_of + (LINE - 1)) // LINE, step, share))
            for panel in loop(panels):
                block_of_x = packed.at(panel * panel_size)
                for tile in loop(tiles):
                    places = [minimum(tile * rows + i, used_rows - 1) for i in range(rows)]
                    targets = [sums.at(r * region_columns + panel * width) for r in places]
                    if last:
                        lines = [numbers.at(r // lanes * lanes * pairs + r % lanes) for r in places]
                    else:
                        lines = [numbers.at(r * all_pairs) for r in places]

                    def start(i, j, targets=targets):
                        return targets[i].vec(lanes * j, lanes)

                    def ask(q, visit=panel * tiles + tile, block=block_of_x, asked=asked):
                        line = block
                        for at, count, row_lines, step, share in asked:
                            used = minimum(share, count - visit * share) * row_lines
                            place = at.at((visit * share + q // row_lines) * step + q % row_lines * LINE)
                            line = pick(within(q, used), place.as_("int32"), line)
                            q = q - maximum(used, 0)
                        line.prefetch(0)

                    step = lanes if last else 1
                    totals = multiply_tile(lines, step, block_of_x, all_pairs, lanes, vectors, once, start, ask)
                    for i, target in enumerate(targets):
                        for j in range(vectors):
                            target.put(lanes * j, totals[vectors * i + j])

        for r in loop(used_rows):
            target = out.at(((part * groups + group) * row_count + first_row + r) * reduction + first_column)
            for j in loop((used_columns + (lanes - 1)) // lanes):
                line = sums.vec(r * region_columns + j * lanes, lanes)
                target.put(j * lanes, line, count=used_columns - j * lanes)

    return text, {"dy": "bfloat16", "x": "bfloat16", "out": out_dtype, "workspace": "float32"}
