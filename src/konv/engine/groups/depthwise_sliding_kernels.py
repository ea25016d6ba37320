"""Kernel for depthwise layers of two axes and unit stride on channels-last arrays: a vector of channels slides along some rows.

A pixel of x is loaded once for all outputs that it meets: those of its own column and of the columns beside it, whose sums stay
open in registers until the last column that they meet has gone by. Loaded for every column, as in
:mod:`konv.engine.groups.depthwise_rows_kernels`, it has to stay in the nearest cache until then, where it is not for long if the
rows of an image share a few of its sets: 64@16 took 2.5 times as long, 64@56 1.3, 144@56 1.25, of x off cache lines 1.4.

Pixels are read far apart, so what comes from memory itself comes late: 8 images of 144@56 took 1.9 times as long as by that one,
with all asked for in time, segment of a row by segment, as long. Sums left open in memory, vector after vector of a pixel, took 2
times as long, 5 x 5 as long as by the other, 7 x 7 1.2 to 1.6, stride 2 1.1. Even and odd channels of bfloat16 as vectors of
their own, four rows instead of seven, gained nothing: 144@56 1.0.
"""

from __future__ import annotations

import itertools
from typing import Any

from konv.engine.compile import kernel
from konv.engine.machine import wide_type
from konv.engine.simd import Variable, bits, fma, loop, minimum, pick, pinned, within


@kernel
def correlate_sliding(x_dtype, y_dtype, lanes, tile, meets, taps_high, taps, backwards, even, fixed):
    """Forward, or the input gradient. A piece is (some tiles of rows, a span of channels).

    Parameters
    ----------
    tile : rows of outputs of a tile
    meets : (row of x, row of outputs, row of the kernel) that are multiplied, counted from a tile's first
    taps_high, taps : size of the kernel
    backwards : whether outputs meet the columns of the kernel from the last one on
    even : whether spans are whole vectors
    fixed : whether an image is one tile, whose meetings are all inside
    """
    lines = sorted({u for u, _, _ in meets})

    def text(
        piece, slot, x, weights, bias, y, zeros, tiles, chunk, span, channels,
        x_height, x_width, out_height, out_width, last, first_column,
    ):  # fmt: skip
        spans = (channels + (span - 1)) // span
        first_tile, first_channel = piece // spans * chunk, piece % spans * span
        own = minimum(span, channels - first_channel)
        row_tiles = (out_height + (tile - 1)) // tile

        def slide(channel, read, written):
            """All outputs of a tile, of a vector of channels."""
            some: dict[str, Any] = {} if even else {"bits": bits(0, channels - channel)}
            put: dict[str, Any] = {} if even else {"count": channels - channel}
            own_weights = weights.at(channel * (taps_high * taps))
            factors = [
                [own_weights.vec((t * taps + q) * lanes, lanes) for q in range(taps)] for t in range(taps_high)
            ]  # fmt: skip
            start = bias.vec(channel, lanes, **some)
            sums = [[Variable(start) for _ in range(tile)] for _ in range(taps)]  # of the next columns of outputs

            def step(column, low, high):
                """Read the column of x, if there is one, that completes ``column``, for the sums ``low`` .. ``high - 1``."""
                at = column + first_column
                for _ in range(1) if (low, high) == (0, taps) else loop(within(at, x_width)):
                    for u in lines:
                        values = read[u].vec(at * channels + channel, lanes, **some)
                        for _, r, t in (meet for meet in meets if meet[0] == u):
                            for m in range(low, high):
                                factor = factors[t][m if backwards else taps - 1 - m]
                                sums[m][r].set(pinned(fma(factor, values, sums[m][r].get())))
                if low == 0:
                    for line, total in zip(written, sums[0]):
                        line.put(column * channels + channel, total.get(), **put)
                for here, further in itertools.pairwise(sums):
                    for total, following in zip(here, further):
                        total.set(following.get())
                for total in sums[-1]:
                    total.set(start)

            for k in range(taps - 1, 0, -1):
                step(0 - k, k, taps)
            for column in loop(out_width - (taps - 1)):
                step(column, 0, taps)
            for k in range(taps - 1, 0, -1):
                step(out_width - k, 0, k)

        for i in loop(minimum(chunk, tiles - first_tile)):
            image, row = (first_tile + i) // row_tiles, minimum((first_tile + i) % row_tiles * tile, last)
            read = {u: x.at((image * x_height + row + u) * x_width * channels) for u in lines}
            if not fixed:
                read = {u: pick(within(row + u, x_height), line, zeros) for u, line in read.items()}
            written = [y.at((image * out_height + row + r) * out_width * channels) for r in range(tile)]
            for block in loop((own + (lanes - 1)) // lanes):
                slide(first_channel + block * lanes, read, written)

    wide = wide_type(x_dtype)
    return text, {"x": x_dtype, "weights": wide, "bias": wide, "y": y_dtype, "zeros": x_dtype}
