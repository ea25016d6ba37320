"""Kernels for depthwise layers on small planes, channels first: a vector is one pixel of neighbouring channels.

The planes of ``lanes`` channels are transposed into the slot's workspace, where every pixel is one aligned vector, and their
results back. So no lane is empty however long a row is, and taps in the padding are left out: of 7 x 7 on 7 x 7 pixels 27 of
49 products are left, where rows as vectors compute 42. In and out cost 8 shuffles for a vector of results.
A row's sums and a row of the kernel stay in registers: a pixel is loaded once for all the columns of the kernel.
"""

from __future__ import annotations

from typing import Any

from konv.engine.compile import kernel
from konv.engine.machine import wide_type
from konv.engine.simd import Variable, fma, loop, maximum, minimum, pinned, transpose, within


@kernel
def correlate_small_planes(x_dtype, y_dtype, lanes, taps, x_width, out_width, pad, backwards):
    """Forward, or with ``backwards`` the input gradient: taps in reverse order. A piece is (some images, ``lanes`` channels).

    A kernel's row of ``taps`` begins ``pad`` cells before the first of ``x_width``.
    """

    def text(
        piece, slot, x, w, bias, y, slots, slot_size, y_at, w_at,
        images, piece_images, channels, x_height, out_height, taps_high, pad_high,
    ):  # fmt: skip
        blocks = (channels + (lanes - 1)) // lanes
        image, channel = piece // blocks * piece_images, piece % blocks * lanes
        pixels = slots.at(slot * slot_size)
        results, factors = pixels.at(y_at), pixels.at(w_at)
        start = bias.vec(channel, lanes, count=channels - channel)
        plane_in(w, channel, channels, taps_high * taps, taps_high * taps, factors, lanes)
        for i in loop(minimum(piece_images, images - image)):
            first = (image + i) * channels
            plane_in(x, first + channel, first + channels, x_height * x_width, x_height * x_width, pixels, lanes)
            for row in loop(out_height):
                # of the kernel those that lie inside the plane
                low = maximum(pad_high - row, 0)
                high = minimum(taps_high, x_height + pad_high - row)
                for begin, end in cut(out_width, lanes):
                    sums = [Variable(start) for _ in range(begin, end)]
                    for k in loop(high - low):
                        line = pixels.at((row - pad_high + low + k) * (x_width * lanes))
                        at = taps_high - 1 - low - k if backwards else low + k
                        kernel_row = [factors.vec((at * taps + t) * lanes, lanes) for t in range(taps)]
                        if backwards:
                            kernel_row.reverse()
                        for cell in range(max(0, begin - pad), min(x_width, end - 1 - pad + taps)):
                            pixel = line.vec(cell * lanes, lanes)
                            for t, factor in enumerate(kernel_row):
                                if begin <= cell + pad - t < end:
                                    total = sums[cell + pad - t - begin]
                                    total.set(pinned(fma(factor, pixel, total.get())))
                    for q, total in enumerate(sums):
                        results.put((row * out_width + begin + q) * lanes, total.get())
            plane_out(
                results, y, first + channel, first + channels, out_height * out_width, out_height * out_width, lanes
            )

    wide = wide_type(x_dtype)
    return text, {"x": x_dtype, "w": wide, "bias": wide, "y": y_dtype, "slots": wide}


@kernel
def accumulate_small_planes(dtype, lanes, taps, x_width, out_width, pad):
    """``sums[part, channel, tap] = sum of dy * x``, ``biases[part, channel] = sum of dy``. A piece is (part, ``lanes`` channels).

    The sums of ``chunk_rows`` of dy are added to the others in the slot's workspace: so the error stays small.
    """

    def text(
        piece, slot, x, dy, sums, biases, slots, slot_size, dy_at, sums_at,
        images, part_images, channels, x_height, out_height, taps_high, pad_high, chunk_rows,
    ):  # fmt: skip
        blocks = (channels + (lanes - 1)) // lanes
        part, channel = piece // blocks, piece % blocks * lanes
        image = part * part_images
        pixels = slots.at(slot * slot_size)
        upstream, totals = pixels.at(dy_at), pixels.at(sums_at)
        for k in loop(taps_high * taps):
            totals.put(k * lanes, totals.zero(lanes))
        bias = Variable(totals.zero(lanes))
        for i in loop(minimum(part_images, images - image)):
            first = (image + i) * channels
            plane_in(x, first + channel, first + channels, x_height * x_width, x_height * x_width, pixels, lanes)
            plane_in(
                dy, first + channel, first + channels, out_height * out_width, out_height * out_width, upstream, lanes
            )
            own = Variable(totals.zero(lanes))
            for p in loop(out_height * out_width):
                own.set(own.get() + upstream.vec(p * lanes, lanes))
            bias.set(bias.get() + own.get())
            for k in loop(taps_high):
                low = maximum(pad_high - k, 0)  # of the rows of dy those that meet a row of x
                high = minimum(out_height, x_height + pad_high - k)
                for c in loop((high - low + (chunk_rows - 1)) // chunk_rows):
                    start = low + c * chunk_rows
                    products = [Variable(totals.zero(lanes)) for _ in range(taps)]
                    for r in loop(minimum(chunk_rows, high - start)):
                        line = pixels.at((start + r + k - pad_high) * (x_width * lanes))
                        dy_line = upstream.at((start + r) * (out_width * lanes))
                        for q in range(out_width):
                            gradient = dy_line.vec(q * lanes, lanes)
                            for t, product in enumerate(products):
                                if 0 <= q + t - pad < x_width:
                                    pixel = line.vec((q + t - pad) * lanes, lanes)
                                    product.set(pinned(fma(gradient, pixel, product.get())))
                    for t, product in enumerate(products):
                        at = (k * taps + t) * lanes
                        totals.put(at, totals.vec(at, lanes) + product.get())
        plane_out(
            totals, sums, part * channels + channel, (part + 1) * channels, taps_high * taps, taps_high * taps, lanes
        )
        biases.put(part * channels + channel, bias.get(), channels - channel)

    wide = wide_type(dtype)
    return text, {"x": dtype, "dy": dtype, "sums": wide, "biases": wide, "slots": wide}


def cut(width, lanes):
    """(first, end) of the parts of a row whose sums are in registers together."""
    most = 14 if lanes >= 8 else 7
    parts = -(-width // most)
    return [(width * i // parts, width * (i + 1) // parts) for i in range(parts)]


def plane_in(
    array: Any, first: Any, end: Any, plane: Any, cells: Any, to: Any, lanes: int, ahead: Any = None, order: Any = None
) -> None:
    """``to[cell, lane] = array[first + lane, cell]``, ``plane`` from row to row; for ``end`` and later rows the last again.

    ``order`` : which row is in a lane, if not its own; ``ahead`` : so many cells on are asked for.
    Where a vector is not full the last overlaps the one before.
    """
    rows = [array.at(minimum(first + i, end - 1) * plane) for i in order or range(lanes)]

    def block(at, count=None):
        if ahead is not None:
            for row in rows:
                row.prefetch(at + ahead)
        for k, column in enumerate(transpose([row.vec(at, lanes, count=count) for row in rows])):
            to.put((at + k) * lanes, column)

    whole = within(lanes - 1, cells)
    for _ in loop(whole):
        for q in loop((cells + (lanes - 1)) // lanes):
            block(minimum(q * lanes, cells - lanes))
    for _ in loop(1 - whole):
        block(0, cells)


def plane_out(
    source: Any,
    array: Any,
    first: Any,
    end: Any,
    plane: Any,
    cells: Any,
    lanes: int,
    ahead: Any = None,
    order: Any = None,
) -> None:
    """``array[first + lane, cell] = source[cell, lane]``, ``plane`` from row to row, for rows before ``end``; see above."""

    def block(at, masked):
        if ahead is not None:
            for i in range(lanes):
                array.prefetch((first + i) * plane + at + ahead, write=True)
        rows = transpose([source.vec((at + k) * lanes, lanes) for k in range(lanes)])
        for i, row in zip(order or range(lanes), rows):
            count = (cells - at) * within(first + i, end) if masked else None
            array.put((first + i) * plane + at, row, count)

    blocks, whole = (cells + (lanes - 1)) // lanes, within(lanes - 1, cells) * within(first + (lanes - 1), end)
    for q in loop(blocks * whole):  # without masks 0.55 to 0.8 of the time
        block(minimum(q * lanes, cells - lanes), False)
    for q in loop(blocks * (1 - whole)):
        block(q * lanes, True)
