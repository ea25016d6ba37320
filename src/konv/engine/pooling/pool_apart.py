"""Kernels of pooling, and of its gradients, where no two windows share a cell, channels first: each cell is read once.

Windows are 2 x 2 cells beside each other, or as large as the images.
"""

from __future__ import annotations

from konv.engine.compile import kernel
from konv.engine.machine import wide_type
from konv.engine.pooling.pool_windows import steps
from konv.engine.simd import (
    Variable,
    beats,
    deinterleave,
    equal,
    interleave,
    loop,
    minimum,
    select,
    shuffle,
    splat,
    whole,
    within,
)


@kernel
def tiles(mean, dtype, index, lanes, rows):
    """Windows of 2 x 2 cells beside each other, channels first: each cell is read once. A piece is ``together`` planes.

    Where ``rows`` is not 1 so many rows of outputs are one vector: 8 x 8 images take half of the time.
    """
    row_lanes = 2 * lanes // rows

    def text(piece, slot, x, y, winners, planes, together, x_height, x_width, out_height, out_width):
        def pairs(row, column, count, n):
            """The even and the odd cells of the rows of ``n`` rows of windows."""
            if rows == 1:
                at, n = row + 2 * column, 2 * count
                return deinterleave([x.vec(at + k * lanes, lanes, count=n - k * lanes) for k in range(2)], lanes)
            runs = [x.vec(row + 2 * r * x_width, row_lanes, count=row_lanes * within(r, n)) for r in range(rows)]
            while len(runs) > 2:
                both = range(2 * row_lanes * rows // len(runs))
                runs = [shuffle(a, b, both) for a, b in zip(runs[::2], runs[1::2])]
            return deinterleave(runs, lanes)

        for p in loop(minimum(together, planes - piece * together)):
            plane = piece * together + p
            for i in loop(steps(out_height, rows)):
                row, out = (plane * x_height + 2 * rows * i) * x_width, (plane * out_height + rows * i) * out_width
                n = out_height - rows * i
                for q in loop(steps(out_width, lanes)):
                    column, count = q * lanes, out_width * (n if rows > 1 else 1) - q * lanes
                    cells = [*pairs(row, column, count, n), *pairs(row + x_width, column, count, n)]
                    if mean:
                        total = cells[0] + cells[1] + cells[2] + cells[3]
                        y.put(out + column, total * y.full(lanes, 0.25), count)
                        continue
                    best, winner = cells[0], whole(0, lanes)
                    for tap, values in enumerate(cells[1:], 1):
                        better = beats(values, best)
                        best, winner = select(better, values, best), select(better, whole(tap, lanes), winner)
                    y.put(out + column, best, count)
                    winners.put(out + column, winner, count)

    return text, {"x": dtype, "y": dtype, "winners": index}


@kernel
def tiles_gradient(mean, dtype, index, lanes, rows, rectified):
    """dL/dx of windows of 2 x 2 cells beside each other, channels first: all is written once. A piece is ``together`` planes.

    ``rectified`` : where the window's result ``y`` is not positive, nothing is passed on.
    """
    row_lanes = 2 * lanes // rows

    def text(piece, slot, dy, dx, y, winners, planes, together, x_height, x_width, out_height, out_width):
        def write(row, column, count, n, runs):
            """Two vectors of cells to the rows of ``n`` rows of windows."""
            if rows == 1:
                for k, run in enumerate(runs):
                    dx.put(row + 2 * column + k * lanes, run, count=2 * count - k * lanes)
                return
            for r in range(rows):
                run, start = divmod(r * row_lanes, lanes)
                at, end = row + 2 * r * x_width - start, (start + row_lanes) * within(r, n)
                dx.put(at, runs[run], count=end, start=start)

        for p in loop(minimum(together, planes - piece * together)):
            plane = piece * together + p
            dx_plane, out_plane = plane * x_height * x_width, plane * out_height * out_width
            for i in loop(steps(out_height, rows)):
                row, out = dx_plane + 2 * rows * i * x_width, out_plane + rows * i * out_width
                n = out_height - rows * i
                for q in loop(steps(out_width, lanes)):
                    column, count = q * lanes, out_width * (n if rows > 1 else 1) - q * lanes
                    values = dy.vec(out + column, lanes, count=count)
                    if rectified:
                        zero = dx.zero(lanes)
                        values = select(beats(y.vec(out + column, lanes, count=count), zero), values, zero)
                    if mean:
                        shares = [[values * dx.full(lanes, 0.25)] * 2] * 2
                    else:
                        won = winners.vec(out + column, lanes, count=count)
                        shares = [
                            [select(equal(won, 2 * u + v), values, dx.zero(lanes)) for v in range(2)] for u in range(2)
                        ]
                    for u in range(2):
                        write(row + u * x_width, column, count, n, interleave(shares[u], lanes))
                for _ in loop(x_width - 2 * out_width):  # a last column that is in no window; there rows is 1
                    for u in range(2):
                        dx[row + u * x_width + 2 * out_width] = 0.0
            for q in loop(steps((x_height - 2 * out_height) * x_width, lanes)):
                cells = 2 * out_height * x_width + q * lanes
                dx.put(dx_plane + cells, dx.zero(lanes), count=x_height * x_width - cells)

    return text, {"dy": dtype, "dx": dtype, "y": dtype, "winners": index}


@kernel
def mean_of_planes(dtype, lanes):
    """The mean of each plane, channels first: windows as large as the images. A piece is ``together`` planes."""

    def text(piece, slot, x, y, sizes, planes, together, cells):
        for p in loop(minimum(together, planes - piece * together)):
            plane = piece * together + p
            total = Variable(y.full(lanes, 0))
            for q in loop(steps(cells, lanes)):
                total.set(total.get() + x.vec(plane * cells + q * lanes, lanes, count=cells - q * lanes))
            folded = total.get()
            for k in range(1, lanes.bit_length()):
                folded = folded + shuffle(folded, folded, [(i + (lanes >> k)) % lanes for i in range(lanes)])
            y.put(plane, folded / splat(sizes[0], lanes), 1)

    return text, {"x": dtype, "y": dtype, "sizes": wide_type(dtype)}


@kernel
def mean_of_planes_gradient(dtype, lanes):
    """An equal share of its number of dy for every cell of a plane. A piece is ``together`` planes."""

    def text(piece, slot, dy, dx, sizes, planes, together, cells):
        for p in loop(minimum(together, planes - piece * together)):
            plane = piece * together + p
            share = splat(dy[plane], lanes) / splat(sizes[0], lanes)
            for q in loop(steps(cells, lanes)):
                dx.put(plane * cells + q * lanes, share, count=cells - q * lanes)

    return text, {"dy": dtype, "dx": dtype, "sizes": wide_type(dtype)}
