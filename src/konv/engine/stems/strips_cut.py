"""How first layers are cut into blocks of rows and columns, whose part of x is copied; and where each tap reads in the copy."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import numpy as np

from konv.engine.machine import wide_type
from konv.geometry import Geometry

# Of a copied row: a long one is cut, into parts as long as may be, since y is written in as many streams.
ROW_BYTES = 128 << 10
LEAST_PIECES, LEAST_PART = 8, 512  # or into so many pieces, of so many outputs at least


@dataclass(frozen=True)
class Cut:
    """``units`` blocks of all images, the numbers that kernels are given, and the taps' offsets."""

    units: int
    numbers: dict[str, int]
    offsets: np.ndarray


@functools.lru_cache(maxsize=256)
def cut_rows(g: Geometry, dtype: str, tile: int, block_bytes: int) -> Cut:
    """Blocks of whole rows whose copy fits ``block_bytes``, or of parts of one row, of whole tiles of so many columns."""
    itemsize = np.dtype(wide_type(dtype)).itemsize
    height, row, out_height, out_row = (*(1,) * (2 - g.axes), *g.spatial, *(1,) * (2 - g.axes), *g.output)
    (kernel_high, kernel_wide), (row_stride, stride), (dilated_high, dilated_wide) = (
        (1,) * (2 - g.axes) + n for n in (g.kernel, g.stride, g.dilation)
    )
    low = ((0, 0),) * (2 - g.axes) + g.padding
    column_blocks = -(-out_row * g.channels * stride * itemsize // ROW_BYTES)
    if g.axes == 1:
        column_blocks = max(column_blocks, min(LEAST_PIECES // max(1, g.batch), out_row // LEAST_PART))
    block_columns = out_row if column_blocks == 1 else whole(-(-out_row // column_blocks), tile)
    column_blocks = -(-out_row // block_columns)
    pitch = whole(whole(block_columns, tile) + (kernel_wide - 1) * dilated_wide // stride, 16)
    line = g.channels * stride * pitch * itemsize
    span = (kernel_high - 1) * dilated_high + 1
    block_rows = max(1, min(out_height, (block_bytes // line - span) // row_stride + 1))
    row_blocks = -(-out_height // block_rows)
    block_rows = -(-out_height // row_blocks)
    lines = (block_rows - 1) * row_stride + span
    offsets = [
        ((c * lines + i * dilated_high) * stride + j * dilated_wide % stride) * pitch + j * dilated_wide // stride
        for c, i, j in itertools.product(range(g.channels), range(kernel_high), range(kernel_wide))
    ]
    numbers = dict(
        channels=g.channels, height=height, row=row, out_height=out_height, out_row=out_row, row_blocks=row_blocks,
        block_rows=block_rows, column_blocks=column_blocks, block_columns=block_columns, lines=lines, pitch=pitch,
        row_stride=row_stride, pad_height=low[0][0], pad_row=low[1][0], slot_size=g.channels * lines * stride * pitch,
    )  # fmt: skip
    return Cut(g.batch * row_blocks * column_blocks, numbers, np.array(offsets, np.int64))


def whole(n: int, unit: int) -> int:
    """The next multiple of ``unit``."""
    return -(-n // unit) * unit
