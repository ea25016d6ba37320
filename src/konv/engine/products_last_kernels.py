"""Kernels of convolutions that are matrix products, channels last: filters (or a window's cells) in lanes.

Rows of a tile are pixels, read where they lie; its columns are a panel of the weights::

    y[pixel, columns] = bias[columns] + sum over q of  x[pixel, q] * panel[q, columns]

Along a row of x the cells and channels of a window are neighbours: a window is a few *segments*, one for each row that it has.
"""

from __future__ import annotations

from typing import Any

from konv.engine.compile import kernel
from konv.engine.machine import wide_type
from konv.engine.simd import Variable, loop, minimum, transpose, within
from konv.engine.windows import in_vectors, multiply_tile, panel_columns


def lay_filters(w: Any, out: Any, first: Any, filters: Any, reduction: Any, lanes: int, vectors: int) -> None:
    """``out[q, filters]`` of w (filters, q), from filter ``first`` on, zeros past the last."""
    for j in range(vectors):
        for q, used in in_vectors(reduction, reduction, lanes):
            numbers = [
                w.vec(
                    (first + lanes * j + i) * reduction + q,
                    lanes,
                    (lanes if used is None else used) * within(first + lanes * j + i, filters),
                )
                for i in range(lanes)
            ]
            for i, row in enumerate(transpose(numbers)):
                for _ in loop(1 if used is None else within(i, used)):
                    out.put((q + i) * lanes * vectors + lanes * j, row)


def lay_windows(w: Any, out: Any, first: Any, filters: Any, pitch: Any, cells: Any, lanes: int, vectors: int) -> None:
    """``out[filter, cells]`` of a segment of w, filters ``pitch`` apart, from cell ``first`` on, zeros past its last."""
    for f in loop(filters):
        for j in range(vectors):
            row = w.vec(f * pitch + first + lanes * j, lanes, count=cells - first - lanes * j)
            out.put((f * vectors + j) * lanes, row)


@kernel
def multiply_rows(x_dtype, y_dtype, lanes, vectors, rows, turned, plain):
    """Forward, or (``turned``) input gradient. A piece is (block of pixels, part of the panels).

    w is (filters, segments, cells of a segment). ``plain``: pixels are neighbours in x and in y.
    """
    wide = wide_type(x_dtype)
    width = lanes * vectors

    def text(
        piece, slot, w, x, bias, y, workspace, x_segments, y_segments, slot_size, pixels, block_pixels, parts, part_panels,
        all_panels, segments, segment_length, run, run_panels, line_pixels, depth_lines, image_lines,
        x_image, x_depth, x_row, x_pixel, y_image, y_depth, y_row, y_pixel,
    ):  # fmt: skip
        part, first = piece % parts, piece // parts * block_pixels
        last = minimum(first + block_pixels, pixels)
        panels, reduction = workspace.at(slot * slot_size), segments * segment_length
        kept = panels.at(part_panels * reduction * width)
        first_panel = part * part_panels
        used_panels = minimum(part_panels, all_panels - first_panel)
        for p in loop(used_panels):
            panel, out = first_panel + p, panels.at(p * reduction * width)
            columns = panel % run_panels * width
            if turned:
                all_segments = all_panels // run_panels
                segment = w.at(panel // run_panels * run)
                lay_windows(segment, out, columns, reduction, all_segments * run, run, lanes, vectors)
            else:
                lay_filters(w, out, columns, run, reduction, lanes, vectors)

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
            for p in loop(used_panels):
                panel = first_panel + p
                columns = panel % run_panels * width
                to = y_segments[panel // run_panels] + columns
                totals = [Variable(bias.vec(columns + lanes * j, lanes)) for _ in range(rows) for j in range(vectors)]
                for s in loop(segments):
                    lines = [source.at(x_segments[s]) for source in sources]
                    block = panels.at((p * segments + s) * segment_length * width)
                    multiply_tile(
                        lines, 1, panel_columns(block, width, lanes, vectors), segment_length, lanes, totals, kept, s
                    )
                for j in range(vectors):
                    used = run - columns - lanes * j
                    whole = within(lanes - 1, used)
                    for _ in loop(whole):
                        for i, target in enumerate(targets):
                            target.put(to + lanes * j, totals[vectors * i + j].get())
                    for _ in loop(within(0, used) * (1 - whole)):
                        for i, target in enumerate(targets):
                            target.put(to + lanes * j, totals[vectors * i + j].get(), count=used)

    pointers = {"w": x_dtype, "x": x_dtype, "bias": wide, "y": y_dtype, "workspace": wide}
    return text, {**pointers, "x_segments": "int64", "y_segments": "int64"}
