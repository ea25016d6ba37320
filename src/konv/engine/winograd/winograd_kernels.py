"""Winograd's kernels of forward and input gradient: points of the filters, and everything else in one piece a block."""

from __future__ import annotations

from typing import Any

from konv.engine.compile import kernel
from konv.engine.machine import wide_type
from konv.engine.simd import Variable, fma, loop, maximum, minimum, splat, transpose, within
from konv.engine.winograd.winograd_formulas import Scheme, both_axes
from konv.engine.winograd.winograd_tiles import (
    Block,
    Images,
    Strip,
    Tiling,
    constants,
    points_to_strip,
    read_strip,
    strip_to_points,
    write_strip,
)

AHEAD = 8  # channels between asking for taps and using them
SPREAD = 16  # cells between the planes of the points beyond their size: at powers of two they would evict each other
# A section's line in a table: its first cells along the three axes; where its taps begin in a filter's and which of those
# that follow are its own, as bits; points along two axes.
SECTION = 7
PHASE = 5  # a phase's line: the first output along three axes; its first section, and how many it has


@kernel
def filters_to_points(wide, lanes, vectors, rows, columns, taps):
    """``U[point, channel, filters] = G w G^T`` for a panel of filters, a section of their taps and a chunk of channels, a piece.

    ``rows``, ``columns`` : schemes (outputs, taps); ``taps`` : where the taps of a section lie, see :class:`Taps`.
    """
    schemes, places = (Scheme(*rows), Scheme(*columns)), Taps(rows[1], columns[1], *taps)
    width, cells = lanes * vectors, schemes[0].points * schemes[1].points

    def text(
        piece, slot, w, points, sections, filter_stride, channel_stride, filters, channels, section_count, panels,
        chunk_channels, plane,
    ):  # fmt: skip
        chunk, panel, section = (
            piece // (panels * section_count),
            piece // section_count % panels,
            piece % section_count,
        )
        section, first = sections.at(section * SECTION), chunk * chunk_channels
        panel_to_points(
            w, points.at(piece * cells * plane), lanes, vectors, schemes, places, panel * width, filters, filter_stride,
            first * channel_stride + section[3], channel_stride, minimum(chunk_channels, channels - first), plane, section[4],
        )  # fmt: skip

    return text, {"w": wide, "points": wide, "sections": "int64"}


@kernel
def winograd(
    dtype,
    out,
    lanes,
    vectors,
    group,
    depth,
    rows,
    columns,
    taps,
    ahead,
    layout,
    in_steps,
    out_steps,
    dilated,
    kept_where,
):
    """The convolution of a block of tiles with a share of the panels of filters, which are a piece.

    A block is ``block_rows`` rows (of all images, one after the other) by ``block_columns`` columns of tiles. Three steps,
    all in the slot's workspace: inputs to points, products summed over channels and sections, and points to outputs.
    Phases that read the same inputs are as many times the panels; others follow each other, in one piece or in several.

    ``ahead`` is 1 where :func:`filters_to_points` ran before: then the inputs' points of all channels are there, and panels
    pass by, each with its sums. U is a few times as large as the weights: where that is too much, the sums of all panels of the
    share are kept instead, and chunks of channels pass by.

    ``kept_where`` : which outputs are kept, where others are 0: all, those "positive", or those where ``gate`` is
    """
    row_scheme, column_scheme = schemes = Scheme(*rows), Scheme(*columns)
    places = Taps(rows[1], columns[1], *taps)
    width, cells = lanes * vectors, row_scheme.points * column_scheme.points

    def text(
        piece, slot, x, w, bias, y, gate, points, slots, sections, phases, slot_size, strip_at, sums_at, filters_at, kept_at,
        channels, x_depth, x_height, x_width, filters, out_depth, out_height, out_width,
        depth_in_step, depth_out_step, row_dilation, column_dilation, planes, tile_rows, tile_columns,
        all_rows, block_rows, block_columns, column_blocks, short_rows, short_columns,
        share_panels, panels, shares, turns, turn_phases, phase_panels,
        section_count, channel_chunks, chunk_channels, input_plane, sums_plane, filter_plane, pitch, filter_stride,
        channel_stride,
    ):  # fmt: skip
        share, block = piece % shares, piece // (shares * turn_phases)
        first_row, first_column = block // column_blocks * block_rows, block % column_blocks * block_columns
        own_rows = minimum(block_rows, all_rows - first_row)
        own_columns = minimum(block_columns, tile_columns - first_column)
        at_end = 1 - minimum(tile_columns - first_column - own_columns, 1)
        tiles = Block(first_row, own_rows, tile_rows, own_columns, short_rows, short_columns * at_end)
        first_panel = share * share_panels
        own_panels = minimum(share_panels, panels * phase_panels - first_panel)
        inputs = slots.at(slot * slot_size)
        dilation = (row_dilation, column_dilation) if dilated else (1, 1)
        strip = Strip(inputs.at(strip_at), pitch, *map(Tiling, (rows[0], columns[0]), dilation))
        all_sums, own_filters = inputs.at(sums_at), inputs.at(filters_at)
        source = Images(x, layout, channels, x_depth, x_height, x_width)
        target = Images(y, layout, filters, out_depth, out_height, out_width)
        number = constants(bias.zero(lanes))

        def place(r):
            """Image, plane and row of a row of tiles."""
            plane = (first_row + r) // tile_rows
            return plane // planes, plane % planes, (first_row + r) % tile_rows

        def compute(first_phase):
            """A phase, or all that read the same inputs."""
            own_sections = phases[first_phase * PHASE + 4]
            chunks = channel_chunks * own_sections

            def phase_of(p):
                """The line in the table of the phase that a panel of the share belongs to, and which of all filters it has."""
                panel = first_panel + p
                return phases.at((first_phase + panel % phase_panels) * PHASE), panel // phase_panels

            def section_of(p, chunk):
                """All sections of some channels are summed, then those of the next channels."""
                return phase_of(p)[0][3] + chunk % own_sections

            def channels_of(chunk):
                """The first channel of a chunk, and how many it has."""
                first = chunk // own_sections * chunk_channels
                return first, minimum(chunk_channels, channels - first)

            def transform_inputs(chunk, to):
                """Lanes past the last channel are summed by nobody."""
                (first, count), section = channels_of(chunk), sections.at(section_of(0, chunk) * SECTION)
                left = strip.columns.first(first_column) * in_steps[1] + section[2]
                for r in loop(own_rows):
                    (image, plane, row), places_of_row = place(r), tiles.places(r)
                    for v in loop((count + (lanes - 1)) // lanes):
                        read_strip(
                            source, strip, lanes, row_scheme.points, image, plane * depth_in_step + section[0],
                            first + v * lanes, strip.rows.first(row) * in_steps[0] + section[1], left,
                            strip.columns.cells(own_columns, column_scheme.points), in_steps,
                        )  # fmt: skip
                        strip_to_points(
                            strip, to.at(v * lanes), lanes, (row_scheme.inputs, column_scheme.inputs),
                            (row_scheme.points, column_scheme.points), own_columns, depth, input_plane, number,
                            places=places_of_row,
                        )  # fmt: skip

            def transform_filters(p, chunk):
                (first, count), section = channels_of(chunk), sections.at(section_of(p, chunk) * SECTION)
                if places.kept:
                    panel, of_panel = phase_of(p)[1], (first_panel + p) % phase_panels
                    kept = inputs.at(kept_at + (panel - first_panel // phase_panels) * (places.kept * filter_plane))
                    fresh = (1 - minimum(chunk % own_sections, 1)) * (1 - minimum(minimum(of_panel, p), 1))
                    turn_taps(
                        w, kept, lanes, vectors, vectors * fresh, places, panel * width, filters, filter_stride,
                        first * channel_stride, channel_stride, count, filter_plane,
                    )  # fmt: skip
                    kept_to_points(kept, own_filters, lanes, vectors, schemes, places, section, count, filter_plane)
                    return
                panel_to_points(
                    w, own_filters, lanes, vectors, schemes, places, phase_of(p)[1] * width, filters, filter_stride,
                    first * channel_stride + section[3], channel_stride, count, filter_plane, section[4],
                )  # fmt: skip

            def multiply(p, chunk, values, taps, sums):
                """A matrix product (tiles, channels) @ (channels, filters) for each point; of those left out zero, once."""
                count, section = channels_of(chunk)[1], sections.at(section_of(p, chunk) * SECTION)
                for point in loop(cells):
                    row, column = point // column_scheme.points, point % column_scheme.points
                    inside = within(row, section[5]) * within(column, section[6])
                    first, own = tiles.range(
                        row // maximum(row_scheme.points - 1, 1), column // maximum(column_scheme.points - 1, 1)
                    )
                    groups = (own + (group - 1)) // group
                    first = maximum(first + own - groups * group, 0)  # whole groups, not beyond the block
                    for g in loop(groups * (1 - minimum(chunk, 1) * (1 - inside))):
                        at = first + g * group
                        add_products(
                            values.at(point * input_plane + at * depth), taps.at(point * filter_plane), filter_plane,
                            sums.at(point * sums_plane + at * width), count * inside, depth, group, lanes, vectors,
                            chunk * lanes,
                        )  # fmt: skip

            def transform_sums(p, sums):
                phase, panel = phase_of(p)
                for j in loop(minimum(vectors, (filters - panel * width + (lanes - 1)) // lanes)):
                    first = panel * width + lanes * j
                    offset = bias.vec(first, lanes)
                    for r in loop(own_rows):
                        points_to_strip(
                            sums.at(lanes * j), strip, lanes, schemes, own_columns, width, sums_plane, offset, number,
                            tiles.places(r),
                        )  # fmt: skip
                        image, plane, row = place(r)
                        write_strip(
                            target, strip, lanes, image, plane * depth_out_step + phase[0], first,
                            strip.rows.first(row) * out_steps[0] + phase[1],
                            strip.columns.first(first_column) * out_steps[1] + phase[2],
                            own_columns * column_scheme.outputs, out_steps, gate if kept_where == "gate" else kept_where,
                        )  # fmt: skip

            if ahead:
                for chunk in loop(chunks):
                    transform_inputs(chunk, inputs.at(chunk * cells * input_plane))
                for p in loop(own_panels):
                    for chunk in loop(chunks):
                        own = (chunk // own_sections * panels + phase_of(p)[1]) * section_count + section_of(p, chunk)
                        multiply(
                            p,
                            chunk,
                            inputs.at(chunk * cells * input_plane),
                            points.at(own * cells * filter_plane),
                            all_sums,
                        )
                    transform_sums(p, all_sums)
            else:
                for chunk in loop(chunks):
                    transform_inputs(chunk, inputs)
                    for p in loop(own_panels):
                        transform_filters(p, chunk)
                        multiply(p, chunk, inputs, own_filters, all_sums.at(p * cells * sums_plane))
                for p in loop(own_panels):
                    transform_sums(p, all_sums.at(p * cells * sums_plane))

        for turn in loop(turns):
            compute((piece // shares % turn_phases * turns + turn) * phase_panels)

    wide = wide_type(dtype)
    return text, dict.fromkeys(("w", "bias", "points", "slots"), wide) | {
        "x": dtype, "y": out, "gate": dtype, "sections": "int64", "phases": "int64",
    }  # fmt: skip


class Taps:
    """Where the taps of a section lie, in cells from its first: rows and columns at some steps, in reverse order if negative.

    Steps of 0 : all taps of a filter are the section's, so those of the next channel lie behind them.
    ``kept`` : the taps of a filter where they are turned once for all sections, see :func:`turn_taps`; else 0
    """

    def __init__(self, rows, columns, row_step, column_step, kept=0):
        self.together, self.reverse, self.kept = not column_step, column_step < 0, kept
        row_step, column_step = (columns, 1) if self.together else (abs(row_step), abs(column_step))
        self.cells = [row_step * i + column_step * k for i in range(rows) for k in range(columns)]
        self.columns, self.count = columns, rows * columns

    def in_rows(self, values):
        """The taps in the order of the section, as rows."""
        values = values[::-1] if self.reverse else values
        return [values[i : i + self.columns] for i in range(0, self.count, self.columns)]


def add_products(values, taps, plane, sums, count, depth, group, lanes, vectors, kept):
    """``sums[i, f] (+)= sum over c of values[i, c] * taps[c, f]`` for ``group`` tiles i; added to what is there if ``kept``.

    Both come from L2 or L3. Unasked for, 256@14 takes 1.3 times as long.

    ``plane`` : from one point's taps to the next's, which are asked for; None: the sums are, where taps lie near
    """
    width = lanes * vectors
    accumulators = [Variable(sums.zero(lanes)) for _ in range(group * vectors)]
    for c in loop(count):
        values.prefetch(group * depth + c * lanes)  # the next group's
        if plane is None:
            sums.prefetch(c * lanes, write=True)
        else:
            for j in range(0, width, lanes):
                taps.prefetch(plane + c * width + j)  # the next point's
        row = [taps.vec(c * width + lanes * j, lanes) for j in range(vectors)]
        for i in range(group):
            cell = splat(values[c + depth * i], lanes)
            for j in range(vectors):
                a = accumulators[vectors * i + j]
                a.set(fma(cell, row[j], a.get()))
    for i, a in enumerate(accumulators):
        sums.put(lanes * i, a.get() + sums.vec(lanes * i, lanes, count=kept))


def panel_to_points(
    w, points, lanes, vectors, schemes, places, first, filters, filter_stride, start, channel_stride, count, plane, bits
):  # fmt: skip
    """``points[point, c, filters] = G w G^T`` for the filters of a panel and ``count`` channels.

    Taps are read as vectors and transposed: a tenth of the time that gathering each takes. Those that a section lacks are 0.
    Lanes past the last filter repeat it.
    """
    number, formulas = constants(w.zero(lanes)), [scheme.filters for scheme in schemes]
    for j in loop(vectors):
        sources = [minimum(first + j * lanes + i, filters - 1) * filter_stride + start for i in range(lanes)]
        if places.together:
            _gather_taps(w, points.at(j * lanes), lanes, lanes * vectors, sources, count, plane, places.count)
        for c in loop(count):
            to = points.at((c * vectors + j) * lanes)
            if places.together:
                values = [to.vec(t * plane, lanes) for t in range(places.count)]
            else:
                # Taps to come. Unasked for, one image of 512@7 takes 3.2 times as long: its channels lie a filter apart.
                for s in sources:
                    w.prefetch(s + (c + AHEAD) * channel_stride)
                found: dict[int, Any] = {}
                for t in sorted({cell // lanes * lanes for cell in places.cells}):
                    lines = [w.vec(s + c * channel_stride + t, lanes, bits=bits >> t) for s in sources]
                    found |= {t + k: column for k, column in enumerate(transpose(lines))}
                values = [found[cell] for cell in places.cells]
            for i, value in enumerate(
                value for row in both_axes(formulas, places.in_rows(values), number) for value in row
            ):
                to.put(i * plane, value)


def turn_taps(
    w, kept, lanes, vectors, own_vectors, places, first, filters, filter_stride, start, channel_stride, count, plane
):  # fmt: skip
    """``kept[tap, c, filters] = w[filter, c, tap]`` (transposed: ``w[c, filter, tap]``) for all taps of a panel.

    256@28 with stride 2 takes 0.8 of the time of turning them for each section again, its gradient 0.7.
    """
    for j in loop(own_vectors):
        sources = [minimum(first + j * lanes + i, filters - 1) * filter_stride + start for i in range(lanes)]
        if not places.reverse:
            _gather_taps(w, kept.at(j * lanes), lanes, lanes * vectors, sources, count, plane, places.kept)
            continue
        for c in loop(count):
            for s in sources[:: max(1, lanes // places.kept)]:
                w.prefetch(s + (c + AHEAD) * channel_stride)
            for t in range(0, places.kept, lanes):
                lines = [w.vec(s + c * channel_stride + t, lanes, count=places.kept - t) for s in sources]
                for k, column in enumerate(transpose(lines)[: places.kept - t]):
                    kept.put((t + k) * plane + (c * vectors + j) * lanes, column)


def kept_to_points(kept, points, lanes, vectors, schemes, places, section, count, plane):
    """As :func:`panel_to_points`, from what :func:`turn_taps` wrote."""
    number, formulas = constants(kept.zero(lanes)), [scheme.filters for scheme in schemes]
    taps = kept.at(section[3] * plane)
    for i in loop(count * vectors):
        values = [taps.vec(t * plane + i * lanes, lanes, count=(section[4] >> t & 1) * lanes) for t in places.cells]
        rows = both_axes(formulas, places.in_rows(values), number)
        for k, value in enumerate(value for row in rows for value in row):
            points.put(k * plane + i * lanes, value)


def _gather_taps(w, taps, lanes, width, sources, count, plane, cells):
    """``taps[tap, c, lane] = w[filter of the lane, c, tap]``: in the places of the first points, which will overwrite them.

    A filter's taps of ``lanes`` channels lie together: all lanes of what is read are used.
    """
    for block in loop((count + (lanes - 1)) // lanes):
        to, start = taps.at(block * lanes * width), block * lanes * cells
        for q in range(0, lanes * cells, lanes):
            for s in sources:
                w.prefetch(s + start + (lanes * cells + q))
            rows = [w.vec(s + start + q, lanes, count=count * cells - start - q) for s in sources]
            for k, column in enumerate(transpose(rows)):
                c, tap = (q + k) // cells, (q + k) % cells
                to.put(tap * plane + c * width, column)
