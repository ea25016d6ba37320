"""Words of convolutions that are matrix products, pixels in lanes: nothing but blocks is ever copied.

One tile serves the three computations. Its rows are read where they lie, a number at a time; its columns are vectors of a
*panel* that was packed beside it, ``panel[q, columns]``::

    acc[row, columns] += rows[row][q] * panel[q, columns]

==================  =================  ==========================  ==========================
computation         rows               columns                     q runs over
==================  =================  ==========================  ==========================
forward             filters of w       pixels of y, packed from x  (channel, kernel index)
input gradient      (channel, kernel   pixels of dy                filters
                    index) of w
weight gradient     filters of dy      (channel, kernel index),    pixels
                                       packed from x
==================  =================  ==========================  ==========================

Pixels of all images count as one line, cut into panels; a *run* is the part of a panel that lies in one row of an image.
What windows read and write lies ``step`` cells apart: it is taken apart and put together by shuffles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from konv.engine.simd import Variable, deinterleave, fma, interleave, loop, maximum, minimum, splat, transpose, within

BLOCK_SUM = 256  # sums of so many products are added up: the error falls 2-4 times


def multiply_tile(
    rows: Sequence[Any],
    step: Any,
    columns: Callable[[Any], list[Any]],
    count: Any,
    lanes: int,
    sums: Sequence[Variable],
    kept: Any,
    begun: Any = 0,
    beside: Callable[[Any], None] | None = None,
) -> None:
    """``sums[row, vector] += sum over q < count of rows[row][q * step] * columns(q)[vector]``.

    Sums of earlier blocks, and what was there where the tile is ``begun``, lie in ``kept`` meanwhile, not in registers.
    Before each block ``beside`` is told its number.
    """
    for block in loop((count + (BLOCK_SUM - 1)) // BLOCK_SUM):
        first, later = block * BLOCK_SUM, within(0, block + begun)
        for _ in loop(later):
            for n, a in enumerate(sums):
                kept.put(n * lanes, a.get())
                a.set(kept.zero(lanes))
        if beside:
            beside(block)
        for k in loop(minimum(count - first, BLOCK_SUM)):
            line = columns(first + k)
            for i, row in enumerate(rows):
                number = splat(row[(first + k) * step], lanes)
                for j, column in enumerate(line):
                    a = sums[len(line) * i + j]
                    a.set(fma(number, column, a.get()))
        for _ in loop(later):
            for n, a in enumerate(sums):
                a.set(kept.vec(n * lanes, lanes) + a.get())


def panel_columns(panel: Any, width: int, lanes: int, vectors: int) -> Callable[[Any], list[Any]]:
    """The columns of a packed panel: q -> its vectors."""
    return lambda q: [panel.vec(q * width + lanes * j, lanes) for j in range(vectors)]


def runs(begin: Any, end: Any, most: Any, line_pixels: Any) -> Iterator[tuple[Any, ...]]:
    """The runs of pixels begin .. end - 1, at most so many: (first pixel, its line, its column, how many pixels)."""
    position = Variable(begin)
    for _ in loop(most):
        pixel = position.get()
        line, column = pixel // line_pixels, pixel % line_pixels
        count = maximum(minimum(line_pixels - column, end - pixel), 0)
        yield pixel, line, column, count
        position.set(pixel + count)


def in_vectors(count: Any, whole: Any, lanes: int) -> Iterator[tuple[Any, Any]]:
    """Vectors that cover lanes 0 .. count - 1: (first lane, lanes used); None for all, while they end at ``whole`` or before.

    The body is traced twice: whole vectors need no masks, which cost more than the numbers that they hide.
    """
    vectors = minimum(count, whole) // lanes
    for j in loop(vectors):
        yield j * lanes, None
    for j in loop((count + (lanes - 1)) // lanes - vectors):
        lane = (vectors + j) * lanes
        yield lane, count - lane


def read_windows(
    cells: Any, step: Any, stride: int, taps: int, length: Any, lanes: int, used: Any, row_cells: Any, left: Any = 0
) -> Iterator[tuple[Any, Any]]:
    """For each tap a vector of ``used`` neighbouring pixels, in a row with ``row_cells`` more, an array with ``left`` more."""
    if stride:
        counts = [None] * stride
        if used is not None:
            used = minimum(used * stride, row_cells)
            counts = [used - lanes * i for i in range(stride)]
        vectors = [cells.vec(lanes * i, lanes, count=count) for i, count in enumerate(counts)]
        yield from enumerate(deinterleave(vectors, lanes)[:taps])
    elif taps:  # one
        yield 0, cells.gather(0, step, lanes, lanes if used is None else minimum(used, lanes))
    else:  # the windows as vectors, transposed. Rows past the last tap are written too, and again by the next channel
        last = lanes - 1 if used is None else minimum(used, lanes) - 1
        for block in loop((length + (lanes - 1)) // lanes):
            first = block * lanes
            starts = [minimum(last, i) * step + first for i in range(lanes)]
            inside = within(starts[-1] + (lanes - 1), left)
            for count in (None, length - first):  # without masks, but at the array's end: a quarter of the time
                for _ in loop(inside if count is None else 1 - inside):
                    for t, numbers in enumerate(transpose([cells.vec(start, lanes, count=count) for start in starts])):
                        yield first + t, numbers


def write_windows(
    cells: Any,
    step: Any,
    stride: int,
    taps: int,
    length: Any,
    lanes: int,
    used: Any,
    row_cells: Any,
    source: Any,
    pitch: Any,
) -> None:
    """Write ``used`` neighbouring pixels; those of tap t begin at ``source[pitch * t]``.

    Cells between windows become 0, where the stride is known.
    """
    if stride:
        vectors = [source.vec(pitch * t, lanes) for t in range(taps)] + [cells.zero(lanes)] * (stride - taps)
        _put(cells, interleave(vectors, lanes), lanes, used, row_cells)
    elif taps:  # one
        cells.scatter(0, step, source.vec(0, lanes), lanes if used is None else minimum(used, lanes))
    else:
        for block in loop((length + (lanes - 1)) // lanes):
            first = block * lanes
            windows = transpose([source.vec((first + t) * pitch, lanes) for t in range(lanes)])
            for i, window in enumerate(windows):
                for _ in loop(1 if used is None else within(i, used)):
                    cells.put(i * step + first, window, count=length - first)


def write_zeros(cells: Any, stride: int, lanes: int, used: Any, row_cells: Any) -> None:
    """Zeros to the cells of ``used`` neighbouring pixels' windows (where the stride is known)."""
    _put(cells, [cells.zero(lanes)] * stride, lanes, used, row_cells)


def _put(cells: Any, vectors: Sequence[Any], lanes: int, used: Any, row_cells: Any) -> None:
    if used is not None:
        used = minimum(used * len(vectors), row_cells)
    for i, numbers in enumerate(vectors):
        cells.put(lanes * i, numbers, count=None if used is None else used - lanes * i)
