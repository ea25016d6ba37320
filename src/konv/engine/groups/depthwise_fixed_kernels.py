"""Kernels for depthwise layers with two axes, channels first, whose planes have a size that is known when they are compiled.

A vector is a run of a row of outputs, as in :mod:`konv.engine.groups.planes`. Here every address is a plane's plus a constant,
and which rows and lanes a tap meets is known: no pointers of rows to keep, nothing to choose, no masks to compute. A plane of 7
x 7, 3 x 3 taps, takes 50 cycles instead of 100; 7 x 7 taps on 28 x 28 run 1.2 to 1.3 times as fast.

Two neighbouring cells of bfloat16 are a pair as they lie, whichever is the first: ``dots`` multiplies two taps of a row in one
instruction, and widens nothing. 3 x 3 taps: 6 instead of 9, 1.2 to 1.3 times as fast on 28 to 112 pixels.
"""

from __future__ import annotations

import itertools
from typing import Any

from konv.engine.compile import kernel
from konv.engine.machine import wide_type
from konv.engine.simd import Variable, bits, dot, fma, loop, minimum, pair, pinned, shuffle, splat

KEPT_FACTORS = 9  # stay in registers for a plane


@kernel
def correlate_fixed(x_dtype, y_dtype, columns, rows, taps, stride, pad, x_size, y_size, backwards, dots=False):
    """Forward, or with ``backwards`` the input gradient of stride 1: taps in reverse order. A piece is some planes.

    Parameters
    ----------
    columns : (first column, lanes, sets) of the vectors of a row of outputs; of two sets the columns are those of one and of
        the other in turns (``woven`` in :mod:`konv.engine.groups.planes`)
    rows : of outputs, whose sums are in registers together; the last tile of a plane may begin within the one before
    taps, stride, pad, x_size, y_size : (rows, columns), ``pad`` that before the first
    dots : of two sets in bfloat16, two neighbouring taps are one :func:`konv.engine.simd.dot` with cells as they lie
    """
    (height, width), (out_height, out_width), (taps_high, taps_wide) = x_size, y_size, taps
    count = taps_high * taps_wide
    tiles = [min(low, out_height - rows) for low in range(0, out_height, rows)]

    def text(piece, slot, x, w, bias, y, planes, chunk, channels):
        def two_taps(own, k, t, lanes):
            """Taps t and t + 1 of a row as a pair, or zero and the last."""
            found = [own[count - 1 - (k + i) if backwards else k + i] for i in range(t, min(t + 2, taps_wide))]
            return pair(*[x.zero(lanes)] * (2 - len(found)), *(splat(v, lanes) for v in found))

        def dotted(source, sums, factors, lows, first, lanes):
            """The products of a tile, two taps at a time. A last one is the upper half of pairs whose lower half is zero."""
            names = [(s, t) for s in (0, 1) for t in range(0, taps_wide, 2)]
            for line, met in met_lines(lows, height, taps_high, 1, pad[0]):
                row = source.at(line * width)
                for s, t in names:
                    cell = first + s + t
                    inside = lanes_of(-cell, width - cell, 2 * lanes)
                    if t + 1 < taps_wide:
                        values = row.pairs(cell, lanes, bits=inside)
                    else:
                        values = pair(row.zero(lanes), row.alternate(cell, lanes, bits=inside))
                    for r, k in met:
                        sums[r, s].set(pinned(dot(values, factors(k, t, lanes), sums[r, s].get())))

        def tile(source, to, start, factors, low, column, lanes, sets):
            """``rows`` rows of outputs from ``low`` on, the vectors at one place of each."""
            begun = x.zero(lanes) if dots else splat(start, lanes)
            sums = {(r, s): Variable(begun) for r in range(low, low + rows) for s in range(sets)}
            left, first_cell = out_width - column, column * stride[1] - pad[1]
            if dots:
                dotted(source, sums, factors, range(low, low + rows), first_cell, lanes)
                for total in sums.values():
                    total.set(total.get() + splat(start, lanes))
            for together in () if dots else shared_reads(taps_wide, stride[1], sets, lanes, left):
                pairs = [(t, s, t - s) for t in together for s in range(sets) if 0 <= t - s < taps_wide]
                own = {(k, tap): factors(k, tap, lanes) for k in range(taps_high) for _, _, tap in pairs}
                for line, met in met_lines(range(low, low + rows), height, taps_high, stride[0], pad[0]):
                    values = read(source.at(line * width), x_dtype, lanes, together, stride[1], first_cell, width, sets)
                    for (t, s, tap), (r, k) in itertools.product(pairs, met):
                        sums[r, s].set(pinned(fma(own[k, tap], values[t], sums[r, s].get())))
            for r in range(low, low + rows):
                place = r * out_width + column
                if sets == 2:
                    to.weave(place, sums[r, 0].get(), sums[r, 1].get(), None if left >= 2 * lanes else left)
                else:
                    to.put(place, sums[r, 0].get(), bits=lanes_of(0, left, lanes))

        first = piece * chunk
        for i in loop(minimum(chunk, planes - first)):
            plane = first + i
            channel = plane % channels
            own, most = w.at(channel * count), max(lanes for _, lanes, _ in columns)
            own_pairs, kept = {}, None
            if dots:
                own_pairs = {
                    (k, t): two_taps(own, k * taps_wide, t, most)
                    for k in range(taps_high)
                    for t in range(0, taps_wide, 2)
                }
            elif count <= KEPT_FACTORS:
                kept = [splat(own[k], most) for k in range(count)]

            def factors(k, t, lanes, own=own, own_pairs=own_pairs, kept=kept, most=most):
                if dots:
                    return shuffle(own_pairs[k, t], own_pairs[k, t], range(lanes))
                at = k * taps_wide + t
                at = count - 1 - at if backwards else at
                return splat(own[at], lanes) if kept is None else shuffle(kept[at], kept[at], range(lanes))

            start, source, to = bias[channel], x.at(plane * (height * width)), y.at(plane * (out_height * out_width))
            for low, number in runs(tiles, rows, lambda low: inside(low, rows, height, taps_high, stride[0], pad[0])):
                for q in loop(number) if number > 1 else (0,):
                    x_tile, y_tile = source.at(q * (rows * stride[0] * width)), to.at(q * (rows * out_width))
                    for place in columns:
                        tile(x_tile, y_tile, start, factors, low, *place)

    return text, {"x": x_dtype, "w": x_dtype, "bias": x_dtype, "y": y_dtype}


@kernel
def accumulate_fixed(dtype, lanes, rows, taps, stride, pad, x_size, y_size):
    """``sums[part, channel, tap] = sum of dy * x``, ``biases[part, channel] = sum of dy``. A piece is (part, some channels).

    A row of dy is one vector; ``rows`` of them are in registers together. What ``block_images`` give is added to the sums of
    those before: so the error stays small.

    Of planes of several vectors :mod:`konv.engine.groups.planes_outer` is faster, 144@56 1.1 to 1.6 times: it reads them nearly
    in the order of memory. Of one vector asking for the next image's plane cost 1.2 times as long on 14 x 14, and gained
    nothing.
    """
    (height, width), (out_height, out_width), (taps_high, taps_wide) = x_size, y_size, taps
    names = [*itertools.product(range(taps_high), range(taps_wide)), "bias"]
    reads = shared_reads(taps_wide, stride[1], 1, lanes, lanes)

    def text(piece, slot, x, dy, sums, biases, images, part_images, block_images, chunk, channels):
        chunks = (channels + (chunk - 1)) // chunk
        part, first = piece // chunks, piece % chunks * chunk
        first_image = part * part_images
        own_images = minimum(part_images, images - first_image)

        def add(own, plane):
            """The products of a plane."""
            source, upstream = x.at(plane * (height * width)), dy.at(plane * (out_height * out_width))
            for low in range(0, out_height, rows):
                tile, mask = range(low, min(low + rows, out_height)), lanes_of(0, out_width, lanes)
                gradients = {r: upstream.vec(r * out_width, lanes, bits=mask) for r in tile}
                for gradient in gradients.values():
                    own["bias"].set(own["bias"].get() + gradient)
                for line, met in met_lines(tile, height, taps_high, stride[0], pad[0]):
                    for together in reads:
                        row = source.at(line * width)
                        values = read(row, dtype, lanes, together, stride[1], -pad[1], width, 1, out_width)
                        for t, (r, k) in itertools.product(together, met):
                            own[k, t].set(pinned(fma(gradients[r], values[t], own[k, t].get())))

        for i in loop(minimum(chunk, channels - first)):
            channel = first + i
            totals = {name: Variable(sums.zero(lanes)) for name in names}
            for block in loop((own_images + (block_images - 1)) // block_images):
                image = block * block_images
                own = {name: Variable(sums.zero(lanes)) for name in names}
                for n in loop(minimum(block_images, own_images - image)):
                    add(own, (first_image + image + n) * channels + channel)
                for name, total in totals.items():
                    total.set(total.get() + own[name].get())
            *results, bias = (total.get() for total in totals.values())
            to = part * channels + channel
            biases.put(to, lane_sums([bias], lanes)[0], bits=1)
            for q, vector in enumerate(lane_sums(results, lanes)):
                sums.put(to * len(results) + q * lanes, vector, bits=lanes_of(0, len(results) - q * lanes, lanes))

    wide = wide_type(dtype)
    return text, {"x": dtype, "dy": dtype, "sums": wide, "biases": wide}


def lane_sums(vectors, lanes):
    """The sums of all lanes of each vector, side by side in as few vectors as hold them."""
    vectors, partial = list(vectors), lanes  # so many lanes of a vector belong to one sum
    while partial > 1:
        pairs = [(vectors[i], vectors[min(i + 1, len(vectors) - 1)]) for i in range(0, len(vectors), 2)]
        half = partial // 2
        low = [i for i in range(2 * lanes) if i % partial < half]
        vectors = [shuffle(a, b, low) + shuffle(a, b, [i + half for i in low]) for a, b in pairs]
        partial = half
    return vectors


def inside(low, rows, height, taps, stride, pad):
    """Whether the windows of ``rows`` rows of outputs from ``low`` on lie inside x."""
    return low * stride >= pad and (low + rows - 1) * stride - pad + taps <= height


def runs(tiles, rows, whole):
    """(first tile, how many follow each other): those that are ``whole`` are the same code at other rows."""
    found: list[tuple[int, int]] = []
    for low in tiles:
        start, number = found[-1] if found else (0, 0)
        if number and low == start + number * rows and whole(start) and whole(low):
            found[-1] = start, number + 1
        else:
            found.append((low, 1))
    return found


def met_lines(rows, height, taps, stride, pad):
    """The lines of x that ``rows`` of outputs meet, each with its (row of outputs, row of the kernel)."""
    for line in range(height):
        met = [(r, line + pad - r * stride) for r in rows if 0 <= line + pad - r * stride < taps]
        if met:
            yield line, met


def lanes_of(start, end, lanes):
    """The lanes from ``start`` to before ``end`` as bits; None of all."""
    return None if start <= 0 and end >= lanes else bits(start, min(end, lanes))


def shared_reads(taps, stride, sets, lanes, left):
    """The taps of a row, in groups that :func:`read` takes from the same two vectors."""
    together = 1
    if stride == 2:
        together = taps if 2 * (min(lanes, left) - 1) + taps <= 2 * lanes else 2
    count = taps + sets - 1
    return [range(t, min(t + together, count)) for t in range(0, count, together)]


def read(row: Any, dtype, lanes, taps, stride, first, width, sets, left=None):
    """``{tap: cells}``: lane i meets cell ``first + i * stride * sets + tap``; zero outside the row and from lane ``left`` on."""
    step = stride * sets
    most = lanes * step if left is None else left * stride

    def cells(at, offset=0):
        """Cells ``at + offset`` and on, where lanes begin at ``at``."""
        end = min(width - at, most) - offset
        return row.vec(at + offset, lanes, bits=lanes_of(-at - offset, end, lanes))

    if step == 1:
        return {t: cells(first + t) for t in taps}
    if dtype == "bfloat16":  # every other one is one instruction
        ends = {t: min(width - first - t, most) for t in taps}
        return {t: row.alternate(first + t, lanes, bits=lanes_of(-first - t, ends[t], 2 * lanes)) for t in taps}
    halves = cells(first + taps[0]), cells(first + taps[0], lanes)
    order = range(0, 2 * lanes, 2)
    return {t: shuffle(*halves, [min(i + t - taps[0], 2 * lanes - 1) for i in order]) for t in taps}
