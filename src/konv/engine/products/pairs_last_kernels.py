"""Products of 1x1 layers in bfloat16 with channels last: x is read in pairs where it lies; see
:mod:`konv.engine.products.pairs`."""

from __future__ import annotations

from konv.engine.compile import kernel
from konv.engine.products.pairs_kernels import LINE, multiply_tile
from konv.engine.simd import loop, minimum, pair, transpose, within
from konv.engine.windows import in_vectors


@kernel
def multiply_pairs_last(y_dtype, lanes, vectors, rows, turned, once):
    """Forward, or (``turned``) input gradient: y = x @ w.T + bias. A piece is (block of pixels, part of the panels of w).

    x is (pixels, reduction), y (pixels, filters), w (filters, reduction), turned (reduction, filters). Of odd lengths a pair
    would hold a number of the next pixel: ``reduction`` is even.
    """
    width = lanes * vectors

    def text(
        piece, slot, w, x, bias, y, workspace, slot_size, pixels, block_pixels, chunk_pixels, parts, part_panels, all_panels,
        reduction, filters,
    ):  # fmt: skip
        part, first = piece % parts, piece // parts * block_pixels
        last = minimum(first + block_pixels, pixels)
        panels, pairs = workspace.at(slot * slot_size).as_("int32"), reduction // 2
        first_panel = part * part_panels
        used_panels = minimum(part_panels, all_panels - first_panel)
        for p in loop(used_panels):  # panels[panel, pair, filters]
            for j in range(vectors):
                f, out = (first_panel + p) * width + lanes * j, panels.at(p * pairs * width + lanes * j)
                if turned:
                    for k in loop(pairs):
                        low, high = (w.vec((2 * k + i) * filters + f, lanes, count=filters - f) for i in range(2))
                        out.put(k * width, pair(low, high))
                else:
                    for k, used in in_vectors(pairs, pairs, lanes):
                        lines = []
                        for i in range(
                            lanes
                        ):  # past the last filter comes the last again, in columns that are not used
                            row = w.at(minimum(f + i, filters - 1) * reduction + 2 * k)
                            lines.append(row.pairs(0, lanes, None if used is None else reduction - 2 * k))
                        for i, line in enumerate(transpose(lines)):
                            for _ in loop(1 if used is None else within(i, used)):
                                out.put((k + i) * width, line)

        for chunk in loop((last - first + (chunk_pixels - 1)) // chunk_pixels):
            begin = first + chunk * chunk_pixels
            end = minimum(begin + chunk_pixels, last)
            for p in loop(used_panels):
                f = (first_panel + p) * width
                for tile in loop((end - begin + (rows - 1)) // rows):
                    places = [
                        minimum(begin + tile * rows + i, end - 1) for i in range(rows)
                    ]  # past the last the last again
                    lines = [x.at(place * reduction).as_("int32") for place in places]
                    targets = [y.at(place * filters + f) for place in places]
                    for target in targets:  # while the tile is computed
                        for j in range(0, width, LINE):
                            target.prefetch(j, write=True)

                    def start(i, j, f=f):
                        return bias.vec(f + lanes * j, lanes)

                    totals = multiply_tile(lines, 1, panels.at(p * pairs * width), pairs, lanes, vectors, once, start)
                    for j in range(vectors):
                        used = filters - f - lanes * j
                        full = within(lanes - 1, used)
                        for count, times in ((None, full), (used, within(0, used) * (1 - full))):
                            for _ in loop(times):
                                for i, target in enumerate(targets):
                                    target.put(lanes * j, totals[vectors * i + j], count=count)

    return text, {"w": "bfloat16", "x": "bfloat16", "bias": "float32", "y": y_dtype, "workspace": "float32"}
