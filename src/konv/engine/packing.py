"""Between the arrays and the register tile: rows of the input with their padding, panels of weights, outputs.

Pieces of kernels' texts, with filters in lanes throughout. What would be transposed where lanes are something else, weights and
outputs with channels first, is transposed in registers. Inputs are copied in the order in which they lie: with channels last they
were transposed before, which took 1.4 times as long for 2048 channels dilated by 12, 1.3 times for 512 channels with stride 2.
"""

from __future__ import annotations

from typing import Any

from konv.engine.simd import fma, loop, maximum, minimum, shuffle, transpose, within


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
    pitch: Any = 1,
) -> None:
    """One row of each channel: cells ``first ..`` of ``length``, zeros beside them or where not ``inside``.

    ``target[channel][cell]``; channels of x are ``channel_step`` apart. ``pitch`` is for the others. Masks for each channel, and
    masked stores, cost 3 x 3 layers with stride 2 about 3 %. Behind each row up to ``lanes`` numbers are overwritten.
    """

    def copy(q: Any) -> None:
        cell = first + q * lanes
        for c in loop(channels):
            row = x.vec(start + c * channel_step + cell, lanes, count=(length - cell) * inside, start=0 - cell)
            target.put(c * cells + q * lanes, row)
            _note(check, row, target.zero(lanes))

    for _ in loop(minimum(cells % lanes, 1)):  # the last, which writes to the first cells of the next channel, too
        copy(cells // lanes)
    for q in loop(cells // lanes):
        copy(q)


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
    pitch: Any = 1,
) -> None:
    """As :func:`rows_first` of an x whose channels are neighbours, and its cells ``cell_step`` apart: ``target[cell][channel]``.

    Cells of the target are ``pitch`` apart. Behind the channels of each up to ``lanes`` more are overwritten.
    """
    before = minimum(cells, maximum(0 - first, 0))
    there = maximum(minimum(cells, length - first) * inside - before, 0)

    def copy(cell: Any, c: Any, count: Any = None) -> None:
        vector = x.vec(start + (first + cell) * cell_step + c, lanes, count=count)
        target.put(cell * pitch + c, vector)
        _note(check, vector, target.zero(lanes))

    def clear(cell: Any) -> None:
        for v in loop((channels + (lanes - 1)) // lanes):
            target.put(cell * pitch + v * lanes, target.zero(lanes))

    for q in loop(before):
        clear(q)
    for q in loop(there):
        for v in loop(channels // lanes):
            copy(before + q, v * lanes)
        for _ in loop(minimum(channels % lanes, 1)):
            copy(before + q, channels // lanes * lanes, channels % lanes)
    for q in loop(cells - before - there):
        clear(before + there + q)


def rows_together(
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
    pitch: Any = 1,
) -> None:
    """As :func:`rows_last` of all channels of an x that has few: a cell follows the other in both."""
    left = first * channels
    row = x.at(start + left)
    row_of_numbers(row, target, 0 - left, (length * channels - left) * inside, cells * channels, lanes, check)


def row_of_numbers(source: Any, target: Any, start: Any, end: Any, count: Any, lanes: int, check: Any = None) -> None:
    """``count`` numbers as they lie, up to ``lanes`` more are overwritten; zeros before ``start`` and from ``end`` on.

    Masks for all of them cost 3 x 3 stems 1.5 %.
    """
    vectors = (count + (lanes - 1)) // lanes
    before = minimum(vectors, (maximum(start, 0) + (lanes - 1)) // lanes)
    whole = maximum(0, minimum(vectors, maximum(end, 0) // lanes) - before)

    def masked(q: Any) -> None:
        vector = source.vec(q * lanes, lanes, count=end - q * lanes, start=start - q * lanes)
        target.put(q * lanes, vector)
        _note(check, vector, target.zero(lanes))

    for q in loop(before):
        masked(q)
    for q in loop(whole):
        vector = source.vec((before + q) * lanes, lanes)
        target.put((before + q) * lanes, vector)
        _note(check, vector, target.zero(lanes))
    for q in loop(vectors - before - whole):
        masked(before + whole + q)


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
