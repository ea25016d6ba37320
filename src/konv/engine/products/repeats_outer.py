"""The weight gradient of 1-D windows side by side and few filters; see :mod:`konv.engine.products.repeats_kernels`.

A block of channels and of a unit stays in L2, the spread dy of one vector of a period in L1, while the sums run over it. One
channel's sums of a whole period at once (each number of x meets four numbers of dy, each of them one of x) took 1.8 times as
long; all vectors' spread dy from L2, 1.2; the next channels asked for vector by vector, not in the order of memory, 1.4 on
8 x 128 x 16384. There, rows 64 KiB apart share the sets of L2; few channels at a time against that, all in a piece, 1.1.
"""

from __future__ import annotations

import math

from konv.engine.compile import kernel
from konv.engine.machine import wide_type
from konv.engine.products.repeats_kernels import spread_window
from konv.engine.simd import Variable, fma, loop, minimum, within


@kernel
def sum_repeats(dtype, lanes, filters, channels_at_once, taps):
    """A piece is (part of the units, block of channels); a unit is a block of images, or of a row's periods.

    dy of a unit is spread over the cells of its windows. Vectors that lie a whole number of periods apart are summed in
    registers, of some channels and all filters: ``offsets[v, k]`` is where in x the k-th of those lies that begin with vector
    v of a period. Meanwhile the unit after is asked for, in the order of memory: ``ahead[v, group of channels, k]``. What does
    not fill a vector at a row's end is summed for itself.
    """
    wide, most = wide_type(dtype), filters * channels_at_once
    period = math.lcm(lanes, taps)
    vectors, windows = period // lanes, period // taps

    def text(
        piece, slot, dy, x, sums, workspace, offsets, ahead, slot_size, parts, units, images, block_images, channels,
        block_channels, channel_blocks, row, outputs, most_vectors, block_periods, row_blocks,
    ):  # fmt: skip
        part, first_channel = piece // channel_blocks, piece % channel_blocks * block_channels
        used_channels = minimum(block_channels, channels - first_channel)
        groups = (used_channels + (channels_at_once - 1)) // channels_at_once
        totals = workspace.at(slot * slot_size)  # [vector of a period, group of channels, channel, filter]
        lines = totals.at(groups * (vectors + 1) * most * lanes)
        spread = lines.at(most * period)  # [vector of a period, those in x, filter]
        ends = spread.at(vectors * most_vectors * filters * lanes)  # [image, filter]
        for i in loop(groups * (vectors + 1) * most):
            totals.put(i * lanes, totals.zero(lanes))
        whole, rest = outputs * taps // lanes, outputs * taps % lanes
        first_unit, end = part * units // parts, (part + 1) * units // parts
        for u in loop(end - first_unit):
            row_block, first_image = (first_unit + u) % row_blocks, (first_unit + u) // row_blocks * block_images
            used, first_period = minimum(block_images, images - first_image), row_block * block_periods
            short = (1 - minimum(row_blocks - 1 - row_block, 1)) * minimum(rest, 1)
            for v in range(vectors):
                periods = minimum(block_periods, (whole - v + (vectors - 1)) // vectors - first_period)
                ending = short * within(v, whole % vectors + 1) * within(whole % vectors, v + 1)
                for z in loop(used):
                    for i in range(filters):
                        line = dy.at(((first_image + z) * filters + i) * outputs)
                        for p in loop(periods):
                            begin = (first_period + p) * windows
                            target = spread.at(((v * most_vectors + z * periods + p) * filters + i) * lanes)
                            target.put(0, spread_window(line.at(begin), v * lanes, outputs - begin, taps, lanes))
                        for _ in loop(ending):
                            begin = whole // vectors * windows
                            numbers = spread_window(line.at(begin), v * lanes, outputs - begin, taps, lanes)
                            ends.put((z * filters + i) * lanes, numbers)
            here = x.at((first_image * channels + first_channel) * row + first_period * period)
            unit = minimum(first_unit + u + 1, end - 1)
            image, next_period = unit // row_blocks * block_images, unit % row_blocks * block_periods
            upcoming = x.at((image * channels + first_channel) * row + next_period * period)
            for v in loop(vectors):
                periods = minimum(block_periods, (whole - v + (vectors - 1)) // vectors - first_period)
                factors = spread.at(v * most_vectors * filters * lanes)
                for g in loop(groups):
                    sources = _rows(here, g, channels_at_once, used_channels, row)
                    kept = totals.at((v * groups + g) * most * lanes)
                    added = [Variable(kept.vec(n * lanes, lanes)) for n in range(most)]
                    for k in loop(used * periods):
                        at, next_at = offsets[v * most_vectors + k], ahead[(v * groups + g) * most_vectors + k]
                        _add_products(sources, at, None, factors.at(k * filters * lanes), added, filters, lanes)
                        for r in range(channels_at_once):
                            upcoming.prefetch(next_at + r * lanes, later=True)
                    for n, total in enumerate(added):
                        kept.put(n * lanes, total.get())
            for g in loop(groups * short):
                sources = _rows(here, g, channels_at_once, used_channels, row)
                kept = totals.at((vectors * groups + g) * most * lanes)
                added = [Variable(kept.vec(n * lanes, lanes)) for n in range(most)]
                for z in loop(used):
                    at = z * channels * row + whole * lanes - first_period * period
                    _add_products(sources, at, rest, ends.at(z * filters * lanes), added, filters, lanes)
                for n, total in enumerate(added):
                    kept.put(n * lanes, total.get())
        for g in loop(groups):
            for v in loop(vectors):
                for n in range(most):
                    lines.put(n * period + v * lanes, totals.vec(((v * groups + g) * most + n) * lanes, lanes))
            for n in range(most):
                ending = lines.at(n * period + whole % vectors * lanes)
                ending.put(0, ending.vec(0, lanes) + totals.vec(((vectors * groups + g) * most + n) * lanes, lanes))
            for r in range(channels_at_once):
                c = first_channel + minimum(g * channels_at_once + r, used_channels - 1)
                for i in range(filters):
                    line = lines.at((r * filters + i) * period)
                    for q in range(0, taps, lanes):
                        total = line.vec(q, lanes, count=taps - q)
                        for j in range(1, windows):
                            total = total + line.vec(j * taps + q, lanes, count=taps - q)
                        sums.put(((part * filters + i) * channels + c) * taps + q, total, count=taps - q)

    return text, {"dy": dtype, "x": dtype, "sums": wide, "workspace": wide} | dict.fromkeys(
        ("offsets", "ahead"), "int64"
    )


def _rows(x, group, at_once, channels, row):
    """The rows of a group of channels; after the last it is repeated."""
    return [x.at(minimum(group * at_once + r, channels - 1) * row) for r in range(at_once)]


def _add_products(sources, at, count, factors, sums, filters, lanes):
    """``sums[r, i] += sources[r][at] * factors[i]``."""
    numbers = [source.vec(at, lanes, count=count) for source in sources]
    for i in range(filters):
        upstream = factors.vec(i * lanes, lanes)
        for r, cells in enumerate(numbers):
            total = sums[r * filters + i]
            total.set(fma(cells, upstream, total.get()))
