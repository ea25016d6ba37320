"""How windows lie in x and y, and what the jobs of products ask of both; see :mod:`konv.engine.products.products`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from konv.engine.machine import machine
from konv.geometry import Geometry

BLOCK_BYTES = 384 << 10  # the packed pixels of a piece stay in L2
MOVED = 128  # multiply-adds that take as long as a number of a window is read or written, its length unknown to kernels


@dataclass(frozen=True)
class Grid:
    """How the windows of an array (N, channels, depth, height, width) lie in it."""

    lanes: int
    groups: int
    channels: int
    spatial: tuple[int, int, int]
    windows: tuple[int, int, int]  # how many there are, line by line
    kernel: tuple[int, int, int]
    step: tuple[int, int, int]

    @property
    def stride(self) -> int:
        """The step along a row if kernels are compiled for it, else 0."""
        return self.step[2] if self.step[2] in (1, 2, 4, 8, 16) and self.step[2] <= self.lanes else 0

    @property
    def taps(self) -> int:
        """Cells of a window in a row if kernels are compiled for them, else 0."""
        return self.kernel[2] if self.stride or self.kernel[2] == 1 else 0

    @property
    def rows(self) -> int:
        """Numbers in a window."""
        return self.channels * math.prod(self.kernel)

    def numbers(self, name: str) -> dict[str, int]:
        """The kernel's arguments that begin with ``name``."""
        (depth, height, cells), lines = self.spatial, self.windows
        channel = depth * height * cells
        sizes = dict(
            image=self.groups * self.channels * channel, channels=self.channels, channel=channel, depth=height * cells,
            row=cells, cells=cells, kernel_depth=self.kernel[0], kernel_height=self.kernel[1], kernel_width=self.kernel[2],
            step_depth=self.step[0], step_height=self.step[1], step=self.step[2],
            line_pixels=lines[2], depth_lines=lines[1], image_lines=lines[0] * lines[1],
        )  # fmt: skip
        return {f"{name}_{key}": size for key, size in sizes.items()}


def grids(g: Geometry, lanes: int) -> tuple[Grid, Grid]:
    """The grids of x and of y. Pixels of y, and of the x of 1x1 layers, are one long row."""
    ones = (1,) * (3 - g.axes)
    spatial, output, kernel, step = ones + g.spatial, ones + g.output, ones + g.kernel, ones + g.stride
    row = (1, 1, math.prod(output))
    if math.prod(step) == 1 and spatial == output:
        spatial = output = row
    one = (1, 1, 1)
    x = Grid(lanes, g.groups, g.channels // g.groups, spatial, output, kernel, step)  # type: ignore[arg-type]
    return x, Grid(lanes, g.groups, g.filters // g.groups, row, row, one, one)


def work(x: Grid, pixels: int, products: int) -> int:
    """Multiply-adds, and what takes as long, of so many for a pixel and group."""
    return pixels * x.groups * (products + (0 if x.taps else MOVED * x.rows))


def columns_bytes(g: Geometry, itemsize: int) -> int:
    """Bytes of the textbook's matrix of all windows."""
    return g.batch * math.prod(g.output) * g.channels * math.prod(g.kernel) * itemsize


def tile_shape() -> tuple[int, int]:
    """(rows, vectors) of the register tile: 8 x 3 of 32 registers, 4 x 3 of 16."""
    return (8, 3) if machine().registers >= 32 else (4, 3)
