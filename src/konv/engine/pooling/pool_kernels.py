"""Kernels of pooling, of any windows. "first": a vector is a run of outputs of a row; "last": of the channels of one of them.

The largest number of a window is kept with the first tap that has it: the gradient then needs no second look at x. A mean is
the sum of a window by its entry in ``sizes``. Taps in the padding are left out.
"""

from __future__ import annotations

from konv.engine.compile import kernel
from konv.engine.machine import wide_type
from konv.engine.pooling.pool_windows import LOWEST, inside, steps
from konv.engine.simd import Variable, beats, deinterleave, loop, minimum, select, splat, whole


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
