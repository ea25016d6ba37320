"""Depthwise layers with tall kernels on planes of a known size: two rows of outputs with three products instead of four.

Of two neighbouring rows of outputs and two rows a, b of the kernel, which meet rows x, y, z of the input,

    even = a x + b y = a (x - y) + (a + b) y          odd = a y + b z = (a + b) y - b (y - z)

share a product: F(2, 2) of :mod:`konv.engine.winograd.winograd_formulas`, with the points 0, 1 and infinity, for each pair of
the kernel's rows. Of 7 rows 11 products of 14 are left; the differences are taken by units that add while others multiply.
"""

from __future__ import annotations

from konv.engine.compile import kernel
from konv.engine.groups.depthwise_fixed_kernels import inside, lanes_of, read, runs
from konv.engine.simd import Variable, fma, loop, minimum, pinned, splat


@kernel
def correlate_paired(x_dtype, y_dtype, columns, rows, taps, pad, x_size, y_size, backwards):
    """As :func:`konv.engine.groups.depthwise_fixed_kernels.correlate_fixed`, of stride 1 and one set; ``rows`` are even."""
    (height, width), (out_height, out_width), (taps_high, taps_wide) = x_size, y_size, taps
    count, pairs_high = taps_high * taps_wide, taps_high // 2
    tiles = list(range(0, out_height, rows))

    def text(piece, slot, x, w, bias, y, planes, chunk, channels):
        def tile(source, to, start, own, low, column, lanes):
            """The rows of outputs from ``low`` on, the vectors at one place of each."""
            end = min(low + rows, out_height)
            pairs = range((end - low + 1) // 2)
            zero = w.zero(lanes)
            evens = [Variable(zero) for _ in pairs]
            both = [Variable(splat(start, lanes)) for _ in pairs]
            odds = [Variable(zero) for _ in pairs]

            def add(sums, i, factor, values):
                if values is not None:
                    sums[i].set(pinned(fma(factor, values, sums[i].get())))

            def factor(k, t):
                at = k * taps_wide + t
                return splat(own[count - 1 - at if backwards else at], lanes)

            for t in range(taps_wide):
                first, second = ([factor(k, t) for k in range(s, taps_high - taps_high % 2, 2)] for s in (0, 1))
                sums = [a + b for a, b in zip(first, second)]
                last = factor(taps_high - 1, t) if taps_high % 2 else None
                minus = None if last is None else zero - last

                def line(row, t=t):
                    if not 0 <= row < height:
                        return None
                    return read(source.at(row * width), x_dtype, lanes, (t,), 1, column - pad[1], width, 1)[t]

                below = line(low - pad[0])
                for q in range(len(pairs) + (taps_high - 1) // 2):
                    row = low - pad[0] + 2 * q
                    above, middle = below, line(row + 1)
                    below = line(row + 2)
                    high, deep = difference(above, middle, zero), difference(middle, below, zero)
                    for i in pairs:
                        j, alone = q - i, low + 2 * i + 1 == out_height
                        if 0 <= j < pairs_high:
                            add(evens, i, first[j], high)
                            add(both, i, sums[j], middle)
                            if not alone:
                                add(odds, i, second[j], deep)
                        elif j == pairs_high and last is not None:
                            add(evens, i, last, above)
                            if not alone:
                                add(odds, i, minus, middle)
            for i in pairs:
                mask = lanes_of(0, out_width - column, lanes)
                to.put((low + 2 * i) * out_width + column, evens[i].get() + both[i].get(), bits=mask)
                if low + 2 * i + 1 < out_height:
                    to.put((low + 2 * i + 1) * out_width + column, both[i].get() - odds[i].get(), bits=mask)

        def whole(low):
            return low + rows <= out_height and inside(low, rows, height, taps_high, 1, pad[0])

        first_plane = piece * chunk
        for i in loop(minimum(chunk, planes - first_plane)):
            plane = first_plane + i
            channel = plane % channels
            source, to = x.at(plane * (height * width)), y.at(plane * (out_height * out_width))
            for low, number in runs(tiles, rows, whole):
                for q in loop(number) if number > 1 else (0,):
                    x_tile, y_tile = source.at(q * (rows * width)), to.at(q * (rows * out_width))
                    for column, lanes, _ in columns:
                        tile(x_tile, y_tile, bias[channel], w.at(channel * count), low, column, lanes)

    return text, {"x": x_dtype, "w": x_dtype, "bias": x_dtype, "y": y_dtype}


def difference(a, b, zero):
    """a - b; None stands for zeros."""
    if b is None:
        return a
    return (zero if a is None else a) - b
