"""Winograd's kernels along one axis, the rows: F(4, 3) down the columns of an image, the taps of a row as they are.

With a stride of 2 rows are taken in pairs (``PAIRS``), of a gradient ``pairs_of_gradients``, and even and odd cells apart.

A vector is a run of neighbouring cells of a row. Four rows of outputs read six rows of x, which become six rows of points; the
columns of the kernel shift them, as in any direct sum. So half of the products are left, their sums stay in registers until
they are outputs, and of x as little is transformed as was read.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

from konv.engine.compile import kernel
from konv.engine.machine import wide_type
from konv.engine.simd import Variable, bits, fma, loop, minimum, pick, pinned, splat, within
from konv.engine.winograd.winograd_formulas import Scheme
from konv.engine.winograd.winograd_tiles import constants

SCHEME, SHORT = Scheme(4, 3), Scheme(2, 3)
OUTPUTS, TAPS, POINTS = SCHEME.outputs, SCHEME.taps, SCHEME.points
KERNEL = TAPS * TAPS


class Rows(NamedTuple):
    """How rows of x become rows of outputs: ``inputs`` makes points of ``lines``, ``filters`` factors of taps.

    ``products`` : (point, factor, the sum to which their product is added)
    """

    outputs: int
    lines: int
    products: tuple[tuple[int, int, int], ...]
    inputs: Callable[..., list[Any]]
    filters: Callable[..., list[Any]]
    output: Callable[..., list[Any]]

    @property
    def points(self) -> int:
        """Of a tile."""
        return max(point for point, _, _ in self.products) + 1

    @property
    def factors(self) -> int:
        """Of a filter."""
        return max(factor for _, factor, _ in self.products) + 1

    @property
    def sums(self) -> int:
        """Of a tile."""
        return max(total for _, _, total in self.products) + 1


def of_scheme(scheme: Scheme) -> Rows:
    """Each point has a factor and a sum of its own."""
    products = tuple((p, p, p) for p in range(scheme.points))
    return Rows(scheme.outputs, scheme.points, products, scheme.inputs, scheme.filters, scheme.output)


# Two rows of outputs of stride 2, y = u a + v b + w c and y' = u c + v d + w e, are five products, not six:
#     y = [u (a - c) + v b] + [(u + w) c],   y' = [(u + w) c] + [w (e - c) + v d]
PAIRS = Rows(
    outputs=2, lines=5, products=((0, 0, 0), (1, 1, 0), (2, 2, 1), (3, 3, 2), (4, 1, 2)),
    inputs=lambda x, number: [x[0] - x[2], x[1], x[2], x[4] - x[2], x[3]],
    filters=lambda w, number: [w[0], w[1], w[0] + w[2], w[2]],
    output=lambda s, number: [s[0] + s[1], s[1] + s[2]],
)  # fmt: skip


def pairs_of_gradients(pad: int) -> Rows:
    """Two pairs of rows of dx that read rows a, b, c of dy: w a + u b and w b + u c likewise, v a and v b between them.

    Where the padding is even those between are v b and v c, and the pair's rows come first.
    """
    odd = pad % 2
    return Rows(
        outputs=4, lines=3, products=((0, 0, 0), (1, 1, 1), (2, 2, 2), (3 if odd else 1, 3, 3), (1 if odd else 3, 3, 4)),
        inputs=lambda y, number: [y[0] - y[1], y[1], y[2] - y[1], y[0 if odd else 2]],
        filters=lambda w, number: [w[2], w[0] + w[2], w[0], w[1]],
        output=lambda s, number: (
            [s[3], s[0] + s[1], s[4], s[1] + s[2]] if odd else [s[0] + s[1], s[3], s[1] + s[2], s[4]]
        ),
    )  # fmt: skip


def rows_of(down: int, up: int, pad: int) -> tuple[Rows, ...]:
    """Of strides ``down``, or of the gradient of strides ``up``; the second is for what is left of a column."""
    if up == 2:
        return (pairs_of_gradients(pad),)
    return (PAIRS,) if down == 2 else (of_scheme(SCHEME), of_scheme(SHORT))


@kernel
def winograd_of_rows(dtype, out, lanes, channels, filters, together, strides, pads, back, short, half):
    """The convolution of a group, of some rows of tiles of all images, which are a piece.

    So many filters are summed ``together``. ``strides`` : (down, up), of which one is 1; ``back`` : the input gradient, whose
    taps run the other way where ``up`` is 1, and ``pads`` with them.
    ``short`` : whether the last row of tiles has one or two rows of outputs; ``half`` : whether the last vector of a row of
    outputs is at most half full
    """
    (down, up), pairs, whole = strides, channels * filters, lanes
    tiles = rows_of(down, up, pads[0])[: 1 + short]
    most, moved = tiles[0].points, tiles[0].outputs * down // up
    filter_step, channel_step = (1, filters) if back else (channels, 1)
    asked = -(-moved * down * together // filters)  # lines of each channel of the next tiles, with each vector of sums
    # of each phase of columns of outputs the taps, the phase of columns of x that they read, and its cell for column 0
    if up == 1:
        columns = [[(t, (t - pads[1]) % down, (t - pads[1]) // down) for t in range(TAPS)]]
    else:
        meet = [[t for t in range(TAPS) if (q + pads[1] - t) % up == 0] for q in range(up)]
        columns = [[(t, 0, (q + pads[1] - t) // up) for t in met] for q, met in enumerate(meet)]
    first_line = (pads[0] + 1) // 2 - 1 if up == 2 else -pads[0]  # of x, of the first tile

    def meetings(tile):
        """What each vector of cells, of a point, is multiplied with: {(point, phase, cell): [(factor, tap, sum)]}."""
        met: dict[tuple[int, int, int], list[tuple[int, int, tuple[int, int]]]] = {}
        for (q, taps), (point, factor, total) in itertools.product(enumerate(columns), tile.products):
            for t, phase, cell in taps:
                met.setdefault((point, phase, cell), []).append((factor, t, (q, total)))
        return met

    def text(
        piece, slot, x, w, bias, y, zeros, slots, slot_size, points_at, groups,
        x_height, x_width, out_height, out_width, tile_rows, all_rows, piece_rows, parts, pitch,
    ):  # fmt: skip
        group, part = piece // parts, piece % parts
        taps = slots.at(slot * slot_size)
        points, factors_of = taps.at(points_at), [taps, taps.at(tiles[0].factors * TAPS * pairs)]
        number = constants(slots.zero(lanes))
        for tile, to in zip(tiles, factors_of):
            _filters_to_points(w.at(group * pairs * KERNEL), to, tile, pairs, lanes, back and up == 1, number)
        for i in loop(
            channels * most * down + 1
        ):  # beside the rows; the rest of their last vector is written with them
            points.put(i * pitch, slots.zero(lanes))
        first = part * piece_rows
        for q in loop(minimum(piece_rows, all_rows - first)):
            image, tile_row = (first + q) // tile_rows, (first + q) % tile_rows
            row, top = tile_row * tiles[0].outputs, tile_row * moved + first_line
            source = x.at((image * groups + group) * channels * x_height * x_width)

            def outputs_of(tile, factors, v, lanes, source=source, image=image, row=row, top=top):
                """The outputs of vector v, of each phase of columns, of a row of tiles."""
                number, cells = constants(slots.zero(lanes)), points.at((v + 1) * whole)
                for block in loop(filters // together):
                    f = block * together
                    to = y.at(
                        (((image * groups + group) * filters + f) * out_height + row) * out_width + v * (up * whole)
                    )
                    places = list(itertools.product(range(together), range(tile.outputs)))
                    for (i, r), k in itertools.product(places, range(up)):  # where the next tiles will be written
                        to.prefetch((i * out_height + r + tile.outputs) * out_width + k * lanes, write=True)
                    sums = [
                        {key: Variable(slots.zero(lanes)) for key in itertools.product(range(up), range(tile.sums))}
                        for _ in range(together)
                    ]
                    for c in loop(channels):
                        next_lines = source.at((c * x_height + top + tiles[0].lines) * x_width)
                        for i in range(asked):
                            next_lines.prefetch(((v * (filters // together) + block) * asked + i) * whole)
                        own_factors = factors.at(f * filter_step + c * channel_step)
                        for (point, phase, cell), met in meetings(tile).items():
                            value = cells.vec(((c * most + point) * down + phase) * pitch + cell, lanes)
                            for (factor, t, key), (i, own) in itertools.product(met, enumerate(sums)):
                                number_of = own_factors[(factor * TAPS + t) * pairs + i * filter_step]
                                own[key].set(pinned(fma(splat(number_of, lanes), value, own[key].get())))
                    for i, own in enumerate(sums):
                        start = splat(bias[group * filters + f + i], lanes)
                        phases = [tile.output([own[k, n].get() for n in range(tile.sums)], number) for k in range(up)]
                        for r, values in enumerate(zip(*phases)):
                            line, inside = to.at((i * out_height + r) * out_width), within(row + r, out_height)
                            count = (out_width - v * (up * whole)) * inside
                            if up == 1:
                                line.put(0, values[0] + start, count=count)
                            else:
                                line.weave(0, *values, count=count)

            is_short = within(out_height - row - 1, SHORT.outputs) if short else 0
            for tile, factors, times in zip(tiles, factors_of, (1 - is_short, is_short)):
                for _ in loop(times):
                    rows_to_points(
                        source, top, zeros, points.at(lanes), channels, tile.lines, tile.inputs, x_height, x_width,
                        most * down * pitch, down * pitch, lanes, number, stride=down, phase_step=pitch,
                    )  # fmt: skip
                    width = (out_width + (up - 1)) // up
                    vectors = width // lanes if half else (width + (lanes - 1)) // lanes
                    for v in loop(vectors):
                        outputs_of(tile, factors, v, lanes)
                    if half:
                        outputs_of(tile, factors, vectors, lanes // 2)

    wide = wide_type(dtype)
    return text, dict.fromkeys(("w", "bias", "slots"), wide) | {"x": dtype, "y": out, "zeros": dtype}


def rows_to_points(
    x, top, zeros, to, planes, lines, formula, height, width, plane_step, point_step, lanes, number, read=None,
    stride=1, phase_step=0,
):  # fmt: skip
    """``to[plane, point, cell] = formula(x[plane, top .. top + lines - 1, cell])``, zero outside; whole vectors are written.

    ``read(plane, cells)`` is shown what was read. With a stride of 2 even and odd cells lie ``phase_step`` apart.
    """
    for c in loop(planes):
        plane, points = x.at(c * height * width), to.at(c * plane_step)
        rows = [pick(within(top + i, height), plane.at((top + i) * width), zeros) for i in range(lines)]
        for v in loop((width + (stride * lanes - 1)) // (stride * lanes)):
            first = v * stride * lanes
            if stride == 1:
                phases: list[Any] = [[row.vec(first, lanes, count=width - first) for row in rows]]
            else:
                phases = list(zip(*(row.both(first, lanes, bits=bits(0, width - first)) for row in rows)))
            for phase, cells in enumerate(phases):
                if read:
                    read(c, cells)
                for p, value in enumerate(formula(cells, number)):
                    points.put(p * point_step + phase * phase_step + v * lanes, value)


def _filters_to_points(w, factors, tile, pairs, lanes, flipped, number):
    """``factors[factor, column, pair]`` of the taps of every pair of a filter and a channel."""
    for q in loop(pairs // lanes):
        taps = [w.gather(q * lanes * KERNEL + k, KERNEL, lanes, lanes) for k in range(KERNEL)]
        if flipped:
            taps.reverse()
        for t in range(TAPS):
            for i, value in enumerate(tile.filters(taps[t::TAPS], number)):
                factors.put((i * TAPS + t) * pairs + q * lanes, value)
