"""Products of 1x1 layers in bfloat16 with channels last: x is read in pairs where it lies; see
:mod:`konv.engine.products.pairs`."""

from __future__ import annotations

from konv.engine.compile import kernel
from konv.engine.products.pairs_kernels import LINE, multiply_tile
from konv.engine.simd import bits, loop, minimum, pair, pick, transpose, within
from konv.engine.windows import in_vectors


@kernel
def multiply_pairs_last(y_dtype, lanes, vectors, rows, turned, once):
    """Forward, or (``turned``) input gradient: y = x @ w.T + bias. A piece is (block of pixels, part of the panels of w).

    x is (pixels, reduction), y (pixels, filters), w (filters, reduction), turned (reduction, filters). Of odd lengths a pair
    would hold a number of the next pixel: ``reduction`` is even. Two vectors of a panel have the even filters and the odd ones
    (``both``, ``weave``); a last one without a second has neighbours.
    """
    width = lanes * vectors
    first_vectors = range(0, vectors, 2)

    def woven(j):
        return j + 1 < vectors

    def filter_of(j, lane):
        """Which of its panel lane ``lane`` of vector j is."""
        first = j // 2 * 2
        return lanes * first + (2 * lane + j % 2 if woven(first) else lane)

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
            out = panels.at(p * pairs * width)
            if turned:
                for j in first_vectors:
                    f = (first_panel + p) * width + lanes * j
                    for k in loop(pairs):
                        two = [w.at((2 * k + i) * filters + f) for i in range(2)]
                        if woven(j):
                            columns = list(zip(*[row.both(0, lanes, bits(0, filters - f)) for row in two]))
                        else:
                            columns = [tuple(row.vec(0, lanes, count=filters - f) for row in two)]
                        for n, (low, high) in enumerate(columns):
                            out.put(k * width + lanes * (j + n), pair(low, high))
            else:
                for j in range(vectors):
                    # Past the last filter comes the last again, in columns that are not used
                    places = [(first_panel + p) * width + filter_of(j, i) for i in range(lanes)]
                    places = [minimum(f, filters - 1) * reduction for f in places]
                    for k, used in in_vectors(pairs, pairs, lanes):
                        left = None if used is None else reduction - 2 * k
                        for i, line in enumerate(transpose([w.at(f).pairs(2 * k, lanes, left) for f in places])):
                            for _ in loop(1 if used is None else within(i, used)):
                                out.put((k + i) * width + lanes * j, line)

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
                        first = j // 2 * 2
                        return (
                            bias.both(f + lanes * first, lanes)[j % 2]
                            if woven(first)
                            else bias.vec(f + lanes * j, lanes)
                        )

                    # Beside the last panel the caches are asked for the next chunk
                    block = panels.at(p * pairs * width)
                    coming = x.at((begin + chunk_pixels + tile * rows) * reduction)
                    limit = within(used_panels - 1, p + 1) * (rows * reduction // LINE)

                    def ask(q, coming=coming, limit=limit, block=block):
                        pick(within(q, limit), coming.at(q * LINE).as_("int32"), block).prefetch(0)

                    totals = multiply_tile(lines, 1, block, pairs, lanes, vectors, once, start, ask)
                    for j in first_vectors:
                        used = filters - f - lanes * j
                        full = within((2 * lanes if woven(j) else lanes) - 1, used)
                        for count, times in ((None, full), (used, within(0, used) * (1 - full))):
                            for _ in loop(times):
                                for i, target in enumerate(targets):
                                    v = vectors * i + j
                                    if woven(j):
                                        target.weave(lanes * j, totals[v], totals[v + 1], count)
                                    else:
                                        target.put(lanes * j, totals[v], count=count)

    return text, {"w": "bfloat16", "x": "bfloat16", "bias": "float32", "y": y_dtype, "workspace": "float32"}
