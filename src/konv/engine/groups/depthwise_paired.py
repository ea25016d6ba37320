"""Depthwise layers with two axes, channels first, kernels of 5 to 7 rows: jobs of
:mod:`konv.engine.groups.depthwise_paired_kernels`.

Two rows of outputs are computed together, and rows a, b of the kernel with them: four products become three. ::

    rows of x     x     y     z           even = a x + b y = a (x - y) + (a + b) y
    even          a     b                 odd  = a y + b z = (a + b) y - b (y - z)
    odd                 a     b                              ^^^^^^^^^ of both

One core of an AMD Zen 4 is bound by its multiply-adds here, of which a fifth is saved. Against the same planes row by row
(:mod:`konv.engine.groups.depthwise_fixed`), milliseconds: 7 x 7 on 96@56 1.04/1.11, 192@28 .49/.60, 384@14 .24/.28, 768@7
.12/.14; 5 x 5 on 384@14 .12/.15. Its error on normal numbers is the same, 2 to 3e-7 of the largest output: sums are shorter.

This is Winograd's algorithm F(2, 2): an output has the rounding of the largest input of its own and of the next row's window,
even where its taps are zero, and infinities of either row become NaN in both.

Four rows together, as F(4, 4) of two groups of taps, would leave half of the products; but its seven points would have to be
written and read again at every column of the kernel, and loads that cross a line are as slow as two multiply-adds.
Asking for what comes next took 1.07 times as long at 96@56, for the next plane as far as the second cache 0.99 to 1.01.

Pairs of columns too, with channels in lanes: nine products for sixteen, taps in the padding left out along both axes, but planes
are copied, and written with many stores. 768@7 took .116 to .147 ms, as its memory lay, where this takes .132; 384@14 and 192@28
as long; only 5 and 6 pixels gained, 0.75. With even and odd columns apart, pairs of columns would leave empty lanes at 56.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

from konv.engine import roofline
from konv.engine.groups import depthwise_fixed
from konv.engine.groups.depthwise_fixed import Fixed, vectors_of, woven
from konv.engine.groups.depthwise_paired_kernels import correlate_paired
from konv.engine.launch import Job
from konv.engine.machine import dtype_name, machine
from konv.engine.prepared import both_ways
from konv.engine.simd import ITEMSIZE
from konv.engine.threads import get_threads, width
from konv.geometry import Geometry

if TYPE_CHECKING:
    from konv.engine.plan import Problem

NAME = "depthwise_paired"
BEYOND = "three products stand for four of the formula's"
LEAST_ROWS = 5  # of the kernel

__all__ = ["NAME", "blocking", "declines", "forward", "input_gradient", "share", "workspace"]


def declines(problem: Problem) -> str | None:
    """What it does not compute, and kernels of few rows, where reading binds."""
    g, dtype = problem.geometry, problem.dtype
    if problem.kind == "weight_gradient":
        return "it has no weight gradient"
    if problem.exact:
        return "an exact sum is asked for: it adds before it multiplies"
    if problem.layout != "first" or max(g.stride) > 1 or not depthwise_fixed.takes(g, dtype, problem.kind):
        return "it takes depthwise layers of stride 1 with two axes and many channels, channels first"
    if g.kernel[0] < LEAST_ROWS:
        return f"{g.kernel[0]} rows of taps; it takes {LEAST_ROWS} or more"
    row = g.output[1] if problem.kind == "forward" else g.spatial[1]
    return "of bfloat16 even and odd columns apart are faster" if woven(row, 1, dtype, dtype) else None


def workspace(problem: Problem) -> int:
    """None: w is read as it is."""
    return 0


def _correlate(x: np.ndarray, w: np.ndarray, b: np.ndarray | None, g: Geometry, back: bool, out: np.ndarray) -> None:
    plan = _prepare(g, back, dtype_name(x.dtype), dtype_name(out.dtype), get_threads())
    depthwise_fixed.run(plan, x, w, b, out)


forward, input_gradient = both_ways(_correlate, finite=True)


@functools.lru_cache(maxsize=256)
def _prepare(g: Geometry, backwards: bool, x_dtype: str, y_dtype: str, threads: int) -> Fixed:
    x_size, y_size = (g.output, g.spatial) if backwards else (g.spatial, g.output)
    pad = tuple(k - 1 - low if backwards else low for k, (low, _) in zip(g.kernel, g.padding))
    vectors, planes = vectors_of(y_size[1], x_dtype, False), g.batch * g.channels
    most = (14 if len(vectors) == 1 else 10) if machine().registers >= 32 else 4
    rows = min(range(2, most + 1, 2), key=lambda n: 3 * -(-y_size[0] // n) + (4 if y_size[0] % n else 0))
    chunk = -(-planes // max(1, 8 * threads))
    job = Job(
        correlate_paired(
            x_dtype, y_dtype, vectors, rows, g.kernel, pad, x_size, y_size, backwards
        ),
        -(-planes // max(1, chunk)), planes=planes, chunk=chunk, channels=g.channels,
    )  # fmt: skip
    no_bias = np.zeros(g.channels * ITEMSIZE[x_dtype], np.uint8)
    return Fixed(job, width(job.pieces, g.flops // 2), vectors[0][1], rows, no_bias)


def blocking(problem: Problem) -> str:
    """Tile and pieces, in words."""
    plan = _prepare(problem.geometry, problem.kind == "input_gradient", problem.dtype, problem.dtype, get_threads())
    return (
        f"{plan.lanes} pixels of a row in a vector, {plan.rows} rows together, in pairs that share a third of their products; "
        f"{plan.job.numbers['chunk']} planes a piece; {plan.job.cut(plan.threads)}"
    )


def share(problem: Problem) -> float:
    """Of the limit; see :mod:`konv.engine.roofline`."""
    g = problem.geometry
    row, taps = g.spatial[-1] if problem.kind == "input_gradient" else g.output[-1], g.kernel[0]
    done = (3 * (taps // 2) + 2 * (taps % 2)) / (2 * taps) * roofline.padding(row, machine().lanes(problem.dtype) // 2)
    return roofline.share(problem, done, speed=0.9, moving=1.25, storing=1)
