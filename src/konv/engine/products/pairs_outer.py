"""Weight gradient of 1x1 layers in bfloat16, two pixels at a time; see :mod:`konv.engine.products.pairs`."""

from __future__ import annotations

from konv.engine.compile import kernel
from konv.engine.products.pairs_kernels import multiply_tile
from konv.engine.simd import loop, minimum, pair, transpose, within
from konv.engine.windows import in_vectors


@kernel
def sum_pairs(out_dtype, lanes, vectors, rows, last, once):
    """``out[f, c] = sum over pixels of dy[f, pixel] * x[c, pixel]``, with ``last`` of x[pixel, c] and dy[pixel, f].

    A piece is (part of the pixels, group, region of filters, region of channels). Block by block of pixels, x is turned into
    ``packed[pair, c]``, a panel a time, and a tile's products are added to the region's sums, which stay in L2.
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
        packed = numbers.at(region_rows * block_images * ((block_pixels + 1) // 2))  # of x: [image, pair, column]
        for i in loop(used_rows * (region_columns // lanes)):
            sums.put(i * lanes, sums.zero(lanes))

        def lay(source, step, cells, count, target, pitch, spread):
            """``source[pixel, cells]``, pixels ``step`` apart, to ``target``: pairs ``pitch`` apart, cells ``spread``."""
            for j, used in in_vectors(cells, cells, lanes):
                for k in loop(count // 2):
                    low, high = (source.vec((2 * k + i) * step + j, lanes, count=used) for i in range(2))
                    target.put(k * pitch + j * spread, pair(low, high))
                for _ in loop(count % 2):
                    low = source.vec((count - 1) * step + j, lanes, count=used)
                    target.put(count // 2 * pitch + j * spread, pair(low, source.zero(lanes)))

        first_block = part * blocks // parts
        for b in loop((part + 1) * blocks // parts - first_block):
            block = first_block + b
            first_image, first_pixel = block // image_blocks * block_images, block % image_blocks * block_pixels
            used_images = minimum(block_images, images - first_image)
            count = minimum(block_pixels, pixels - first_pixel)
            pairs, channels, filters = (count + 1) // 2, groups * reduction, groups * row_count
            all_pairs = used_images * pairs
            if last:
                upstream = dy.at(first_pixel * filters + group * row_count + first_row)
                lay(upstream, filters, used_rows, count, numbers, lanes, pairs)
            else:
                for z in loop(used_images):
                    upstream = dy.at(
                        (((first_image + z) * groups + group) * row_count + first_row) * pixels + first_pixel
                    )
                    for r in loop(used_rows):
                        for k, used in in_vectors(pairs, count // 2, lanes):
                            line = upstream.pairs(r * pixels + 2 * k, lanes, None if used is None else count - 2 * k)
                            numbers.put(r * all_pairs + z * pairs + k, line, count=used)
            for panel in loop((used_columns + (width - 1)) // width):
                column = first_column + panel * width
                if last:
                    cells = x.at(first_pixel * channels + group * reduction + column)
                    lay(cells, channels, minimum(width, reduction - column), count, packed, width, 1)
                else:
                    for z in loop(used_images):
                        source = x.at(((first_image + z) * groups + group) * reduction * pixels + first_pixel)
                        for vector in loop(vectors):
                            for k, used in in_vectors(pairs, count // 2, lanes):
                                lines = []
                                for i in range(
                                    lanes
                                ):  # past the last channel comes the last again, in columns not used
                                    channel = minimum(column + vector * lanes + i, reduction - 1)
                                    cells = source.at(channel * pixels + 2 * k)
                                    lines.append(cells.pairs(0, lanes, None if used is None else count - 2 * k))
                                for i, line in enumerate(transpose(lines)):
                                    for _ in loop(1 if used is None else within(i, used)):
                                        packed.put((z * pairs + k + i) * width + vector * lanes, line)
                for tile in loop((used_rows + (rows - 1)) // rows):
                    places = [minimum(tile * rows + i, used_rows - 1) for i in range(rows)]
                    targets = [sums.at(r * region_columns + panel * width) for r in places]
                    if last:
                        lines = [numbers.at(r // lanes * lanes * pairs + r % lanes) for r in places]
                    else:
                        lines = [numbers.at(r * all_pairs) for r in places]

                    def start(i, j, targets=targets):
                        return targets[i].vec(lanes * j, lanes)

                    totals = multiply_tile(lines, lanes if last else 1, packed, all_pairs, lanes, vectors, once, start)
                    for i, target in enumerate(targets):
                        for j in range(vectors):
                            target.put(lanes * j, totals[vectors * i + j])

        for r in loop(used_rows):
            target = out.at(((part * groups + group) * row_count + first_row + r) * reduction + first_column)
            for j in loop((used_columns + (lanes - 1)) // lanes):
                line = sums.vec(r * region_columns + j * lanes, lanes)
                target.put(j * lanes, line, count=used_columns - j * lanes)

    return text, {"dy": "bfloat16", "x": "bfloat16", "out": out_dtype, "workspace": "float32"}
