"""Winograd's kernels of 3 x 3 with stride 2: 256 products instead of 441 for 7 x 7 outputs.

Along an axis taps 0 and 2 read cells of one parity, tap 1 those of the other. Two taps are F(m, 2), m + 1 points for m outputs;
one tap is a product for each output. Of both axes that is (m + 1)^2 + 2 m (m + 1) + m^2 = (2 m + 1)^2 products for m x m outputs.
A filter has 6 numbers along an axis, one of each of the 5 points of F(4, 2) and the one tap: 36 *matrices* of channels by
filters, each of which multiplies the numbers of all tiles that ask for it. F(3, 2) is F(4, 2) without infinity, so tiles of 3
outputs need no other matrices. They are computed as tiles of 4, whose last numbers are written where nobody reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from konv.engine.compile import kernel
from konv.engine.machine import wide_type
from konv.engine.packing import outputs_first, outputs_last
from konv.engine.simd import fma, loop, maximum, minimum, pick, within
from konv.engine.winograd.winograd_kernels import SPREAD, Taps, add_products, turn_taps
from konv.engine.winograd.winograd_tiles import Images, Strip, Tiling, constants, read_strip

OUTPUTS, POINTS, TAPS, STRIDE = 4, 5, 3, 2
KINDS = POINTS + 1  # of an axis: its points, and the one tap
MATRICES = KINDS * KINDS
CELLS = STRIDE * OUTPUTS + 1  # that a tile reads along an axis
NEAR, FAR = Fraction(1, 2), Fraction(5, 4)  # points 0 to 3 are these and their negatives, the last is infinity
PLACE = 3  # numbers of a matrix in the table
# Of a tile's numbers along an axis: which matrix, and which of the tile's in a line of it.
NUMBERS = [(point, 0) for point in range(POINTS)] + [(POINTS, k) for k in range(OUTPUTS)]
LAST = ((POINTS - 1, 0), (POINTS, OUTPUTS - 1))  # those that a tile of 3 outputs lacks
Number = Callable[..., Any]


def inputs(cells: Sequence[Any], number: Number) -> list[Any]:
    """5 cells to points: to the coefficients of polynomials that are 1 at one of them, 0 at the others; of their product."""
    near, far = NEAR**2, FAR**2
    points = []
    for point, square, other in ((NEAR, near, far), (FAR, far, near)):
        factor = 1 / (2 * point * (square - other))  # one over the derivative of the product
        even = fma(cells[0], number(-other * factor * point), cells[2] * number(factor * point))
        odd = fma(cells[1], number(-other * factor), cells[3] * number(factor))
        points += [even + odd, even - odd]
    return [*points, fma(cells[0], number(near * far), fma(cells[2], number(-near - far), cells[4]))]


def filters_of(taps: Sequence[Any], number: Number) -> list[Any]:
    """2 taps to points: the values of their polynomial."""
    low, high = taps
    return [*(fma(high, number(point), low) for point in (NEAR, -NEAR, FAR, -FAR)), high]


def outputs(points: Sequence[Any], number: Number) -> list[Any]:
    """Points to 4 outputs: each times its powers."""
    sums = [(points[i] + points[i + 1], points[i] - points[i + 1]) for i in (0, 2)]
    found = [sums[0][0] + sums[1][0]]
    for k in range(1, OUTPUTS):
        found.append(fma(sums[1][k % 2], number(FAR**k), sums[0][k % 2] * number(NEAR**k)))
    return [*found[:-1], found[-1] + points[-1]]


def tiles_of(count: int) -> tuple[int, int]:
    """How many tiles have so many outputs, and how many of them, the first, have 4."""
    tiles = -(-count // OUTPUTS)
    return tiles, tiles - (tiles * OUTPUTS - count)


def places(images: int, rows: int, columns: int, groups: tuple[int, int]) -> tuple[np.ndarray, int]:
    """Where the numbers of each matrix lie: its first *cell*, cells of a line, how many cells; the end of all.

    ``rows``, ``columns`` : outputs; ``groups`` : cells that are multiplied at once, of matrices of points along both axes and of
    the others. Some more are where they are no whole groups, and a line of those that nobody reads.
    """
    high, wide = ([tiles] * (POINTS - 1) + [whole, n] for n in (rows, columns) for tiles, whole in [tiles_of(n)])
    table, end = [], 0
    for i, j in np.ndindex(KINDS, KINDS):
        count, group = images * high[i] * wide[j], groups[int(max(i, j) == POINTS)]
        table.append([end, wide[j], count])
        end += -(-count // group) * group
    return np.array(table, np.int64), end + columns


class Tiles:
    """Where the numbers of tiles lie; ``rows``, ``columns`` : (outputs, tiles, tiles of 4) of an axis."""

    def __init__(self, matrices: Any, rows: Any, columns: Any, cells: Any):
        self.matrices, self.rows, self.columns, self.nowhere = matrices, rows, columns, cells - columns[0]

    def first(self, axis: Any, tile: Any) -> Any:
        """The first output of a tile."""
        return tile * OUTPUTS - maximum(tile - axis[2], 0)

    def row(self, image: Any, tile: Any) -> Callable[[Any], list[list[Any]]]:
        """Of a row of an image's tiles a function: column -> the cells of all numbers of that tile."""
        height, tiles, whole = self.rows
        several = {POINTS - 1: image * whole + tile, POINTS: image * height + self.first(self.rows, tile)}
        short = within(tile - whole, tiles)
        lines = {}
        for i, h in NUMBERS:
            for j in range(KINDS):
                place = self.matrices.at((i * KINDS + j) * PLACE)
                at = place[0] + (several.get(i, image * tiles + tile) + h) * place[1]
                lines[i, h, j] = pick(short, self.nowhere, at) if (i, h) in LAST else at

        def cells(column: Any) -> list[list[Any]]:
            short = within(column - self.columns[2], self.columns[1])
            first = self.first(self.columns, column)
            found = []
            for i, h in NUMBERS:
                line = [lines[i, h, j] + (first + v if j == POINTS else column) for j, v in NUMBERS]
                found.append([pick(short, self.nowhere, at) if one in LAST else at for one, at in zip(NUMBERS, line)])
            return found

        return cells


@kernel
def strided_inputs(dtype, lanes, depth, layout):
    """``values[chunk, cell, channel]``: an image's numbers of a vector of channels for all matrices, which are a piece.

    Chunks have ``depth`` channels; they are numbers 0 .. ``chunks - 1`` from ``first_chunk`` on.
    """

    def text(
        piece, slot, x, values, slots, matrices, channels, first_chunk, chunks, x_height, x_width, pad_height, pad_width,
        height, width, tile_rows, tile_columns, whole_rows, whole_columns, cells, pitch, slot_size,
    ):  # fmt: skip
        own_vectors = (minimum(chunks * depth, channels - first_chunk * depth) + (lanes - 1)) // lanes
        image, vector = piece // own_vectors, piece % own_vectors
        chunk, lane = vector * lanes // depth, vector * lanes % depth
        tiles = Tiles(matrices, (height, tile_rows, whole_rows), (width, tile_columns, whole_columns), cells)
        to, first = values.at(chunk * cells * depth + lane), first_chunk * depth + vector * lanes
        strip = Strip(slots.at(slot * slot_size), pitch, Tiling(STRIDE * OUTPUTS), Tiling(STRIDE * OUTPUTS))
        source, number = Images(x, layout, channels, 1, x_height, x_width), constants(slots.zero(lanes))
        order = [*range(0, CELLS, STRIDE), *range(1, CELLS, STRIDE)]
        for r in loop(tile_rows):
            place = tiles.row(image, r)
            read_strip(
                source, strip, lanes, CELLS, image, 0, first, tiles.first(tiles.rows, r) * STRIDE - pad_height,
                0 - pad_width, width * STRIDE + TAPS,
            )  # fmt: skip
            for c in loop(tile_columns):
                left, lines = tiles.first(tiles.columns, c) * STRIDE, []
                for j in order:
                    column = [strip.cells.vec((i * pitch + left + j) * lanes, lanes) for i in range(CELLS)]
                    lines.append(inputs(column[::STRIDE], number) + column[1::STRIDE])
                for line, own in zip(zip(*lines), place(c)):
                    for value, at in zip(inputs(line[:POINTS], number) + list(line[POINTS:]), own):
                        to.put(at * depth, value)

    wide = wide_type(dtype)
    return text, {"x": dtype, "values": wide, "slots": wide, "matrices": "int64"}


@kernel
def strided_products(out, wide, lanes, vectors, depth, groups, layout):
    """All outputs of a panel of filters, which are a piece.

    Its filters are transformed a chunk of channels after the other, and lie in L2 while they multiply the numbers of all
    images, which come from L3. The sums of ``turn_chunks`` chunks become outputs, which are added to y: until all channels are
    summed it holds them as they lie here, cell by cell.
    """
    panel = lanes * vectors
    taps = Taps(TAPS, TAPS, 0, 0, TAPS * TAPS)
    plane = depth * panel + SPREAD

    def text(
        piece, slot, w, bias, y, values, slots, matrices, images, channels, filters, first_chunk, chunks, turn_chunks,
        height, width, tile_rows, tile_columns, whole_rows, whole_columns, cells, sums_at, slot_size,
    ):  # fmt: skip
        own = slots.at(slot * slot_size)
        sums, number = own.at(sums_at), constants(slots.zero(lanes))
        tiles = Tiles(matrices, (height, tile_rows, whole_rows), (width, tile_columns, whole_columns), cells)
        filter_ = channels * (TAPS * TAPS)

        def multiply(matrix, group, chunk, count, added):
            place = matrices.at(matrix * PLACE)
            for g in loop((place[2] + (group - 1)) // group):
                at = place[0] + g * group
                add_products(
                    values.at((chunk * cells + at) * depth), own.at(matrix * plane), None, sums.at(at * panel), count, depth,
                    group, lanes, vectors, minimum(added, 1) * lanes,
                )  # fmt: skip

        for turn in loop((chunks + (turn_chunks - 1)) // turn_chunks):
            start = turn * turn_chunks
            for added in loop(minimum(turn_chunks, chunks - start)):
                chunk = start + added
                first = (first_chunk + chunk) * depth
                count = minimum(depth, channels - first)
                turn_taps(
                    w, own, lanes, vectors, vectors, taps, piece * panel, filters, filter_, first * (TAPS * TAPS), TAPS * TAPS,
                    count, plane,
                )  # fmt: skip
                _filters_to_points(own, count * vectors, plane, lanes, number)
                ended = within(chunks - 1 - chunk, 1)
                next_ = first + depth - chunks * depth * ended
                ahead = w.at((piece + ended) * panel * filter_ + next_ * (TAPS * TAPS))
                for i in loop(KINDS):
                    for f in loop(panel):  # the taps to come
                        for k in range(0, -(-depth * TAPS * TAPS // KINDS), lanes):
                            ahead.prefetch(f * filter_ + i * (depth * TAPS * TAPS // KINDS) + k)
                    whole = i // POINTS  # 1 of the one tap of rows
                    for j in loop(POINTS * (1 - whole)):
                        multiply(i * KINDS + j, groups[0], chunk, count, added)
                    for j in loop(1 + POINTS * whole):
                        multiply(i * KINDS + POINTS * (1 - whole) + j, groups[1], chunk, count, added)
            size, left = height * width, filters - piece * panel
            begun = minimum(first_chunk + start, 1)
            done = 1 - minimum(maximum(channels - (first_chunk + start + turn_chunks) * depth, 0), 1)
            for image in loop(images):
                for r in loop(tile_rows):
                    place = tiles.row(image, r)
                    for c in loop(tile_columns):
                        cell = place(c)
                        for j in loop(vectors):
                            offset = bias.vec(piece * panel + lanes * j, lanes, count=lanes * (1 - begun))
                            _add_to_outputs(sums.at(lanes * j), cell, panel, offset, lanes, number)
                own_sums = sums.at((matrices[(MATRICES - 1) * PLACE] + image * size) * panel)
                if layout == "first":
                    to, step = y.at((image * filters + piece * panel) * size), minimum(left, panel)
                else:
                    to, step, done = y.at(image * size * filters + piece * panel), filters, 0
                for cell in loop(size * begun if out == wide else 0):
                    for j in range(vectors):
                        at = (cell * vectors + j) * lanes
                        before = to.vec(cell * step + lanes * j, lanes, count=left - lanes * j)
                        own_sums.put(at, own_sums.vec(at, lanes) + before)
                outputs_last(own_sums, size * (1 - done), 1, 0, left, step, to, lanes, vectors)
                if layout == "first":
                    outputs_first(own_sums, size * done, left, size, to, lanes, vectors)

    return text, dict.fromkeys(("w", "bias", "values", "slots"), wide) | {"y": out, "matrices": "int64"}


def _filters_to_points(points, count, plane, lanes, number):
    """``points[matrix, channel, filters]`` of all taps ``points[tap, channel, filters]``, in their place."""
    for i in loop(count):
        square = [[points.vec((TAPS * h + v) * plane + i * lanes, lanes) for v in range(TAPS)] for h in range(TAPS)]
        columns = [[*filters_of([first, last], number), middle] for first, middle, last in zip(*square)]
        for h, (first, middle, last) in enumerate(zip(*columns)):
            for v, value in enumerate([*filters_of([first, last], number), middle]):
                points.put((h * KINDS + v) * plane + i * lanes, value)


def _add_to_outputs(sums, cells, panel, offset, lanes, number):
    """Add all other parts of a tile's outputs to those of the one tap of both axes, which lie in the order of the outputs."""
    lines = []  # of all points, then of all outputs: the sums of a line's both parts
    for own in cells:
        numbers = [sums.vec(at * panel, lanes) for at in own]
        lines.append([a + b for a, b in zip(outputs(numbers[:POINTS], number), numbers[POINTS:])])
    columns = [outputs(points, number) for points in zip(*lines[:POINTS])]
    for h, (line, own) in enumerate(zip(lines[POINTS:], cells[POINTS:])):
        for value, column, at in zip(line, columns, own[POINTS:]):
            sums.put(at * panel, value + column[h] + offset)
