"""Direct convolution: forward and input gradient as correlations, the weight gradient as outer products.

Forward: tap k of a window is (channel, kernel index). Input gradient: output o met kernel index t at cell ``o * stride + t *
dilation - low``, with ``low`` cells of padding. For the cells of one *phase*, ``m * stride + phase``, only those t count for
which ``o = m - (t * dilation - low - phase) / stride`` is whole: a correlation of dy with stride 1 over those t, filters
in the role of channels. The phases of rows and columns share the copy of dy and are sums whose cells interleave; those of the
depth are jobs of their own. Nothing is scattered or added twice. 1-D and 2-D problems are 3-D ones with axes of length 1.

The sum of an output runs over the same taps in the same order wherever it lies, so its bits depend neither on threads,
nor on the batch, nor on the length of the input.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from konv.engine import columns, memory, roofline
from konv.engine.direct import weights
from konv.engine.direct.correlate import RUN, correlate
from konv.engine.direct.sweeps import Sweep, sweeps, tables
from konv.engine.direct.weights import weight_and_bias_gradient, weight_gradient
from konv.engine.launch import Job, address
from konv.engine.machine import Machine, dtype_name, machine, wide_type
from konv.engine.threads import get_threads, width
from konv.engine.tile import Tile
from konv.geometry import Geometry

if TYPE_CHECKING:
    from konv.engine.plan import Problem

NAME = "direct"
BLOCK_BYTES = 224 << 10  # the sums of a block, and its input of a slice of channels, each
BLOCK_CELLS, LEAST_CELLS = 448, 112  # outputs that a panel of weights, once transposed, is used for
SMALL_BYTES = 512 << 10  # may be borrowed, or 15 % of the matrix that im2col would make
SHARED_FILTERS = (
    128  # of a piece, which copies its input: fewer only where threads would have less than two pieces each
)
FEW_CHANNELS = 4  # of an x with channels last: its rows are copied whole, not channel by channel
FEW_TAPS = 4  # of a kernel whose weights are sorted into lanes; more are transposed
SPEEDS = {1: 0.84, 2: 1.0, 3: 1.0, 5: 0.92}  # of tiles of so many vectors
# Of one vector where a CPU reads twice for a multiply-add, and rows are whole runs of 7; of 512@14 with stride 2 pieces of 64 or
# 256 filters, blocks of half the outputs, and slices of 288 products took as long as what there is, or longer.
SPEED_READ = 1.03
MOST_STRIDES = 16  # strides that kernels are compiled for; others, and those of channels last, are told at run time
MOST_PHASES = 64
LONG_SUM = 96  # products: beside fewer, asking for the lines of the output costs more than waiting for them
SLICE_TAPS = 200  # products that are summed before they are added to the others: the error falls 2-4 times
LARGE_WEIGHTS = 1 << 21  # these come from memory, where longer pieces are faster; 432 products are slower again
SLICE_TAPS_LARGE = 288

__all__ = [
    "NAME", "blocking", "declines", "forward", "in_place", "input_gradient", "share", "weight_and_bias_gradient",
    "weight_gradient", "workspace",
]  # fmt: skip


def declines(problem: Problem) -> str | None:
    """An input gradient of many phases would be as many sums."""
    phases = math.prod(problem.geometry.stride)
    if problem.kind == "input_gradient" and phases > MOST_PHASES:
        return f"the input gradient has {phases} phases (the product of the strides), more than {MOST_PHASES}"
    return None


def workspace(problem: Problem) -> int:
    """Bytes borrowed while it runs."""
    g, dtype = problem.geometry, problem.dtype
    if problem.kind == "weight_gradient":
        return weights.workspace(g, dtype, problem.layout == "last")
    gradient, layout = problem.kind == "input_gradient", problem.layout
    return max(plan.size for plan in correlations(g, gradient, dtype, dtype, layout, layout, get_threads(), True))


def forward(x: np.ndarray, w: np.ndarray, b: np.ndarray | None, g: Geometry, out: np.ndarray) -> None:
    """Write conv(x, w) + b into ``out`` (N, F, *output)."""

    def compute(target: np.ndarray) -> None:
        if not run(g, False, x, w, b, target):  # an infinite weight times a zero of the padding is NaN: skip none
            run(g, False, x, w, b, target, skip=False)

    in_place(out, compute)


def input_gradient(dy: np.ndarray, w: np.ndarray, g: Geometry, out: np.ndarray) -> None:
    """Write dL/dx (N, C, *spatial) into ``out``."""

    def compute(target: np.ndarray) -> None:
        if not run(g, True, dy, w, None, target):
            # A zero of dy's padding times an infinite weight is NaN, in cells that the textbook's sum does not reach.
            columns.input_gradient(dy, w, g, target)

    in_place(out, compute)


def in_place(out: np.ndarray, run: Callable[[np.ndarray], Any]) -> None:
    """``run(out)``, by way of a C-contiguous array where ``out`` is none: kernels write to such."""
    if out.flags.c_contiguous or np.moveaxis(out, 1, -1).flags.c_contiguous:
        run(out)
    else:
        run(target := np.empty(out.shape, out.dtype))
        out[...] = target


@dataclass(frozen=True)
class Join:
    """Filters that are the cells of rectangles of an output: (channels, rows, columns); see :mod:`konv.engine.stems.joined`.

    ``spatial`` is that output's shape, ``taps`` how many products of a channel count.
    """

    channels: int
    rows: int
    columns: int
    spatial: tuple[int, ...]
    taps: int


@dataclass(frozen=True)
class Correlation:
    """A correlation, prepared: its job, how many checks of which type it fills, and the workspace (in bytes)."""

    job: Job
    no_bias: np.ndarray
    checks: tuple[int, str]
    threads: int
    size: int
    runs_start: int


def tile_for(host: Machine, lanes: int, filters: int, columns: int) -> Tile:
    """The shape that leaves the fewest lanes empty, and cuts a row of so many outputs into runs with the least left over."""
    shapes: dict[int, dict[int, tuple[tuple[int, int], ...]]] = {
        32: {2: ((2, 7), (3, 4), (4, 3)), 3: ((2, 4), (1, 8)), 5: ((1, 5),), 1: ((4, 7), (7, 4))},
        16: {2: ((2, 3), (3, 2)), 1: ((2, 4), (3, 3))},
    }
    by_vectors = shapes[host.registers]
    speeds = SPEEDS | ({1: SPEED_READ} if host.reads_twice and columns % 7 == 0 else {})
    vectors = min(by_vectors, key=lambda n: -(-filters // (n * lanes)) * n / speeds[n])
    runs, run = min(by_vectors[vectors], key=lambda shape: -(-columns // shape[1]) * shape[1])
    return Tile(lanes, vectors, runs, run)


@functools.lru_cache(maxsize=512)
def correlations(
    g: Geometry,
    gradient: bool,
    x_dtype: str,
    y_dtype: str,
    x_layout: str,
    y_layout: str,
    threads: int,
    skip: bool,
    join: Join | None = None,
) -> list[Correlation]:
    """One, or one for each phase of the depth; their blocks as large as the memory they may borrow allows."""
    matrix = math.prod(g.output) * g.batch * g.channels * math.prod(g.kernel) * np.dtype(wide_type(x_dtype)).itemsize
    cells = BLOCK_CELLS
    while True:
        plans = [
            _correlation(g, gradient, phase, x_dtype, y_dtype, x_layout, y_layout, threads, skip, join, cells)
            for phase in range(sweeps(g, gradient)[0].phases)
        ]
        if cells <= LEAST_CELLS or max(plan.size for plan in plans) <= max(SMALL_BYTES, matrix * 15 // 100):
            return plans
        cells //= 2


def _correlation(
    g: Geometry,
    gradient: bool,
    depth_phase: int,
    x_dtype: str,
    y_dtype: str,
    x_layout: str,
    y_layout: str,
    threads: int,
    skip: bool,
    join: Join | None,
    most_cells: int,
) -> Correlation:
    depth, height, row = sweeps(g, gradient)
    wide = wide_type(x_dtype)
    itemsize, lanes = np.dtype(wide).itemsize, machine().lanes(x_dtype)
    channels, filters = g.channels // g.groups, g.filters // g.groups
    if gradient:
        channels, filters = filters, channels
    tile = tile_for(machine(), lanes, filters, row.worthwhile_block)
    panels = -(-filters // tile.filters)

    kernel = (1,) * (3 - g.axes) + g.kernel
    depth_taps = depth.taps[depth_phase]
    phases = list(itertools.product(range(height.phases), range(row.phases)))
    taps = [len(depth_taps) * len(height.taps[h]) * len(row.taps[v]) for h, v in phases]
    slice_taps = SLICE_TAPS if channels * filters * math.prod(kernel) < LARGE_WEIGHTS else SLICE_TAPS_LARGE
    slices = -(-channels * (join.taps if join else max(*taps, 1)) // slice_taps)
    slice_channels = -(-channels // min(slices, channels))
    slices = -(-channels // slice_channels)

    block = _block(g.batch, depth, height, row, tile, slice_channels * max(1, len(depth_taps)) * itemsize, most_cells)
    block_images, block_rows, block_columns = block
    rows = (block_rows - 1) * height.stride + height.window
    row_runs = -(-block_columns // tile.run)
    cells = (row_runs * tile.run - 1) * row.stride + row.window
    out_depth = depth.written(depth_phase)
    row_blocks, column_blocks = -(-height.sums // block_rows), -(-row.sums // block_columns)
    blocks = -(-g.batch // block_images) * g.groups * out_depth * row_blocks * column_blocks

    sum_cells = block_images * block_rows * height.phases * row_runs * tile.run * row.phases
    # beyond them what the last tile computes too much, and what is read of the last cells' vectors
    spare = (height.phases - 1) * row_runs * tile.run * row.phases + (tile.runs * tile.run + 1) * row.phases + lanes
    panel_sums = (sum_cells + spare) * tile.filters
    parts = 1
    while parts < panels and (
        blocks * parts < (4 if -(-panels // parts) * tile.filters > SHARED_FILTERS else 2) * threads
        or sum_cells * -(-panels // parts) * tile.filters * itemsize > BLOCK_BYTES
    ):
        parts += 1
    part_panels = -(-panels // parts)
    parts = -(-panels // part_panels)

    cell = slice_channels if x_layout == "last" else 1
    made = tables(
        [depth, height, row], depth_phase, (block_rows, block_columns), kernel, slice_channels, cells, x_layout == "last", skip
    )  # fmt: skip
    copied = block_images * rows * max(1, len(depth_taps)) * slice_channels * cells
    source = copied + (tile.run + 1) * row.stride * cell + lanes
    panel_start = -(-source // 16) * 16
    bias_start = panel_start + made.panel_rows * tile.filters
    sums_start = bias_start + part_panels * tile.filters
    slot_size = -(-(sums_start + part_panels * panel_sums) // 16) * 16

    run_size = (block_images * block_rows * row_runs + tile.runs) * RUN

    spatial, output = ((1,) * (3 - g.axes) + n for n in (g.spatial, g.output))
    x_shape, y_shape = (output, spatial) if gradient else (spatial, output)
    x_strides = _strides(g.groups * channels, x_shape, x_layout)
    y_strides = _strides(g.groups * filters, y_shape, y_layout)
    y_height, y_width = height.out, row.out
    if join:
        y_shape = (1,) * (3 - g.axes) + join.spatial
        y_strides = _strides(join.channels, y_shape, y_layout)
        _, y_height, y_width = y_shape
    together = x_layout == "last" and g.groups == 1 and channels <= FEW_CHANNELS and slices == 1
    kernel_size = math.prod(kernel)
    one_filter = (g.channels // g.groups) * kernel_size
    job = Job(
        correlate(
            x_dtype, y_dtype, lanes, tile.vectors, tile.runs, tile.run,
            row.stride if row.stride <= MOST_STRIDES and x_layout == "first" else 0,
            "together" if together else x_layout, "joined" if join else y_layout,
            kernel_size if gradient and kernel_size <= FEW_TAPS else 0,
        ),
        blocks * parts,
        images=g.batch, block_images=block_images, groups=g.groups, out_depth=out_depth, out_rows=height.sums,
        block_rows=block_rows, row_blocks=row_blocks, out_columns=row.sums, block_columns=block_columns,
        column_blocks=column_blocks, filters=filters, group_panels=panels, part_panels=part_panels, parts=parts,
        channels=channels, slices=slices, slice_channels=slice_channels,
        **{f"x_{name}": n for name, n in zip(("image", "channel", "depth", "row", "cell"), x_strides)},
        depth_length=depth.length, height_length=height.length, row_length=row.length,
        stride_depth=depth.stride, stride_height=height.stride, stride_row=row.stride,
        pad_depth=depth.pad, pad_height=height.pad, pad_width=row.pad,
        depth_taps=len(depth_taps), rows=rows, cells=cells, cell=cell,
        group_step=g.filters // g.groups * one_filter, filter_step=kernel_size if gradient else one_filter,
        channel_step=one_filter if gradient else kernel_size, rows_of_weights=int(gradient), kernel_size=kernel_size,
        places_size=slice_channels * kernel_size + 16, phase_count=len(phases),
        phase_rows=height.phases, phase_columns=row.phases,
        **{f"y_{name}": n for name, n in zip(("image", "filter", "depth", "row", "cell"), y_strides)},
        y_height=y_height, y_width=y_width, join_rows=join.rows if join else 1, join_columns=join.columns if join else 1,
        start_depth=depth_phase, step_depth=depth.phases, ask=int(slice_channels * max(taps) >= LONG_SUM),
        slot_size=slot_size, run_size=run_size, panel_start=panel_start, bias_start=bias_start,
        sums_start=sums_start, panel_sums=panel_sums, depth_cells=np.array([*depth_taps, 0], np.int64),
        **{name: getattr(made, name) for name in ("offsets", "places", "phases", "kinds")},
    )  # fmt: skip
    used = width(job.pieces, g.flops // 2)
    size = used * (slot_size * itemsize + run_size * 8)
    no_bias = np.zeros(g.groups * filters, wide)
    return Correlation(job, no_bias, (used * lanes, wide), used, size, used * slot_size * itemsize)


def _strides(channels: int, spatial: tuple[int, ...], layout: str) -> tuple[int, ...]:
    """Of an image, a channel, and each of the three axes."""
    depth, height, row = spatial
    cells = depth * height * row
    if layout == "first":
        return channels * cells, cells, height * row, row, 1
    return channels * cells, 1, height * row * channels, row * channels, channels


def _block(
    batch: int, depth: Sweep, height: Sweep, row: Sweep, tile: Tile, line_bytes: int, most_cells: int
) -> tuple[int, int, int]:
    """Images, rows and columns of a block: at most so many sums of a phase, whose input fits ``BLOCK_BYTES``."""

    def even(whole: int, most: int) -> int:
        return -(-whole // -(-whole // max(1, most)))

    cells = max(1, most_cells // max(1, height.phases * row.phases // 2))
    cells = max(tile.run, min(cells, BLOCK_BYTES // (line_bytes * height.stride * row.stride)))
    most_rows, most_columns = height.worthwhile_block, row.worthwhile_block
    columns = row.sums
    if columns > min(cells, most_columns):
        columns = -(-even(columns, min(cells, most_columns)) // tile.run) * tile.run
    wide = -(-columns // tile.run) * tile.run
    rows = even(height.sums, min(most_rows, cells // wide))
    images = 1
    if rows == height.sums and columns >= row.sums:
        images = even(max(1, batch), min(max(1, batch), cells // (rows * wide)))
    return images, rows, columns


def _layout(array: np.ndarray) -> str:
    return "first" if array.flags.c_contiguous else "last"


def run(
    g: Geometry, gradient: bool, x: np.ndarray, w: np.ndarray, b: Any, out: np.ndarray, skip: bool = True,
    join: Join | None = None,
) -> bool:  # fmt: skip
    """Run one correlation. True if all weights (and with ``join`` all of x) are known to be finite."""
    if _layout(x) == "last" and not np.moveaxis(x, 1, -1).flags.c_contiguous:
        x = np.ascontiguousarray(x)
    plans = correlations(
        g, gradient, dtype_name(x.dtype), dtype_name(out.dtype), _layout(x), _layout(out), get_threads(), skip, join
    )
    finite = True
    for plan in plans:
        checks = np.zeros(*plan.checks)
        bias = plan.no_bias if b is None else np.ascontiguousarray(b)
        with memory.workspace(plan.size) as space:
            plan.job.run(
                plan.threads, x=address(x), w=address(w), bias=address(bias), y=address(out), checks=address(checks),
                workspace=space, run_places=space + plan.runs_start,
            )  # fmt: skip
        finite = finite and not np.count_nonzero(checks)
    return finite


def blocking(problem: Problem) -> str:
    """Tile, block and pieces, in words."""
    g, dtype, last = problem.geometry, problem.dtype, problem.layout == "last"
    if problem.kind == "weight_gradient":
        return weights.blocking(g, dtype, last)
    gradient = problem.kind == "input_gradient"
    plan, *more = correlations(g, gradient, dtype, dtype, problem.layout, problem.layout, get_threads(), True)
    n, tile = plan.job.numbers, _tile(problem)
    return (
        f"{tile.runs} x {tile.run} pixels by {tile.filters} filters in registers; blocks of {n['block_images']} x "
        f"{n['block_rows']} x {n['block_columns']} outputs by {n['part_panels'] * tile.filters} filters, summed over "
        f"{n['slice_channels']} channels at a time; {plan.job.cut(plan.threads)}"
        + (f", {1 + len(more)} times" if more else "")
    )


def share(problem: Problem) -> float:
    """Of the limit; see :mod:`konv.engine.roofline`. Sums of few products wait for their stores."""
    g, dtype = problem.geometry, problem.dtype
    if problem.kind == "weight_gradient":
        done = weights.done(g, dtype, problem.layout == "last")
        return roofline.share(problem, done, speed=0.8, moving=1.0, storing=0)
    tile, gradient = _tile(problem), problem.kind == "input_gradient"
    done = roofline.padding((g.channels if gradient else g.filters) // g.groups, tile.filters)
    done *= roofline.padding(sweeps(g, gradient)[2].sums, tile.run)
    return roofline.share(problem, done, speed=0.85, moving=0.75, storing=6)


def _tile(problem: Problem) -> Tile:
    g, gradient = problem.geometry, problem.kind == "input_gradient"
    filters = (g.channels if gradient else g.filters) // g.groups
    outputs = sweeps(g, gradient)[2].worthwhile_block
    return tile_for(machine(), machine().lanes(problem.dtype), filters, outputs)
