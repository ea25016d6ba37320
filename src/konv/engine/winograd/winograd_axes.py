"""What Winograd's algorithm does along each axis: any kernel, stride or dilation as sums of short correlations with stride 1.

With stride s the cells that one tap reads lie s apart, so a kernel of k taps is s interleaved ones of about k / s taps, each
on its own phase of x; a longer one is cut once more. The transforms of such *sections* are summed point by point, as those of
channels are, and turned back once. A section of fewer taps than the scheme has needs no product at infinity.

In the input gradient each *phase* of the result is a correlation of dy with taps of its own, in reverse order::

    y[o]             = sum over j  w[j] x[s o + d j - low]
    dx[s u + q - low] = sum over t  w[s t + q] dy[u - t]            (stride s, phase q)
    dx[i]            = sum over j  w[j] dy[i + low - d j]           (dilation d)

An axis of which nothing is gained has the scheme F(1, 1), each of its taps a section: so the planes of a 3-D kernel.
Of 7 outputs with stride 2 (3 x 3) F(7, 2) along one axis alone took 0.82-1.0 of direct's time for 512 channels, 1.0-1.2 for
128 and 256, 1.2 for one image, and its error is six times as large: it is not asked. F(4, 2) along both, 0.66 of the products,
took 1.05-1.3 of direct's time for 512 channels and 8 images, its gradients 0.93-1.2: its 32 tiles are too few for its filters'
transform, which takes a quarter of the time.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from konv.engine.winograd.winograd_formulas import Scheme
from konv.geometry import Geometry

TAPS = (2, 3, 4)  # of the longest section
MOST_POINTS, MOST_POINTS_ALONE = 6, 8  # of a scheme beside another one, and of the only one; more would err more
PLAIN = Scheme(1, 1)


@dataclass(frozen=True)
class Section:
    """Taps of a kernel that one transform takes: the first, how many, and the cell that it meets in the first tile."""

    tap: int
    taps: int
    cell: int


@dataclass(frozen=True)
class Phase:
    """Outputs ``start, start + out_step, ...`` along an axis, of which there are ``count``, and what is summed for them."""

    start: int
    count: int
    sections: tuple[Section, ...]


@dataclass(frozen=True)
class Axis:
    """One axis of a convolution, or of its input gradient.

    Attributes
    ----------
    scheme : of its tiles
    spatial, output : cells of what is read and of what is written
    dilation : tiles are phases of it: their outputs lie so far apart
    in_step, out_step : between the cells, and between the outputs, of a tile that is not dilated
    tap_step : between the taps of a section, negative where they are taken in reverse order
    phases : of the result
    """

    scheme: Scheme
    spatial: int
    output: int
    dilation: int
    in_step: int
    out_step: int
    tap_step: int
    phases: tuple[Phase, ...]

    @property
    def tiles(self) -> int:
        """Of the longest phase; whole phases of a dilation."""
        count = max(phase.count for phase in self.phases)
        return -(-count // (self.scheme.outputs * self.dilation)) * self.dilation

    @property
    def short(self) -> bool:
        """Whether no phase has the last output of the last tile, the only one that asks for the product at infinity."""
        return self.dilation == 1 and max(phase.count for phase in self.phases) < self.tiles * self.scheme.outputs

    @property
    def infinities(self) -> int:
        """Those of :attr:`points` that are infinity."""
        full = self.scheme != PLAIN
        return full * sum(s.taps == self.scheme.taps for phase in self.phases for s in phase.sections)

    @property
    def needed(self) -> int:
        """Products of all its tiles."""
        return self.points * self.tiles - self.short * self.infinities

    def points_of(self, section: Section) -> int:
        """Points at which its products are not all zero."""
        return self.scheme.points - (section.taps < self.scheme.taps)

    @property
    def points(self) -> int:
        """Products of a tile, summed over all sections of all phases."""
        return sum(self.points_of(section) for phase in self.phases for section in phase.sections)

    @property
    def transforms(self) -> int:
        """Sections of all phases."""
        return sum(len(phase.sections) for phase in self.phases)

    @property
    def sums(self) -> int:
        """Products without any scheme; those with padding beside dilated kernels are not counted: others leave them out."""
        total = 0
        for phase in self.phases:
            for section in phase.sections:
                for t in range(section.taps):
                    cell = section.cell + t * self.dilation
                    read = range(max(0, -cell), min(phase.count, self.spatial - cell))
                    total += len(read) if self.dilation > 1 else phase.count
        return total

    @staticmethod
    def of(g: Geometry, axis: int, transposed: bool, most_points: int) -> Axis:
        """The axis with the scheme of the fewest products, to which one is added for each section's transform of a tile.

        Of two alike that of fewer points, which errs less.
        """
        axes = []
        for taps in TAPS:
            longest = max(section.taps for phase in _phases(g, axis, transposed, taps) for section in phase.sections)
            if longest == taps:
                axes += [_axis(g, axis, transposed, n, taps) for n in range(most_points + 1 - taps, 1, -1)]
        axes.append(_axis(g, axis, transposed, 1, 1))
        return min(
            axes, key=lambda axis: (axis.needed + (axis.scheme != PLAIN) * axis.transforms * axis.tiles, axis.points)
        )


@dataclass(frozen=True)
class Axes:
    """The three axes of a convolution; those that it lacks come first, with a length of 1."""

    depth: Axis
    rows: Axis
    columns: Axis

    @staticmethod
    def of(g: Geometry, transposed: bool) -> Axes:
        """Those of a convolution, or of its input gradient."""
        missing = 3 - g.axes
        transformed = [axis for axis in range(max(0, g.axes - 2), g.axes) if g.kernel[axis] > 1]
        most = MOST_POINTS if len(transformed) > 1 else MOST_POINTS_ALONE
        axes = [_WHOLE] * missing
        for axis in range(g.axes):
            plain = g.axes == 3 and axis == 0
            axes.append(_axis(g, axis, transposed, 1, 1) if plain else Axis.of(g, axis, transposed, most))
        return Axes(*axes)

    @property
    def all(self) -> tuple[Axis, Axis, Axis]:
        """From the first to the last."""
        return self.depth, self.rows, self.columns

    @property
    def dilated(self) -> bool:
        """Whether tiles are phases."""
        return self.rows.dilation * self.columns.dilation > 1

    @property
    def planes(self) -> int:
        """Planes of outputs of an image, of each phase."""
        return self.depth.tiles

    @property
    def tiles(self) -> int:
        """Of an image, of each phase."""
        return self.planes * self.rows.tiles * self.columns.tiles

    @property
    def points(self) -> int:
        """Of a tile and a section."""
        return self.rows.scheme.points * self.columns.scheme.points

    @property
    def products(self) -> int:
        """Of a channel, a filter and the tiles at one place of all phases."""
        return self.depth.points * self.rows.points * self.columns.points

    @property
    def needed(self) -> int:
        """Of a channel, a filter and an image."""
        return math.prod(axis.needed for axis in self.all)

    @property
    def phases(self) -> list[tuple[Phase, ...]]:
        """Of all axes together."""
        return list(itertools.product(*(axis.phases for axis in self.all)))

    @property
    def sums(self) -> int:
        """Products that another algorithm has, of a channel, a filter and an image."""
        return math.prod(axis.sums for axis in self.all)

    @property
    def phases_alike(self) -> int:
        """How many phases read the same cells: all or 1."""
        cells = {tuple(section.cell for one in phase for section in one.sections) for phase in self.phases}
        return len(self.phases) if len(cells) == 1 else 1

    def sections(self, phase: tuple[Phase, ...]) -> list[tuple[Section, ...]]:
        """Of a phase, of all axes together. The first has the most taps: its sums need no others."""
        return list(itertools.product(*(one.sections for one in phase)))


def tiles_in_words(axes: Axes) -> str:
    """The outputs of a tile."""
    return f"tiles of {axes.rows.scheme.outputs} x {axes.columns.scheme.outputs} outputs"


def tap_steps(axes: Axes, g: Geometry) -> tuple[int, int]:
    """From one tap of a section to the next in a filter's memory, along rows and columns."""
    return axes.rows.tap_step * g.kernel[-1] if g.axes > 1 else axes.columns.tap_step, axes.columns.tap_step


def taps_of(axes: Axes, g: Geometry) -> tuple[int, int]:
    """The same as the kernels ask it: (0, 0) where a section has all taps of a filter, so that those of a channel follow."""
    whole = len(axes.phases) == 1 and len(axes.sections(axes.phases[0])) == 1 and axes.columns.tap_step == 1
    return (0, 0) if whole else tap_steps(axes, g)


def span(axes: Axes, g: Geometry) -> int:
    """Cells of a filter from a section's first tap to its last."""
    steps = [abs(step) for step in tap_steps(axes, g)]
    return sum(step * (axis.scheme.taps - 1) for step, axis in zip(steps, (axes.rows, axes.columns))) + 1


def tables(axes: Axes, g: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """All sections and all phases as the kernels read them; see :mod:`konv.engine.winograd.winograd_kernels`."""
    sections: list[list[int]] = []
    phases: list[list[int]] = []
    row_length = g.kernel[-1]
    rows, columns = tap_steps(axes, g)
    for phase in axes.phases:
        own = axes.sections(phase)
        phases.append([*(one.start for one in phase), len(sections), len(own)])
        for depth, row, column in own:
            plane = row_length * (g.kernel[-2] if g.axes > 1 else 1)
            first, bits = depth.tap * plane + row.tap * row_length + column.tap, 0
            if columns < 0:  # the taps in reverse order: from the last that the scheme has
                first += rows * (axes.rows.scheme.taps - 1) + columns * (axes.columns.scheme.taps - 1)
            for i in range(row.taps):
                for k in range(column.taps):
                    cell = depth.tap * plane + row.tap * row_length + column.tap + i * rows + k * columns
                    bits |= 1 << cell - first
            cells = [one.cell for one in (depth, row, column)]
            sections.append([*cells, first, bits, axes.rows.points_of(row), axes.columns.points_of(column)])
    return np.array(sections, np.int64), np.array(phases, np.int64)


def _axis(g: Geometry, axis: int, transposed: bool, outputs: int, most_taps: int) -> Axis:
    phases = _phases(g, axis, transposed, most_taps)
    taps = max(section.taps for phase in phases for section in phase.sections)
    stride, tap_step = g.stride[axis], g.stride[axis] * (-1 if transposed else 1)
    spatial, output = g.spatial[axis], g.output[axis]
    if transposed:
        return Axis(Scheme(outputs, taps), output, spatial, g.dilation[axis], 1, stride, tap_step, phases)
    return Axis(Scheme(outputs, taps), spatial, output, g.dilation[axis], stride, 1, tap_step, phases)


def _phases(g: Geometry, axis: int, transposed: bool, most_taps: int) -> tuple[Phase, ...]:
    stride, dilation, kernel, low = g.stride[axis], g.dilation[axis], g.kernel[axis], g.padding[axis][0]
    if not transposed:
        sections = [
            Section(q + stride * first, taps, dilation * (q + stride * first) - low)
            for q in range(min(stride, kernel))
            for first, taps in _cut(-(-(kernel - q) // stride), most_taps)
        ]
        sections.sort(key=lambda section: -section.taps)
        return (Phase(0, g.output[axis], tuple(sections)),)
    phases = []
    for q in range(min(stride, g.spatial[axis])):
        q = (q + low) % stride
        taps, first_output = -(-(kernel - q) // stride), -(-(low - q) // stride)
        start = stride * first_output + q - low
        sections = [
            Section(q + stride * (taps - 1 - first), own, first_output - dilation * (taps - 1 - first))
            for first, own in _cut(taps, most_taps)
        ]
        count = -(-(g.spatial[axis] - start) // stride)
        phases.append(Phase(start, count, tuple(sorted(sections, key=lambda section: -section.taps))))
    return tuple(phases)


def _cut(taps: int, most: int) -> list[tuple[int, int]]:
    """(first, number) of the sections of some taps: few, and about equally long."""
    number = -(-taps // most) if taps > 0 else 0
    ends = [taps * i // number for i in range(number + 1)] if number else [0]
    return [(first, end - first) for first, end in itertools.pairwise(ends)]


_WHOLE = Axis(PLAIN, 1, 1, 1, 1, 1, 1, (Phase(0, 1, (Section(0, 1, 0),)),))
