"""The kernel of long depthwise rows' weight gradients: shifted vectors of dy times shifted vectors of x."""

from __future__ import annotations

from konv.engine.compile import kernel
from konv.engine.groups.planes_outer import lane_sum
from konv.engine.machine import wide_type
from konv.engine.packing import sums_of_vectors
from konv.engine.simd import Variable, fma, loop, maximum, minimum, pick, within

SHIFTS = 4  # of x


@kernel
def accumulate_long(dtype, lanes, tile, tiles):
    """``sums[part, channel, tap] = sum of dy * x`` and ``biases[part, channel] = sum of dy``. A piece: (part, some channels).

    Tap ``SHIFTS * u + v`` is the sum over all cells p of ``dy[p - SHIFTS * u] * x[p + v]``, so ``tile`` vectors of dy and
    ``SHIFTS`` of x serve as many taps as their product, where each tap would read a vector of its own. Some columns of a
    row are copied between zeros first; the first tile asks for those that come next.
    """
    wide, taps = wide_type(dtype), tile * tiles * SHIFTS
    shift = (tile * tiles - 1) * SHIFTS  # the longest of dy
    lead = -(-shift // lanes) * lanes

    def text(
        piece, slot, x, dy, sums, biases, slots, slot_size, dy_at, totals_at, images, part_images, channels,
        channel_chunk, row, out_row, columns, pad,
    ):  # fmt: skip
        channel_chunks = (channels + (channel_chunk - 1)) // channel_chunk
        part, first_channel = piece // channel_chunks, piece % channel_chunks * channel_chunk
        first_image = part * part_images
        own_images = minimum(part_images, images - first_image)
        source = slots.at(slot * slot_size)
        upstream, totals = source.at(dy_at), source.at(totals_at)
        bias = totals.at(taps * lanes)
        chunks = (out_row + (columns - 1)) // columns
        for q in range(lead // lanes):
            upstream.put(q * lanes, upstream.zero(lanes))
        for n in loop(minimum(channel_chunk, channels - first_channel)):
            channel = first_channel + n
            for k in range(taps + 1):
                totals.put(k * lanes, totals.zero(lanes))
            for i in loop(own_images):
                plane = (first_image + i) * channels + channel
                for chunk in loop(chunks):
                    column = chunk * columns
                    own = minimum(columns, out_row - column)
                    copy(x.at(plane * row), column - pad, row, source, own + taps, lanes)
                    gradients = dy.at(plane * out_row + column)
                    total = copy(gradients, 0, own, upstream.at(lead), own + shift, lanes)
                    bias.put(0, bias.vec(0, lanes) + total)
                    more, others = within(chunk + 1, chunks), within(i + 1, own_images)
                    next_column = (column + columns) * more
                    next_plane = pick(more, plane, pick(others, plane + channels, first_image * channels + channel + 1))
                    ahead = (
                        x.at(next_plane * row + maximum(next_column - pad, 0)),
                        dy.at(next_plane * out_row + next_column),
                    )
                    vectors = (own + shift + (lanes - 1)) // lanes
                    for t in range(tiles):
                        place = upstream.at(lead - (t * tile + tile - 1) * SHIFTS)
                        multiply(place, source, totals.at(t * (tile * SHIFTS * lanes)), vectors, () if t else ahead)
            place = part * channels + channel
            for k in range(0, taps, lanes):
                held = [totals.vec((k + n) * lanes, lanes) for n in range(min(lanes, taps - k))]
                held += [totals.zero(lanes)] * (lanes - len(held))
                sums.put(place * taps + k, sums_of_vectors(held, lanes), count=taps - k)
            biases.put(place, lane_sum(bias.vec(0, lanes), lanes), count=1)

    def multiply(gradients, pixels, to, vectors, ahead):
        """Add the sums of a tile to those in memory."""
        found = [[Variable(to.zero(lanes)) for _ in range(SHIFTS)] for _ in range(tile)]
        for q in loop(vectors):
            for near in ahead:
                near.prefetch(q * lanes, later=True)
            steps = [gradients.vec(q * lanes + (tile - 1 - u) * SHIFTS, lanes) for u in range(tile)]
            for v in range(SHIFTS):
                cells = pixels.vec(q * lanes + v, lanes)
                for step, own in zip(steps, found):
                    own[v].set(fma(step, cells, own[v].get()))
        for n, total in enumerate(total for own in found for total in own):
            to.put(n * lanes, to.vec(n * lanes, lanes) + total.get())

    return text, {"x": dtype, "dy": dtype, "sums": wide, "biases": wide, "slots": wide}


def copy(line, first, end, to, cells, lanes):
    """``to[i] = line[first + i]``, zero before cell 0 and from ``end`` on, so many and a vector more; the sums of its lanes."""
    begin = maximum(first, 0)
    skipped = begin - first
    count = maximum(minimum(end, first + cells) - begin, 0)
    whole, total = count // lanes, Variable(to.zero(lanes))
    for q in loop((skipped + (lanes - 1)) // lanes):
        to.put(q * lanes, to.zero(lanes))
    for q in loop(whole):
        vector = line.vec(begin + q * lanes, lanes)
        to.put(skipped + q * lanes, vector)
        total.set(total.get() + vector)
    last = line.vec(begin + whole * lanes, lanes, count=count - whole * lanes)
    to.put(skipped + whole * lanes, last)
    filled = skipped + (whole + 1) * lanes
    for q in loop((cells - filled) // lanes + 2):
        to.put(filled + q * lanes, to.zero(lanes))
    return total.get() + last
