"""Between the arrays and the register tile: rows of the input with their padding, panels of weights, outputs.

Pieces of kernels' texts, with filters in lanes throughout. Layout "first" is transposed in registers where filters or
channels meet the lanes, layout "last" where the cells of a row do.
"""

from __future__ import annotations

from typing import Any

from konv.engine.simd import fma, loop, minimum, shuffle, transpose, within


def _note(check: Any, vector: Any, zero: Any) -> None:
    """Make ``check``, a vector of zeros, NaN where the vector is not finite."""
    if check is not None:
        check.set(fma(vector, zero, check.get()))


def rows_first(
    x: Any,
    start: Any,
    channels: Any,
    channel_step: Any,
    first: Any,
    length: Any,
    inside: Any,
    target: Any,
    cells: Any,
    lanes: int,
    check: Any = None,
) -> None:
    """One row of each channel: cells ``first ..`` of ``length``, zeros beside them or where not ``inside``.

    ``target[channel][cell]``; channels of x are ``channel_step`` apart.
    """
    for c in loop(channels):
        for q in loop((cells + (lanes - 1)) // lanes):
            cell = first + q * lanes
            row = x.vec(start + c * channel_step + cell, lanes, count=(length - cell) * inside, start=0 - cell)
            target.put(c * cells + q * lanes, row, count=cells - q * lanes)
            _note(check, row, target.zero(lanes))


def rows_last(
    x: Any,
    start: Any,
    channels: Any,
    cell_step: Any,
    first: Any,
    length: Any,
    inside: Any,
    target: Any,
    cells: Any,
    lanes: int,
    check: Any = None,
) -> None:
    """As :func:`rows_first` of an x whose channels are neighbours, and its cells ``cell_step`` apart."""
    for block in loop((channels + (lanes - 1)) // lanes):
        c = block * lanes
        for q in loop((cells + (lanes - 1)) // lanes):
            columns = []
            for i in range(lanes):
                cell = first + (q * lanes + i)
                exists = within(cell, length) * inside
                columns.append(x.vec(start + cell * cell_step + c, lanes, count=(channels - c) * exists))
            for i, row in enumerate(transpose(columns)):
                used = (cells - q * lanes) * within(c + i, channels)
                target.put((c + i) * cells + q * lanes, row, count=used)
                _note(check, row, target.zero(lanes))


def rows_together(count: int) -> Any:
    """As :func:`rows_last` of an x that has only ``count`` channels: whole vectors of it, taken apart."""

    def rows(x, start, channels, cell_step, first, length, inside, target, cells, lanes, check=None):
        for q in loop((cells + (lanes - 1)) // lanes):
            cell, read = first + q * lanes, []
            for j in range(count):
                at = cell * count + j * lanes
                end, begin = (length * count - at) * inside, 0 - at
                read.append(x.vec(start + at, lanes, count=end, start=begin))
            for c in range(count):
                source = [i * count + c for i in range(lanes)]
                row = read[0]
                for j in range(count):
                    order = [lanes + place % lanes if place // lanes == j else i for i, place in enumerate(source)]
                    row = shuffle(row, read[j], order)
                target.put(c * cells + q * lanes, row, count=cells - q * lanes)
                _note(check, row, target.zero(lanes))

    return rows


def panel_of_weights(
    w: Any, start: Any, filters: Any, filter_step: Any, rows: Any, row_step: Any, row: Any, ahead: Any,
    places: Any, panel: Any, lanes: int, vectors: int, check: Any,
) -> None:  # fmt: skip
    """Weights of ``lanes * vectors`` filters to ``panel[place][filter]``; after the last filter it is repeated.

    A filter has ``rows`` rows of ``row`` weights, ``row_step`` apart; ``places`` tells where weight k of them all goes, and holds
    ``lanes`` more: what lies behind a row is written too, and overwritten by the next. ``check`` is a vector of zeros as
    long as all weights are finite.
    """
    width = lanes * vectors
    for r in loop(rows):
        for q in loop((row + (lanes - 1)) // lanes):
            source = start + r * row_step + q * lanes
            for j in range(vectors):
                columns = []
                for i in range(lanes):
                    filter_ = minimum(lanes * j + i, filters - 1)
                    columns.append(w.vec(source + filter_ * filter_step, lanes, count=row - q * lanes))
                    w.prefetch(source + filter_ * filter_step + ahead)
                    _note(check, columns[-1], panel.zero(lanes))
                for i, weights in enumerate(transpose(columns)):
                    panel.put(places[r * row + q * lanes + i] * width + lanes * j, weights)


def panel_of_taps(
    w: Any,
    start: Any,
    filters: Any,
    rows: Any,
    row_step: Any,
    taps: int,
    places: Any,
    panel: Any,
    lanes: int,
    vectors: int,
    check: Any,
) -> None:
    """As :func:`panel_of_weights`, of neighbouring filters: ``w[row][filter][tap]``. Few taps are sorted, not transposed."""
    for r in loop(rows):
        for j in range(vectors):
            source, count = start + r * row_step + lanes * j * taps, (filters - lanes * j) * taps
            block = []
            for v in range(taps):
                block.append(w.vec(source + v * lanes, lanes, count=count - v * lanes))
                w.prefetch(source + v * lanes + 4 * row_step)
                _note(check, block[v], panel.zero(lanes))
            for t in range(taps):
                cells = [lane * taps + t for lane in range(lanes)]
                sorted_ = block[0]
                for v in range(taps):
                    order = [lanes + c % lanes if c // lanes == v else lane for lane, c in enumerate(cells)]
                    sorted_ = shuffle(sorted_, block[v], order)
                panel.put(places[r * taps + t] * (lanes * vectors) + lanes * j, sorted_)


def outputs_first(sums: Any, cells: Any, filters: Any, filter_step: Any, y: Any, lanes: int, vectors: int) -> None:
    """``sums[cell][filter]`` to a row of y for each filter."""
    width = lanes * vectors
    for q in loop((cells + (lanes - 1)) // lanes):
        count = cells - q * lanes
        for j in range(vectors):
            block = [sums.vec((q * lanes + i) * width + lanes * j, lanes) for i in range(lanes)]
            for i, row in enumerate(transpose(block)):
                exists = within(lanes * j + i, filters)
                y.put((lanes * j + i) * filter_step + q * lanes, row, count=count * exists)


def outputs_last(
    sums: Any, cells: Any, panels: Any, panel_step: Any, filters: Any, cell_step: Any, y: Any, lanes: int, vectors: int
) -> None:  # fmt: skip
    """``sums[panel][cell][filter]`` to a y whose filters are neighbours, and its cells ``cell_step`` apart.

    Cell by cell: panel by panel the lines of y would be written, and fetched, with gaps.
    """
    for cell in loop(cells):
        for p in loop(panels):
            for j in range(vectors):
                f = (p * vectors + j) * lanes
                row = sums.vec(p * panel_step + (cell * vectors + j) * lanes, lanes)
                y.put(cell * cell_step + f, row, count=filters - f)


def outputs_joined(
    sums: Any, cells: Any, first: Any, filters: Any, rows: Any, columns: Any, row: Any, height: Any, column: Any, length: Any,
    y: Any, y_channel: Any, y_row: Any, y_cell: Any, width: int,
) -> None:  # fmt: skip
    """``sums[cell][filter]`` where filters are the cells of rectangles: (channel, row, column) of ``rows`` x ``columns``.

    The first of the filters here is ``first``; the rectangles are number ``column ..`` of row ``row`` of them.
    """
    for lane in loop(minimum(filters - first, width)):
        f = first + lane
        j, i, c = f % columns, f // columns % rows, f // (columns * rows)
        h, v = row * rows + i, column * columns + j
        target = y.at(c * y_channel + h * y_row + v * y_cell)
        for cell in loop(minimum(cells, (length - v + (columns - 1)) // columns) * within(h, height)):
            target[cell * columns * y_cell] = sums[cell * width + lane]


def sums_of_vectors(vectors: list[Any], lanes: int) -> Any:
    """The sum of the lanes of each of ``lanes`` vectors, as one vector."""
    columns = transpose(vectors)
    while len(columns) > 1:
        half = len(columns) // 2
        columns = [a + b for a, b in zip(columns[:half], columns[half:])]
    return columns[0]
