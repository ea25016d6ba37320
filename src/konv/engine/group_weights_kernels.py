"""The weight gradient of small groups: a vector holds the same tap of whole groups, one channel a lane.

For each upstream pixel, each filter's gradient is spread over the lanes of its group; it meets the pixels under a row of
taps. So 8 filters and 3 taps cost 8 shuffles and 4 loads for 24 multiply-adds, whatever the stride. The
rows that a chunk of dy meets are copied into the slot's workspace; channels first, they are transposed there.
"""

from __future__ import annotations

import itertools

from konv.engine.compile import kernel
from konv.engine.machine import wide_type
from konv.engine.simd import Variable, fma, loop, maximum, minimum, pinned, shuffle, splat
from konv.engine.small_planes_kernels import plane_in


@kernel
def accumulate_groups(dtype, lanes, group, together, taps, stride, pad, edges, layout):
    """``sums[part, tap, filter of a group, channel] = sum of dy * x``, ``biases[part, filter] = sum of dy``.

    A piece is (part, ``lanes`` channels). So many filters of each group are summed ``together``. ``edges``: the outputs of a
    row that meet cells before its first, those that meet cells behind its last, and how many cells the last output does.
    """
    left, right, over = edges

    def text(
        piece, slot, x, dy, sums, biases, slots, slot_size, dy_at, sums_at,
        images, part_images, channels, x_height, x_width, out_height, out_width, taps_high, pad_high, stride_high, chunk_rows,
    ):  # fmt: skip
        blocks = channels // lanes
        part, channel = piece // blocks, piece % blocks * lanes
        space = slots.at(slot * slot_size)
        totals, numbers = space.at(sums_at), taps_high * taps * group
        for k in loop(numbers):
            totals.put(k * lanes, totals.zero(lanes))
        bias = Variable(totals.zero(lanes))

        def add(products, filters, line, upstream, step, q, met):
            """Add the products of output q with the taps that it meets inside the row."""
            at = upstream.at(q * step)
            pixels = {t: line.vec((q * stride + (t - pad)) * step, lanes) for t in met}
            gradients = at.vec(0, lanes)
            for f in filters:
                gradient = splat(at[f], lanes) if group == lanes else spread(gradients, f, group, lanes)
                for t in met:
                    products[t, f].set(pinned(fma(gradient, pixels[t], products[t, f].get())))

        for i in loop(minimum(part_images, images - part * part_images)):
            image = part * part_images + i
            for chunk in loop((out_height + (chunk_rows - 1)) // chunk_rows):
                row = chunk * chunk_rows
                rows = minimum(chunk_rows, out_height - row)
                top = row * stride_high - pad_high
                first = maximum(top, 0)
                lines = minimum(top + (rows - 1) * stride_high + taps_high, x_height) - first
                source, upstream, step = space, space.at(dy_at), lanes
                if layout == "first":
                    plane, size, dy_size = image * channels, x_height * x_width, out_height * out_width
                    plane_in(
                        x.at(first * x_width), plane + channel, plane + channels, size, lines * x_width, source, lanes
                    )
                    plane_in(
                        dy.at(row * out_width),
                        plane + channel,
                        plane + channels,
                        dy_size,
                        rows * out_width,
                        upstream,
                        lanes,
                    )
                else:
                    gather(
                        x.at((image * x_height + first) * x_width * channels + channel),
                        channels,
                        lines * x_width,
                        source,
                        lanes,
                    )
                    gather(
                        dy.at((image * out_height + row) * out_width * channels + channel),
                        channels,
                        rows * out_width,
                        upstream,
                        lanes,
                    )
                own = Variable(totals.zero(lanes))
                for p in loop(rows * out_width):
                    own.set(own.get() + upstream.vec(p * step, lanes))
                bias.set(bias.get() + own.get())
                for k in loop(taps_high):
                    # of the rows of dy those that meet a row of x
                    low = maximum(row, (maximum(pad_high - k, 0) + (stride_high - 1)) // stride_high)
                    high = minimum(row + rows, (maximum(x_height + pad_high - k, 0) + (stride_high - 1)) // stride_high)
                    for start in range(0, group, together):
                        filters = range(start, start + together)
                        products = {
                            key: Variable(totals.zero(lanes)) for key in itertools.product(range(taps), filters)
                        }
                        for r in loop(high - low):
                            line = source.at(((low + r) * stride_high + k - pad_high - first) * x_width * step)
                            place = products, filters, line, upstream.at((low + r - row) * out_width * step), step
                            for q in range(left):
                                add(*place, q, [t for t in range(taps) if q * stride + t >= pad])
                            for q in loop(out_width - (left + right)):
                                add(*place, left + q, range(taps))
                            for e in reversed(range(right)):
                                add(*place, out_width - (1 + e), range(taps - (over - e * stride)))
                        for t, f in products:
                            at = ((k * taps + t) * group + f) * lanes
                            totals.put(at, totals.vec(at, lanes) + products[t, f].get())
        for k in loop(numbers):
            sums.put((part * numbers + k) * channels + channel, totals.vec(k * lanes, lanes))
        biases.put(part * channels + channel, bias.get())

    wide = wide_type(dtype)
    return text, {"x": dtype, "dy": dtype, "sums": wide, "biases": wide, "slots": wide}


def spread(vector, i, group, lanes):
    """Number i of every group in all of its lanes."""
    return shuffle(vector, vector, [lane // group * group + i for lane in range(lanes)])


def gather(array, channels, cells, to, lanes):
    """``to[cell, lane] = array[cell, lane]`` of cells ``channels`` apart: read there again and again they evict each other."""
    for p in loop(cells):
        to.put(p * lanes, array.vec(p * channels, lanes))
