"""Weight gradients of groups of 4, 8 and 16 by Winograd's algorithm along one axis, as in
:mod:`konv.engine.winograd.winograd_rows`, channels in lanes, as in :mod:`konv.engine.groups.small_groups`.

No vector is partly empty however long a row is, and each number of dy that is spread over its group serves three products.
Two cores of an AMD Zen 4, against what was fastest before, rows or tiles in lanes, or the direct sum: 512@14 in 32 groups 0.7 to
0.8 of the time, 256@28 0.75 to 0.8, 256@56 0.85, 128@56 0.75 to 0.9, 7 pixels 0.3 to 0.75; 5 pixels as long, groups of 4 on 112
pixels 1.1 times as long. At most a third of it was waiting for x and dy, until the next image's lines were asked for, two at each
pixel of a product: 56 pixels gained most. With AVX2 the same gains.
"""

from __future__ import annotations

import functools

from konv.engine.compile import kernel
from konv.engine.groups.small_groups_kernels import inverse, order_of, ordered, rows_in, spread
from konv.engine.launch import Job
from konv.engine.machine import machine, wide_type
from konv.engine.prepared import Prepared, prepared
from konv.engine.simd import Variable, fma, loop, maximum, minimum, pick, pinned, transpose, within
from konv.engine.winograd.winograd_rows_kernels import KERNEL, OUTPUTS, POINTS, SCHEME, TAPS
from konv.engine.winograd.winograd_tiles import constants
from konv.geometry import Geometry

GROUPS = (4, 8, 16)
LEAST_BLOCKS = 4  # of a vector's channels, which are the pieces
LEAST_USED = 0.7  # of the rows of tiles
MOST_CELLS_OF_4 = 64  # of a row, of groups of 4
CHUNK_CELLS = 1800  # of a plane, that are copied together
SUMMED_CELLS = 28  # whose products, at least, are summed in registers


@kernel
def winograd_of_channel_weights(dtype, out, lanes, group, together):
    """dw and db of ``lanes`` channels, a piece, of all images; so many filters of each group are summed ``together``.

    Rows of a chunk of tiles are copied, then made points of some rows of tiles at a time: those of x lie between zeros.
    """
    order = order_of(group, lanes)

    def text(
        piece, slot, x, dy, dw, db, slots, slot_size, dy_at, points_at, upstream_at, totals_at, zeros_at,
        images, channels, x_height, x_width, out_height, out_width, pad_height, pad_width,
        chunk_tiles, tile_rows, some, pitch, plane, upstream_plane,
    ):  # fmt: skip
        channel, number = piece * lanes, constants(slots.zero(lanes))
        source = slots.at(slot * slot_size)
        gradients, points, upstream, totals, zeros = (
            source.at(at) for at in (dy_at, points_at, upstream_at, totals_at, zeros_at)
        )
        for i in loop(POINTS * TAPS * group):
            totals.put(i * lanes, totals.zero(lanes))
        for i in loop(maximum(x_width, out_width)):
            zeros.put(i * lanes, zeros.zero(lanes))
        for i in loop(POINTS * plane // lanes):  # what lies beside the rows
            points.put(i * lanes, points.zero(lanes))
        bias, part, asked = Variable(totals.zero(lanes)), Variable(totals.zero(lanes)), Variable(0)

        def ask(first_plane):
            """For the next lines of x and dy, from a plane on."""
            for array, size in ((x, x_height * x_width), (dy, out_height * out_width)):
                array.prefetch(first_plane * size + minimum(asked.get() * lanes, size * lanes - 1), later=True)
            asked.set(asked.get() + 1)

        def transformed(lines, to, step, width, formula, seen=None):
            """The points of some rows, each ``step`` from the next."""
            for c in loop(width):
                cells = [line.vec(c * lanes, lanes) for line in lines]
                if seen:
                    seen(cells)
                for p, value in enumerate(formula(cells, number)):
                    to.put(p * step + c * lanes, value)

        def add_to_bias(cells):
            part.set(part.get() + ((cells[0] + cells[1]) + (cells[2] + cells[3])))

        def products(rows, p, first, next_plane):
            """Those of one point of some rows of tiles, with ``together`` filters of each group, added to the others."""
            own, own_gradients = points.at(p * plane), upstream.at(p * upstream_plane)
            sums = {(i, t): Variable(totals.zero(lanes)) for i in range(together) for t in range(TAPS)}
            for r in loop(rows):
                line, upstream_line = own.at(r * (pitch * lanes)), own_gradients.at(r * (out_width * lanes))
                for q in loop(out_width):
                    ask(next_plane)
                    cells = [line.vec((q + t) * lanes, lanes) for t in range(TAPS)]
                    gradient = upstream_line.at(q * lanes)
                    for i in range(together):
                        value = spread(gradient, first + i, group, lanes)
                        for t in range(TAPS):
                            sums[i, t].set(pinned(fma(value, cells[t], sums[i, t].get())))
            for (i, t), total in sums.items():
                at = ((p * TAPS + t) * group + (first + i)) * lanes
                totals.put(at, totals.vec(at, lanes) + total.get())

        for image in loop(images):
            asked.set(0)
            next_plane = pick(within(image + 1, images), (image + 1) * channels, lanes) + channel
            for chunk in loop((tile_rows + (chunk_tiles - 1)) // chunk_tiles):
                tile = chunk * chunk_tiles
                row, tiles = tile * OUTPUTS, minimum(chunk_tiles, tile_rows - tile)
                rows = minimum(tiles * OUTPUTS, out_height - row)
                top = row - pad_height
                first = minimum(maximum(top, 0), x_height)
                lines = maximum(minimum(top + (tiles * OUTPUTS + (TAPS - 1)), x_height) - first, 0)
                planes = image, channel, channels
                rows_in(x, "first", (*planes, x_height * x_width), first * x_width, lines * x_width, source, order)
                rows_in(
                    dy, "first", (*planes, out_height * out_width), row * out_width, rows * out_width, gradients, order
                )
                for turn in loop((tiles + (some - 1)) // some):
                    begin = turn * some
                    own = minimum(some, tiles - begin)
                    for r in loop(own):
                        at = top + (begin + r) * OUTPUTS - first
                        read = [
                            pick(within(at + i, lines), source.at((at + i) * (x_width * lanes)), zeros)
                            for i in range(POINTS)
                        ]
                        to = points.at((r * pitch + pad_width) * lanes)
                        transformed(read, to, plane, x_width, SCHEME.inputs)
                        at = (begin + r) * OUTPUTS
                        read = [
                            pick(within(at + i, rows), gradients.at((at + i) * (out_width * lanes)), zeros)
                            for i in range(OUTPUTS)
                        ]
                        to = upstream.at(r * (out_width * lanes))
                        transformed(read, to, upstream_plane, out_width, SCHEME.upstream, add_to_bias)
                    bias.set(bias.get() + part.get())
                    part.set(totals.zero(lanes))
                    for p in loop(POINTS):
                        for f in range(0, group, together):
                            products(own, p, f, next_plane)
        for f in loop(group):
            taps: dict[int, list] = {}
            for t in range(TAPS):
                values = [totals.vec(((p * TAPS + t) * group + f) * lanes, lanes) for p in range(POINTS)]
                for k, value in enumerate(SCHEME.weights(values, number)):
                    taps[k * TAPS + t] = value
            for low in range(0, KERNEL, lanes):
                held = [taps.get(low + i, totals.zero(lanes)) for i in range(lanes)]
                for lane, row in enumerate(transpose(held)):
                    of, c = order[lane] // group * group, order[lane] % group
                    to = dw.at(((channel + of + f) * group + c) * KERNEL + low)
                    to.put(0, row, count=min(lanes, KERNEL - low))
        db.put(channel, ordered(bias.get(), inverse(order)))

    return text, {"x": dtype, "dy": dtype, "dw": out, "db": out, "slots": wide_type(dtype)}


def takes(g: Geometry, dtype: str) -> bool:
    """Whether a weight gradient of 3 x 3 taps without strides, channels first, is computed here, if rows of tiles are filled."""
    lanes, group = machine().lanes(dtype), g.channels // g.groups
    whole = g.channels == g.filters and group in GROUPS and lanes % group == 0 and g.channels % lanes == 0
    return whole and g.channels >= LEAST_BLOCKS * lanes and (group > 4 or g.output[1] <= MOST_CELLS_OF_4)


def used(g: Geometry) -> float:
    """The share of what is multiplied that is of rows of dy."""
    return g.output[0] / max(1, -(-g.output[0] // OUTPUTS) * OUTPUTS)


@functools.lru_cache(maxsize=256)
def accumulation(g: Geometry, dtype: str, out: str, threads: int) -> Prepared:
    """The job of a weight gradient."""
    host, group = machine(), g.channels // g.groups
    lanes, (x_height, x_width), (out_height, out_width) = host.lanes(dtype), g.spatial, g.output
    tile_rows = -(-out_height // OUTPUTS)
    chunk_tiles = max(1, min(tile_rows, CHUNK_CELLS // max(1, OUTPUTS * out_width)))
    some = max(1, min(chunk_tiles, -(-SUMMED_CELLS // max(1, out_width))))
    pitch = max(x_width + sum(g.padding[1]), out_width + TAPS - 1)
    held = (chunk_tiles * OUTPUTS + TAPS - 1) * x_width, chunk_tiles * OUTPUTS * out_width
    dy_at, dy_size = (max(lanes, -(-cells // lanes) * lanes) * lanes for cells in held)
    plane, upstream_plane = some * pitch * lanes, some * out_width * lanes
    points_at = dy_at + dy_size
    upstream_at = points_at + POINTS * plane
    totals_at = upstream_at + POINTS * upstream_plane
    zeros_at = totals_at + POINTS * TAPS * group * lanes
    slot_size = zeros_at + max(x_width, out_width) * lanes
    job = Job(
        winograd_of_channel_weights(dtype, out, lanes, group, min(group, 8 if host.registers >= 32 else 4)),
        g.channels // lanes, slot_size=slot_size, dy_at=dy_at, points_at=points_at, upstream_at=upstream_at,
        totals_at=totals_at, zeros_at=zeros_at, images=g.batch, channels=g.channels, x_height=x_height, x_width=x_width,
        out_height=out_height, out_width=out_width, pad_height=g.padding[0][0], pad_width=g.padding[1][0],
        chunk_tiles=chunk_tiles, tile_rows=tile_rows, some=some, pitch=pitch, plane=plane, upstream_plane=upstream_plane,
    )  # fmt: skip
    return prepared(job, g.flops // 4, slot_size, dtype)


def blocking(g: Geometry, dtype: str, threads: int) -> str:
    """Lanes, tiles and pieces, in words."""
    plan, lanes = accumulation(g, dtype, dtype, threads), machine().lanes(dtype)
    together = lanes // (g.channels // g.groups)
    return (
        f"tiles of {OUTPUTS} rows, {together} group{'s' * (together > 1)} of channels in a vector; "
        f"{plan.job.numbers['chunk_tiles']} rows of tiles a chunk, {lanes} channels a piece; {plan.job.cut(plan.threads)}"
    )
