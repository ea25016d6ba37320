"""Groups of few filters (depthwise above all), the input gradients of few channels, and first layers: pixels in lanes.

The same axes and phases as in :mod:`konv.engine.direct.direct`; another tile, in which a vector is a run of neighbouring pixels.
Here it is decided who computes what: :mod:`konv.engine.groups.planes_jobs` and ``planes_weights`` all that is left by the files
for channels last and for depthwise layers.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import numpy as np

from konv.arrays import known_layout
from konv.engine import roofline
from konv.engine.addresses import OnAddresses
from konv.engine.direct import direct
from konv.engine.groups import (
    depthwise,
    depthwise_fixed,
    depthwise_long,
    depthwise_rows,
    depthwise_spread,
    planes_jobs,
    planes_weights,
)
from konv.engine.groups.axes import FORWARD, gradient_phases, leaves_cells
from konv.engine.machine import dtype_name, machine, wide_type, widened
from konv.engine.prepared import both_ways, without_bias
from konv.engine.threads import get_threads
from konv.geometry import Geometry

if TYPE_CHECKING:
    from konv.engine.plan import Problem

NAME = "grouped"
MOST_FILTERS = 8  # of 32 that the other tile computes at once,
MOST_FILTERS_GROUPED = 16  # and as many of a kernel of at most 3 x 3; of 7 pixels in a row the other tile is faster
# Where the other tile has little to do between loads and stores: 1.5 to 2 times as fast.
FEW_CHANNELS, MOST_FILTERS_FEW = 3, 64


def declines(problem: Problem) -> str | None:
    """Where filters (in the role they play) fill the lanes of the direct tile, that one is faster."""
    g = problem.geometry
    filters, channels = g.filters // g.groups, g.channels // g.groups
    if problem.layout == "last" and (filters != channels or machine().lanes(problem.dtype) % channels):
        return f"channels last, groups of {channels} x {filters}: it takes as many filters as channels, which divide the lanes"
    if problem.kind == "weight_gradient":
        if g.groups < 4 or max(filters, channels) > MOST_FILTERS:
            return f"{g.groups} groups of {channels} x {filters}; it takes 4 or more of at most {MOST_FILTERS} x {MOST_FILTERS}"
        return None
    role, summed = (filters, channels) if problem.kind == "forward" else (channels, filters)
    if role > MOST_FILTERS and not _small(problem, role, summed):
        return f"{role} filters in a group fill the lanes of the direct tile; it computes at most {MOST_FILTERS}"
    return direct.declines(problem)


def _small(problem: Problem, filters: int, channels: int) -> bool:
    """Whether more filters than ``MOST_FILTERS`` are faster here: unit stride, and few products to sum."""
    g = problem.geometry
    plain = problem.layout == "first" and filters % 4 == 0 and max(g.stride + g.dilation) == 1
    if not plain or channels * math.prod(g.kernel) > planes_weights.PRODUCTS or machine().registers < 32:
        return False
    if channels <= FEW_CHANNELS:
        return filters <= MOST_FILTERS_FEW and max(g.kernel) <= planes_jobs.MOST_COLUMNS
    row = g.output[-1] if problem.kind == "forward" else g.spatial[-1]
    short = g.axes == 1 or row <= machine().lanes(problem.dtype) // 2  # bits of 1-D layers do not depend on the length
    return g.groups > 1 and filters <= MOST_FILTERS_GROUPED and max(g.kernel) <= 3 and not short


def workspace(problem: Problem) -> int:
    """Bytes of the weights in the kernel's order, or of partial sums."""
    g, dtype = problem.geometry, problem.dtype
    if problem.kind == "weight_gradient" and depthwise_long.takes(g, problem.layout):
        return depthwise_long.workspace(g, dtype)
    if problem.layout == "last" and depthwise_rows.takes(g):
        return depthwise_rows.workspace(g, dtype, problem.kind)
    if problem.layout == "last":
        if problem.kind == "weight_gradient":
            return depthwise.accumulation(g, dtype, get_threads()).sums_size
        return depthwise.weights_size(g, dtype, problem.kind == "input_gradient")
    if depthwise_fixed.takes(g, dtype, problem.kind):
        return depthwise_fixed.workspace(g, dtype, problem.kind)
    if problem.kind == "weight_gradient":
        return planes_weights.accumulation(g, dtype, get_threads()).sums_size
    transposed = problem.kind == "input_gradient"
    if transposed and depthwise_spread.takes(g):
        return widened(g.w_shape, dtype)
    plans = planes_jobs.correlations(g, transposed, dtype, dtype, get_threads())
    return max((plan.weights_size for plan in plans), default=0)


def _correlate(x: np.ndarray, w: np.ndarray, b: np.ndarray | None, g: Geometry, back: bool, out: np.ndarray) -> None:
    last = known_layout(x, out) == "last"
    if last and depthwise_rows.takes(g):
        depthwise_rows.correlate(x, w, b, g, back, out)
        return
    if not last and depthwise_fixed.takes(g, dtype_name(x.dtype), "input_gradient" if back else "forward"):
        depthwise_fixed.correlate(x, w, b, g, back, out)
        return
    if back and not last and depthwise_spread.takes(g):
        depthwise_spread.input_gradient(x, w, g, out)
        return
    if back and leaves_cells(g):
        out[...] = 0
    if not last:
        planes_jobs.correlate(x, w, b, g, back, out)
        return
    for phase in gradient_phases(g) if back else (FORWARD,):
        depthwise.correlate(g, phase, x, w, b, out)


forward, input_gradient = both_ways(_correlate, finite=True)


def on_addresses(problem: Problem) -> OnAddresses | None:
    """See :func:`konv.engine.plan.on_addresses`: rows of planes, but not weight gradients."""
    g, dtype, backwards = problem.geometry, problem.dtype, problem.kind == "input_gradient"
    if problem.kind == "weight_gradient":
        return None
    if problem.layout == "last":
        if dtype != wide_type(dtype) or not depthwise_rows.takes(g):
            return None
        rows = depthwise_rows.correlation(g, backwards, dtype, dtype, get_threads())
        return OnAddresses(functools.partial(depthwise_rows.launch, rows), finite_weights=True)
    if depthwise_fixed.takes(g, dtype, problem.kind):
        plan = depthwise_fixed.correlation(g, backwards, dtype, dtype, get_threads())
        return OnAddresses(functools.partial(depthwise_fixed.launch, plan), finite_weights=True)
    if dtype != wide_type(dtype):
        return None
    if backwards and depthwise_spread.takes(g):
        return OnAddresses(functools.partial(depthwise_spread.launch, g, dtype, get_threads()), finite_weights=True)
    if backwards and leaves_cells(g):
        return None
    return OnAddresses(planes_jobs.launcher(g, backwards, dtype, get_threads()), finite_weights=True)


def weight_and_bias_gradient(dy: np.ndarray, x: np.ndarray, g: Geometry, out: np.ndarray, db: np.ndarray) -> None:
    """Write dL/dw (F, C // groups, *kernel) into ``out`` and dL/db (F,) into ``db``: dy is read once."""
    layout = known_layout(x, dy)
    if depthwise_long.takes(g, layout):
        depthwise_long.weight_and_bias_gradient(dy, x, g, out, db)
        return
    if layout == "last":
        (depthwise_rows if depthwise_rows.takes(g) else depthwise).weight_and_bias_gradient(dy, x, g, out, db)
        return
    if depthwise_fixed.takes(g, dtype_name(x.dtype), "weight_gradient"):
        depthwise_fixed.weight_and_bias_gradient(dy, x, g, out, db)
        return
    planes_weights.weight_and_bias_gradient(dy, x, g, out, db)


weight_gradient = without_bias(weight_and_bias_gradient)


def blocking(problem: Problem) -> str:
    """Tile and pieces, in words."""
    g, dtype = problem.geometry, problem.dtype
    if problem.kind == "weight_gradient" and depthwise_long.takes(g, problem.layout):
        return depthwise_long.blocking(g, dtype)
    if problem.layout == "last":
        return (depthwise_rows if depthwise_rows.takes(g) else depthwise).blocking(g, dtype, problem.kind)
    if depthwise_fixed.takes(g, dtype, problem.kind):
        return depthwise_fixed.blocking(g, dtype, problem.kind)
    if problem.kind == "weight_gradient":
        plan = planes_weights.accumulation(g, dtype, get_threads())
        n = plan.job.numbers
        return (
            f"rows of dy times rows of x, {planes_jobs.lanes_of(dtype, g.output[-1])} pixels in a vector; "
            f"{n['group_chunk']} groups of {n['part_images']} images a piece; {plan.cut}"
        )
    plans = planes_jobs.correlations(g, problem.kind == "input_gradient", dtype, dtype, get_threads())
    if plans and problem.kind == "input_gradient" and depthwise_spread.takes(g):
        return depthwise_spread.blocking(g, dtype)
    if not plans:
        return "nothing to compute"
    n = plans[0].job.numbers
    vector = planes_jobs.lanes_of(dtype, n["out_width"])
    return (
        f"{vector} pixels of a row in a vector; {n['chunk']} planes of at most {n['block_rows']} x {n['out_width']} outputs "
        f"a piece; {plans[0].cut}" + (f", {len(plans)} times" if len(plans) > 1 else "")
    )


def share(problem: Problem) -> float:
    """Of the limit; see :mod:`konv.engine.roofline`. Little is computed with a number that is read: reading counts."""
    g = problem.geometry
    row = g.spatial[-1] if problem.kind == "input_gradient" else g.output[-1]
    lanes = planes_jobs.lanes_of(problem.dtype, row)
    done = roofline.padding(row, lanes) if problem.layout == "first" else roofline.padding(g.channels, lanes)
    if problem.kind == "weight_gradient":
        return roofline.share(problem, done, speed=0.65, moving=2, storing=0)
    return roofline.share(problem, done, speed=0.8, moving=1.25, storing=2)
