"""Products of 1x1 layers in bfloat16, two at a time; see :mod:`konv.engine.products.pairs`.

Here channels are first, and pixels in lanes. A *pair* is two neighbours of what is summed over, side by side in 32 bits: of
channels (forward), of filters (input gradient), of pixels (weight gradient). After an odd last one comes a zero, in both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from konv.engine.compile import kernel
from konv.engine.simd import Variable, dot, loop, maximum, minimum, pair, pick, splat, whole, within
from konv.engine.windows import BLOCK_SUM, in_vectors, runs

LINE = 32  # bfloat16 in a cache line
TOGETHER = 4  # panels of pixels that are read along a channel, of 128 bytes in one
ONE_BLOCK = BLOCK_SUM // 2  # pairs that are summed at once


def multiply_tile(
    rows: Sequence[Any],
    step: Any,
    panel: Any,
    pairs: Any,
    lanes: int,
    vectors: int,
    once: bool,
    start: Callable[[int, int], Any],
    beside: Callable[[Any], None] | None = None,
) -> list[Any]:
    """``start(row, vector) + sum over pairs q of rows[row][q * step] * panel[q, vector]``, row after row.

    ``once``: there are no more pairs than ``ONE_BLOCK``. Where to start is then read in the end, when registers are free: 32
    pairs in .93 of the time. ``beside`` is told each pair.
    """
    names = [(i, j) for i in range(len(rows)) for j in range(vectors)]

    def block(first: Any, count: Any) -> list[Any]:
        sums = [Variable(panel.as_("float32").zero(lanes)) for _ in names]
        for k in loop(count):
            q = first + k
            if beside:
                beside(q)
            columns = [panel.vec((q * vectors + j) * lanes, lanes) for j in range(vectors)]
            for i, row in enumerate(rows):
                number = whole(row[q * step], lanes)
                for j, column in enumerate(columns):
                    a = sums[vectors * i + j]
                    a.set(dot(number, column, a.get()))
        return [a.get() for a in sums]

    if once:
        return [start(*name) + a for name, a in zip(names, block(0, pairs))]
    totals = [Variable(start(*name)) for name in names]
    for k in loop((pairs + (ONE_BLOCK - 1)) // ONE_BLOCK):
        first = k * ONE_BLOCK
        for total, a in zip(totals, block(first, minimum(pairs - first, ONE_BLOCK))):
            total.set(total.get() + a)
    return [total.get() for total in totals]


@kernel
def multiply_pairs(y_dtype, lanes, vectors, rows, turned, once):
    """Forward, or (``turned``) input gradient: y = w @ x + bias. A piece is (block of pixels, group, part of the rows).

    x is (images, groups, reduction, pixels of an image), y likewise; the pixels of all images count as one line. Panels that
    are packed together are read, and written, in one go along each channel: what lies a page apart arrives late.

    A panel that lies in one image has the even pixels of two vectors in one, the odd ones in the other (``both``, ``weave``).
    """
    width = lanes * vectors
    halves, ahead = range(0, width, 2 * lanes), TOGETHER * width // LINE

    def text(
        piece, slot, w, x, bias, y, workspace, slot_size, panel_size, block_panels, packed_panels, groups, parts, part_groups,
        row_group, row_count, reduction, pixels, image_pixels, most_runs,
    ):  # fmt: skip
        part, rest = piece % parts, piece // parts
        group, first = rest % groups, rest // groups * block_panels * width
        last = minimum(first + block_panels * width, pixels)
        panels, pairs = (last - first + (width - 1)) // width, (reduction + 1) // 2
        space = workspace.at(slot * slot_size)
        packed = space.as_("int32")  # [panel, pair, pixels]
        result = space.at(panel_size * packed_panels)  # [row, pixels], of a tile that is not written at once
        copies = result.at(rows * width).as_("int32")  # of w: [row, pair]; turned [row / lanes, pair, lanes]
        first_group = part * part_groups
        row_groups = minimum(part_groups, (row_count + (row_group - 1)) // row_group - first_group)

        def source(pixel):
            """Where a pixel of this group lies in x."""
            return x.at((pixel // image_pixels * groups + group) * reduction * image_pixels + pixel % image_pixels)

        def within_image(begin, end, length=width):
            """Whether so many pixels are there, and lie in one image."""
            return within(0, end - begin - (length - 1)) * within(begin % image_pixels, image_pixels - (length - 1))

        def pack(cells, target, count):
            """Whole panels, as they are computed."""
            for k in loop(reduction // 2):
                row, to = cells.at(2 * k * image_pixels), target.at(k * width)
                for panel in loop(count):
                    for j in halves:
                        lines = [row.both(i * image_pixels + panel * width + j, lanes) for i in range(2)]
                        for n, (low, high) in enumerate(zip(*lines)):
                            to.put(panel * panel_size + j + n * lanes, pair(low, high))
            for _ in loop(reduction % 2):
                row, to = cells.at((reduction - 1) * image_pixels), target.at((pairs - 1) * width)
                for panel in loop(count):
                    for j in halves:
                        for n, low in enumerate(row.both(panel * width + j, lanes)):
                            to.put(panel * panel_size + j + n * lanes, pair(low, row.zero(lanes)))

        def pack_run(cells, target, used):
            """Neighbouring pixels of a panel in several images, in their order."""
            for k in loop(reduction // 2):
                low, high = (cells.vec((2 * k + i) * image_pixels, lanes, count=used) for i in range(2))
                target.put(k * width, pair(low, high), count=used)
            for _ in loop(reduction % 2):
                low = cells.vec((reduction - 1) * image_pixels, lanes, count=used)
                target.put((pairs - 1) * width, pair(low, cells.zero(lanes)), count=used)

        for chunk in loop((panels + (packed_panels - 1)) // packed_panels):
            first_panel = chunk * packed_panels
            chunk_panels = minimum(packed_panels, panels - first_panel)
            at = first + first_panel * width
            at_once = within_image(at, last, chunk_panels * width)
            for _ in loop(at_once):
                pack(source(at), packed, chunk_panels)
            for panel in loop(chunk_panels * (1 - at_once)):
                begin = first + (first_panel + panel) * width
                end, block = minimum(begin + width, last), packed.at(panel * panel_size)
                in_one = within_image(begin, end)
                for _ in loop(in_one):
                    pack(source(begin), block, 1)
                for pixel, _, _, count in runs(begin, end, most_runs * (1 - in_one), image_pixels):
                    for j, used in in_vectors(count, count, lanes):
                        pack_run(source(pixel).at(j), block.at((pixel - begin) + j), used)

            for row_block in loop(row_groups):
                first_row = (first_group + row_block) * row_group
                used_rows = minimum(row_group, row_count - first_row)
                new_rows = maximum(
                    within(chunk, 1), within(1, row_groups)
                )  # copied again, unless there is no other group
                if turned:
                    matrix = w.at(group * reduction * row_count + first_row)
                    for k in loop((reduction // 2) * new_rows):
                        for i, used in in_vectors(used_rows, used_rows, lanes):
                            low, high = (matrix.vec((2 * k + n) * row_count + i, lanes, count=used) for n in range(2))
                            copies.put(i * pairs + k * lanes, pair(low, high))
                    for _ in loop((reduction % 2) * new_rows):
                        for i, used in in_vectors(used_rows, used_rows, lanes):
                            low = matrix.vec((reduction - 1) * row_count + i, lanes, count=used)
                            copies.put(i * pairs + (pairs - 1) * lanes, pair(low, matrix.zero(lanes)))
                else:
                    matrix = w.at((group * row_count + first_row) * reduction)
                    for r in loop(used_rows * new_rows):
                        for k, used in in_vectors(pairs, reduction // 2, lanes):
                            count = None if used is None else reduction - 2 * k
                            copies.put(r * pairs + k, matrix.pairs(r * reduction + 2 * k, lanes, count), count=used)
                tiles = (used_rows + (rows - 1)) // rows
                # While this is computed, the caches are asked for what is packed next: some rows in each tile
                coming = source(minimum(at + packed_panels * width, pixels - 1))
                asked_rows = (reduction + (tiles * chunk_panels - 1)) // (tiles * chunk_panels)
                for tile in loop(tiles):
                    # Rows past the last are the last again
                    places = [minimum(tile * rows + i, used_rows - 1) for i in range(rows)]
                    starts = [group * row_count + first_row + r for r in places]
                    if turned:
                        lines = [copies.at(r // lanes * lanes * pairs + r % lanes) for r in places]
                    else:
                        lines = [copies.at(r * pairs) for r in places]
                    for panel in loop(chunk_panels):
                        begin = first + (first_panel + panel) * width
                        end = minimum(begin + width, last)
                        image, column = begin // image_pixels * groups + group, begin % image_pixels
                        in_one = within_image(begin, end)
                        targets = [y.at((image * row_count + first_row + r) * image_pixels + column) for r in places]
                        for target in targets:  # while the tile is computed
                            for j in range(0, width, LINE):
                                target.prefetch(j, write=True)
                        step, block = lanes if turned else 1, packed.at(panel * panel_size)
                        asked_row = (tile * chunk_panels + panel) * asked_rows
                        asked, limit = (
                            coming.at(asked_row * image_pixels),
                            minimum(asked_rows, reduction - asked_row) * ahead,
                        )

                        def ask(q, asked=asked, limit=limit, block=block):
                            place = asked.at(q // ahead * image_pixels + q % ahead * LINE).as_("int32")
                            pick(within(q, limit), place, block).prefetch(0)

                        def start(i, j, starts=starts):
                            return splat(bias[starts[i]], lanes)

                        totals = multiply_tile(lines, step, block, pairs, lanes, vectors, once, start, ask)
                        for _ in loop(in_one):
                            for i, target in enumerate(targets):
                                for j in halves:
                                    v = vectors * i + j // lanes
                                    target.weave(j, totals[v], totals[v + 1])
                        for _ in loop(1 - in_one):
                            for i in range(rows * vectors):
                                result.put(i * lanes, totals[i])
                        for pixel, _, _, count in runs(begin, end, most_runs * (1 - in_one), image_pixels):
                            image, column = pixel // image_pixels * groups + group, pixel % image_pixels
                            first_cell = (image * row_count + first_row + tile * rows) * image_pixels + column
                            for j, used in in_vectors(count, count, lanes):
                                for r in loop(minimum(rows, used_rows - tile * rows)):
                                    line = result.vec(r * width + (pixel - begin) + j, lanes, count=used)
                                    y.put(first_cell + r * image_pixels + j, line, count=used)

    return text, {"w": "bfloat16", "x": "bfloat16", "bias": "float32", "y": y_dtype, "workspace": "float32"}
