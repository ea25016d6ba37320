"""Kernels of pooling. "first": a vector is a run of outputs (or cells) of a row; "last": of the channels of one of them.

The largest number of a window is kept with the first tap that has it: the gradient then needs no second look at x. A mean is
the sum of a window by its entry in ``sizes``. Taps in the padding are left out. No two pieces of a gradient touch one cell.
Max gradients gathered by cells took 3-4 times as long as numbers that are added one by one.
"""

from __future__ import annotations

from konv.engine.compile import kernel
from konv.engine.machine import wide_type
from konv.engine.simd import (
    Variable,
    beats,
    deinterleave,
    equal,
    interleave,
    loop,
    maximum,
    minimum,
    select,
    shuffle,
    splat,
    whole,
    within,
)

LOWEST = float("-inf")


def inside(first, dilation, taps, length):
    """(low, high): the taps low .. high - 1 of a window that begins at cell ``first`` lie in 0 .. length - 1."""
    low = (maximum(0 - first, 0) + (dilation - 1)) // dilation
    return low, minimum(taps, maximum(length - 1 - first + dilation, 0) // dilation)


def meeting(cell, dilation, tap, stride, out):
    """(output, how often): the window in which the padded ``cell`` is tap ``tap`` begins there, if one does (0 or 1 times)."""
    begin = cell - tap * dilation
    output = maximum(begin, 0) // stride
    return output, within(begin, out * stride) * within(maximum(begin, 0) % stride, 1)


def steps(n, stride):
    """ceil(n / stride), 0 where n is negative."""
    return (maximum(n, 0) + (stride - 1)) // stride


@kernel
def pool_first(mean, dtype, index, lanes, stride):
    """Channels first. A piece is ``together`` planes; ``stride`` is 1, 2, or 0 for any other."""
    wide = wide_type(dtype)

    def text(
        piece, slot, x, y, winners, sizes, first_taps,
        planes, together, x_depth, x_height, x_width, out_depth, out_height, out_width, kernel_depth, kernel_height, kernel_width,
        stride_depth, stride_height, stride_width, pad_depth, pad_height, pad_width,
        dilation_depth, dilation_height, dilation_width, whole_first, whole_last,
    ):  # fmt: skip
        def cells(row, cell, masked):
            """The cells that a tap meets in neighbouring windows; outside the row the lowest number, or 0."""
            fill = 0 if mean else LOWEST
            if stride == 0:
                count, start = steps(x_width - cell, stride_width), steps(0 - cell, stride_width)
                return x.gather(row + cell, stride_width, lanes, count=count, start=start, fill=fill)
            runs = []
            for run in range(stride):
                at = cell + run * lanes
                limits = dict(count=x_width - at, start=0 - at, fill=fill) if masked else {}
                runs.append(x.vec(row + at, lanes, **limits))
            return deinterleave(runs, lanes)[0]

        def windows(plane, out, depth_first, depth_taps, row_first, row_taps, column, masked):
            count = out_width - column
            first = column * stride_width - pad_width
            best = Variable(y.full(lanes, 0 if mean else LOWEST))
            if not mean:
                first_tap = (depth_taps[0] * kernel_height + row_taps[0]) * kernel_width
                winner = Variable(first_taps.vec(column, lanes, count=count) + whole(first_tap, lanes))
            for d in loop(depth_taps[1] - depth_taps[0]):
                depth_tap = depth_taps[0] + d
                layer = plane + (depth_first + depth_tap * dilation_depth) * x_height * x_width
                for u in loop(row_taps[1] - row_taps[0]):
                    row_tap = row_taps[0] + u
                    row = layer + (row_first + row_tap * dilation_height) * x_width
                    tap = (depth_tap * kernel_height + row_tap) * kernel_width
                    for v in loop(kernel_width):
                        values = cells(row, first + v * dilation_width, masked)
                        if mean:
                            best.set(best.get() + values)
                        else:
                            better = beats(values, best.get())
                            best.set(select(better, values, best.get()))
                            winner.set(select(better, whole(tap + v, lanes), winner.get()))
            if mean:
                y.put(
                    out + column,
                    best.get() / sizes.vec(out - out_of(plane) + column, lanes, count=count, fill=1),
                    count,
                )
            else:
                y.put(out + column, best.get(), count)
                winners.put(out + column, winner.get(), count)

        def out_of(plane):
            return plane // (x_depth * x_height * x_width) * (out_depth * out_height * out_width)

        for p in loop(minimum(together, planes - piece * together)):
            plane = (piece * together + p) * x_depth * x_height * x_width
            for depth in loop(out_depth):
                depth_first = depth * stride_depth - pad_depth
                depth_taps = inside(depth_first, dilation_depth, kernel_depth, x_depth)
                for i in loop(out_height):
                    row_first = i * stride_height - pad_height
                    row_taps = inside(row_first, dilation_height, kernel_height, x_height)
                    out = out_of(plane) + (depth * out_height + i) * out_width
                    window = (plane, out, depth_first, depth_taps, row_first, row_taps)
                    for q in loop(whole_first):
                        windows(*window, q * lanes, True)
                    for q in loop(whole_last - whole_first):
                        windows(*window, (whole_first + q) * lanes, False)
                    for q in loop(steps(out_width, lanes) - whole_last):
                        windows(*window, (whole_last + q) * lanes, True)

    return text, {"x": dtype, "y": dtype, "winners": index, "sizes": wide, "first_taps": "int32"}


@kernel
def pool_last(mean, dtype, index, lanes, vectors):
    """Channels last. A piece is a row of outputs; ``vectors`` runs of channels are computed side by side."""

    def text(
        piece, slot, x, y, winners, sizes,
        channels, x_depth, x_height, x_width, out_depth, out_height, out_width, kernel_depth, kernel_height, kernel_width,
        stride_depth, stride_height, stride_width, pad_depth, pad_height, pad_width,
        dilation_depth, dilation_height, dilation_width,
    ):  # fmt: skip
        i, rest = piece % out_height, piece // out_height
        depth, image = rest % out_depth, rest // out_depth
        depth_first, row_first = depth * stride_depth - pad_depth, i * stride_height - pad_height
        depth_low, depth_high = inside(depth_first, dilation_depth, kernel_depth, x_depth)
        row_low, row_high = inside(row_first, dilation_height, kernel_height, x_height)
        for j in loop(out_width):
            first = j * stride_width - pad_width
            low, high = inside(first, dilation_width, kernel_width, x_width)
            out = (piece * out_width + j) * channels
            for q in loop(steps(channels, lanes * vectors)):
                c = q * lanes * vectors
                runs = [(c + k * lanes, channels - c - k * lanes) for k in range(vectors)]
                bests = [Variable(y.full(lanes, 0 if mean else LOWEST)) for _ in runs]
                if not mean:
                    tap = (depth_low * kernel_height + row_low) * kernel_width + low
                    firsts = [Variable(whole(tap, lanes)) for _ in runs]
                for d in loop(depth_high - depth_low):
                    depth_tap = depth_low + d
                    layer = image * x_depth + depth_first + depth_tap * dilation_depth
                    for u in loop(row_high - row_low):
                        row_tap = row_low + u
                        row = layer * x_height + row_first + row_tap * dilation_height
                        row_taps = (depth_tap * kernel_height + row_tap) * kernel_width
                        for v in loop(high - low):
                            cell = row * x_width + first + (low + v) * dilation_width
                            for k, (run, count) in enumerate(runs):
                                values = x.vec(cell * channels + run, lanes, count=count)
                                best = bests[k].get()
                                if mean:
                                    bests[k].set(best + values)
                                else:
                                    better = beats(values, best)
                                    bests[k].set(select(better, values, best))
                                    firsts[k].set(select(better, whole(row_taps + low + v, lanes), firsts[k].get()))
                for k, (run, count) in enumerate(runs):
                    if mean:
                        size = splat(sizes[(depth * out_height + i) * out_width + j], lanes)
                        y.put(out + run, bests[k].get() / size, count)
                    else:
                        y.put(out + run, bests[k].get(), count)
                        winners.put(out + run, firsts[k].get(), count)

    return text, {"x": dtype, "y": dtype, "winners": index, "sizes": wide_type(dtype)}


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
def tiles_gradient(mean, dtype, index, lanes, rows):
    """dL/dx of windows of 2 x 2 cells beside each other, channels first: all is written once. A piece is ``together`` planes."""
    row_lanes = 2 * lanes // rows

    def text(piece, slot, dy, dx, winners, planes, together, x_height, x_width, out_height, out_width):
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

    return text, {"dy": dtype, "dx": dtype, "winners": index}


@kernel
def largest_gradient_first(dtype, index, lanes):
    """dL/dx of the largest numbers, channels first: each number of dy is added to one cell. A piece is ``together`` planes.

    ``offsets[tap]`` is how far a tap's cell lies from its window's first. Vectors cannot add to one cell twice; numbers can.
    """
    wide = wide_type(dtype)

    def text(
        piece, slot, dy, dx, winners, offsets, workspace,
        slot_size, planes, together, x_cells, out_depth, out_height, out_width, step_depth, step_height, step_width,
    ):  # fmt: skip
        for p in loop(minimum(together, planes - piece * together)):
            plane = piece * together + p
            sums = dx.at(plane * x_cells) if dtype == wide else workspace.at(slot * slot_size)
            for q in loop(steps(x_cells, lanes)):
                sums.put(q * lanes, sums.zero(lanes), count=x_cells - q * lanes)
            for depth in loop(out_depth):
                for i in loop(out_height):
                    out = ((plane * out_depth + depth) * out_height + i) * out_width
                    first = depth * step_depth + i * step_height
                    for j in loop(out_width):
                        cell = first + j * step_width + offsets[winners[out + j]]
                        sums[cell] = sums[cell] + dy[out + j]
            if dtype != wide:
                for q in loop(steps(x_cells, lanes)):
                    count = x_cells - q * lanes
                    dx.put(plane * x_cells + q * lanes, sums.vec(q * lanes, lanes, count=count), count)

    pointers = {"dy": dtype, "dx": dtype, "winners": index, "offsets": "int64", "workspace": wide}
    return text, pointers


@kernel
def mean_gradient_first(dtype, lanes, stride):
    """dL/dx of means, channels first. A piece is ``together`` planes; ``stride`` is 1, 2, or 0 for any other.

    Gathered: padded cell P = m * stride + phase of a row is tap v of output m - (v * dilation - phase) / stride, where that
    is whole.
    """
    wide = wide_type(dtype)

    def text(
        piece, slot, dy, dx, sizes, workspace,
        slot_size, planes, together, x_depth, x_height, x_width, out_depth, out_height, out_width,
        kernel_depth, kernel_height, kernel_width,
        stride_depth, stride_height, stride_width, pad_depth, pad_height, pad_width,
        dilation_depth, dilation_height, dilation_width,
    ):  # fmt: skip
        step = stride or stride_width
        out_cells = out_depth * out_height * out_width
        shares = workspace.at(slot * slot_size)

        def row_of(depth_cell, row_cell, m, phases):
            """Sums for each of the phases, for the cells m, m + 1, ... of it."""
            totals = [Variable(dx.zero(lanes)) for _ in phases]
            for t in loop(kernel_depth):
                depth, met = meeting(depth_cell, dilation_depth, t, stride_depth, out_depth)
                for u in loop(kernel_height * met):
                    i, met = meeting(row_cell, dilation_height, u, stride_height, out_height)
                    for v in loop(kernel_width * met):
                        place = v * dilation_width
                        for phase, total in zip(phases, totals):
                            for _ in loop(1 if stride == 1 else within(place % step - phase, 1)):
                                o = m - place // step
                                row = (depth * out_height + i) * out_width
                                total.set(total.get() + shares.vec(row + o, lanes, count=out_width - o, start=0 - o))
            return [total.get() for total in totals]

        for p in loop(minimum(together, planes - piece * together)):
            plane = piece * together + p
            for q in loop(steps(out_cells, lanes)):
                o, count = q * lanes, out_cells - q * lanes
                values = dy.vec(plane * out_cells + o, lanes, count=count)
                shares.put(o, values / sizes.vec(o, lanes, count=count, fill=1), count)
            for depth in loop(x_depth):
                for h in loop(x_height):
                    row = ((plane * x_depth + depth) * x_height + h) * x_width
                    cells = (depth + pad_depth, h + pad_height)
                    if stride:
                        first = pad_width // stride
                        for q in loop(steps(x_width + pad_width - first * stride, lanes * stride)):
                            m = first + q * lanes
                            w = m * stride - pad_width
                            for k, total in enumerate(interleave(row_of(*cells, m, range(stride)), lanes)):
                                at = w + k * lanes
                                dx.put(row + at, total, count=x_width - at, start=0 - at)
                    else:
                        for phase in loop(stride_width):
                            first = steps(pad_width - phase, stride_width)
                            w = first * stride_width + phase - pad_width
                            count = steps(x_width - w, stride_width)
                            for q in loop(steps(count, lanes)):
                                (total,) = row_of(*cells, first + q * lanes, [phase])
                                dx.scatter(row + w + q * lanes * stride_width, stride_width, total, count - q * lanes)

    return text, {"dy": dtype, "dx": dtype, "sizes": wide, "workspace": wide}


@kernel
def pool_last_gradient(mean, dtype, index, lanes):
    """dL/dx, channels last: each tap adds to the cells that it meets. A piece is a run of channels of an image.

    A run of one vector made 64 channels 10 times slower: cells lie 256 bytes apart, which fills a quarter of the cache's sets.
    """
    wide = wide_type(dtype)

    def text(
        piece, slot, dy, dx, winners, sizes, workspace,
        slot_size, channels, runs, run_channels, x_depth, x_height, x_width, out_depth, out_height, out_width,
        kernel_depth, kernel_height, kernel_width, stride_depth, stride_height, stride_width, pad_depth, pad_height, pad_width,
        dilation_depth, dilation_height, dilation_width,
    ):  # fmt: skip
        image, c = piece // runs, piece % runs * run_channels
        cells = x_depth * x_height * x_width
        here = minimum(run_channels, channels - c)
        vectors = steps(here, lanes)
        to = dx.at(image * cells * channels + c)
        sums, pitch = (to, channels) if dtype == wide else (workspace.at(slot * slot_size), run_channels)
        for cell in loop(cells):
            for q in loop(vectors):
                sums.put(cell * pitch + q * lanes, sums.zero(lanes), count=here - q * lanes)
        for depth in loop(out_depth):
            depth_first = depth * stride_depth - pad_depth
            depth_low, depth_high = inside(depth_first, dilation_depth, kernel_depth, x_depth)
            for i in loop(out_height):
                row_first = i * stride_height - pad_height
                row_low, row_high = inside(row_first, dilation_height, kernel_height, x_height)
                for j in loop(out_width):
                    first = j * stride_width - pad_width
                    low, high = inside(first, dilation_width, kernel_width, x_width)
                    output = (depth * out_height + i) * out_width + j
                    at = (image * out_depth * out_height * out_width + output) * channels + c
                    for q in loop(vectors):
                        count = here - q * lanes
                        values = dy.vec(at + q * lanes, lanes, count=count)
                        if mean:
                            values = values / splat(sizes[output], lanes)
                        else:
                            won = winners.vec(at + q * lanes, lanes, count=count)
                        for t in loop(depth_high - depth_low):
                            layer = (depth_first + (depth_low + t) * dilation_depth) * x_height
                            for u in loop(row_high - row_low):
                                row = (layer + row_first + (row_low + u) * dilation_height) * x_width + first
                                tap = ((depth_low + t) * kernel_height + row_low + u) * kernel_width
                                for v in loop(high - low):
                                    cell = (row + (low + v) * dilation_width) * pitch + q * lanes
                                    share = (
                                        values if mean else select(equal(won, tap + low + v), values, dx.zero(lanes))
                                    )
                                    sums.put(cell, sums.vec(cell, lanes, count=count) + share, count)
        if dtype != wide:
            for cell in loop(cells):
                for q in loop(vectors):
                    at, count = q * lanes, here - q * lanes
                    to.put(cell * channels + at, sums.vec(cell * pitch + at, lanes, count=count), count)

    pointers = {"dy": dtype, "dx": dtype, "winners": index, "sizes": wide, "workspace": wide}
    return text, pointers


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
