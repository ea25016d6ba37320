"""Kernels of convolutions that are matrix products, channels last: filters (or a window's cells) in lanes.

Rows of a tile are pixels, read where they lie; its columns are a panel of the weights::

    y[pixel, columns] = bias[columns] + sum over q of  x[pixel, q] * panel[q, columns]

Along a row of x the cells and channels of a window are neighbours: a window is a few *segments*, one for each row that it has.
"""

from __future__ import annotations

from konv.engine.compile import kernel
from konv.engine.products_kernels import multiply_tile
from konv.engine.simd import Variable, loop, minimum, transpose, within


@kernel
def filter_panels(dtype, lanes, vectors):
    """``panel[q, filters]`` of w (filters, q), zeros past the last filter. A piece is a panel."""
    wide = "float64" if dtype == "float64" else "float32"
    width = lanes * vectors

    def text(piece, slot, w, out, filters, reduction):
        for j in range(vectors):
            first = piece * width + lanes * j
            for block in loop((reduction + (lanes - 1)) // lanes):
                q = block * lanes
                numbers = [
                    w.vec((first + i) * reduction + q, lanes, count=(reduction - q) * within(first + i, filters))
                    for i in range(lanes)
                ]
                for i, row in enumerate(transpose(numbers)):
                    to = (piece * reduction + q + i) * width + lanes * j
                    out.put(to, row, count=lanes * within(q + i, reduction))

    return text, {"w": dtype, "out": wide}


@kernel
def window_panels(dtype, lanes, vectors):
    """``panel[filter, cells]`` of a segment of w (filters, segment, cells), zeros past its last cell. A piece is a panel."""
    wide = "float64" if dtype == "float64" else "float32"
    width = lanes * vectors

    def text(piece, slot, w, out, filters, segments, cells, segment_panels):
        segment, first = piece // segment_panels, piece % segment_panels * width
        for f in loop(filters):
            for j in range(vectors):
                row = w.vec(
                    (f * segments + segment) * cells + first + lanes * j, lanes, count=cells - first - lanes * j
                )
                out.put((piece * filters + f) * width + lanes * j, row)

    return text, {"w": dtype, "out": wide}


@kernel
def multiply_rows(x_dtype, y_dtype, lanes, vectors, rows, plain):
    """Forward and input gradient. A piece is (block of pixels, part of the panels); ``plain``: pixels are neighbours."""
    wide = "float64" if x_dtype == "float64" else "float32"
    width = lanes * vectors

    def text(
        piece, slot, panels, x, bias, y, x_segments, y_segments, pixels, block_pixels, parts, part_panels, all_panels,
        segments, segment_length, run, run_panels, line_pixels, depth_lines, image_lines,
        x_image, x_depth, x_row, x_pixel, y_image, y_depth, y_row, y_pixel,
    ):  # fmt: skip
        part, first = piece % parts, piece // parts * block_pixels
        last = minimum(first + block_pixels, pixels)
        for tile in loop((last - first + (rows - 1)) // rows):
            sources, targets = [], []
            for i in range(rows):  # pixels past the last are the last again
                pixel = minimum(first + tile * rows + i, last - 1)
                if plain:
                    sources.append(x.at(pixel * x_pixel))
                    targets.append(y.at(pixel * y_pixel))
                else:
                    line, column = pixel // line_pixels, pixel % line_pixels
                    image, depth, height = line // image_lines, line % image_lines // depth_lines, line % depth_lines
                    sources.append(x.at(image * x_image + depth * x_depth + height * x_row + column * x_pixel))
                    targets.append(y.at(image * y_image + depth * y_depth + height * y_row + column * y_pixel))
            for p in loop(minimum(part_panels, all_panels - part * part_panels)):
                panel = part * part_panels + p
                columns = panel % run_panels * width
                to = y_segments[panel // run_panels] + columns
                totals = [Variable(bias.vec(columns + lanes * j, lanes)) for _ in range(rows) for j in range(vectors)]
                for s in loop(segments):
                    lines = [source.at(x_segments[s]) for source in sources]
                    block = panels.at((panel * segments + s) * segment_length * width)
                    multiply_tile(lines, 1, block, width, segment_length, lanes, totals)
                for j in range(vectors):
                    used = run - columns - lanes * j
                    whole = within(lanes - 1, used)
                    for _ in loop(whole):
                        for i, target in enumerate(targets):
                            target.put(to + lanes * j, totals[vectors * i + j].get())
                    for _ in loop(within(0, used) * (1 - whole)):
                        for i, target in enumerate(targets):
                            target.put(to + lanes * j, totals[vectors * i + j].get(), count=used)

    pointers = {"panels": wide, "x": x_dtype, "bias": wide, "y": y_dtype}
    return text, {**pointers, "x_segments": "int64", "y_segments": "int64"}
