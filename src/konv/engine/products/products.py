"""Convolutions that are matrix products on views: windows that do not overlap, without padding.

Kernels of one cell, strided or not, and kernels as long as their stride (patches; their input gradient is the transposed
convolution of U-Nets). Every cell of x belongs to one window at most, so forward, input gradient and weight gradient are
plain products, and nothing is copied but blocks that stay in the cache. Where windows see padding, the input gradient is
still one: a few padded images of it are computed, and their middles copied.

One level of Strassen's algorithm, as seven products of half the size, took 1.04 to 1.1 times as long as the whole on the deepest
1x1 layers, before its additions: more is lost at the edges of small products than the eighth that is saved.

On deep 1x1 layers, forward, tiles of 6 x 4, 4 x 4 and 4 x 5 vectors were no faster beyond the noise, blocks of twice the size
up to a tenth slower: one thread reaches 99 to 106 GFLOP/s of the 107 that it reaches with channels last.

Summing deep input gradients 256 products at a time over all pixels (w is read once), and asking for the next rows of w while
tiles multiply, took as long as now or longer. Of 2048 filters tiles of 16 x 1 or 12 x 2 vectors took 1.1 to 1.35 times as long,
32 rows of w turned at a time 1.1. Laid channels last, multiplied by ``products_last`` and laid back, 8 images of
512-2048@7 and of 1024-2048@14 with stride 2 took 0.91 to 1.06 of the time on two threads, one image 1.4.

Gradients of 1x1 layers with stride 2 reach 75 to 85 % of the multiply-add limit, 1.25 to 1.75 times PyTorch's speed; at the
limit itself it would be 1.7 to 2.2. Smaller blocks of pixels (96 to 256 KiB), regions of 256 to 1024 filters, and divisions saved
in the writing of dx changed less than the noise.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from konv.engine import memory, roofline
from konv.engine.addresses import OnAddresses
from konv.engine.launch import Job, address
from konv.engine.machine import dtype_name, machine, wide_type
from konv.engine.products.products_kernels import multiply_pixels
from konv.engine.products.products_weights import add_sums, weight_sums
from konv.engine.threads import get_threads, width
from konv.engine.windows import BLOCK_SUM
from konv.geometry import Geometry

if TYPE_CHECKING:
    from konv.engine.plan import Problem

NAME = "products"
BLOCK_BYTES = 384 << 10  # the packed pixels of a piece stay in L2; at most 1/16 of the textbook's matrix,
LEAST_BYTES = 192 << 10  # or so much: w is read again for every block of pixels
GROUP_ROWS, ROWS_BYTES = 64, 16 << 10  # at most so many rows of w, which stay in L1 beside a panel
PAGE = 4096  # bytes: rows of w so far apart share a set of L1, where eight and a panel have no room;
FEW_ROWS = (4, 5)  # this tile's took 0.8 times as long
SHORT = 256  # sums of at most so many products: 16 in registers, not 24, are 5 to 40 % faster; of longer ones slower
WIDE = 64  # bytes of vectors of which halves take half of the time
SMALL_GROUP = 4  # channels and filters
BLOCK_PIXELS = 200  # of the weight gradient: a panel of them stays near L1, and 14 x 14 are one block
# Filters, numbers of a window, whose sums stay in L2 beside those panels; wide ones pack short rows often.
REGION = (512, 96)
WHOLE_PIXELS, WHOLE_COLUMNS = 400, 64  # of all images: so few are one block, of which each tile is written at once
PACKED = 15  # multiply-adds that take as long as a number is packed for them
COLLIDING = 4096  # rows so many bytes apart, or multiples, displace each other in the caches: those of dy are copied
MOVED = 128  # multiply-adds that take as long as a number of a window is read or written, its length unknown to kernels
PARTS_BYTES = 256 << 10  # what sums over parts of the pixels may take, or 1/16 of the textbook's matrix
PIECES = 8  # so many, that threads share them evenly
PADDED_BYTES = 512 << 10  # of padded images that are computed together
# Windows whose rows have a length that kernels are not compiled for are laid out slowly: of more numbers the direct algorithm
# takes .4 to .9 of the time; of FEW_CHANNELS, forward, from LONG_FEW on (3 channels, 14 x 14, 192 filters: 1.34 to its 1.49 ms)
LONG, LONG_FEW, FEW_CHANNELS = 128, 1024, 4
LEAST_CELLS = 4  # of a kernel whose windows see padding: fewer are few phases of the direct algorithm

__all__ = [
    "NAME", "blocking", "declines", "forward", "input_gradient", "share", "weight_and_bias_gradient", "weight_gradient",
    "workspace",
]  # fmt: skip


def declines(problem: Problem) -> str | None:
    """Windows that overlap, or see padding."""
    g = problem.geometry
    if problem.layout == "last":
        return "channels last; it puts pixels in lanes"
    reason = overlap(dataclasses.replace(g, padding=((0, 0),) * g.axes) if _crops(problem) else g)
    if reason:
        return reason
    numbers = g.channels // g.groups * math.prod(g.kernel)
    most = LONG_FEW if problem.kind == "forward" and g.channels // g.groups <= FEW_CHANNELS else LONG
    x, _ = _grids(g, machine().lanes(problem.dtype))
    if problem.kind != "input_gradient" and not x.taps and numbers > most:
        return f"windows of {numbers} numbers in rows of {g.kernel[-1]}, which it takes apart slowly; it computes at most {most}"
    if g.groups > 1 and max(g.filters, g.channels) // g.groups <= SMALL_GROUP:
        return f"{g.groups} groups of {g.channels // g.groups} x {g.filters // g.groups} leave most of a tile empty"
    return None


def overlap(g: Geometry) -> str | None:
    """Why windows of this geometry are no separate pieces of x, or None if they are."""
    if any(map(any, g.padding)):
        return "windows see padding"
    for kernel, stride, dilation in zip(g.kernel, g.stride, g.dilation):
        if kernel > 1 and (kernel != stride or dilation > 1):
            return f"a kernel of {kernel} with stride {stride} and dilation {dilation}: windows are no consecutive pieces of x"
    return None


def _crops(problem: Problem) -> bool:
    """Whether this is an input gradient whose windows see padding, and are large enough."""
    g = problem.geometry
    if problem.kind != "input_gradient" or not any(map(any, g.padding)):
        return False
    return math.prod(g.kernel) >= LEAST_CELLS and _image_bytes(g) <= PADDED_BYTES


def _image_bytes(g: Geometry) -> int:
    return g.channels * math.prod(g.padded) * g.itemsize


def _padded(g: Geometry) -> Geometry:
    """Of as many images as are computed together, their padding a part of them."""
    images = max(1, min(g.batch, PADDED_BYTES // _image_bytes(g)))
    return dataclasses.replace(g, batch=images, spatial=g.padded, padding=((0, 0),) * g.axes)


def workspace(problem: Problem) -> int:
    """Bytes borrowed while it runs."""
    g, dtype = problem.geometry, problem.dtype
    if _crops(problem):
        g = _padded(g)
        return _product(g, True, dtype, dtype, get_threads()).size + math.prod(g.x_shape) * g.itemsize
    if problem.kind == "weight_gradient":
        return _gradient(g, dtype, dtype, True, get_threads()).size
    return _product(g, problem.kind == "input_gradient", dtype, dtype, get_threads()).size


def forward(x: np.ndarray, w: np.ndarray, b: np.ndarray | None, g: Geometry, out: np.ndarray) -> None:
    """Write conv(x, w) + b into ``out`` (N, F, *output)."""
    _in_place(out, lambda target: _run(g, False, x, w, b, target))


def input_gradient(dy: np.ndarray, w: np.ndarray, g: Geometry, out: np.ndarray) -> None:
    """Write dL/dx (N, C, *spatial) into ``out``."""
    if any(map(any, g.padding)):
        _crop_gradient(dy, w, g, out)
        return

    def run(target: np.ndarray) -> None:
        if _leaves_cells(g, machine().lanes(dtype_name(dy.dtype))):
            target[...] = 0
        _run(g, True, dy, w, None, target)

    _in_place(out, run)


def on_addresses(problem: Problem) -> OnAddresses | None:
    """See :func:`konv.engine.plan.on_addresses`."""
    g, dtype, transposed = problem.geometry, problem.dtype, problem.kind == "input_gradient"
    threads = get_threads()
    if dtype != wide_type(dtype) or problem.layout == "last":  # of half types a bias is copied
        return None
    if problem.kind == "weight_gradient":
        plans = [_gradient(g, dtype, dtype, biased, threads) for biased in (False, True)]
        return OnAddresses(lambda dy, x, db, out: _sum(plans[db != 0], dy, x, db, out))
    if transposed and (any(map(any, g.padding)) or _leaves_cells(g, machine().lanes(dtype))):
        return None
    return OnAddresses(functools.partial(_multiply, _product(g, transposed, dtype, dtype, threads)))


def _crop_gradient(dy: np.ndarray, w: np.ndarray, g: Geometry, out: np.ndarray) -> None:
    middle: tuple[Any, ...] = (..., *(slice(low, low + n) for (low, _), n in zip(g.padding, g.spatial)))
    padded = _padded(g)
    images = np.empty(padded.x_shape, out.dtype)
    for first in range(0, g.batch, padded.batch):
        some = dataclasses.replace(padded, batch=min(padded.batch, g.batch - first))
        target = images[: some.batch]
        input_gradient(dy[first : first + some.batch], w, some, target)
        out[first : first + some.batch] = target[middle]


def weight_gradient(dy: np.ndarray, x: np.ndarray, g: Geometry, out: np.ndarray) -> None:
    """Write dL/dw (F, C // groups, *kernel) into ``out``."""
    _in_place(out, lambda target: _run_gradient(g, dy, x, target, None))


def weight_and_bias_gradient(dy: np.ndarray, x: np.ndarray, g: Geometry, out: np.ndarray, db: np.ndarray) -> None:
    """Write dL/dw (F, C // groups, *kernel) into ``out`` and dL/db (F,) into ``db``: dy is read once for both."""
    _in_place(out, lambda target: _run_gradient(g, dy, x, target, db))


def _in_place(out: np.ndarray, run: Callable[[np.ndarray], None]) -> None:
    """``run(out)``, by way of a C-contiguous array where ``out`` is none: kernels write to such."""
    if out.flags.c_contiguous:
        run(out)
    else:
        run(target := np.empty(out.shape, out.dtype))
        out[...] = target


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


def _grids(g: Geometry, lanes: int) -> tuple[Grid, Grid]:
    """The grids of x and of y. Pixels of y, and of the x of 1x1 layers, are one long row."""
    ones = (1,) * (3 - g.axes)
    spatial, output, kernel, step = ones + g.spatial, ones + g.output, ones + g.kernel, ones + g.stride
    row = (1, 1, math.prod(output))
    if math.prod(step) == 1 and spatial == output:
        spatial = output = row
    one = (1, 1, 1)
    x = Grid(lanes, g.groups, g.channels // g.groups, spatial, output, kernel, step)  # type: ignore[arg-type]
    return x, Grid(lanes, g.groups, g.filters // g.groups, row, row, one, one)


@functools.lru_cache(maxsize=512)
def _leaves_cells(g: Geometry, lanes: int) -> bool:
    """Whether the product itself does not write all cells of dx: those no window reads, and steps unknown to kernels."""
    x, _ = _grids(g, lanes)
    unread = any(n > o * s for n, o, s in zip(g.spatial, g.output, g.stride))
    return unread or (x.stride == 0 and any(k == 1 < s for k, s in zip(x.kernel, x.step)))


@dataclass(frozen=True)
class Product:
    """A forward or an input gradient, prepared."""

    multiply: Job
    no_bias: np.ndarray
    threads: int
    size: int


@functools.lru_cache(maxsize=512)
def _product(g: Geometry, transposed: bool, x_dtype: str, y_dtype: str, threads: int) -> Product:
    host, wide = machine(), wide_type(x_dtype)
    lanes, (rows, vectors) = host.lanes(x_dtype), _tile(g, transposed, x_dtype)
    itemsize = np.dtype(wide).itemsize
    source, target = _grids(g, lanes)
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
    used = width(job.pieces, _work(target if transposed else source, pixels, row_count * reduction))
    return Product(job, np.zeros(g.groups * row_count, wide), used, used * slot_size * itemsize)


def _work(x: Grid, pixels: int, products: int) -> int:
    """Multiply-adds, and what takes as long, of so many for a pixel and group."""
    return pixels * x.groups * (products + (0 if x.taps else MOVED * x.rows))


def _evened(most: int, panels: int, groups: int, threads: int) -> int:
    """Panels of a block, up to a quarter fewer than ``most``: as many as let the threads end together."""

    def longest(size: int) -> float:
        """Panels of the thread that has the most; a last, short block is shared."""
        return -(-(panels // size * groups) // threads) * size + panels % size * groups / threads

    return min(range(most, most - most // 4 - 1, -1), key=longest)


def tile_shape() -> tuple[int, int]:
    """(rows, vectors) of the register tile: 8 x 3 of 32 registers, 4 x 3 of 16."""
    return (8, 3) if machine().registers >= 32 else (4, 3)


def _tile(g: Geometry, transposed: bool, dtype: str) -> tuple[int, int]:
    """(rows, vectors) of a forward or an input gradient: whole cache lines of 4 rows where sums are short."""
    reduction = (g.filters if transposed else g.channels * math.prod(g.kernel)) // g.groups
    if machine().registers < 32:
        return tile_shape()
    if reduction <= SHORT and (math.prod(g.kernel) == 1 or not transposed):
        return 4, 4
    return tile_shape() if transposed or reduction * np.dtype(wide_type(dtype)).itemsize % PAGE else FEW_ROWS


def _run(g: Geometry, transposed: bool, x: np.ndarray, w: np.ndarray, b: Any, out: np.ndarray) -> None:
    x, w = np.ascontiguousarray(x), np.ascontiguousarray(w)
    job = _product(g, transposed, dtype_name(x.dtype), dtype_name(out.dtype), get_threads())
    bias = job.no_bias if b is None else np.ascontiguousarray(b, job.no_bias.dtype)
    _multiply(job, address(x), address(w), address(bias), address(out))


def _multiply(plan: Product, x: int, w: int, b: int, out: int) -> None:
    with memory.workspace(plan.size) as space:
        plan.multiply.run(plan.threads, w=w, x=x, bias=b or address(plan.no_bias), y=out, workspace=space)


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
def _gradient(g: Geometry, dtype: str, out_dtype: str, biased: bool, threads: int) -> Gradient:
    wide, lanes, (rows, most_vectors) = wide_type(dtype), machine().lanes(dtype), tile_shape()
    itemsize = np.dtype(wide).itemsize
    x, y = _grids(g, lanes)
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
    used = width(sums.pieces, _work(x, g.batch * pixels, row_count * reduction))
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


def columns_bytes(g: Geometry, itemsize: int) -> int:
    """Bytes of the textbook's matrix of all windows."""
    return g.batch * math.prod(g.output) * g.channels * math.prod(g.kernel) * itemsize


def even(count: int, most: int, unit: int) -> tuple[int, int]:
    """Regions of at most so many (a multiple of ``unit`` each), as even as can be: how many, and how large."""
    regions = -(-count // max(most // unit * unit, unit))
    return regions, -(-count // (regions * unit)) * unit


def _run_gradient(g: Geometry, dy: np.ndarray, x: np.ndarray, out: np.ndarray, db: np.ndarray | None) -> None:
    x, dy = np.ascontiguousarray(x), np.ascontiguousarray(dy)
    job = _gradient(g, dtype_name(x.dtype), dtype_name(out.dtype), db is not None, get_threads())
    _sum(job, address(dy), address(x), 0 if db is None else address(db), address(out))


def _sum(plan: Gradient, dy: int, x: int, db: int, out: int) -> None:
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


def blocking(problem: Problem) -> str:
    """Tile, blocks and pieces, in words."""
    g, dtype, gradient = problem.geometry, problem.dtype, problem.kind == "input_gradient"
    rows, vectors = tile_shape() if problem.kind == "weight_gradient" else _tile(g, gradient, dtype)
    wide = vectors * machine().lanes(dtype)
    if problem.kind == "weight_gradient":
        sums = _gradient(g, dtype, dtype, True, get_threads())
        n, read, packed = sums.sums.numbers, "filters", "numbers of a window"
        if sums.turned:
            read, packed = "channels", "filters"
        return (
            f"{rows} {read} by up to {wide} {packed} in registers; regions of {n['region_rows']} {read} by "
            f"{n['region_columns']} {packed.split()[0]}, summed over blocks of {n['block_images'] * n['block_pixels']} pixels in "
            f"{n['parts']} parts; {sums.sums.cut(sums.threads)}"
        )
    product = _product(_padded(g) if _crops(problem) else g, gradient, dtype, dtype, get_threads())
    n, role = product.multiply.numbers, "numbers of a window" if gradient else "filters"
    return (
        f"{rows} {role} by up to {wide} pixels in registers; blocks of {n['block_panels']} such panels of pixels by "
        f"{min(n['part_groups'] * n['row_group'], n['row_count'])} {role}, each a sum of {n['reduction']} products; "
        f"{product.multiply.cut(product.threads)}" + (", then cropped" if _crops(problem) else "")
    )


def share(problem: Problem) -> float:
    """Of the limit; see :mod:`konv.engine.roofline`. Short lines of few rows are packed as long as they are multiplied."""
    g, rows = problem.geometry, tile_shape()[0]
    numbers = g.channels // g.groups * math.prod(g.kernel)
    done = roofline.padding(numbers if problem.kind == "input_gradient" else g.filters // g.groups, rows)
    return roofline.share(problem, done, speed=0.75, moving=1.5, storing=1)
