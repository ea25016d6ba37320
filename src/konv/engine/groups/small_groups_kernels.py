"""Kernels for small groups: a vector holds the same cell of whole groups, one channel a lane.

For each upstream pixel, each filter's gradient is spread over the lanes of its group; it meets the pixels under a row of
taps. Lanes hold the groups' channels in turns, so number i of all groups is one number of twice the bytes, which a load spreads:
8 filters and 3 taps cost 11 loads for 24 multiply-adds, whatever the stride, and no shuffle.
The rows that a chunk of dy meets are copied into the slot's workspace; channels first, they are transposed there.
"""

from __future__ import annotations

import itertools

from konv.engine.compile import kernel
from konv.engine.groups.small_planes_kernels import plane_in, plane_out
from konv.engine.machine import wide_type
from konv.engine.simd import Variable, fma, loop, maximum, minimum, pick, pinned, shuffle, splat, within


@kernel
def correlate_groups(x_dtype, y_dtype, lanes, group, taps, down, up, pad, x_width, out_width, most, layout, back):
    """Forward (``up`` is 1), or ``back``, the input gradient (``down`` is 1). A piece is (image, ``lanes`` channels).

    Output o of a row and tap t meet cell c where ``down * o + t - pad == up * c``, of a gradient ``o - t + pad == up * c``.
    At most so many outputs are summed together; ``rows`` tells the rows of x that a row of outputs meets, and of the kernel.
    """
    parts, order = -(-out_width // most), order_of(group, lanes)
    tiles = [(out_width * i // parts, out_width * (i + 1) // parts) for i in range(parts)]

    def meetings(begin, end):
        """{cell: [(tap, output)]} of some outputs."""
        met: dict[int, list[tuple[int, int]]] = {}
        for o, t in itertools.product(range(begin, end), range(taps)):
            at = o - t + pad if back else down * o + t - pad
            if at % up == 0 and 0 <= at // up < x_width:
                met.setdefault(at // up, []).append((t, o - begin))
        return dict(sorted(met.items()))

    def text(
        piece, slot, x, weights, bias, y, slots, rows, chunks, slot_size, y_at,
        channels, x_height, out_height, chunk_rows, weights_size,
    ):  # fmt: skip
        blocks = channels // lanes
        image, block = piece // blocks, piece % blocks
        channel = block * lanes
        source = slots.at(slot * slot_size)
        results, start = source.at(y_at), ordered(bias.vec(channel, lanes), order)
        planes = image * channels + channel, (image + 1) * channels
        for chunk in loop((out_height + (chunk_rows - 1)) // chunk_rows):
            row = chunk * chunk_rows
            own_rows = minimum(chunk_rows, out_height - row)
            first, cells = chunks[chunk * 2], chunks[chunk * 2 + 1] * x_width
            place = image, channel, channels, x_height * x_width
            rows_in(x, layout, place, first * x_width, cells, source, order, cells)
            for r in loop(own_rows):
                for begin, end in tiles:
                    sums = [Variable(start) for _ in range(begin, end)]
                    first_pair = rows[row + r]
                    for n in loop(rows[row + r + 1] - first_pair):
                        pair = out_height + 1 + (first_pair + n) * 2
                        line = source.at((rows[pair] - first) * (x_width * lanes))
                        factors = weights.at(block * weights_size + rows[pair + 1] * (taps * group * lanes))
                        for i in range(group):
                            row_of_taps = [factors.vec((t * group + i) * lanes, lanes) for t in range(taps)]
                            for cell, met in meetings(begin, end).items():
                                pixel = spread(line.at(cell * lanes), i, group, lanes)
                                for t, o in met:
                                    sums[o].set(pinned(fma(row_of_taps[t], pixel, sums[o].get())))
                    for o, total in enumerate(sums):
                        results.put((r * out_width + begin + o) * lanes, total.get())
            cells = own_rows * out_width
            if layout == "first":
                size, ahead = out_height * out_width, chunk_rows * out_width
                plane_out(results, y.at(row * out_width), *planes, size, cells, lanes, ahead, order)
            else:
                to = y.at((image * out_height + row) * out_width * channels + channel)
                for p in loop(cells):
                    to.put(p * channels, ordered(results.vec(p * lanes, lanes), inverse(order)))

    wide = wide_type(x_dtype)
    pointers = {"x": x_dtype, "weights": wide, "bias": wide, "y": y_dtype, "slots": wide}
    return text, pointers | {"rows": "int64", "chunks": "int64"}


@kernel
def accumulate_groups(dtype, lanes, group, together, taps, stride, pad, edges, layout, asked):
    """``sums[part, tap, filter of a group, channel] = sum of dy * x``, ``biases[part, filter] = sum of dy``.

    A piece is (part, ``lanes`` channels). So many filters of each group are summed ``together``. ``edges``: the outputs of a
    row that meet cells before its first, those that meet cells behind its last, and how many cells the last output does.
    ``asked`` : so many lines of the next image's x are asked for at each output, and one of dy
    """
    (left, right, over), order = edges, order_of(group, lanes)

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
        bias, turn = Variable(totals.zero(lanes)), Variable(0)

        def ask(first_plane):
            """For the next lines of x and dy, from a plane on, which lie one behind the other."""
            for array, size, count in ((x, x_height * x_width, asked), (dy, out_height * out_width, 1)):
                for n in range(count):
                    at = minimum((turn.get() * count + n) * lanes, size * lanes - 1)
                    array.prefetch(first_plane * size + at, later=True)
            turn.set(turn.get() + 1)

        def add(products, filters, line, upstream, step, q, met):
            """Add the products of output q with the taps that it meets inside the row."""
            at = upstream.at(q * step)
            pixels = {t: line.vec((q * stride + (t - pad)) * step, lanes) for t in met}
            for f in filters:
                gradient = spread(at, f, group, lanes)
                for t in met:
                    products[t, f].set(pinned(fma(gradient, pixels[t], products[t, f].get())))

        for i in loop(minimum(part_images, images - part * part_images)):
            image = part * part_images + i
            turn.set(0)
            next_plane = pick(within(image + 1, images), (image + 1) * channels, lanes) + channel
            for chunk in loop((out_height + (chunk_rows - 1)) // chunk_rows):
                row = chunk * chunk_rows
                rows = minimum(chunk_rows, out_height - row)
                top = row * stride_high - pad_high
                first = maximum(top, 0)
                lines = minimum(top + (rows - 1) * stride_high + taps_high, x_height) - first
                source, upstream, step = space, space.at(dy_at), lanes
                own_planes = image, channel, channels
                rows_in(x, layout, (*own_planes, x_height * x_width), first * x_width, lines * x_width, source, order)
                rows_in(
                    dy,
                    layout,
                    (*own_planes, out_height * out_width),
                    row * out_width,
                    rows * out_width,
                    upstream,
                    order,
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
                                if asked:
                                    ask(next_plane)
                                add(*place, left + q, range(taps))
                            for e in reversed(range(right)):
                                add(*place, out_width - (1 + e), range(taps - (over - e * stride)))
                        for t, f in products:
                            at = ((k * taps + t) * group + f) * lanes
                            totals.put(at, totals.vec(at, lanes) + products[t, f].get())
        for k in loop(numbers):
            sums.put((part * numbers + k) * channels + channel, totals.vec(k * lanes, lanes))
        biases.put(part * channels + channel, ordered(bias.get(), inverse(order)))

    wide = wide_type(dtype)
    return text, {"x": dtype, "dy": dtype, "sums": wide, "biases": wide, "slots": wide}


def order_of(group, lanes):
    """The channel, of those of a vector, in each lane: the first of all groups, the second of all, ..."""
    groups = lanes // group
    return [lane % groups * group + lane // groups for lane in range(lanes)]


def spread(cell, i, group, lanes):
    """Number i of every group in all of its lanes: read as one number of so many bytes, which costs no shuffle."""
    groups = lanes // group
    if groups == 1:
        return splat(cell[i], lanes)
    numbers = cell.vec(i * groups, groups)
    return shuffle(numbers, numbers, [lane % groups for lane in range(lanes)])


def rows_in(array, layout, place, first, cells, to, order, ahead=None):
    """``to[cell, lane] = channel order[lane]`` of cells ``first`` and on.

    ``place`` : image, first channel, all channels, cells of a plane. Channels last are copied too:
    read there again and again, cells ``channels`` apart evict each other.
    """
    (image, channel, channels, size), lanes = place, len(order)
    if layout == "first":
        planes = image * channels + channel, (image + 1) * channels
        plane_in(array.at(first), *planes, size, cells, to, lanes, ahead, order)
        return
    source = array.at((image * size + first) * channels + channel)
    for p in loop(cells):
        to.put(p * lanes, ordered(source.vec(p * channels, lanes), order))


def ordered(vector, order):
    """Its lanes in another order."""
    return vector if order == sorted(order) else shuffle(vector, vector, order)


def inverse(order):
    """The order that undoes another."""
    return [order.index(lane) for lane in range(len(order))]
