"""The weight gradient of groups of few channels and as many filters: channels in lanes.

Milliseconds of two cores of an AMD Zen 4, beside pixels in lanes or the direct tile: channels first 256@28 in 32 groups 1.7/2.1,
256@56 of stride 2 2.4/4.6; channels last 256@28 2.4/4.1, 512@14 1.9/2.2. Groups of 4 take 1.3 times as long as there, groups
of 16 as long, and channels last a stride as long: neighbouring pixels lie too far apart, asking for them early does not help.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from konv.arrays import known_layout
from konv.engine import columns, memory
from konv.engine.group_weights_kernels import accumulate_groups
from konv.engine.launch import Job, address
from konv.engine.machine import dtype_name, machine, wide_type
from konv.engine.threads import get_threads, width
from konv.geometry import Geometry

if TYPE_CHECKING:
    from konv.engine.plan import Problem

NAME = "group_weights"
GROUPS, GROUPS_LAST = (8,), (8, 16)  # channels of a group, channels first and last
MOST_TAPS = 5  # of a row of the kernel
CHUNK_CELLS = 160  # of dy, whose products are summed before they are added to the others: the error falls
LEAST_PIECES = 32  # each of which is summed by itself

__all__ = [
    "NAME", "declines", "forward", "input_gradient", "weight_and_bias_gradient", "weight_gradient", "workspace",
]  # fmt: skip


def declines(problem: Problem) -> str | None:
    """What it does not compute."""
    g, lanes = problem.geometry, machine().lanes(problem.dtype)
    group = g.channels // g.groups
    if problem.kind != "weight_gradient":
        return "it computes weight gradients only"
    if g.axes != 2 or max(g.dilation) > 1 or g.kernel[1] > MOST_TAPS:
        return f"its kernels have two axes, at most {MOST_TAPS} columns, no dilation"
    if problem.layout == "last" and max(g.stride) > 1:
        return "channels last, its strides are 1"
    groups = GROUPS_LAST if problem.layout == "last" else GROUPS
    if g.channels != g.filters or group not in groups or lanes % group or g.channels % lanes:
        return f"groups of {group} x {g.filters // g.groups}: it takes as many filters as channels, whole groups in a vector"
    left, right, over = _edges(g)
    if left + right > g.output[1] or max(over, g.padding[1][0]) >= g.kernel[1]:
        return "rows are shorter than their edges"
    return None


def workspace(problem: Problem) -> int:
    """Bytes borrowed while it runs."""
    return _prepare(problem.geometry, problem.dtype, problem.layout, get_threads()).size


def forward(x: np.ndarray, w: np.ndarray, b: np.ndarray | None, g: Geometry, out: np.ndarray) -> None:
    """It declines them all."""
    raise NotImplementedError("group_weights computes weight gradients only")


def input_gradient(dy: np.ndarray, w: np.ndarray, g: Geometry, out: np.ndarray) -> None:
    """It declines them all."""
    raise NotImplementedError("group_weights computes weight gradients only")


def weight_gradient(dy: np.ndarray, x: np.ndarray, g: Geometry, out: np.ndarray) -> None:
    """Write dL/dw (F, C // groups, *kernel) into ``out``."""
    weight_and_bias_gradient(dy, x, g, out, np.empty(g.filters, out.dtype))


def weight_and_bias_gradient(dy: np.ndarray, x: np.ndarray, g: Geometry, out: np.ndarray, db: np.ndarray) -> None:
    """Write dL/dw (F, C // groups, *kernel) into ``out`` and dL/db (F,) into ``db``."""
    plan = _prepare(g, dtype_name(x.dtype), known_layout(x, dy), get_threads())
    wide, group = wide_type(dtype_name(x.dtype)), g.channels // g.groups
    sums = np.empty((plan.parts, *g.kernel, group, g.groups, group), wide)
    biases = np.empty((plan.parts, g.filters), wide)
    with memory.workspace(plan.size) as slots:
        plan.job.run(
            plan.threads, x=address(x), dy=address(dy), sums=address(sums), biases=address(biases), slots=slots
        )
    db[...] = biases.sum(axis=0)
    if not np.isfinite(biases).all():  # nor is dy: taps in the padding, left out here, make NaN of it
        columns.weight_gradient(dy, x, g, out)
        return
    total = sums.sum(axis=0) if plan.parts > 1 else sums[0]
    out.reshape(g.groups, group, group, *g.kernel)[...] = total.transpose(3, 2, 4, 0, 1)


@dataclass(frozen=True)
class Prepared:
    """A job, the bytes that its threads borrow, and in how many parts its sums are."""

    job: Job
    threads: int
    size: int
    parts: int


@functools.lru_cache(maxsize=256)
def _prepare(g: Geometry, dtype: str, layout: str, threads: int) -> Prepared:
    host, group = machine(), g.channels // g.groups
    lanes, (taps_high, taps) = host.lanes(dtype), g.kernel
    (x_height, x_width), (out_height, out_width) = g.spatial, g.output
    most_sums = (24 if host.registers >= 32 else 12) // taps
    together = max(n for n in (1, 2, 4, 8, 16) if n <= max(1, min(most_sums, group)))
    blocks = g.channels // lanes
    part_images = max(1, min(g.batch, g.batch * blocks // LEAST_PIECES))
    parts = max(1, -(-g.batch // part_images))
    chunk_rows = max(1, min(out_height, CHUNK_CELLS // out_width))
    held = ((chunk_rows - 1) * g.stride[0] + taps_high) * x_width, chunk_rows * out_width
    dy_at, dy_size = (-(-n // lanes) * lanes * lanes for n in held)
    slot_size = dy_at + dy_size + taps_high * taps * group * lanes
    job = Job(
        accumulate_groups(dtype, lanes, group, together, taps, g.stride[1], g.padding[1][0], _edges(g), layout),
        parts * blocks, slot_size=slot_size, dy_at=dy_at, sums_at=dy_at + dy_size, images=g.batch, part_images=part_images,
        channels=g.channels, x_height=x_height, x_width=x_width, out_height=out_height, out_width=out_width,
        taps_high=taps_high, pad_high=g.padding[0][0], stride_high=g.stride[0], chunk_rows=chunk_rows,
    )  # fmt: skip
    used = width(job.pieces, g.flops // 2)
    return Prepared(job, used, used * slot_size * np.dtype(wide_type(dtype)).itemsize, parts)


def _edges(g: Geometry) -> tuple[int, int, int]:
    """Outputs of a row that meet cells before its first, behind its last, and how many cells the last output meets there."""
    stride, pad = g.stride[1], g.padding[1][0]
    over = max(0, (g.output[1] - 1) * stride + g.kernel[1] - pad - g.spatial[1])
    return -(-pad // stride), -(-over // stride), over
