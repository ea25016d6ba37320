"""Kernels of long correlations by Fourier transforms: spectra of rows, their products, and back.

Blocks of a row come in pairs, one as the real and one as the imaginary part of a sequence: a product with the spectrum of real
weights correlates both with them, and a product of two such pairs has the sum of both correlations as its real part.
"""

from __future__ import annotations

import math
from typing import Any

from konv.engine.compile import kernel
from konv.engine.fourier.fourier_passes import (
    first_of_inverse,
    inverse,
    last_of,
    rows_to_points,
    transform,
    write,
)
from konv.engine.machine import wide_type
from konv.engine.packing import sums_of_vectors
from konv.engine.simd import Variable, fma, loop, maximum, minimum, splat, transpose, within


@kernel
def spectra_of_weights(dtype, lanes, radices, stride, scale):
    """``spectra[group][vector of filters][channel][phase][point][2][lane]``. A piece is (group, vector, channel)."""
    size, wide = math.prod(radices), wide_type(dtype)

    def text(
        piece, slot, w, spectra, checks, roots, channels, vectors, filters, filter_step, channel_step, group_step, taps
    ):
        channel, rest = piece % channels, piece // channels
        vector, group = rest % vectors, rest // vectors
        z = spectra.at(piece * (stride * size * 2 * lanes))
        check = Variable(z.zero(lanes))
        rows = []
        for lane in range(lanes):
            f = vector * lanes + lane
            first = group * group_step + f * filter_step + channel * channel_step
            rows.append((first, 0, taps * within(f, filters)))
        rows_to_points(w, rows, z, 0, size, stride, lanes, check, scale)
        for n in loop(stride * size):
            z.put((2 * n + 1) * lanes, z.zero(lanes))
        for phase in loop(stride):
            transformed(z.at(phase * (size * 2 * lanes)), roots, radices, lanes)
        checks.put(piece * lanes, check.get())

    return text, {"w": dtype, "spectra": wide, "checks": wide, "roots": wide}


@kernel
def spectra_of_blocks(dtype, lanes, radices, stride, scale):
    """``spectra[image][pair][channel][phase][point][2]``. A piece is a vector of (image, pair, channel)."""
    size, wide = math.prod(radices), wide_type(dtype)

    def text(piece, slot, x, spectra, space, checks, roots, total, channels, pairs, length, block, low, slot_size):
        z = space.at(slot * slot_size)
        check = Variable(z.zero(lanes))
        numbers: list[Any] = []
        parts: tuple[list[Any], list[Any]] = ([], [])
        for lane in range(lanes):
            number = minimum(piece * lanes + lane, total - 1)
            channel, rest = number % channels, number // channels
            pair, image = rest % pairs, rest // pairs
            for part in range(2):
                at = (2 * pair + part) * block * stride - low
                parts[part].append(((image * channels + channel) * length + at, 0 - at, length - at))
            numbers.append(number)
        for part in range(2):
            rows_to_points(x, parts[part], z, part, size, stride, lanes, check, scale)
        checks.put(piece * lanes, check.get())
        for phase in loop(stride):
            points = z.at(phase * (size * 2 * lanes))
            transformed(points, roots, radices, lanes)
            for r in loop(2 * size // lanes):
                rows = transpose([points.vec((r * lanes + i) * lanes, lanes) for i in range(lanes)])
                for number, row in zip(numbers, rows):
                    spectra.put((number * stride + phase) * (2 * size) + r * lanes, row)

    return text, {"x": dtype, "spectra": wide, "space": wide, "checks": wide, "roots": wide}


@kernel
def outputs_of_spectra(dtype, lanes, radices, layout):
    """y from the spectra of blocks and weights. A piece is (image, pair, group, part of the vectors of filters)."""
    size, wide, radix = math.prod(radices), wide_type(dtype), radices[-1]

    def text(
        piece, slot, blocks, weights, bias, y, space, roots, groups, channels, filters, vectors, parts, part_vectors, pairs,
        block, length, y_image, y_filter, y_cell, next_points, slot_size,
    ):  # fmt: skip
        part, rest = piece % parts, piece // parts
        group, number = rest % groups, rest // groups
        pair, image = number % pairs, number // pairs
        z = space.at(slot * slot_size)
        x = blocks.at((number * groups + group) * channels * (2 * size))
        first_vector = part * part_vectors
        here_vectors = minimum(part_vectors, vectors - first_vector)
        for v in loop(here_vectors):
            vector = first_vector + v
            points = z.at(v * next_points)
            w = weights.at((group * vectors + vector) * channels * (2 * size * lanes))
            for n in loop(size // radix):
                sums = [(Variable(z.zero(lanes)), Variable(z.zero(lanes))) for _ in range(radix)]
                for c in loop(channels):
                    at = c * size + n * radix
                    for i, total in enumerate(sums):
                        block_point = [splat(x[2 * (at + i) + j], lanes) for j in range(2)]
                        weight_point = [w.vec((2 * (at + i) + j) * lanes, lanes) for j in range(2)]
                        _add_conjugate(total, weight_point, block_point)
                first_of_inverse(points, n * radix, [(re.get(), im.get()) for re, im in sums], lanes)
            inverse(points, roots, radices, lanes)
            for half in range(2 * (layout == "first")):
                f, first = vector * lanes, (2 * pair + half) * block
                count = minimum(block, length - first)
                start = bias.vec(group * filters + f, lanes, count=filters - f)
                target = y.at(image * y_image + (group * filters + f) * y_filter + first)

                def outputs(k, points=points, half=half, start=start):
                    return points.vec((k * 2 + half) * lanes, lanes) + start

                put_rows(target, y_filter, outputs, count, filters - f, lanes)
        for half in range(2 * (layout == "last")):  # all filters of a cell, which are neighbours
            first = (2 * pair + half) * block
            for cell in loop(minimum(block, length - first)):
                target = y.at(image * y_image + (first + cell) * y_cell + group * filters)
                for v in loop(here_vectors):
                    f = (first_vector + v) * lanes
                    row = z.vec(v * next_points + (2 * cell + half) * lanes, lanes)
                    start = bias.vec(group * filters + f, lanes, count=filters - f)
                    target.put(f, row + start, count=filters - f)

    return text, dict.fromkeys(("blocks", "weights", "space", "roots"), wide) | {"bias": dtype, "y": dtype}


@kernel
def sums_of_filters(dtype, lanes, radices, layout):
    """``sums[image][pair][channel][point][2]``: spectra of dx, whose filters are in lanes. A piece is (image, pair)."""
    size, wide, radix = math.prod(radices), wide_type(dtype), radices[-1]
    load = blocks_last if layout == "last" else blocks_first

    def text(
        piece, slot, dy, weights, sums, space, checks, roots, channels, filters, vectors, pairs, block, low, length, slot_size
    ):  # fmt: skip
        pair, image = piece % pairs, piece // pairs
        z = space.at(slot * slot_size)
        totals = z.at(size * 2 * lanes)
        check = Variable(z.zero(lanes))
        for vector in loop(vectors):
            at = 2 * pair * block - low
            load(dy, (image, 0, 1), vector * lanes, filters, length, at, block, size, z, size, lanes, check)
            transform(z, roots, radices, lanes)
            w = weights.at(vector * channels * (2 * size * lanes))
            kept = minimum(vector, 1) * lanes
            for n in loop(size // radix):
                points = last_of(z, n * radix, radices, lanes)
                for c in loop(channels):
                    for i, (a, b) in enumerate(points):
                        place = 2 * (c * size + n * radix + i) * lanes
                        u, v = w.vec(place, lanes), w.vec(place + lanes, lanes)
                        real, imaginary = (totals.vec(place + lanes * j, lanes, count=kept) for j in range(2))
                        totals.put(place, fma(-b, v, fma(a, u, real)))
                        totals.put(place + lanes, fma(b, u, fma(a, v, imaginary)))
        for r in loop(channels * 2 * size // lanes):
            rows = [totals.vec((r * lanes + i) * lanes, lanes) for i in range(lanes)]
            sums.put(piece * channels * (2 * size) + r * lanes, sums_of_vectors(rows, lanes))
        checks.put(piece * lanes, check.get())

    return text, dict.fromkeys(("weights", "sums", "space", "checks", "roots"), wide) | {"dy": dtype}


@kernel
def cells_of_sums(dtype, lanes, radices):
    """dx from its spectra. A piece is a vector of (image, pair, channel, phase); ``first`` is the earliest valid point."""
    size, wide, radix = math.prod(radices), wide_type(dtype), radices[-1]

    def text(
        piece, slot, sums, dx, space, roots, total, channels, stride, pairs, block, first, before, length, dx_image, dx_channel,
        dx_cell, slot_size,
    ):  # fmt: skip
        z = space.at(slot * slot_size)
        for r in loop(2 * size // lanes):
            rows = []
            for lane in range(lanes):
                number = minimum(piece * lanes + lane, total - 1)
                rows.append(sums.vec(number * (2 * size) + r * lanes, lanes))
            for i, row in enumerate(transpose(rows)):
                z.put((r * lanes + i) * lanes, row)
        for n in loop(size // radix):
            points = [
                (z.vec(2 * (n * radix + i) * lanes, lanes), z.vec((2 * (n * radix + i) + 1) * lanes, lanes))
                for i in range(radix)
            ]
            first_of_inverse(z, n * radix, points, lanes)
        inverse(z, roots, radices, lanes)
        for lane in loop(minimum(lanes, total - piece * lanes)):
            number = piece * lanes + lane
            phase, rest = number % stride, number // stride
            channel, rest = rest % channels, rest // channels
            pair, image = rest % pairs, rest // pairs
            target = dx.at(image * dx_image + channel * dx_channel)
            for part in range(2):
                at = (2 * pair + part) * block * stride + phase - before  # of the first cell, in dx
                skipped = within(0 - at - 1, stride)  # the first may lie before dx
                for m in loop(minimum(block, (length - at + (stride - 1)) // stride) - skipped):
                    i = m + skipped
                    target[(at + i * stride) * dx_cell] = z[((first + i) * 2 + part) * lanes + lane]

    return text, dict.fromkeys(("sums", "space", "roots"), wide) | {"dx": dtype}


@kernel
def products_of_blocks(dtype, lanes, radices, layout):
    """``sums[group][vector][part][channel][point][2][lane]``: spectra of dw. A piece is (group, vector, part of the pairs)."""
    size, wide, radix = math.prod(radices), wide_type(dtype), radices[-1]
    load = blocks_last if layout == "last" else blocks_first

    def text(
        piece, slot, dy, blocks, sums, bias, space, checks, roots, groups, channels, filters, vectors, parts, images, pairs,
        block, length, slot_size,
    ):  # fmt: skip
        part, rest = piece % parts, piece // parts
        vector, group = rest % vectors, rest // vectors
        z = space.at(slot * slot_size)
        check, total = Variable(z.zero(lanes)), Variable(z.zero(lanes))
        totals = sums.at(piece * channels * (2 * size * lanes))
        begin = part * (images * pairs) // parts
        for k in loop((part + 1) * (images * pairs) // parts - begin):
            number = begin + k
            pair, image = number % pairs, number // pairs
            at, f = 2 * pair * block, vector * lanes
            load(dy, (image, group, groups), f, filters, length, at, block, block, z, size, lanes, check)
            transform(z, roots, radices, lanes)
            x = blocks.at((number * groups + group) * channels * (2 * size))
            kept = minimum(k, 1) * lanes
            for n in loop(size // radix):
                points = last_of(z, n * radix, radices, lanes)
                for _ in loop(within(n, 1)):  # frequency 0: the sum of both blocks
                    total.set(total.get() + (points[0][0] + points[0][1]))
                for c in loop(channels):
                    for i, point in enumerate(points):
                        at = c * size + n * radix + i
                        sum_ = [Variable(totals.vec((2 * at + j) * lanes, lanes, count=kept)) for j in range(2)]
                        _add_conjugate(sum_, point, [splat(x[2 * at + j], lanes) for j in range(2)])
                        for j in range(2):
                            totals.put((2 * at + j) * lanes, sum_[j].get())
        checks.put(piece * lanes, check.get())
        bias.put(piece * lanes, total.get())

    return text, dict.fromkeys(("blocks", "sums", "bias", "space", "checks", "roots"), wide) | {"dy": dtype}


@kernel
def taps_of_sums(dtype, lanes, radices, stride):
    """dw from the spectra of all parts. A piece is (group, vector, channel)."""
    size, wide, radix = math.prod(radices), wide_type(dtype), radices[-1]

    def text(piece, slot, sums, dw, space, roots, channels, filters, vectors, parts, taps, slot_size):
        channel, rest = piece % channels, piece // channels
        vector, group = rest % vectors, rest // vectors
        z = space.at(slot * slot_size)
        cells = z.at(size * 2 * lanes)
        for phase in loop(stride):
            first = (rest * parts * channels + channel) * stride + phase
            for n in loop(size // radix):
                totals = [[Variable(z.zero(lanes)) for _ in range(2)] for _ in range(radix)]
                for part in loop(parts):
                    at = (first + part * channels * stride) * size + n * radix
                    for i, total in enumerate(totals):
                        for j in range(2):
                            total[j].set(total[j].get() + sums.vec((2 * (at + i) + j) * lanes, lanes))
                first_of_inverse(z, n * radix, [(real.get(), imaginary.get()) for real, imaginary in totals], lanes)
            inverse(z, roots, radices, lanes)
            for n in loop((taps - phase + (stride - 1)) // stride):
                cells.put((n * stride + phase) * lanes, z.vec(2 * n * lanes, lanes))
        f = vector * lanes
        target = dw.at(((group * filters + f) * channels + channel) * taps)
        put_rows(target, channels * taps, lambda k: cells.vec(k * lanes, lanes), taps, filters - f, lanes)

    return text, dict.fromkeys(("sums", "space", "roots"), wide) | {"dw": dtype}


def _add_conjugate(total, a, b):
    """``total += conjugate(a) * b`` on points."""
    real, imaginary = total
    real.set(fma(a[1], b[1], fma(a[0], b[0], real.get())))
    imaginary.set(fma(-a[1], b[0], fma(a[0], b[1], imaginary.get())))


def put_rows(target, pitch, cell, count, rows, lanes):
    """Write the first ``count`` cells of so many rows, ``pitch`` apart; ``cell(k)`` has cell k of all of them in its lanes."""
    for q in loop((count + (lanes - 1)) // lanes):
        for i, row in enumerate(transpose([cell(q * lanes + k) for k in range(lanes)])):
            target.put(i * pitch + q * lanes, row, count=(count - q * lanes) * within(i, rows))


def transformed(z, roots, radices, lanes):
    """All passes."""
    transform(z, roots, radices, lanes)
    for n in loop(math.prod(radices) // radices[-1]):
        write(z, n * radices[-1], 1, last_of(z, n * radices[-1], radices, lanes), lanes)


def blocks_first(dy, place, first, filters, length, at, block, most, z, size, lanes, check):
    """Two blocks of (N, F, output), ``block`` apart, as the points of neighbouring filters: at most so many cells of each.

    Lanes past the last filter repeat it.
    """
    image, group, groups = place
    sources = [
        dy.at(((image * groups + group) * filters + minimum(first + lane, filters - 1)) * length)
        for lane in range(lanes)
    ]
    for part in range(2):
        here = at + part * block
        begin, end = maximum(0 - here, 0), minimum(length - here, most)
        for q in loop(size // lanes):
            cell = q * lanes
            inside = within(cell - begin, end - lanes + 1 - begin)
            for _ in loop(inside):
                _put_columns([source.vec(here + cell, lanes) for source in sources], z, cell, part, lanes, check)
            for _ in loop(1 - inside):
                rows = [source.vec(here + cell, lanes, count=end - cell, start=begin - cell) for source in sources]
                _put_columns(rows, z, cell, part, lanes, check)


def _put_columns(rows, z, cell, part, lanes, check):
    for i, column in enumerate(transpose(rows)):
        check.set(fma(column, z.zero(lanes), check.get()))
        z.put(((cell + i) * 2 + part) * lanes, column)


def blocks_last(dy, place, first, filters, length, at, block, most, z, size, lanes, check):
    """As :func:`blocks_first`, of (N, output, F); zeros in lanes past the last filter."""
    image, group, groups = place
    for part in range(2):
        here = at + part * block
        source = dy.at(((image * length + here) * groups + group) * filters + first)
        begin, end = maximum(0 - here, 0), minimum(length - here, most)
        for cell in loop(size):
            used = (filters - first) * within(cell - begin, end - begin)
            column = source.vec(cell * (groups * filters), lanes, count=used)
            check.set(fma(column, z.zero(lanes), check.get()))
            z.put((cell * 2 + part) * lanes, column)
