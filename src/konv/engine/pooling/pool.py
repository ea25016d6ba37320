"""Pooling and its gradients on checked arrays, channels first or last, as jobs."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

from konv.arrays import dtype_name, empty, laid_out, layout_of
from konv.engine import memory, rectify
from konv.engine.launch import Job, address
from konv.engine.machine import machine, wide_type
from konv.engine.pooling.pool_apart import mean_of_planes, mean_of_planes_gradient, tiles, tiles_gradient
from konv.engine.pooling.pool_gradients import largest_gradient_first, mean_gradient_first, pool_last_gradient
from konv.engine.pooling.pool_kernels import pool_first, pool_last
from konv.engine.threads import get_threads, width
from konv.geometry import Geometry
from konv.textbook import window_sizes

PIECE_CELLS = 1 << 13  # planes in a piece: what is small is handed out together
COST = 4  # multiply-adds that take as long as a cell does in a window


def largest(x: np.ndarray, g: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """The largest number of each window, and which of its taps holds the first such: both (N, C, *output)."""
    layout = layout_of(x)
    plan = _pooling(g, dtype_name(x.dtype), layout, "max", get_threads())
    y, winners = empty(g.output_shape, x.dtype, layout), empty(g.output_shape, np.dtype(_index(g)), layout)
    if y.size:
        plan.run(x=laid_out(x, layout), y=y, winners=winners)
    return y, winners


def largest_gradient(
    dy: np.ndarray, winners: np.ndarray, g: Geometry, layout: str, y: np.ndarray | None = None
) -> np.ndarray:
    """dL/dx (N, C, *spatial) in ``layout``: each number of dy at the tap that :func:`largest` told.

    With ``y``, what :func:`largest` gave, only of windows where that is positive: through a ReLU before the pooling, too.
    """
    dx = empty(g.x_shape, dy.dtype, layout)
    if not dx.size:
        return dx
    in_passing = y is not None and layout == "first" and _tiled(g)
    if y is not None and not in_passing:
        dy, all_of_it = np.empty_like(dy), dy
        rectify.where_positive(all_of_it, y, dy)
    plan = _gradient(g, dtype_name(dy.dtype), layout, "max", get_threads(), in_passing)
    dy = laid_out(dy, layout)
    told_by = laid_out(y, layout) if in_passing and y is not None else dy
    plan.run(dy=dy, dx=dx, y=told_by, winners=laid_out(winners, layout))
    return dx


def mean(x: np.ndarray, g: Geometry, count_include_pad: bool) -> np.ndarray:
    """The mean of each window (N, C, *output)."""
    layout = layout_of(x)
    y = empty(g.output_shape, x.dtype, layout)
    if y.size:
        _pooling(g, dtype_name(x.dtype), layout, _kind(count_include_pad), get_threads()).run(
            x=laid_out(x, layout), y=y
        )
    return y


def mean_gradient(dy: np.ndarray, g: Geometry, count_include_pad: bool, layout: str) -> np.ndarray:
    """dL/dx (N, C, *spatial) in ``layout``: each cell's share of the windows that it lies in."""
    dx = empty(g.x_shape, dy.dtype, layout)
    if dx.size:
        _gradient(g, dtype_name(dy.dtype), layout, _kind(count_include_pad), get_threads()).run(
            dy=laid_out(dy, layout), dx=dx, y=dx
        )
    return dx


def _kind(count_include_pad: bool) -> str:
    return "mean with padding" if count_include_pad else "mean of real cells"


@dataclass(frozen=True)
class Plan:
    """A job, the tables that its kernel asks for, and the workspace."""

    job: Job
    threads: int
    size: int
    tables: dict[str, np.ndarray]

    def run(self, **arrays: np.ndarray) -> None:
        """Run it; of arrays and tables the kernel gets those that it names."""
        given = {name: address(array) for name, array in {**self.tables, **arrays}.items()}
        with memory.workspace(self.size) as space:
            given["workspace"] = space
            self.job.run(self.threads, **{name: given[name] for name in self.job.pointers})


@functools.lru_cache(maxsize=256)
def _pooling(g: Geometry, dtype: str, layout: str, kind: str, threads: int) -> Plan:
    is_mean, index, numbers = kind != "max", _index(g), _numbers(g)
    if layout == "last":
        lanes = _lanes(dtype, g.channels)
        kernel = pool_last(is_mean, dtype, index, lanes, 4 if g.channels > 2 * lanes else 1)
        return _plan(g, kind, dtype, Job(kernel, g.batch * math.prod(g.output[:-1]), channels=g.channels, **numbers))
    planes = _planes(g)
    if is_mean and _whole(g):
        job = Job(
            mean_of_planes(dtype, _lanes(dtype, math.prod(g.spatial))),
            _pieces(planes),
            cells=math.prod(g.spatial),
            **planes,
        )
        return _plan(g, kind, dtype, job)
    if _tiled(g):
        job = Job(
            tiles(is_mean, dtype, index, *_vector_of_rows(g, dtype)), _pieces(planes), **planes, **_sizes(numbers)
        )
        return _plan(g, kind, dtype, job)
    stride, lanes = g.stride[-1], _lanes(dtype, g.output[-1])
    cells = np.arange(g.output[-1]) * stride - g.padding[-1][0]
    window = g.dilation[-1] * (g.kernel[-1] - 1) + 1
    # Vectors of outputs whose taps, and the cells read beside them, all lie in the row.
    fits = [
        stride <= 2 and len(run) == lanes and run[0] >= 0 and run[-1] + window + stride - 1 <= g.spatial[-1]
        for run in (cells[i : i + lanes] for i in range(0, len(cells), lanes))
    ]
    first = fits.index(True) if any(fits) else 0
    job = Job(
        pool_first(is_mean, dtype, index, lanes, stride if stride <= 2 else 0),
        _pieces(planes),
        whole_first=first,
        whole_last=first + sum(fits),
        **planes,
        **numbers,
    )
    first_taps = -(np.minimum(cells, 0) // g.dilation[-1])
    return _plan(g, kind, dtype, job, first_taps=first_taps.astype(np.int32))


@functools.lru_cache(maxsize=256)
def _gradient(g: Geometry, dtype: str, layout: str, kind: str, threads: int, rectified: bool = False) -> Plan:
    is_mean, index, numbers, planes, stride = kind != "max", _index(g), _numbers(g), _planes(g), g.stride[-1]
    x_cells, lanes, wide = math.prod(g.spatial), machine().lanes(dtype), wide_type(dtype)
    if layout == "last":
        lanes = _lanes(dtype, g.channels)
        # All channels of an image together, cut where there are fewer images than threads want.
        runs = min(-(-g.channels // lanes), -(-2 * threads // max(1, g.batch)) if threads > 1 else 1)
        run_channels = -(-g.channels // (runs * lanes)) * lanes
        runs, slot_size = -(-g.channels // run_channels), x_cells * run_channels if dtype != wide else 0
        kernel = pool_last_gradient(is_mean, dtype, index, lanes)
        job = Job(
            kernel, g.batch * runs, channels=g.channels, runs=runs, run_channels=run_channels, slot_size=slot_size, **numbers
        )  # fmt: skip
        return _plan(g, kind, dtype, job, slot_size)
    if is_mean and _whole(g):
        return _plan(
            g, kind, dtype, Job(mean_of_planes_gradient(dtype, lanes), _pieces(planes), cells=x_cells, **planes)
        )
    if _tiled(g):
        kernel = tiles_gradient(is_mean, dtype, index, *_vector_of_rows(g, dtype), rectified)
        return _plan(g, kind, dtype, Job(kernel, _pieces(planes), **planes, **_sizes(numbers)))
    if is_mean:
        slot_size = math.prod(g.output)
        lanes = _lanes(dtype, -(-g.spatial[-1] // min(stride, 2)))
        kernel = mean_gradient_first(dtype, lanes, stride if stride <= 2 else 0)
        return _plan(g, kind, dtype, Job(kernel, _pieces(planes), slot_size=slot_size, **planes, **numbers), slot_size)
    slot_size = x_cells if dtype != wide else 0
    far = [math.prod(g.spatial[axis + 1 :]) for axis in range(g.axes)]  # cells from one to the next along each axis
    steps = dict(
        zip(("step_width", "step_height", "step_depth"), [*(s * n for s, n in zip(g.stride[::-1], far[::-1])), 0, 0])
    )
    offsets = [
        sum((k * d - low) * n for k, d, (low, _), n in zip(tap, g.dilation, g.padding, far))
        for tap in np.ndindex(*g.kernel)
    ]
    job = Job(
        largest_gradient_first(dtype, index, lanes),
        _pieces(planes),
        slot_size=slot_size,
        x_cells=x_cells,
        **planes,
        **steps,
        **{name: numbers[name] for name in ("out_depth", "out_height", "out_width")},
    )
    return _plan(g, kind, dtype, job, slot_size, offsets=np.array(offsets, np.int64))


def _plan(g: Geometry, kind: str, dtype: str, job: Job, slot_size: int = 0, **tables: np.ndarray) -> Plan:
    wide = np.dtype(wide_type(dtype))
    tables["winners"] = np.zeros(1, _index(g))  # of a mean: not read, but asked for
    if kind != "max":
        tables["sizes"] = window_sizes(g, kind == "mean with padding").astype(wide)
    else:
        tables["sizes"] = np.ones(1, wide)
    used = width(job.pieces, COST * g.batch * g.channels * math.prod(g.output) * math.prod(g.kernel))
    return Plan(job, used, max(used * slot_size * wide.itemsize, memory.LINE), tables)


def _index(g: Geometry) -> str:
    """The type that a tap's number fits."""
    return "uint8" if math.prod(g.kernel) <= 256 else "int32"


def _planes(g: Geometry) -> dict[str, int]:
    """How many planes there are, and how many of them are a piece."""
    return {"planes": g.batch * g.channels, "together": max(1, PIECE_CELLS // math.prod(g.spatial))}


def _pieces(planes: dict[str, int]) -> int:
    return -(-planes["planes"] // planes["together"])


def _whole(g: Geometry) -> bool:
    """Whether the only window is the image."""
    return g.kernel == g.spatial and g.dilation == (1,) * g.axes and not any(map(any, g.padding))


def _tiled(g: Geometry) -> bool:
    """Whether windows are 2 x 2 cells beside each other."""
    return g.kernel == g.stride == (2, 2) and g.dilation == (1, 1) and not any(map(any, g.padding))


def _vector_of_rows(g: Geometry, dtype: str) -> tuple[int, int]:
    """The lanes of a vector of outputs, and how many whole rows of images it has."""
    lanes, row = machine().lanes(dtype), g.output[-1]
    if g.spatial[-1] == 2 * row and row > 1 and lanes % row == 0:
        return lanes, lanes // row
    return _lanes(dtype, row), 1


def _sizes(numbers: dict[str, int]) -> dict[str, int]:
    return {name: numbers[name] for name in ("x_height", "x_width", "out_height", "out_width")}


def _lanes(dtype: str, length: int) -> int:
    """Vectors no longer than the run of numbers that they are for, at least of 4 lanes."""
    lanes = machine().lanes(dtype)
    while lanes > 4 and lanes // 2 >= length:
        lanes //= 2
    return lanes


def _numbers(g: Geometry) -> dict[str, int]:
    """Lengths, kernels, strides, low paddings and dilations of three axes; the first are of length 1 where there are fewer."""
    numbers = {}
    lows = tuple(low for low, _ in g.padding)
    for name, values, missing in (
        ("x", g.spatial, 1), ("out", g.output, 1), ("kernel", g.kernel, 1), ("stride", g.stride, 1), ("pad", lows, 0),
        ("dilation", g.dilation, 1),
    ):  # fmt: skip
        for axis, value in zip(("depth", "height", "width"), (missing,) * (3 - g.axes) + tuple(values)):
            numbers[f"{name}_{axis}"] = value
    return numbers
