"""What an output reads, axis by axis: the taps of a window, the phases of an input gradient, the padding; and as tables.

Forward and input gradient are correlations with the same three axes (see :mod:`konv.engine.direct.direct`).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from konv.geometry import Geometry

MOST_KINDS = 6  # of blocks along an axis, or their tables are not worth it
WIDE_SPACE = 8
Active = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Sweep:
    """One axis: sum m of a phase reads the cells ``m * stride + tap - pad`` and is written to ``m * phases + phase``.

    ``taps[phase]`` and ``indices[phase]`` are the cells, and the kernel indices that belong to them.
    """

    length: int
    stride: int
    pad: int
    sums: int
    out: int
    taps: tuple[tuple[int, ...], ...]
    indices: tuple[tuple[int, ...], ...]

    @property
    def phases(self) -> int:
        """Sums that interleave."""
        return len(self.taps)

    def active(self, phase: int, first: int, count: int) -> tuple[int, ...]:
        """The taps of a phase, by number, that meet a cell in some of so many sums; the others read only padding."""
        found = []
        for k, tap in enumerate(self.taps[phase]):
            low = max(first, -(-(self.pad - tap) // self.stride))
            high = min(first + count - 1, (self.length - 1 + self.pad - tap) // self.stride)
            if low <= high:
                found.append(k)
        return tuple(found)

    def kinds(self, block: int, skip: bool) -> tuple[list[Active], list[int]]:
        """What the blocks of so many sums have to do: the different sets of taps that they need, and which of them each has."""
        every = tuple(tuple(range(len(taps))) for taps in self.taps)
        starts = range(0, self.sums, block)
        sets = [tuple(self.active(phase, m, min(block, self.sums - m)) for phase in range(self.phases)) for m in starts]
        different = list(dict.fromkeys(sets))
        if not skip or len(different) > MOST_KINDS:
            return [every], [0] * len(starts)
        return different, [different.index(needed) for needed in sets]

    def written(self, phase: int) -> int:
        """How many sums of a phase lie inside the output."""
        return max(0, -(-(self.out - phase) // self.phases))

    @property
    def worthwhile_block(self) -> int:
        """So many sums that a block of them may have no use for some taps: the space between taps, where that is wide."""
        taps = self.taps[0]
        space = abs(taps[1] - taps[0]) if len(taps) > 1 else 0
        worthwhile = min(space, self.pad) >= WIDE_SPACE and -(-self.sums // space) <= MOST_KINDS
        return min(space, self.sums) if worthwhile else self.sums

    @property
    def window(self) -> int:
        """Cells that one sum spans."""
        return max(itertools.chain((0,), *self.taps)) + 1


def _sweep(g: Geometry, axis: int, gradient: bool) -> Sweep:
    length, out, kernel, stride, dilation = (n[axis] for n in (g.spatial, g.output, g.kernel, g.stride, g.dilation))
    low = g.padding[axis][0]
    if not gradient:
        window = tuple(k * dilation for k in range(kernel))
        return Sweep(length, stride, low, out, out, (window,), (tuple(range(kernel)),))
    chosen, back = [], []
    for phase in range(stride):  # cell m * stride + phase met index t in the output m - back
        cell = phase + low
        chosen.append(tuple(t for t in range(kernel) if (t * dilation - cell) % stride == 0))
        back.append([(t * dilation - cell) // stride for t in chosen[-1]])
    far = max(itertools.chain(*back))
    taps = tuple(tuple(far - b for b in each) for each in back)
    return Sweep(out, 1, far, -(-length // stride), length, taps, tuple(chosen))


ONE_CELL = Sweep(1, 1, 0, 1, 1, ((0,),), ((0,),))


def sweeps(g: Geometry, gradient: bool) -> list[Sweep]:
    """The three axes of a convolution's forward, or of its input gradient."""
    return [ONE_CELL] * (3 - g.axes) + [_sweep(g, axis, gradient) for axis in range(g.axes)]


@dataclass(frozen=True)
class Tables:
    """For a kernel: where the input of each tap lies in a block's copy, and where each weight lies in a panel.

    There is one set for each kind of blocks: taps that read only padding are left out.

    Attributes
    ----------
    offsets : of each kind, phase, channel of a slice, tap
    places : of each kind, channel of a slice, weight of a filter: its row in the panel; the last where nothing takes it
    phases : of each kind and phase: where its offsets and its panel rows begin, taps of a channel, row phase, column phase
    kinds : of each depth, then of each block of rows, then of columns: what it adds to the number of the kind
    panel_rows : rows of a panel
    """

    offsets: np.ndarray
    places: np.ndarray
    phases: np.ndarray
    kinds: np.ndarray
    panel_rows: int


def tables(
    axes: list[Sweep],
    depth_phase: int,
    blocks: tuple[int, int],
    kernel: tuple[int, ...],
    channels: int,
    cells: int,
    last: bool,
    skip: bool,
) -> Tables:
    """The tables for blocks of so many rows and columns, slices of ``channels``, copied rows of ``cells``.

    ``last`` : whether the channels of a copied cell are neighbours, instead of the cells of a channel
    """
    depth, height, row = axes
    kinds = [axis.kinds(block, skip) for axis, block in zip(axes, (1, *blocks))]
    (depth_sets, of_depth), (height_sets, of_height), (row_sets, of_row) = kinds
    depth_taps = len(depth.taps[depth_phase])
    cell_step, channel_step = (channels, 1) if last else (1, cells)
    pairs = list(itertools.product(range(height.phases), range(row.phases)))
    offsets: list[int] = []
    places, phases, ends = [], [], []
    for j_set, h_set, v_set in itertools.product(depth_sets, height_sets, row_sets):
        place = np.full((channels, *kernel), -1, np.int64)
        end = 0
        for h_phase, v_phase in pairs:
            taps = list(itertools.product(j_set[depth_phase], h_set[h_phase], v_set[v_phase]))
            phases.append((len(offsets), end, len(taps), h_phase, v_phase))
            lines = [
                (height.taps[h_phase][h] * depth_taps + j) * channels * cells + row.taps[v_phase][v] * cell_step
                for j, h, v in taps
            ]
            offsets += [line + c * channel_step for c in range(channels) for line in lines]
            for k, (j, h, v) in enumerate(taps):
                index = depth.indices[depth_phase][j], height.indices[h_phase][h], row.indices[v_phase][v]
                place[(slice(None), *index)] = end + np.arange(channels) * len(taps) + k
            end += channels * len(taps)
        places.append(place.reshape(-1))
        ends.append(end)
    unused = max(ends)
    padded = [np.append(np.where(place < 0, unused, place), [unused] * 16) for place in places]
    of_depth = [kind * len(height_sets) * len(row_sets) for kind in of_depth[: depth.written(depth_phase)]]
    of_height = [kind * len(row_sets) for kind in of_height]
    as_array = lambda values: np.array(values, np.int64).reshape(-1)  # noqa: E731
    return Tables(
        as_array([*offsets, 0]), as_array(padded), as_array(phases), as_array([*of_depth, *of_height, *of_row]), unused + 1
    )  # fmt: skip
