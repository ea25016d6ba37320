"""Kernels of convolutions that are matrix products, channels last: filters (or a window's cells) in lanes.

Rows of a tile are pixels, read where they lie; its columns are a panel of the weights::

    y[pixel, columns] = bias[columns] + sum over q of  x[pixel, q] * panel[q, columns]

Along a row of x the cells and channels of a window are neighbours: a window is a few *segments*, one for each row that it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from konv.engine.compile import kernel
from konv.engine.machine import wide_type
from konv.engine.simd import Variable, loop, minimum, transpose, within
from konv.engine.windows import BLOCK_SUM, in_vectors, multiply_tile, panel_columns

AHEAD = (
    2  # pixels are asked for so many tiles before they are read, for L2: asked for L1, deep layers took 3 to 9 % longer
)


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


class Walk:
    """Pixels one after the other, and where their windows begin in an array (images, depth, height, width, channels).

    Divisions are slow: some are done for each line of pixels, none for a pixel.
    """

    def __init__(self, pixel: Any, lines: Sequence[Any], steps: Sequence[Any]):
        (self.line_pixels, self.depth_lines, self.image_lines), self.steps = lines, steps
        self.line, self.column = Variable(pixel // self.line_pixels), Variable(pixel % self.line_pixels)
        self.depth, self.height, self.start = Variable(0), Variable(0), Variable(0)
        self._begin()

    def place(self) -> tuple[Any, Any, Any, Any]:
        """Depth, height and column of the pixel, and where its window begins."""
        column = self.column.get()
        return self.depth.get(), self.height.get(), column, self.start.get() + column * self.steps[3]

    def advance(self, by: Any) -> None:
        """To the next pixel; ``by`` 0: stay."""
        self.column.set(self.column.get() + by)
        for _ in loop(1 - within(self.column.get(), self.line_pixels)):
            self.line.set(self.line.get() + 1)
            self.column.set(0)
            self._begin()

    def _begin(self) -> None:
        line = self.line.get()
        image, rest = line // self.image_lines, line % self.image_lines
        self.depth.set(rest // self.depth_lines)
        self.height.set(rest % self.depth_lines)
        places = image, self.depth.get(), self.height.get()
        self.start.set(sum(place * step for place, step in zip(places, self.steps)))


@dataclass(frozen=True)
class Scattered:
    """Numbers of a window one after the other in the order of w: they lie at ``places``."""

    window: Any
    places: Any

    def __getitem__(self, q: Any) -> Any:
        return self.window[self.places[q]]


@kernel
def multiply_rows(x_dtype, y_dtype, lanes, vectors, rows, turned, plain, scattered, copied, padded):
    """Forward, or (``turned``) input gradient. A piece is (part of the panels, block of pixels).

    w is (filters, channels, cells), ``turned`` (filters, segments, cells and channels of a segment); the windows are x's, or
    y's. ``plain``: they lie side by side as the pixels do. ``scattered``: number q of one lies at ``places[q]``. ``copied``:
    what a tile reads is laid beside the panels and widened. ``padded``: parts of some lie outside the array.

    ``lines`` tells of each vector of a window, or (``turned``) of each segment: its offset, depth, height and first cell.
    """
    wide = wide_type(x_dtype)
    width = lanes * vectors

    def text(
        piece, slot, w, x, bias, y, workspace, laid, places, lines, slot_size, pixels, block_pixels, blocks, part_panels,
        all_panels, reduction, run, run_panels, window_lines, line_count, pitch, line_pixels, depth_lines, image_lines,
        pixel_size, image, depth, row, pixel_step, depths, heights, row_cells, step_depth, step_height, low_depth, low_height,
        low_cells,
    ):  # fmt: skip
        part, first = piece // blocks, piece % blocks * block_pixels
        last = minimum(first + block_pixels, pixels)
        panels = workspace.at(slot * slot_size)
        kept = panels.at(part_panels * reduction * width)
        copies = kept.at(rows * width)
        first_panel = part * part_panels
        used_panels = minimum(part_panels, all_panels - first_panel)
        sums = used_panels * ((reduction + (BLOCK_SUM - 1)) // BLOCK_SUM)  # of a tile
        share = (window_lines + (sums - 1)) // sums
        walk = Walk(first, (line_pixels, depth_lines, image_lines), (image, depth, row, pixel_step))

        def lay_panels():
            """The part's panels of w."""
            for p in loop(used_panels):
                panel, out = first_panel + p, panels.at(p * reduction * width)
                columns = panel % run_panels * width
                if turned:
                    segment, size = w.at(panel // run_panels * run), all_panels // run_panels * run
                    lay_windows(segment, out, columns, reduction, size, run, lanes, vectors)
                else:
                    lay_filters(w, out, columns, run, reduction, lanes, vectors)

        def next_pixels(tile):
            """What a tile reads and writes: of each pixel a pointer to either, and the window's depth, height and first cell."""
            sources, targets, windows = [], [], []
            for i in range(rows):  # pixels past the last are the last again
                pixel = minimum(first + tile * rows + i, last - 1)
                start = pixel * pixel_step
                if not plain:
                    d, h, column, start = walk.place()
                    cells = column * pixel_step - low_cells
                    windows.append((d * step_depth - low_depth, h * step_height - low_height, cells))
                    walk.advance(within(pixel + 1, last))
                sources.append(x.at(pixel * pixel_size if turned else start))
                targets.append(y.at(start if turned else pixel * pixel_size))
            return sources, targets, windows

        def inside(window, line):
            """Lanes of a line of a window that lie in the array, from its first cell on: from, to."""
            d, h, cells = window
            there = within(d + lines[line + 1], depths) * within(h + lines[line + 2], heights)
            return -cells - lines[line + 3], (row_cells - cells - lines[line + 3]) * there

        def copy_windows(sources, windows, ahead):
            """What a tile reads, widened, with zeros for padding; a later tile's is asked for."""
            copied_to = [copies.at(i * pitch) for i in range(rows)]
            for i in loop(window_lines):
                at = i * lanes if turned else lines[i * 4]
                for n, (source, copy) in enumerate(zip(sources, copied_to)):
                    start, count = inside(windows[n], i * 4) if padded and not turned else (None, line_count)
                    count = reduction - at if turned else minimum(count, line_count)
                    ahead[n].prefetch(at, later=True)
                    copy.put(i * lanes, source.vec(at, lanes, count, start))
            return copied_to

        def ask_for_some(ahead, nth):
            """The ``nth`` share of what a later tile reads is asked for."""
            for i in loop(share):
                at = minimum(nth * share + i, window_lines - 1)
                for source in ahead:
                    source.prefetch(at * lanes if turned else lines[at * 4], later=True)

        def multiply_panel(p, numbers, columns, targets, beside):
            """The tile's sums; what ``targets`` tell will be written is asked for meanwhile."""
            totals = [Variable(bias.vec(columns + lanes * j, lanes)) for _ in range(rows) for j in range(vectors)]
            for target in targets:
                for j in range(vectors):
                    target.prefetch(lanes * j, write=True)
            block = panel_columns(panels.at(p * reduction * width), width, lanes, vectors)
            multiply_tile(numbers, 1, block, reduction, lanes, totals, kept, beside=beside)
            return [total.get() for total in totals]

        def write_panel(totals, columns, line, targets, windows):
            """The sums in their places: as they are, or those that lie in the run and in the array."""
            whole = 0 if turned and padded else within(columns + (width - 1), run)
            for _ in loop(whole):
                for i, target in enumerate(targets):
                    for j in range(vectors):
                        target.put(lanes * j, totals[vectors * i + j])
            for _ in loop(1 - whole):
                for i, target in enumerate(targets):
                    start, count = inside(windows[i], line) if turned and padded else (None, run)
                    count = minimum(count, run)
                    for j in range(vectors):
                        at = columns + lanes * j
                        from_ = None if start is None else start - at
                        target.put(lanes * j, totals[vectors * i + j], count - at, from_)

        for _ in loop(1 - within(laid[slot] - part - 1, 1)):  # once for all blocks of this thread
            lay_panels()
            laid[slot] = part + 1
        for tile in loop((last - first + (rows - 1)) // rows):
            sources, targets, windows = next_pixels(tile)
            ahead = [source.at(AHEAD * rows * (pixel_size if turned else pixel_step)) for source in sources]
            numbers = copy_windows(sources, windows, ahead) if copied else sources
            if scattered:
                numbers = [Scattered(window, places) for window in numbers]
            for p in loop(used_panels):
                panel = first_panel + p
                columns, line = panel % run_panels * width, panel // run_panels * 4
                to = [target.at(columns + (lines[line] if turned else 0)) for target in targets]

                def look_ahead(block, ahead=ahead, p=p):
                    ask_for_some(ahead, block * used_panels + p)

                totals = multiply_panel(p, numbers, columns, to, None if copied else look_ahead)
                write_panel(totals, columns, line, to, windows)

    pointers = {"w": x_dtype, "x": x_dtype, "bias": wide, "y": y_dtype, "workspace": wide}
    return text, {**pointers, "laid": "int64", "places": "int64", "lines": "int64"}
