"""Forward and input gradient as matrix products: their tile, blocks and pieces; see :mod:`konv.engine.products.products`.

One level of Strassen's algorithm, as seven products of half the size, took 1.04 to 1.1 times as long as the whole on the deepest
1x1 layers, before its additions: more is lost at the edges of small products than the eighth that is saved. Within one kernel,
quarters added where the register tile (8 x 3 vectors, at 95 % of the limit) reads them, by adders that idle beside Zen's
multipliers, it was 1.05 to 1.1 times as fast with eight images, 0.96 to 1.02 with one (512-2048@7: 1.04 with eight, no gain
with one). It was taken out, as outputs half an image and half the filters apart shared rounding and NaN: with the upper half of a
picture times 100, the lower half's error was 5.4e-5 of its largest output, the direct sum's 4.5e-7.

On deep 1x1 layers, forward, tiles of 6 x 4, 4 x 4 and 4 x 5 vectors were no faster beyond the noise, blocks of twice the size
up to a tenth slower: one thread reaches 99 to 106 GFLOP/s of the 107 that it reaches with channels last.

Summing deep input gradients 256 products at a time over all pixels (w is read once), and asking for the next rows of w while
tiles multiply, took as long as now or longer. Of 2048 filters tiles of 16 x 1 or 12 x 2 vectors took 1.1 to 1.35 times as long,
32 rows of w turned at a time 1.1. Laid channels last, multiplied by ``products_last`` and laid back, 8 images of
512-2048@7 and of 1024-2048@14 with stride 2 took 0.91 to 1.06 of the time on two threads, one image 1.4.

Gradients of 1x1 layers with stride 2 reach 75 to 85 % of the multiply-add limit, 1.25 to 1.75 times PyTorch's speed; at the
limit itself it would be 1.7 to 2.2. Smaller blocks of pixels (96 to 256 KiB), and divisions saved in the writing of dx, changed
less than the noise.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

from konv.engine import memory
from konv.engine.launch import Job, address
from konv.engine.machine import machine, wide_type
from konv.engine.products.products_grids import BLOCK_BYTES, columns_bytes, grids, tile_shape, work
from konv.engine.products.products_kernels import multiply_pixels
from konv.engine.threads import width
from konv.geometry import Geometry

LEAST_BYTES = (
    192 << 10
)  # a block is at most 1/16 of the textbook's matrix, or so much: w is read again for every block of pixels
GROUP_ROWS, ROWS_BYTES = 64, 16 << 10  # at most so many rows of w, which stay in L1 beside a panel
PAGE = 4096  # bytes: rows of w so far apart share a set of L1, where eight and a panel have no room;
FEW_ROWS = (4, 5)  # this tile's took 0.8 times as long
SHORT = 256  # sums of at most so many products: 16 in registers, not 24, are 5 to 40 % faster; of longer ones slower
WIDE = 64  # bytes of vectors of which halves take half of the time


@dataclass(frozen=True)
class Product:
    """A forward or an input gradient, prepared."""

    multiply: Job
    no_bias: np.ndarray
    threads: int
    size: int


@functools.lru_cache(maxsize=512)
def prepare_product(g: Geometry, transposed: bool, x_dtype: str, y_dtype: str, threads: int) -> Product:
    """The job of a forward or, ``transposed``, of an input gradient, which reads x_dtype and writes y_dtype."""
    host, wide = machine(), wide_type(x_dtype)
    lanes, (rows, vectors) = host.lanes(x_dtype), tile(g, transposed, x_dtype)
    itemsize = np.dtype(wide).itemsize
    source, target = grids(g, lanes)
    if transposed:
        source, target = target, source
    reduction, row_count, pixels = source.rows, target.rows, g.batch * math.prod(g.output)
    vectors = max(1, min(vectors, -(-pixels // lanes)))
    panel_width = lanes * vectors
    row_group = math.lcm(rows, target.kernel[2])
    if not transposed:  # what a panel costs is paid once for more rows
        most = -(-min(GROUP_ROWS, row_count) // row_group)
        row_group *= max(1, min(most, ROWS_BYTES // (row_group * reduction * itemsize)))
    if transposed:  # whole vectors of w
        row_group = max(row_group, lanes)
    row_groups = -(-row_count // row_group)
    panel_size = (reduction + (0 if source.taps else lanes)) * panel_width
    block_bytes = max(LEAST_BYTES, min(BLOCK_BYTES, columns_bytes(g, itemsize) // 16))
    block_panels = max(2 if transposed else 1, min(block_bytes // (panel_size * itemsize), -(-pixels // panel_width)))
    while block_panels > 2 and -(-pixels // (panel_width * block_panels)) < 4 * threads:
        block_panels = -(-block_panels // 2)
    block_panels = _evened(block_panels, -(-pixels // panel_width), g.groups, threads)
    blocks = -(-pixels // (panel_width * block_panels)) * g.groups
    part_groups = row_groups
    while blocks * -(-row_groups // part_groups) < 4 * threads and part_groups > 4:
        part_groups = -(-part_groups // 2)
    parts = -(-row_groups // part_groups)
    # A last block of a few pixels alone is cut among the threads: else one of them would compute it when the others are done
    whole_blocks = pixels // (panel_width * block_panels)
    tail_groups = -(-part_groups // threads) if whole_blocks * parts >= threads else part_groups
    tail_parts = -(-row_groups // tail_groups)
    blocks = g.groups * (
        whole_blocks * parts + (tail_parts if pixels > whole_blocks * panel_width * block_panels else 0)
    )
    rest = pixels % panel_width
    tail = "half" if 0 < rest <= lanes // 2 and host.vector_bytes == WIDE else -(-pixels // lanes) % vectors
    copied = 0 if not transposed and x_dtype == wide else -(-row_group // lanes) * lanes * reduction
    results = (row_group + (0 if target.taps else lanes)) * panel_width
    slot_size = -(-(panel_size * block_panels + results + lanes + copied) // lanes) * lanes
    fills = {
        f"y_fill_{name}": step if kernel == 1 else 1
        for name, step, kernel in zip(("depth", "height"), target.step, target.kernel)
    }
    kernel = multiply_pixels(
        x_dtype, y_dtype, lanes, vectors, tail, rows, transposed, source.stride, source.taps,
        target.stride, target.taps,
    )  # fmt: skip
    job = Job(
        kernel, blocks, slot_size=slot_size, panel_size=panel_size, block_panels=block_panels, groups=g.groups,
        parts=parts, part_groups=part_groups, row_group=row_group, row_count=row_count, reduction=reduction, pixels=pixels,
        x_runs=(panel_width - 2) // source.windows[2] + 2, y_runs=(panel_width - 2) // target.windows[2] + 2,
        y_depths=target.spatial[0], y_rows=target.spatial[1],
        y_plain=int(math.prod(target.kernel + target.step) == 1), next_pixels=block_panels * panel_width * threads,
        whole_pieces=whole_blocks * parts * g.groups, whole_blocks=whole_blocks, tail_parts=tail_parts, tail_groups=tail_groups,
        x_lines=-(-min(block_panels * panel_width, pixels) // source.windows[2]),
        **source.numbers("x"), **target.numbers("y"), **fills,
    )  # fmt: skip
    used = width(job.pieces, work(target if transposed else source, pixels, row_count * reduction))
    return Product(job, np.zeros(g.groups * row_count, wide), used, used * slot_size * itemsize)


def _evened(most: int, panels: int, groups: int, threads: int) -> int:
    """Panels of a block, up to a quarter fewer than ``most``: as many as let the threads end together."""

    def longest(size: int) -> float:
        """Panels of the thread that has the most; a last, short block is shared."""
        return -(-(panels // size * groups) // threads) * size + panels % size * groups / threads

    return min(range(most, most - most // 4 - 1, -1), key=longest)


def tile(g: Geometry, transposed: bool, dtype: str) -> tuple[int, int]:
    """(rows, vectors) of a forward or an input gradient: whole cache lines of 4 rows where sums are short."""
    reduction = (g.filters if transposed else g.channels * math.prod(g.kernel)) // g.groups
    if machine().registers < 32:
        return tile_shape()
    if reduction <= SHORT and (math.prod(g.kernel) == 1 or not transposed):
        return 4, 4
    return tile_shape() if transposed or reduction * np.dtype(wide_type(dtype)).itemsize % PAGE else FEW_ROWS


def multiply(plan: Product, x: int, w: int, b: int, out: int) -> None:
    """Run it on addresses; ``b`` may be 0."""
    with memory.workspace(plan.size) as space:
        plan.multiply.run(plan.threads, w=w, x=x, bias=b or address(plan.no_bias), y=out, workspace=space)


@functools.lru_cache(maxsize=512)
def leaves_cells(g: Geometry, lanes: int) -> bool:
    """Whether the product itself does not write all cells of dx: those no window reads, and steps unknown to kernels."""
    x, _ = grids(g, lanes)
    unread = any(n > o * s for n, o, s in zip(g.spatial, g.output, g.stride))
    return unread or (x.stride == 0 and any(k == 1 < s for k, s in zip(x.kernel, x.step)))
