"""Long 1-D kernels by Fourier transforms of blocks: ``y = F^-1(F(x) * conj(F(w)))``.

With K taps an output takes K multiply-adds for each channel; cut into blocks of N cells (overlap-save), a few dozen operations.
A stride s makes s sequences of each channel and of each filter, every s-th cell, whose products are summed: ``y[o] = sum over p,
j of w[j s + p] x[(o + j) s + p]``. Lanes are filters; of the input gradient they are summed at its end. The weight gradient
adds the spectra of all blocks, in an order that the geometry fixes.

Against the algorithms that took these layers before: 1 channel, 64 taps 1.5-2 times as fast, 251 taps 8; 4 sequences of 20 taps
1.8-2.2; 8 to 32 channels of 48 to 64 taps 2-4.6; with 16 taps, or rows not much longer than the kernel, 0.4-1.1: declined.

Error: 1-3e-7 of the largest result, outputs and both gradients (direct: 2-7e-7), measured against float64 on normal numbers, 251
taps, 80 taps with stride 4, 2 channels of 120 taps; in float64 1e-15. It is relative to the largest of a pair of blocks. Numbers
above 1e36 may overflow. A sample that has a NaN or an infinity is computed again by the direct algorithm, or those would fill
its blocks.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from konv.engine import memory, roofline
from konv.engine.compile import Kernel
from konv.engine.direct import direct
from konv.engine.fourier.fourier_kernels import (
    cells_of_sums,
    outputs_of_spectra,
    products_of_blocks,
    spectra_of_blocks,
    spectra_of_weights,
    sums_of_filters,
    taps_of_sums,
)
from konv.engine.fourier.fourier_passes import twiddles
from konv.engine.launch import Job, address
from konv.engine.machine import dtype_name, machine, wide_type
from konv.engine.prepared import without_bias
from konv.engine.threads import get_threads, width
from konv.geometry import Geometry

if TYPE_CHECKING:
    from konv.engine.plan import Problem

NAME = "fourier"
BEYOND = "transforms stand for many of the formula's products"
MOST_CHANNELS, FEW_CHANNELS = 32, 4  # times the stride
RADICES = {64: (8, 8), 128: (4, 4, 8), 256: (4, 8, 8), 512: (8, 8, 8), 1024: (4, 4, 8, 8), 2048: (4, 8, 8, 8)}
# Cycles of a vector: a pass of a point, a product of spectra with what waits for memory, an output; of the others, a tap.
PASS, PRODUCT, OUTPUT, TAP = 7, 12, 12, 1.1
# By those figures, of outputs and gradients; the input gradients of few channels waste lanes in other algorithms.
LEAST_GAIN, LEAST_GAIN_OF_INPUTS, LEAST_GAIN_OF_MANY, LEAST_GAIN_OF_GRADIENTS = 1.7, 1.2, 2.8, 4.0
CHANNELS_BYTES = 1 << 20  # spectra of a vector of filters
WEIGHTS_BYTES = 1 << 20  # of all, or half of a sample's im2col matrix
SUMS_BYTES = 2 << 20  # of the weight gradient, or a seventh of that matrix
LEAST_FILTERS = 16
LAST_BYTES = 384 << 10  # transforms of a block, channels last: all filters of a cell are written together
PIECES = 16  # of the weight gradient, so many, that threads share them evenly

__all__ = ["NAME", "blocking", "declines", "forward", "input_gradient", "share", "weight_gradient", "workspace"]


@dataclass(frozen=True)
class Cut:
    """Blocks of ``block`` results, in pairs, by transforms of ``size`` points; ``taps`` in each of ``stride`` sequences."""

    size: int
    taps: int
    block: int
    pairs: int
    cost: float

    @property
    def radices(self) -> tuple[int, ...]:
        """The passes of a transform."""
        return RADICES[self.size]


def declines(problem: Problem) -> str | None:
    """One dimension, few channels, and a kernel that is long enough for the transforms to pay."""
    g = problem.geometry
    if problem.exact:
        return "an exact sum is asked for: all outputs of a block have the rounding of its largest"
    if g.axes != 1 or g.dilation != (1,) or g.groups != 1 or g.batch == 0:
        return "it computes 1-D convolutions in one group, not dilated"
    channels, filters = g.channels * g.stride[0], g.filters
    if channels > MOST_CHANNELS:
        return f"{channels} sequences (channels times stride), more than {MOST_CHANNELS}"
    if filters < LEAST_FILTERS:
        return f"{filters} filters, fewer than {LEAST_FILTERS}, which are its lanes"
    gradient = problem.kind == "input_gradient"
    cut, least = _cut(g, gradient), LEAST_GAIN_OF_INPUTS if gradient else LEAST_GAIN
    if channels > FEW_CHANNELS:
        least = LEAST_GAIN_OF_MANY if problem.kind == "forward" else LEAST_GAIN_OF_GRADIENTS
    if cut.cost * least > TAP * g.kernel[0] * g.channels:
        return f"{g.kernel[0]} taps cost less than transforms of {cut.size} points"
    return None


def workspace(problem: Problem) -> int:
    """Bytes borrowed while it runs."""
    names, layouts = (problem.dtype, problem.dtype), (problem.layout, problem.layout)
    return _plan(problem.kind, problem.geometry, *names, *layouts, get_threads()).size


def forward(x: np.ndarray, w: np.ndarray, b: np.ndarray | None, g: Geometry, out: np.ndarray) -> None:
    """Write conv(x, w) + b into ``out`` (N, F, *output)."""
    x, bias = np.ascontiguousarray(x), np.zeros(g.filters, x.dtype) if b is None else np.ascontiguousarray(b)

    def compute(target: np.ndarray) -> None:
        plan = _plan("forward", g, dtype_name(x.dtype), dtype_name(out.dtype), "first", _layout(target), get_threads())
        notes = plan.run({"x": x, "w": w, "bias": bias, "y": target})
        blocks = _cut(g, False).pairs * g.channels  # of a sample; behind the last one a vector may go on
        for n, one in spoiled(notes["x"][: g.batch * blocks].reshape(g.batch, blocks), notes["w"], g):
            direct.forward(x[n], w, b, one, target[n])

    direct.in_place(out, compute)


def input_gradient(dy: np.ndarray, w: np.ndarray, g: Geometry, out: np.ndarray) -> None:
    """Write dL/dx (N, C, *spatial) into ``out``."""

    def compute(target: np.ndarray) -> None:
        names, layouts = (dtype_name(dy.dtype), dtype_name(out.dtype)), (_layout(dy), _layout(target))
        plan = _plan("input_gradient", g, *names, *layouts, get_threads())
        notes = plan.run({"dy": dy, "w": w, "dx": target})
        for n, one in spoiled(notes["dy"], notes["w"], g):
            direct.input_gradient(dy[n], w, one, target[n])

    direct.in_place(out, compute)


def weight_and_bias_gradient(dy: np.ndarray, x: np.ndarray, g: Geometry, out: np.ndarray, db: np.ndarray) -> None:
    """Write dL/dw (F, C, *kernel) into ``out`` and dL/db (F,) into ``db``: dy is read once."""

    def compute(target: np.ndarray) -> None:
        names, layouts = (dtype_name(x.dtype), dtype_name(out.dtype)), (_layout(dy), "first")
        plan = _plan("weight_gradient", g, *names, *layouts, get_threads())
        notes = plan.run({"dy": dy, "x": np.ascontiguousarray(x), "dw": target})
        db[...] = notes["bias"].sum(axis=1).reshape(-1)[: g.filters]
        if not np.isfinite(notes["x"] + notes["dy"].sum()).all():  # it has spread over all weights of a filter
            direct.weight_and_bias_gradient(dy, x, g, target, db)

    direct.in_place(out, compute)


weight_gradient = without_bias(weight_and_bias_gradient)


def spoiled(note: np.ndarray, weights: np.ndarray, g: Geometry) -> Iterator[tuple[slice, Geometry]]:
    """The samples that met a number that is not finite, which would spread over their blocks; all, where it is a weight."""
    one = dataclasses.replace(g, batch=1)
    for n in np.flatnonzero(np.isnan(note).any(axis=1) | np.isnan(weights).any()):
        yield slice(n, n + 1), one


def _layout(array: np.ndarray) -> str:
    return "first" if array.flags.c_contiguous else "last"


@functools.lru_cache(maxsize=256)
def _cut(g: Geometry, gradient: bool) -> Cut:
    """The size of transforms that costs a result the least, whatever the batch."""
    stride, channels = g.stride[0], g.channels * g.stride[0]
    taps = -(-g.kernel[0] // stride)
    cuts = [Cut(64, taps, 1, 1, math.inf)]
    for size, radices in RADICES.items():
        spectrum = 2 * size * channels * np.dtype(np.float32).itemsize
        room = max(WEIGHTS_BYTES, g.output[0] * g.kernel[0] * g.channels * np.dtype(np.float32).itemsize // 2)
        if size > taps and spectrum * 16 <= CHANNELS_BYTES and spectrum * g.filters <= room:
            pairs = -(-_results(g, gradient) // (2 * (size - taps + 1)))
            block = -(-_results(g, gradient) // (2 * pairs))
            cost = pairs * size * (PASS * len(radices) + PRODUCT * channels) / g.output[0] + OUTPUT
            cuts.append(Cut(size, taps, block, pairs, cost))
    return min(cuts, key=lambda cut: cut.cost)


def _results(g: Geometry, gradient: bool) -> int:
    """How many outputs; of the input gradient, how many windows of ``stride`` cells, without those that are all padding."""
    if not gradient:
        return g.output[0]
    (low, _), stride = g.padding[0], g.stride[0]
    return (low + g.spatial[0] - 1) // stride - low // stride + 1


@dataclass(frozen=True)
class Step:
    """A job, its threads, and what its pointers are called in the plan where that is another name."""

    job: Job
    threads: int
    names: dict[str, str]


@dataclass(frozen=True)
class Plan:
    """Jobs that follow each other.

    Attributes
    ----------
    steps : the jobs
    regions : where each region of the workspace begins, in bytes
    size : bytes of the workspace
    notes : shapes of arrays that the jobs fill: "w", (N, "x"), (N, "dy"): NaN where a number is not finite; "bias": parts of db
    roots : of unity, for the transforms
    """

    steps: list[Step]
    regions: dict[str, int]
    size: int
    notes: dict[str, tuple[int, ...]]
    roots: np.ndarray

    def run(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute, and return the notes."""
        notes = {name: np.empty(shape, self.roots.dtype) for name, shape in self.notes.items()}
        given = {f"{name}_notes": address(array) for name, array in notes.items()}
        given |= {name: address(array) for name, array in (arrays | {"roots": self.roots}).items()}
        with memory.workspace(self.size) as space:
            given |= {name: space + start for name, start in self.regions.items()}
            for step in self.steps:
                step.job.run(step.threads, **{name: given[step.names.get(name, name)] for name in step.job.pointers})
        return notes


@functools.lru_cache(maxsize=256)
def _plan(kind: str, g: Geometry, dtype: str, out: str, source: str, target: str, threads: int) -> Plan:
    """The jobs for arrays in the layouts ``source`` and ``target``."""
    cut, wide, stride = _cut(g, kind == "input_gradient"), wide_type(dtype), g.stride[0]
    # Filters that are summed are so in the same order on every machine.
    lanes = 128 // np.dtype(wide).itemsize // 2 if kind == "input_gradient" else machine().lanes(dtype)
    vectors, channels, points = -(-g.filters // lanes), g.channels * stride, 2 * cut.size
    blocks, radices, transform = g.batch * cut.pairs, cut.radices, points * lanes
    numbers = dict(
        channels=channels, filters=g.filters, vectors=vectors, pairs=cut.pairs, block=cut.block, length=g.output[0]
    )
    sizes: dict[str, int] = {}
    notes: dict[str, tuple[int, ...]] = {}
    steps: list[Step] = []

    def add(name: str, kernel: Kernel, pieces: int, names: dict[str, str], slot_size: int = 0, **more: int) -> None:
        used = min(width(pieces, g.flops // 2), threads)
        if slot_size:
            sizes["space"] = max(sizes.get("space", 0), used * slot_size)
            more["slot_size"] = slot_size
        more = numbers | more
        steps.append(Step(Job(kernel, pieces, **{n: more[n] for n in kernel.arguments if n in more}), used, names))

    if kind != "weight_gradient":
        sizes["weights"] = vectors * channels * transform
        notes["w"] = (vectors * g.channels * lanes,)
        add(
            "weights", spectra_of_weights(dtype, lanes, radices, stride, 1 / cut.size), vectors * g.channels,
            {"spectra": "weights", "checks": "w_notes"}, channels=g.channels, filter_step=g.channels * g.kernel[0],
            channel_step=g.kernel[0], group_step=0, taps=g.kernel[0],
        )  # fmt: skip
    if kind != "input_gradient":
        rows = blocks * g.channels
        sizes["blocks"] = rows * stride * points
        notes["x"] = (-(-rows // lanes) * lanes,)
        scale = 1.0 if kind == "forward" else 1 / cut.size
        add(
            "blocks", spectra_of_blocks(dtype, lanes, radices, stride, scale), -(-rows // lanes),
            {"spectra": "blocks", "checks": "x_notes"}, stride * transform, total=rows, channels=g.channels,
            length=g.spatial[0], low=g.padding[0][0],
        )  # fmt: skip
    if kind == "forward":
        y_image, y_filter, y_cell = _strides(g.filters, g.output[0], target)
        room = max(1, LAST_BYTES // (transform * np.dtype(wide).itemsize)) if target == "last" else vectors
        part_vectors = min(room, -(-vectors // -(-4 * threads // blocks)))
        parts = -(-vectors // part_vectors)
        add(
            "outputs", outputs_of_spectra(out, lanes, radices, target), blocks * parts, {},
            transform * (part_vectors if target == "last" else 1) + 2 * lanes * lanes, groups=1, parts=parts,
            part_vectors=part_vectors, next_points=transform if target == "last" else 0, y_image=y_image,
            y_filter=y_filter, y_cell=y_cell,
        )  # fmt: skip
    elif kind == "input_gradient":
        low, rows = g.padding[0][0], blocks * channels
        dx_image, dx_channel, dx_cell = _strides(g.channels, g.spatial[0], target)
        sizes["sums"] = rows * points
        notes["dy"] = (g.batch, cut.pairs * lanes)
        add(
            "sums", sums_of_filters(dtype, lanes, radices, source), blocks, {"checks": "dy_notes"}, (1 + channels) * transform,
            low=cut.taps - 1 - low // stride,
        )  # fmt: skip
        lanes = machine().lanes(dtype)
        add(
            "cells", cells_of_sums(out, lanes, radices), -(-rows // lanes), {}, points * lanes, total=rows, channels=g.channels,
            stride=stride, first=cut.taps - 1, before=low % stride, length=g.spatial[0], dx_image=dx_image,
            dx_channel=dx_channel, dx_cell=dx_cell,
        )  # fmt: skip
    else:
        matrix = g.batch * g.output[0] * g.kernel[0] * g.channels * np.dtype(wide).itemsize
        room = max(SUMS_BYTES, matrix // 7) // (vectors * channels * transform * np.dtype(wide).itemsize)
        parts = max(1, min(blocks, -(-PIECES // vectors), room))
        sizes["sums"] = vectors * parts * channels * transform
        notes["dy"] = notes["bias"] = (vectors, parts, lanes)
        add(
            "sums", products_of_blocks(dtype, lanes, radices, source), vectors * parts,
            {"checks": "dy_notes", "bias": "bias_notes"}, transform, groups=1, parts=parts, images=g.batch,
        )  # fmt: skip
        taps = -(-g.kernel[0] // stride) * stride + lanes
        add(
            "taps", taps_of_sums(out, lanes, radices, stride), vectors * g.channels, {}, transform + taps * lanes,
            channels=g.channels, parts=parts, taps=g.kernel[0],
        )  # fmt: skip

    return Plan(steps, *regions_of(sizes, np.dtype(wide).itemsize), notes, twiddles(radices, wide))


def regions_of(sizes: dict[str, int], itemsize: int) -> tuple[dict[str, int], int]:
    """Where in the workspace so many elements of each name lie, from a cache line on, and the bytes of all."""
    regions, size = {}, 0
    for name, elements in sizes.items():
        regions[name] = size
        size += -(-elements * itemsize // 64) * 64
    return regions, size


def _strides(channels: int, length: int, layout: str) -> tuple[int, int, int]:
    """Of an image, a channel, a cell."""
    return (channels * length, length, 1) if layout == "first" else (channels * length, 1, channels)


def blocking(problem: Problem) -> str:
    """Blocks and transforms, and the pieces of the jobs, in words."""
    g, names, layouts = problem.geometry, (problem.dtype,) * 2, (problem.layout,) * 2
    cut = _cut(g, problem.kind == "input_gradient")
    last = _plan(problem.kind, g, *names, *layouts, get_threads()).steps
    results = "cells of x a phase" if problem.kind == "input_gradient" else "outputs"
    return (
        f"{cut.pairs} pairs of blocks of {cut.block} {results} a row, by transforms of {cut.size} points of "
        f"{g.channels * g.stride[0]} sequences; " + ", then ".join(step.job.cut(step.threads) for step in last)
    )


def share(problem: Problem) -> float:
    """Of the limit; see :mod:`konv.engine.roofline`. Above 1 where transforms cost less than the formula's products."""
    g = problem.geometry
    done = _cut(g, problem.kind == "input_gradient").cost / (g.kernel[0] * g.channels)
    done *= roofline.padding(g.filters, machine().lanes(problem.dtype))
    return roofline.share(problem, done, speed=0.7, moving=1, storing=1)
