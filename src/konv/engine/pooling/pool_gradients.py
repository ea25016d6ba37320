"""Kernels of pooling's gradients, of any windows. No two pieces touch one cell.

"first": of means a vector is a run of cells, gathered; largest numbers are added one by one, for gathered by cells they took
3-4 times as long. "last": a vector is a run of channels.
"""

from __future__ import annotations

from konv.engine.compile import kernel
from konv.engine.machine import wide_type
from konv.engine.pooling.pool_windows import inside, meeting, steps
from konv.engine.simd import Variable, equal, interleave, loop, minimum, select, splat, within


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
