"""Winograd's kernels for groups of a few channels: a vector holds the same cell of as many tiles, of one channel.

A row of tiles is read as four vectors, of one line of the image, or of two or four lines from as many rows of tiles, and taken
apart into the cells 0 to 3 of each tile; cells 4 and 5 are the next tile's first. So nothing is transposed, and a product
needs no lane of another: the filters' numbers are spread over the lanes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from konv.engine.compile import kernel
from konv.engine.machine import wide_type
from konv.engine.packing import sums_of_vectors
from konv.engine.simd import Variable, bits, deinterleave, fma, interleave, loop, minimum, shuffle, splat, within
from konv.engine.winograd.winograd_formulas import Scheme, both_axes
from konv.engine.winograd.winograd_tiles import constants, points_of_tile

SCHEME = Scheme(4, 3)
SCHEMES = SCHEME, SCHEME
OUTPUTS, TAPS, SPAN, POINTS = SCHEME.outputs, SCHEME.taps, SCHEME.points, SCHEME.points**2
KERNEL = TAPS * TAPS
FILTERS = 4  # multiplied together


class Tiles(NamedTuple):
    """Which tiles a vector holds: of each row of tiles (whether it exists, image, row), their first column, how many."""

    rows: list[tuple[Any, Any, Any]]
    first: Any
    count: Any


def tiles_of(vector, rows, tile_rows, all_rows, column_blocks, block_columns, tile_columns):
    """The tiles of a vector."""
    row, first = vector // column_blocks * rows, vector % column_blocks * block_columns
    places = [(within(row + r, all_rows), (row + r) // tile_rows, (row + r) % tile_rows) for r in range(rows)]
    return Tiles(places, first, minimum(block_columns, tile_columns - first))


@kernel
def winograd_of_tiles(dtype, out, lanes, rows, vectors, order):
    """The convolution of a group, in some blocks of vectors of tiles, which are a piece.

    ``rows`` of tiles lie in a vector, ``vectors`` are multiplied at once; ``order`` of the taps: "taps" or "flipped taps".
    """

    def text(
        piece, slot, x, w, bias, y, slots, slot_size, sums_at, filters_at, groups, channels, filters,
        x_height, x_width, pad_height, pad_width, out_height, out_width, tile_rows, tile_columns, all_rows, column_blocks,
        block_columns, all_vectors, piece_blocks, parts, filter_step, channel_step, input_plane, sums_plane,
    ):  # fmt: skip
        group, part = piece // parts, piece % parts
        inputs = slots.at(slot * slot_size)
        sums, taps = inputs.at(sums_at), inputs.at(filters_at)
        number, pairs = constants(slots.zero(lanes)), channels * filters
        _filters_to_points(w.at(group * pairs * KERNEL), taps, pairs, lanes, order, number)
        first_block = part * piece_blocks
        for b in loop(minimum(piece_blocks, (all_vectors + (vectors - 1)) // vectors - first_block)):
            first_vector = (first_block + b) * vectors
            for v in loop(vectors):
                tiles = tiles_of(
                    first_vector + v, rows, tile_rows, all_rows, column_blocks, block_columns, tile_columns
                )
                for c in loop(channels):
                    plane = (groups * channels, group * channels + c)
                    cells = _cells(x, tiles, plane, (x_height, x_width), (pad_height, pad_width), SPAN, lanes)
                    values = both_axes([SCHEME.inputs] * 2, cells, number)
                    for i, value in enumerate(value for row in values for value in row):
                        inputs.put(i * input_plane + (c * vectors + v) * lanes, value)
            for point in loop(POINTS):
                for f in loop(filters // FILTERS):
                    turn = point * (filters // FILTERS) + f
                    for _ in loop(within(turn, filters * vectors)):  # the outputs' lines, which another core may hold
                        tiles = tiles_of(
                            first_vector + turn % vectors,
                            rows,
                            tile_rows,
                            all_rows,
                            column_blocks,
                            block_columns,
                            tile_columns,
                        )
                        _fetch(
                            y,
                            tiles,
                            (groups * filters, group * filters + turn // vectors),
                            (out_height, out_width),
                            lanes,
                        )
                    to = sums.at(point * sums_plane + f * (FILTERS * vectors * lanes))
                    own = taps.at(point * pairs + f * FILTERS * filter_step)
                    _multiply(
                        inputs.at(point * input_plane), own, to, channels, filter_step, channel_step, vectors, lanes
                    )
            for v in loop(vectors):
                tiles = tiles_of(
                    first_vector + v, rows, tile_rows, all_rows, column_blocks, block_columns, tile_columns
                )
                for f in loop(filters):
                    values = points_of_tile(sums, lanes, SCHEMES, (f * vectors + v) * lanes, sums_plane)
                    start = splat(bias[group * filters + f], lanes)
                    plane = (groups * filters, group * filters + f)
                    outputs = [
                        [value + start for value in row] for row in both_axes([SCHEME.output] * 2, values, number)
                    ]
                    _write(y, tiles, plane, (out_height, out_width), outputs, lanes)

    wide = wide_type(dtype)
    return text, dict.fromkeys(("w", "bias", "slots"), wide) | {"x": dtype, "y": out}


@kernel
def winograd_of_small_weights(dtype, out, lanes, rows):
    """dw and db of a group, which is a piece: blocks of ``vectors`` of tiles, whose sums are added to those in the workspace."""

    def text(
        piece, slot, x, dy, dw, db, slots, slot_size, upstream_at, sums_at, bias_at, groups, channels, filters,
        x_height, x_width, pad_height, pad_width, out_height, out_width, tile_rows, tile_columns, all_rows, column_blocks,
        block_columns, all_vectors, vectors, input_plane, upstream_plane,
    ):  # fmt: skip
        inputs = slots.at(slot * slot_size)
        upstream, sums, biases = inputs.at(upstream_at), inputs.at(sums_at), inputs.at(bias_at)
        number, pairs = constants(slots.zero(lanes)), channels * filters
        for f in loop(filters):
            biases.put(f * lanes, slots.zero(lanes))
        for b in loop((all_vectors + (vectors - 1)) // vectors):
            own = minimum(vectors, all_vectors - b * vectors)
            for v in loop(own):
                tiles = tiles_of(b * vectors + v, rows, tile_rows, all_rows, column_blocks, block_columns, tile_columns)
                for c in loop(channels):
                    plane = (groups * channels, piece * channels + c)
                    cells = _cells(x, tiles, plane, (x_height, x_width), (pad_height, pad_width), SPAN, lanes)
                    values = both_axes([SCHEME.inputs] * 2, cells, number)
                    for i, value in enumerate(value for row in values for value in row):
                        inputs.put(i * input_plane + (c * vectors + v) * lanes, value)
                for f in loop(filters):
                    plane = (groups * filters, piece * filters + f)
                    cells = _cells(dy, tiles, plane, (out_height, out_width), (0, 0), OUTPUTS, lanes)
                    lines = [(row[0] + row[1]) + (row[2] + row[3]) for row in cells]
                    total = (lines[0] + lines[1]) + (lines[2] + lines[3])
                    biases.put(f * lanes, biases.vec(f * lanes, lanes) + total)
                    values = both_axes([SCHEME.upstream] * 2, cells, number)
                    for i, value in enumerate(value for row in values for value in row):
                        upstream.put(i * upstream_plane + (f * vectors + v) * lanes, value)
            kept = minimum(b, 1) * lanes
            for point in loop(POINTS):
                for f in loop(filters // FILTERS):
                    for c in loop(channels // FILTERS):
                        _outer(
                            upstream.at(point * upstream_plane + f * FILTERS * vectors * lanes),
                            inputs.at(point * input_plane + c * FILTERS * vectors * lanes),
                            sums.at((point * pairs + f * FILTERS * channels + c * FILTERS) * lanes),
                            own, vectors, channels, kept, lanes,
                        )  # fmt: skip
        to = dw.at(piece * pairs * KERNEL)
        for q in loop(pairs // lanes):
            values = []
            for point in range(POINTS):
                at = sums.at((point * pairs + q * lanes) * lanes)
                values.append(sums_of_vectors([at.vec(i * lanes, lanes) for i in range(lanes)], lanes))
            square = [values[i * SPAN : (i + 1) * SPAN] for i in range(SPAN)]
            for i, value in enumerate(v for row in both_axes([SCHEME.weights] * 2, square, number) for v in row):
                to.scatter(q * lanes * KERNEL + i, KERNEL, value, lanes)
        for f in loop(filters):
            total = sums_of_vectors([biases.vec(f * lanes, lanes)] * lanes, lanes)
            db.put(piece * filters + f, total, count=1)

    wide = wide_type(dtype)
    return text, {"x": dtype, "dy": dtype, "dw": out, "db": out, "slots": wide}


def _cells(array, tiles, plane, shape, pad, span, lanes):
    """``cells[i][k]``: cell (i, k) of every tile, zero outside the image. ``plane``: (all channels, which)."""
    rows, (height, width), (channels, channel) = len(tiles.rows), shape, plane
    left = tiles.first * OUTPUTS - pad[1]
    # Of a gradient's tiles only those that the vector holds: the next ones are another vector's, and would be summed twice.
    end = width - left if span > OUTPUTS else minimum(width - left, tiles.count * OUTPUTS)
    wanted, share = bits(0 - left, end), OUTPUTS // rows
    each = lanes // rows
    following = [lane + 1 if (lane + 1) % each else lanes for lane in range(lanes)]
    cells = []
    for i in range(span):
        vectors = []
        for exists, image, row in tiles.rows:
            h = row * OUTPUTS - pad[0] + i
            line = array.at((image * channels * height + h) * width + left).at(channel * (height * width))
            inside = wanted * (exists * within(h, height))
            vectors += [line.vec(k * lanes, lanes, bits=inside >> (k * lanes)) for k in range(share)]
        phases = deinterleave(vectors, lanes)
        zero = array.zero(lanes)
        cells.append(phases + [shuffle(phases[k], zero, following) for k in range(span - OUTPUTS)])
    return cells


def _fetch(array, tiles, plane, shape, lanes):
    """Ask for the lines of a row of tiles, which are written later."""
    (height, width), (channels, channel), share = shape, plane, OUTPUTS // len(tiles.rows)
    for i in range(OUTPUTS):
        for _, image, row in tiles.rows:
            place = ((image * channels + channel) * height + row * OUTPUTS + i) * width + tiles.first * OUTPUTS
            for k in range(share):
                array.prefetch(place + k * lanes, write=True, later=True)


def _write(array, tiles, plane, shape, outputs, lanes):
    """The outputs of every tile to where they exist."""
    rows, (height, width), (channels, channel) = len(tiles.rows), shape, plane
    left, share = tiles.first * OUTPUTS, OUTPUTS // rows
    own = minimum(tiles.count * OUTPUTS, width - left)
    for i, row_of_cells in enumerate(outputs):
        vectors = interleave(row_of_cells, lanes)
        for r, (exists, image, row) in enumerate(tiles.rows):
            h = row * OUTPUTS + i
            line = array.at(((image * channels + channel) * height + h) * width + left)
            count = own * exists * within(h, height)
            for k in range(share):
                line.put(k * lanes, vectors[r * share + k], count=count - k * lanes)


def _filters_to_points(w, points, pairs, lanes, order, number):
    """``points[point, pair] = G w G^T`` for every pair of a filter and a channel."""
    for q in loop(pairs // lanes):
        taps = [w.gather(q * lanes * KERNEL + k, KERNEL, lanes, lanes) for k in range(KERNEL)]
        if order == "flipped taps":
            taps.reverse()
        square = [taps[i * TAPS : (i + 1) * TAPS] for i in range(TAPS)]
        for i, value in enumerate(v for row in both_axes([SCHEME.filters] * 2, square, number) for v in row):
            points.put(i * pairs + q * lanes, value)


def _multiply(values, taps, sums, channels, filter_step, channel_step, vectors, lanes):
    """``sums[f, v] = sum over c of values[c, v] * taps[f, c]`` for some filters, and vectors of tiles."""
    totals = [[Variable(sums.zero(lanes)) for _ in range(vectors)] for _ in range(FILTERS)]
    for c in loop(channels):
        row = [values.vec((c * vectors + v) * lanes, lanes) for v in range(vectors)]
        for f, own in enumerate(totals):
            factor = splat(taps[f * filter_step + c * channel_step], lanes)
            for total, value in zip(own, row):
                total.set(fma(factor, value, total.get()))
    for f, own in enumerate(totals):
        for v, total in enumerate(own):
            sums.put((f * vectors + v) * lanes, total.get())


def _outer(upstream, inputs, sums, own, vectors, channels, kept, lanes):
    """``sums[f, c] (+)= sum over v of upstream[f, v] * inputs[c, v]``; added to what is there where ``kept`` is not 0."""
    totals = [[Variable(sums.zero(lanes)) for _ in range(FILTERS)] for _ in range(FILTERS)]
    for v in loop(own):
        values = [inputs.vec((c * vectors + v) * lanes, lanes) for c in range(FILTERS)]
        for f, row in enumerate(totals):
            gradient = upstream.vec((f * vectors + v) * lanes, lanes)
            for total, value in zip(row, values):
                total.set(fma(gradient, value, total.get()))
    for f, row in enumerate(totals):
        for c, total in enumerate(row):
            at = (f * channels + c) * lanes
            sums.put(at, total.get() + sums.vec(at, lanes, count=kept))
