"""The weight gradient as matrix products: its regions, parts and pieces; see :mod:`konv.engine.products.products`.

With stride 2, where 1x1 layers reach 75 to 85 % of the multiply-add limit, regions of 256 to 1024 filters changed less than the
noise.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

from konv.engine import memory
from konv.engine.launch import Job
from konv.engine.machine import machine, wide_type
from konv.engine.products.products_grids import BLOCK_BYTES, Grid, columns_bytes, grids, tile_shape, work
from konv.engine.products.products_weights import add_sums, weight_sums
from konv.engine.threads import width
from konv.engine.windows import BLOCK_SUM
from konv.geometry import Geometry

BLOCK_PIXELS = 200  # of the weight gradient: a panel of them stays near L1, and 14 x 14 are one block
# Filters, numbers of a window, whose sums stay in L2 beside those panels; wide ones pack short rows often.
REGION = (512, 96)
WHOLE_PIXELS, WHOLE_COLUMNS = 400, 64  # of all images: so few are one block, of which each tile is written at once
PACKED = 15  # multiply-adds that take as long as a number is packed for them
COLLIDING = 4096  # rows so many bytes apart, or multiples, displace each other in the caches: those of dy are copied
PARTS_BYTES = 256 << 10  # what sums over parts of the pixels may take, or 1/16 of the textbook's matrix
PIECES = 8  # so many, that threads share them evenly


@dataclass(frozen=True)
class Gradient:
    """A weight gradient, prepared. With ``add``, sums over parts of the pixels are added up in the end."""

    sums: Job
    add: Job | None
    add_biases: Job | None
    part_cells: int
    part_biases: int
    turned: bool
    threads: int
    add_threads: int
    size: int
    itemsize: int


@functools.lru_cache(maxsize=512)
def prepare_gradient(g: Geometry, dtype: str, out_dtype: str, biased: bool, threads: int) -> Gradient:
    """The jobs of a weight gradient; ``biased``: of the bias gradient, too."""
    wide, lanes, (rows, most_vectors) = wide_type(dtype), machine().lanes(dtype), tile_shape()
    itemsize = np.dtype(wide).itemsize
    x, y = grids(g, lanes)
    turned = math.prod(g.kernel + g.stride) == 1 and (
        _weight_work(y, x, rows, lanes, most_vectors) < 0.9 * _weight_work(x, y, rows, lanes, most_vectors)
    )
    if turned:
        x, y = y, x
    row_count, reduction, pixels, lines = y.rows, x.rows, math.prod(g.output), x.windows
    vectors = min((most_vectors, most_vectors - 1), key=lambda n: -(-reduction // (lanes * n)) * n)
    copied = dtype != wide or pixels * itemsize % COLLIDING == 0
    whole = 0 < g.batch * pixels <= WHOLE_PIXELS and pixels <= BLOCK_PIXELS and x.taps > 0 and not (turned or copied)
    # Windows of a length that kernels are not compiled for are copied whole, into one region
    column_regions, region_columns = even(reduction, reduction + lanes * vectors, lanes * vectors)
    most_pixels = BLOCK_PIXELS if x.taps else max(8, min(BLOCK_PIXELS, BLOCK_BYTES // (region_columns * itemsize)))
    _, block_pixels = even(pixels, most_pixels, lines[2] if lines[2] <= most_pixels else lanes)
    block_pixels = max(1, min(pixels, block_pixels))
    image_blocks = -(-pixels // block_pixels)
    block_images = g.batch if whole else max(1, min(g.batch, most_pixels // pixels))
    blocks = -(-g.batch // block_images) * image_blocks
    cells = g.groups * row_count * reduction
    most = parts_bytes(g, itemsize) // (cells * itemsize)
    most_rows, most_columns = (row_count + rows, WHOLE_COLUMNS) if whole else REGION
    for narrower, shorter in ((1, 1), (2, 1), (3, 1), (4, 1), (4, 2)):  # shorter ones lay out x more often
        row_regions, region_rows = even(row_count, most_rows // shorter, rows)
        if x.taps:
            column_regions, region_columns = even(reduction, most_columns // narrower, lanes * vectors)
        pieces = g.groups * row_regions * column_regions
        parts = max(1, min(-(-PIECES // pieces), most, blocks))
        if pieces * parts % 2 and parts < min(most, blocks):
            parts += 1  # two threads end together
        if pieces * parts >= PIECES:
            break
    if x.taps and g.groups * row_regions * parts % 2:
        column_regions, region_columns = _halved(reduction, region_columns, lanes * vectors)
        pieces = g.groups * row_regions * column_regions
    packed = block_images * block_pixels * (region_columns + lanes) + lanes * lanes * vectors
    numbers = region_rows * block_images * block_pixels + lanes if copied else 0
    kept = rows * vectors * lanes + (region_columns if turned else (region_rows + lanes) * lanes)
    kept += 0 if whole else region_rows * region_columns
    slot_size = -(-(kept + packed + numbers) // lanes) * lanes
    sums = Job(
        weight_sums(
            dtype, out_dtype if parts == 1 else wide, lanes, vectors, rows, x.stride, x.taps, copied, turned, whole
        ),
        pieces * parts, biased=int(biased), slot_size=slot_size, groups=g.groups, parts=parts, row_count=row_count,
        region_rows=region_rows, row_regions=row_regions, reduction=reduction, region_columns=region_columns,
        column_regions=column_regions, images=g.batch, pixels=pixels, blocks=blocks, image_blocks=image_blocks,
        block_images=block_images, block_pixels=block_pixels, sum_images=max(1, BLOCK_SUM // block_pixels),
        most_runs=(block_pixels - 2) // lines[2] + 2, block_lines=-(-block_pixels // lines[2]),
        **{name: n for name, n in x.numbers("x").items() if name != "x_image_lines"},
    )  # fmt: skip
    add = add_biases = None
    part_cells = part_biases = 0
    if parts > 1:
        chunk, filters = 1024 * lanes, g.filters
        add, add_biases = (
            Job(add_sums(wide, out_dtype, lanes), -(-n // chunk), parts=parts, numbers=n, chunk=chunk)
            for n in (cells, filters)
        )
        part_cells, part_biases = (-(-parts * n // lanes) * lanes for n in (cells, filters))
    used = width(sums.pieces, work(x, g.batch * pixels, row_count * reduction))
    adding = width(add.pieces, part_cells) if add else 1
    size = (part_cells + part_biases + used * slot_size) * itemsize
    return Gradient(sums, add, add_biases, part_cells, part_biases, turned, used, adding, size, itemsize)


def _weight_work(packed: Grid, read: Grid, rows: int, lanes: int, most: int) -> int:
    """Multiply-adds of a pixel and group, and what takes as long, where ``packed`` is packed and ``read`` read in place."""
    columns = min(-(-packed.rows // (lanes * n)) * lanes * n for n in (most, most - 1))
    return -(-read.rows // rows) * rows * columns + PACKED * packed.rows * -(-read.rows // REGION[0])


def _halved(count: int, most: int, unit: int) -> tuple[int, int]:
    """Regions of at most so many, as :func:`even`, whose first and second half are as even as can be."""
    panels = -(-count // unit)

    def longer(size: int) -> int:
        first = -(-panels // size) // 2 * size
        return max(first, panels - first)

    size = min(range(most // unit, 0, -1), key=longer)
    return -(-panels // size), size * unit


def parts_bytes(g: Geometry, itemsize: int) -> int:
    """What sums over parts of the pixels may take."""
    return max(PARTS_BYTES, columns_bytes(g, itemsize) // 16)


def even(count: int, most: int, unit: int) -> tuple[int, int]:
    """Regions of at most so many (a multiple of ``unit`` each), as even as can be: how many, and how large."""
    regions = -(-count // max(most // unit * unit, unit))
    return regions, -(-count // (regions * unit)) * unit


def sum_products(plan: Gradient, dy: int, x: int, db: int, out: int) -> None:
    """Run it on addresses; ``db`` may be 0."""
    rows, packed = (x, dy) if plan.turned else (dy, x)
    with memory.workspace(plan.size) as space:
        part_biases = space + plan.part_cells * plan.itemsize
        plan.sums.run(
            plan.threads, dy=rows, x=packed, out=space if plan.add else out, bias=part_biases if plan.add or not db else db,
            workspace=part_biases + plan.part_biases * plan.itemsize,
        )  # fmt: skip
        if plan.add:
            plan.add.run(plan.add_threads, sums=space, out=out)
        if plan.add_biases and db:
            plan.add_biases.run(1, sums=part_biases, out=db)
