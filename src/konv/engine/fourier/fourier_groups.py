"""Long 1-D kernels in groups of many channels by Fourier transforms of blocks: forward and both gradients.

A block is ``block`` outputs; F and F' are the transform of ``size`` >= block + taps - 1 points and its inverse, and two blocks
are the real and the imaginary part of one sequence: ::

    x of a group    |-- block --|-- block --|-- block --| ...       X[c] = F(x[c]), once
                    |------- size ------|                           W[f, c] = F(w[f, c]), where it is used
                                |------- size ------|
    y[f] of a block, and the next  =  F'(sum over c of conjugate(W[f, c]) X[c])

As :mod:`konv.engine.fourier.fourier`, whose error and whose care for what is not finite it shares; but the weights' spectra,
which would be several times as large as the weights, are used at once and not kept (see
:mod:`konv.engine.fourier.fourier_groups_kernels`).

Against the algorithms that took these layers before: 2 x 768 x 249 in 16 groups, 128 taps 5.6 times as fast, gradients 5.5 and 6
(23 ms to 4); 128 channels in 8 groups, 2000 cells, 15 taps 2, 31 taps 3, 63 taps 4.7; 64 channels in one group, 400 cells, which
Winograd's algorithm took, 21 taps 1.4, 31 taps 1.7; of one image 0.85 for 15 taps, 1.2 for 31, 3 for 63; groups of 8, which
leave half of the lanes empty, 0.7 to 1 (weights 2 to 2.9).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import TYPE_CHECKING

import numpy as np

from konv.engine import roofline
from konv.engine.compile import Kernel
from konv.engine.direct import direct
from konv.engine.fourier.fourier import RADICES, Cut, Plan, Step, regions_of, spoiled
from konv.engine.fourier.fourier_groups_kernels import results_of_groups, weights_of_groups
from konv.engine.fourier.fourier_kernels import spectra_of_blocks
from konv.engine.fourier.fourier_passes import twiddles
from konv.engine.launch import Job
from konv.engine.machine import dtype_name, machine, wide_type
from konv.engine.prepared import without_bias
from konv.engine.threads import get_threads, width
from konv.engine.winograd.winograd_cuts import evenly
from konv.geometry import Geometry

if TYPE_CHECKING:
    from konv.engine.plan import Problem

NAME = "fourier_groups"
BEYOND = "transforms stand for many of the formula's products"
LEAST_FILTERS = 8  # of a group, which are the lanes
# Cycles of a vector: a pass of a point, what brings taps there, a product of a point; of the others, a tap.
PASS, BRING, PRODUCT, TAP = 7, 5, 8, 1.1
LEAST_GAIN, LEAST_GAIN_OF_WEIGHTS = 2.4, 1.8  # by those figures, of one image, with lanes that stay empty
LANES = 16  # of which that is, on every machine
BLOCK_BYTES = 512 << 10  # sums of a piece
SPECTRA_BYTES = 16 << 20  # of blocks of x, where there are several images
MOST_BYTES = 8 << 20  # spectra of dy that a piece of the weight gradient needs at once

__all__ = [
    "NAME", "blocking", "declines", "forward", "input_gradient", "share", "weight_and_bias_gradient", "weight_gradient",
    "workspace",
]  # fmt: skip


def declines(problem: Problem) -> str | None:
    """One dimension, groups of many filters, and a kernel that is long enough for the transforms to pay."""
    g = problem.geometry
    if problem.exact:
        return "an exact sum is asked for: all outputs of a block have the rounding of its largest"
    if g.axes != 1 or g.dilation != (1,) or g.stride != (1,) or g.batch == 0:
        return "it computes 1-D convolutions of stride 1, not dilated"
    channels, filters = g.channels // g.groups, g.filters // g.groups
    if min(channels, filters) < LEAST_FILTERS:
        return f"groups of {channels} x {filters}: it takes {LEAST_FILTERS} or more"
    if g.kernel[0] >= max(RADICES):
        return f"{g.kernel[0]} taps: its transforms have at most {max(RADICES)} points"
    cut, written = _cut(g, problem.kind), channels if problem.kind == "input_gradient" else filters
    least = LEAST_GAIN_OF_WEIGHTS
    if problem.kind != "weight_gradient":
        least = LEAST_GAIN * roofline.padding(written, LANES)
    if cut.cost * least > TAP * g.kernel[0] * g.output[0]:
        return f"{g.kernel[0]} taps cost less than transforms of {cut.size} points"
    if problem.kind == "weight_gradient":
        size = g.batch * cut.pairs * 2 * cut.size * np.dtype(wide_type(problem.dtype)).itemsize
        if size * machine().lanes(problem.dtype) > MOST_BYTES:
            return (
                f"the spectra of {g.batch * cut.pairs} blocks of a vector of filters are larger than {MOST_BYTES} bytes"
            )
    return None


def workspace(problem: Problem) -> int:
    """Bytes borrowed while it runs."""
    part = _part(problem.geometry, problem.kind, problem.dtype)
    return _plan(problem.kind, part, problem.dtype, problem.dtype, problem.layout, get_threads()).size


def forward(x: np.ndarray, w: np.ndarray, b: np.ndarray | None, g: Geometry, out: np.ndarray) -> None:
    """Write conv(x, w) + b into ``out`` (N, F, *output)."""
    _correlate("forward", np.ascontiguousarray(x), w, b, g, out)


def input_gradient(dy: np.ndarray, w: np.ndarray, g: Geometry, out: np.ndarray) -> None:
    """Write dL/dx (N, C, *spatial) into ``out``."""
    _correlate("input_gradient", np.ascontiguousarray(dy), w, None, g, out)


def _correlate(kind: str, x: np.ndarray, w: np.ndarray, b: np.ndarray | None, g: Geometry, out: np.ndarray) -> None:
    wide = wide_type(dtype_name(x.dtype))
    bias = np.zeros(out.shape[1], wide) if b is None else np.ascontiguousarray(b, wide)

    def compute(target: np.ndarray) -> None:
        images = _part(g, kind, dtype_name(x.dtype)).batch
        for start in range(0, g.batch, images):
            own = slice(start, min(start + images, g.batch))
            part = _of_batch(g, own.stop - own.start)
            names, layout = (dtype_name(x.dtype), dtype_name(out.dtype)), _layout(target)
            notes = _plan(kind, part, *names, layout, get_threads()).run(
                {"x": x[own], "w": w, "bias": bias, "y": target[own]}
            )
            blocks = part.batch * _cut(g, kind).pairs * x.shape[1]  # behind the last one a vector may go on
            for n, one in spoiled(notes["x"][:blocks].reshape(part.batch, -1), notes["w"], part):
                if kind == "forward":
                    direct.forward(x[own][n], w, b, one, target[own][n])
                else:
                    direct.input_gradient(x[own][n], w, one, target[own][n])

    direct.in_place(out, compute)


def weight_and_bias_gradient(dy: np.ndarray, x: np.ndarray, g: Geometry, out: np.ndarray, db: np.ndarray) -> None:
    """Write dL/dw (F, C // groups, *kernel) into ``out`` and dL/db (F,) into ``db``: dy is read once."""

    def compute(target: np.ndarray) -> None:
        names = dtype_name(x.dtype), dtype_name(out.dtype)
        plan = _plan("weight_gradient", g, *names, _layout(dy), get_threads())
        notes = plan.run({"x": np.ascontiguousarray(x), "dy": dy, "dw": target, "db": db})
        if np.isnan(notes["x"]).any() or np.isnan(notes["w"]).any():  # it has spread over all weights of a filter
            direct.weight_and_bias_gradient(dy, x, g, target, db)

    direct.in_place(out, compute)


weight_gradient = without_bias(weight_and_bias_gradient)


def _layout(array: np.ndarray) -> str:
    return "first" if array.flags.c_contiguous else "last"


@functools.lru_cache(maxsize=256)
def _of_batch(g: Geometry, batch: int) -> Geometry:
    return dataclasses.replace(g, batch=batch)


@functools.lru_cache(maxsize=256)
def _part(g: Geometry, kind: str, dtype: str) -> Geometry:
    """As many images as are computed at once."""
    if kind == "weight_gradient":
        return g
    channels = g.channels if kind == "forward" else g.filters
    image = _cut(g, kind).pairs * channels * 2 * _cut(g, kind).size * np.dtype(wide_type(dtype)).itemsize
    return _of_batch(g, min(g.batch, max(1, SPECTRA_BYTES // image)))


@functools.lru_cache(maxsize=256)
def _cut(g: Geometry, kind: str) -> Cut:
    """The size of transforms that costs one image the least, whatever the batch: cycles of a vector of filters and a channel."""
    taps, results = g.kernel[0], g.spatial[0] if kind == "input_gradient" else g.output[0]
    cuts = [Cut(max(RADICES), taps, 1, 1, math.inf)]
    for size, radices in RADICES.items():
        if size > taps:
            pairs = -(-results // (2 * (size - taps + 1)))
            cost = size * (PASS * len(radices) + BRING + PRODUCT * pairs)
            cuts.append(Cut(size, taps, -(-results // (2 * pairs)), pairs, cost))
    return min(cuts, key=lambda cut: cut.cost)


@functools.lru_cache(maxsize=256)
def _plan(kind: str, g: Geometry, dtype: str, out: str, layout: str, threads: int) -> Plan:
    """The jobs; ``layout`` of the results, of a weight gradient that of dy."""
    cut, wide, lanes = _cut(g, kind), wide_type(dtype), machine().lanes(dtype)
    back, radices, points = kind == "input_gradient", cut.radices, 2 * cut.size
    channels, filters = g.channels // g.groups, g.filters // g.groups
    read, written, low, taps = g.spatial[0], g.output[0], g.padding[0][0], g.kernel[0]
    steps = dict(lane_step=channels * taps, channel_step=taps, first=0)
    if back:
        channels, filters, read, written, low = filters, channels, written, read, taps - 1 - low
        steps = dict(lane_step=taps, channel_step=filters * taps, first=taps - 1)
    blocks, vectors = g.batch * cut.pairs, -(-filters // lanes)
    rows, itemsize = blocks * channels * g.groups, np.dtype(wide).itemsize
    sizes = {"blocks": rows * points}
    steps_done: list[Step] = []

    def add(kernel: Kernel, pieces: int, names: dict[str, str], slot: int, numbers: dict[str, int]) -> None:
        used = min(width(pieces, g.flops // 2), threads)
        sizes["space"] = max(sizes.get("space", 0), used * slot)
        steps_done.append(Step(Job(kernel, pieces, slot_size=slot, **numbers), used, names))

    common = dict(pairs=cut.pairs, block=cut.block)
    transformed = 1 / cut.size if kind == "weight_gradient" else 1.0
    numbers = dict(total=rows, channels=channels * g.groups, length=read, low=low)
    kernel = spectra_of_blocks(dtype, lanes, radices, 1, transformed)
    add(kernel, -(-rows // lanes), {"spectra": "blocks", "checks": "x_notes"}, points * lanes, common | numbers)

    numbers = dict(
        groups=g.groups,
        channels=channels,
        filters=filters,
        vectors=vectors,
        all_blocks=blocks,
        length=written,
        taps=taps,
    )
    spare = points * lanes + 2 * lanes * lanes  # what lies behind the last point is read, not used
    if kind == "weight_gradient":
        kernel, pieces = weights_of_groups(dtype, out, lanes, radices, layout), g.groups * vectors
        slot = spare + blocks * points * lanes
    else:
        chunks, chunk_blocks = evenly(blocks, max(1, BLOCK_BYTES // (points * lanes * itemsize)))
        kernel, pieces = (
            results_of_groups(dtype, out, lanes, radices, not back, 1 / cut.size, layout),
            g.groups * vectors * chunks,
        )
        slot = spare + chunk_blocks * points * lanes
        numbers |= steps | dict(
            chunks=chunks, chunk_blocks=chunk_blocks, group_step=g.channels // g.groups * g.filters // g.groups * taps,
            y_image=filters * g.groups * written, y_filter=written if layout == "first" else 1,
            y_cell=1 if layout == "first" else filters * g.groups,
        )  # fmt: skip
    add(kernel, pieces, {"checks": "w_notes"}, slot, common | numbers)
    notes: dict[str, tuple[int, ...]] = {"x": (-(-rows // lanes) * lanes,), "w": (pieces * lanes,)}
    return Plan(steps_done, *regions_of(sizes, itemsize), notes, twiddles(radices, wide))


def blocking(problem: Problem) -> str:
    """Blocks and transforms, and the pieces of the jobs, in words."""
    g = problem.geometry
    cut, part = _cut(g, problem.kind), _part(g, problem.kind, problem.dtype)
    jobs = _plan(problem.kind, part, problem.dtype, problem.dtype, problem.layout, get_threads()).steps
    results = "cells of x" if problem.kind == "input_gradient" else "outputs"
    return (
        f"{cut.pairs} pairs of blocks of {cut.block} {results} a row, by transforms of {cut.size} points, "
        f"{part.batch} images at once; " + ", then ".join(step.job.cut(step.threads) for step in jobs)
    )


def share(problem: Problem) -> float:
    """Of the limit; see :mod:`konv.engine.roofline`. Above 1 where transforms cost less than the formula's products."""
    g = problem.geometry
    cut = _cut(g, problem.kind)
    alone = cut.size * PRODUCT * cut.pairs  # of a further image
    done = (cut.cost - alone + alone * g.batch) / (g.batch * g.kernel[0] * g.output[0])
    done *= roofline.padding(g.filters // g.groups, machine().lanes(problem.dtype))
    return roofline.share(problem, done, speed=0.7, moving=1, storing=1)
