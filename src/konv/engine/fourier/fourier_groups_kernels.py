"""Kernels of long correlations in groups of many channels: weights are transformed where they are used, and not kept.

The spectra of all weights would be several times as large as the weights, which are the largest array here. So a piece takes
a vector of filters and goes through its channels: those taps' spectrum is in the nearest caches when it meets all blocks.
"""

from __future__ import annotations

import math

from konv.engine.compile import kernel
from konv.engine.fourier.fourier_kernels import blocks_first, blocks_last, put_rows, transformed
from konv.engine.fourier.fourier_passes import first_of_inverse, inverse, last_of, rows_to_points, transform
from konv.engine.machine import wide_type
from konv.engine.simd import Variable, fma, loop, minimum, splat, within


@kernel
def results_of_groups(dtype, out, lanes, radices, conjugate, scale, layout):
    """y, or dx, from the spectra of blocks. A piece is (group, vector of results' channels, some blocks).

    ``conjugate``: of the weights' spectra, for a correlation; else a convolution, whose results begin at point ``first``.
    """
    size, wide, radix, sign = math.prod(radices), wide_type(dtype), radices[-1], -1 if conjugate else 1

    def text(
        piece, slot, blocks, w, bias, y, space, roots, checks, groups, channels, filters, vectors, chunks, chunk_blocks,
        all_blocks, pairs, block, first, length, taps, lane_step, channel_step, group_step, y_image, y_filter, y_cell,
        slot_size,
    ):  # fmt: skip
        chunk, rest = piece % chunks, piece // chunks
        vector, group = rest % vectors, rest // vectors
        z = space.at(slot * slot_size)
        totals, check = z.at(size * 2 * lanes), Variable(z.zero(lanes))
        first_block = chunk * chunk_blocks
        own = minimum(chunk_blocks, all_blocks - first_block)
        f = vector * lanes

        for c in loop(channels):
            starts = [group * group_step + (f + lane) * lane_step + c * channel_step for lane in range(lanes)]
            rows = [(start, 0, taps * within(f + lane, filters)) for lane, start in enumerate(starts)]
            rows_to_points(w, rows, z, 0, size, 1, lanes, check, scale)
            for n in loop(size):
                z.put((2 * n + 1) * lanes, z.zero(lanes))
            transform(z, roots, radices, lanes)
            kept = minimum(c, 1) * lanes
            for n in loop(size // radix):
                points = last_of(z, n * radix, radices, lanes)
                for b in loop(own):
                    x = blocks.at((((first_block + b) * groups + group) * channels + c) * (2 * size))
                    for i, (re, im) in enumerate(points):
                        at = n * radix + i
                        a, d = (splat(x[2 * at + j], lanes) for j in range(2))
                        to = (b * size + at) * (2 * lanes)
                        real, imaginary = (totals.vec(to + j * lanes, lanes, count=kept) for j in range(2))
                        turned = im if sign > 0 else -im
                        totals.put(to, fma(-turned, d, fma(re, a, real)))
                        totals.put(to + lanes, fma(turned, a, fma(re, d, imaginary)))
        checks.put(piece * lanes, check.get())

        start = bias.vec(group * filters + f, lanes, count=filters - f)
        for b in loop(own):
            number = first_block + b
            pair, image = number % pairs, number // pairs
            points = totals.at(b * (size * 2 * lanes))
            for n in loop(size // radix):
                read = [
                    tuple(points.vec((2 * (n * radix + i) + j) * lanes, lanes) for j in range(2)) for i in range(radix)
                ]
                first_of_inverse(points, n * radix, read, lanes)
            inverse(points, roots, radices, lanes)
            for half in range(2):
                at = (2 * pair + half) * block
                count = minimum(block, length - at)
                target = y.at(image * y_image + (group * filters + f) * y_filter + at * y_cell)
                if layout == "first":

                    def outputs(k, points=points, half=half):
                        return points.vec(((first + k) * 2 + half) * lanes, lanes) + start

                    put_rows(target, y_filter, outputs, count, filters - f, lanes)
                else:
                    for q in loop(count):
                        row = points.vec(((first + q) * 2 + half) * lanes, lanes) + start
                        target.put(q * y_cell, row, count=filters - f)

    pointers = dict.fromkeys(("blocks", "bias", "space", "roots", "checks"), wide)
    return text, pointers | {"w": dtype, "y": out}


@kernel
def weights_of_groups(dtype, out, lanes, radices, layout):
    """dw, and db, from the spectra of blocks of x. A piece is (group, vector of filters)."""
    size, wide, radix = math.prod(radices), wide_type(dtype), radices[-1]
    load = blocks_last if layout == "last" else blocks_first

    def text(
        piece, slot, blocks, dy, dw, db, space, roots, checks, groups, channels, filters, vectors, all_blocks, pairs, block,
        length, taps, slot_size,
    ):  # fmt: skip
        vector, group = piece % vectors, piece // vectors
        z = space.at(slot * slot_size)
        upstream, check, total = z.at((size + lanes) * 2 * lanes), Variable(z.zero(lanes)), Variable(z.zero(lanes))
        f = vector * lanes
        for b in loop(all_blocks):
            pair, image = b % pairs, b // pairs
            points, at = upstream.at(b * (size * 2 * lanes)), 2 * pair * block
            load(dy, (image, group, groups), f, filters, length, at, block, block, points, size, lanes, check)
            transformed(points, roots, radices, lanes)
            total.set(
                total.get() + (points.vec(0, lanes) + points.vec(lanes, lanes))
            )  # frequency 0: the sum of both blocks
        checks.put(piece * lanes, check.get())
        db.put(group * filters + f, total.get(), count=filters - f)
        for c in loop(channels):
            for n in loop(size // radix):
                sums = [[Variable(z.zero(lanes)) for _ in range(2)] for _ in range(radix)]
                for b in loop(all_blocks):
                    x = blocks.at(((b * groups + group) * channels + c) * (2 * size))
                    for i, (real, imaginary) in enumerate(sums):
                        at = n * radix + i
                        a, d = (splat(x[2 * at + j], lanes) for j in range(2))
                        re, im = (upstream.vec((b * size + at) * (2 * lanes) + j * lanes, lanes) for j in range(2))
                        real.set(fma(im, d, fma(re, a, real.get())))
                        imaginary.set(fma(-im, a, fma(re, d, imaginary.get())))
                first_of_inverse(z, n * radix, [(real.get(), imaginary.get()) for real, imaginary in sums], lanes)
            inverse(z, roots, radices, lanes)
            target = dw.at(((group * filters + f) * channels + c) * taps)
            put_rows(target, channels * taps, lambda k: z.vec(2 * k * lanes, lanes), taps, filters - f, lanes)

    pointers = dict.fromkeys(("blocks", "space", "roots", "checks"), wide)
    return text, pointers | {"dy": dtype, "dw": out, "db": out}
