"""1x1 layers in bfloat16, on CPUs that multiply its pairs (AVX512_BF16): twice as many products as in float32.

The products of :mod:`konv.engine.products.products`, whose blocks are packed as pairs (see
:mod:`konv.engine.products.pairs_kernels`): nothing is widened. Sums are float32 and rounded once, as everywhere; but the
instruction takes what is smaller than the smallest normal number, 2**-126, for zero, in its operands and in its sums.

On two cores of a Zen 4 the instruction reaches twice the multiply-adds of float32, and the tile alone 95 to 100 % of that.
256-64@56 reaches 173, 168 and 155 % of the limit in float32 (forward, input and weight gradient), with channels last 194, 182 and
161 %, which was 141, 146, 125 and 142, 161, 141 % when tiles waited for memory. It answers late where 128 bytes are read a page
apart, and asking for them beside the tile gained nothing; so four panels are read along each channel, and a line of what
comes next is asked for beside each pair. What is left: packing x again (a tenth), and writing y. Weaving two vectors
into two lines of y takes .9 of an input gradient's time; the instruction that rounds two vectors gained no more, and it takes
a bias below the smallest normal number for zero, too. Regions of 256 x 256 sums of the weight gradient, not 256 x 192:
.9 of the time of 256 channels, which are one region then and lay out dy once.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import numpy as np

from konv.arrays import known_layout
from konv.engine import roofline
from konv.engine.launch import Job
from konv.engine.machine import dtype_name, machine
from konv.engine.prepared import Prepared, Step, both_ways, prepared
from konv.engine.products.pairs_kernels import ONE_BLOCK, TOGETHER, multiply_pairs
from konv.engine.products.pairs_last_kernels import multiply_pairs_last
from konv.engine.products.pairs_outer import sum_pairs
from konv.engine.products.products import SMALL_GROUP
from konv.engine.products.products_grids import tile_shape
from konv.engine.products.products_weight_jobs import even
from konv.engine.products.products_weights import add_sums
from konv.engine.threads import get_threads, width
from konv.geometry import Geometry

if TYPE_CHECKING:
    from konv.engine.plan import Problem

NAME = "pairs"
BEYOND = "an instruction multiplies and adds two numbers a lane"
ROWS_BYTES = 256 << 10  # rows of w that stay in L2; each panel of pixels, a part of L1, meets them all while they do
BLOCK_BYTES = 384 << 10  # where there are more, packed pixels stay in L2 beside them
PIECE_PANELS = 24  # of pixels
# Rows by vectors of a tile: even vectors, which are woven. The numbers: what a product costs. 6 x 4 instead of 12 x 2: of each
# row two cache lines are read and written, not one.
TILES, FEW_REGISTERS = {(6, 4): 1, (12, 2): 1.03, (8, 2): 1.15}, {(6, 2): 1, (4, 2): 1.1}
MOST_ROWS = 12  # of a tile with channels last
CHUNK_BYTES = 16 << 10  # of its pixels, which stay in L1 while each panel of w meets them
BLOCK_PIXELS = 256  # of the weight gradient
REGION = (256, 256)  # its sums, (filters, channels), stay in L2 beside those pixels
PARTS_BYTES = 256 << 10  # what sums over parts of the pixels may take, or 1/16 of x
PIECES = 8  # so many, that threads share them evenly
CELL = 4  # bytes of a pair, and of a sum

__all__ = ["NAME", "blocking", "declines", "forward", "input_gradient", "share", "weight_gradient", "workspace"]


def declines(problem: Problem) -> str | None:
    """Other types and CPUs, kernels of more than a cell, strides, padding, few channels; channels last: groups, odd channels."""
    g = problem.geometry
    if problem.dtype != "bfloat16":
        return f"{problem.dtype}; it multiplies pairs of bfloat16"
    if not machine().dots:
        return "this CPU has no AVX512_BF16"
    if math.prod(g.kernel) > 1 or math.prod(g.stride) > 1 or any(map(any, g.padding)):
        return "no 1x1 layer with stride 1 and without padding"
    if min(g.filters, g.channels) // g.groups <= SMALL_GROUP:
        return f"{g.groups} groups of {g.channels // g.groups} x {g.filters // g.groups} leave most of a tile empty"
    if problem.layout == "last" and problem.kind != "weight_gradient":
        if g.groups > 1:
            return f"groups = {g.groups}, channels last"
        if (odd := g.filters if problem.kind == "input_gradient" else g.channels) % 2:
            return f"{odd} channels last: their pairs would reach into the next pixel"
    return None


def workspace(problem: Problem) -> int:
    """Bytes borrowed while it runs."""
    last = problem.layout == "last"
    if problem.kind == "weight_gradient":
        return _gradient(problem.geometry, problem.dtype, last, get_threads()).size
    prepare = _product_last if last else _product
    return prepare(problem.geometry, problem.kind == "input_gradient", problem.dtype, get_threads()).size


def weight_gradient(dy: np.ndarray, x: np.ndarray, g: Geometry, out: np.ndarray) -> None:
    """Write dL/dw (F, C // groups, *kernel) into ``out``."""
    _gradient(g, dtype_name(out.dtype), known_layout(dy, x) == "last", get_threads()).run(dy=dy, x=x, dw=out)


@functools.lru_cache(maxsize=512)
def _product(g: Geometry, transposed: bool, y_dtype: str, threads: int) -> Prepared:
    lanes, tiles = machine().lanes("bfloat16"), TILES if machine().registers >= 32 else FEW_REGISTERS
    reduction, row_count = g.channels // g.groups, g.filters // g.groups
    if transposed:
        reduction, row_count = row_count, reduction
    image_pixels, pairs = math.prod(g.output), -(-reduction // 2)
    pixels = g.batch * image_pixels

    def cost(tile: tuple[int, int]) -> float:
        """Few pixels may leave most of the last panel empty: 49 fill three vectors, and begin another."""
        return -(-row_count // tile[0]) * tile[0] * -(-pixels // (lanes * tile[1])) * tile[1] * tiles[tile]

    rows, vectors = min(tiles, key=cost)
    panel = lanes * vectors
    unit = max(rows, lanes) if transposed else rows
    row_group = max(1, min(-(-row_count // unit), ROWS_BYTES // (unit * pairs * CELL))) * unit
    row_groups = -(-row_count // row_group)
    panel_size = (pairs + 1) * panel  # or the same cells of all panels would share a place in the caches
    all_panels = -(-pixels // panel)
    block_panels = max(1, min(PIECE_PANELS, all_panels))
    while block_panels > 2 and -(-all_panels // block_panels) < 4 * threads:
        block_panels = -(-block_panels // 2)
    together = block_panels if row_groups > 1 else min(block_panels, TOGETHER)
    packed_panels = max(1, min(together, BLOCK_BYTES // (panel_size * CELL)))
    blocks, part_groups = -(-all_panels // block_panels) * g.groups, row_groups
    while blocks * -(-row_groups // part_groups) < 4 * threads and part_groups > 1:
        part_groups = -(-part_groups // 2)
    parts = -(-row_groups // part_groups)
    copied = -(-row_group // lanes) * lanes * pairs
    result = rows * panel
    slot_size = -(-(panel_size * packed_panels + result + lanes + copied) // lanes) * lanes
    job = Job(
        multiply_pairs(y_dtype, lanes, vectors, rows, transposed, pairs <= ONE_BLOCK), blocks * parts, slot_size=slot_size,
        panel_size=panel_size, block_panels=block_panels, packed_panels=packed_panels, groups=g.groups, parts=parts,
        part_groups=part_groups, row_group=row_group, row_count=row_count, reduction=reduction, pixels=pixels,
        image_pixels=image_pixels, most_runs=(panel - 2) // max(1, image_pixels) + 2,
    )  # fmt: skip
    work = pixels * g.groups * row_count * reduction
    return prepared(job, work, slot_size, "bfloat16", g.groups * row_count, slots="workspace")


@functools.lru_cache(maxsize=512)
def _product_last(g: Geometry, transposed: bool, y_dtype: str, threads: int) -> Prepared:
    lanes, (rows, vectors) = machine().lanes("bfloat16"), tile_shape()
    reduction, filters = (g.filters, g.channels) if transposed else (g.channels, g.filters)
    pixels, pairs = g.batch * math.prod(g.output), reduction // 2
    # 6 pixels x 4 vectors are 10 % faster than 12 x 2
    tile, vectors = rows * vectors, min(4, 3, 2, 1, key=lambda n: -(-filters // (lanes * n)) * n)
    rows, panel = min(tile // vectors, MOST_ROWS), lanes * vectors
    all_panels = -(-filters // panel)
    part_panels = max(1, min(all_panels, ROWS_BYTES // max(1, pairs * panel * CELL)))
    block_pixels = PIECE_PANELS * 48
    while block_pixels > 8 * rows and -(-pixels // block_pixels) * -(-all_panels // part_panels) < 4 * threads:
        block_pixels //= 2
    while part_panels > 1 and -(-pixels // block_pixels) * -(-all_panels // part_panels) < 4 * threads:
        part_panels = -(-part_panels // 2)
    parts, slot_size = -(-all_panels // part_panels), part_panels * pairs * panel
    job = Job(
        multiply_pairs_last(y_dtype, lanes, vectors, rows, transposed, pairs <= ONE_BLOCK),
        -(-pixels // block_pixels) * parts, slot_size=slot_size, pixels=pixels, block_pixels=block_pixels,
        chunk_pixels=max(1, CHUNK_BYTES // (rows * reduction * 2)) * rows, parts=parts, part_panels=part_panels,
        all_panels=all_panels, reduction=reduction, filters=filters,
    )  # fmt: skip
    return prepared(job, pixels * reduction * filters, slot_size, "bfloat16", all_panels * panel, slots="workspace")


def _run(x: np.ndarray, w: np.ndarray, b: np.ndarray | None, g: Geometry, transposed: bool, out: np.ndarray) -> None:
    prepare = _product_last if known_layout(x, out) == "last" else _product
    plan = prepare(g, transposed, dtype_name(out.dtype), get_threads())
    plan.run(x=x, w=w, bias=plan.bias(b), y=out)


forward, input_gradient = both_ways(_run)


@functools.lru_cache(maxsize=512)
def _gradient(g: Geometry, out_dtype: str, last: bool, threads: int) -> Prepared:
    """Sums over parts of the pixels, if there are several, are added up in the end."""
    lanes, (rows, vectors) = machine().lanes("bfloat16"), tile_shape()
    row_count, reduction = g.filters // g.groups, g.channels // g.groups
    images, pixels = (1, g.batch * math.prod(g.output)) if last else (g.batch, math.prod(g.output))
    vectors = min((vectors, vectors - 1), key=lambda n: -(-reduction // (lanes * n)) * n)
    block_pixels = min(pixels, BLOCK_PIXELS)
    image_blocks = -(-pixels // max(1, block_pixels))
    block_images = max(1, min(images, BLOCK_PIXELS // max(1, pixels)))
    blocks = -(-images // block_images) * image_blocks
    cells = g.groups * row_count * reduction
    most = max(PARTS_BYTES, images * pixels * g.channels * CELL // 16) // (cells * CELL)
    for narrower, shorter in ((1, 1), (2, 1), (4, 1), (4, 2)):  # shorter ones lay out x more often
        row_regions, region_rows = even(row_count, REGION[0] // shorter, max(rows, lanes))
        column_regions, region_columns = even(reduction, REGION[1] // narrower, lanes * vectors)
        pieces = g.groups * row_regions * column_regions
        parts = max(1, min(-(-PIECES // pieces), most, blocks))
        if pieces * parts >= PIECES:
            break
    block_pairs = block_images * -(-block_pixels // 2)
    packed = block_pairs * (region_rows + -(-region_columns // (lanes * vectors)) * lanes * vectors)
    slot_size = -(-(region_rows * region_columns + packed) // lanes) * lanes
    job = Job(
        sum_pairs(out_dtype if parts == 1 else "float32", lanes, vectors, rows, last, block_pairs <= ONE_BLOCK),
        pieces * parts, slot_size=slot_size, groups=g.groups, parts=parts, row_count=row_count, region_rows=region_rows,
        row_regions=row_regions, reduction=reduction, region_columns=region_columns, column_regions=column_regions,
        images=images, pixels=pixels, blocks=blocks, image_blocks=image_blocks, block_images=block_images,
        block_pixels=block_pixels,
    )  # fmt: skip
    part_cells, after = -(-parts * cells // lanes) * lanes if parts > 1 else 0, []
    if parts > 1:
        chunk = 1024 * lanes
        add = Job(add_sums("float32", out_dtype, lanes), -(-cells // chunk), parts=parts, numbers=cells, chunk=chunk)
        after.append(Step(add, width(add.pieces, part_cells), {"sums": "parts", "out": "dw"}))
    return prepared(
        job, images * pixels * cells, slot_size, "bfloat16", names={"out": "parts" if after else "dw"}, after=after,
        slots="workspace", parts=part_cells,
    )  # fmt: skip


def blocking(problem: Problem) -> str:
    """Blocks and pieces, in words."""
    g, dtype, last, threads = problem.geometry, problem.dtype, problem.layout == "last", get_threads()
    if problem.kind == "weight_gradient":
        return f"blocks of filters by channels, summed over blocks of pixels; {_gradient(g, dtype, last, threads).cut}"
    product = (_product_last if last else _product)(g, problem.kind == "input_gradient", dtype, threads)
    return f"blocks of pixels by blocks of w's rows, two numbers in a lane; {product.cut}"


def share(problem: Problem) -> float:
    """Of the limit in float32; see :mod:`konv.engine.roofline`. Two products an instruction."""
    return roofline.share(problem, 0.5, speed=0.9, moving=1.5, storing=1)
