"""The input gradient of strided depthwise layers with two axes, channels first: all phases of dx in one pass.

Between two outputs of the layer lie ``stride`` cells of dx, each with taps of its own. A tile is some rows of dx, and in them
a vector of dy's columns with all that lies between: what is read of dy serves them all, their vectors are interleaved, and
rows are written as they follow each other. A job for each phase of rows, as :mod:`konv.engine.groups.planes` would have it, wrote
every second row: 192@28/2 took .42 ms, this .10; 96@112/2 2.2 and 1.4. Sizes that are compiled in, where channels are many, save
another third of the first, a twentieth of the second.
"""

from __future__ import annotations

import functools
import itertools

import numpy as np

from konv.engine.compile import kernel
from konv.engine.groups import depthwise_fixed
from konv.engine.groups.depthwise_rows import row_meetings
from konv.engine.launch import Job
from konv.engine.machine import dtype_name, machine, wide_type
from konv.engine.prepared import Prepared, prepared
from konv.engine.simd import ITEMSIZE, Variable, bits, fma, interleave, loop, minimum, pick, splat, within
from konv.engine.threads import get_threads
from konv.geometry import Geometry

MOST_TAPS = 7  # of a row and of a column, which are unrolled
KEPT_FACTORS = 9  # stay in registers for a plane
PIECE_CELLS = 32 << 10  # of dx, where a piece is more than one plane


@kernel
def spread_planes(x_dtype, y_dtype, lanes, tile, rows, columns, taps, stride, fixed, sizes):
    """dx of some planes, a piece. x is dy, y is dx.

    Parameters
    ----------
    tile : rows of dx of a tile, a multiple of the stride
    rows : (row of dy, row of dx, row of the kernel) that meet in a tile, counted from its first
    columns : (column of dy, phase, column of the kernel), counted from a vector's first
    taps : rows and columns of the kernel
    stride : rows and columns of dx between neighbours of dy
    fixed : whether a plane is one tile, whose meetings are all inside
    sizes : x_height, x_width, out_height, out_width and last, known when it is compiled; or None
    """
    lines, shifts = sorted({u for u, _, _ in rows}), sorted({c for c, _, _ in columns})
    met_rows = {u: [meet for meet in rows if meet[0] == u] for u in lines}
    met_columns = {c: [meet for meet in columns if meet[0] == c] for c in shifts}
    (taps_high, taps_wide), (high, wide_step) = taps, stride
    kept = taps_high * taps_wide <= KEPT_FACTORS
    cells = list(itertools.product(range(tile), range(wide_step)))

    def text(
        piece, slot, x, weights, y, zeros, planes, chunk, channels, x_height, x_width, out_height, out_width, last
    ):  # fmt: skip
        if sizes:
            x_height, x_width, out_height, out_width, last = sizes
        first_plane = piece * chunk

        def tile_of(read, factor, row, column, to_row, whole):
            """One tile; ``whole``: none of its cells lies outside."""
            sums = {cell: Variable(weights.zero(lanes)) for cell in cells}
            for u, shift in itertools.product(lines, shifts):
                at = column + shift
                values = read[u].vec(at, lanes, bits=None if whole else bits(0 - at, x_width - at))
                for (_, r, k), (_, p, t) in itertools.product(met_rows[u], met_columns[shift]):
                    sums[r, p].set(fma(factor(k, t), values, sums[r, p].get()))
            for r in range(tile):
                woven = interleave([sums[r, p].get() for p in range(wide_step)], lanes)
                for i, vector in enumerate(woven):
                    at = column * wide_step + i * lanes
                    left = None if whole else (out_width - at) * within(row + r, out_height)
                    y.put(to_row + r * out_width + at, vector, left)

        for i in loop(minimum(chunk, planes - first_plane)):
            plane = first_plane + i
            own = weights.at(plane % channels * (taps_high * taps_wide))
            grid = [[own[k * taps_wide + t] for t in range(taps_wide)] for k in range(taps_high)] if kept else None
            factors = [[splat(value, lanes) for value in line] for line in grid] if grid else None

            def factor(k, t, own=own, factors=factors):
                return factors[k][t] if factors else splat(own[k * taps_wide + t], lanes)

            for row_tile in loop((out_height + (tile - 1)) // tile):
                row = minimum(row_tile * tile, last)
                first = row // high
                read = {u: x.at((plane * x_height + first + u) * x_width) for u in lines}
                if not fixed:
                    read = {u: pick(within(first + u, x_height), line, zeros) for u, line in read.items()}
                to_row = (plane * out_height + row) * out_width
                for column_tile in loop((out_width + (wide_step * lanes - 1)) // (wide_step * lanes)):
                    column = column_tile * lanes
                    low, top = (shifts[0], shifts[-1] + lanes - 1) if shifts else (0, 0)
                    whole = within(column + low, x_width) * within(column + top, x_width)
                    whole = (
                        whole
                        * within((column + lanes) * wide_step - 1, out_width)
                        * within(row + (tile - 1), out_height)
                    )
                    for _ in loop(whole):
                        tile_of(read, factor, row, column, to_row, True)
                    for _ in loop(1 - whole):
                        tile_of(read, factor, row, column, to_row, False)

    return text, {"x": x_dtype, "weights": wide_type(x_dtype), "y": y_dtype, "zeros": x_dtype}


def takes(g: Geometry) -> bool:
    """Whether this is how a layer's input gradient is computed."""
    depthwise = g.axes == 2 and g.groups == g.channels == g.filters
    return depthwise and max(g.stride) > 1 and max(g.kernel) <= MOST_TAPS and set(g.stride) <= {1, 2, 4}


def input_gradient(dy: np.ndarray, w: np.ndarray, g: Geometry, out: np.ndarray) -> None:
    """Write dL/dx (N, C, *spatial) into ``out``."""
    plan = _prepare(g, dtype_name(dy.dtype), dtype_name(out.dtype), get_threads())
    plan.run(x=dy, weights=plan.weights(w), y=out)


def launch(g: Geometry, dtype: str, threads: int, dy: int, w: int, b: int, out: int) -> None:
    """The same of addresses, not of half types; b is not read."""
    _prepare(g, dtype, dtype, threads).run(x=dy, weights=w, y=out)


@functools.lru_cache(maxsize=256)
def _prepare(g: Geometry, x_dtype: str, y_dtype: str, threads: int) -> Prepared:
    (x_height, x_width), (out_height, out_width), lanes = g.output, g.spatial, machine().lanes(x_dtype)
    if x_width <= lanes // 2 and lanes > 4:
        lanes //= 2
    high, wide = g.stride
    most = max(1, (8 if machine().registers >= 32 else 4) // (high * wide))
    tile = min(range(high, most * high + 1, high), key=lambda n: (-(-out_height // n) * (n + 2), -n))
    fixed = tile == out_height
    rows = row_meetings(g, tile, True, x_height if fixed else None)
    low, dilation = g.padding[1][0], g.dilation[1]
    columns = tuple(
        sorted(
            ((p + low - t * dilation) // wide, p, t)
            for p, t in itertools.product(range(wide), range(g.kernel[1]))
            if (p + low - t * dilation) % wide == 0
        )
    )
    planes = g.batch * g.channels
    chunk = max(1, min(-(-planes // (8 * threads)), PIECE_CELLS // max(1, out_height * out_width)))
    last = -(-max(0, out_height - tile) // high) * high
    sizes = (x_height, x_width, out_height, out_width, last) if depthwise_fixed.worth_compiling(g) else None
    job = Job(
        spread_planes(x_dtype, y_dtype, lanes, tile, rows, columns, g.kernel, g.stride, fixed, sizes),
        -(-planes // chunk), planes=planes, chunk=chunk, channels=g.channels, x_height=x_height, x_width=x_width,
        out_height=out_height, out_width=out_width, last=last,
        zeros=np.zeros(x_width * ITEMSIZE[x_dtype], np.uint8),
    )  # fmt: skip
    return prepared(job, g.flops // 2, 0, x_dtype)


def blocking(g: Geometry, dtype: str) -> str:
    """Tile and pieces, in words."""
    plan = _prepare(g, dtype, dtype, get_threads())
    high, wide = g.stride
    return (
        f"{high} x {wide} cells of dx for each of dy, vectors of these interleaved; {plan.job.numbers['chunk']} planes a piece; "
        f"{plan.cut}"
    )
